"""Tensor-product B-splines evaluated on whole-pixel windows (de Boor 1978), without SciPy in the worker."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.compiled import loop

F8 = NDArray[np.float64]


def basis(knots: F8, degree: int, start: int, stop: int) -> tuple[NDArray[np.int64], F8]:
    """Return the non-zero basis functions of a spline at the integers ``start .. stop - 1``.

    Parameters
    ----------
    knots : ndarray of float64
        Knot vector with ``degree + 1`` equal knots at each end.
    degree : int
        Degree of the spline.
    start, stop : int
        Half-open range of positions; outside the knots the end polynomial is continued.

    Returns
    -------
    first : ndarray of int64, shape (n,)
        Index of the first coefficient in use.
    values : ndarray of float64, shape (n, degree + 1)
        Values of the basis functions.
    """
    at = np.arange(start, stop, dtype=np.float64)
    span = np.clip(np.searchsorted(knots, at, side="right") - 1, degree, knots.size - degree - 2)
    values = np.zeros((at.size, degree + 1))
    values[:, 0] = 1.0
    for d in range(1, degree + 1):
        saved = np.zeros(at.size)
        for r in range(d):
            right, left = knots[span + r + 1], knots[span + 1 - d + r]
            part = values[:, r] / (right - left)
            values[:, r] = saved + (right - at) * part
            saved = (at - left) * part
        values[:, d] = saved
    return span - degree, values


def evaluate(coefficients: F8, rows: tuple[NDArray[np.int64], F8], cols: tuple[NDArray[np.int64], F8]) -> F8:
    """Evaluate a tensor-product spline on a window of pixels.

    Parameters
    ----------
    coefficients : ndarray of float64, shape (ny, nx)
        Spline coefficients.
    rows, cols : tuple
        What :func:`basis` returns for the rows and the columns of the window.

    Returns
    -------
    ndarray of float64, shape (rows, columns)
        Values; each depends on its own position alone, so any window gives the same bits.
    """
    out = np.empty((rows[0].size, cols[0].size))
    line = np.empty(coefficients.shape[1])
    _evaluate(coefficients, rows[0], rows[1], cols[0], cols[1], line, out)
    return out


@loop
def _evaluate(coefficients, row_first, row_values, col_first, col_values, line, out):  # type: ignore[no-untyped-def]
    order_y, order_x = row_values.shape[1], col_values.shape[1]
    for j in range(out.shape[0]):
        for n in range(line.size):
            s = 0.0
            for k in range(order_y):
                s += row_values[j, k] * coefficients[row_first[j] + k, n]
            line[n] = s
        for i in range(out.shape[1]):
            s = 0.0
            for k in range(order_x):
                s += col_values[i, k] * line[col_first[i] + k]
            out[j, i] = s
