"""``python -m protoseg.data``: see ``protoseg.cli.dataset``."""

from __future__ import annotations

from protoseg.cli.dataset import main

if __name__ == "__main__":
    main()
