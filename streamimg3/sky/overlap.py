"""Where exposures overlap: outlines on the sky, their common parts, and those as polygons of whole pixels (spec image3 §5.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.geometry import Box
from streamimg3.sky import flat_overlap
from streamimg3.sky.wcs import Wcs

if TYPE_CHECKING:
    from spherical_geometry.polygon import SphericalPolygon

F8 = NDArray[np.float64]
Ring = tuple[F8, F8]  # right ascension and declination of a closed outline, degrees
_TIE = 1e-5  # pixels: what lies this close to half a pixel may be rounded either way


@dataclass(frozen=True)
class PixelPolygon:
    """A closed polygon with whole-numbered vertices (row, column), none negative; ``shift`` brings them back in place."""

    vertices: tuple[tuple[int, int], ...]
    shift: tuple[int, int]

    @classmethod
    def rounded(cls, y: F8, x: F8) -> PixelPolygon:
        """Round positions to pixels, half to even, after moving negative ones up; the move is rounded by itself.

        Parameters
        ----------
        y, x : ndarray of float64
            Rows and columns of a closed outline.

        Examples
        --------
        >>> PixelPolygon.rounded(np.array([-0.5, 2.5, -0.5]), np.array([3.5, 4.5, 3.5]))
        PixelPolygon(vertices=((0, 4), (3, 4), (0, 4)), shift=(0, 0))
        """
        dy, dx = min(0.0, float(y.min())), min(0.0, float(x.min()))
        rows, columns = np.rint(y - dy).astype(int).tolist(), np.rint(x - dx).astype(int).tolist()
        return cls(tuple(zip(rows, columns, strict=True)), (round(dy), round(dx)))

    def box(self, shape: tuple[int, int]) -> Box | None:
        """Return the rows and columns of an image that it reaches, None where there are none."""
        y, x = zip(*self.vertices, strict=True)
        return Box(min(y), min(x), max(y) + 1, max(x) + 1).shift(*self.shift).intersect(Box.of_shape(shape))


@dataclass(frozen=True)
class Overlap:
    """The part of an exposure that an item (one exposure, or several that share one sky level) covers too."""

    exposure: int
    item: int
    polygons: tuple[PixelPolygon, ...]


def overlaps(
    wcs: Callable[[int], Wcs], names: Sequence[str], items: Sequence[Sequence[int]], stepsize: int | None
) -> Iterator[Overlap]:
    """Yield the overlaps of every exposure with every item but its own, by exposure, then by item.

    Parameters
    ----------
    wcs : callable
        Gives the WCS of an exposure.
    names : sequence of str
        What the exposures are called in messages.
    items : sequence of sequences of int
        Exposures that belong together; every exposure is in one of them.
    stepsize : int or None
        Largest distance in pixels between the vertices of an outline; None = the corners only.

    Raises
    ------
    InputError
        If a WCS gives no position for a corner, or no pixel for a position within the image.
    """
    owner = {exposure: k for k, members in enumerate(items) for exposure in members}
    outlines = [_outline(wcs(i), name, stepsize) for i, name in enumerate(names)]
    for i, near in enumerate(_neighbours(outlines)):
        others = sorted((j for j in near if owner[j] != owner[i]), key=lambda j: owner[j])
        shared = _polygons(wcs, outlines, i, others)
        for k, parts in groupby(others, key=lambda j: owner[j]):
            polygons = tuple(polygon for j in parts for polygon in shared[j])
            if polygons:
                yield Overlap(i, k, polygons)


def _polygons(
    wcs: Callable[[int], Wcs], outlines: Sequence[_Outline], exposure: int, others: Sequence[int]
) -> dict[int, list[PixelPolygon]]:
    """Common parts of an exposure with others as polygons of its pixels.

    What is found the quick way differs from what the geometry package finds by rounding errors; where one of those could
    move a vertex to the next pixel, or the quick way is in doubt, the package decides.
    """
    own = outlines[exposure]
    quick = {j: _quick(own, outlines[j]) for j in others}
    known = {j: rings for j, rings in quick.items() if rings is not None}
    found: dict[int, list[PixelPolygon]] = {}
    if any(known.values()):
        places = iter(_in_pixels(wcs(exposure), [ring for rings in known.values() for ring in rings], own))
        for j, rings in known.items():
            corners = [next(places) for _ in rings]
            if not any(_doubtful(y) or _doubtful(x) for y, x in corners):
                found[j] = [PixelPolygon.rounded(y, x) for y, x in corners]
    for j in others:
        if j not in found and quick[j] != []:
            corners = _in_pixels(wcs(exposure), _common(own, outlines[j]), own)
            found[j] = [PixelPolygon.rounded(y, x) for y, x in corners]
    return {j: found.get(j, []) for j in others}


def _doubtful(places: F8) -> bool:
    """Whether rounding errors could decide which pixels these become (see `PixelPolygon.rounded`)."""
    shift = min(0.0, float(places.min()))
    rounded = np.append(places - shift, shift)
    return bool((np.abs(rounded - np.floor(rounded) - 0.5) < _TIE).any())


def border(shape: tuple[int, int], stepsize: int | None) -> tuple[F8, F8]:
    """Return rows and columns of the closed outline of an image along the outer edges of its pixels.

    Examples
    --------
    >>> [v.tolist() for v in border((2, 3), None)]
    [[-0.5, -0.5, 1.5, 1.5, -0.5], [-0.5, 2.5, 2.5, -0.5, -0.5]]
    """
    ny, nx = shape
    along = [2 if stepsize is None else max(2, math.ceil((n + 1.0) / stepsize)) for n in shape]
    y, x = np.linspace(-0.5, ny - 0.5, along[0])[1:-1], np.linspace(-0.5, nx - 0.5, along[1])
    low_x, low_y = np.full(x.size, -0.5), np.full(y.size, -0.5)
    rows = np.concatenate([low_x, y, low_x + ny, y[::-1], low_x[:1]])
    columns = np.concatenate([x, low_y + nx, x[::-1], low_y, x[:1]])
    return rows, columns


@dataclass(frozen=True)
class _Outline:
    """Corners of an exposure's outline as unit vectors and as a closed ring, and the cap that holds it (radians)."""

    name: str
    corners: F8
    ring: Ring
    middle: F8
    radius: float

    @cached_property
    def polygon(self) -> SphericalPolygon:
        """The outline for the geometry package."""
        from spherical_geometry.polygon import SphericalPolygon

        return SphericalPolygon.from_radec(*self.ring)


def _outline(wcs: Wcs, name: str, stepsize: int | None) -> _Outline:
    ra, dec = (np.array(v) for v in wcs.to_sky(*border(wcs.shape, stepsize), bounded=False))
    if not np.isfinite([ra, dec]).all():
        raise InputError(f"{name}: the WCS gives no position for the edge of the image: mend it or leave the file out")
    ra[-1], dec[-1] = ra[0], dec[0]
    a, d = np.deg2rad(ra[:-1]), np.deg2rad(dec[:-1])
    corners = np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], axis=-1)
    middle = corners.sum(axis=0) / np.linalg.norm(corners.sum(axis=0))
    return _Outline(name, corners, (ra, dec), middle, float(_distance(corners, middle).max()))


def _distance(vectors: F8, point: F8) -> F8:
    """Angles between unit vectors and one other, radians."""
    angle: F8 = 2 * np.arcsin(np.clip(np.linalg.norm(vectors - point, axis=1) / 2, 0, 1))
    return angle


def _neighbours(outlines: Sequence[_Outline]) -> Iterator[list[int]]:
    """For each outline those whose caps touch its own; all others have nothing in common with it."""
    middle = np.array([o.middle for o in outlines])
    radius = np.array([o.radius for o in outlines])
    for i, outline in enumerate(outlines):
        near = _distance(middle, outline.middle) <= 1.001 * (radius + outline.radius)
        near[i] = False
        yield np.flatnonzero(near).tolist()


def _common(one: _Outline, other: _Outline) -> list[Ring]:
    """The common part of two outlines, as part of the first, by the geometry package.

    Outlines that are nearly the same can break it; then the common part is all of the first.
    """
    from spherical_geometry.polygon import MalformedPolygonError

    try:
        common = one.polygon.intersection(other.polygon)
    except MalformedPolygonError:
        common = one.polygon
    if common.area() == 0.0:
        return []
    return [(np.asarray(ra), np.asarray(dec)) for ra, dec in common.to_radec() if len(ra) >= 4]


def _quick(one: _Outline, other: _Outline) -> list[Ring] | None:
    """The same without the package, None where that leaves a doubt."""
    parts = flat_overlap.intersection(one.corners, other.corners)
    if parts is None:
        return None
    return [
        (np.rad2deg(np.arctan2(y, x)) % 360.0, np.rad2deg(np.arctan2(z, np.hypot(x, y))))
        for x, y, z in map(np.transpose, parts)
    ]


def _in_pixels(wcs: Wcs, rings: Sequence[Ring], outline: _Outline) -> list[tuple[F8, F8]]:
    """Rows and columns of outlines in an exposure; all positions go through the WCS together."""
    if not rings:
        return []
    y, x = wcs.to_pixel(np.concatenate([ra for ra, _ in rings]), np.concatenate([dec for _, dec in rings]))
    if not np.isfinite([y, x]).all():
        raise InputError(
            f"{outline.name}: the WCS gives no pixel for a position in the image: mend it or leave the file out"
        )
    ends = np.cumsum([len(ra) for ra, _ in rings])[:-1]
    return list(zip(np.split(y, ends), np.split(x, ends), strict=True))
