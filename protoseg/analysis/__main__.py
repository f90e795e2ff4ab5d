"""``python -m protoseg.analysis``: see ``protoseg.cli.analysis``."""

from __future__ import annotations

from protoseg.cli.analysis import main

if __name__ == "__main__":
    main()
