"""Pixel maps: where each pixel of an exposure falls in the mosaic, exact or as a spline on a coarse grid.

A WCS costs three times the drizzle itself; sampled on a coarse grid once per exposure and interpolated by a bicubic
spline it costs next to nothing and workers need neither gwcs nor asdf.  The error is measured at the centres of the
grid's cells, where it is largest, and the grid is refined until it is below the bound; a WCS that is not smooth
enough ends as an exact map.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.geometry import Box
from streamimg3.sky import footprint
from streamimg3.sky.scan import row_limits
from streamimg3.sky.wcs import Wcs

F8 = NDArray[np.float64]
Nodes = tuple[F8, F8]
BOUND = 1e-5  # mosaic pixels
_STEPS = (32.0, 16.0, 8.0, 4.0)
_POINTS = 1 << 16  # that go through a WCS object at a time: its temporaries take about 115 bytes each


@dataclass(frozen=True)
class Sampling:
    """How a map is made: ``step`` None = coarse grid with measured error; 1 = exact; > 1 = that spacing, unchecked.

    ``order`` (1 or 3) is the spline's degree where ``step`` is given; the measured grid is always bicubic.
    """

    step: float | None = None
    order: int = 1


@dataclass(frozen=True)
class PixelMap:
    """The map of one exposure into one mosaic.

    Parameters
    ----------
    valid : Box
        Pixels inside the WCS's bounding box; the map is NaN elsewhere.
    knots : tuple of ndarray
        Spline knots along y and x; empty for an exact map.
    coefficients : ndarray of float64, shape (2, n, m)
        Spline coefficients of the output row and column; shape (2, 0, 0) for an exact map.
    nodes : tuple of ndarray
        Rows and columns of the coarse grid on which ``extent`` is given.
    extent : ndarray of float64, shape (2, n, m)
        Output row and column at the nodes (for finding which pixels touch a tile).
    limits : ndarray of int32, shape (ny, 2)
        First and last column of each row that take part (spec §7.5); last < first = none.
    error : float
        Largest measured error in mosaic pixels; 0 for an exact map, NaN where it was not measured.
    order : int
        Degree of the spline.
    """

    valid: Box
    knots: tuple[F8, F8]
    coefficients: F8
    nodes: tuple[F8, F8]
    extent: F8
    limits: NDArray[np.int32]
    error: float
    order: int

    @property
    def exact(self) -> bool:
        """Whether pixels are mapped through the WCS itself."""
        return self.coefficients.size == 0

    @property
    def nbytes(self) -> int:
        """Bytes that the map takes."""
        return sum(a.nbytes for a in (*self.knots, self.coefficients, *self.nodes, self.extent, self.limits))

    def around(self, reach: float) -> Box:
        """Return a box of mosaic pixels that holds all the exposure can touch (unbounded where the map has gaps)."""
        low = [min(float(_cell_range(plane)[0].min()), 1e9) for plane in self.extent]
        high = [max(float(_cell_range(plane)[1].max()), -1e9) for plane in self.extent]
        clipped = [min(max(v, -1e9), 1e9) for v in (*low, *high)]
        pad = reach + 1.0
        y0, x0, y1, x1 = clipped
        return Box(math.floor(y0 - pad), math.floor(x0 - pad), math.ceil(y1 + pad) + 1, math.ceil(x1 + pad) + 1)

    def touching(self, box: Box, reach: float) -> list[Box]:
        """Return the input boxes, one for each row of grid cells, whose pixels may touch a box of the mosaic.

        Parameters
        ----------
        box : Box
            Mosaic pixels.
        reach : float
            Half width of a pixel's footprint there.
        """
        pad = reach + 1.0
        y, x = (_cell_range(plane) for plane in self.extent)
        hit = (y[1] >= box.y0 - pad) & (y[0] <= box.y1 - 1 + pad) & (x[1] >= box.x0 - pad) & (x[0] <= box.x1 - 1 + pad)
        rows, cols = self.nodes
        ny, nx = self.limits.shape[0], self.valid.x1
        found = []
        for r in np.flatnonzero(hit.any(axis=1)):
            at = np.flatnonzero(hit[r])
            end = rows[r + 1] + 1 if r + 2 == rows.size else rows[r + 1]  # the last cell owns its upper edge
            y0, y1 = max(0, math.ceil(rows[r])), min(ny, math.ceil(end))
            x0, x1 = max(0, math.floor(cols[at[0]])), min(nx, math.floor(cols[at[-1] + 1]) + 1)
            used = self.limits[y0:y1][self.limits[y0:y1, 1] >= self.limits[y0:y1, 0]]
            if used.size:
                x0, x1 = max(x0, int(used[:, 0].min())), min(x1, int(used[:, 1].max()) + 1)
                found += [Box(y0, x0, y1, x1)] if x0 < x1 else []
        return found

    def to_bytes(self) -> bytes:
        """Return the map as bytes (NumPy's npz, no pickles)."""
        stream = io.BytesIO()
        np.savez(
            stream, valid=self.valid.as_tuple(), ky=self.knots[0], kx=self.knots[1], coefficients=self.coefficients,
            ny=self.nodes[0], nx=self.nodes[1], extent=self.extent, limits=self.limits, error=self.error, order=self.order,
        )  # fmt: skip
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> PixelMap:
        """Return the map that :meth:`to_bytes` wrote."""
        with np.load(io.BytesIO(data), allow_pickle=False) as z:
            return cls(
                Box(*(int(v) for v in z["valid"])), (z["ky"], z["kx"]), z["coefficients"], (z["ny"], z["nx"]),
                z["extent"], z["limits"], float(z["error"]), int(z["order"]),
            )  # fmt: skip


def _cell_range(plane: F8) -> tuple[F8, F8]:
    """Smallest and largest corner value of every cell of a node grid; a cell with a NaN corner spans everything."""
    corners = np.stack([plane[:-1, :-1], plane[:-1, 1:], plane[1:, :-1], plane[1:, 1:]])
    unknown = np.isnan(corners).any(axis=0)
    return np.where(unknown, -np.inf, corners.min(axis=0)), np.where(unknown, np.inf, corners.max(axis=0))


class _Mapper:
    """The exact map between two WCS, by pixel; world coordinates in between as the reference does it."""

    def __init__(self, source: Wcs, target: Wcs) -> None:
        self.source, self.target = source, target

    def at(self, y: F8, x: F8, bounded: bool = True) -> tuple[F8, F8]:
        """Output rows and columns of input positions."""
        return self.target.to_pixel(*self.source.to_sky(y, x, bounded))

    def on_grid(self, nodes: Nodes, bounded: bool = True) -> tuple[F8, F8]:
        """Output rows and columns on a grid of input rows and columns."""
        out = np.empty((2, nodes[0].size, nodes[1].size))
        step = max(1, _POINTS // nodes[1].size)
        for j in range(0, nodes[0].size, step):
            y, x = np.meshgrid(nodes[0][j : j + step], nodes[1], indexing="ij")
            out[:, j : j + step] = self.at(y, x, bounded)
        return out[0], out[1]


def _edge_nodes(valid: Box, step: float, fewest: int) -> Nodes:
    """Rows and columns from edge to edge of a box, about ``step`` pixels apart."""

    def along(lo: int, hi: int) -> F8:
        return np.linspace(lo - 0.5, hi - 0.5, max(fewest, math.ceil((hi - lo) / step) + 1))

    return along(valid.y0, valid.y1), along(valid.x0, valid.x1)


def exact_window(source: Wcs, target: Wcs, box: Box) -> tuple[F8, F8]:
    """Return output rows and columns of every pixel of an input box, through the WCS themselves.

    Raises
    ------
    InputError
        If a WCS cannot be read.
    """
    y, x = np.mgrid[box.y0 : box.y1, box.x0 : box.x1].astype(np.float64)
    return _Mapper(source, target).at(y, x)


def pixel_map(source: Wcs, target: Wcs, sampling: Sampling) -> PixelMap:
    """Make the map of an exposure into a mosaic.

    Parameters
    ----------
    source, target : Wcs
        WCS of the exposure and of the mosaic.
    sampling : Sampling
        Exact, checked coarse grid, or a spacing of the user's choice.
    """
    mapper = _Mapper(source, target)
    _require_finite(source)
    valid = _valid_box(source)
    scan = _scan_box(source).intersect(valid) or valid
    found = _checked(mapper, valid) if sampling.step is None else None
    if sampling.step is not None and sampling.step > 1 and max(valid.shape) > 10:
        found = _spaced(mapper, valid, sampling)
    found = found or _exact(mapper, valid)
    limits = row_limits(lambda y, x: _lookup(found, mapper, y, x), source.shape, scan, target.shape)
    return replace(found, limits=limits)


def outline_maps(outlines: Sequence[tuple[str, tuple[int, int]]], target: Wcs) -> Iterator[PixelMap]:
    """Yield what the corners alone tell of maps: which tiles an exposure touches, and about how large its map is.

    Parameters
    ----------
    outlines : sequence of (str, (int, int))
        S_REGION of each exposure, its four vertices in the order in which :func:`footprint.outline` writes them; rows and
        columns of the exposure.
    target : Wcs
        WCS of the mosaic.
    """
    polygons = [np.concatenate(footprint.parse(region)) for region, _ in outlines]
    for yx, (_, shape) in zip(footprint.in_pixels(polygons, target), outlines, strict=True):
        yield _outline_map(yx, shape)


def _outline_map(vertices: F8, shape: tuple[int, int]) -> PixelMap:
    (ny, nx), (y, x) = shape, vertices.T
    if y.size == 4:
        extent = np.stack([v[[0, 3, 1, 2]].reshape(2, 2) for v in (y, x)])
    else:
        lows, highs = (y.min(), x.min()), (y.max(), x.max())
        extent = np.stack(np.meshgrid((lows[0], highs[0]), (lows[1], highs[1]), indexing="ij"))
    edges = tuple(np.array([-0.5, n - 0.5]) for n in shape)
    # Of the usual size, but in little memory: there may be very many of these.
    usual = np.broadcast_to(np.float64(0.0), (2, *(math.ceil(n / _STEPS[0]) + 4 for n in shape)))
    limits = np.broadcast_to(np.array([0, nx - 1], np.int32), (ny, 2))
    knots = (np.zeros(usual.shape[1] + 4), np.zeros(usual.shape[2] + 4))
    return PixelMap(Box(0, 0, ny, nx), knots, usual, (edges[0], edges[1]), extent, limits, math.nan, 3)


def _require_finite(source: Wcs) -> None:
    """Refuse a WCS that gives no position at all."""
    v = _valid_box(source)
    ra, dec = source.to_sky(*np.meshgrid([v.y0, v.y1 - 1.0], [v.x0, v.x1 - 1.0], indexing="ij"), bounded=False)
    if not (np.isfinite(ra) & np.isfinite(dec)).any():
        raise InputError("its WCS gives no finite position: assign a WCS to it, or leave it out")


def _valid_box(source: Wcs) -> Box:
    """Pixels whose centres lie in the bounding box."""
    ny, nx = source.shape
    if source.bounds is None:
        return Box(0, 0, ny, nx)
    (y0, y1), (x0, x1) = source.bounds
    rows, cols = (
        (max(0, math.ceil(y0)), min(ny, math.floor(y1) + 1)),
        (max(0, math.ceil(x0)), min(nx, math.floor(x1) + 1)),
    )
    if rows[0] >= rows[1] or cols[0] >= cols[1]:
        raise InputError("the bounding box of its WCS holds no pixel: mend the WCS, or leave the exposure out")
    return Box(rows[0], cols[0], rows[1], cols[1])


def _scan_box(source: Wcs) -> Box:
    """Pixels that drizzle is told to scan (spec §7.4): the bounding box rounded half up."""
    ny, nx = source.shape
    if source.bounds is None:
        return Box(0, 0, ny, nx)
    (y0, y1), (x0, x1) = source.bounds
    low_y, low_x = max(0, int(y0 + 0.5)), max(0, int(x0 + 0.5))
    high_y, high_x = max(low_y, min(ny - 1, int(y1 + 0.5))), max(low_x, min(nx - 1, int(x1 + 0.5)))
    return Box(low_y, low_x, high_y + 1, high_x + 1)


def _spline(nodes: Nodes, values: tuple[F8, F8], order: int):  # type: ignore[no-untyped-def]
    from scipy.interpolate import RectBivariateSpline

    return [RectBivariateSpline(*nodes, v, kx=order, ky=order) for v in values]


def _packed(splines, valid: Box, nodes, values, error: float, order: int) -> PixelMap:  # type: ignore[no-untyped-def]
    """The map that SciPy's splines describe (row limits still to come)."""
    ky, kx, _ = splines[0].tck
    shape = (ky.size - order - 1, kx.size - order - 1)
    coefficients = np.stack([s.tck[2].reshape(shape) for s in splines])
    rows, cols = (_thinned(n) for n in nodes)
    extent = np.stack([v[np.ix_(rows, cols)] for v in values])
    nodes = nodes[0][rows], nodes[1][cols]
    return PixelMap(valid, (ky, kx), coefficients, nodes, extent, np.zeros((0, 2), np.int32), error, order)


def _thinned(nodes: F8) -> NDArray[np.int64]:
    """Indices of nodes that are enough to find which pixels touch a tile: about 32 pixels apart, with both ends."""
    span = nodes[-1] - nodes[0]
    return np.unique(
        np.linspace(0, nodes.size - 1, min(nodes.size, max(2, math.ceil(span / _STEPS[0]) + 1))).astype(np.int64)
    )


def _checked(mapper: _Mapper, valid: Box) -> PixelMap | None:
    """Bicubic map whose error at cell centres is below the bound, or None."""
    for step in _STEPS:
        nodes = _edge_nodes(valid, step, 4)
        values = mapper.on_grid(nodes, bounded=False)
        if not (np.isfinite(values[0]).all() and np.isfinite(values[1]).all()):
            return None
        splines = _spline(nodes, values, 3)
        centres = 0.5 * (nodes[0][1:] + nodes[0][:-1]), 0.5 * (nodes[1][1:] + nodes[1][:-1])
        truth = mapper.on_grid(centres, bounded=False)
        error = float(max(np.abs(s(*centres) - t).max() for s, t in zip(splines, truth, strict=True)))
        if error <= BOUND:
            return _packed(splines, valid, nodes, values, error, 3)
    return None


def _spaced(mapper: _Mapper, valid: Box, sampling: Sampling) -> PixelMap | None:
    """Map on the reference's grid of a given spacing (spec §7.3); None where a node has no coordinates."""
    step = sampling.step or 1.0

    def along(lo: int, hi: int) -> F8:
        return np.linspace(lo, hi - 1, max(math.ceil((hi - lo) / step), min(10, hi - lo)))

    nodes = along(valid.y0, valid.y1), along(valid.x0, valid.x1)
    if min(n.size for n in nodes) <= sampling.order:
        return None
    values = mapper.on_grid(nodes)
    if not (np.isfinite(values[0]).all() and np.isfinite(values[1]).all()):
        return None
    return _packed(_spline(nodes, values, sampling.order), valid, nodes, values, math.nan, sampling.order)


def _exact(mapper: _Mapper, valid: Box) -> PixelMap:
    """An exact map; its coarse nodes only tell which pixels touch a tile."""
    nodes = _edge_nodes(valid, _STEPS[0], 2)
    values = mapper.on_grid(nodes, bounded=False)
    none = np.zeros(0)
    return PixelMap(
        valid, (none, none), np.zeros((2, 0, 0)), nodes, np.stack(values), np.zeros((0, 2), np.int32), 0.0, 3
    )


def _lookup(found: PixelMap, mapper: _Mapper, y: NDArray[np.int64], x: NDArray[np.int64]) -> tuple[F8, F8]:
    """Map values at whole pixels, NaN outside the valid box."""
    v = found.valid
    inside = (y >= v.y0) & (y < v.y1) & (x >= v.x0) & (x < v.x1)
    if found.exact:
        out_y, out_x = mapper.at(y.astype(float), x.astype(float))
    else:
        out_y, out_x = (_pairs(found, k, y, x) for k in (0, 1))
    return np.where(inside, out_y, np.nan), np.where(inside, out_x, np.nan)


def _pairs(found: PixelMap, k: int, y: NDArray[np.int64], x: NDArray[np.int64]) -> F8:
    """Evaluate a tensor-product spline at pairs of points."""
    from scipy.interpolate import BSpline

    by, bx = (
        BSpline.design_matrix(np.clip(v.ravel().astype(float), t[0], t[-1]), t, found.order).toarray()
        for v, t in zip((y, x), found.knots, strict=True)
    )
    values: F8 = np.einsum("pi,ij,pj->p", by, found.coefficients[k], bx).reshape(np.shape(y))
    return values
