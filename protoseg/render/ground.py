"""Level ground in strips, and the bending of a straight street."""

from __future__ import annotations

import numpy as np

from protoseg.render.mesh import Array, Mesh, Surface, quads


def strip(x: tuple[float, float], y: tuple[float, float], z: float, surface: Surface, step: float = 5.0) -> Mesh:
    """A level rectangle in lengths of ``step`` along y, so that it can bend; its texture lies still in the world."""
    left, right = sorted(x)
    edges = np.linspace(*y, max(int(np.ceil((y[1] - y[0]) / step)), 1) + 1)
    near, far = edges[:-1], edges[1:]
    corners = ((left, near), (right, near), (right, far), (left, far))
    points = np.stack([np.stack(np.broadcast_arrays(px, py, z), -1) for px, py in corners], 1)
    return quads(points, surface, points[..., :2] / surface.tile)


def riser(x: float, side: int, y: tuple[float, float], z: tuple[float, float], surface: Surface) -> Mesh:
    """An upright face along y that looks towards x = 0 from the side ``side``."""
    edges = np.linspace(*y, max(int((y[1] - y[0]) / 5), 1) + 1)
    low, high = (np.column_stack([np.full_like(edges, x), edges, np.full_like(edges, height)]) for height in z)
    corners = (low[1:], low[:-1], high[:-1], high[1:])
    return quads(np.stack(corners if side > 0 else [corners[i] for i in (1, 0, 3, 2)], 1), surface)


def bend(vertices: Array, curve: float, slope: float, dip: float) -> None:
    """Lay a straight street (vertices ``n 16``, in place) along the line x = curve y², z = slope y + dip y²."""
    x, y = vertices[:, 0].copy(), vertices[:, 1].copy()
    angle = np.arctan(2 * curve * y)
    c, s = np.cos(angle), np.sin(angle)
    vertices[:, 0] = curve * y**2 + x * c
    vertices[:, 1] = y - x * s
    vertices[:, 2] += slope * y + dip * y**2
    nx, ny = vertices[:, 3].copy(), vertices[:, 4].copy()
    vertices[:, 3], vertices[:, 4] = nx * c + ny * s, ny * c - nx * s
