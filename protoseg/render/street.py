"""A street drawn by chance: the ground, what lines it and what moves on it, bent along a curve and a slope."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protoseg.render import catalogue, furniture, labels, people, plants, vehicles
from protoseg.render.buildings import house
from protoseg.render.ground import bend, riser, strip
from protoseg.render.mesh import GROUND, Mesh, Surface, join, plate
from protoseg.render.textures import ASPHALT, MEADOW, PAVING

LENGTH = 260.0
"""How far the street runs ahead of the camera, in metres."""
KERB = 0.12
_FAR = 55.0
"""Metres from which on cars and trees need less detail."""
_BEHIND = -14.0


@dataclass(frozen=True)
class Street:
    """What the renderer draws.

    Args:
        mesh: all triangles.
        lamps: places of the street lamps, ``n 3``.
        eye: place of the camera.
        heading: the camera's yaw, pitch and roll in radians.
        view: horizontal angle of view in degrees.
    """

    mesh: Mesh
    lamps: NDArray[np.float64]
    eye: NDArray[np.float64]
    heading: tuple[float, float, float]
    view: float


def draw_street(random: np.random.Generator, lit: bool) -> Street:
    """One street; the same ``random`` gives the same street, with its lamps lit or not."""
    return _Builder(random, lit).street()


def _steps(start: float, stop: float, step: float) -> list[float]:
    return np.arange(start, stop, step).tolist()


class _Builder:
    def __init__(self, random: np.random.Generator, lit: bool) -> None:
        self.random, self.lit = random, lit
        self.parts: list[Mesh] = []
        self.lamps: list[tuple[float, float, float]] = []
        self.taken: list[tuple[float, float, float]] = []  # x, y and half length of what stands on the road
        self.drive = 1 if random.random() < 0.5 else -1
        self.lane = random.uniform(3.0, 3.6)
        self.lanes = 2 if random.random() < 0.2 else 1
        self.parking = {side: 2.1 if random.random() < 0.6 else 0.0 for side in (-1, 1)}
        self.edge = {side: self.lane * self.lanes + self.parking[side] + 0.3 for side in (-1, 1)}
        self.pavement = {side: random.uniform(2.0, 4.5) for side in (-1, 1)}
        self.busy = random.uniform(0.35, 1.3)
        self.autumn = random.random() < 0.25
        first = random.uniform(22, 110)
        self.crossings = [(first, random.uniform(6.5, 9)), (first + random.uniform(70, 110), 7.5)]
        self.eye_x = self.drive * self.lane * (self.lanes - 0.5) + random.normal(0, 0.25)

    def street(self) -> Street:
        random = self.random
        self._road()
        start = _BEHIND
        for middle, width in [*self.crossings, (LENGTH + 5, 0.0)]:
            for side in (-1, 1):
                self._block(side, start, middle - width / 2)
            start = middle + width / 2
        for middle, width in self.crossings:
            self._crossing(middle, width)
        self._traffic()
        self._walkers()
        self._backdrop()
        curve = 0.0 if random.random() < 0.4 else random.uniform(-0.0016, 0.0016)
        slope, dip = random.normal(0, 0.012), random.normal(0, 4e-5)
        mesh = join(self.parts)
        bend(mesh.vertices, curve, slope, dip)
        eye = np.array([self.eye_x, 0.0, random.uniform(1.25, 1.75)])
        heading = (
            np.deg2rad(random.normal(0, 2.5)) - curve * 25,
            np.deg2rad(random.normal(-1.5, 1.5)) + slope,
            np.deg2rad(random.normal(0, 0.6)),
        )
        lamps = np.zeros((len(self.lamps), 16), np.float32)
        lamps[:, :3] = self.lamps
        bend(lamps, curve, slope, dip)
        return Street(mesh, lamps[:, :3].astype(float), eye, heading, random.uniform(52, 78))

    # The ground.

    def _road(self) -> None:
        random = self.random
        tone = random.uniform(0.26, 0.40) * np.array([1.0, 1.0, 1.02])
        road = Surface(labels.ROAD, tone, ASPHALT, GROUND, tile=5.0)
        patch = Surface(labels.ROAD, tone * random.uniform(0.75, 0.9), ASPHALT, GROUND, tile=3.0)
        white = Surface(labels.ROAD, (0.78, 0.78, 0.75), ASPHALT, GROUND, tile=5.0)
        yellow = Surface(labels.ROAD, (0.80, 0.66, 0.15), ASPHALT, GROUND, tile=5.0)
        grass = Surface(labels.GRASS, (0.32, 0.40, 0.18), MEADOW, GROUND, tile=6.0)
        self.parts.append(strip((-250, 250), (_BEHIND, LENGTH + 100), -0.25, grass, step=20))
        # A little below the pavements, so that no crack opens between lengths that bend differently.
        self._ground((-self.edge[-1] - 0.4, self.edge[1] + 0.4), (_BEHIND, LENGTH + 60), 0, road)
        for middle, width in self.crossings:
            for side in (-1, 1):
                self._ground((side * self.edge[side], side * 95), (middle - width / 2, middle + width / 2), 0, road)
        for _ in range(random.integers(2, 9)):
            x, y = random.uniform(-self.edge[-1] + 1, self.edge[1] - 1), random.uniform(2, 70)
            self._ground((x - random.uniform(0.3, 0.9), x + 0.5), (y, y + random.uniform(0.8, 9)), 0.004, patch)
        iron = Surface(labels.ROAD, (0.22, 0.21, 0.20), gloss=0.05)
        for _ in range(random.integers(1, 6)):
            x, y = random.uniform(-self.edge[-1] + 1, self.edge[1] - 1), random.uniform(5, 50)
            disc = plate(0.32 * np.column_stack([np.cos(a := np.linspace(0, 6.28, 12)), np.sin(a)]), 0.01, iron)
            self.parts.append(disc.placed((x, y, 0.018), pitch=-np.pi / 2))
        dash, gap = random.uniform(2, 4), random.uniform(3, 7)
        between = [0.0, *(s * self.lane for s in (-1, 1) if self.lanes == 2)]
        for y in _steps(_BEHIND, LENGTH, dash + gap):
            for x in between:
                self._ground((x - 0.06, x + 0.06), (y, y + dash), 0.01, white)
        for side in (-1, 1):
            if self.parking[side]:
                x = side * self.lane * self.lanes
                self._ground((x - 0.05, x + 0.05), (_BEHIND, LENGTH), 0.01, white)
            elif random.random() < 0.6:
                x = side * (self.edge[side] - 0.25)
                self._ground((x - 0.05, x + 0.05), (_BEHIND, LENGTH), 0.01, yellow if random.random() < 0.5 else white)

    def _ground(self, x: tuple[float, float], y: tuple[float, float], z: float, surface: Surface) -> None:
        self.parts.append(strip(x, y, z, surface))

    def _crossing(self, middle: float, width: float) -> None:
        random = self.random
        white = Surface(labels.ROAD, (0.80, 0.80, 0.77), ASPHALT, GROUND, tile=5.0)
        near = middle - width / 2 - 1.0
        if random.random() < 0.7:
            for x in _steps(-self.edge[-1] + 0.4, self.edge[1] - 0.6, 1.0):
                self._ground((x, x + 0.5), (near - 3.0, near), 0.012, white)
        stop = sorted((self.drive * 0.2, self.drive * self.lane * self.lanes))
        self._ground((stop[0], stop[1]), (near - 4.2, near - 3.8), 0.012, white)
        lights = random.random() < 0.65
        for side in (-1, 1):
            x = side * (self.edge[side] + 0.5)
            what = furniture.traffic_light if lights else furniture.sign
            self._put(what, (x, near - 3.4, KERB), random.normal(0, 0.12))
            if lights:
                self._put(what, (x, middle + width / 2 + 1.5, KERB), np.pi if side != self.drive else 0.0)
        if random.random() < 0.5:
            side = random.choice((-1, 1))
            self._vehicle(side * random.uniform(2, 9), middle, yaw=side * np.pi / 2)

    # What lines the road.

    def _block(self, side: int, start: float, end: float) -> None:
        """One side between two crossings: the raised ground, then buildings, houses or a park, then furniture."""
        random, x, wide = self.random, self.edge[side], self.pavement[side]
        paving = Surface(
            labels.SIDEWALK, random.uniform(0.50, 0.66) * np.array([1.0, 0.98, 0.95]), PAVING, GROUND, tile=2.4
        )
        kerb = Surface(labels.SIDEWALK, (0.58, 0.57, 0.55))
        grass = Surface(labels.GRASS, (0.30, 0.40, 0.16), MEADOW, GROUND, tile=4.0)
        self._ground((side * (x + 0.15), side * (x + wide)), (start, end), KERB, paving)
        self._ground((side * x, side * (x + 0.15)), (start, end), KERB + 0.005, kerb)
        for y in (start, end):
            inwards = (y, y + 2.5) if y == start else (y - 2.5, y)
            self._ground((side * (x + wide), side * 95), inwards, KERB, paving)
        self.parts.append(riser(side * x, side, (start, end), (-0.02, KERB), kerb))
        verge = random.random() < 0.25 and wide > 3
        if verge:
            self._ground((side * (x + 0.4), side * (x + 1.5)), (start + 3, end - 3), KERB + 0.01, grass)
        inner = (start + 2.5 if start > _BEHIND else start, end - 2.5)
        kind = random.choice(("flats", "houses", "park", "mixed"), p=(0.4, 0.25, 0.12, 0.23))
        self._ground((side * (x + wide), side * 95), inner, KERB - 0.02, grass if kind != "flats" else paving)
        if kind == "park":
            self._park(side, *inner)
        else:
            self._row(side, *inner, kind)
        self._furniture(side, start, end, verge)

    def _row(self, side: int, start: float, end: float, kind: str) -> None:
        """Buildings from ``start`` to ``end``."""
        random, x = self.random, self.edge[side] + self.pavement[side]
        storeys, y = int(random.integers(2, 6)), start
        while y < end - 12:
            if kind == "flats" or (kind == "mixed" and random.random() < 0.6):
                back = random.choice((0.0, 0.0, 0.0, 0.6, 3.0)) if kind == "mixed" else 0.05
                width = self._beside(self._flats(storeys + int(random.integers(-1, 3))), side, x + back, y)
                y += width + (0 if random.random() < 0.85 else random.uniform(2, 5))
                continue
            lawn, gap = random.uniform(2.5, 6.5), random.choice((0.0, 1.5, 3.5))
            width = self._beside(self._one_of(house), side, x + lawn, y + gap / 2)
            self._border(side, x, y, width + gap)
            for _ in range(random.integers(0, 4)):
                what = plants.tree if random.random() < 0.3 and lawn > 4 else plants.bush
                self._put(what, (side * (x + random.uniform(1, lawn - 0.8)), y + random.uniform(0.5, width), KERB), 0.0)
            if gap:
                self._put(plants.tree, (side * (x + lawn + 9), y, KERB), random.uniform(0, 6))
            y += width + gap

    def _park(self, side: int, start: float, end: float) -> None:
        random, x = self.random, self.edge[side] + self.pavement[side]
        if random.random() < 0.7:
            for y in _steps(start, end - 8, 8.0):
                self._border(side, x, y, 8.0)
        for _ in range(int((end - start) * 0.22)):
            place = (side * (x + random.uniform(2.5, 30)), random.uniform(start, end), KERB)
            self._put(plants.tree, place, random.uniform(0, 6), random.uniform(0.8, 1.3))
        for _ in range(int((end - start) * 0.1)):
            self._put(plants.bush, (side * (x + random.uniform(1, 12)), random.uniform(start, end), KERB), 0.0)

    def _border(self, side: int, x: float, y: float, length: float) -> None:
        """A fence, a wall or a hedge along the pavement, or nothing."""
        kind, pieces = self.random.random(), max(round(length / catalogue.BORDER_LENGTH), 1)
        if kind > 0.88:
            return
        what = furniture.fence if kind < 0.4 else furniture.wall if kind < 0.62 else plants.hedge
        piece = catalogue.border(what, int(self.random.integers(catalogue.BORDERS)))
        each = length / pieces
        scale = (1, each / catalogue.BORDER_LENGTH, 1)
        self.parts += [piece.placed((side * (x + 0.3), y + i * each, KERB), scale=scale) for i in range(pieces)]

    def _furniture(self, side: int, start: float, end: float, verge: bool) -> None:
        random, x, wide = self.random, self.edge[side], self.pavement[side]
        inwards = 0.0 if side < 0 else np.pi  # lamp posts reach over the road
        for y in _steps(start + random.uniform(4, 14), end - 2, random.uniform(22, 34)):
            mesh, lamp = catalogue.lamp_post(int(random.integers(catalogue.LAMP_POSTS)), self.lit)
            self.parts.append(mesh.placed((side * (x + 0.45), y, KERB), yaw=inwards))
            self.lamps.append((side * (x + 0.45 - lamp[0]), float(y), lamp[2] + KERB))
        spacing = random.uniform(7, 16)
        if verge or random.random() < 0.45:
            for y in _steps(start + random.uniform(3, 9), end - 3, spacing):
                if random.random() < 0.85:
                    self._put(
                        plants.tree, (side * (x + 0.95), y, KERB), random.uniform(0, 6), random.uniform(0.6, 0.85)
                    )
        for _ in range(random.poisson((end - start) / 28)):
            facing = 0.0 if side == self.drive else np.pi
            self._put(
                furniture.sign, (side * (x + 0.5), random.uniform(start, end), KERB), facing + random.normal(0, 0.15)
            )
        if random.random() < 0.2:
            for y in _steps(start + 2, end - 2, random.uniform(1.8, 3)):
                self._put(furniture.bollard, (side * (x + 0.3), y, KERB), 0.0)
        for _ in range(random.poisson((end - start) / 35)):
            what = furniture.bin_ if random.random() < 0.6 else vehicles.bicycle
            place = (side * (x + random.choice((0.6, wide - 0.5))), random.uniform(start, end), KERB)
            self._put(what, place, random.normal(0, 0.2))

    def _backdrop(self) -> None:
        """Blocks and trees behind, and the end of the street, so that the horizon is not bare."""
        random = self.random
        for side in (-1, 1):
            for y in _steps(10, LENGTH, 34):
                if random.random() < 0.55:
                    self._beside(self._flats(int(random.integers(3, 9))), side, random.uniform(48, 85), y)
                for _ in range(4):
                    place = (side * random.uniform(32, 95), y + random.uniform(0, 34), 0.0)
                    self._put(plants.tree, place, random.uniform(0, 6), random.uniform(0.9, 1.5))
        for x in _steps(-80, 80, 17):
            mesh = self._flats(int(random.integers(2, 7)))
            self.parts.append(mesh.placed((x + 16, LENGTH + 20 + random.uniform(0, 15), 0), yaw=np.pi / 2))

    # What moves.

    def _traffic(self) -> None:
        random = self.random
        for side in (-1, 1):
            if self.parking[side]:
                for y in _steps(_BEHIND + random.uniform(0, 6), LENGTH * 0.75, random.uniform(5.4, 7.5)):
                    clear = all(abs(y - middle) > width / 2 + 8 for middle, width in self.crossings)
                    if clear and random.random() < min(0.55 + 0.3 * self.busy, 0.9):
                        self._vehicle(side * (self.edge[side] - 1.15), y, small=True)
            for lane in range(self.lanes):
                x, y = side * self.lane * (lane + 0.5), random.uniform(8, 40)
                while y < LENGTH * 0.8:
                    self._vehicle(x + random.normal(0, 0.15), y)
                    y += 9 + random.exponential(38 / self.busy)
        for _ in range(random.poisson(1.3 * self.busy)):
            side = random.choice((-1, 1))
            x = side * (self.lane * self.lanes - random.uniform(0.4, 0.9))
            self._mover(people.rider, x, 6 + random.exponential(16), 1.0)

    def _vehicle(self, x: float, y: float, yaw: float | None = None, small: bool = False) -> None:
        """A vehicle that keeps to its side, unless it would stand in another one or over the camera."""
        kind = self.random.random()
        what = vehicles.car if small or kind < 0.84 else vehicles.lorry if kind < 0.94 else vehicles.bus
        self._mover(what, x, y, 2.6 if what is vehicles.car else 6.5, yaw)

    def _mover(self, what: catalogue.Maker, x: float, y: float, half: float, yaw: float | None = None) -> None:
        own_lane = abs(x - self.eye_x) < 2.2
        if (own_lane and y < half + 5) or any(abs(x - a) < 1.9 and abs(y - b) < half + h for a, b, h in self.taken):
            return
        self.taken.append((x, y, half))
        facing = 0.0 if np.sign(x) == self.drive else np.pi
        self._put(what, (x, y, 0.0), (facing if yaw is None else yaw) + self.random.normal(0, 0.02))

    def _walkers(self) -> None:
        random = self.random
        for side in (-1, 1):
            for _ in range(random.poisson(7 * self.busy)):
                y = 3.5 + random.exponential(26)
                x = self.edge[side] + random.uniform(0.6, max(self.pavement[side] - 0.5, 0.8))
                yaw = random.choice((0, np.pi)) + random.normal(0, 0.35)
                for k in range(random.choice((1, 1, 2))):
                    self._put(people.person, (side * x + 0.6 * k, y + 0.2 * k, KERB), yaw)
        middle, width = self.crossings[0]
        for _ in range(random.poisson(1.2 * self.busy)):
            x = random.uniform(-self.edge[-1], self.edge[1])
            self._put(
                people.person,
                (x, middle - width / 2 - random.uniform(1.2, 3.6), 0.0),
                random.choice((-1, 1)) * np.pi / 2,
            )
        for _ in range(random.poisson(0.35 * self.busy)):
            self._mover(
                people.person,
                random.uniform(-self.edge[-1], self.edge[1]),
                random.uniform(9, 40),
                0.6,
                random.uniform(0, 6),
            )

    # Placing.

    def _one_of(self, what: catalogue.Maker, *options: bool) -> Mesh:
        return catalogue.variant(what, int(self.random.integers(catalogue.VARIANTS[what])), *options)

    def _flats(self, floors: int) -> Mesh:
        low, high = catalogue.FLOORS
        return catalogue.flats(min(max(floors, low), high), int(self.random.integers(catalogue.FLATS)))

    def _put(self, what: catalogue.Maker, at: tuple[float, float, float], yaw: float, scale: float = 1.0) -> None:
        """One of the variants of ``what``, with less detail far away."""
        far = bool(np.hypot(at[0], at[1]) > _FAR)
        options = {vehicles.car: (far,), plants.tree: (far, self.autumn)}.get(what, ())
        self.parts.append(self._one_of(what, *options).placed(at, yaw, scale=scale))

    def _beside(self, building: Mesh, side: int, x: float, y: float) -> float:
        """A building ``x`` from the middle of the road, its front to the road; its width."""
        width = float(building.vertices[:, 1].max())
        self.parts.append(building.placed((x, y, 0)) if side > 0 else building.placed((-x, y + width, 0), yaw=np.pi))
        return width
