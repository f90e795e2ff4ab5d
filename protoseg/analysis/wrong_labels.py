"""Regions whose label looks wrong to a model."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protoseg.analysis.stream import Scene
from protoseg.evaluation.pictures import WRONG, Picture, as_picture, overlay, tile_row
from protoseg.types import IGNORE_INDEX, LabelSpace

MIN_PIXELS = 100  # a smaller region is not looked at: it lies between the cells of a model's grid


class Region(NamedTuple):
    """Connected pixels of one labelled class, and what a model says of them."""

    scene: int  # its number
    number: int  # the region's among those of its label
    given: int  # the labelled class
    suggested: int  # the likeliest other one
    pixels: int
    score: float  # by how much that one is likelier, the mean over the pixels
    box: tuple[int, ...]  # left, top, width, height


def regions(label: Tensor) -> Iterator[tuple[int, tuple[int, ...], NDArray[np.bool_]]]:
    """Class, box and pixels (``H W``) of each connected region (8 neighbours) of a label ``H W``, of ``MIN_PIXELS``."""
    ids = label.cpu().numpy()
    for given in np.unique(ids[ids != IGNORE_INDEX]).tolist():
        _, numbers, found, _ = cv2.connectedComponentsWithStats((ids == given).astype(np.uint8))
        for number, (*box, pixels) in enumerate(found.tolist()):
            if number > 0 and pixels >= MIN_PIXELS:  # 0 is all else
                yield given, (*box,), numbers == number


@torch.no_grad()
def judged_regions(scene: Scene, leaves: int) -> Iterator[Region]:
    """What a model says of each region of a scene's label, by cosines to its prototypes, else by log-probabilities.

    Of the first ``leaves`` nodes of a tree alone, the classes: a group is right wherever one of its classes is.
    """
    cells = scene.output.logits[0].float()  # whose differences are those of log-probabilities
    if scene.output.similarities is not None:
        cells = scene.cosines.scores.view(*scene.grid, -1).permute(2, 0, 1).float()
    said = scene.at_pixels(cells)[:leaves].cpu()
    for number, (given, box, mask) in enumerate(regions(scene.label)):
        if given < leaves:
            means = said[:, torch.from_numpy(mask)].mean(1)
            others = means.index_fill(0, torch.tensor(given), -torch.inf)
            score, suggested = (others - means[given]).max(0)
            yield Region(scene.number, number, given, int(suggested), int(mask.sum()), float(score), box)


def region_picture(image: Tensor, label: Tensor, region: Region, space: LabelSpace) -> Picture:
    """A region, outlined, in its surroundings: the photo, ``c H W``, and its label, ``H W``."""
    inside = next(islice(regions(label), region.number, None))[2].astype(np.uint8)
    outline = cv2.dilate(inside, np.ones((3, 3), np.uint8)) > inside
    left, top, width, height = region.box
    around = max(24, width // 2, height // 2)
    seen = slice(max(0, top - around), top + height + around), slice(max(0, left - around), left + width + around)
    given, suggested = space.classes[region.given], space.classes[region.suggested]
    photo, shown = as_picture(image, space.shown).copy(), overlay(image, label, space)
    photo[outline] = shown[outline] = WRONG
    tiles = {f"labelled {given}": photo[seen], f"or {suggested}? ({region.score:.2f})": shown[seen]}
    return tile_row(tiles, space, [label[seen]])
