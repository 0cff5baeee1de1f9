"""Companions put into coronagraphic exposures, and what is measured of them afterwards; noise against separation."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

F8 = NDArray[np.float64]
SIGMA = 0.8  # pixels, of a companion: about what NIRCam has at 3.56 um
BOX = 4  # pixels on each side of a companion that are fitted


@dataclass(frozen=True)
class Companion:
    """A companion: distance from the star in pixels, angle from the +x axis towards +y in degrees, flux."""

    radius: float
    angle: float
    flux: float

    def at(self, star: tuple[float, float]) -> tuple[float, float]:
        """Place (y, x) for a star at (y, x)."""
        turn = np.deg2rad(self.angle)
        return star[0] + self.radius * np.sin(turn), star[1] + self.radius * np.cos(turn)

    def image(self, shape: tuple[int, int], star: tuple[float, float]) -> F8:
        """Its image."""
        return self.flux * profile(shape, self.at(star))


def profile(shape: tuple[int, int], at: tuple[float, float]) -> F8:
    """A round profile of flux 1 at (y, x)."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    found: F8 = np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / (2 * SIGMA**2)) / (2 * np.pi * SIGMA**2)
    return found


@dataclass(frozen=True)
class Measured:
    """What was found: place (y, x) and flux, before any correction."""

    at: tuple[float, float]
    flux: float


def measure(image: NDArray[Any], guess: tuple[float, float]) -> Measured:
    """Fit the profile and a level around a guess."""
    y0, x0 = (round(g) for g in guess)
    window = (slice(y0 - BOX, y0 + BOX + 1), slice(x0 - BOX, x0 + BOX + 1))
    pixels = np.asarray(image[window], float)
    good = np.isfinite(pixels)

    def residuals(p: F8) -> F8:
        model = p[2] * profile(pixels.shape, (p[0], p[1])) + p[3]  # type: ignore[arg-type]
        left: F8 = (pixels - model)[good]
        return left

    start = [guess[0] - y0 + BOX, guess[1] - x0 + BOX, float(np.nanmax(pixels)) * 2 * np.pi * SIGMA**2, 0.0]
    found = least_squares(residuals, start).x
    return Measured((float(found[0]) + y0 - BOX, float(found[1]) + x0 - BOX), float(found[2]))


def noise(image: NDArray[Any], star: tuple[float, float], inner: float, outer: float) -> float:
    """Standard deviation in a ring around the star."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    r = np.hypot(y - star[0], x - star[1])
    return float(np.nanstd(image[(r >= inner) & (r < outer)]))


def curve(image: NDArray[Any], star: tuple[float, float], edges: NDArray[Any]) -> F8:
    """Standard deviation in rings between radii."""
    return np.array([noise(image, star, a, b) for a, b in itertools.pairwise(edges)])
