"""What each prototype stands for: where in an image it fires (ProtoSeg, Figure 3), and the patches nearest to it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw
from torch import Tensor, nn

from protoseg.analysis.stream import Scene, prototype_memory
from protoseg.evaluation import pictures
from protoseg.evaluation.pictures import FRAME, INK, PAPER, WRONG, Picture, short_name, typeface
from protoseg.types import IGNORE_INDEX, LabelSpace

PATCH_SHARE = 0.2  # side of the patch, of the image's shorter side
PATCH_PIXELS = 96  # side of the picture of it
_GAP, _NAME_WIDTH = 6, 88


class Activation(NamedTuple):
    """What the prototypes of one class make of an image."""

    class_id: int
    cosines: Tensor  # of every pixel to each prototype of the class, ``k H W``
    assignment: Tensor  # number of the nearest of these where the class is predicted, elsewhere -1, int64 ``H W``

    @property
    def shares(self) -> Tensor:
        """Share of the class's predicted pixels that each prototype takes, ``k``; NaN where none is predicted."""
        counts = torch.bincount(self.assignment[self.assignment >= 0], minlength=len(self.cosines))
        return counts.double() / counts.sum()

    @property
    def range(self) -> tuple[float, float]:
        """Cosines that a map begins and ends with: the lowest are those of other classes, so from the median on."""
        return float(self.cosines.median()), float(self.cosines.max())


@torch.no_grad()
def activation(model: nn.Module, scene: Scene, class_id: int) -> Activation:
    """The maps of one class and which pixels predicted as it take which prototype; raises ProtosegError without any."""
    prototypes = prototype_memory(model).prototypes[class_id]
    cells = torch.einsum("kd,dhw->khw", prototypes, scene.output.embeddings[0].to(prototypes.dtype))
    cosines = scene.at_pixels(cells).cpu()
    return Activation(class_id, cosines, cosines.argmax(0).where(scene.prediction.cpu() == class_id, -1))


def prototype_colors(num_prototypes: int) -> list[tuple[int, int, int]]:
    """A colour for each number of prototype, the same in all pictures."""
    few = num_prototypes <= 10
    points = np.arange(num_prototypes) if few else np.linspace(0, 1, num_prototypes, endpoint=False)
    colors = colormaps["tab10" if few else "hsv"](points)[:, :3]
    return [tuple(color) for color in (255 * colors).round().astype(int).tolist()]


def assignment_picture(image: Tensor, found: Activation, alpha: float = 0.75) -> pictures.Picture:
    """Each pixel of the class in the colour of its prototype, over the photo; the rest of the photo pale, ``H W 3``."""
    colors = np.array([*prototype_colors(len(found.cosines)), (255, 255, 255)], dtype=np.float64)
    ids = found.assignment.numpy()  # -1 is the last: white
    strength = np.where(ids[..., None] >= 0, alpha, 0.65)
    return ((1 - strength) * pictures.as_picture(image) + strength * colors[ids]).round().astype(np.uint8)


def heat_picture(image: Tensor, cosines: Tensor, low: float, high: float) -> pictures.Picture:
    """Cosines ``H W`` from ``low`` (dark) to ``high`` (bright) over the photo's brightness, ``H W 3``."""
    level = ((cosines - low) / max(high - low, 1e-6)).clamp(0, 1).numpy()
    grey = pictures.as_picture(image).mean(2, keepdims=True) / 255
    return (255 * (0.8 * colormaps["inferno"](level)[..., :3] + 0.2 * grey)).round().astype(np.uint8)


def activation_panel(image: Tensor, found: Activation, label_space: LabelSpace) -> pictures.Picture:
    """Photo, assignment, and the map of each prototype of a class under its share of pixels; one range of cosines."""
    low, high = found.range
    colors = prototype_colors(len(found.cosines))
    name = pictures.short_name(label_space.classes[found.class_id])
    tiles: list[pictures.Tile] = [
        ("photo", pictures.as_picture(image), None),
        (f"{name}: nearest prototype", assignment_picture(image, found), None),
    ]
    for j, (cosines, share) in enumerate(zip(found.cosines, found.shares.nan_to_num(0.0).tolist(), strict=True)):
        tiles.append((f"{j} · {100 * share:.0f} %", heat_picture(image, cosines, low, high), colors[j]))
    grid = pictures.tile_grid(tiles, min(4, len(tiles)), (240, 320), 26, 14)
    note = Image.new("RGB", (grid.shape[1], 26), pictures.PAPER)
    text = f"maps: cosine from {low:.2f} (dark: the image's median or less) to {high:.2f} (bright)"
    ImageDraw.Draw(note).text((pictures.MARGIN, 12), text, pictures.INK, pictures.typeface(13), "lm")
    return np.concatenate([grid, np.asarray(note)])


def activation_rows(model: nn.Module, scene: Scene, space: LabelSpace) -> pictures.Picture:
    """The five most frequent classes of an image: which prototype takes which pixel, and the cosine to the nearest one.

    The classes are those of the truth, so that they are the same at every validation.
    """
    image, ids = scene.image.cpu(), scene.cell_class.cpu()
    counts = torch.bincount(ids[ids != IGNORE_INDEX], minlength=space.num_classes)
    tiles = {"photo, prediction": _column(pictures.as_picture(image), pictures.overlay(image, scene.prediction, space))}
    frequent = counts.argsort(descending=True)[:5]
    for i in frequent[counts[frequent] > 0].tolist():
        found = activation(model, scene, i)
        title = f"{pictures.short_name(space.classes[i])}: {int((found.shares > 0.01).sum())} prototypes"
        tiles[title] = _column(assignment_picture(image, found), heat_picture(image, found.cosines.amax(0), 0.0, 1.0))
    return pictures.tile_row(tiles, space, [scene.cell_label.cpu(), scene.cell_prediction.cpu()])


def _column(*parts: pictures.Picture) -> pictures.Picture:
    return np.concatenate([pictures.fit_width(picture, (280, 280)) for picture in parts])


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
    those that take it, whatever the truth; one always beaten has none. Memory: at most ``c k n`` pictures of 27 kB.
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
