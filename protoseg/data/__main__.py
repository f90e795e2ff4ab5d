"""``python -m protoseg.data``: see ``protoseg.cli.data``."""

from __future__ import annotations

from protoseg.cli.data import main

if __name__ == "__main__":
    main()
