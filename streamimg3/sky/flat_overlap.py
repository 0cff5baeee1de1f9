"""The common part of two small outlines on the sky, where there can be no doubt about it.

In the gnomonic projection great circles are straight lines, so that outlines can be intersected in a plane, a hundred
times faster than on the sphere.  Where a corner comes close to an edge, rounding errors could decide what the common
part is; then, and where an outline is wide, the answer is left to the slow way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import shapely

F8 = NDArray[np.float64]
_NEAR = 1e-7  # radians (20 mas): a corner this close to an edge may lie on either side, or edges cross at too small an angle
_SMALL = 1e-13  # steradians (65 mas squared)
_WIDE = 0.1  # radians from the middle


def intersection(one: F8, other: F8) -> list[F8] | None:
    """Return the outlines of the common part of two outlines.

    Parameters
    ----------
    one, other : ndarray of float64, shape (n, 3)
        Unit vectors of the corners in order, the first not repeated.

    Returns
    -------
    list of ndarray of float64, shape (m, 3), or None
        Unit vectors of the corners of each part, clockwise on a map with longitude to the right and latitude up, the
        first repeated at the end; an empty list where there is no common part; None where the answer is in doubt.
    """
    import shapely

    axes = _axes(one, other)
    if min((one @ axes[2]).min(), (other @ axes[2]).min()) < np.cos(_WIDE):
        return None
    a, b = (shapely.Polygon(_flat(vectors, axes)) for vectors in (one, other))
    if not (a.is_valid and b.is_valid and _clear(a, b) and _clear(b, a)):
        return None
    parts = [p for p in shapely.get_parts(shapely.intersection(a, b)) if not p.is_empty]
    if any(p.geom_type != "Polygon" or p.area < _SMALL for p in parts):
        return None
    return [_vectors(p, axes) for p in parts]


def _axes(one: F8, other: F8) -> F8:
    """A right-handed set of axes, the third towards the middle of both outlines."""
    middle = one.mean(axis=0) + other.mean(axis=0)
    middle /= np.linalg.norm(middle)
    across = np.cross(np.eye(3)[np.argmin(np.abs(middle))], middle)
    across /= np.linalg.norm(across)
    return np.array([across, np.cross(middle, across), middle])


def _flat(vectors: F8, axes: F8) -> F8:
    """Project on the tangent plane, in radians at its middle."""
    x, y, z = axes @ vectors.T
    return np.column_stack([x / z, y / z])


def _clear(one: shapely.Polygon, other: shapely.Polygon) -> bool:
    """Whether all corners of an outline keep away from the edges of another."""
    import shapely

    corners = shapely.points(shapely.get_coordinates(one))
    return bool(shapely.distance(corners, other.exterior).min() > _NEAR)


def _vectors(polygon: shapely.Polygon, axes: F8) -> F8:
    """Unit vectors of the corners of a polygon in the tangent plane, clockwise."""
    plane = np.array(polygon.exterior.coords)
    plane = plane[::-1] if polygon.exterior.is_ccw else plane
    vectors = np.column_stack([plane, np.ones(len(plane))]) @ axes
    found: F8 = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found
