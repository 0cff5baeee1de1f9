"""The columns of the source catalogue: names, units, meaning and values (image3 §9.5 and §9.6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.measure import nearest
from streamimg3.sky.mosaic_frame import linear_terms
from streamimg3.sky.wcs import Wcs
from streamimg3.store.documents import CatalogColumn

F8 = NDArray[np.float64]
Values = NDArray[np.generic]
Column = tuple[CatalogColumn, Values]
Measures = Mapping[str, NDArray[np.generic]]
Getter = Callable[[str], F8]

_AB_ZERO = 8.9  # AB magnitude of 1 Jy
_CORNERS = {"ll": (0, 1), "ul": (2, 1), "lr": (0, 3), "ur": (2, 3)}  # rows and columns among (y0, x0, y1, x1)
_PLACES = {"ll": "lower-left", "ul": "upper-left", "lr": "lower-right", "ur": "upper-right"}


@dataclass(frozen=True)
class Photometry:
    """What turns sums of pixels into columns.

    Parameters
    ----------
    unit : str or None
        Unit of the sums; magnitudes exist where it is Jy.
    energies : tuple of int
        Encircled energies of the apertures in per cent; none = there are no apertures.
    areas : tuple of float
        Areas of the apertures, pixels.
    corrections : tuple of float
        From each aperture to all light; the largest one's is used.
    offset : float or None
        AB minus Vega magnitude.
    star_limits : tuple of float
        Concentration indices above which a source is extended.
    """

    unit: str | None
    energies: tuple[int, ...] = ()
    areas: tuple[float, ...] = ()
    corrections: tuple[float, ...] = ()
    offset: float | None = None
    star_limits: tuple[float, float] = (2.0, 1.8)


@dataclass
class _Table:
    """Columns in the making."""

    photometry: Photometry
    columns: list[Column] = field(default_factory=list)

    def add(self, name: str, values: Values, unit: str | None, text: str, form: str | None = None) -> None:
        self.columns.append((CatalogColumn(name, values.dtype.name, unit, text, form), values))

    def sky(self, name: str, sky: tuple[F8, F8], text: str) -> None:
        for axis, values in zip(("ra", "dec"), sky, strict=True):
            self.add(f"{name}.{axis}", values, "deg", text)

    def flux(self, name: str, values: Values, text: str) -> None:
        self.add(name, values, self.photometry.unit, text, ".6e")

    def magnitude(self, name: str, values: Values, text: str) -> None:
        self.add(name, values, None, text, ".6f")


def columns(
    label: NDArray[np.integer], measures: Measures, box: NDArray[np.int64] | None, wcs: Wcs, photometry: Photometry
) -> list[Column]:
    """Return all columns in the order of the reference, then our own.

    Parameters
    ----------
    label : ndarray of int, shape (n,)
        Labels of the sources.
    measures : mapping of str to ndarray, shape (n,)
        What was measured; a quantity that is missing is NaN.
    box : ndarray of int64, shape (n, 4), or None
        Bounding boxes ``(y0, x0, y1, x1)``.
    wcs : Wcs
        Of the mosaic.
    photometry : Photometry
        Units, apertures and zero points.
    """
    n = len(label)
    known = {name: np.asarray(values) for name, values in measures.items()}

    def of(name: str) -> F8:
        return known[name].astype(np.float64) if name in known else np.full(n, np.nan)

    table = _Table(photometry)
    x, y = of("x"), of("y")
    table.add("label", label.astype(np.int32), None, "Number of the source in the segmentation map")
    table.add("xcentroid", x, None, "Column of the centroid, pixels from 0", ".4f")
    table.add("ycentroid", y, None, "Row of the centroid, pixels from 0", ".4f")
    table.sky("sky_centroid", wcs.to_sky(y, x), "ICRS position of the centroid")
    if photometry.energies:
        _apertures(table, of)
    table.add("sharpness", of("sharpness"), None, "DAOFIND sharpness", ".6f")
    table.add("roundness", of("roundness").astype(np.float32), None, "DAOFIND roundness", ".6f")
    neighbour, distance = nearest(y, x)
    there = neighbour >= 0
    table.add(
        "nn_label",
        np.where(there, label[neighbour], -1).astype(np.int32),
        None,
        "Label of the nearest neighbour, -1 = none",
    )
    table.add("nn_dist", distance, "pix", "Distance of the nearest neighbour", ".6f")
    _isophotal(table, of)
    _shape(table, of, wcs)
    for corner, (row, col) in _CORNERS.items():
        at = np.full((2, n), np.nan) if box is None else box[:, (row, col)].T - 0.5
        text = f"ICRS position of the {_PLACES[corner]} corner of the smallest box around the source"
        table.sky(f"sky_bbox_{corner}", wcs.to_sky(at[0], at[1]), text)
    _position_errors(table, of, wcs)
    return table.columns


def magnitudes(flux: F8, error: F8) -> tuple[F8, F8]:
    """Return AB magnitudes and their errors for fluxes in Jy; NaN for negative ones."""
    with np.errstate(divide="ignore", invalid="ignore"):
        magnitude = -2.5 * np.log10(flux) + _AB_ZERO
        uncertain = 2.5 * np.log10(1.0 + error / flux)
    negative = flux < 0
    magnitude[negative], uncertain[negative] = np.nan, np.nan
    return magnitude, uncertain


def _apertures(table: _Table, of: Getter) -> None:
    """Fluxes in apertures less the local background, magnitudes, concentration and extent."""
    p = table.photometry
    ring = of("ring")
    table.flux("aper_bkg_flux", ring, "Local background per pixel: clipped median in the sky ring")
    table.flux("aper_bkg_flux_err", of("ring_err"), "Standard error of the local background")
    fluxes = [of(f"circle{k}") - ring * area for k, area in enumerate(p.areas)]
    found = {str(e): (f, of(f"circle{k}_err")) for k, (e, f) in enumerate(zip(p.energies, fluxes, strict=True))}
    largest = f"the aperture of {p.energies[-1]}% encircled energy"
    found["_total"] = tuple(p.corrections[-1] * v for v in found[str(p.energies[-1])])  # type: ignore[assignment]
    inside = {n: f"within the aperture of {n}% encircled energy" for n in found}
    inside["_total"] = f"of all light, corrected from {largest}; for unresolved sources only"
    for name, (flux, error) in found.items():
        table.flux(f"aper{name}_flux", flux, f"Flux {inside[name]}")
        table.flux(f"aper{name}_flux_err", error, f"Error of the flux {inside[name]}")
    for system, text, shift in _systems(p):
        for name, (flux, error) in found.items():
            magnitude, uncertain = magnitudes(flux, error)
            table.magnitude(f"aper{name}_{system}", magnitude - shift, f"{text} magnitude {inside[name]}")
            table.magnitude(f"aper{name}_{system}_err", uncertain, f"Error of the {text} magnitude {inside[name]}")
    with np.errstate(divide="ignore", invalid="ignore"):
        index = {(a, b): fluxes[b] / fluxes[a] for a, b in ((0, 1), (1, 2), (0, 2))}
    for (a, b), values in index.items():
        names = [f"aper{p.energies[k]}_flux" for k in (b, a)]
        table.add(
            f"CI_{p.energies[b]}_{p.energies[a]}", values, None, f"Concentration index {names[0]} / {names[1]}", ".4f"
        )
    with np.errstate(invalid="ignore"):
        extended = (index[0, 1] > p.star_limits[0]) & (index[1, 2] > p.star_limits[1])
    table.add("is_extended", extended, None, "Whether the source is extended, by its concentration indices")


def _systems(p: Photometry) -> list[tuple[str, str, float]]:
    """Magnitude systems that are known: column name, name, and what is taken off the AB magnitude."""
    if p.unit != "Jy":
        return []
    return [("abmag", "AB", 0.0)] + ([("vegamag", "Vega", p.offset)] if p.offset is not None else [])


def _isophotal(table: _Table, of: Getter) -> None:
    flux, error = of("flux"), of("flux_err").astype(np.float32)
    table.flux("isophotal_flux", flux, "Flux within the source's segment, less the background")
    table.flux("isophotal_flux_err", error, "Error of the isophotal flux")
    for system, text, shift in _systems(table.photometry):
        magnitude, uncertain = magnitudes(flux, error.astype(np.float64))
        table.magnitude(f"isophotal_{system}", magnitude - shift, f"Isophotal {text} magnitude")
        table.magnitude(f"isophotal_{system}_err", uncertain, f"Error of the isophotal {text} magnitude")
    table.add("isophotal_area", of("area"), "pix2", "Area of the source's segment")


def _shape(table: _Table, of: Getter, wcs: Wcs) -> None:
    major, minor, angle = of("semimajor"), of("semiminor"), of("orientation")
    for name, axis, values in (("semimajor_sigma", "major", major), ("semiminor_sigma", "minor", minor)):
        text = f"Standard deviation along the {axis} axis of the Gaussian that has the source's second moments"
        table.add(name, values, "pix", text, ".6f")
    with np.errstate(divide="ignore", invalid="ignore"):
        table.add("ellipticity", 1.0 - minor / major, None, "1 - semiminor_sigma / semimajor_sigma", ".6f")
    table.add("orientation", angle, "deg", "Angle from +x to the major axis, counter-clockwise", ".6f")
    turned = (180.0 - north_angle(wcs) + angle) % 360.0
    table.add("sky_orientation", turned, "deg", "Position angle of the major axis, from north", ".6f")


def north_angle(wcs: Wcs) -> float:
    """Return the angle from +x to north at the WCS's reference pixel (else the middle of the image), degrees."""
    terms = linear_terms(wcs)
    if terms is None:
        y, x = (np.array([0.5 * (n - 1)]) for n in wcs.shape)
    else:
        y, x = (np.array([float(terms[f"CRPIX{k}"]) - 1]) for k in (2, 1))
    ra, dec = wcs.to_sky(y, x, bounded=False)
    step = 1.0 / 3600
    (y0, x0), (y1, x1) = wcs.to_pixel(ra, dec), wcs.to_pixel(ra, dec + step)
    return float(np.rad2deg(np.arctan2(y1 - y0, x1 - x0))[0])


def _position_errors(table: _Table, of: Getter, wcs: Wcs) -> None:
    """Errors of the centroid in pixels and, through the WCS at the source, on the sky."""
    x, y, dx, dy, cov = (of(n) for n in ("x", "y", "x_err", "y_err", "xy_cov"))
    source = "from the pixels' errors and the source's moments"
    table.add("x_err", dx, "pix", f"Standard error of xcentroid, {source}", ".6f")
    table.add("y_err", dy, "pix", f"Standard error of ycentroid, {source}", ".6f")
    half = 0.5
    east = wcs.to_sky(y, x + half, False), wcs.to_sky(y, x - half, False)
    north = wcs.to_sky(y + half, x, False), wcs.to_sky(y - half, x, False)
    _, dec = wcs.to_sky(y, x, False)
    per_x, per_y = (
        ((((a[0] - b[0] + 180.0) % 360.0) - 180.0) * np.cos(np.deg2rad(dec)), a[1] - b[1]) for a, b in (east, north)
    )
    for k, (name, text) in enumerate((("ra_err", "right ascension (great circle)"), ("dec_err", "declination"))):
        with np.errstate(invalid="ignore"):
            variance = (per_x[k] * dx) ** 2 + (per_y[k] * dy) ** 2 + 2 * per_x[k] * per_y[k] * cov
            table.add(name, np.sqrt(variance) * 3.6e6, "mas", f"Standard error of the {text}, {source}", ".6f")
