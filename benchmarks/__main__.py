"""``python -m benchmarks NAME``; ``rehearse`` must start where packages of the others are missing."""

import sys


def main() -> None:
    """Entry of ``python -m benchmarks``."""
    if sys.argv[1:2] == ["rehearse"]:
        from benchmarks.rehearse import main as run
    else:
        from benchmarks.command import main as run
    run()


if __name__ == "__main__":
    main()
