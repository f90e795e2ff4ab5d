"""``python -m protoseg.teach``: see ``protoseg.cli``."""

from protoseg.cli.tool import run_tool

if __name__ == "__main__":
    run_tool("teach")
