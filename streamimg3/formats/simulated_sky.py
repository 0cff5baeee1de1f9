"""What a simulated exposure sees: stars and galaxies with known flux, cosmic rays, and the flaws of the detector.

Point source and galaxies are sums of Gaussians, so a star is integrated exactly over its pixels by one matrix product,
and a galaxy is convolved with the point-spread function by adding variances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from streamimg3.formats.simulated_wcs import Floats, plane_to_sky

Image = NDArray[np.float32]

DO_NOT_USE: Final = 1
JUMP_DET: Final = 4
NON_SCIENCE: Final = 512
DEAD: Final = 1024
HOT: Final = 2048
REFERENCE_PIXEL: Final = 2**31

CORE_SIGMA: Final = 0.85  # px: FWHM 2.0 px, near NIRCam's at 2 micron
WING_SCALE: Final = 3.5  # px
WING_FLUX: Final = 0.3
MAX_RADIUS: Final = 150  # px, of a star's stamp
MAX_GALAXY: Final = 500  # px, half-size of a galaxy's stamp
DISC_RADIUS: Final = 1.6783  # effective radius of an exponential disc in scale lengths


@dataclass(frozen=True, eq=False)
class Mixture:
    """Concentric round Gaussians.

    Attributes
    ----------
    variance : ndarray, shape (n,), float64
        Variance along one axis, in units of the scale squared.
    weight : ndarray, shape (n,), float64
        Share of the flux; sums to 1.
    """

    variance: Floats
    weight: Floats

    def profile(self, radius: Floats) -> Floats:
        """Surface density at ``radius`` of a source of flux 1."""
        density = np.exp(-0.5 * radius[:, None] ** 2 / self.variance) / (2.0 * np.pi * self.variance)
        return density @ self.weight


def _gamma_mixture(shape: float, log_t: Floats) -> tuple[Floats, Floats]:
    """Abscissae t and normalised weights of the density t**(shape - 1) exp(-t), sampled evenly in log t."""
    t = np.exp(log_t)
    weight = t**shape * np.exp(-t)
    return t, weight / weight.sum()


def point_spread() -> Mixture:
    """Gaussian core (70 % of the flux) in a Moffat wing of index 2, in pixels, not yet integrated over the pixel."""
    t, weight = _gamma_mixture(1.0, np.arange(-5.0, 2.1))
    variance = np.append(CORE_SIGMA**2, WING_SCALE**2 / (2.0 * t))
    return Mixture(variance, np.append(1.0 - WING_FLUX, WING_FLUX * weight))


def disc() -> Mixture:
    """Exponential disc of scale length 1: exp(-r) is a mixture of Gaussians of variance 2t, t of gamma density 3/2."""
    t, weight = _gamma_mixture(1.5, np.arange(-3.0, 2.1))
    return Mixture(2.0 * t, weight)


@dataclass(frozen=True, eq=False)
class Catalog:
    """The true sky, one element per source (arrays of one length).

    Attributes
    ----------
    kind : ndarray of str
        ``star``, ``galaxy``, ``extended``, or ``target`` for the moving one, whose place here is the mean one.
    ra, dec : ndarray, float64
        ICRS, deg.
    flux : ndarray, float64
        Jy.
    radius : ndarray, float64
        Half-light radius along the major axis, arcsec; 0 for points.
    ratio : ndarray, float64
        Minor to major axis.
    angle : ndarray, float64
        Position angle of the major axis, north through east, deg.
    """

    kind: NDArray[np.str_]
    ra: Floats
    dec: Floats
    flux: Floats
    radius: Floats
    ratio: Floats
    angle: Floats

    def __len__(self) -> int:
        return len(self.ra)

    def with_target(self, ra: float, dec: float, flux: float) -> Catalog:
        """Append a moving point source whose mean place is (ra, dec)."""
        row = Catalog(np.array(["target"]), *(np.array([value]) for value in (ra, dec, flux, 0.0, 1.0, 0.0)))
        return Catalog(*(np.append(getattr(self, f.name), getattr(row, f.name)) for f in fields(self)))


@dataclass(frozen=True)
class Density:
    """Mean number of sources per square arcsecond, and the number of big galaxies in the whole field."""

    stars: float
    galaxies: float
    extended: int


def power_law(rng: np.random.Generator, n: int, limits: tuple[float, float], slope: float) -> Floats:
    """Draw ``n`` fluxes between ``limits`` whose cumulative counts fall as flux**-slope."""
    low, high = limits[0] ** -slope, limits[1] ** -slope
    fluxes: Floats = (low + rng.random(n) * (high - low)) ** (-1.0 / slope)
    return fluxes


def _lattice(rng: np.random.Generator, density: float, box: tuple[float, float, float, float]) -> tuple[Floats, Floats]:
    """Offsets (eta, xi) near the nodes of a square lattice: stars then are no nearer than half a step to each other."""
    rows, columns = (max(1, round((box[i + 2] - box[i]) * math.sqrt(density))) if density > 0 else 0 for i in (0, 1))
    row, column = np.divmod(np.arange(rows * columns), max(1, columns))
    eta = box[0] + (row + rng.uniform(0.25, 0.75, len(row))) * (box[2] - box[0]) / max(1, rows)
    xi = box[1] + (column + rng.uniform(0.25, 0.75, len(row))) * (box[3] - box[1]) / max(1, columns)
    return eta, xi


def draw_catalog(
    rng: np.random.Generator, density: Density, box: tuple[float, float, float, float], centre: tuple[float, float]
) -> Catalog:
    """Draw the sources of a patch of sky: stars, then galaxies, then big galaxies.

    Galaxies lie anywhere; stars keep a distance from each other, so that catalogues of them can be matched.

    Parameters
    ----------
    rng : numpy.random.Generator
    density : Density
    box : tuple of float
        Lowest (north, east) and highest (north, east) offset in the tangent plane, arcsec.
    centre : tuple of float
        RA and Dec of the tangent point, deg.
    """
    area = (box[2] - box[0]) * (box[3] - box[1])
    eta, xi = _lattice(rng, density.stars, box)
    stars, galaxies, big = len(eta), rng.poisson(density.galaxies * area), density.extended
    n = galaxies + big
    eta = np.concatenate([eta, rng.uniform(box[0], box[2], n)])
    xi = np.concatenate([xi, rng.uniform(box[1], box[3], n)])
    ra, dec = plane_to_sky(eta, xi, *centre)
    star_flux, disc_flux = power_law(rng, stars, (3e-8, 2e-5), 0.45), power_law(rng, galaxies, (2e-8, 4e-6), 0.9)
    disc_radius = np.clip(0.12 * (disc_flux / 1e-7) ** 0.25 * rng.lognormal(0.0, 0.35, galaxies), 0.04, 1.2)
    big_radius = np.minimum(rng.uniform(1.4, 3.4, big), 0.1 * math.sqrt(area))
    return Catalog(
        kind=np.repeat(np.array(["star", "galaxy", "extended"]), [stars, galaxies, big]),
        ra=ra,
        dec=dec,
        flux=np.concatenate([star_flux, disc_flux, 6e-6 * big_radius**2]),
        radius=np.concatenate([np.zeros(stars), disc_radius, big_radius]),
        ratio=np.concatenate([np.ones(stars), rng.uniform(0.25, 1.0, n)]),
        angle=np.concatenate([np.zeros(stars), rng.uniform(0.0, 180.0, n)]),
    )


def add_stamp(image: Image, stamp: Image, y: int, x: int) -> None:
    """Add a square ``stamp`` of odd side, centred on pixel (y, x), to the part of ``image`` that it covers."""
    r = len(stamp) // 2
    y0, y1 = max(y - r, 0), min(y + r + 1, image.shape[0])
    x0, x1 = max(x - r, 0), min(x + r + 1, image.shape[1])
    if y0 < y1 and x0 < x1:
        image[y0:y1, x0:x1] += stamp[y0 - y + r : y1 - y + r, x0 - x + r : x1 - x + r]


def star_stamp(psf: Mixture, dy: float, dx: float, radius: int) -> Image:
    """Flux in each pixel of a star of flux 1 that lies (dy, dx) from the centre of the middle pixel.

    Returns
    -------
    ndarray, shape (2 radius + 1, 2 radius + 1), float32
        The exact integrals; they sum to 1 but for the flux outside the stamp.
    """
    from scipy.special import ndtr

    edges = np.arange(-radius - 0.5, radius + 1.0)
    sigma = np.sqrt(psf.variance)[:, None]
    along_y, along_x = (np.diff(ndtr((edges - shift) / sigma), axis=1) for shift in (dy, dx))
    stamp: Image = ((psf.weight[:, None] * along_y).T @ along_x).astype(np.float32)
    return stamp


def galaxy_stamp(parts: tuple[Mixture, Mixture], shape: Floats, offset: tuple[float, float], radius: int) -> Image:
    """Flux in each pixel of a galaxy of flux 1, convolved with the point-spread function and the pixel.

    Parameters
    ----------
    parts : tuple of Mixture
        The galaxy's radial profile and the point-spread function.
    shape : ndarray, shape (2, 2), float64
        Covariance (x, y) of the galaxy for a profile variance of 1, pixels squared.
    offset : tuple of float
        Centre (y, x) relative to the middle pixel.
    radius : int
        Half-size of the stamp, pixels.

    Returns
    -------
    ndarray, shape (2 radius + 1, 2 radius + 1), float32
    """
    profile, psf = parts
    axis = np.arange(-radius, radius + 1)
    y, x = (axis - offset[0]).astype(np.float32)[:, None], (axis - offset[1]).astype(np.float32)[None, :]
    yy, xy, xx = y * y, y * x, x * x
    stamp = np.zeros(xy.shape, np.float32)
    for variance, weight in zip(profile.variance, profile.weight, strict=True):
        for blur, share in zip(psf.variance, psf.weight, strict=True):
            # A pixel of width 1 adds the variance of a uniform density, 1/12: the same moments as its exact integral.
            cov = variance * shape + (blur + 1.0 / 12.0) * np.eye(2)
            det = cov[0, 0] * cov[1, 1] - cov[0, 1] ** 2
            a, b, c = (np.float32(-0.5 * term / det) for term in (cov[1, 1], -2.0 * cov[0, 1], cov[0, 0]))
            stamp += np.float32(weight * share / (2.0 * np.pi * math.sqrt(det))) * np.exp(a * xx + b * xy + c * yy)
    return stamp


def sky_covariance(ratio: float, angle: float) -> Floats:
    """Covariance (east, north) of an ellipse of major axis 1, minor axis ``ratio``, position angle ``angle`` (deg)."""
    s, c = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    major, minor = np.array([s, c]), np.array([c, -s])
    return np.outer(major, major) + ratio**2 * np.outer(minor, minor)


class Painter:
    """Paints sources in an image of flux per pixel, each only where it is brighter than ``limit`` (Jy per pixel)."""

    def __init__(self, image: Image, limit: float) -> None:
        self.image, self.limit = image, limit
        self.psf, self.disc = point_spread(), disc()
        self._star_profile = self.psf.profile(np.arange(MAX_RADIUS + 1.0))

    def star(self, y: float, x: float, flux: float) -> None:
        """Add a point source at pixel (y, x)."""
        # The profile falls with radius: count the pixels along a radius that are above the limit.
        radius = max(8, int(np.count_nonzero(flux * self._star_profile > self.limit)))
        if self._near(y, x, radius):
            iy, ix = round(y), round(x)
            add_stamp(self.image, np.float32(flux) * star_stamp(self.psf, y - iy, x - ix, radius), iy, ix)

    def galaxy(self, y: float, x: float, flux: float, shape: Floats) -> None:
        """Add an exponential disc at pixel (y, x); ``shape`` is the covariance (x, y) of its scale length, pixels²."""
        scale = math.sqrt(float(np.linalg.eigvalsh(shape)[1]))
        peak = flux / (2.0 * np.pi * math.sqrt(float(np.linalg.det(shape))))
        radius = min(MAX_GALAXY, 10 + math.ceil(scale * math.log(1.0 + peak / self.limit)))
        if self._near(y, x, radius):
            iy, ix = round(y), round(x)
            stamp = galaxy_stamp((self.disc, self.psf), shape, (y - iy, x - ix), radius)
            add_stamp(self.image, np.float32(flux) * stamp, iy, ix)

    def _near(self, y: float, x: float, radius: int) -> bool:
        ny, nx = self.image.shape
        return bool(-radius - 1 < y < ny + radius and -radius - 1 < x < nx + radius)


def cosmic_rays(
    rng: np.random.Generator, shape: tuple[int, int], per_mpix: float, noise: float
) -> tuple[NDArray[np.int64], Image]:
    """Draw cosmic rays: half of them hit one pixel, the others leave a straight track of some pixels.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : tuple of int
        (ny, nx).
    per_mpix : float
        Mean number of hits per million pixels.
    noise : float
        Noise of a pixel; a hit deposits 12 to 2500 times as much in each pixel it crosses.

    Returns
    -------
    index : ndarray, int64
        Flat indices of the hit pixels, ascending, each once.
    value : ndarray, float32
        What they gain, in the unit of ``noise``.
    """
    n = int(rng.poisson(per_mpix * shape[0] * shape[1] / 1e6))
    y, x, angle = rng.uniform(0, shape[0], n), rng.uniform(0, shape[1], n), rng.uniform(0, 2 * np.pi, n)
    length = np.where(rng.random(n) < 0.5, 1, 2 + np.minimum(rng.exponential(3.5, n), 40.0).astype(int))
    deposit = noise * np.exp(rng.uniform(np.log(12.0), np.log(2500.0), n))
    hit = np.repeat(np.arange(n), length)
    step = np.arange(len(hit)) - np.repeat(np.cumsum(length) - length, length)
    iy = np.floor(y[hit] + step * np.sin(angle[hit])).astype(np.int64)
    ix = np.floor(x[hit] + step * np.cos(angle[hit])).astype(np.int64)
    inside = (iy >= 0) & (iy < shape[0]) & (ix >= 0) & (ix < shape[1])
    index, where = np.unique(iy[inside] * shape[1] + ix[inside], return_inverse=True)
    return index, np.bincount(where, deposit[hit][inside], len(index)).astype(np.float32)


def flaws(
    rng: np.random.Generator, shape: tuple[int, int], fraction: float, border: int
) -> tuple[NDArray[np.uint32], Image]:
    """Draw the fixed pattern of a detector.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : tuple of int
        (ny, nx).
    fraction : float
        Share of flawed pixels: two fifths dead, two fifths hot (both unusable), one fifth with a corrected jump
        (usable); besides some unusable blobs.
    border : int
        Width of the frame of reference pixels.

    Returns
    -------
    dq : ndarray, shape (ny, nx), uint32
        JWST data quality flags.
    read_noise : ndarray, shape (ny, nx), float32
        Read noise of each pixel relative to the typical one.
    """
    dq = np.zeros(shape, np.uint32)
    count = int(fraction * dq.size)
    kinds = np.array([DO_NOT_USE | DEAD, DO_NOT_USE | HOT, JUMP_DET], np.uint32)
    dq.flat[rng.integers(0, dq.size, count)] = rng.choice(kinds, count, p=[0.4, 0.4, 0.2])
    for _ in range(rng.poisson(1.5 * dq.size / 1e6) if fraction > 0 else 0):
        cy, cx, r = (int(rng.integers(low, high)) for low, high in ((0, shape[0]), (0, shape[1]), (2, 12)))
        window = (slice(max(0, cy - r), cy + r), slice(max(0, cx - r), cx + r))
        y, x = np.ogrid[: shape[0], : shape[1]]
        dq[window][np.hypot(y[window[0]] - cy, x[:, window[1]] - cx) < r] |= DO_NOT_USE
    frame = np.ones(shape, bool)
    frame[border : shape[0] - border, border : shape[1] - border] = False
    dq[frame] = REFERENCE_PIXEL | DO_NOT_USE
    read_noise = np.clip(1.0 + 0.1 * rng.standard_normal(shape, np.float32), 0.6, 6.0)
    return dq, read_noise.astype(np.float32)
