"""Which star is which: initial offset from a 2-D histogram, then nearest neighbours (spec image3 §4.4).

Positions are arrays (n, 2) with x and y of a tangent plane as columns, in arcsec.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F8 = NDArray[np.float64]
Ints = NDArray[np.intp]
_BLOCK = 2048  # stars whose pairs are held at a time
_BOX = 5
_MARGIN = 1e-9  # trees look a little further; the exact test is done here


class SourceConfusion(Exception):
    """More matches than there are stars to match: one star is several reference stars at once."""


@dataclass(frozen=True)
class Search:
    """How far apart what is looked for may lie, in arcsec.

    Parameters
    ----------
    searchrad : float
        Half width of the histogram of offsets.
    separation : float
        Stars at most this far from an earlier one of their own list (in order of y, then x) do not take part.
    tolerance : float
        Largest distance of a match after the initial offset.
    use2dhist : bool
        Take the initial offset from the histogram; else it is ``xoffset``, ``yoffset``.
    """

    searchrad: float = 2.0
    separation: float = 1.0
    tolerance: float = 0.7
    use2dhist: bool = True
    xoffset: float = 0.0
    yoffset: float = 0.0

    @property
    def confusing(self) -> bool:
        """Whether two reference stars could share a match: the separation must be above sqrt(2) tolerances."""
        return self.separation <= math.sqrt(2.0) * self.tolerance

    @property
    def largest_correction(self) -> float:
        """Largest move of an image's corner (arcsec) that passes for a correction."""
        reach = self.searchrad if self.use2dhist else max(abs(self.xoffset), abs(self.yoffset))
        return 2.0 * (reach + self.tolerance)


def match(reference: F8, image: F8, scale: float, search: Search) -> tuple[Ints, Ints]:
    """Match two lists of stars.

    Parameters
    ----------
    reference, image : ndarray of float64, shape (n, 2)
        Positions in one tangent plane.
    scale : float
        Size of a pixel in that plane, arcsec: the histogram's bin.
    search : Search
        Radii.

    Returns
    -------
    reference, image : ndarray of int
        Indices of the partners, in order of the reference stars' y; an image star may serve several reference stars.

    Raises
    ------
    SourceConfusion
        If there are more matches than image stars.
    """
    if not len(reference) or not len(image):
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    offset = initial_offset(reference, image, scale, search.searchrad) if search.use2dhist else _given(search)
    moved = image - offset
    ours, theirs = distinct(moved, search.separation), distinct(reference, search.separation)
    found, partner = _nearest(reference[theirs], moved[ours], search.tolerance)
    if len(found) > len(image):
        raise SourceConfusion(f"{len(found)} matches for {len(image)} sources")
    return theirs[found], ours[partner]


def _given(search: Search) -> F8:
    return np.array([search.xoffset, search.yoffset])


def distinct(positions: F8, separation: float) -> Ints:
    """Return the indices of stars that are further than ``separation`` from all kept before them, in order of y, then x."""
    from scipy.spatial import cKDTree

    order = np.lexsort((positions[:, 0], positions[:, 1]))
    placed = positions[order]
    pairs = cKDTree(placed).query_pairs(separation * (1 + _MARGIN), output_type="ndarray")
    if not len(pairs):
        return order
    near = ((placed[pairs[:, 0]] - placed[pairs[:, 1]]) ** 2).sum(axis=1) <= separation**2
    pairs = np.sort(pairs[near], axis=1)
    kept = np.ones(len(placed), bool)
    for first, second in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].tolist():
        if kept[first]:
            kept[second] = False
    return order[kept]


def _nearest(reference: F8, image: F8, tolerance: float) -> tuple[Ints, Ints]:
    """For each reference star the nearest image star within the tolerance; of two equally near ones the later."""
    found, partner, distance = _pairs(reference, image, tolerance)
    inside = distance <= tolerance**2
    found, partner, distance = found[inside], partner[inside], distance[inside]
    order = np.lexsort((-partner, distance, found))
    found, partner = found[order], partner[order]
    first = np.ones(len(found), bool)
    first[1:] = found[1:] != found[:-1]
    return found[first], partner[first]


def _pairs(one: F8, two: F8, radius: float) -> tuple[Ints, Ints, F8]:
    """Indices of all pairs within a radius (and a trace beyond), and their squared distance."""
    from scipy.spatial import cKDTree

    near = cKDTree(one).sparse_distance_matrix(cKDTree(two), radius * (1 + _MARGIN), output_type="ndarray")
    a, b = near["i"].astype(np.intp), near["j"].astype(np.intp)
    return a, b, ((one[a] - two[b]) ** 2).sum(axis=1)


def initial_offset(reference: F8, image: F8, scale: float, searchrad: float) -> F8:
    """Return the offset (x, y) of the image's stars from the reference's: the peak of the histogram of all differences.

    Without any pair inside the radius the offset is 0.
    """
    counts = _histogram(reference / scale, image / scale, searchrad / scale)
    if not counts.any():
        return np.zeros(2)
    return scale * np.array(_peak(counts)) - searchrad


def _histogram(reference: F8, image: F8, radius: float) -> F8:
    """Counts of differences image - reference in bins of 1, shape (2 ceil(R) + 1,) * 2, rows along y."""
    half = math.ceil(radius)
    edges = np.linspace(-half - 0.5, half + 0.5, 2 * half + 2)
    counts = np.zeros((2 * half + 1,) * 2)
    for start in range(0, len(image), _BLOCK):
        block = image[start : start + _BLOCK]
        i, j, _ = _pairs(block, reference, (radius + 0.5) * math.sqrt(2.0))
        apart = block[i] - reference[j]
        apart = apart[((apart < radius + 0.5) & (apart >= -radius - 0.5)).all(axis=1)]
        counts += np.histogram2d(apart[:, 1], apart[:, 0], bins=[edges, edges])[0]
    return counts


def _peak(counts: F8) -> tuple[float, float]:
    """Position (x, y) of the highest bin, refined by a paraboloid through the occupied bins of a 5 x 5 box."""
    ny, nx = counts.shape
    row, column = (int(i) for i in np.unravel_index(np.argmax(counts), counts.shape))
    if np.count_nonzero(counts) == 1:
        return float(column), float(row)
    (y0, y1), (x0, x1) = _box(row, ny), _box(column, nx)
    if row in (y0, y1 - 1) or column in (x0, x1 - 1):
        return float(column), float(row)
    (y0, y1), (x0, x1) = (max(0, y1 - _BOX) if y1 == ny else y0, y1), (max(0, x1 - _BOX) if x1 == nx else x0, x1)
    y, x = (v.ravel() for v in np.mgrid[1 : y1 - y0 + 1, 1 : x1 - x0 + 1].astype(np.float64))
    values = counts[y0:y1, x0:x1].ravel()
    vertex = _vertex(y[values > 0], x[values > 0], values[values > 0])
    if vertex is not None:
        yv, xv = vertex[0] + y0 - 1, vertex[1] + x0 - 1
        if x0 <= xv <= x1 - 1 and y0 <= yv <= y1 - 1:
            return xv, yv
    total = values.sum()
    return float(x0 + x @ values / total - 1), float(y0 + y @ values / total - 1)


def _box(middle: int, size: int) -> tuple[int, int]:
    """Five bins around one, cut at the histogram's rim."""
    low = max(0, middle - _BOX // 2)
    return low, min(size, low + _BOX)


def _vertex(y: F8, x: F8, values: F8) -> tuple[float, float] | None:
    """Where the paraboloid through some bins is highest; None if there are too few bins or it has no maximum."""
    if len(values) < 6:
        return None
    _, cx, cy, cxy, cxx, cyy = np.linalg.lstsq(np.column_stack([np.ones_like(x), x, y, x * y, x * x, y * y]), values)[0]
    det = 4 * cyy * cxx - cxy**2
    if det <= 0 or (cxx > 0 and cyy >= 0) or (cxx >= 0 and cyy > 0):
        return None
    return float((cx * cxy - 2 * cy * cxx) / det), float((cy * cxy - 2 * cyy * cx) / det)
