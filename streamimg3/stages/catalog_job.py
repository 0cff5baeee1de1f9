"""What a run of source_catalog is about: the mosaic, how it is looked at, and what is not known (spec image3 §9.1, §9.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from streamimg3.engine.receipts import digest
from streamimg3.errors import InputError
from streamimg3.kernels.aperture import Circles
from streamimg3.sky.wcs import Wcs
from streamimg3.stages.catalog_columns import Photometry
from streamimg3.stages.catalog_params import NAME, Params
from streamimg3.stages.catalog_pixels import Scene
from streamimg3.stages.catalog_sources import Rulebook
from streamimg3.store import Observation
from streamimg3.store.documents import ApertureDocument, ResampleDocument, plain

_CODE = 1  # raised when the numbers a given input leads to change


@dataclass(frozen=True)
class Job:
    """What a run is about: the mosaic, how it is looked at, and what is not known."""

    scene: Scene
    rules: Rulebook
    photometry: Photometry
    wcs: Wcs
    notes: tuple[str, ...]
    failure: str | None = None


def prepare(obs: Observation, params: Params, mosaic: ResampleDocument) -> Job:
    """Return the set-up; reads documents, no pixel."""
    bunit = next((r.bunit for r in obs.records() if r.bunit), None)
    in_jansky = bunit == "MJy/sr" and mosaic.pixel_scale > 0
    factor = 1e6 * mosaic.pixel_scale**2 / float(np.rad2deg(3600)) ** 2 if in_jansky else 1.0
    notes = [] if in_jansky else [f"fluxes are in the image's unit ({bunit or 'unknown'}), not Jy: no magnitudes"]
    has_err = "err" in mosaic.planes
    if not has_err:
        model = "read_noise" if params.read_noise is not None else "the background's noise"
        photons = " and the sources' photons (gain)" if params.gain is not None else ""
        notes.append(f"the mosaic has no ERR: errors come from {model}{photons}")
    references = _references(obs, params)
    mark = digest(_CODE, plain(params), mosaic.digest, references and references.to_json().decode(), bunit)
    scene = Scene(
        mark, mosaic.path, mosaic.shape, mosaic.tile, has_err, factor, params.bkg_boxsize, params.kernel_fwhm,
        None if has_err else params.gain, None if has_err else params.read_noise,
    )  # fmt: skip
    circles, photometry, more, failure = _apertures(params, references, mosaic, "Jy" if in_jansky else bunit)
    rules = Rulebook(
        params.levels, params.largest_blend, circles, params.localbkg_width, params.kernel_fwhm, params.subtract_background
    )  # fmt: skip
    wcs = Wcs("gwcs", mosaic.wcs_asdf.encode("latin-1"), mosaic.shape)
    return Job(scene, rules, photometry, wcs, (*notes, *more), failure)


def _references(obs: Observation, params: Params) -> ApertureDocument | None:
    """What the reference files say, if there are any."""
    if not (params.override_apcorr or params.override_abvegaoffset):
        return None
    found = obs.document(ApertureDocument)
    if found is None:
        raise InputError(
            f"{NAME}.override_apcorr = {params.override_apcorr!r}: its rows are not in the store; run image3 with it again"
        )
    return found


def _apertures(
    params: Params, references: ApertureDocument | None, mosaic: ResampleDocument, unit: str | None
) -> tuple[Circles | None, Photometry, list[str], str | None]:
    """Return apertures and photometry, notes on what is not known, and why there can be no catalogue."""
    limits = (params.ci1_star_threshold, params.ci2_star_threshold)
    offset = references.offset if references is not None and references.abvegaoffset else None
    bare = Photometry(unit, offset=offset, star_limits=limits)
    notes = []
    if offset is None and unit == "Jy":
        notes.append("no ABVEGAOFFSET reference file (override_abvegaoffset): no Vega magnitudes")
    if references is not None and references.reason is not None:
        return None, bare, notes, references.reason
    if references is None or not references.apcorr:
        return None, bare, [*notes, "no APCORR reference file (override_apcorr): no aperture photometry"], None
    rows = []
    for energy in params.energies:
        found = [row for row in references.rows if row.energy == energy]
        if len(found) != 1:
            how = "no row" if not found else f"{len(found)} rows"
            return None, bare, notes, f"{references.apcorr}: {how} for an encircled energy of {energy}%"
        rows += found
    rings = {(row.sky_in, row.sky_out) for row in rows}
    if len(rings) != 1:
        return None, bare, notes, f"{references.apcorr}: the apertures' rows differ in skyin or skyout"
    ratio = np.float32(mosaic.pixel_scale_ratio)  # the file's numbers are float32, and so is the reference's division
    scaled = [float(np.float32(v) / ratio) for v in (*(r.radius for r in rows), *rings.pop())]
    circles = Circles(tuple(scaled[:3]), (scaled[3], scaled[4]))
    areas = tuple(math.pi * radius**2 for radius in circles.radii)
    return (
        circles,
        Photometry(unit, params.energies, areas, tuple(r.correction for r in rows), offset, limits),
        notes,
        None,
    )
