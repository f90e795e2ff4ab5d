"""``python -m protoseg.classes``: the earlier door to ``protoseg teach``."""

from protoseg.cli.main import run_tool

if __name__ == "__main__":
    run_tool("teach")
