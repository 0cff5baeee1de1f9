"""The background of an image as a mesh of box statistics, and maps of it for any window.

Spec image3 §4.3 and §9.2.  The image is cut in boxes from pixel (0, 0) on; boxes at the upper ends may be incomplete.
Each gives a clipped median and standard deviation; too poor ones are filled from their neighbours, the two small
meshes are median-filtered, and cubic splines through them give maps that depend on no tiling.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.clip import Bands, Clipped, clip_image, clip_single, clip_vector
from streamimg3.kernels.compiled import loop

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
Bool = NDArray[np.bool_]

LEAST_FRACTION = 0.9  # a box needs more survivors than this fraction of the pixels of a whole box
NEIGHBOURS = 10  # good boxes that a poor one is filled from
_BAND_ROWS = 128


@dataclass(frozen=True, eq=False)
class BoxStatistics:
    """Statistics of a block of boxes.

    Parameters
    ----------
    median, rms : ndarray of float32, shape (ny, nx)
        Clipped median and population standard deviation, in the image's unit; NaN for a box without good pixels.
    count : ndarray of int64, shape (ny, nx)
        Number of pixels that survive.
    """

    median: F4
    rms: F4
    count: I8

    @classmethod
    def stack(cls, rows: Sequence[BoxStatistics]) -> BoxStatistics:
        """Return the statistics of blocks that follow one another upwards."""
        return cls(*(np.concatenate([getattr(row, name) for row in rows]) for name in ("median", "rms", "count")))


def clamp_boxsize(boxsize: int, shape: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of a box: no side is longer than the image's."""
    return min(boxsize, shape[0]), min(boxsize, shape[1])


def box_statistics(data: F4, bad: Bool, boxsize: tuple[int, int]) -> BoxStatistics:
    """Return the statistics of the boxes of a block of an image.

    Parameters
    ----------
    data : ndarray of float32, shape (ny, nx)
        Pixels; NaN and infinities are left out.  The block starts on a box's first pixel, and a box that is cut off
        at its upper ends is one that the image itself cuts off there.
    bad : ndarray of bool, shape (ny, nx)
        True = leave the pixel out.
    boxsize : tuple of int
        Rows and columns of a box.

    Notes
    -----
    Holds one box and about four copies of it at a time, beyond the block itself.
    """
    by, bx = boxsize
    shape = -(-data.shape[0] // by), -(-data.shape[1] // bx)
    found = BoxStatistics(np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, np.int64))
    for j, i in np.ndindex(shape):
        part = np.s_[j * by : (j + 1) * by, i * bx : (i + 1) * bx]
        found.median[j, i], found.rms[j, i], found.count[j, i] = _one_box(data[part], bad[part], boxsize)
    return found


def _one_box(data: F4, bad: Bool, boxsize: tuple[int, int]) -> Clipped:
    """Clip one box; the reference walks an incomplete one column by column, which float32 sums can tell."""
    values = np.where(bad, np.float32(np.nan), data)
    short = values.shape[0] < boxsize[0], values.shape[1] < boxsize[1]
    if all(short):
        return clip_single(values.ravel())
    return clip_vector(values.ravel(order="F" if any(short) else "C"))


@dataclass(frozen=True, eq=False)
class Mesh:
    """The background of an image and its noise, one value per box, ready to be drawn for any window.

    Parameters
    ----------
    median, rms : ndarray of float32, shape (ny, nx)
        Filled and filtered meshes, without NaN, in the image's unit.
    boxsize : tuple of int
        Rows and columns of a box, in pixels.
    shape : tuple of int
        Rows and columns of the image.
    """

    median: F4
    rms: F4
    boxsize: tuple[int, int]
    shape: tuple[int, int]
    _splines: tuple[F8, F8] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_splines", (_coefficients(self.median), _coefficients(self.rms)))

    def window(self, y0: int, x0: int, y1: int, x1: int) -> tuple[F4, F4]:
        """Return the background and its noise on rows ``y0..y1`` and columns ``x0..x1`` (upper ends excluded).

        Returns
        -------
        background, rms : ndarray of float32, shape (y1 - y0, x1 - x0)
            Cubic splines through the boxes' centres, within the range of the mesh; flagged pixels are not treated
            apart (the reference sets both maps to 0 there).  Any window gives the same bits.

        Raises
        ------
        ValueError
            If the window is empty or reaches beyond the image.
        """
        return self.background(y0, x0, y1, x1), self.noise(y0, x0, y1, x1)

    def background(self, y0: int, x0: int, y1: int, x1: int) -> F4:
        """Return the first map of :meth:`window` alone."""
        return self._draw(self._splines[0], self.median, (y0, x0, y1, x1))

    def noise(self, y0: int, x0: int, y1: int, x1: int) -> F4:
        """Return the second map of :meth:`window` alone."""
        return self._draw(self._splines[1], self.rms, (y0, x0, y1, x1))

    def _draw(self, coefficients: F8, mesh: F4, window: tuple[int, int, int, int]) -> F4:
        y0, x0, y1, x1 = window
        if not (0 <= y0 < y1 <= self.shape[0] and 0 <= x0 < x1 <= self.shape[1]):
            raise ValueError(f"window {window} is empty or outside an image of {self.shape} pixels")
        if self.boxsize == (1, 1):
            return mesh[y0:y1, x0:x1].copy()
        rows, row_weights = _taps(y0, y1, self.boxsize[0], mesh.shape[0])
        cols, col_weights = _taps(x0, x1, self.boxsize[1], mesh.shape[1])
        turns = np.flatnonzero((np.diff(cols, axis=0) != 0).any(axis=1)) + 1
        ends = np.append(turns, x1 - x0)  # between two ends the same nodes are in use
        out = np.empty((y1 - y0, x1 - x0), np.float32)
        _evaluate(coefficients, (mesh.min(), mesh.max()), rows, row_weights, cols, col_weights, ends, out)
        return out


def solve_mesh(found: BoxStatistics, boxsize: tuple[int, int], shape: tuple[int, int]) -> Mesh | None:
    """Turn the statistics of all boxes into a mesh.

    A box is left out if its survivors are no more than 0.9 of a whole box, which nearly always removes the incomplete
    ones at the image's edge; the gaps are filled by inverse distance from the (up to ten) nearest good boxes, and a
    median filter of 3 × 3 boxes follows.

    Returns
    -------
    Mesh or None
        None if every box is left out: use :func:`whole_mesh`.
    """
    poor = found.count <= LEAST_FRACTION * (boxsize[0] * boxsize[1])
    if poor.all():
        return None
    median, rms = (_smooth(_fill(values, poor)) for values in (found.median, found.rms))
    return Mesh(median, rms, boxsize, shape)


def whole_mesh(bands: Bands, shape: tuple[int, int]) -> Mesh | None:
    """Return the mesh of one box that is the whole image, read in bands of rows about a dozen times.

    Parameters
    ----------
    bands : callable
        See :func:`streamimg3.kernels.clip.clip_image`.
    shape : tuple of int
        Rows and columns of the image.

    Returns
    -------
    Mesh or None
        None if the image has no good pixel.
    """
    found = clip_image(bands, shape[0] * shape[1])
    if found.left == 0:
        return None
    median, rms = (np.full((1, 1), value, np.float32) for value in (found.median, found.rms))
    return Mesh(median, rms, shape, shape)


def background_mesh(data: F4, bad: Bool, boxsize: int) -> Mesh | None:
    """Return the mesh of an image in memory, None if it has no good pixel."""
    shape = data.shape[0], data.shape[1]
    size = clamp_boxsize(boxsize, shape)

    def bands() -> Iterable[tuple[F4, Bool]]:
        """Go through the image and its flags upwards."""
        return ((data[y : y + _BAND_ROWS], bad[y : y + _BAND_ROWS]) for y in range(0, shape[0], _BAND_ROWS))

    return solve_mesh(box_statistics(data, bad, size), size, shape) or whole_mesh(bands, shape)


def _fill(values: F4, poor: Bool) -> F4:
    """Fill poor boxes with the mean of the nearest good ones, weighted by inverse distance (in boxes)."""
    if not poor.any():
        return values
    from scipy.spatial import cKDTree

    # among equally distant boxes the tree decides which of them count, so that it is built as the reference does
    distance, nearest = cKDTree(np.argwhere(~poor), leafsize=10).query(np.argwhere(poor), k=NEIGHBOURS)
    there = np.isfinite(distance)
    weight = np.where(there, 1.0 / np.where(there, distance, 1.0), 0.0)
    neighbours = values[~poor][np.where(there, nearest, 0)]
    filled = values.copy()
    filled[poor] = np.sum(weight * neighbours, axis=1) / np.sum(weight, axis=1)
    return filled


def _smooth(values: F4) -> F4:
    """Return the medians of 3 × 3 boxes; beyond the edge there are none."""
    padded = np.pad(values.astype(np.float64), 1, constant_values=np.nan)
    stack = np.sort(np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).reshape(*values.shape, 9), axis=-1)
    n = np.count_nonzero(~np.isnan(stack), axis=-1)[..., None]  # NaN sort last
    middle = [np.take_along_axis(stack, rank, axis=-1)[..., 0] for rank in ((n - 1) // 2, n // 2)]
    smooth: F4 = (0.5 * (middle[0] + middle[1])).astype(np.float32)
    return smooth


def _coefficients(mesh: F4) -> F8:
    """Return spline coefficients; on meshes of a few boxes SciPy's are off by up to 3e-4 at the lower edges: kept."""
    from scipy.ndimage import spline_filter

    coefficients: F8 = spline_filter(mesh, order=3, output=np.float64, mode="reflect")
    return coefficients


def _taps(start: int, stop: int, step: int, nodes: int) -> tuple[I8, F8]:
    """Return the four mesh nodes around each pixel, (n, 4), and their weights, (4, n).

    Pixel k lies at node (k + 1/2) / step - 1/2; the mesh is mirrored about the outer edges of its outer boxes.
    """
    at = (np.arange(start, stop) + 0.5) * (nodes / (nodes * step)) - 0.5
    if nodes == 1:
        at[:] = 0.0
    # just below node 0 the mirror image must stay below it, as in the library whose bits are matched
    at = np.where(at < 0.0, np.where(at > -1e-15, 1e-15, -at) - 1.0, at)
    first = np.floor(at)
    y = at - first
    z = 1.0 - y
    near = (y * y * (y - 2.0) * 3.0 + 4.0) / 6.0
    far = (z * z * (z - 2.0) * 3.0 + 4.0) / 6.0
    outer = z * z * z / 6.0
    weights = np.stack([outer, near, far, 1.0 - outer - near - far])
    index = (first.astype(np.int64)[:, None] + np.arange(-1, 3)) % (2 * nodes)
    return np.where(index < nodes, index, 2 * nodes - 1 - index), weights


@loop
def _evaluate(c, limits, row, row_weight, col, col_weight, ends, out):  # type: ignore[no-untyped-def]
    """Sum coefficient × row weight × column weight, row after row of the sixteen nodes: a fixed order of rounding."""
    for j in range(out.shape[0]):
        u0, u1, u2, u3 = row_weight[0, j], row_weight[1, j], row_weight[2, j], row_weight[3, j]
        r0, r1, r2, r3 = row[j, 0], row[j, 1], row[j, 2], row[j, 3]
        start = 0
        for k in range(ends.size):
            k0, k1, k2, k3 = col[start, 0], col[start, 1], col[start, 2], col[start, 3]
            a0, a1, a2, a3 = c[r0, k0] * u0, c[r0, k1] * u0, c[r0, k2] * u0, c[r0, k3] * u0
            b0, b1, b2, b3 = c[r1, k0] * u1, c[r1, k1] * u1, c[r1, k2] * u1, c[r1, k3] * u1
            d0, d1, d2, d3 = c[r2, k0] * u2, c[r2, k1] * u2, c[r2, k2] * u2, c[r2, k3] * u2
            e0, e1, e2, e3 = c[r3, k0] * u3, c[r3, k1] * u3, c[r3, k2] * u3, c[r3, k3] * u3
            for i in range(start, ends[k]):
                w0, w1, w2, w3 = col_weight[0, i], col_weight[1, i], col_weight[2, i], col_weight[3, i]
                t = a0 * w0 + a1 * w1 + a2 * w2 + a3 * w3
                t = t + b0 * w0 + b1 * w1 + b2 * w2 + b3 * w3
                t = t + d0 * w0 + d1 * w1 + d2 * w2 + d3 * w3
                t = t + e0 * w0 + e1 * w1 + e2 * w2 + e3 * w3
                out[j, i] = min(max(np.float32(t), limits[0]), limits[1])
            start = ends[k]
