"""Door to the command line: ``python -m protoseg.convert``."""

from protoseg.cli.convert import main

main()
