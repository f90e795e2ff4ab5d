"""Houses and blocks of flats. They fill x from 0 to their depth and y from 0 to their width; the front faces -x."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from protoseg.render import labels
from protoseg.render.mesh import FACADE, GLASS, Mesh, Surface, box, join, quads, tube
from protoseg.render.textures import BOARDS, BRICK, PLASTER, STONE, TILES

BAY, FLOOR = 2.6, 3.1
"""Metres that one window axis and one storey take; the shader draws one window in each."""

_WALLS = (
    (BRICK, (0.52, 0.27, 0.20)), (BRICK, (0.60, 0.38, 0.27)), (BRICK, (0.66, 0.56, 0.42)), (BRICK, (0.40, 0.30, 0.26)),
    (PLASTER, (0.82, 0.78, 0.68)), (PLASTER, (0.78, 0.70, 0.52)), (PLASTER, (0.72, 0.56, 0.44)),
    (PLASTER, (0.74, 0.74, 0.72)), (PLASTER, (0.60, 0.66, 0.70)), (STONE, (0.70, 0.66, 0.58)),
    (STONE, (0.58, 0.56, 0.53)), (PLASTER, (0.86, 0.85, 0.82)),
)  # fmt: skip
_SHOPS = (
    (0.12, 0.18, 0.32),
    (0.45, 0.10, 0.10),
    (0.10, 0.28, 0.18),
    (0.10, 0.10, 0.11),
    (0.75, 0.70, 0.60),
    (0.70, 0.48, 0.10),
)
_ROOFS = ((0.40, 0.20, 0.15), (0.28, 0.25, 0.25), (0.48, 0.28, 0.20), (0.33, 0.31, 0.30))


def block(random: np.random.Generator, floors: int) -> Mesh:
    """A block of flats, 5 to 20 m wide, sometimes with shops below."""
    bays, depth = int(random.integers(2, 9)), random.uniform(9, 14)
    width = bays * BAY
    shop = random.random() < 0.45
    wall = _wall(random, shop=shop)
    height = floors * FLOOR
    parts = [_shell(wall, width, depth, height, bays, floors)]
    trim = Surface(labels.BUILDING, np.multiply(wall.color, random.uniform(0.75, 1.2)).clip(0, 0.95), PLASTER, tile=3)
    parts.append(_bar(width, (0.5, 0.4), (0.02, height + 0.05), trim))
    for floor in range(1, floors, random.integers(1, 4)) if random.random() < 0.6 else ():
        parts.append(_bar(width, (0.2, 0.18), (0, floor * FLOOR), trim))
    if shop:
        parts += _shop_fronts(random, width, bays)
    if random.random() < 0.35:
        parts += _balconies(random, bays, width / bays, floors)
    parts.append(
        _gable(random, width, depth, height, 0.3) if random.random() < 0.4 else _flat(random, width, depth, height)
    )
    if random.random() < 0.6:
        pipe = Surface(labels.BUILDING, (0.25, 0.25, 0.26))
        parts.append(tube([(-0.07, 0.12, 0), (-0.07, 0.12, height)], 0.05, pipe, 5))
    return join(parts)


def house(random: np.random.Generator) -> Mesh:
    """A house of one to three storeys, 5 to 13 m wide, with a pitched roof."""
    floors, bays, depth = int(random.choice((1, 2, 2, 2, 3))), int(random.integers(2, 6)), random.uniform(8, 11)
    width, height = bays * BAY, floors * FLOOR
    wall = _wall(random)
    parts = [
        _shell(wall, width, depth, height, bays, floors),
        _gable(random, width, depth, height, random.uniform(0.6, 1.0)),
    ]
    step = width / bays
    door = Surface(
        labels.BUILDING,
        ((0.30, 0.10, 0.08), (0.10, 0.16, 0.28), (0.12, 0.22, 0.14), (0.35, 0.25, 0.16))[random.integers(4)],
    )
    frame = Surface(labels.BUILDING, (0.85, 0.84, 0.80))
    y = (random.integers(bays) + 0.5) * step
    parts += [box((0.16, 1.3, 2.4), (0, y, 1.2), frame), box((0.2, 1.0, 2.15), (0, y, 1.08), door)]
    if random.random() < 0.4:
        parts.append(box((1.1, 1.9, 0.12), (-0.5, y, 2.6), frame))
    if bays > 2 and random.random() < 0.5:  # a bay window
        y += step if y + step < width else -step
        glass = Surface(labels.BUILDING, (0.05, 0.06, 0.07), material=GLASS, gloss=0.8)
        parts += [box((1.2, 1.9, 2.6), (-0.1, y, 1.3), Surface(wall.label, wall.color, wall.texture, tile=wall.tile))]
        parts += [box((1.26, 1.7, 1.2), (-0.1, y, 1.65), glass), box((1.4, 2.1, 0.14), (-0.1, y, 2.66), frame)]
    return join(parts)


def _wall(random: np.random.Generator, shop: bool = False) -> Surface:
    texture, color = _WALLS[random.integers(len(_WALLS))]
    shade = np.clip(np.asarray(color) * random.uniform(0.85, 1.1) + random.normal(0, 0.02, 3), 0.05, 0.92)
    return Surface(labels.BUILDING, shade, texture, FACADE, seed=random.uniform(0, 0.999) + shop, tile=2.2)


def _shell(wall: Surface, width: float, depth: float, height: float, bays: int, floors: int) -> Mesh:
    """The four walls; texture coordinates count bays and storeys, one quad a bay so that a street may bend."""
    y = np.linspace(0, width, bays + 1)
    across = max(round(depth / BAY), 1)
    x = np.linspace(0, depth, across + 1)
    faces = [_wall_quads((0 * y)[::-1], y[::-1], height), _wall_quads(x, 0 * x, height)]
    faces += [_wall_quads(x[::-1], 0 * x + width, height), _wall_quads(0 * y + depth, y, height)]
    counts = (bays, across, across, bays)
    uv = [[[(i, 0), (i + 1, 0), (i + 1, floors), (i, floors)] for i in range(count)] for count in counts]
    return quads(np.concatenate(faces), wall, np.concatenate(uv))


def _wall_quads(x: np.ndarray, y: np.ndarray, height: float) -> np.ndarray:
    low, high = (np.column_stack([x, y, np.full_like(x, z)]) for z in (0.0, height))
    return np.stack([low[:-1], low[1:], high[1:], high[:-1]], axis=1)


def _bar(width: float, size: tuple[float, float], at: tuple[float, float], surface: Surface) -> Mesh:
    """A bar from 0 to ``width``; ``size`` and middle in x and z. Lengths of at most 5 m bend with the street."""
    count = int(np.ceil(width / 5))
    middle = (np.arange(count) + 0.5) * width / count
    centres = np.column_stack([np.full(count, at[0]), middle, np.full(count, at[1])])
    return box((size[0], width / count, size[1]), centres, surface)


def _shop_fronts(random: np.random.Generator, width: float, bays: int) -> list[Mesh]:
    parts, bay, step = [], 0, width / bays
    while bay < bays:
        size = min(int(random.integers(2, 5)), bays - bay)
        color = Surface(
            labels.BUILDING, np.multiply(_SHOPS[random.integers(len(_SHOPS))], random.uniform(0.8, 1.2)).clip(0, 1)
        )
        ink = Surface(labels.BUILDING, (0.85, 0.83, 0.75))
        y, w = (bay + size / 2) * step, size * step - 0.25
        parts += [box((0.3, w, 0.55), (-0.05, y, 2.85), color)]
        parts += [box((0.02, w * random.uniform(0.3, 0.6), 0.2), (-0.22, y, 2.86), ink)]
        if random.random() < 0.35:  # an awning
            cloth = Surface(labels.BUILDING, np.multiply(_SHOPS[random.integers(len(_SHOPS))], 1.3).clip(0, 1))
            a, b = y - w / 2, y + w / 2
            top = [(-0.1, b, 2.6), (-1.2, b, 2.15), (-1.2, a, 2.15), (-0.1, a, 2.6)]
            parts.append(quads([top, top[::-1]], cloth))
        bay += size
    return parts


def _balconies(random: np.random.Generator, bays: int, step: float, floors: int) -> list[Mesh]:
    slab, rail = Surface(labels.BUILDING, (0.6, 0.6, 0.58)), Surface(labels.BUILDING, (0.16, 0.17, 0.18))
    every = int(random.integers(2, 4))
    y, z = np.meshgrid((np.arange(random.integers(every), bays, every) + 0.5) * step, np.arange(1, floors) * FLOOR)
    if not y.size:
        return []
    middle = np.column_stack([np.full(y.size, -0.5), y.ravel(), z.ravel()])
    bars = np.concatenate([np.add(middle, (-0.47, dy, 0.5)) for dy in np.linspace(-0.44, 0.44, 7) * step])
    return [
        box((1.0, step * 0.9, 0.14), middle, slab),
        box((0.05, step * 0.9, 0.06), np.add(middle, (-0.47, 0, 1.0)), rail),
        box((0.03, 0.03, 1.0), bars, rail),
    ]


def _flat(random: np.random.Generator, width: float, depth: float, height: float) -> Mesh:
    roof = Surface(labels.BUILDING, (0.35, 0.34, 0.33))
    hut = Surface(labels.BUILDING, (0.5, 0.49, 0.47), PLASTER, tile=3)
    parts = [_bar(width, (depth, 0.3), (depth / 2, height + 0.1), roof)]
    parts.append(box((3, 3, 2.2), (depth * 0.6, width * random.uniform(0.3, 0.7), height + 1), hut))
    return join(parts)


def _gable(random: np.random.Generator, width: float, depth: float, height: float, pitch: float) -> Mesh:
    """Two slopes with the ridge along y, the triangles below them, and chimneys."""
    tiles = Surface(
        labels.BUILDING, np.multiply(_ROOFS[random.integers(len(_ROOFS))], random.uniform(0.8, 1.15)), TILES, tile=2.4
    )
    plaster = Surface(labels.BUILDING, (0.62, 0.57, 0.50), BOARDS if random.random() < 0.3 else PLASTER, tile=2)
    rise, over = pitch * depth / 2, 0.4
    eave, ridge = (-over, height - over * pitch + 0.1), (depth / 2, height + rise + 0.1)
    slopes = []
    edges = np.linspace(-0.25, width + 0.25, max(int(width / 5), 1) + 1)
    for a, b in pairwise(edges):
        front = [(eave[0], b, eave[1]), (eave[0], a, eave[1]), (ridge[0], a, ridge[1]), (ridge[0], b, ridge[1])]
        back = [
            (depth + over, a, eave[1]),
            (depth + over, b, eave[1]),
            (ridge[0], b, ridge[1]),
            (ridge[0], a, ridge[1]),
        ]
        below = [(eave[0], a, eave[1] - 0.12), (eave[0], b, eave[1] - 0.12), (0.2, b, height), (0.2, a, height)]
        edge = [
            (eave[0], b, eave[1] - 0.12),
            (eave[0], a, eave[1] - 0.12),
            (eave[0], a, eave[1]),
            (eave[0], b, eave[1]),
        ]
        slopes += [front, back, below, edge]
    ends = []
    for y, order in ((0.0, 1), (width, -1)):
        triangle = [(0, y, height), (depth, y, height), (depth / 2, y, height + rise), (depth / 2, y, height + rise)]
        ends.append(triangle if order == 1 else [triangle[1], triangle[0], triangle[2], triangle[2]])
    stack = Surface(labels.BUILDING, (0.45, 0.28, 0.22), BRICK, tile=1.5)
    chimneys = [
        box((0.7, 0.9, 2.0), (depth * random.uniform(0.35, 0.65), y, height + rise), stack)
        for y in (0.6, width - 0.6)
        if random.random() < 0.6
    ]
    return join([quads(slopes, tiles), quads(ends, plaster), *chimneys])
