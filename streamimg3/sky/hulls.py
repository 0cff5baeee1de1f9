"""How much the outlines of star lists overlap, to choose the order of alignment (spec image3 §4.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError

if TYPE_CHECKING:
    import shapely

F8 = NDArray[np.float64]
_LEAST = 1e-7  # rad: half width of what one or two stars, or stars on a line, cover
_WIDE = 0.2  # cosine of the largest angle from the middle at which a plane still serves


class Footprints:
    """Convex outlines of groups of star lists in one gnomonic plane, where great circles are straight lines.

    Parameters
    ----------
    groups : sequence of sequences of ndarray of float64, shape (3, n)
        Unit vectors of the stars of every exposure of every group.

    Raises
    ------
    InputError
        If the stars lie all over the sky.
    """

    def __init__(self, groups: Sequence[Sequence[F8]]) -> None:
        import shapely

        everything = np.hstack([v for group in groups for v in group])
        middle = everything.sum(axis=1)
        size = float(np.linalg.norm(middle))
        middle = middle / size if size > 0 else middle
        if not (middle @ everything).min() > _WIDE:
            raise InputError(
                "tweakreg.expand_refcat: the exposures lie too far apart on the sky to be ordered by their overlap;"
                " give exposures of one field, or set tweakreg.enforce_user_order"
            )
        self._middle = middle
        self._across = _frame(middle)
        self._members = [[self._hull(v) for v in group if v.shape[1]] for group in groups]
        self._whole = np.array([shapely.union_all(m) for m in self._members])
        self._points = [np.hstack(list(group)) for group in groups]
        self._reference: shapely.Geometry = shapely.Point()

    def _hull(self, vectors: F8) -> shapely.Geometry:
        import shapely

        c, x, y = self._across @ vectors
        hull = shapely.MultiPoint(np.column_stack([x / c, y / c])).convex_hull
        return hull if hull.geom_type == "Polygon" else hull.buffer(_LEAST)

    def best_pair(self) -> tuple[int, int]:
        """Return the two groups that overlap most; first the one that overlaps more with all others."""
        import shapely

        n = len(self._whole)
        areas = np.zeros((n, n))
        i, j = shapely.STRtree(self._whole).query(self._whole, predicate="intersects")
        i, j = i[i < j], j[i < j]
        for a, b in zip(i.tolist(), j.tolist(), strict=True):
            areas[a, b] = areas[b, a] = shapely.area(shapely.intersection(self._members[a], self._whole[b])).sum()
        first, second = (int(k) for k in np.unravel_index(np.argmax(areas), areas.shape))
        if areas[first].sum() < areas[:, second].sum():
            first, second = second, first
        return (first, second) if first != second else (0, 1)

    def start(self, group: int) -> None:
        """Let a group be the reference."""
        self._reference = self._hull(self._points[group])

    def overlaps(self, groups: Sequence[int]) -> F8:
        """Return the area (steradian, nearly) that each of some groups shares with the reference."""
        import shapely

        return np.asarray(shapely.area(shapely.intersection(self._reference, self._whole[list(groups)])))

    def grow(self, vectors: F8) -> None:
        """Stretch the reference around more stars."""
        import shapely

        if vectors.shape[1]:
            self._reference = shapely.union_all([self._reference, self._hull(vectors)]).convex_hull


def _frame(middle: F8) -> F8:
    """Orthogonal rows: the middle and two directions across."""
    helper = np.eye(3)[int(np.argmin(np.abs(middle)))]
    x = np.cross(helper, middle)
    x /= np.linalg.norm(x)
    return np.array([middle, x, np.cross(middle, x)])
