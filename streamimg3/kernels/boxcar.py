"""Spectra summed over a box across the dispersion, less a fitted background (spec others §2.5, boxcar).

What is the same for all integrations (weights of the box, design of the background, wavelengths) is prepared once; a
block of integrations then takes two passes over the rows that count.  Columns whose background has lost pixels are solved
by themselves.  Throughout, "across" is the axis that is summed, "along" the direction of dispersion; cubes are
(integration, y, x), and sums are (integration, along).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.kernels.compiled import loop

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
Bool = NDArray[np.bool_]
Polynomials = tuple[tuple[float, ...], ...]

ALONG_X, ALONG_Y = 1, 2
_WORST = 1e10  # condition of normal equations beyond which a column has no background, as in the reference
_MEDIAN_ERROR = 1.2  # error of a median in errors of the mean


@dataclass(frozen=True)
class Box:
    """Where a spectrum is, as an extract1d reference file says it.

    Attributes
    ----------
    dispaxis : int
        1 = wavelength changes along rows (x), 2 = along columns (y).
    start, stop : tuple of float
        First and last row and column (y, x), both included.
    width : float, optional
        Rows (or columns) to be summed about the middle of start and stop, or about a trace.
    source, background : tuple of polynomials
        Lower and upper limits in turn, constant terms first; limits count from the middle of a pixel.
    by_wavelength : bool
        Whether the polynomials are in wavelength; otherwise in pixels.
    whole : bool
        Whether the background takes whole pixels only, as the median does.

    Raises
    ------
    InputError
        If a lower limit has no upper one, or the direction is neither 1 nor 2.
    """

    dispaxis: int
    start: tuple[float, float]
    stop: tuple[float, float]
    width: float | None = None
    source: Polynomials = ()
    background: Polynomials = ()
    by_wavelength: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if self.dispaxis not in (ALONG_X, ALONG_Y):
            raise InputError(f"direction of dispersion {self.dispaxis}: it must be 1 (along x) or 2 (along y)")
        for name, limits in (("src_coeff", self.source), ("bkg_coeff", self.background)):
            if len(limits) % 2 or not all(limits):
                raise InputError(f"extract1d: {name} must give lower and upper limits in turn, none of them empty")

    def shifted(self, offset: float) -> Box:
        """Return the box moved across the dispersion by some pixels."""
        y, x = (offset, 0.0) if self.dispaxis == ALONG_X else (0.0, offset)
        return replace(
            self,
            start=(self.start[0] + y, self.start[1] + x),
            stop=(self.stop[0] + y, self.stop[1] + x),
            source=_moved(self.source, offset),
            background=_moved(self.background, offset),
        )


def _moved(limits: Polynomials, offset: float) -> Polynomials:
    return tuple((constant + offset, *rest) for constant, *rest in limits)


@dataclass(frozen=True)
class Profile:
    """Weights of a box: float64 from 0 to 1, shape (ny, nx), and its mean limits across the dispersion (0-based)."""

    weights: F8
    lower: float
    upper: float


def source_profile(box: Box, wavelength: F8, trace: F8 | None = None) -> Profile:
    """Return the weights that pixels have in a spectrum.

    Parameters
    ----------
    box : Box
    wavelength : ndarray of float64, shape (ny, nx)
        Of every pixel; where it is not finite, nothing is summed.
    trace : ndarray of float64, shape (nx,) or (ny,), optional
        Position across the dispersion of a source, for every pixel along it; counts if the box has a width and no limits.
    """
    across, along = _indices(box, wavelength.shape)
    weights = np.zeros(wavelength.shape)
    limits: Sequence[tuple[F8 | float, F8 | float]]
    if box.source:
        limits = _limits(box.source, wavelength if box.by_wavelength else along)
    elif box.width is not None and trace is not None:
        low = (trace[None, :] if box.dispaxis == ALONG_X else trace[:, None]) - (box.width - 1.0) / 2.0
        limits = [(low, low + box.width - 1.0)]
    else:
        limits = [_straight(box)]
    for lower, upper in limits:
        _cover(weights, across, lower, upper)
    _cut(weights, box)
    weights[~np.isfinite(wavelength)] = 0.0
    lows, highs = ([_mean(limit[side]) for limit in limits] for side in (0, 1))
    return Profile(weights, min(lows), max(highs))


def background_profile(box: Box, wavelength: F8) -> F8:
    """Return the weights of the pixels that the background comes from; only whether they are 0 matters to the fit."""
    across, along = _indices(box, wavelength.shape)
    weights = np.zeros(wavelength.shape)
    for lower, upper in _limits(box.background, wavelength if box.by_wavelength else along):
        _cover(weights, across, lower, upper, not box.whole)
    _cut(weights, box)
    return weights


def profile_wavelength(weights: F8, wavelength: F8, dispaxis: int) -> F8:
    """Return the mean wavelength of every pixel along the dispersion, weighted with the profile; NaN without a weight."""
    used = (weights > 0.0) & ~np.isnan(wavelength)
    axis = 0 if dispaxis == ALONG_X else 1
    given = np.where(used, weights, 0.0)
    total = given.sum(axis)
    sums = np.sum(np.where(used, wavelength, 0.0) * given, axis)
    found: F8 = np.divide(sums, total, out=np.full(total.shape, np.nan), where=total > 0.0)
    return found


def _indices(box: Box, shape: tuple[int, ...]) -> tuple[F8, F8]:
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float64)
    return (y, x) if box.dispaxis == ALONG_X else (x, y)


def _limits(polynomials: Polynomials, at: F8) -> list[tuple[F8, F8]]:
    """Limits counted as start and stop are: whole pixels, both included."""
    values = [np.polynomial.polynomial.polyval(at, np.array(p)) for p in polynomials]
    return [(low + 0.5, high - 0.5) for low, high in zip(values[::2], values[1::2], strict=True)]


def _straight(box: Box) -> tuple[float, float]:
    axis = 0 if box.dispaxis == ALONG_X else 1
    low, high = box.start[axis], box.stop[axis]
    if box.width is None:
        return low, high
    low = (low + high) / 2.0 - (box.width - 1.0) / 2.0
    return low, low + box.width - 1


def _mean(limit: F8 | float) -> float:
    values = np.asarray(limit, np.float64)
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _cover(weights: F8, across: F8, lower: F8 | float, upper: F8 | float, partial: bool = True) -> None:
    """Give pixels within limits the weight 1, those that are cut by one the part that is inside, unless they have more."""
    weights[(across >= lower) & (across <= upper)] = 1.0
    for part in (across - lower + 1.0, upper - across + 1.0) if partial else ():
        cut = (part > 0.0) & (part < 1.0) & (weights < part)
        weights[cut] = part[cut]


def _cut(weights: F8, box: Box) -> None:
    """Take away what is before the start and behind the stop along the dispersion."""
    axis = 1 if box.dispaxis == ALONG_X else 0
    first, last = max(math.ceil(box.start[axis]), 0), max(math.floor(box.stop[axis]) + 1, 0)
    view = np.moveaxis(weights, axis, 0)
    view[:first] = 0.0
    view[last:] = 0.0


# ---------------------------------------------------------------- extraction
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


# ---------------------------------------------------------------- calibration
@dataclass(frozen=True)
class Columns:
    """Columns of an EXTRACT1D table, float64 (n, points); the variances are Poisson, read noise, flat field.

    Attributes
    ----------
    flux, error, variances
        Jy, or DN/s.
    brightness, brightness_error, brightness_variances
        Per pixel of the box: MJy/sr, or DN/s.
    background, background_error, background_variances
        Per pixel of the box.
    pixels
        Sum of weights.
    """

    flux: F8
    error: F8
    variances: Variances
    brightness: F8
    brightness_error: F8
    brightness_variances: Variances
    background: F8
    background_error: F8
    background_variances: Variances
    pixels: F8

    @property
    def dq(self) -> NDArray[np.uint32]:
        """DO_NOT_USE where there is no flux."""
        return np.isnan(self.flux).astype(np.uint32)


def calibrated(sums: Sums, solid_angle: float | None, point_fluxes: bool = False) -> Columns:
    """Turn sums into the columns of a table.

    Parameters
    ----------
    sums : Sums
    solid_angle : float, optional
        Of a pixel in steradians; None = the pixels are count rates and stay so.
    point_fluxes : bool
        Whether pixels are in MJy, not in MJy/sr (point sources of NIRSpec); there is no surface brightness then.
    """
    area = np.where(sums.pixels > 0.0, sums.pixels, 1.0)
    flux_factor, sky_factor, bright = 1.0, 1.0, 1.0
    if solid_angle is not None:
        flux_factor = 1.0e6 if point_fluxes else solid_angle * 1.0e6
        sky_factor, bright = (1.0 / solid_angle, 0.0) if point_fluxes else (1.0, 1.0)
    variances = _scaled(sums.variances, flux_factor**2)
    shine = _scaled(sums.variances, bright / area**2)
    sky = _scaled(sums.background_variances, sky_factor**2 / area**2)
    brightness = sums.flux / area if bright else np.zeros(area.shape)
    background = sums.background / area * sky_factor
    return Columns(
        sums.flux * flux_factor, _root(variances), variances, brightness, _root(shine), shine,
        background, _root(sky), sky, sums.pixels,
    )  # fmt: skip


def _scaled(variances: Variances, factor: F8 | float) -> Variances:
    return Variances(*(plane * factor for plane in variances))


def _root(variances: Variances) -> F8:
    return np.asarray(np.sqrt(variances.poisson + variances.rnoise + variances.flat), np.float64)


class ApertureTable(NamedTuple):
    """A row of an APCORR file: sizes (s,) in pixels, increasing; wavelengths (w,) in microns; corrections (w, s)."""

    size: F8
    wavelength: F8
    correction: F8


def aperture_factors(table: ApertureTable, pixels: F8, wavelength: F8) -> F8:
    """Return the factor for light outside the box, linear between the table's sizes and wavelengths and constant beyond.

    Parameters
    ----------
    table : ApertureTable
    pixels : ndarray of float64, shape (n, points)
    wavelength : ndarray of float64, shape (points,)
        In microns.

    Returns
    -------
    ndarray of float64, shape (n, points)

    Raises
    ------
    InputError
        If the table does not increase.
    """
    from scipy.interpolate import RectBivariateSpline

    order = np.argsort(table.wavelength, kind="stable")
    at, size = np.asarray(table.wavelength, np.float64)[order], np.asarray(table.size, np.float64)
    if len(size) < 2 or len(at) < 2 or (np.diff(size) <= 0).any() or (np.diff(at) <= 0).any():
        raise InputError("apcorr: sizes and wavelengths must increase, two of each at least; give another apcorr file")
    spline = RectBivariateSpline(size, at, np.asarray(table.correction, np.float64)[order].T, kx=1, ky=1)
    return np.asarray(spline.ev(pixels, np.broadcast_to(wavelength, pixels.shape)), np.float64)


def corrected(columns: Columns, factors: F8) -> Columns:
    """Multiply flux and surface brightness with factors, their variances with the squares; the background stays."""
    square = factors * factors
    return replace(
        columns,
        flux=columns.flux * factors,
        error=columns.error * factors,
        variances=_scaled(columns.variances, square),
        brightness=columns.brightness * factors,
        brightness_error=columns.brightness_error * factors,
        brightness_variances=_scaled(columns.brightness_variances, square),
    )


def selected(sums: Sums, points: Sequence[bool] | Bool) -> Sums:
    """Return the sums of some points along the dispersion: those that have a wavelength."""
    keep = np.asarray(points, np.bool_)

    def cut(values: NDArray[np.floating]) -> F8:
        return np.asarray(values[:, keep], np.float64)

    return Sums(
        cut(sums.flux), Variances(*map(cut, sums.variances)), cut(sums.background),
        Variances(*map(cut, sums.background_variances)), cut(sums.pixels),
    )  # fmt: skip
