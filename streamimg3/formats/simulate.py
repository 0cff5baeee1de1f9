"""Simulate a dithered JWST-like field: calibrated exposures, their association and the truth.

Nothing but numpy, scipy, astropy, gwcs and asdf is needed.  ``simulated_field`` says what is pointed where,
``simulated_wcs`` holds the geometry, ``simulated_sky`` the sky and the flaws of the detectors, ``simulated_headers``
the keywords.  Every random number is seeded by the field's seed and by what it belongs to (the sky, a detector, a
pointing, an exposure), so exposures can be made in any order, or in parallel, and are the same.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.formats import simulated_sky as sky
from streamimg3.formats.simulated_field import (
    INSTRUMENTS,
    Exposure,
    Field,
    Stream,
    place,
    plan_exposures,
    presets,
    random_stream,
)
from streamimg3.formats.simulated_headers import (
    PHOTMJSR,
    STERADIAN_PER_ARCSEC2,
    Card,
    asdf_hdu,
    primary_cards,
    sci_cards,
)
from streamimg3.formats.simulated_wcs import Floats, sky_to_plane

__all__ = ["Exposure", "Field", "plan_exposures", "presets", "simulate", "true_sky", "write_exposure"]

GAIN: Final = 2.0  # electrons per DN
READ_NOISE: Final = 6.0  # DN over the exposure
FLAT_ERROR: Final = 0.004  # relative
MARGIN: Final = 3.0  # arcsec of true sky beyond the outermost exposure
REFERENCE_BORDER: Final = 4  # px
TARGET_FLUX: Final = 1e-5  # Jy, of the moving target
COLOURS: Final = 0.6  # mag, scatter from one filter to another


def true_sky(field: Field, exposures: list[Exposure]) -> sky.Catalog:
    """Draw the sources of the sky that the exposures see; a moving target is the last, at its mean place."""
    if field.other:  # the same sky, in which sources have colours
        plain = replace(field, filter="")
        catalog = true_sky(plain, plan_exposures(plain))
        magnitudes = random_stream(field, 0, Stream.COLOUR).normal(0.0, COLOURS, len(catalog))
        return replace(catalog, flux=catalog.flux * 10.0 ** (-0.4 * magnitudes))
    y, x = np.array([0, 0, field.shape[0], field.shape[0]]) - 0.5, np.array([0, field.shape[1]] * 2) - 0.5
    corners = [sky_to_plane(*exposure.true.to_sky(y, x), field.ra, field.dec) for exposure in exposures]
    low, high = np.min(corners, axis=(0, 2)) - MARGIN, np.max(corners, axis=(0, 2)) + MARGIN
    density = sky.Density(field.star_density, field.galaxy_density, field.extended)
    box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
    catalog = sky.draw_catalog(random_stream(field, 0, Stream.SKY), density, box, (field.ra, field.dec))
    if not field.moving:
        return catalog
    track = np.array([exposure.target for exposure in exposures])
    north, east = (float(np.mean(axis)) for axis in sky_to_plane(track[:, 0], track[:, 1], field.ra, field.dec))
    return catalog.with_target(*place(north, east, (field.ra, field.dec)), TARGET_FLUX)


def paint_sky(field: Field, exposure: Exposure, catalog: sky.Catalog, limit: float) -> sky.Image:
    """Flux (Jy) that falls on each pixel from all sources, each painted down to ``limit`` Jy per pixel.

    Returns
    -------
    ndarray, shape (ny, nx), float32
    """
    painter = sky.Painter(np.zeros(field.shape, np.float32), limit)
    moves = catalog.kind == "target"
    ra, dec = (np.where(moves, *pair) for pair in zip(exposure.target, (catalog.ra, catalog.dec), strict=True))
    y, x = exposure.true.to_pixel(ra, dec)
    reach = sky.MAX_GALAXY
    seen = (y > -reach) & (y < field.shape[0] + reach) & (x > -reach) & (x < field.shape[1] + reach)
    for i in np.flatnonzero(seen):
        if catalog.radius[i] == 0.0:
            painter.star(y[i], x[i], catalog.flux[i])
            continue
        to_pixel = np.linalg.inv(exposure.true.jacobian(y[i], x[i])) * catalog.radius[i] / sky.DISC_RADIUS
        shape = to_pixel @ sky.sky_covariance(catalog.ratio[i], catalog.angle[i]) @ to_pixel.T
        painter.galaxy(y[i], x[i], catalog.flux[i], shape)
    return painter.image


@dataclass(frozen=True, eq=False)
class Planes:
    """The planes of an exposure, each of shape (ny, nx), and the cosmic rays in it.

    Attributes
    ----------
    sci, err, var_poisson, var_rnoise, var_flat : ndarray, float32
        MJy/sr, and its square for the variances; nan where the pixel cannot be used.
    dq : ndarray, uint32
    area : ndarray, float32
        Pixel area in units of PIXAR_SR.
    hit, charge : ndarray
        Flat indices (int64) of the pixels that cosmic rays hit, and what they gained (float32, MJy/sr).
    noise : float
        Typical noise of a pixel of empty sky, MJy/sr.
    """

    sci: sky.Image
    err: sky.Image
    dq: NDArray[np.uint32]
    area: sky.Image
    var_poisson: sky.Image
    var_rnoise: sky.Image
    var_flat: sky.Image
    hit: NDArray[np.int64]
    charge: sky.Image
    noise: float


def expose(field: Field, exposure: Exposure, catalog: sky.Catalog) -> Planes:
    """Make the planes of one exposure."""
    rng, detector = random_stream(field, exposure.index, Stream.EXPOSURE), exposure.true.detector
    number = INSTRUMENTS[field.instrument].detectors.index(detector.name)
    dq, relative = sky.flaws(
        random_stream(field, number, Stream.DETECTOR), field.shape, field.bad_fraction, REFERENCE_BORDER
    )
    outside = INSTRUMENTS[field.instrument].outside
    if outside:
        dq[:, :outside] = dq[:, -outside:] = sky.NON_SCIENCE | sky.DO_NOT_USE

    per_signal = PHOTMJSR / (GAIN * field.exposure_time)
    read_variance = (READ_NOISE / field.exposure_time * PHOTMJSR) ** 2
    noise = math.sqrt(per_signal * max(exposure.background, 0.0) + read_variance)
    pixel_sr = field.pixel_scale**2 * STERADIAN_PER_ARCSEC2
    area = exposure.true.area(field.shape, field.pixel_scale)
    sci = paint_sky(field, exposure, catalog, 0.02 * noise * 1e6 * pixel_sr)
    sci *= np.float32(1e-6 / pixel_sr)
    sci /= area
    sci += np.float32(exposure.background)

    var_poisson = np.maximum(sci, 0.0) * np.float32(per_signal)
    var_rnoise = relative**2 * np.float32(read_variance)
    var_flat = (np.float32(FLAT_ERROR) * sci) ** 2
    sci += rng.standard_normal(field.shape, np.float32) * np.sqrt(var_poisson + var_rnoise)
    hit, charge = sky.cosmic_rays(rng, field.shape, field.cosmic_rays, noise)
    sci.flat[hit] += charge
    err = np.sqrt(var_poisson + var_rnoise + var_flat)
    unusable = (dq & sky.DO_NOT_USE) != 0
    for plane in (sci, err, var_poisson, var_rnoise, var_flat):
        plane[unusable] = np.nan
    return Planes(sci, err, dq, area, var_poisson, var_rnoise, var_flat, hit, charge, noise)


def write_exposure(outdir: Path, field: Field, exposure: Exposure, catalog: sky.Catalog) -> dict[str, Card]:
    """Make one exposure and write its file and its cosmic rays; independent of all other exposures.

    Parameters
    ----------
    outdir : Path
        A folder with a folder ``truth`` in it.
    field : Field
    exposure : Exposure
        One of ``plan_exposures(field)``.
    catalog : Catalog
        ``true_sky`` of the field and all its exposures.

    Returns
    -------
    dict
        The exposure's row of ``truth/exposures.ecsv``.
    """
    from astropy.io import fits

    planes = expose(field, exposure, catalog)
    hdus = fits.HDUList([fits.PrimaryHDU(header=fits.Header(primary_cards(field, exposure)))])
    for name in ("SCI", "ERR", "DQ", "AREA", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT"):
        hdus.append(fits.ImageHDU(getattr(planes, name.lower()), name=name, ver=1))
    hdus["SCI"].header.update(sci_cards(field, exposure))
    hdus["ERR"].header["BUNIT"] = "MJy/sr"
    hdus.append(asdf_hdu(field, exposure))
    hdus.writeto(outdir / exposure.filename, overwrite=True)
    np.savez_compressed(outdir / "truth" / f"{exposure.root}_cr.npz", index=planes.hit, value=planes.charge)
    return _truth_row(exposure, planes)


def _truth_row(exposure: Exposure, planes: Planes) -> dict[str, Card]:
    aims = (("true", exposure.true.aim), ("ref", exposure.stored.aim))
    return {
        "file": exposure.filename, "detector": exposure.true.detector.name, "group": exposure.group,
        "pointing": exposure.pointing, "dither": exposure.dither, "background": exposure.background,
        "noise": planes.noise, "north_mas": exposure.error[0], "east_mas": exposure.error[1],
        "roll_arcsec": exposure.error[2],
        **{f"{key}_{label}": getattr(aim, key) for label, aim in aims for key in ("ra", "dec", "roll")},
        "va_scale": exposure.true.va_scale, "target_ra": exposure.target[0], "target_dec": exposure.target[1],
        "cr_pixels": len(planes.hit),
    }  # fmt: skip


def _write_truth(outdir: Path, catalog: sky.Catalog, rows: list[dict[str, Card]]) -> None:
    from astropy.table import Table

    columns: dict[str, Floats | NDArray[np.str_] | NDArray[np.int64]] = {
        "id": np.arange(1, len(catalog) + 1), "kind": catalog.kind, "ra": catalog.ra, "dec": catalog.dec,
        "flux_jy": catalog.flux, "re_arcsec": catalog.radius, "q": catalog.ratio, "pa": catalog.angle,
    }  # fmt: skip
    Table(columns).write(outdir / "truth" / "catalog.ecsv", overwrite=True)
    Table(rows=rows).write(outdir / "truth" / "exposures.ecsv", overwrite=True)


def simulate(outdir: str | Path, field: Field, name: str | None = None) -> Path:
    """Simulate a field: exposures, level-3 association, and the truth.

    Parameters
    ----------
    outdir : str or Path
        Folder to write in; made if need be.  Gets the ``*_cal.fits`` files, ``<name>_asn.json``, and in ``truth``:
        ``catalog.ecsv`` (the sources), ``exposures.ecsv`` (pointing, errors, background) and ``<root>_cr.npz`` (flat
        ``index`` and ``value`` of the pixels that cosmic rays hit).
    field : Field
    name : str, optional
        Name of the product; the default is made of instrument and filter.

    Returns
    -------
    Path
        The association.

    Raises
    ------
    InputError
        ``outdir`` cannot be made, or ``name`` is not a plain file name.
    """
    outdir = Path(outdir)
    if name is None:
        name = f"jw01234-o001_t001_{field.instrument.lower()}_{field.optics}"
    if not name or Path(name).name != name:
        raise InputError(f"{name!r} is not a product name; use letters, digits, '-' and '_' only")
    try:
        (outdir / "truth").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{outdir}: cannot be made or used as a folder ({error}); choose another one") from error
    exposures = plan_exposures(field)
    catalog = true_sky(field, exposures)
    rows = [write_exposure(outdir, field, exposure, catalog) for exposure in exposures]
    _write_truth(outdir, catalog, rows)
    return _write_association(outdir, name, [exposure.filename for exposure in exposures])


def _write_association(outdir: Path, name: str, files: list[str]) -> Path:
    members = [{"expname": file, "exptype": "science"} for file in files]
    association = {
        "asn_type": "image3", "asn_rule": "Asn_Lv3Image", "version_id": None, "code_version": "3.0.0",
        "degraded_status": "No known degraded exposures in association.", "program": "01234", "constraints": "none",
        "asn_id": "o001", "asn_pool": "none", "target": "t001", "products": [{"name": name, "members": members}],
    }  # fmt: skip
    path = outdir / f"{name}_asn.json"
    path.write_text(json.dumps(association, indent=1) + "\n")
    return path
