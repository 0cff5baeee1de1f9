"""Linear maps between matched stars, with clipping (spec image3 §4.4); sums in extended precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F8 = NDArray[np.float64]
Long = NDArray[np.longdouble]
Bools = NDArray[np.bool_]
GEOMETRIES = {"shift": 1, "rshift": 2, "rscale": 2, "general": 3}  # and the fewest stars that determine them


class NoFit(Exception):
    """The stars do not determine the map: too few, or on one line."""


@dataclass(frozen=True)
class FitOptions:
    """What is fitted and what is clipped.

    Parameters
    ----------
    geometry : str
        shift, rshift (shift and rotation), rscale (with one scale) or general.
    minobj : int
        Fewest matches for a fit.
    nclip : int
        Most clipping iterations.
    sigma : float
        Residuals of at least this many RMSE are clipped.
    """

    geometry: str = "rshift"
    minobj: int = 15
    nclip: int = 3
    sigma: float = 3.0


@dataclass(frozen=True, eq=False)
class LinearFit:
    """reference = matrix @ image + shift, for columns x, y.

    ``rmse`` is the root of the mean squared distance, in the unit of the positions; ``used`` marks the stars of the last
    iteration.
    """

    matrix: F8
    shift: F8
    rmse: float
    used: Bools


def fit_linear(reference: F8, image: F8, options: FitOptions, weights: F8 | None = None) -> LinearFit:
    """Fit a linear map to matched stars.

    Parameters
    ----------
    reference, image : ndarray of float64, shape (n, 2)
        Matched positions (x, y).
    options : FitOptions
        Geometry and clipping. An iteration judges only the stars that the one before has used; those that it had left
        out come back (the reference software's rule).
    weights : ndarray of float64, shape (n,), optional
        Stars of weight 0 do not take part.

    Raises
    ------
    NoFit
        If the stars do not determine the map.
    """
    fewest = GEOMETRIES[options.geometry]
    allowed = np.ones(len(image), bool) if weights is None else weights > 0
    if np.count_nonzero(allowed) < fewest:
        raise NoFit(f"{np.count_nonzero(allowed)} stars do not determine a fit of geometry '{options.geometry}'")
    centre = image[allowed].mean(axis=0, dtype=np.longdouble)
    xy, uv = reference - centre, image - centre
    heavy = np.ones(len(image), np.longdouble) if weights is None else weights.astype(np.longdouble)
    used = allowed
    matrix, shift, apart, rmse = _solve(xy[used], uv[used], heavy[used], options.geometry)
    for _ in range(options.nclip if np.count_nonzero(allowed) > fewest else 0):
        close = np.hypot(apart[:, 0], apart[:, 1]).astype(np.float64) < options.sigma * rmse
        if close.all() or np.count_nonzero(close) < fewest:
            break
        kept = allowed.copy()
        kept[used] = close
        used = kept
        matrix, shift, apart, rmse = _solve(xy[used], uv[used], heavy[used], options.geometry)
    return LinearFit(matrix.astype(np.float64), (shift + centre - matrix @ centre).astype(np.float64), rmse, used)


def _solve(xy: Long, uv: Long, weights: Long, geometry: str) -> tuple[Long, Long, Long, float]:
    """One fit without clipping: matrix, shift, residuals and their RMSE."""
    w = weights / weights.sum()
    xy0, uv0 = w @ xy, w @ uv
    a, b = xy - xy0, uv - uv0
    matrix = _MATRICES[geometry](w[:, None] * b, a, b)
    shift = xy0 - matrix @ uv0
    apart = xy - uv @ matrix.T - shift
    return matrix, shift, apart, float(np.sqrt((w @ apart**2).sum()))


def _unity(wb: Long, a: Long, b: Long) -> Long:
    return np.eye(2, dtype=np.longdouble)


def _rotation(wb: Long, a: Long, b: Long) -> Long:
    return _similar(wb, a, b)[0]


def _scaled(wb: Long, a: Long, b: Long) -> Long:
    matrix, gain = _similar(wb, a, b)
    size = (wb * b).sum()
    if not size > 0:
        raise NoFit("the matched stars are all in one place")
    scaled: Long = matrix * (gain / size)
    return scaled


def _similar(wb: Long, a: Long, b: Long) -> tuple[Long, np.longdouble]:
    """The rotation (or reflection, where that is nearer) that fits best, and the weight of its scale."""
    (sux, suy), (svx, svy) = wb.T @ a  # s(u|v)(x|y): sums of image times reference
    flip = -1 if sux * svy - svx * suy < 0 else 1
    along, across = sux + flip * svy, svx - flip * suy
    size = np.hypot(along, across)
    c, s = (along / size, across / size) if size > 0 else (np.longdouble(1), np.longdouble(0))  # no preferred angle
    return np.array([[c, s], [-flip * s, flip * c]]), along * c + across * s


def _general(wb: Long, a: Long, b: Long) -> Long:
    (uu, uv), (_, vv) = wb.T @ b
    det = uu * vv - uv * uv
    if not det > np.finfo(np.longdouble).eps * uu * vv:
        raise NoFit("the matched stars lie on one line")
    matrix: Long = (wb.T @ a).T @ np.array([[vv, -uv], [-uv, uu]]) / det
    return matrix


_MATRICES = {"shift": _unity, "rshift": _rotation, "rscale": _scaled, "general": _general}
