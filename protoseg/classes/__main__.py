"""``python -m protoseg.classes``: see ``protoseg.cli.classes``."""

from __future__ import annotations

from protoseg.cli.classes import main

if __name__ == "__main__":
    main()
