"""Which pixels of an exposure take part in a drizzle: those whose centres fall on the mosaic (spec image3 §7.5).

The reference finds them per exposure: the image's outline is mapped to the mosaic, cut by the mosaic's rim, mapped
back by a golden-section search and scanned row by row.  The limits are worked out once, against the whole mosaic, so
that no tile shows (spec §11.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from streamimg3.geometry import Box

F8 = NDArray[np.float64]
Lookup = Callable[[NDArray[np.int64], NDArray[np.int64]], tuple[F8, F8]]

_GOLDEN = 0.6180339887498948482
_SLACK = 0.03  # input pixels: accuracy of the search and slack of the limits
_SAME = 1e-12


def row_limits(lookup: Lookup, shape: tuple[int, int], scan: Box, mosaic: tuple[int, int]) -> NDArray[np.int32]:
    """Return the first and last column of every row that take part.

    Parameters
    ----------
    lookup : callable
        Output rows and columns at whole input pixels ``(y, x)``; NaN where there are none.
    shape : tuple of int
        Rows and columns of the exposure.
    scan : Box
        Pixels to be considered at all: inside the bounding box, with map values.
    mosaic : tuple of int
        Rows and columns of the mosaic.

    Returns
    -------
    ndarray of int32, shape (ny, 2)
        Inclusive limits; ``(0, -1)`` where no pixel of the row takes part.
    """
    limits = np.tile(np.array([0, -1], np.int32), (shape[0], 1))
    outline = np.array([[scan.x0, scan.y0], [scan.x1, scan.y0], [scan.x1, scan.y1], [scan.x0, scan.y1]], float) - 0.5
    mapped = _bilinear(lookup, shape, outline)
    if np.isnan(mapped).any():
        polygon = outline
    else:
        ny, nx = mosaic
        rim = np.array([[-0.5, -0.5], [nx - 0.5, -0.5], [nx - 0.5, ny - 0.5], [-0.5, ny - 0.5]])
        common = _clip(_counter_clockwise(mapped), rim)
        if len(common) < 3:
            return limits
        back = _invert(lookup, shape, scan, common)
        polygon = outline if back is None else _counter_clockwise(back)
    return _scan_rows(polygon, scan, limits)


def _bilinear(lookup: Lookup, shape: tuple[int, int], points: F8) -> F8:
    """Map fractional input positions (n, 2: x, y) through the four pixels around; beyond the rim cells are extended."""
    ny, nx = shape
    i = np.clip(np.trunc(points[:, 0]).astype(np.int64), 0, nx - 2)
    j = np.clip(np.trunc(points[:, 1]).astype(np.int64), 0, ny - 2)
    u, v = points[:, 0] - i, points[:, 1] - j
    y, x = lookup(np.stack([j, j, j + 1, j + 1]), np.stack([i, i + 1, i, i + 1]))
    weights = np.stack([(1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v])
    return np.column_stack([(x * weights).sum(axis=0), (y * weights).sum(axis=0)])


def _invert(lookup: Lookup, shape: tuple[int, int], scan: Box, targets: F8) -> F8 | None:
    """Find input positions (n, 2) that map to mosaic positions, all at once; None where the search fails."""
    n = len(targets)
    low = np.tile([scan.x0 - 0.5, scan.y0 - 0.5], (n, 1))
    high = np.tile([scan.x1 - 0.5, scan.y1 - 0.5], (n, 1))
    for _ in range(50):
        wide = high - low
        active = (wide > _SLACK).any(axis=1)
        if not active.any():
            middle: F8 = 0.5 * (low + high)
            return middle
        first, second = high - _GOLDEN * wide, low + _GOLDEN * wide
        trials = [np.column_stack([a[:, 0], b[:, 1]]) for a in (first, second) for b in (first, second)]
        mapped = _bilinear(lookup, shape, np.concatenate(trials)).reshape(4, n, 2)
        if np.isnan(mapped[:, active]).any():
            return None
        d = ((mapped - targets) ** 2).sum(axis=2)  # order of trials: (x1, y1), (x1, y2), (x2, y1), (x2, y2)
        best = np.argmin(d, axis=0)  # the reference lets the last trial win a tie, and so loses half of an exposure
        lower_x, lower_y = best < 2, best % 2 == 0
        for axis, lower in ((0, lower_x), (1, lower_y)):
            high[:, axis] = np.where(active & lower, second[:, axis], high[:, axis])
            low[:, axis] = np.where(active & ~lower, first[:, axis], low[:, axis])
    return None


def _cross(a: F8, b: F8) -> float:
    return float(a[0] * b[1] - a[1] * b[0])


def _counter_clockwise(polygon: F8) -> F8:
    """Return the polygon in counter-clockwise order (judged by its first edge about the mean vertex)."""
    centre = polygon.mean(axis=0)
    return polygon if _cross(polygon[0] - centre, polygon[1] - centre) >= 0 else polygon[::-1]


def _clip(polygon: F8, window: F8) -> F8:
    """Cut a polygon by a convex window (Sutherland & Hodgman 1974), both counter-clockwise."""
    points = list(polygon)
    for a, b in zip(np.roll(window, 1, axis=0), window, strict=True):
        kept: list[F8] = []
        for p, q in zip(points[-1:] + points[:-1], points, strict=True):
            p_in, q_in = _cross(b - a, p - a) > 0, _cross(b - a, q - a) > 0
            if p_in != q_in:
                t = _cross(a - p, b - a) / _cross(q - p, b - a)
                _append(kept, p + t * (q - p))
            if q_in:
                _append(kept, q)
        points = kept
        if not points:
            return np.zeros((0, 2))
    return _corners_only(_counter_clockwise(np.array(points))) if len(points) > 2 else np.array(points)


def _append(points: list[F8], new: F8) -> None:
    """Add a vertex unless it repeats the last or the first."""
    if points and (np.abs(points[-1] - new).max() < _SAME or np.abs(points[0] - new).max() < _SAME):
        return
    points.append(new)


def _corners_only(polygon: F8) -> F8:
    """Drop vertices that lie on the line between their neighbours."""
    before, after = np.roll(polygon, 1, axis=0), np.roll(polygon, -1, axis=0)
    d, e = after - before, polygon - before
    bend = np.abs(d[:, 0] * e[:, 1] - d[:, 1] * e[:, 0])
    kept: F8 = polygon[(bend > 1e3 * np.finfo(float).tiny) & (np.hypot(d[:, 0], d[:, 1]) > _SAME)]
    return kept


Edge = tuple[float, float, float]  # slope dx/dy, abscissa at y = 0 moved inwards by half a pixel, upper end


def _edges(vertices: list[F8], side: int) -> list[Edge]:
    """Edges of a chain of vertices that goes upwards; ``side`` -1 left, +1 right."""
    found = []
    for p, q in pairwise(vertices):
        rise = q[1] - p[1]
        if rise == 0.0:  # the search has put two vertices on one spot
            continue
        slope = (q[0] - p[0]) / rise
        at_zero = (p[0] * q[1] - p[1] * q[0]) / rise
        found.append((slope, at_zero - math.copysign(0.5 + 0.5 * abs(slope), side), float(q[1])))
    return found


def _chains(polygon: F8) -> tuple[list[F8], list[F8]]:
    """Left and right chains of a convex counter-clockwise polygon, from its lowest to its highest vertices."""
    n, y = len(polygon), polygon[:, 1]

    def pair(k: int, other: int, level: float) -> bool:
        tolerance = 1.0 + math.copysign(_SAME, level) * (1 if k == low else -1)
        return bool(y[other] <= level * tolerance) if k == low else bool(y[other] >= level * tolerance)

    low, high = int(np.argmin(y)), int(np.argmax(y))
    low_left = low_right = low
    near = min(((low - 1) % n, (low + 1) % n), key=lambda k: y[k])
    if pair(low, near, float(y[low])):
        low_left, low_right = sorted((low, near), key=lambda k: polygon[k, 0])
    high_left = high_right = high
    near = max(((high - 1) % n, (high + 1) % n), key=lambda k: y[k])
    if pair(high, near, float(y[high])):
        high_left, high_right = sorted((high, near), key=lambda k: polygon[k, 0])
    left = [polygon[(low_left - k) % n] for k in range((low_left - high_left) % n + 1)]
    right = [polygon[(low_right + k) % n] for k in range((high_right - low_right) % n + 1)]
    return left, right


def _advance(edges: list[Edge], k: int, y: float, slack: float) -> int:
    """Index of the edge in force at height ``y``; ``len(edges)`` when the chain has ended."""
    while k < len(edges) and y > edges[k][2] + slack:
        k += 1
    return k


def _scan_rows(polygon: F8, scan: Box, limits: NDArray[np.int32]) -> NDArray[np.int32]:
    """Fill in the limits of the rows that a convex polygon covers."""
    chains = _chains(polygon)
    left, right = _edges(chains[0], -1), _edges(chains[1], 1)
    low, high = float(polygon[:, 1].min()), float(polygon[:, 1].max())
    i = k = 0
    for y in range(max(0, int(low + 0.5 + 2 * _SLACK)), min(scan.y1 - 1, int(high + 2 * _SLACK)) + 1):
        if y + 0.5 <= low or y - 0.5 >= high + 1:
            continue
        found = []
        for height, slack in ((y - 0.5, 0.0), (y + 0.5, 0.5 + _SLACK)):
            i, k = _advance(left, i, height, slack), _advance(right, k, height, slack)
            if i == len(left) or k == len(right):
                return limits
            a = max(left[i][0] * y + left[i][1] - _SLACK, float(scan.x0))
            b = min(right[k][0] * y + right[k][1] + _SLACK, float(scan.x1 - 1))
            found.append((a, b))
        (a0, b0), (a1, b1) = found
        if a1 >= b1:
            pick = (a0, b0)
        elif a0 >= b0:
            pick = (a1, b1)
        else:
            pick = (max(a0, a1), min(b0, b1))
        if a1 >= b1 and a0 >= b0:
            continue
        limits[y] = math.floor(pick[0] + 0.5), math.floor(pick[1] + 0.5)
    return limits
