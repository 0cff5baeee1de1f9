"""Outlines on the sky: S_REGION strings, corners and the union of many outlines (spec image3 §7.2, §7.7)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streamimg3.sky.wcs import Wcs

if TYPE_CHECKING:
    import shapely

F8 = NDArray[np.float64]
_MIN_STEP = 0.05  # mosaic pixels between kept vertices (spec §7.7)
_MIN_TURN = 1e-6  # rad


def parse(s_region: str) -> list[F8]:
    """Return the polygons of an S_REGION string, each ``(n, 2)`` with right ascension and declination in degrees.

    Examples
    --------
    >>> [p.shape for p in parse("POLYGON ICRS  1 2 3 4 5 6")]
    [(3, 2)]
    """
    parts = [p for p in re.split(r"POLYGON\s+(?:ICRS)?", s_region, flags=re.IGNORECASE) if p.strip()]
    return [np.array(p.split(), dtype=float).reshape(-1, 2) for p in parts]


def s_region(ra: F8, dec: F8) -> str:
    """Format one outline as S_REGION text, 9 decimals of a degree.

    Examples
    --------
    >>> s_region(np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 0.0]))
    'POLYGON ICRS  1.000000000 0.000000000 2.000000000 1.000000000 3.000000000 0.000000000'
    """
    return "POLYGON ICRS  " + " ".join(f"{v:.9f}" for v in np.column_stack([ra % 360.0, dec]).ravel())


def outline(wcs: Wcs) -> str:
    """Return the S_REGION of an image: the corners of its bounding box, or of the array where it has none."""
    ny, nx = wcs.shape
    (y0, y1), (x0, x1) = wcs.bounds or ((-0.5, ny - 0.5), (-0.5, nx - 0.5))
    ra, dec = wcs.to_sky(np.array([y0, y1, y1, y0]), np.array([x0, x0, x1, x1]), bounded=False)
    return s_region(ra, dec)


def in_pixels(polygons: Sequence[F8], wcs: Wcs) -> list[F8]:
    """Return rows and columns of the vertices of polygons on the sky; a WCS takes long to call, so it is called once."""
    if not polygons:
        return []
    yx = np.column_stack(wcs.to_pixel(*np.concatenate(polygons).T))
    return np.split(yx, np.cumsum([len(polygon) for polygon in polygons])[:-1])


def union(regions: list[str], wcs: Wcs) -> str | None:
    """Return the outline of many outlines together, cut by the mosaic's own (planar union in mosaic pixels).

    Parameters
    ----------
    regions : list of str
        S_REGION of every exposure.
    wcs : Wcs
        Frame of the mosaic.

    Returns
    -------
    str or None
        One POLYGON per disjoint part, two spaces between; None where nothing overlaps the mosaic.
    """
    import shapely

    shapes = []
    for yx in in_pixels([polygon for region in regions for polygon in parse(region)], wcs):
        if np.isfinite(yx).all():  # not beyond the horizon of the mosaic's projection
            shapes.append(shapely.make_valid(shapely.Polygon(yx[:, ::-1])))
    ny, nx = wcs.shape
    (y0, y1), (x0, x1) = wcs.bounds or ((-0.5, ny - 0.5), (-0.5, nx - 0.5))
    rim = shapely.Polygon([(x0, y0), (x0, y1), (x1, y1), (x1, y0)])
    texts = []
    for part in _polygons(shapely.union_all(shapes)):
        for cut in _polygons(shapely.Polygon(part).intersection(rim)):
            texts.append(s_region(*wcs.to_sky(cut[:, 1], cut[:, 0], bounded=False)))
    return "  ".join(texts) or None


def _polygons(geometry: shapely.Geometry) -> list[F8]:
    """Return the outer rings of the polygons in a geometry, simplified; holes are dropped."""
    import shapely

    parts = [p for p in shapely.get_parts(geometry) if p.geom_type == "Polygon" and not p.is_empty]
    return [_simplify(np.asarray(p.exterior.coords)[:-1]) for p in parts]


def _simplify(xy: F8) -> F8:
    """Drop vertices that hardly differ from the one before, and those where the outline does not turn."""
    before, after = xy - np.roll(xy, 1, axis=0), np.roll(xy, -1, axis=0) - xy
    turn = np.arctan2(after[:, 1], after[:, 0]) - np.arctan2(before[:, 1], before[:, 0])
    turn = np.abs((turn + np.pi) % (2 * np.pi) - np.pi)
    kept: F8 = xy[(np.abs(before) >= _MIN_STEP).any(axis=1) & (turn >= _MIN_TURN)]
    return kept
