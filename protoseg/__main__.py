"""``python -m protoseg COMMAND``: see ``protoseg.cli.main``."""

from protoseg.cli.main import main

if __name__ == "__main__":
    main()
