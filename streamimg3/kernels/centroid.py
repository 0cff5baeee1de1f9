"""Where a star is in every integration of a cube, and how wide it is (spec others §2.3).

A centre of mass in a wide box about the planned position; then, about the median of those, a centre of mass and a fit of
a Gaussian, integrated over pixels, in a narrow box.  Between the two passes only the median is passed on, so that either
pass works through a cube in blocks of integrations, which changes no bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.kernels.compiled import inlined, loop

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
Mask = NDArray[np.bool_]

SIGMA_PER_FWHM = 1.0 / (2.0 * math.sqrt(2.0 * math.log(2.0)))
_ROUNDS = 200
_CLOSE = 1e-11  # relative steps smaller than this end a fit
_NARROW = 1e-3  # a width in pixels that no fit goes below: all light in one pixel
_NO_LIGHT = 1e-30  # sums below this have no centre, as in the reference


@dataclass(frozen=True)
class Boxes:
    """Where a star is looked for.

    Attributes
    ----------
    width : int
        Side of the box in pixels, odd.
    radius : float
        The rough background is the median of the pixels at this distance or farther from the guessed position.
    """

    width: int
    radius: float

    def __post_init__(self) -> None:
        if self.width < 1 or self.width % 2 == 0:
            raise InputError(f"tso_photometry: a box of {self.width} pixels: it must be an odd number of at least 1")


class Fits(NamedTuple):
    """Stars of n integrations: centres (y, x), standard deviations (y, x) in pixels (both (n, 2)), fluxes (n,).  NaN = none."""

    centres: F8
    widths: F8
    flux: F8


def rough_levels(cube: F4, guess: tuple[float, float], radius: float) -> F4:
    """Return the median of every integration outside a circle; NaN take no part.

    Parameters
    ----------
    cube : ndarray of float32, shape (n, ny, nx)
    guess : tuple of float
        Row and column of the circle's centre.
    radius : float
        In pixels.

    Returns
    -------
    ndarray of float32, shape (n,)
        In the unit of the cube; NaN where there is no pixel.
    """
    from bottleneck import nanmedian

    y, x = np.mgrid[: cube.shape[1], : cube.shape[2]]
    outside = (x - guess[1]) ** 2 + (y - guess[0]) ** 2 >= radius**2
    if not outside.any():
        return np.full(len(cube), np.nan, np.float32)
    return np.array([nanmedian(image[outside]) for image in cube], np.float32)


def find_centres(cube: F4, bad: Mask, guess: tuple[float, float], boxes: Boxes) -> F8:
    """Return the centre of mass of the light above the rough background in a box about a position.

    Parameters
    ----------
    cube : ndarray of float32, shape (n, ny, nx)
    bad : ndarray of bool, shape as `cube`
        Pixels that count as background, as NaN do.
    guess : tuple of float
        Row and column that the box is laid around; the image's edges cut it.
    boxes : Boxes

    Returns
    -------
    ndarray of float64, shape (n, 2)
        Rows and columns; NaN where the box has no good pixel or no light, or the centre is outside the image.
    """
    return _centres(cube, bad, rough_levels(cube, guess, boxes.radius), guess, boxes.width)


def fit_stars(cube: F4, bad: Mask, guess: tuple[float, float], boxes: Boxes) -> Fits:
    """Return centres of mass as `find_centres` does, and a Gaussian fitted around each.

    The Gaussian is integrated over pixels and stays at the centre of mass; its flux (not negative) and its two widths
    (full widths at half maximum of at most the box) come from unweighted least squares over the good pixels of the box.
    Where the best flux is 0, there is no width.  The result does not depend on the unit: the reference ends its search by
    an absolute tolerance, which images in Jy can meet far from the least squares (seen for a star of 1e-4 Jy).

    Returns
    -------
    Fits
        Fluxes are in the cube's unit times pixels.
    """
    levels = rough_levels(cube, guess, boxes.radius)
    centres = _centres(cube, bad, levels, guess, boxes.width)
    found = np.empty((len(cube), 3))
    _gauss(cube, bad, levels, centres, boxes.width, np.empty((4, boxes.width)), np.empty((2, 3, 4)), found)
    return Fits(centres, found[:, :2].copy(), found[:, 2].copy())


def typical(centres: F8) -> tuple[float, float]:
    """Return the median row and column, NaN left out; NaN if there is none."""
    known = centres[~np.isnan(centres).any(axis=1)]
    if not len(known):
        return math.nan, math.nan
    y, x = np.median(known, axis=0)
    return float(y), float(x)


def _centres(cube: F4, bad: Mask, levels: F4, guess: tuple[float, float], width: int) -> F8:
    _, ny, nx = cube.shape
    found = np.full((len(cube), 2), np.nan)
    if 0 <= guess[0] <= ny - 1 and 0 <= guess[1] <= nx - 1:
        _mass(cube, bad, levels, guess, width, found)
    return found


@inlined
def _limits(position, width, size):  # type: ignore[no-untyped-def]
    low = math.ceil(position - 0.5 * width)
    return max(low, 0), min(low + width, size)


@loop
def _mass(cube, bad, levels, guess, width, found):  # type: ignore[no-untyped-def]
    n, ny, nx = cube.shape
    j0, j1 = _limits(guess[0], width, ny)
    i0, i1 = _limits(guess[1], width, nx)
    for k in range(n):
        total, rows, columns = 0.0, 0.0, 0.0
        any_good = False
        for j in range(j0, j1):
            for i in range(i0, i1):
                value = cube[k, j, i] - levels[k]  # in single precision
                if bad[k, j, i] or math.isnan(cube[k, j, i]):
                    continue
                any_good = True
                if math.isfinite(value):
                    total += value
                    rows += value * np.float64(j - j0)
                    columns += value * np.float64(i - i0)
        if not any_good or abs(total) < _NO_LIGHT:
            continue
        y, x = rows / total + j0, columns / total + i0
        if 0.0 <= y < ny and 0.0 <= x < nx:
            found[k, 0], found[k, 1] = y, x


@inlined
def _shape(position, sigma, first, last, values, slopes):  # type: ignore[no-untyped-def]
    """Light in the pixels of a row under a Gaussian of flux 1, and its derivative with respect to the width."""
    scale = 1.0 / (math.sqrt(2.0) * sigma)
    low = (first - 0.5 - position) * scale
    erf_low, bell_low = math.erf(low), low * math.exp(-low * low)
    for i in range(first, last):
        high = (i + 0.5 - position) * scale
        erf_high, bell_high = math.erf(high), high * math.exp(-high * high)
        values[i - first] = 0.5 * (erf_high - erf_low)
        slopes[i - first] = (bell_low - bell_high) / (math.sqrt(math.pi) * sigma)
        erf_low, bell_low = erf_high, bell_high


@inlined
def _cost(image, bad, level, box, shapes, flux, normal):  # type: ignore[no-untyped-def]
    """Sum of squared residuals; fills the normal equations in (width in y, width in x, flux)."""
    j0, j1, i0, i1 = box
    cost = 0.0
    normal[:] = 0.0
    for j in range(j0, j1):
        for i in range(i0, i1):
            value = np.float64(np.float32(image[j, i] - level))
            if bad[j, i] or not math.isfinite(value):
                continue
            gy, sy, gx, sx = shapes[0, j - j0], shapes[1, j - j0], shapes[2, i - i0], shapes[3, i - i0]
            a, b, c = flux * sy * gx, flux * gy * sx, gy * gx
            rest = value - flux * c
            cost += rest * rest
            normal[0, 0] += a * a
            normal[0, 1] += a * b
            normal[0, 2] += a * c
            normal[1, 1] += b * b
            normal[1, 2] += b * c
            normal[2, 2] += c * c
            normal[0, 3] += a * rest
            normal[1, 3] += b * rest
            normal[2, 3] += c * rest
    return cost


@inlined
def _solve(normal, damping, held, matrix):  # type: ignore[no-untyped-def]
    """Solve the damped normal equations into the last column of ``matrix``; a parameter that is held does not step."""
    for r in range(3):
        for c in range(3):
            matrix[r, c] = normal[min(r, c), max(r, c)]
        matrix[r, 3] = normal[r, 3]
        matrix[r, r] += damping * normal[r, r]
    for r in range(3):
        if held[r] or matrix[r, r] == 0.0:
            for c in range(3):
                matrix[r, c] = matrix[c, r] = 0.0
            matrix[r, r], matrix[r, 3] = 1.0, 0.0
    for k in range(3):  # positive definite: no pivots are needed
        for r in range(k + 1, 3):
            factor = matrix[r, k] / matrix[k, k]
            for c in range(k, 4):
                matrix[r, c] -= factor * matrix[k, c]
    for k in range(2, -1, -1):
        for c in range(k + 1, 3):
            matrix[k, 3] -= matrix[k, c] * matrix[c, 3]
        matrix[k, 3] /= matrix[k, k]


@loop
def _gauss(cube, bad, levels, centres, width, shapes, scratch, found):  # type: ignore[no-untyped-def]
    n, ny, nx = cube.shape
    widest = width * SIGMA_PER_FWHM
    normal, matrix = scratch[0], scratch[1]
    for k in range(n):
        found[k] = np.nan
        y, x = centres[k, 0], centres[k, 1]
        if math.isnan(y) or math.isnan(x):
            continue
        j0, j1 = _limits(y, width, ny)
        i0, i1 = _limits(x, width, nx)
        image, mask, level, box = cube[k], bad[k], levels[k], (j0, j1, i0, i1)
        wide_y, wide_x, light, good = 0.5 * widest, 0.5 * widest, 0.0, 0
        for j in range(j0, j1):
            for i in range(i0, i1):
                value = np.float64(np.float32(image[j, i] - level))
                if not mask[j, i] and math.isfinite(value):
                    light += value
                    good += 1
        if good < 3:  # as many as there are parameters
            continue
        flux = max(light, 0.0)
        _shape(y, wide_y, j0, j1, shapes[0], shapes[1])
        _shape(x, wide_x, i0, i1, shapes[2], shapes[3])
        cost = _cost(image, mask, level, box, shapes, flux, normal)
        damping = 1e-3
        for _ in range(_ROUNDS):
            held = (
                (wide_y <= _NARROW and normal[0, 3] < 0.0) or (wide_y >= widest and normal[0, 3] > 0.0),
                (wide_x <= _NARROW and normal[1, 3] < 0.0) or (wide_x >= widest and normal[1, 3] > 0.0),
                flux <= 0.0 and normal[2, 3] < 0.0,
            )
            _solve(normal, damping, held, matrix)
            new_y = min(max(wide_y + matrix[0, 3], max(_NARROW, 0.2 * wide_y)), widest)
            new_x = min(max(wide_x + matrix[1, 3], max(_NARROW, 0.2 * wide_x)), widest)
            new_flux = max(flux + matrix[2, 3], 0.0)
            step = max(
                abs(new_y - wide_y) / wide_y, abs(new_x - wide_x) / wide_x, abs(new_flux - flux) / max(flux, _NO_LIGHT)
            )
            _shape(y, new_y, j0, j1, shapes[0], shapes[1])
            _shape(x, new_x, i0, i1, shapes[2], shapes[3])
            new_cost = _cost(image, mask, level, box, shapes, new_flux, matrix)
            if new_cost <= cost:
                wide_y, wide_x, flux, cost = new_y, new_x, new_flux, new_cost
                normal, matrix = matrix, normal
                damping *= 0.1
            else:
                damping *= 10.0
            if step < _CLOSE or damping > 1e12:
                break
        found[k, 2] = flux
        if flux > 0.0:
            found[k, 0], found[k, 1] = wide_y, wide_x
