"""Where in an image each prototype of a class fires (the ProtoSeg paper's Figure 3), and which pixel takes which."""

from typing import NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw
from torch import Tensor, nn

from protoseg.analysis.stream import Scene, prototype_memory
from protoseg.evaluation import pictures
from protoseg.types import IGNORE_INDEX, LabelSpace


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
    tiles: list[tuple[str, pictures.Picture, pictures.Color | None]] = [
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
        nearest = heat_picture(image, found.cosines.amax(0), 0.0, 1.0)
        tiles[title] = _column(assignment_picture(image, found), nearest)
    return pictures.tile_row(tiles, space, [scene.cell_label.cpu(), scene.cell_prediction.cpu()])


def _column(*parts: pictures.Picture) -> pictures.Picture:
    return np.concatenate([pictures.fit_width(picture, (280, 280)) for picture in parts])
