"""Stars of an exposure: peaks of the image convolved with a star-like kernel, measured and selected.

Spec image3 §4.1 and §4.3, finders ``iraf`` and ``dao``.  The image is worked through in bands of rows, each with a halo
of a few rows, so that beyond the image itself only a few MiB are held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.kernels.background import Mesh, background_mesh
from streamimg3.kernels.clip import middle_values
from streamimg3.kernels.compiled import loop
from streamimg3.kernels.moments import Candidates, Column, DensityKernel, measure_dao, measure_iraf

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
Bool = NDArray[np.bool_]

FINDERS = ("iraf", "dao")
_BAND_ROWS = 128
_GROUP = 4096  # candidates measured at once


@dataclass(frozen=True)
class FinderOptions:
    """How stars are found; names and defaults are those of the reference's alignment step (spec §4.1).

    Parameters
    ----------
    starfinder : str
        ``iraf`` or ``dao``.
    snr_threshold : float
        Least peak of the convolved image, in units of the background noise.
    kernel_fwhm : float
        Full width at half maximum of a star, in pixels.
    bkg_boxsize : int
        Side of a background box, in pixels.
    minsep_fwhm : float
        Least distance of two peaks, in units of ``kernel_fwhm``; it is at least 2 pixels.
    sigma_radius : float
        Radius of the kernel, in sigma.
    sharplo, sharphi, roundlo, roundhi : float
        Limits (inclusive) of sharpness and roundness.
    brightest : int or None
        How many stars to keep; None = all.
    peakmax : float or None
        Largest peak, in the image's unit; None = no limit.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    starfinder: str = "iraf"
    snr_threshold: float = 10.0
    kernel_fwhm: float = 2.5
    bkg_boxsize: int = 400
    minsep_fwhm: float = 0.0
    sigma_radius: float = 1.5
    sharplo: float = 0.5
    sharphi: float = 2.0
    roundlo: float = 0.0
    roundhi: float = 0.2
    brightest: int | None = 200
    peakmax: float | None = None

    def __post_init__(self) -> None:
        if self.starfinder not in FINDERS:
            raise InputError(f"starfinder = {self.starfinder!r}: it must be one of {', '.join(FINDERS)}")
        for name in ("snr_threshold", "kernel_fwhm", "sigma_radius", "minsep_fwhm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and (value > 0 or (value == 0 and name in ("snr_threshold", "minsep_fwhm")))):
                raise InputError(f"{name} = {value}: it must be a positive number")
        for name in ("bkg_boxsize", "brightest"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} = {value}: it must be at least 1")

    @property
    def separation(self) -> int:
        """Least distance of two peaks, in pixels."""
        return max(2, int(self.minsep_fwhm * self.kernel_fwhm + 0.5))

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        """Columns that are tested, and their least and largest values."""
        sharpness, roundness = (self.sharplo, self.sharphi), (self.roundlo, self.roundhi)
        if self.starfinder == "iraf":
            return {"sharpness": sharpness, "roundness": roundness}
        return {"sharpness": sharpness, "roundness1": roundness, "roundness2": roundness}


@dataclass(frozen=True, eq=False)
class StarList:
    """Stars of one exposure.

    Parameters
    ----------
    id : ndarray of int64, shape (n,)
        Numbers from 1 on.
    x, y : ndarray of float64, shape (n,)
        Positions in pixels, 0-based, centres at integers.
    flux : ndarray of float64, shape (n,)
        Flux in the image's unit × pixel (float32 while stars of ``dao`` are not yet sorted).
    columns : dict of str to ndarray, each of shape (n,)
        What else the finder measures, in the order and with the names of the reference's catalogue; see
        :mod:`streamimg3.kernels.moments`.
    """

    id: I8
    x: F8
    y: F8
    flux: Column
    columns: dict[str, Column] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> StarList:
        """Return a list without stars."""
        none = np.zeros(0)
        return cls(np.zeros(0, np.int64), none, none, none)

    def __len__(self) -> int:
        return self.id.size

    def take(self, index: I8 | Bool) -> StarList:
        """Return some of the stars, with the numbers they have."""
        columns = {name: column[index] for name, column in self.columns.items()}
        return StarList(self.id[index], self.x[index], self.y[index], self.flux[index], columns)


@dataclass(frozen=True, eq=False)
class StarFinder:
    """Finds the stars of an image, one band of rows at a time.

    Parameters
    ----------
    options : FinderOptions
        Parameters.
    mesh : Mesh
        Background of the image.
    noise : float
        ``snr_threshold`` times the median noise of the image; see :func:`median_threshold`.
    """

    options: FinderOptions
    mesh: Mesh
    noise: float
    kernel: DensityKernel = field(init=False, repr=False)

    def __post_init__(self) -> None:
        kernel = DensityKernel.make(self.options.kernel_fwhm, self.options.sigma_radius)
        object.__setattr__(self, "kernel", kernel)

    @property
    def threshold(self) -> float:
        """What a peak of the convolved image must exceed."""
        return self.noise * self.kernel.relative_error if self.options.starfinder == "dao" else self.noise

    @property
    def halo(self) -> int:
        """Rows that are needed below and above a band."""
        return self._reach + self.kernel.radius

    @property
    def _reach(self) -> int:
        return max(self.options.separation, self.kernel.radius)

    def rows(self, y0: int, y1: int) -> tuple[int, int]:
        """Return the rows of the image that must be read to find the stars of rows ``y0..y1``."""
        return max(0, y0 - self.halo), min(self.mesh.shape[0], y1 + self.halo)

    def find(self, sci: F4, bad: Bool, y0: int, y1: int) -> StarList:
        """Return the stars whose peaks are in rows ``y0..y1`` and that pass all limits but ``brightest``.

        Parameters
        ----------
        sci : ndarray of float32
            Pixels of the rows that :meth:`rows` names, in full width.
        bad : ndarray of bool
            Flags of the same pixels: a peak is not on one of them, and no background is subtracted there.
        y0, y1 : int
            Rows, upper end excluded.
        """
        found = self._candidates(sci, bad, y0, y1)
        parts = [self._measure(found, slice(n, n + _GROUP)) for n in range(0, found.y.size, _GROUP)]
        return _joined(parts)

    def _candidates(self, sci: F4, bad: Bool, y0: int, y1: int) -> Candidates:
        """Return the peaks of the convolved image with cut-outs around them; outside the image everything is 0."""
        (first, last), (ny, nx) = self.rows(y0, y1), self.mesh.shape
        background = self.mesh.background(first, 0, last, nx)
        background[bad] = 0.0
        halo, reach, radius = self.halo, self._reach, self.kernel.radius
        data = np.zeros((y1 - y0 + 2 * halo, nx + 2 * halo), np.float32)
        inner = data[first - y0 + halo : last - y0 + halo, halo : halo + nx]
        with np.errstate(invalid="ignore", over="ignore"):
            np.subtract(sci, background, out=inner)
        convolved = np.zeros((y1 - y0 + 2 * reach, nx + 2 * reach), np.float32)
        bottom, top = max(0, y0 - reach) - y0 + reach, min(ny, y1 + reach) - y0 + reach
        taps, weights = np.argwhere(self.kernel.inside), self.kernel.weights[self.kernel.inside]
        _convolve(data, taps, weights, (bottom, top, reach), np.empty(nx), convolved)
        disc = _disc(self.options.separation)
        peaks = np.zeros((y1 - y0, nx), np.bool_)
        _mark_peaks(convolved, bad[y0 - first : y1 - first], disc, self.threshold, reach, peaks)
        y, x = np.nonzero(peaks)
        if y.size == ny * nx and (convolved[reach + y, reach + x] == convolved[reach, reach]).all():
            y, x = y[:0], x[:0]  # a convolved image without any contrast has no peaks
        cut = np.lib.stride_tricks.sliding_window_view
        size = (2 * radius + 1, 2 * radius + 1)
        around = halo - radius
        return Candidates(
            y + y0,
            x,
            cut(data, size)[y + around, x + around],
            cut(convolved, size)[y + reach - radius, x + reach - radius],
        )

    def _measure(self, found: Candidates, group: slice) -> StarList:
        some = Candidates(found.y[group], found.x[group], found.data[group], found.convolved[group])
        if self.options.starfinder == "dao":
            columns, keep = measure_dao(some, self.kernel, self.threshold)
        else:
            columns, keep = measure_iraf(some, self.kernel)
        for name, (low, high) in self.options.limits.items():
            keep &= (columns[name] >= low) & (columns[name] <= high)
        if self.options.peakmax is not None:
            keep &= columns["peak"] <= self.options.peakmax
        return _listed({name: column[keep] for name, column in columns.items()})


def median_threshold(mesh: Mesh, flags: Callable[[], Iterable[Bool]], snr: float) -> float:
    """Return ``snr`` times the noise map's median over the whole image; the map is 0 where pixels are flagged.

    Parameters
    ----------
    mesh : Mesh
        Background of the image.
    flags : callable
        Each call goes through the flags of the image once (True = flagged), in bands of whole rows of any height; it
        is called twice.
    snr : float
        Signal-to-noise ratio.

    Notes
    -----
    Zeros of flagged pixels count, as in the reference: an image that is flagged by half has the threshold 0.
    """

    def noise() -> Iterator[F4]:
        """Go through the noise map upwards, with zeros where pixels are flagged."""
        y = 0
        for bad in flags():
            rms = mesh.noise(y, 0, y + bad.shape[0], bad.shape[1])
            rms[bad] = 0.0
            y += bad.shape[0]
            yield rms

    low, high = (np.float32(snr) * value for value in middle_values(noise))
    return float((low + high) / np.float32(2.0))


def select_brightest(parts: Sequence[StarList], brightest: int | None) -> StarList:
    """Join the stars of bands in order, keep the brightest (brightest first) and number them from 1 on."""
    stars = _joined(parts)
    if brightest is not None:
        stars = stars.take(np.argsort(stars.flux)[::-1][:brightest])
    return StarList(np.arange(1, len(stars) + 1), stars.x, stars.y, stars.flux.astype(np.float64), stars.columns)


def find_stars(sci: F4, bad: Bool, options: FinderOptions) -> StarList:
    """Find the stars of one exposure.

    Parameters
    ----------
    sci : ndarray of float32, shape (ny, nx)
        Pixels; NaN and what touches it under the kernel is no peak.
    bad : ndarray of bool, shape (ny, nx)
        Pixels without coverage: left out of the background, which is 0 there; they are no peaks, but their values do
        enter the convolution and the measurements, as in the reference.
    options : FinderOptions
        Parameters.

    Returns
    -------
    StarList
        Empty if there is no good pixel or no star.
    """
    mesh = background_mesh(sci, bad, options.bkg_boxsize)
    if mesh is None:
        return StarList.empty()
    ends = [(y, min(y + _BAND_ROWS, sci.shape[0])) for y in range(0, sci.shape[0], _BAND_ROWS)]
    noise = median_threshold(mesh, lambda: (bad[y0:y1] for y0, y1 in ends), options.snr_threshold)
    finder = StarFinder(options, mesh, noise)
    parts = []
    for y0, y1 in ends:
        rows = slice(*finder.rows(y0, y1))
        parts.append(finder.find(sci[rows], bad[rows], y0, y1))
    return select_brightest(parts, options.brightest)


def _listed(columns: dict[str, Column]) -> StarList:
    others = {name: column for name, column in columns.items() if name not in ("x", "y", "flux")}
    x, y, flux = columns["x"], columns["y"], columns["flux"]
    return StarList(np.zeros(x.size, np.int64), x.astype(np.float64), y.astype(np.float64), flux, others)


def _joined(parts: Sequence[StarList]) -> StarList:
    parts = [part for part in parts if len(part)]
    if not parts:
        return StarList.empty()
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    number, x, y, flux = (np.concatenate([getattr(part, name) for part in parts]) for name in ("id", "x", "y", "flux"))
    return StarList(number, x, y, flux, columns)


def _disc(radius: int) -> I8:
    """Return the offsets (dy, dx) of the pixels within a distance, without the middle one."""
    offset = np.arange(-radius, radius + 1)
    distance2 = offset[:, None] ** 2 + offset**2
    disc: I8 = np.argwhere((distance2 <= radius**2) & (distance2 > 0)) - radius
    return disc


@loop
def _convolve(data, taps, weights, box, line, out):  # type: ignore[no-untyped-def]
    """Weighted sums in double, tap after tap, for the rows and columns of ``out`` that are in the image.

    ``data`` has the kernel's radius more on every side than ``out``.
    """
    bottom, top, left = box
    for j in range(bottom, top):
        for i in range(line.size):
            line[i] = 0.0
        for k in range(weights.size):
            w, y, x = weights[k], j + taps[k, 0], left + taps[k, 1]
            for i in range(line.size):
                line[i] += w * np.float64(data[y, x + i])
        for i in range(line.size):
            out[j, left + i] = np.float32(line[i])


@loop
def _mark_peaks(convolved, bad, disc, threshold, reach, peaks):  # type: ignore[no-untyped-def]
    """Mark the unflagged pixels above the threshold that no pixel of the disc around them exceeds."""
    for j in range(peaks.shape[0]):
        for i in range(peaks.shape[1]):
            value = convolved[j + reach, i + reach]
            if bad[j, i] or not np.float64(value) > threshold:
                continue
            highest = True
            for k in range(disc.shape[0]):
                if convolved[j + reach + disc[k, 0], i + reach + disc[k, 1]] > value:
                    highest = False
                    break
            peaks[j, i] = highest
