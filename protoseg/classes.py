"""``python -m protoseg.classes``: the earlier door to ``protoseg teach``."""

from protoseg.cli.teach import main

if __name__ == "__main__":
    main()
