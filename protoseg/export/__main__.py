"""Door to the command line: ``python -m protoseg.export``."""

from protoseg.cli.main import run_tool

run_tool("export")
