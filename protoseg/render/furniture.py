"""What stands along a street: lamp posts, signs, traffic lights, bollards, bins and fences; fronts face -y."""

from __future__ import annotations

import numpy as np

from protoseg.render import labels
from protoseg.render.mesh import GLOW, Mesh, Surface, box, circle, join, plate, tube
from protoseg.render.textures import BOARDS, STONE

_STEEL, _DARK = (0.45, 0.46, 0.47), (0.10, 0.11, 0.11)
_RED, _BLUE, _WHITE, _YELLOW, _BLACK = (
    (0.72, 0.05, 0.06),
    (0.05, 0.20, 0.55),
    (0.90, 0.90, 0.88),
    (0.90, 0.70, 0.08),
    (0.04, 0.04, 0.04),
)


def lamp_post(random: np.random.Generator, lit: bool) -> tuple[Mesh, tuple[float, float, float]]:
    """A post whose arm reaches along +x, and the place of its lamp."""
    height, reach = random.uniform(5.5, 9), random.uniform(0.6, 1.8)
    steel = Surface(labels.POLE, _STEEL if random.random() < 0.7 else _DARK, gloss=0.1)
    path = [
        (0, 0, 0),
        (0, 0, 1),
        (0, 0, 1.05),
        (0, 0, height - 0.4),
        (reach * 0.25, 0, height),
        (reach, 0, height + 0.1),
    ]
    lamp = (reach + 0.15, 0.0, height + 0.05)
    shine = Surface(labels.POLE, (2.2, 1.7, 1.0) if lit else (0.7, 0.7, 0.68), material=GLOW, gloss=0.9)
    parts = [
        tube(path, (0.11, 0.10, 0.075, 0.055, 0.045, 0.04), steel, 8),
        box((0.7, 0.24, 0.12), np.add(lamp, (0, 0, 0.08)), steel, 0.7),
        box((0.55, 0.18, 0.05), lamp, shine),
    ]
    return join(parts), lamp


def traffic_light(random: np.random.Generator) -> Mesh:
    """A post with one head of three lights."""
    height = random.uniform(2.6, 3.4)
    steel, case = Surface(labels.POLE, _STEEL if random.random() < 0.5 else _DARK), Surface(labels.LIGHT, _BLACK)
    state = random.integers(3)
    parts = [tube([(0, 0, 0), (0, 0, height)], 0.06, steel, 8), box((0.32, 0.24, 0.95), (0, -0.08, height), case)]
    if random.random() < 0.4:
        parts.append(plate(_box_outline(0, height, 0.3, 0.62), 0.02, case, 0.02))
    for i, color in enumerate(((1.6, 0.12, 0.08), (1.5, 0.85, 0.1), (0.15, 1.3, 0.5))):
        on = i == state
        light = Surface(labels.LIGHT, color if on else np.multiply(color, 0.09), material=GLOW, gloss=1.0)
        z = height + 0.3 - 0.3 * i
        parts.append(tube([(0, -0.1, z), (0, -0.22, z)], 0.1, light, 10))
        parts.append(box((0.26, 0.2, 0.02), (0, -0.27, z + 0.12), case))
    return join(parts)


def sign(random: np.random.Generator) -> Mesh:
    """A post with one sign, now and then two."""
    height = random.uniform(2.1, 2.9)
    parts = [tube([(0, 0.05, 0), (0, 0.05, height + 0.3)], 0.038, Surface(labels.POLE, _STEEL), 6)]
    parts.append(_face(random, height))
    if random.random() < 0.3:
        parts.append(_panel(_box_outline(0, height - 0.55, 0.3, 0.13), _WHITE))
    return join(parts)


def _face(random: np.random.Generator, z: float) -> Mesh:
    kind, r = random.integers(8), 0.34
    disc = circle((0, 0, z), 1, 1, 20)[:, [0, 2]]

    def sized(share: float) -> np.ndarray:
        return (disc - (0, z)) * share * r + (0, z)

    if kind == 0:  # no entry
        return join([_panel(sized(1), _RED), _panel(_box_outline(0, z, 0.24, 0.055), _WHITE, 1)])
    if kind <= 2:  # a limit or a ban
        bars = [(-0.1, 0.07, 0.15), (0.1, 0.07, 0.15)] if kind == 1 else [(0, 0.16, 0.05)]
        marks = [_panel(_box_outline(x, z, w, h), _BLACK, 2) for x, w, h in bars]
        return join([_panel(sized(1), _RED), _panel(sized(0.76), _WHITE, 1), *marks])
    if kind == 3:  # an order
        return join([_panel(sized(1), _BLUE), _panel(_box_outline(0, z, 0.05, 0.2), _WHITE, 1)])
    if kind == 4:  # a warning
        outline = np.array([(-0.42, z - 0.32), (0.42, z - 0.32), (0, z + 0.4)])
        inner = (outline - outline.mean(0)) * 0.68 + outline.mean(0)
        return join(
            [_panel(outline, _RED), _panel(inner, _WHITE, 1), _panel(_box_outline(0, z - 0.1, 0.03, 0.12), _BLACK, 2)]
        )
    if kind == 5:  # give way
        outline = np.array([(0, z - 0.4), (0.42, z + 0.32), (-0.42, z + 0.32)])
        inner = (outline - outline.mean(0)) * 0.62 + outline.mean(0)
        return join([_panel(outline, _RED), _panel(inner, _WHITE, 1)])
    if kind == 6:  # priority
        outline = np.array([(0, z - 0.4), (0.4, z), (0, z + 0.4), (-0.4, z)])
        return join([_panel(outline, _WHITE), _panel((outline - (0, z)) * 0.7 + (0, z), _YELLOW, 1)])
    width, color = random.uniform(0.45, 0.9), (_BLUE, _YELLOW, (0.05, 0.32, 0.18))[random.integers(3)]
    ink = _BLACK if color is _YELLOW else _WHITE
    words = [_panel(_box_outline(0, z + dz, width * random.uniform(0.4, 0.8), 0.035), ink, 1) for dz in (-0.1, 0.09)]
    return join([_panel(_box_outline(0, z, width, 0.27), color), *words])


def _panel(outline: np.ndarray, color: tuple[float, float, float], layer: int = 0) -> Mesh:
    """Layer 0 is the sheet itself; others lie 6 mm before the one below."""
    return plate(outline, 0.012, Surface(labels.SIGN, color, gloss=0.1), -0.006 * layer)


def _box_outline(x: float, z: float, half_width: float, half_height: float) -> np.ndarray:
    w, h = half_width, half_height
    return np.array([(x - w, z - h), (x + w, z - h), (x + w, z + h), (x - w, z + h)])


def bollard(random: np.random.Generator) -> Mesh:
    """A low post."""
    color = ((0.08, 0.08, 0.08), (0.5, 0.5, 0.5), (0.85, 0.85, 0.82))[random.integers(3)]
    top = Surface(labels.POLE, (0.8, 0.1, 0.1) if random.random() < 0.3 else color)
    return join([
        tube([(0, 0, 0), (0, 0, 0.8)], 0.06, Surface(labels.POLE, color), 8),
        tube([(0, 0, 0.8), (0, 0, 0.95)], 0.062, top, 8),
    ])  # fmt: skip


def bin_(random: np.random.Generator) -> Mesh:
    """A wheeled bin or a round one: nothing that the label spaces name."""
    color = ((0.10, 0.22, 0.14), (0.12, 0.12, 0.13), (0.10, 0.16, 0.35), (0.45, 0.30, 0.10))[random.integers(4)]
    paint = Surface(labels.VOID, color)
    if random.random() < 0.5:
        return tube([(0, 0, 0), (0, 0, 0.9), (0, 0, 1.0)], (0.24, 0.27, 0.2), paint, 10)
    return join([box((0.5, 0.55, 0.95), (0, 0, 0.52), paint, 1.12), box((0.58, 0.66, 0.08), (0, 0, 1.04), paint)])


def fence(random: np.random.Generator, length: float, height: float) -> Mesh:
    """A fence along y from 0 to ``length``: pickets, railings or boards."""
    kind = random.integers(3)
    color = ((0.85, 0.84, 0.80), (0.07, 0.08, 0.08), (0.42, 0.32, 0.22))[kind]
    surface = Surface(labels.FENCE, np.multiply(color, random.uniform(0.8, 1.05)), BOARDS if kind == 2 else 0, tile=1.6)
    if kind == 2:
        parts = [box((0.05, length, height), (0, length / 2, height / 2), surface)]
        return join([*parts, _posts((0.12, 0.12, height + 0.1), np.arange(0, length + 0.1, 2.0), surface)])
    step, width = (0.17, 0.09) if kind == 0 else (0.14, 0.022)
    parts = [
        box((0.03, length, 0.07 if kind == 0 else 0.04), (0, length / 2, z), surface) for z in (0.2, height - 0.15)
    ]
    parts.append(_posts((0.025, width, height), np.arange(0, length, step), surface))
    return join([*parts, _posts((0.09, 0.09, height + 0.12), np.arange(0, length + 0.1, 2.5), surface)])


def _posts(size: tuple[float, float, float], y: np.ndarray, surface: Surface) -> Mesh:
    zero = np.zeros_like(y)
    return box(size, np.column_stack([zero, y, zero + size[2] / 2]), surface)


def wall(random: np.random.Generator, length: float, height: float) -> Mesh:
    """A garden wall along y from 0 to ``length``."""
    color = ((0.55, 0.50, 0.45), (0.50, 0.30, 0.24), (0.65, 0.63, 0.58))[random.integers(3)]
    body = Surface(labels.WALL, color, STONE, tile=1.6)
    coping = Surface(labels.WALL, (0.6, 0.59, 0.56))
    return join([
        box((0.25, length, height), (0, length / 2, height / 2), body),
        box((0.33, length, 0.07), (0, length / 2, height + 0.03), coping),
    ])  # fmt: skip
