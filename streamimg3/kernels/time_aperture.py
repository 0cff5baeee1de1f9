"""Light of a star in circles, less its surroundings, in every integration of a cube (spec others §2.3).

Pixels on a rim count by the exact area that is inside; pixels that are not finite are left out, with their area.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.kernels.aperture import overlap
from streamimg3.kernels.compiled import loop

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]


@dataclass(frozen=True)
class Apertures:
    """Circles and a ring about one centre; radii in pixels.

    Attributes
    ----------
    radii : tuple of float
        As many circles as wanted; all are measured in one pass.
    ring : tuple of float
        Inner and outer radius of the ring that the background comes from.

    Raises
    ------
    InputError
        If a radius is not positive, or the ring is empty.
    """

    radii: tuple[float, ...]
    ring: tuple[float, float]

    def __post_init__(self) -> None:
        if not self.radii or not all(0 < radius < math.inf for radius in self.radii):
            raise InputError(f"tso_photometry.radius = {self.radii}: radii must be positive numbers of pixels")
        if not 0 < self.ring[0] < self.ring[1] < math.inf:
            raise InputError(
                f"tso_photometry.radius_inner, radius_outer = {self.ring}: they must be positive and in this order"
            )

    @property
    def reach(self) -> int:
        """Pixels that are needed on every side of a centre."""
        return math.ceil(max(*self.radii, *self.ring)) + 1


@dataclass(frozen=True)
class TimeSums:
    """What the apertures hold in every integration.

    Attributes
    ----------
    total, error, area : ndarray of float64, shape (n, circles)
        Sums (NaN without a finite pixel), roots of the sums of squared errors times area, and areas in pixels.
    ring_total, ring_error, ring_area : ndarray of float64, shape (n,)
        The same of the ring.
    """

    total: F8
    error: F8
    area: F8
    ring_total: F8
    ring_error: F8
    ring_area: F8

    @property
    def ring_mean(self) -> F8:
        """Mean of the ring, shape (n,)."""
        return _divide(self.ring_total, self.ring_area)

    @property
    def ring_mean_error(self) -> F8:
        """Error of the ring's mean, shape (n,)."""
        return _divide(self.ring_error, self.ring_area)

    @property
    def background(self) -> F8:
        """Mean of the ring times the area of every aperture, shape (n, circles)."""
        return self.ring_mean[:, None] * self.area

    @property
    def background_error(self) -> F8:
        """Error of `background`."""
        return self.ring_mean_error[:, None] * self.area

    @property
    def net(self) -> F8:
        """Sums less background, shape (n, circles); what NaN pixels would have added is missing."""
        return self.total - self.background

    @property
    def net_error(self) -> F8:
        """Error of `net`."""
        return np.hypot(self.error, self.background_error)


def _divide(values: F8, areas: F8) -> F8:
    found: F8 = np.divide(values, areas, out=np.full(areas.shape, np.nan), where=areas > 0)
    return found


def aperture_series(
    sci: F4, err: F4, centres: F8 | tuple[float, float], apertures: Apertures, origin: tuple[int, int] = (0, 0)
) -> TimeSums:
    """Sum every integration in circles and in a ring.

    Parameters
    ----------
    sci, err : ndarray of float32, shape (n, ny, nx)
        Integrations, or a window of them that holds the apertures as far as the image does, and their errors.
    centres : ndarray of float64, shape (n, 2), or tuple of float
        Row and column in the image, of every integration or of all; where they are NaN, so is what is found.
    apertures : Apertures
    origin : tuple of int
        Row and column of the window's first pixel in the image.

    Returns
    -------
    TimeSums
        In the unit of `sci`.
    """
    fixed = isinstance(centres, tuple)
    places = np.array([centres] if fixed else centres, np.float64).reshape(-1, 2) - np.array(origin, np.float64)
    edges = np.array([(0.0, radius) for radius in apertures.radii] + [apertures.ring])
    found = np.empty((3, len(sci), len(edges)))
    side = 2 * apertures.reach + 1
    _sums(sci, err, places, fixed, edges, np.empty((side, side, len(edges))), found)
    total, square, area = found
    total[area <= 0.0] = square[area <= 0.0] = np.nan
    error = np.sqrt(square)
    return TimeSums(total[:, :-1], error[:, :-1], area[:, :-1], total[:, -1], error[:, -1], area[:, -1])


def whole_series(sci: F4, err: F4) -> tuple[F8, F8]:
    """Return the sum of every integration and its error, both (n,) float64; NaN are left out."""
    axes = (1, 2)
    squares = np.square(err, dtype=np.float64)
    return np.nansum(sci, axes, np.float64), np.sqrt(np.nansum(squares, axes))


@loop
def _areas(place, shape, edges, weights):  # type: ignore[no-untyped-def]
    """Fill in the part of the pixels about a place that is inside the circles; return the row and column they start at."""
    half = weights.shape[0] // 2
    j0, i0 = math.floor(place[0] + 0.5) - half, math.floor(place[1] + 0.5) - half
    for v in range(weights.shape[0]):
        for u in range(weights.shape[1]):
            outside = j0 + v < 0 or i0 + u < 0 or j0 + v >= shape[0] or i0 + u >= shape[1]
            y, x = j0 + v - place[0], i0 + u - place[1]
            for e in range(edges.shape[0]):
                weights[v, u, e] = 0.0
                if not outside:
                    weights[v, u, e] = overlap(y, x, edges[e, 1])
                    if edges[e, 0] > 0.0:
                        weights[v, u, e] -= overlap(y, x, edges[e, 0])
    return j0, i0


@loop
def _sums(sci, err, places, fixed, edges, weights, found):  # type: ignore[no-untyped-def]
    n, ny, nx = sci.shape
    j0, i0 = 0, 0
    found[:] = 0.0
    for k in range(n):
        place = places[0] if fixed else places[k]
        if math.isnan(place[0]) or math.isnan(place[1]):
            found[:, k, :] = np.nan
            continue
        if k == 0 or not fixed:
            j0, i0 = _areas(place, (ny, nx), edges, weights)
        for j in range(max(j0, 0), min(j0 + weights.shape[0], ny)):
            for i in range(max(i0, 0), min(i0 + weights.shape[1], nx)):
                value = np.float64(sci[k, j, i])
                if not math.isfinite(value):
                    continue
                square = np.float64(err[k, j, i]) ** 2
                for e in range(edges.shape[0]):
                    weight = weights[j - j0, i - i0, e]
                    if weight > 0.0:
                        found[0, k, e] += weight * value
                        found[1, k, e] += weight * square
                        found[2, k, e] += weight
