"""``python -m protoseg.analysis``: see ``protoseg.cli.analyse``."""

from __future__ import annotations

from protoseg.cli.analyse import main

if __name__ == "__main__":
    main()
