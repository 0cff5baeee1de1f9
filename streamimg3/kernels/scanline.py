"""Pixels inside polygons as intervals of rows, and the values of an image there (spec image3 §5.3).

An interval is ``(row, first column, column after the last)``.  A list of intervals is small however many pixels it
covers, is made once per polygon, and is cut by whatever block of the image is at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.compiled import loop

F4 = NDArray[np.float32]
I8 = NDArray[np.int64]


def inside(vertices: I8, shift: tuple[int, int], shape: tuple[int, int]) -> I8:
    """Return the pixels of an image that lie inside a polygon with whole-numbered vertices.

    A row crosses every edge that begins at or below it and ends above; the topmost row crosses the edges that end
    there.  Crossings are rounded up and pixels between the first and second, third and fourth ... are inside, both ends
    included.  A polygon without width or height has no pixel.

    Parameters
    ----------
    vertices : ndarray of int64, shape (n, 2)
        Rows and columns, the last vertex equal to the first.
    shift : tuple of int
        Rows and columns to be added to what is found.
    shape : tuple of int
        Rows and columns of the image.

    Returns
    -------
    ndarray of int64, shape (m, 3)
        Row, first column and end of each interval, in row-major order; intervals neither touch nor overlap.
    """
    (low, left), (high, right) = vertices.min(axis=0), vertices.max(axis=0)
    if low == high or left == right:
        return np.zeros((0, 3), np.int64)
    rows, columns = [], []
    for (y0, x0), (y1, x1) in pairwise(vertices):
        if y0 == y1:
            continue
        end = max(y0, y1) + (max(y0, y1) == high)
        y = np.arange(max(min(y0, y1), -shift[0]), min(end, shape[0] - shift[0]))
        rows.append(y)
        columns.append(np.ceil((y - y0) / (y1 - y0) * (x1 - x0) + x0).astype(np.int64))
    y, x = np.concatenate(rows), np.concatenate(columns)
    order = np.lexsort((x, y))
    y, x = y[order], x[order]
    return _merged(_clipped(y[::2] + shift[0], x[::2] + shift[1], x[1::2] + shift[1] + 1, shape))


def everywhere(shape: tuple[int, int]) -> I8:
    """Return the intervals of all pixels of an image."""
    ny, nx = shape
    return np.stack([np.arange(ny), np.zeros(ny, np.int64), np.full(ny, nx)], axis=1)


def union(parts: Sequence[I8]) -> I8:
    """Return the pixels that are in any of several lists of intervals, in the form that `inside` has."""
    return _merged(np.concatenate([np.zeros((0, 3), np.int64), *parts]))


def _clipped(y: I8, start: I8, end: I8, shape: tuple[int, int]) -> I8:
    found = np.stack([y, np.maximum(start, 0), np.minimum(end, shape[1])], axis=1)
    kept: I8 = found[(y >= 0) & (y < shape[0]) & (found[:, 1] < found[:, 2])]
    return kept


def _merged(spans: I8) -> I8:
    """Sort intervals and join those that touch or overlap."""
    if len(spans) == 0:
        return spans
    stride = int(spans[:, 2].max()) + 1  # one column more than there is, so that rows never touch
    start, end = spans[:, 0] * stride + spans[:, 1], spans[:, 0] * stride + spans[:, 2]
    order = np.argsort(start, kind="stable")
    start, end = start[order], np.maximum.accumulate(end[order])
    first = np.concatenate([[True], start[1:] > end[:-1]])
    start, end = start[first], end[np.concatenate([first[1:], [True]])]
    row = start // stride
    return np.stack([row, start - row * stride, end - row * stride], axis=1)


def within(spans: I8, y0: int, y1: int) -> I8:
    """Return the intervals in rows ``y0`` to ``y1 - 1``."""
    first, last = np.searchsorted(spans[:, 0], [y0, y1])
    return spans[first:last]


def count(spans: I8) -> int:
    """Return the number of pixels in a list of intervals."""
    return int((spans[:, 2] - spans[:, 1]).sum())


def gather(block: F4, corner: tuple[int, int], spans: I8, out: F4) -> int:
    """Copy the finite values of a block inside intervals, row by row.

    Parameters
    ----------
    block : ndarray of float32, shape (rows, columns)
        Part of an image, NaN where a pixel does not count.
    corner : tuple of int
        Row and column of the block's first pixel.
    spans : ndarray of int64, shape (m, 3)
        Intervals that lie in the block.
    out : ndarray of float32
        Takes the values; must have room for all of them.

    Returns
    -------
    int
        Number of values.
    """
    return int(_gather(block, corner[0], corner[1], spans, out))


@loop
def _gather(block, row, column, spans, out):  # type: ignore[no-untyped-def]
    n = 0
    for k in range(spans.shape[0]):
        j = spans[k, 0] - row
        for i in range(spans[k, 1] - column, spans[k, 2] - column):
            value = block[j, i]
            if value - value == np.float32(0.0):
                out[n] = value
                n += 1
    return n
