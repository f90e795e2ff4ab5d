"""Surface patterns: tiles of multipliers drawn from filtered noise, none of them taken from a picture."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

SIZE = 256
LAYERS = (
    "plain", "asphalt", "paving", "brick", "plaster", "grass", "leaves", "bark", "tiles", "stone", "boards", "clouds",
)  # fmt: skip
PLAIN, ASPHALT, PAVING, BRICK, PLASTER, MEADOW, LEAVES, BARK, TILES, STONE, BOARDS, CLOUDS = range(len(LAYERS))

_Map = NDArray[np.float64]


def texture_layers() -> NDArray[np.uint8]:
    """``layer height width 4``: blue, green, red (128 leaves a colour as it is) and coverage; the same every time."""
    random = np.random.default_rng(0)
    maps: list[_Map] = [
        np.ones((SIZE, SIZE)),
        1 + 0.10 * _noise(random, 0.2) + 0.07 * _noise(random, 1.6) - 0.25 * _cracks(random),
        (1 + 0.05 * _noise(random, 0.8) + 0.06 * _noise(random, 2)) * _courses(random, 4, 4, 3, 0.10, 0.72),
        (1 + 0.06 * _noise(random, 0.5)) * _courses(random, 24, 8, 2, 0.16, 1.25),
        1 + 0.03 * _noise(random, 0.7) + 0.06 * _noise(random, 2) + 0.04 * _noise(random, 1.5, (0.2, 3)),
        1 + 0.30 * _noise(random, 0.5) + 0.12 * _noise(random, 2),
        0.95 + 0.25 * _noise(random, 1),
        1 + 0.25 * _noise(random, 1, (0.3, 3)) + 0.1 * _noise(random, 0.5),
        (1 + 0.08 * _noise(random, 0.7)) * _courses(random, 12, 8, 1, 0.18, 0.6),
        (1 + 0.06 * _noise(random, 1)) * _courses(random, 5, 4, 2, 0.08, 0.75),
        (1 + 0.05 * _noise(random, 1, (3, 0.3))) * _courses(random, 16, 1, 2, 0.05, 0.7),
        1 + 0.5 * _noise(random, 2.2),
    ]
    tint = np.ones((len(maps), SIZE, SIZE, 4))
    tint[..., :3] = np.stack(maps)[..., None]
    tint[MEADOW, ..., 0] *= 1 + 0.2 * _noise(random, 1.5)
    tint[MEADOW, ..., 2] *= 1 + 0.15 * _noise(random, 1.5)
    tint[..., 3] = 2
    tint[LEAVES, ..., 3] = 2 * _leaves(random)
    return np.clip(tint * 128, 0, 255).astype(np.uint8)


def _noise(random: np.random.Generator, slope: float, stretch: tuple[float, float] = (1, 1)) -> _Map:
    """Noise that tiles, of mean 0 and deviation 1; the larger ``slope``, the larger its blots."""
    frequency = np.fft.fftfreq(SIZE) * SIZE
    distance = np.hypot(frequency[:, None] * stretch[1], frequency[None] * stretch[0])
    spectrum = np.fft.fft2(random.standard_normal((SIZE, SIZE))) / np.maximum(distance, 1) ** slope
    spectrum[0, 0] = 0
    field = np.fft.ifft2(spectrum).real
    return field / field.std()


def _cracks(random: np.random.Generator) -> _Map:
    """Thin lines where slow noise crosses zero, in some places only."""
    return np.exp(-((_noise(random, 1.8) / 0.02) ** 2)) * (_noise(random, 2) > 0.7)


def _courses(random: np.random.Generator, rows: int, columns: int, bond: int, spread: float, joint: float) -> _Map:
    """Blocks in rows, every second one shifted by 1 / ``bond``, of uneven brightness, and their joints."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    row = np.floor(y * rows).astype(int)
    shifted = (x * columns + (row % max(bond, 1)) / max(bond, 1)) % columns
    blocks = 1 + spread * random.standard_normal((rows, columns))
    tile = blocks[row % rows, np.floor(shifted).astype(int) % columns]
    width = 1.5 / SIZE
    in_joint = ((y * rows) % 1 < width * rows) | ((shifted % 1 < width * columns) & (columns > 1))
    return np.where(in_joint, joint, tile)


def _leaves(random: np.random.Generator) -> _Map:
    """Coverage of one clump: many small pointed leaves, denser in the middle."""
    cover = np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(230):
        angle, radius = random.uniform(0, 2 * np.pi), SIZE * 0.42 * random.uniform(0, 1) ** 0.6
        centre = (int(SIZE / 2 + radius * np.cos(angle)), int(SIZE / 2 + radius * np.sin(angle)))
        cv2.ellipse(cover, centre, (int(random.integers(11, 17)), 6), random.uniform(0, 180), 0, 360, 1, -1)
    return cover.astype(np.float64)
