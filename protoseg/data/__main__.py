"""``python -m protoseg.data``: see ``protoseg.cli``."""

from protoseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("data")
