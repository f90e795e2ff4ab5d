"""Train: ``python train.py --help``."""

from protoseg.cli import train

if __name__ == "__main__":
    train()
