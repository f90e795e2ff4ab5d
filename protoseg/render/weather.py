"""Light and air of the four styles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STYLES = ("day", "dusk", "fog", "rain")

Color = tuple[float, float, float]

_NONE: Color = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Weather:
    """Colours are linear light.

    Args:
        azimuth, elevation: of the sun, in degrees; azimuth 0 is straight ahead, 90 on the right.
        sun: its light on a surface that faces it; all 0 where no shadow is cast.
        zenith, horizon: of the sky.
        glow: of the sky around the sun.
        clouds: 0 none, 1 overcast.
        fog: share of the light lost per metre.
        wet: 0 dry, 1 wet streets.
        lamps: brightness of street lamps and own head lamps; 0 by day.
        windows: share of windows that are lit.
        exposure: factor before the tone curve.
        noise: standard deviation of the sensor's noise, of 255 levels.
        rain: falling rain, 0 to 1.
    """

    azimuth: float
    elevation: float
    sun: Color
    zenith: Color
    horizon: Color
    glow: Color
    clouds: float
    fog: float
    wet: float = 0.0
    lamps: float = 0.0
    windows: float = 0.0
    exposure: float = 1.0
    noise: float = 2.0
    rain: float = 0.0


def draw_weather(random: np.random.Generator, style: str) -> Weather:
    """One weather of ``style``, an entry of ``STYLES``."""
    return {"day": _day, "dusk": _dusk, "fog": _fog, "rain": _rain}[style](random)


def _day(random: np.random.Generator) -> Weather:
    clouds = random.choice((random.uniform(0.0, 0.35), random.uniform(0.35, 0.7), random.uniform(0.85, 1.0)))
    low = random.uniform(0, 1)
    strength = 3.0 * (1 - clouds) ** 0.5 if clouds < 0.85 else 0.12
    grey = 0.1 + 0.9 * clouds**3
    return Weather(
        azimuth=random.uniform(-180, 180),
        elevation=18 + 47 * (1 - low),
        sun=_scaled((1.0, 0.95 - 0.1 * low, 0.86 - 0.2 * low), strength),
        zenith=_mixed((0.12, 0.28, 0.70), (0.62, 0.65, 0.70), grey),
        horizon=_mixed((0.42, 0.60, 0.88), (0.80, 0.82, 0.85), grey),
        glow=_scaled((1.0, 0.9, 0.7), 0.5 * (1 - clouds)),
        clouds=clouds,
        fog=random.uniform(0.0006, 0.003),
        exposure=random.uniform(0.75, 1.05),
        noise=random.uniform(1, 3),
    )


def _dusk(random: np.random.Generator) -> Weather:
    late = random.uniform(0, 1)
    light = 0.24 - 0.16 * late
    return Weather(
        azimuth=random.uniform(-70, 70) if random.random() < 0.6 else random.uniform(-180, 180),
        elevation=random.uniform(3, 8),
        sun=_scaled((1.0, 0.50, 0.25), 0.30 * (1 - late) ** 1.5),
        zenith=_scaled((0.42, 0.55, 0.95), light),
        horizon=_scaled(_mixed((0.95, 0.70, 0.58), (0.62, 0.60, 0.80), random.uniform(0, 1)), light * 1.4),
        glow=_scaled((1.0, 0.45, 0.15), light * 2.4),
        clouds=random.uniform(0.1, 0.7),
        fog=random.uniform(0.001, 0.004),
        lamps=random.uniform(0.6, 1.2),
        windows=random.uniform(0.12, 0.40),
        exposure=random.uniform(1.1, 1.6),
        noise=random.uniform(4, 9),
    )


def _fog(random: np.random.Generator) -> Weather:
    grey = random.uniform(0.55, 0.85)
    air = _scaled((0.95, 0.98, 1.0), grey)
    dim = random.random() < 0.4
    return Weather(
        azimuth=random.uniform(-180, 180),
        elevation=70,
        sun=_NONE,
        zenith=air,
        horizon=air,
        glow=_NONE,
        clouds=1.0,
        fog=float(np.exp(random.uniform(np.log(0.010), np.log(0.045)))),
        wet=random.uniform(0, 0.4),
        lamps=0.5 if dim else 0.0,
        windows=0.15 if dim else 0.0,
        exposure=random.uniform(0.8, 1.05),
        noise=random.uniform(2, 4),
    )


def _rain(random: np.random.Generator) -> Weather:
    grey = random.uniform(0.30, 0.60)
    dim = random.random() < 0.6
    return Weather(
        azimuth=random.uniform(-180, 180),
        elevation=75,
        sun=_NONE,
        zenith=_scaled((0.85, 0.92, 1.0), grey * 0.8),
        horizon=_scaled((0.95, 0.98, 1.0), grey),
        glow=_NONE,
        clouds=1.0,
        fog=random.uniform(0.004, 0.014),
        wet=random.uniform(0.7, 1.0),
        lamps=random.uniform(0.35, 0.6) if dim else 0.0,
        windows=0.2 if dim else 0.03,
        exposure=random.uniform(0.9, 1.2),
        noise=random.uniform(2, 5),
        rain=random.uniform(0.4, 1.0),
    )


def _scaled(color: Color, factor: float) -> Color:
    r, g, b = color
    return (r * factor, g * factor, b * factor)


def _mixed(first: Color, second: Color, share: float) -> Color:
    r, g, b = (a + share * (c - a) for a, c in zip(first, second, strict=True))
    return (r, g, b)
