"""``python -m protoseg.teach``: see ``protoseg.cli.teach``."""

from __future__ import annotations

from protoseg.cli.teach import main

if __name__ == "__main__":
    main()
