"""Spectra summed over a box across the dispersion, less a fitted background (spec others §2.5, boxcar).

What is the same for all integrations (weights of the box, design of the background, wavelengths) is prepared once; a
block of integrations then takes two passes over the rows that count.  Columns whose background has lost pixels are solved
by themselves.  Throughout, "across" is the axis that is summed, "along" the direction of dispersion; cubes are
(integration, y, x), and sums are (integration, along).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.kernels.box_profile import ALONG_X, ALONG_Y, Profile
from streamimg3.kernels.compiled import loop

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
Bool = NDArray[np.bool_]

_WORST = 1e10  # condition of normal equations beyond which a column has no background, as in the reference
_MEDIAN_ERROR = 1.2  # error of a median in errors of the mean


@dataclass(frozen=True)
class Background:
    """How the background is fitted.

    Attributes
    ----------
    weights : ndarray of float64, shape (ny, nx)
        `background_profile`.
    fit : str
        ``poly`` or ``median``; a mean is a polynomial of order 0.
    order : int
        Of the polynomial across the dispersion.
    smoothing : int
        Pixels of the box that the images are smoothed with along the dispersion first, odd; 0 or 1 = not smoothed.

    Raises
    ------
    InputError
        If one of them is none of these.
    """

    weights: F8
    fit: str = "poly"
    order: int = 0
    smoothing: int = 0

    def __post_init__(self) -> None:
        if self.fit not in ("poly", "median"):
            raise InputError(f"extract_1d.bkg_fit = {self.fit!r}: it must be poly, mean (poly of order 0) or median")
        if self.order < 0:
            raise InputError(f"extract_1d.bkg_order = {self.order}: it must be 0 or more")
        if self.smoothing < 0 or (self.smoothing > 1 and self.smoothing % 2 == 0):
            raise InputError(
                f"extract_1d.smoothing_length = {self.smoothing}: it must be an odd number of pixels, or 0"
            )


class Variances(NamedTuple):
    """Three planes (n, ny, nx) float32, or three sums (n, along) float64."""

    poisson: NDArray[np.floating]
    rnoise: NDArray[np.floating]
    flat: NDArray[np.floating]


@dataclass(frozen=True)
class Sums:
    """Sums over the box, float64, shape (n, along).

    Attributes
    ----------
    flux : ndarray
        Less the background; NaN where no pixel counts.
    variances : Variances
        Of `flux`; that of the background is in it.
    background : ndarray
        What was subtracted.
    background_variances : Variances
    pixels : ndarray
        Sum of the weights of the pixels that count.
    """

    flux: F8
    variances: Variances
    background: F8
    background_variances: Variances
    pixels: F8


@dataclass(frozen=True)
class _Design:
    """Everything about a box and its background that does not change between integrations; arrays are (across, along)."""

    profile: F8
    used: Bool
    powers: F8  # (across, terms)
    inverse: F8  # (along, terms, terms) of the normal equations if no pixel is lost; zeros where there is none
    applied: F8  # (along, terms): what the profile takes of every term

    @property
    def terms(self) -> int:
        return int(self.powers.shape[1])


@dataclass(frozen=True)
class Extraction:
    """A box, its background (or none) and the direction of dispersion, made ready for many integrations."""

    profile: Profile
    dispaxis: int
    background: Background | None = None
    _design: _Design = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_design", _prepare(self))

    def __call__(self, sci: F4, variances: Variances | None) -> Sums:
        """Sum a block of integrations.

        Parameters
        ----------
        sci : ndarray of float32, shape (n, ny, nx)
            Pixels that are not finite do not count.
        variances : Variances, optional
            Pixels where one of them is not finite tell nothing about the background.  None = 0.

        Returns
        -------
        Sums
            How the integrations are cut in blocks changes no bit.
        """
        image = _across_first(sci, self.dispaxis)
        if variances is None:
            nothing = np.zeros((1, *image.shape[1:]), np.float32)
            planes = (nothing, nothing, nothing)
        else:
            poisson, rnoise, flat = (_across_first(plane, self.dispaxis) for plane in variances)
            planes = (poisson, rnoise, flat)
        design = self._design
        n, _, along = image.shape
        coefficients, applied = np.zeros((n, along, design.terms)), np.zeros((n, along, design.terms))
        if self.background is not None:
            coefficients, applied = _fit(image, planes, design, self.background)
        single = self.background is not None and self.background.fit == "median"  # rounds as in the reference
        found = np.zeros((9, n, along))
        _extract(image, planes, design.profile, design.used, design.powers, (coefficients, applied), single, found)
        flux, pixels, background = found[:3]
        flux[np.isclose(pixels, 0.0)] = np.nan
        return Sums(flux, Variances(*found[3:6]), background, Variances(*found[6:]), pixels)


def _across_first(cube: F4, dispaxis: int) -> F4:
    """Return (n, across, along), contiguous."""
    return np.ascontiguousarray(cube if dispaxis == ALONG_X else cube.swapaxes(1, 2))


def _prepare(extraction: Extraction) -> _Design:
    background = extraction.background
    turn = extraction.dispaxis == ALONG_Y
    profile = np.ascontiguousarray(extraction.profile.weights.T if turn else extraction.profile.weights)
    terms = 1 if background is None or background.fit == "median" else background.order + 1
    powers = np.linspace(-1.0, 1.0, len(profile))[:, None] ** np.arange(terms)
    if background is None:
        used = np.zeros(profile.shape, np.bool_)
    else:
        used = np.ascontiguousarray((background.weights.T if turn else background.weights) != 0.0)
    matrix = np.einsum("jl,ja,jb->lab", used.astype(np.float64), powers, powers)
    return _Design(profile, used, powers, _inverse(matrix), np.einsum("jl,ja->la", profile, powers))


def _inverse(matrices: F8) -> F8:
    """Invert the matrices that can be inverted safely; the others give zeros."""
    found = np.zeros(matrices.shape)
    some = matrices[:, 0, 0] > 0.0
    safe = some.copy()
    safe[some] = np.linalg.cond(matrices[some]) < _WORST
    found[safe] = np.linalg.inv(matrices[safe])
    return found


def _fit(image: F4, planes: tuple[F4, F4, F4], design: _Design, background: Background) -> tuple[F8, F8]:
    """Return the coefficients of the background, and what makes the weights of pixels in the sum of it: (n, along, terms)."""
    values = smoothed(image, background.smoothing) if background.smoothing > 1 else image
    n, _, along = image.shape
    vectors, counts = np.zeros((n, along, design.terms)), np.zeros((n, along), np.int64)
    _vectors(image, values, planes, design.used, design.powers, (vectors, counts))
    if background.fit == "median":
        share = np.divide(design.applied[None, :, 0], counts, out=np.zeros(counts.shape), where=counts > 0)
        return _medians(values, design.used)[..., None], _MEDIAN_ERROR * share[..., None]
    inverse = np.broadcast_to(design.inverse, (n, *design.inverse.shape))
    lost = np.argwhere(counts != design.used.sum(axis=0))
    coefficients = np.einsum("tlab,tlb->tla", inverse, vectors)
    applied = np.broadcast_to(np.einsum("lab,la->lb", design.inverse, design.applied), vectors.shape).copy()
    if len(lost):
        matrices = np.zeros((len(lost), design.terms, design.terms))
        _matrices(image, values, planes, design.used, design.powers, lost, matrices)
        own, (t, k) = _inverse(matrices), lost.T
        coefficients[t, k] = np.einsum("iab,ib->ia", own, vectors[t, k])
        applied[t, k] = np.einsum("iab,ia->ib", own, design.applied[k])
    return coefficients, applied


def _medians(values: F4, used: Bool) -> F8:
    """Median of the pixels of the background, in single precision; NaN where there is none."""
    from bottleneck import nanmedian

    rows = used.any(axis=1)
    if not rows.any():
        return np.full((len(values), used.shape[1]), np.nan)
    chosen = np.where(used[rows], values[:, rows], np.float32(np.nan))
    return np.asarray(nanmedian(chosen, axis=1), np.float64)


def smoothed(images: F4, width: int) -> F4:
    """Return the means of a sliding box of pixels along the last axis, NaN left out; the last pixels go on for ever.

    Parameters
    ----------
    images : ndarray of float32, shape (n, across, along)
        An infinite pixel makes those about it infinite or NaN.
    width : int
        Of the box, odd.

    Returns
    -------
    ndarray of float32, shape as `images`
        Every operation rounds as in the reference, for which it matters whether an image has any NaN.
    """
    half = width // 2
    padded = np.pad(images, ((0, 0), (0, 0), (half, half)), mode="edge")
    kernel = np.ones((1, width)) / width
    found = np.empty(images.shape, np.float32)
    holes = np.isnan(images).any(axis=(1, 2))
    _smooth(padded, width, float(kernel[0, 0]), float(kernel.sum()), holes, found)
    return found


@loop
def _smooth(padded, width, weight, weights, holes, found):  # type: ignore[no-untyped-def]
    n, across, along = found.shape
    for t in range(n):
        for j in range(across):
            for k in range(along):
                total, known = 0.0, 0.0
                for i in range(k, k + width):
                    if not (holes[t] and math.isnan(padded[t, j, i])):
                        total += weight * np.float64(padded[t, j, i])
                        known += weight
                if known == 0.0:
                    found[t, j, k] = np.nan
                else:
                    found[t, j, k] = total / (known if holes[t] else weights)


@loop
def _counts(image, planes, t, j, k):  # type: ignore[no-untyped-def]
    """Whether a pixel and its variances are finite."""
    v = min(t, planes[0].shape[0] - 1)
    total = planes[0][v, j, k] + planes[1][v, j, k] + planes[2][v, j, k]
    return math.isfinite(image[t, j, k]) and math.isfinite(total)


@loop
def _vectors(image, values, planes, used, powers, out):  # type: ignore[no-untyped-def]
    vectors, counts = out
    for t in range(image.shape[0]):
        for j in range(image.shape[1]):
            for k in range(image.shape[2]):
                if used[j, k] and _counts(image, planes, t, j, k):
                    counts[t, k] += 1
                    for a in range(powers.shape[1]):
                        vectors[t, k, a] += powers[j, a] * np.float64(values[t, j, k])


@loop
def _matrices(image, values, planes, used, powers, places, matrices):  # type: ignore[no-untyped-def]
    for i in range(places.shape[0]):
        t, k = places[i, 0], places[i, 1]
        for j in range(image.shape[1]):
            if used[j, k] and _counts(image, planes, t, j, k):
                for a in range(powers.shape[1]):
                    for b in range(powers.shape[1]):
                        matrices[i, a, b] += powers[j, a] * powers[j, b]


@loop
def _extract(image, planes, profile, used, powers, fitted, single, found):  # type: ignore[no-untyped-def]
    coefficients, applied = fitted
    for t in range(image.shape[0]):
        v = min(t, planes[0].shape[0] - 1)
        for j in range(image.shape[1]):
            for k in range(image.shape[2]):
                weight = profile[j, k]
                if weight != 0.0:
                    level = 0.0
                    for a in range(powers.shape[1]):
                        level += coefficients[t, k, a] * powers[j, a]
                    value = np.float64(image[t, j, k]) - level
                    if single:
                        value = np.float64(np.float32(value))
                    if math.isfinite(value):
                        found[0, t, k] += value * weight
                        found[1, t, k] += weight
                        found[2, t, k] += level * weight
                        for p in range(3):
                            if not math.isnan(planes[p][v, j, k]):
                                found[3 + p, t, k] += planes[p][v, j, k] * (weight * weight)
                if used[j, k] and _counts(image, planes, t, j, k):
                    share = 0.0
                    for a in range(powers.shape[1]):
                        share += applied[t, k, a] * powers[j, a]
                    for p in range(3):
                        found[6 + p, t, k] += planes[p][v, j, k] * (share * share)
        for p in range(3):
            for k in range(image.shape[2]):
                found[3 + p, t, k] += found[6 + p, t, k]


def selected(sums: Sums, points: Sequence[bool] | Bool) -> Sums:
    """Return the sums of some points along the dispersion: those that have a wavelength."""
    keep = np.asarray(points, np.bool_)

    def cut(values: NDArray[np.floating]) -> F8:
        return np.asarray(values[:, keep], np.float64)

    return Sums(
        cut(sums.flux), Variances(*map(cut, sums.variances)), cut(sums.background),
        Variances(*map(cut, sums.background_variances)), cut(sums.pixels),
    )  # fmt: skip
