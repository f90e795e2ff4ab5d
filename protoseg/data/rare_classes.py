"""Rare-class sampling of DAFormer (Hoyer, Dai, Van Gool, CVPR 2022, arXiv 2111.14887, Section 3.2)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protoseg.data.statistics import ClassStatistics, rare_class_probability
from protoseg.data.transforms import Wanted
from protoseg.types import ProtosegError


@dataclass(frozen=True)
class RareClasses:
    """The options of rare-class sampling; the defaults are the paper's, for images of Cityscapes' size.

    An image can be drawn for a class of which its mask holds more than ``min_pixels``, counted at the mask's full size,
    before any scaling, as in the released code. The crop is drawn again, up to 10 times in all, until it holds more
    than ``min_crop_ratio`` times as many, counted after scaling, as there; unlike there, the scale is drawn once.
    """

    temperature: float = 0.01  # see ``rare_class_probability``
    min_pixels: int = 3000
    min_crop_ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.min_pixels < 0 or self.min_crop_ratio < 0:
            raise ProtosegError(
                "rare_classes: expected a temperature above 0, min_pixels and min_crop_ratio of at least 0, got "
                f"{self.temperature}, {self.min_pixels} and {self.min_crop_ratio}"
            )


class RareClassDraw:
    """Draws a class by its rarity, then an image with enough of it, both from a seed alone.

    ``weights`` say how often each image is to be drawn, relative to the others, ``n``; None: all alike. Raises
    ProtosegError: a class that occurs, but in no image with enough pixels.
    """

    def __init__(
        self, statistics: ClassStatistics, options: RareClasses, weights: NDArray[np.float64] | None = None
    ) -> None:
        counts, self.weights = statistics.counts, weights
        pixels = statistics.pixels if weights is None else weights @ counts
        self.probability = rare_class_probability(pixels, options.temperature)
        self.images = [np.flatnonzero(column > options.min_pixels) for column in counts.T]
        self.crop_pixels = options.min_pixels * options.min_crop_ratio
        empty = [c for c in np.flatnonzero(self.probability) if not len(self.images[c])]
        if empty:
            largest = {statistics.classes[c]: int(counts[:, c].max()) for c in empty}
            raise ProtosegError(
                f"rare-class sampling: expected for every class an image with more than {options.min_pixels} pixels of "
                f"it, got at most {', '.join(f'{n} of {name}' for name, n in largest.items())}: set "
                f"data.rare_classes.min_pixels to {min(largest.values()) - 1} or less"
            )

    def __call__(self, seed: int) -> tuple[int, Wanted]:
        """Index of an image, and the class that its crop is to hold."""
        random = np.random.default_rng((seed, 1))  # the augmentation draws from ``seed`` itself
        train_id = int(random.choice(len(self.probability), p=self.probability))
        images, weights = self.images[train_id], None
        if self.weights is not None:
            weights = self.weights[images] / self.weights[images].sum()
        return int(random.choice(images, p=weights)), Wanted(train_id, self.crop_pixels)
