"""The places in the images that lie nearest to each prototype: what it stands for."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from protoseg.analysis.stream import Scene
from protoseg.evaluation.pictures import FRAME, INK, PAPER, WRONG, Picture, short_name, typeface
from protoseg.types import IGNORE_INDEX, LabelSpace

PATCH_SHARE = 0.2  # side of the patch, of the image's shorter side
PATCH_PIXELS = 96  # side of the picture of it
_GAP, _NAME_WIDTH = 6, 88


class Patch(NamedTuple):
    """A place that takes a prototype."""

    cosine: float  # of the embedding there to the prototype
    image: int  # its place in the stream
    name: str  # its path
    y: int
    x: int
    label: int  # true class of the pixel, or the ignored one
    picture: Picture  # the photo around it, uint8 ``PATCH_PIXELS PATCH_PIXELS 3``; white beyond the image's border


class PatchCollector:
    """The ``n`` nearest cells of each prototype over a stream, at most one an image.

    A cell belongs to one prototype: the nearest of the class that is predicted there. So a prototype's patches are
    those that take it, whatever the truth, and one that is always beaten has none. Memory is bounded by ``c k n``
    pictures of 27 kB.
    """

    def __init__(self, num_classes: int, num_prototypes: int, n: int = 8) -> None:
        self.num_prototypes, self.n = num_prototypes, n
        self.found: list[list[Patch]] = [[] for _ in range(num_classes * num_prototypes)]
        self.lowest = torch.full((len(self.found),), -torch.inf)  # what a cell must beat to enter

    def update(self, scene: Scene) -> None:
        prediction, label = scene.cell_prediction, scene.cell_label
        cosine, nearest = scene.cosines.own(prediction).max(1)
        prototype = (prediction * self.num_prototypes + nearest).cpu()
        cosine = cosine.cpu().float()
        best = torch.full_like(self.lowest, -torch.inf).scatter_reduce_(0, prototype, cosine, "amax")
        for row in (best > self.lowest).nonzero().flatten().tolist():
            cell = int(((prototype == row) & (cosine == best[row])).nonzero()[0])
            y, x = scene.centre(cell)
            patch = Patch(float(best[row]), scene.number, scene.name, y, x, int(label[cell]), cut(scene.image, y, x))
            patches = sorted([*self.found[row], patch], key=lambda patch: -patch.cosine)[: self.n]
            self.found[row] = patches
            if len(patches) == self.n:
                self.lowest[row] = patches[-1].cosine

    def compute(self) -> list[list[list[Patch]]]:
        """By class and prototype: at most ``n`` patches, nearest first; none where no pixel takes it."""
        k = self.num_prototypes
        return [self.found[i : i + k] for i in range(0, len(self.found), k)]


def cut(image: Tensor, y: int, x: int) -> Picture:
    """The square of the photo (uint8 ``3 H W``) around a pixel, ``PATCH_SHARE`` of its shorter side, resized."""
    half = max(1, round(PATCH_SHARE * min(image.shape[1:]) / 2))
    side = 2 * half + 1
    top, left = y - half, x - half
    inside = image[:, max(top, 0) : top + side, max(left, 0) : left + side].permute(1, 2, 0).cpu().numpy()
    square = Image.new("RGB", (side, side), PAPER)
    square.paste(Image.fromarray(inside), (max(-left, 0), max(-top, 0)))
    return np.asarray(square.resize((PATCH_PIXELS, PATCH_PIXELS), Image.Resampling.BICUBIC))


def patch_sheet(
    patches: Sequence[Sequence[Patch]], class_id: int, label_space: LabelSpace, shares: Sequence[float] | None = None
) -> Picture:
    """The patches of one class, see :meth:`PatchCollector.compute`: a row for each prototype, nearest first.

    Frames are red where the truth is another; ``shares`` of the class's pixels that each takes are in 0 to 1.
    """
    columns = max(1, max((len(row) for row in patches), default=1))
    step, top = PATCH_PIXELS + _GAP + 14, 34
    width = max(_NAME_WIDTH + columns * (PATCH_PIXELS + _GAP), 420)
    canvas = Image.new("RGB", (width, top + len(patches) * step + _GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    name = short_name(label_space.classes[class_id])
    draw.rectangle((_GAP, 10, _GAP + 16, 26), fill=label_space.colors[class_id], outline=FRAME)
    draw.text((_GAP + 24, 18), f"{name}: nearest patches of each prototype, and their cosine", INK, typeface(15), "lm")
    for j, row in enumerate(patches):
        y = top + j * step
        share = "" if shares is None else f"\n{100 * shares[j]:.1f} %"
        draw.multiline_text((_GAP, y + PATCH_PIXELS // 2), f"number {j}{share}", INK, typeface(13), "lm")
        if not row:
            draw.text((_NAME_WIDTH, y + PATCH_PIXELS // 2), "no pixel takes it", WRONG, typeface(13), "lm")
        for i, patch in enumerate(row):
            x = _NAME_WIDTH + i * (PATCH_PIXELS + _GAP)
            canvas.paste(Image.fromarray(patch.picture), (x, y))
            middle_x, middle_y = x + PATCH_PIXELS // 2, y + PATCH_PIXELS // 2
            for r, ring in ((5, (0, 0, 0)), (4, PAPER)):
                draw.ellipse((middle_x - r, middle_y - r, middle_x + r, middle_y + r), outline=ring)
            wrong = patch.label not in (class_id, IGNORE_INDEX)
            box = (x - 1, y - 1, x + PATCH_PIXELS, y + PATCH_PIXELS)
            draw.rectangle(box, outline=WRONG if wrong else FRAME, width=3 if wrong else 1)
            truth = f" {short_name(label_space.classes[patch.label])[:9]}" if wrong else ""
            color = WRONG if wrong else INK
            draw.text((x, y + PATCH_PIXELS + 8), f"{patch.cosine:.2f}{truth}", color, typeface(11), "lm")
    return np.asarray(canvas)
