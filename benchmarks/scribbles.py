"""Masks of strokes or dots from whole ones: ``python -m benchmarks.scribbles CAMVID OUT [--points]``.

OUT is CamVid again, to be read with ``data=camvid data.root=OUT``; of the training masks only what somebody might have
drawn by hand is left, the rest is ignored: in each connected region of a class, of 100 pixels at least, one dot where
it is deepest, or a stroke along its longer side: that is cut into parts of as many pixels, one for each 20 of its
length, and the stroke goes through the deepest place of each. The validation masks stay whole. The images and those are
linked, not copied.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

VOID = 11
SMALLEST = 100  # pixels of a region
REACH = 20  # pixels of a region's length for each point of its stroke
WIDTH = 7  # of dots and strokes: more than a cell of the network's grid


def deepest(depth: NDArray[np.float32], pieces: int) -> list[list[int]]:
    """The x, y farthest from the border of a region, in each piece of its longer side."""
    ys, xs = np.nonzero(depth)
    along = xs if np.ptp(xs) > np.ptp(ys) else ys
    order = np.argsort(along, kind="stable")
    chosen = [piece[depth[ys[piece], xs[piece]].argmax()] for piece in np.array_split(order, pieces)]
    return [[int(xs[i]), int(ys[i])] for i in chosen]


def drawn(label: NDArray[np.uint8], points: bool) -> NDArray[np.uint8]:
    """The label ``h w`` with all but dots, or strokes, void."""
    sparse = np.full_like(label, VOID)
    for given in np.setdiff1d(np.unique(label), [VOID]):
        count, regions, boxes, _ = cv2.connectedComponentsWithStats((label == given).astype(np.uint8), connectivity=4)
        for region in range(1, count):
            if boxes[region, cv2.CC_STAT_AREA] < SMALLEST:
                continue
            left, top, width, height, _ = boxes[region]
            box = slice(top, top + height), slice(left, left + width)
            inside = np.pad(regions[box] == region, 1)  # the border of the image is one of the region
            depth = cv2.distanceTransform(inside.astype(np.uint8), cv2.DIST_L2, 5)
            line = deepest(depth, 1 if points else max(1, round(max(width, height) / REACH)))
            stroke = np.zeros(inside.shape, np.uint8)
            for here, there in zip(line, line[1:] or line, strict=False):
                cv2.line(stroke, here, there, 1, WIDTH)
            sparse[box][(inside & (stroke > 0))[1:-1, 1:-1]] = given
    return sparse


def main(arguments: Sequence[str] | None = None) -> float:
    """Entry of the command; the share of the labelled pixels that is left."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scribbles", description=__doc__)
    parser.add_argument("camvid", type=Path, help="the folder of train, trainannot, val and valannot")
    parser.add_argument("out", type=Path)
    parser.add_argument("--points", action="store_true", help="dots in place of strokes")
    chosen = parser.parse_args(arguments)
    masks = sorted((chosen.camvid / "trainannot").glob("*.png"))
    if not masks or chosen.out.exists():
        parser.error(
            f"expected masks in {chosen.camvid / 'trainannot'} ({len(masks)} there) and a new folder {chosen.out}"
        )
    (chosen.out / "trainannot").mkdir(parents=True)
    for name in ("train", "val", "valannot"):
        (chosen.out / name).symlink_to((chosen.camvid / name).resolve())
    before = after = 0
    for file in track(masks, "training masks"):
        label = np.asarray(Image.open(file))
        sparse = drawn(label, chosen.points)
        Image.fromarray(sparse).save(chosen.out / "trainannot" / file.name)
        before += int((label != VOID).sum())
        after += int((sparse != VOID).sum())
    print(f"{after / before:.2%} of the labelled pixels of the training masks are left, in {chosen.out}")
    return after / before


if __name__ == "__main__":
    main()
