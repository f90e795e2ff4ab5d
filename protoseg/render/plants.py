"""Trees, bushes and hedges: bark, and leaves on many small cards."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from protoseg.render import labels
from protoseg.render.mesh import LEAF, Mesh, Points, Surface, join, quads, tube
from protoseg.render.textures import BARK, LEAVES

_GREENS = ((0.31, 0.38, 0.20), (0.37, 0.42, 0.23), (0.26, 0.34, 0.19), (0.40, 0.43, 0.24), (0.28, 0.36, 0.24))
_AUTUMN = ((0.58, 0.42, 0.14), (0.52, 0.30, 0.12), (0.48, 0.44, 0.16))


def tree(random: np.random.Generator, far: bool = False, autumn: bool = False) -> Mesh:
    """A broad-leaved tree, a slim poplar-like one, or a conifer, 5 to 13 m high; ``far`` has fewer, larger leaves."""
    height = random.uniform(5, 13)
    stem = height * random.uniform(0.22, 0.36)
    radius = 0.035 * height**0.8
    lean = random.normal(0, 0.15, 2)
    bark = Surface(labels.PLANT, _pick(random, ((0.33, 0.27, 0.21), (0.40, 0.36, 0.30))), BARK, tile=1.5)
    top = np.array([lean[0], lean[1], height * 0.8])
    parts = [tube([(0, 0, 0), (0, 0, 0.3), top * 0.5, top], (radius * 1.5, radius, radius * 0.7, 0.03), bark, 7)]
    kind = random.random()
    if kind < 0.7:
        middle = np.array([*lean, (height + stem) / 2])
        spread = np.array([1, 1, 0]) * height * random.uniform(0.24, 0.36) + (0, 0, (height - stem) / 2)
        blobs = random.normal(0, 0.42, (11, 3)).clip(-0.75, 0.75) * spread + middle
        sizes = np.stack([random.uniform(0.34, 0.55, 11) * spread.mean()] * 3, 1)
        for blob in blobs[:5]:
            parts.append(tube([top * random.uniform(0.4, 0.6), blob], (radius * 0.5, 0.03), bark, 5))
    else:
        slim = 0.12 if kind < 0.85 else 0.22
        heights = np.linspace(stem * 0.7, height * 0.95, 9)
        narrow = np.ones(9) if kind < 0.85 else np.linspace(1.3, 0.25, 9)
        blobs = np.column_stack([random.normal(0, 0.15, (9, 2)), heights])
        sizes = np.column_stack([height * slim * narrow] * 2 + [np.full(9, height * 0.1)])
    cards, size = (11, 1.55) if far else (30, 1.0)
    leaves = _foliage(random, blobs, sizes, cards, size * (0.085 * height + 0.35), autumn)
    return join([parts[0], leaves] if far else [*parts, leaves])


def bush(random: np.random.Generator) -> Mesh:
    """A round bush of about 1 m."""
    size = random.uniform(0.4, 0.9)
    blobs = np.column_stack([random.normal(0, 0.4 * size, (3, 2)), np.full(3, size * 0.7)])
    return _foliage(random, blobs, np.full((3, 3), size * 0.8), 22, 0.55, False)


def hedge(random: np.random.Generator, length: float, height: float) -> Mesh:
    """A clipped hedge along y from 0 to ``length``, 0.8 m wide."""
    count = int(length * height * 14) + 8
    side = random.integers(0, 3, count)
    x = np.where(side == 2, random.uniform(-0.4, 0.4, count), np.where(side == 0, -0.36, 0.36))
    z = np.where(side == 2, height - 0.08, random.uniform(0.1, height, count))
    centre = np.column_stack([x, random.uniform(0, length, count), z])
    out = np.column_stack([np.where(side == 2, 0, np.sign(x)), np.zeros(count), np.where(side == 2, 1, 0.35)])
    leaves = _cards(random, centre, out, 0.55, Surface(labels.PLANT, _pick(random, _GREENS), LEAVES, LEAF))
    dark = Surface(labels.PLANT, (0.10, 0.14, 0.06))
    core = tube([(0, 0, height / 2), (0, length, height / 2)], [(0.28, height / 2 - 0.08)] * 2, dark, 8)
    return join([core, leaves])


def _foliage(random: np.random.Generator, blobs: Points, sizes: Points, cards: int, size: float, autumn: bool) -> Mesh:
    """Cards over the upper parts of ellipsoids; their normals are the ellipsoids', so that crowns shade as volumes."""
    centres, radii = np.asarray(blobs), np.asarray(sizes)
    out = random.normal(size=(len(centres), cards, 3))
    out /= np.linalg.norm(out, axis=-1, keepdims=True)
    place = centres[:, None] + out * radii[:, None] * random.uniform(0.45, 1.0, (len(centres), cards, 1))
    place[..., 2] = np.maximum(place[..., 2], size * 0.3)
    whole = place - centres.mean(0)
    normal = out + 0.8 * whole / np.linalg.norm(whole, axis=-1, keepdims=True)
    color = _pick(random, _AUTUMN if autumn and random.random() < 0.5 else _GREENS)
    surface = Surface(labels.PLANT, color, LEAVES, LEAF)
    return _cards(random, place.reshape(-1, 3), normal.reshape(-1, 3), size, surface)


def _cards(
    random: np.random.Generator, centre: NDArray[np.float64], normal: NDArray[np.float64], size: float, surface: Surface
) -> Mesh:
    """Square cards of about ``size`` in all directions, shaded by ``normal``."""
    axes = random.normal(size=(2, len(centre), 3))
    first = axes[0] / np.linalg.norm(axes[0], axis=1, keepdims=True)
    second = np.cross(first, axes[1])
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    half = size / 2 * random.uniform(0.7, 1.3, (len(centre), 1))
    corners = np.stack([centre + half * (i * first + j * second) for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))], 1)
    unit = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    uv = np.broadcast_to([(0, 0), (1, 0), (1, 1), (0, 1)], (len(centre), 4, 2))
    mesh = quads(corners, surface, uv, np.repeat(unit[:, None], 4, axis=1))
    mesh.vertices[:, 15] = np.repeat(random.uniform(0, 1, len(centre)), 4)
    return mesh


def _pick(random: np.random.Generator, colors: tuple[tuple[float, float, float], ...]) -> tuple[float, ...]:
    return tuple(np.asarray(colors[random.integers(len(colors))]) * random.uniform(0.85, 1.15))
