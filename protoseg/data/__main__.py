"""``python -m protoseg.data``: see ``protoseg.cli.data``."""

from protoseg.cli.data import main

if __name__ == "__main__":
    main()
