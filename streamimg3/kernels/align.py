"""Shifts between images by less than a pixel: measured by a weighted fit, applied by phases (spec others §3.4).

Everything is double precision: with single-precision Fourier transforms the fit of jwst 3.0.0 finds no shift at all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
F8 = NDArray[np.float64]
C16 = NDArray[np.complex128]
Shift = tuple[float, float]

_DAMPED = 1e-3  # first damping when a step leads uphill
_NOISE = 1e-10  # relative change of a sum of squares that rounding may cause
_NEAR = 0.5  # pixels; from a step of this size on, second derivatives are trusted


@dataclass(frozen=True)
class Search:
    """Where a fit starts and when it ends.

    Parameters
    ----------
    start : tuple of float
        First guess of the shift (y, x), in pixels.
    tolerance : float
        The fit has converged when a step is smaller than this: in pixels, and relative for the factor.  What is left is
        about the square of it.
    limit : int
        Largest number of steps.
    """

    start: Shift = (0.0, 0.0)
    tolerance: float = 1e-7
    limit: int = 100


class Alignment(NamedTuple):
    """How a reference lies to a target: reference ≈ `beta` · target shifted by `shift`.

    Attributes
    ----------
    shift : tuple of float
        Pixels (y, x) that the target has to be moved by; the reference, by the opposite.
    beta : float
        Reference over target in brightness.
    iterations : int
        Steps of the fit.
    converged : bool
        Whether it ended by itself; if not, `shift` and `beta` are the best that were found.
    """

    shift: Shift
    beta: float
    iterations: int
    converged: bool


class _Phases(NamedTuple):
    """Factors along one axis, and their first and second derivatives by the shift."""

    value: C16
    slope: C16
    curve: C16


class Spectrum:
    """The Fourier transform of an image that is shifted.

    Parameters
    ----------
    image : ndarray of float, shape (ny, nx)
        A real image; a value that is not finite would spread over all pixels.
    """

    def __init__(self, image: Floats) -> None:
        from scipy.fft import rfft2

        self.shape: tuple[int, int] = (image.shape[0], image.shape[1])
        self._values: C16 = rfft2(image.astype(np.float64))

    def shifted(self, shift: Shift) -> F8:
        """Return the image moved by `shift` pixels (y, x), around the edges: float64, shape (ny, nx)."""
        y, x = self._phases(shift)
        spectrum = self._values * x.value
        spectrum *= y.value[:, None]
        self._mend_corner(spectrum, math.cos(math.pi * sum(shift)))
        return self._image(spectrum)

    def with_slopes(self, shift: Shift) -> F8:
        """Return the moved image and its derivatives by the shift along y and x: float64, shape (3, ny, nx)."""
        y, x = self._phases(shift)
        spectra = np.empty((3, *self._values.shape), np.complex128)
        np.multiply(self._values, x.value, out=spectra[0])
        np.multiply(spectra[0], y.slope[:, None], out=spectra[1])
        spectra[0] *= y.value[:, None]
        np.multiply(self._values, x.slope, out=spectra[2])
        spectra[2] *= y.value[:, None]
        self._mend_corner(spectra[0], math.cos(math.pi * sum(shift)))
        for slope in spectra[1:]:
            self._mend_corner(slope, -math.pi * math.sin(math.pi * sum(shift)))
        return self._image(spectra)

    def curvature(self, weights: F8, shift: Shift) -> F8:
        """Return the sums of the moved image's second derivatives times `weights`: ((yy, yx), (xy, xx)), float64."""
        from scipy.fft import rfft2

        y, x = self._phases(shift)
        products = np.conj(rfft2(weights)) * self._values
        products[:, 1 : (self.shape[1] + 1) // 2] *= 2.0  # the others stand for themselves and their conjugates
        corner = 0.0
        if self._has_corner:
            corner = -(math.pi**2) * math.cos(math.pi * sum(shift)) * float(products[self.shape[0] // 2, -1].real)
            products[self.shape[0] // 2, -1] = 0.0
        along_x = products @ np.stack([x.value, x.slope, x.curve], axis=1)
        yy, yx, xx = (float((a * along_x[:, k]).sum().real) for k, a in enumerate((y.curve, y.slope, y.value)))
        found: F8 = (np.array([[yy, yx], [yx, xx]]) + corner) / (self.shape[0] * self.shape[1])
        return found

    @property
    def _has_corner(self) -> bool:
        """Whether there is a frequency that is the highest along both axes."""
        return self.shape[0] % 2 == 0 and self.shape[1] % 2 == 0

    def _phases(self, shift: Shift) -> tuple[_Phases, _Phases]:
        ny, nx = self.shape
        return _phases(np.fft.fftfreq(ny), shift[0]), _phases(np.fft.rfftfreq(nx), shift[1])

    def _mend_corner(self, spectrum: C16, factor: float) -> None:
        """Put right the frequency that is the highest along both axes: its factor is no product."""
        if self._has_corner:
            at = (self.shape[0] // 2, -1)
            spectrum[at] = self._values[at] * factor

    def _image(self, spectrum: C16) -> F8:
        from scipy.fft import irfft2

        image: F8 = irfft2(spectrum, s=self.shape, overwrite_x=True)
        return image


def _phases(frequency: Floats, shift: float) -> _Phases:
    """Return the factors of a shift by `shift` pixels along an axis with these frequencies (cycles per pixel).

    What an even number of pixels has at the highest frequency is both the positive and the negative one, so that only
    the real part of its factor leaves a real image.
    """
    angle = -2j * np.pi * frequency
    value = np.exp(angle * shift)
    slope = angle * value
    highest = np.abs(frequency) == 0.5
    value[highest] = math.cos(math.pi * shift)
    slope[highest] = -math.pi * math.sin(math.pi * shift)
    return _Phases(value, slope, angle * angle * value)


def shift_plane(plane: Floats, shift: Shift) -> F8:
    """Return a plane moved by `shift` pixels (y, x), around the edges (float64).

    The same as ``scipy.ndimage.fourier_shift`` between complex transforms, whose real part is taken.
    """
    return Spectrum(plane).shifted(shift)


class Target:
    """The image that references are aligned to; what all of them share is computed once.

    Parameters
    ----------
    image : ndarray of float, shape (ny, nx)
        An integration, or a mean of several; finite.
    weight : ndarray of float, shape (ny, nx), or None
        What differences are multiplied by: 0 ignores a pixel; None = 1.
    """

    def __init__(self, image: Floats, weight: Floats | None = None) -> None:
        self.spectrum = Spectrum(image)
        self.weight = None if weight is None else weight.astype(np.float64)
        self._unmoved = self._weighted(self.spectrum.with_slopes((0.0, 0.0)))

    def model(self, shift: Shift) -> F8:
        """Return the weighted moved image and its two derivatives: float64, shape (3, ny * nx)."""
        return self._unmoved if shift == (0.0, 0.0) else self._weighted(self.spectrum.with_slopes(shift))

    def weighted(self, image: Floats) -> F8:
        """Return a weighted image: float64, shape (ny * nx,)."""
        flat: F8 = self._weighted(image.astype(np.float64)[None])[0]
        return flat

    def curvature(self, residual: F8, shift: Shift) -> F8:
        """Return the sums of a weighted image (ny * nx,) times the second derivatives of the model: float64, (2, 2)."""
        return self.spectrum.curvature(
            self.weighted(residual.reshape(self.spectrum.shape)).reshape(self.spectrum.shape), shift
        )

    def _weighted(self, images: F8) -> F8:
        if self.weight is not None:
            images *= self.weight
        return images.reshape(len(images), -1)


def align(reference: Floats, target: Target, search: Search | None = None) -> Alignment:
    """Measure how a reference lies to a target.

    Minimises the sum over all pixels of ((reference − β · target moved by (y, x)) · weight)², as jwst 3.0.0 does, but with
    exact derivatives: Levenberg–Marquardt, and Newton's method near the end, so that a reference which looks different
    takes hardly more steps.

    Parameters
    ----------
    reference : ndarray of float, shape (ny, nx)
        A PSF; finite.
    target : Target
        What it is compared with.
    search : Search, optional
        First guess and tolerance.

    Returns
    -------
    Alignment
        Not converged where an image or its weights are zero, or a value is not finite.
    """
    search = search or Search()
    observed = target.weighted(reference)
    here = _Place(target, observed, search.start, 1.0)
    damping = 0.0
    for iteration in range(1, search.limit + 1):
        step = here.step(damping)
        if step is None:
            return Alignment(here.shift, here.beta, iteration, False)
        shift, beta = (here.shift[0] + step[0], here.shift[1] + step[1]), here.beta + step[2]
        if max(abs(step[0]), abs(step[1]), abs(step[2] / (beta or 1.0))) < search.tolerance:
            return Alignment(shift, beta, iteration, True)
        there = _Place(target, observed, shift, beta)
        if there.squares <= here.squares * (1.0 + _NOISE):
            here, damping = there, damping / 10.0 if damping > _DAMPED else 0.0
        else:
            damping = max(damping * 10.0, _DAMPED)
    return Alignment(here.shift, here.beta, search.limit, False)


class _Place:
    """Where a fit has come to, and the equations of its next step (along y, x and the factor)."""

    def __init__(self, target: Target, observed: F8, shift: Shift, beta: float) -> None:
        self.target, self.shift, self.beta = target, shift, beta
        model = target.model(shift)
        self.residual: F8 = observed - beta * model[0]
        self.squares = float(self.residual @ self.residual)
        scale, order = np.array([beta, beta, 1.0]), [1, 2, 0]
        self._products = (model @ model.T)[np.ix_(order, order)] * np.outer(scale, scale)
        self._overlaps: F8 = (model @ self.residual)[order]
        self._gradient: F8 = self._overlaps * scale

    def step(self, damping: float) -> tuple[float, float, float] | None:
        """Return the step, or None where the equations have no finite solution."""
        step = _solution(self._products + damping * np.diag(np.diag(self._products)), self._gradient)
        if step is None or damping > 0.0 or max(abs(step[0]), abs(step[1])) > _NEAR:
            return step
        return _solution(self._hessian(), self._gradient, positive=True) or step

    def _hessian(self) -> F8:
        matrix = self._products.copy()
        matrix[:2, :2] -= self.beta * self.target.curvature(self.residual, self.shift)
        matrix[:2, 2] -= self._overlaps[:2]
        matrix[2, :2] -= self._overlaps[:2]
        return matrix


def _solution(matrix: F8, right: F8, positive: bool = False) -> tuple[float, float, float] | None:
    """Solve three equations; None if that is impossible, or, if wanted, the matrix is not positive definite."""
    if not (np.isfinite(matrix).all() and np.isfinite(right).all()):
        return None
    try:
        if positive:
            np.linalg.cholesky(matrix)
        y, x, factor = np.linalg.solve(matrix, right)
    except np.linalg.LinAlgError:
        return None
    return (float(y), float(x), float(factor)) if np.isfinite(y + x + factor) else None
