"""Door to the command line: ``python -m protoseg.export``."""

from protoseg.cli.export import main

main()
