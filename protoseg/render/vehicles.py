"""Cars, vans, lorries, buses and bicycles; they face +y and stand on z = 0 with their middle at the origin."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from protoseg.render import labels
from protoseg.render.mesh import GLASS, GLOW, PAINT, Mesh, Surface, box, circle, disc, join, loft, quads, tube

PAINTS = (
    (0.85, 0.86, 0.87), (0.75, 0.76, 0.78), (0.45, 0.47, 0.50), (0.25, 0.26, 0.28), (0.07, 0.07, 0.08),
    (0.08, 0.09, 0.11), (0.55, 0.07, 0.07), (0.10, 0.17, 0.42), (0.22, 0.38, 0.55), (0.09, 0.24, 0.15),
    (0.70, 0.62, 0.45), (0.80, 0.55, 0.10),
)  # fmt: skip
_RUBBER, _TRIM, _METAL = (0.06, 0.06, 0.065), (0.09, 0.09, 0.10), (0.62, 0.63, 0.65)


@dataclass(frozen=True)
class Shape:
    """Metres: the outline of a car's side, from the front (``nose``) to the back, and heights."""

    length: float
    width: float
    bonnet: float
    belt: float
    roof: float
    windscreen: tuple[float, float]  # how far behind the front its foot and its top are
    rear: tuple[float, float]  # how far before the back the foot and the top of the rear window are
    wheel: float = 0.32


_SHAPES = (
    Shape(3.9, 1.72, 0.90, 0.95, 1.47, (0.95, 1.75), (0.08, 0.45)),
    Shape(4.2, 1.78, 0.88, 0.94, 1.45, (1.10, 1.95), (0.10, 0.60)),
    Shape(4.6, 1.82, 0.88, 0.95, 1.44, (1.25, 2.15), (0.62, 1.25)),
    Shape(4.6, 1.80, 0.90, 0.96, 1.50, (1.20, 2.10), (0.06, 0.40)),
    Shape(4.5, 1.88, 1.02, 1.10, 1.70, (1.10, 1.85), (0.06, 0.40), 0.37),
    Shape(4.9, 1.95, 1.10, 1.18, 1.95, (0.75, 1.45), (0.03, 0.12), 0.35),
)


def car(random: np.random.Generator, far: bool = False) -> Mesh:
    """A hatchback, saloon, estate, off-roader or van; ``far`` leaves out what cannot be seen from afar."""
    shape = _SHAPES[random.choice(len(_SHAPES), p=(0.24, 0.24, 0.2, 0.12, 0.13, 0.07))]
    paint = Surface(labels.CAR, _jitter(random, PAINTS), material=PAINT, gloss=0.55)
    lamps = _lamps(labels.CAR, shape.width, shape.length / 2, shape.bonnet - 0.28, shape.belt - 0.18)
    main = [_body(shape, paint), _cabin(shape, paint, far), lamps, *_wheels(shape)]
    return join(main if far else [*main, _fittings(shape, labels.CAR)])


def lorry(random: np.random.Generator) -> Mesh:
    """A lorry with a box, or a small one."""
    long = random.uniform(5.5, 9.0)
    high, width = random.uniform(2.9, 3.7), 2.45
    paint = Surface(labels.TRUCK, _jitter(random, PAINTS), material=PAINT, gloss=0.4)
    cargo = Surface(labels.TRUCK, _jitter(random, (*PAINTS[:3], (0.85, 0.83, 0.75), (0.2, 0.3, 0.5))), material=PAINT)
    dark = Surface(labels.TRUCK, _TRIM)
    front = long / 2
    cab_top = min(high - 0.3, 2.75)
    glass = Surface(labels.TRUCK, (0.05, 0.06, 0.07), material=GLASS, gloss=0.9)
    parts = [
        _slab(paint, width, (front - 1.9, front), (0.55, cab_top), rake=0.22),
        box((width, long - 2.15, high - 1.05), (0, -1.05, (high + 1.05) / 2), cargo),
        box((0.9, long - 0.5, 0.35), (0, -0.1, 0.8), dark),
        box((width, 0.12, 0.35), (0, front - 0.02, 0.55), dark),
        box((width * 0.98, 0.1, 0.25), (0, -front - 0.02, 0.6), dark),
        box((width * 0.9, long - 4.2, 0.5), (0, -0.3, 0.75), dark),
        quads(
            [[(1.1, front, 1.55), (-1.1, front, 1.55), (-1.05, front - 0.14, 2.35), (1.05, front - 0.14, 2.35)]], glass
        ),
        *(_side_window(glass, s * (width / 2 + 0.01), (front - 1.5, front - 0.5), (1.5, 2.3)) for s in (-1, 1)),
        *(box((0.12, 0.12, 0.45), (s * (width / 2 + 0.16), front - 0.1, 2.0), dark) for s in (-1, 1)),
        _lamps(labels.TRUCK, width, front, 0.75),
    ]
    axles = (front - 1.1, -front + 1.4, *((-front + 2.5,) if long > 7.5 else ()))
    return join([*parts, *(_wheel(s * (width / 2 - 0.14), y, 0.48, 0.3, labels.TRUCK) for y in axles for s in (-1, 1))])


def bus(random: np.random.Generator) -> Mesh:
    """A town bus of one or two decks."""
    long, width = random.uniform(9.5, 12.0), 2.5
    decks = 2 if random.random() < 0.35 else 1
    high = 3.05 if decks == 1 else 4.3
    colors = ((0.65, 0.08, 0.07), (0.80, 0.81, 0.82), (0.10, 0.25, 0.50), (0.12, 0.42, 0.25), (0.85, 0.62, 0.10))
    paint = Surface(labels.BUS, _jitter(random, colors), material=PAINT, gloss=0.4)
    glass = Surface(labels.BUS, (0.06, 0.07, 0.08), material=GLASS, gloss=0.9)
    front = long / 2
    parts = [_slab(paint, width, (-front, front), (0.32, high), rake=0.12), _lamps(labels.BUS, width, front, 0.75)]
    for deck in range(decks):
        low, top = (1.35, 2.55) if deck == 0 else (2.95, 3.9)
        for foot in np.arange(-front + 0.5, front - 1.3, 1.45).tolist():
            parts += [_side_window(glass, s * (width / 2 + 0.01), (foot, foot + 1.32), (low, top)) for s in (-1, 1)]
        for sign in (-1, 1):
            y = sign * (front + 0.015)
            pane = [
                (1.1, y, low - 0.1),
                (-1.1, y, low - 0.1),
                (-1.1, y - sign * 0.06, top),
                (1.1, y - sign * 0.06, top),
            ]
            parts.append(quads([pane[:: int(sign)]], glass))
    board = Surface(labels.BUS, (0.9, 0.55, 0.1), material=GLOW, gloss=0.4)
    parts.append(box((1.5, 0.03, 0.22), (0, front, high - 0.25), board))
    parts += [
        _wheel(s * (width / 2 - 0.12), y, 0.48, 0.28, labels.BUS) for y in (front - 2.6, -front + 2.9) for s in (-1, 1)
    ]
    return join(parts)


def bicycle(random: np.random.Generator) -> Mesh:
    """A bicycle with a frame of one colour."""
    paint = Surface(labels.BICYCLE, _jitter(random, PAINTS), material=PAINT, gloss=0.3)
    dark = Surface(labels.BICYCLE, _RUBBER)
    metal = Surface(labels.BICYCLE, _METAL, material=PAINT, gloss=0.3)
    rear, front, crank, seat, head = (
        (0, -0.52, 0.34),
        (0, 0.54, 0.34),
        (0, -0.08, 0.3),
        (0, -0.22, 0.88),
        (0, 0.38, 0.86),
    )
    bars = (
        (crank, seat),
        (crank, (0, 0.4, 0.74)),
        ((0, -0.2, 0.8), head),
        (rear, crank),
        (rear, (0, -0.2, 0.78)),
        (head, front),
    )
    parts = [tube(bar, 0.02, paint, 5) for bar in bars]
    for hub in (rear, front):
        parts.append(tube(circle(hub, 0.33, 0, 16), 0.022, dark, 4, closed=True))
        angles = np.arange(6) * np.pi / 6
        ends = [[np.add(hub, (0, np.cos(a) * r, np.sin(a) * r)) for r in (-0.31, 0.31)] for a in angles]
        parts += [tube(end, 0.006, metal, 3) for end in ends]
    parts.append(tube([(-0.28, 0.3, 1.0), (0, 0.4, 0.99), (0.28, 0.3, 1.0)], 0.018, dark, 4))
    parts.append(tube([head, (0, 0.4, 0.99)], 0.018, metal, 4))
    parts.append(box((0.14, 0.26, 0.06), (0, -0.25, 0.92), dark))
    return join(parts)


def _body(shape: Shape, paint: Surface) -> Mesh:
    """The lower body: cross-sections from the back to the front."""
    half, front, back = shape.width / 2, shape.length / 2, -shape.length / 2
    cowl = front - shape.windscreen[0]
    boot = back + max(shape.rear[0], 0.05)
    stations = (  # y, share of the width, lower edge, upper edge
        (back - 0.02, 0.84, 0.36, shape.belt * 0.80), (back + 0.03, 0.93, 0.28, shape.belt * 0.93),
        (boot + 0.06, 0.98, 0.22, shape.belt), (0.0, 1.0, 0.20, shape.belt - 0.01),
        (cowl, 1.0, 0.22, shape.belt - 0.01),
        ((cowl + front) / 2, 0.98, 0.22, shape.bonnet - 0.02), (front - 0.2, 0.93, 0.22, shape.bonnet - 0.13),
        (front - 0.02, 0.86, 0.26, shape.bonnet - 0.24), (front + 0.03, 0.76, 0.32, shape.bonnet - 0.34),
    )  # fmt: skip
    rings = []
    for y, share, low, high in stations:
        w = half * share
        right = [
            (0.85 * w, low),
            (0.97 * w, low + 0.12),
            (w, (low + high) / 2),
            (0.96 * w, high - 0.09),
            (0.84 * w, high),
        ]
        profile = [*right, *((-x, z) for x, z in right[::-1])]
        rings.append([(x, y, z) for x, z in profile])
    closed = [np.broadcast_to(np.mean(ring, 0), (10, 3)) for ring in (rings[0], rings[-1])]
    return loft([closed[0], *rings, closed[1]], paint, crease=38)


def _cabin(shape: Shape, paint: Surface, far: bool) -> Mesh:
    """Windows all around, the roof over them and the pillars between them."""
    half, front, back = shape.width / 2, shape.length / 2, -shape.length / 2
    glass = Surface(paint.label, (0.045, 0.05, 0.055), material=GLASS, gloss=0.9)
    foot = (half * 0.91, back + shape.rear[0], front - shape.windscreen[0], shape.belt - 0.03)
    top = (half * 0.74, back + shape.rear[1], front - shape.windscreen[1], shape.roof - 0.05)

    def ring(w: float, y0: float, y1: float, z: float, bow: float = 0.07) -> list[tuple[float, float, float]]:
        return [(-w, y0, z), (-w, y1, z), (-w * 0.6, y1 + bow, z), (w * 0.6, y1 + bow, z), (w, y1, z), (w, y0, z)]

    w, y0, y1, z = top
    roof = [
        ring(w * 0.3, y0 + 0.4, y1 - 0.4, z + 0.07, 0.02),
        ring(w * 0.9, y0 + 0.08, y1 - 0.08, z + 0.045),
        ring(w + 0.02, y0 - 0.02, y1 + 0.02, z),
    ]
    parts = [loft([ring(*foot), ring(*top)], glass, crease=20), loft(roof[::-1], paint, crease=60)]
    # The roof's flat middle.
    parts.append(quads([[roof[0][0], roof[0][5], roof[0][4], roof[0][1]]], paint))
    middles = (0.42, 0.76) if shape.length > 4.1 else (0.5,)
    for side in () if far else (-1, 1):
        posts = [((side * foot[0], foot[k], foot[3]), (side * w, top[k], z)) for k in (1, 2)]
        for share in middles:
            y_foot, y_top = (a[1] + share * (a[2] - a[1]) for a in (foot, top))
            posts.append(((side * (foot[0] + 0.01), y_foot, foot[3]), (side * (w + 0.01), y_top, z)))
        parts += [tube(post, 0.035, paint, 4) for post in posts]
        parts.append(box((0.18, 0.08, 0.13), (side * (half + 0.04), foot[2] - 0.35, foot[3] + 0.07), paint))
    return join(parts)


def _fittings(shape: Shape, label: int) -> Mesh:
    dark = Surface(label, _TRIM, gloss=0.1)
    front, half = shape.length / 2, shape.width / 2
    plate = [Surface(label, color) for color in ((0.88, 0.88, 0.85), (0.9, 0.75, 0.2))]
    parts = [
        box((half * 1.05, 0.06, 0.12), (0, front + 0.01, shape.bonnet - 0.36), dark),
        box((half * 1.3, 0.06, 0.12), (0, front, 0.34), dark),
        box((half * 1.5, 0.06, 0.16), (0, -front - 0.01, 0.38), dark),
        box((0.5, 0.03, 0.11), (0, front + 0.05, 0.45), plate[0]),
        box((0.5, 0.03, 0.11), (0, -front - 0.04, shape.belt * 0.62), plate[1]),
    ]
    return join(parts)


def _lamps(label: int, width: float, front: float, low: float, rear: float | None = None) -> Mesh:
    """Head lamps at the height ``low``, tail lamps at ``rear``."""
    white = Surface(label, (1.0, 0.97, 0.88), material=GLOW, gloss=0.55)
    red = Surface(label, (0.75, 0.03, 0.03), material=GLOW, gloss=0.35)
    x = width / 2 * 0.70
    rear = low if rear is None else rear
    heads = [box((0.28, 0.16, 0.12), (s * x, front - 0.07, low), white) for s in (-1, 1)]
    tails = [box((0.24, 0.1, 0.2), (s * (x + 0.04), -front - 0.0, rear), red) for s in (-1, 1)]
    return join([*heads, *tails])


def _slab(paint: Surface, width: float, y: tuple[float, float], z: tuple[float, float], rake: float) -> Mesh:
    """A box with rounded upright edges whose front leans back by ``rake``."""
    w, r = width / 2, 0.14
    rings = []
    for height, lean in ((z[0], 0.0), (z[0] + 0.4 * (z[1] - z[0]), 0.0), (z[1] - 0.08, 1.0), (z[1], 1.1)):
        y1, k = y[1] - rake * lean, 1 - 0.05 * max(lean - 1, 0) * 10
        outline = [
            (w, y[0] + r),
            (w - r, y[0]),
            (-w + r, y[0]),
            (-w, y[0] + r),
            (-w, y1 - r),
            (-w + r, y1),
            (w - r, y1),
            (w, y1 - r),
        ]
        rings.append([(x * k, yy, height) for x, yy in outline])
    top = np.broadcast_to(np.mean(rings[-1], 0), (8, 3))
    return loft([*rings, top], paint, crease=50)


def _side_window(glass: Surface, x: float, y: tuple[float, float], z: tuple[float, float]) -> Mesh:
    corners = [(x, y[0], z[0]), (x, y[1], z[0]), (x, y[1], z[1]), (x, y[0], z[1])]
    return quads([corners if x > 0 else corners[::-1]], glass)


def _wheels(shape: Shape) -> list[Mesh]:
    half, axle = shape.width / 2, shape.length / 2
    arch = Surface(labels.CAR, (0.03, 0.03, 0.03))
    parts = []
    for side in (-1, 1):
        for y in (axle - 0.82, -axle + 0.78):
            parts.append(
                disc((side * (half + 0.005), y, shape.wheel + 0.03), shape.wheel + 0.06, arch, side, points=14)
            )
            parts.append(_wheel(side * (half - 0.08), y, shape.wheel, 0.2, labels.CAR))
    return parts


def _wheel(x: float, y: float, radius: float, width: float, label: int) -> Mesh:
    rubber, rim = Surface(label, _RUBBER), Surface(label, _METAL, material=PAINT, gloss=0.3)
    tyre = tube([(x - width / 2, y, radius), (x + width / 2, y, radius)], radius, rubber, 12)
    out = np.sign(x) * (width / 2 + 0.01)
    hub = disc((x + out * 1.05, y, radius), radius * 0.2, replace(rim, color=_TRIM), x, points=6)
    return join([tyre, disc((x + out, y, radius), radius * 0.62, rim, x, points=10), hub])


def _jitter(random: np.random.Generator, colors: tuple[tuple[float, float, float], ...]) -> tuple[float, ...]:
    color = np.asarray(colors[random.integers(len(colors))])
    return tuple(np.clip(color * random.uniform(0.85, 1.1) + random.normal(0, 0.015, 3), 0.02, 0.95))
