"""What a camera adds to a drawn picture: glare, lens shading, softness, noise, and rain before the lens."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from protoseg.render.weather import Weather


def photograph(random: np.random.Generator, picture: NDArray[np.uint8], weather: Weather) -> NDArray[np.uint8]:
    """``picture`` (RGB ``h w 3``) as a camera might have taken it, the same shape."""
    height, width = picture.shape[:2]
    image = picture.astype(np.float32)
    scale = height / 480
    if weather.lamps:  # light spills around lamps
        bright = np.maximum(image - 225, 0) * (1.6 if weather.rain else 2.4)
        image += cv2.GaussianBlur(bright, (0, 0), 7 * scale) + 0.5 * cv2.GaussianBlur(bright, (0, 0), 2.5 * scale)
    if weather.rain:
        image += _streaks(random, height, width, weather.rain)[..., None]
        image = _drops(random, image, weather.rain)
    image = cv2.GaussianBlur(image, (0, 0), random.uniform(0.3, 0.6) * max(scale, 0.7))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    image *= (1 - random.uniform(0.03, 0.14) * (x * x + y * y)).astype(np.float32)[..., None]
    image *= 1 + random.normal(0, 0.025, 3).astype(np.float32)
    grain = random.standard_normal((height, width, 3), np.float32)
    grain = 0.6 * grain + 0.5 * cv2.GaussianBlur(grain, (0, 0), 0.8)
    image += weather.noise * grain * (1.1 - image / 400)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def _streaks(random: np.random.Generator, height: int, width: int, rain: float) -> NDArray[np.float32]:
    """Falling drops, drawn out by the exposure: faint slanted lines."""
    layer = np.zeros((height, width), np.float32)
    slant = random.normal(0, 0.12)
    for _ in range(int(260 * rain)):
        x, y = random.uniform(0, width), random.uniform(-0.1 * height, height)
        length = random.uniform(0.02, 0.09) * height
        end = (int(x + slant * length), int(y + length))
        cv2.line(layer, (int(x), int(y)), end, random.uniform(8, 30), 1 if random.random() < 0.9 else 2, cv2.LINE_AA)
    return np.asarray(cv2.GaussianBlur(layer, (0, 0), 0.7 * height / 480 + 0.2), np.float32)


def _drops(random: np.random.Generator, image: NDArray[np.float32], rain: float) -> NDArray[np.float32]:
    """Drops on the glass: spots that show a blurred, upside-down bit of the scene."""
    height, width = image.shape[:2]
    count = random.poisson(14 * rain)
    if not count:
        return image
    soft = cv2.GaussianBlur(image, (0, 0), 0.02 * height)[::-1]
    mask = np.zeros((height, width), np.float32)
    for _ in range(count):
        size = random.uniform(0.004, 0.016) * height
        centre = (int(random.uniform(0, width)), int(random.uniform(0, height)))
        cv2.ellipse(
            mask, centre, (int(size) + 1, int(size * random.uniform(1, 1.5)) + 1), 0, 0, 360, 1.0, -1, cv2.LINE_AA
        )
    mask = 0.6 * cv2.GaussianBlur(mask, (0, 0), 0.004 * height)[..., None]
    return np.asarray(image * (1 - mask) + soft * mask, np.float32)
