"""Triangle meshes as arrays, and the few shapes that everything in a rendered street is made of.

Metres; x right, y ahead, z up. A vertex is 16 numbers: position, normal, texture coordinates, linear colour, gloss,
texture layer, material, label, seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
# Whatever NumPy makes an array of; its own type for that refuses tuples of NumPy's numbers.
Points = Any

# Materials of shaders/scene.frag.
MATTE, FACADE, GLOW, PAINT, GLASS, LEAF, GROUND, SKY = range(8)


# Faces of a cube, anticlockwise from outside: four sides, top, bottom.
_CUBE = np.array([
    [(-1, -1, -1), (1, -1, -1), (1, -1, 1), (-1, -1, 1)], [(1, -1, -1), (1, 1, -1), (1, 1, 1), (1, -1, 1)],
    [(1, 1, -1), (-1, 1, -1), (-1, 1, 1), (1, 1, 1)], [(-1, 1, -1), (-1, -1, -1), (-1, -1, 1), (-1, 1, 1)],
    [(-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1)], [(-1, 1, -1), (1, 1, -1), (1, -1, -1), (-1, -1, -1)],
])  # fmt: skip


@dataclass(frozen=True)
class Surface:
    """What a mesh is made of.

    Args:
        label: index in ``labels.CLASSES``.
        color: sRGB, 0 to 1; of ``GLOW`` it may be more.
        texture: layer of ``textures.LAYERS``, which multiplies the colour.
        material: one of the constants of this module.
        gloss: 0 dull, 1 mirrors the sky; of ``GLOW`` the share that shines by day too.
        seed: 0 to 1, lets the shader vary windows and leaves; of ``FACADE`` plus 1 for a shop on the ground floor.
        tile: metres that one repetition of the texture covers.
    """

    label: int
    color: Points
    texture: int = 0
    material: int = MATTE
    gloss: float = 0.0
    seed: float = 0.0
    tile: float = 1.0


@dataclass(frozen=True)
class Mesh:
    """``vertices``: float32 ``n 16``; ``triangles``: int32 ``m 3``, indices of vertices."""

    vertices: Array
    triangles: NDArray[np.int32]

    def placed(self, at: Points = (0, 0, 0), yaw: float = 0.0, pitch: float = 0.0, scale: Points = 1.0) -> Mesh:
        """A copy, scaled, then turned by ``pitch`` about x and ``yaw`` about z (radians), then moved to ``at``."""
        vertices = self.vertices.copy()
        turn = rotation(yaw, pitch)
        vertices[:, :3] = (vertices[:, :3] * np.asarray(scale, np.float32)) @ turn.T + np.asarray(at, np.float32)
        vertices[:, 3:6] = vertices[:, 3:6] @ turn.T
        return Mesh(vertices, self.triangles)


def rotation(yaw: float, pitch: float = 0.0) -> Array:
    """The matrix ``3 3`` of a turn about x by ``pitch``, then about z by ``yaw``."""
    c, s, cp, sp = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    return turn.astype(np.float32)


def join(meshes: Iterable[Mesh]) -> Mesh:
    """All meshes as one."""
    parts = list(meshes)
    starts = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    triangles = [part.triangles + start for part, start in zip(parts, starts, strict=True)]
    return Mesh(np.concatenate([part.vertices for part in parts]), np.concatenate(triangles).astype(np.int32))


def quads(corners: Points, surface: Surface, uv: Points | None = None, normals: Points | None = None) -> Mesh:
    """Flat four-sided faces.

    Args:
        corners: ``n 4 3``, anticlockwise seen from the front.
        uv: ``n 4 2``; None measures the metres along the first and the last side.
        normals: ``n 4 3``; None for those of the faces.
    """
    points = np.asarray(corners, np.float64)
    if normals is None:
        face = _unit(_cross(points[:, 2] - points[:, 0], points[:, 3] - points[:, 1]))
        normals = np.repeat(face[:, None], 4, axis=1)
    if uv is None:
        along, up = (_length(points[:, i] - points[:, 0])[:, 0] for i in (1, 3))
        zero = np.zeros_like(along)
        # Starting from where the face lies keeps textures of neighbouring faces apart.
        start = (points[:, :1, :1] + points[:, :1, 1:2]) % 7.0
        steps = np.stack([zero, zero, along, zero, along, up, zero, up], -1).reshape(-1, 4, 2)
        uv = (steps + start) / surface.tile
    halves = np.array([[0, 1, 2], [0, 2, 3]])
    triangles = (4 * np.arange(len(points))[:, None, None] + halves).reshape(-1, 3)
    sides = points[:, halves].reshape(-1, 3, 3)
    area = _length(_cross(sides[:, 1] - sides[:, 0], sides[:, 2] - sides[:, 0]))[:, 0]
    return Mesh(_vertices(points, normals, uv, surface), triangles[area > 1e-7].astype(np.int32))


def box(size: Points, centre: Points, surface: Surface, taper: float = 1.0) -> Mesh:
    """Upright boxes: sizes and centres ``3`` or ``n 3``; ``taper`` scales their tops in x and y."""
    faces = _CUBE * np.where(_CUBE[..., 2:] > 0, (taper, taper, 1.0), 1.0) / 2
    faces = faces * np.atleast_2d(size)[:, None, None] + np.atleast_2d(centre)[:, None, None]
    return quads(faces.reshape(-1, 4, 3), surface)


def loft(sections: Points, surface: Surface, crease: float = 50.0) -> Mesh:
    """The skin over closed outlines ``k m 3`` that follow each other, smooth where it bends by less than ``crease``°.

    Seen along the direction of the sections, outlines run clockwise.
    """
    points = np.asarray(sections, np.float64)
    k, m, _ = points.shape
    nxt = np.roll(points, -1, axis=1)
    face = np.stack([points[:-1], points[1:], nxt[1:], nxt[:-1]], axis=2)  # k-1 m 4 3
    normal = _unit(_cross(face[:, :, 2] - face[:, :, 0], face[:, :, 3] - face[:, :, 1]))
    padded = np.concatenate([np.zeros((1, m, 3)), normal, np.zeros((1, m, 3))])
    smooth = np.zeros_like(face)
    for corner, (a, b) in enumerate(((0, 0), (1, 0), (1, 1), (0, 1))):
        for da in (a - 1, a):
            for db in (b - 1, b):
                near = np.roll(padded, -db, axis=1)[1 + da : k + da]
                alike = (near * normal).sum(-1, keepdims=True) > np.cos(np.deg2rad(crease))
                smooth[:, :, corner] += np.where(alike, near, 0)
    around = np.linspace(0, np.linalg.norm(nxt - points, axis=-1).sum(1).max(), m + 1)
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=-1).max(1))])
    uv = np.stack(np.broadcast_arrays(around[None], along[:, None]), -1) / surface.tile
    uv = np.stack([uv[:-1, :-1], uv[1:, :-1], uv[1:, 1:], uv[:-1, 1:]], axis=2)
    return quads(face.reshape(-1, 4, 3), surface, uv.reshape(-1, 4, 2), _unit(smooth).reshape(-1, 4, 3))


def tube(path: Points, radii: Points, surface: Surface, sides: int = 6, closed: bool = False) -> Mesh:
    """A round bar along ``path`` (``k 3``) with a radius per point, or one radius per point and half axis (``k 2``).

    The half axes lie across the path, the first as level as can be. ``closed`` joins the ends, else they have caps.
    """
    line = np.asarray(path, np.float64)
    radius = np.asarray(np.broadcast_to(radii, (len(line),)) if np.ndim(radii) < 2 else radii, np.float64)
    radius = radius[:, None].repeat(2, 1) if radius.ndim == 1 else radius
    ahead = _unit(np.roll(line, -1, axis=0) - np.roll(line, 1, axis=0) if closed else np.gradient(line, axis=0))
    level = np.where(np.abs(ahead[:, 2:]) > 0.95, [[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]])
    first = _unit(np.cross(ahead, level))
    second = np.cross(first, ahead)
    angle = -2 * np.pi * np.arange(sides) / sides
    ring = np.cos(angle)[None, :, None] * (first * radius[:, :1])[:, None]
    ring = line[:, None] + ring + np.sin(angle)[None, :, None] * (second * radius[:, 1:])[:, None]
    if closed:
        ring = np.concatenate([ring, ring[:1]])
    else:
        caps = np.broadcast_to(line[:, None], ring.shape)
        ring = np.concatenate([caps[:1], ring, caps[-1:]])
    return loft(ring[:, ::-1], surface)


def circle(centre: Points, radius: float, axis: int = 0, points: int = 16) -> NDArray[Any]:
    """``points 3`` on the circle about ``centre`` across ``axis`` (0 x, 1 y, 2 z)."""
    angle = 2 * np.pi * np.arange(points) / points
    ring = np.zeros((points, 3))
    others = [i for i in range(3) if i != axis]
    ring[:, others[0]], ring[:, others[1]] = radius * np.cos(angle), radius * np.sin(angle)
    return ring + np.asarray(centre)


def disc(centre: Points, radius: float, surface: Surface, side: float, points: int = 12) -> Mesh:
    """A flat round face that looks along x, to the right where ``side`` is positive."""
    ring = circle(centre, radius, 0, points)[:: 1 if side > 0 else -1]
    middle = np.broadcast_to(np.asarray(centre, np.float64), ring.shape)
    return quads(np.stack([middle, ring, np.roll(ring, -1, axis=0), middle], 1), surface)


def ellipsoid(centre: Points, radii: Points, surface: Surface, sides: int = 8) -> Mesh:
    """An ellipsoid with axes along x, y and z."""
    height = np.linspace(-np.pi / 2, np.pi / 2, sides // 2 + 2)
    x, y, z = np.asarray(radii, np.float64)
    rings = np.stack([circle((0, 0, np.sin(h)), max(np.cos(h), 1e-3), 2, sides) for h in height])
    return loft(rings[:, ::-1] * (x, y, z) + np.asarray(centre), surface, crease=80)


def plate(outline: Points, thickness: float, surface: Surface, y: float = 0.0) -> Mesh:
    """An upright sheet with a convex outline (``m 2``: x, z, anticlockwise seen from -y); its front faces -y."""
    shape = np.asarray(outline, np.float64)
    front = np.insert(shape, 1, y, axis=1)
    middle = np.broadcast_to(front.mean(0, keepdims=True), front.shape)
    deep = np.array([0, thickness, 0])
    return loft(np.stack([middle, front, front + deep, middle + deep]), surface, crease=20)


def _vertices(points: Points, normals: Points, uv: Points, surface: Surface) -> Array:
    position = np.asarray(points, np.float32).reshape(-1, 3)
    vertices = np.empty((len(position), 16), np.float32)
    vertices[:, :3] = position
    vertices[:, 3:6] = np.asarray(normals, np.float32).reshape(-1, 3)
    vertices[:, 6:8] = np.asarray(uv, np.float32).reshape(-1, 2)
    vertices[:, 8:11] = np.asarray(surface.color, np.float32) ** 2.2
    vertices[:, 11:] = surface.gloss, surface.texture, surface.material, surface.label, surface.seed
    return vertices


def _unit(vectors: NDArray[Any]) -> NDArray[Any]:
    return vectors / np.maximum(_length(vectors), 1e-9)


def _length(vectors: NDArray[Any]) -> NDArray[Any]:
    return np.sqrt((vectors * vectors).sum(-1, keepdims=True))


def _cross(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """As ``np.cross``, several times faster on short arrays."""
    turned, other = (1, 2, 0), (2, 0, 1)
    return a[..., turned] * b[..., other] - a[..., other] * b[..., turned]
