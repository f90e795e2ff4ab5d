"""The variants of every object. Building one takes longer than drawing it, so each is built once per process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from protoseg.render import furniture, people, plants, vehicles
from protoseg.render.buildings import block, house
from protoseg.render.mesh import Mesh

Maker = Callable[..., Mesh]

# How many there are of each.
VARIANTS: dict[Maker, int] = {
    vehicles.car: 72, vehicles.lorry: 10, vehicles.bus: 6, vehicles.bicycle: 8, people.person: 96, people.rider: 32,
    plants.tree: 40, plants.bush: 8, furniture.traffic_light: 10, furniture.sign: 48, furniture.bollard: 6,
    furniture.bin_: 6, house: 80,
}  # fmt: skip
FLOORS = (2, 8)
FLATS, LAMP_POSTS, BORDERS = 28, 10, 12
BORDER_LENGTH = 4.0


@cache
def variant(what: Maker, number: int, *options: bool) -> Mesh:
    """Number ``number`` of what the maker ``what`` makes."""
    return what(np.random.default_rng([number, 1]), *options)


@cache
def flats(floors: int, number: int) -> Mesh:
    """A block of flats with so many storeys."""
    return block(np.random.default_rng([floors, number, 4]), floors)


@cache
def lamp_post(number: int, lit: bool) -> tuple[Mesh, tuple[float, float, float]]:
    """A lamp post, and the place of its lamp."""
    return furniture.lamp_post(np.random.default_rng([number, 2]), lit)


@cache
def border(what: Maker, number: int) -> Mesh:
    """``BORDER_LENGTH`` metres of a fence, a wall or a hedge along y."""
    random = np.random.default_rng([number, 3])
    return what(random, BORDER_LENGTH, random.uniform(0.8, 1.7))
