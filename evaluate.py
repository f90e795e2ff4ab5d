"""Evaluate a checkpoint, or predict a folder of images: ``python evaluate.py --help``."""

from protoseg.cli import evaluate

if __name__ == "__main__":
    evaluate()
