"""Headers of a simulated exposure: the keywords that the reference pipeline reads, and the ASDF extension."""

from __future__ import annotations

import io
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

import numpy as np

from streamimg3.formats.simulated_field import INSTRUMENTS, NATIVE_SIZE, OVERHEAD, Exposure, Field
from streamimg3.formats.simulated_wcs import Camera, aim_of, attitude, make_gwcs

if TYPE_CHECKING:
    from astropy.io import fits

Card = str | float | int

STERADIAN_PER_ARCSEC2: Final = (np.pi / 180.0 / 3600.0) ** 2
PHOTMJSR: Final = 2.0  # MJy/sr per DN/s
START: Final = datetime(2024, 3, 1, 2)
START_MJD: Final = 60370.0 + 2.0 / 24.0


def _bounding_box(field: Field) -> tuple[tuple[float, float], tuple[float, float]]:
    """((x low, x high), (y low, y high)), the order of gwcs."""
    outside = INSTRUMENTS[field.instrument].outside
    return (outside - 0.5, field.shape[1] - outside - 0.5), (-0.5, field.shape[0] - 0.5)


def _s_region(field: Field, camera: Camera) -> str:
    (x0, x1), (y0, y1) = _bounding_box(field)
    corners = camera.to_sky(np.array([y0, y1, y1, y0]), np.array([x0, x0, x1, x1]))
    return "POLYGON ICRS  " + " ".join(f"{angle:.9f}" for angle in np.stack(corners, axis=1).ravel())


def cards_of(field: Field) -> dict[str, Card]:
    """The instrument's own keywords, with the filter that is in."""
    changed = {field.usual: field.filter or field.usual}
    return {key: changed.get(value, value) for key, value in INSTRUMENTS[field.instrument].cards}


def primary_cards(field: Field, exposure: Exposure) -> dict[str, Card]:
    """Keywords of the primary header."""
    name, instrument = exposure.true.detector.name, INSTRUMENTS[field.instrument]
    seconds = exposure.group * (field.exposure_time + OVERHEAD)
    begin = START + timedelta(seconds=seconds)
    start, span = START_MJD + seconds / 86400.0, field.exposure_time / 86400.0
    date, time = begin.isoformat(timespec="milliseconds").split("T")
    visit, aperture = f"{exposure.pointing + 1:03}", instrument.aperture.format(name)
    cards: dict[str, Card] = {
        "DATE": f"{date}T{time}", "FILENAME": exposure.filename, "CAL_VER": "3.0.0", "DATAMODL": "ImageModel",
        "TELESCOP": "JWST", "TITLE": "simulated", "PI_NAME": "streamimg3", "DATE-OBS": date, "TIME-OBS": time,
        "DATE-BEG": f"{date}T{time}",
        "DATE-END": (begin + timedelta(seconds=field.exposure_time)).isoformat(timespec="milliseconds"),
        "OBS_ID": f"V01234001{visit}P0000000002101", "VISIT_ID": f"01234001{visit}", "PROGRAM": "01234",
        "OBSERVTN": "001", "VISIT": visit, "VISITGRP": "02", "SEQ_ID": "1", "ACT_ID": "01",
        "EXPOSURE": f"{exposure.dither + 1:05}",
        "VISITYPE": "PRIME_TARGETED_MOVING" if field.moving else "PRIME_TARGETED_FIXED", "VISITSTA": "SUCCESSFUL",
        "TARGPROP": "SIMFIELD", "TARGNAME": "SIMFIELD", "TARGTYPE": "MOVING" if field.moving else "FIXED",
        "TARG_RA": exposure.target[0], "TARG_DEC": exposure.target[1],
        "INSTRUME": field.instrument, "DETECTOR": name, **cards_of(field),
        "EXPCOUNT": 1, "EXPSTART": start, "EXPMID": start + span / 2.0, "EXPEND": start + span,
        "NINTS": 1, "NGROUPS": 10, "NFRAMES": 4, "EFFINTTM": field.exposure_time, "EFFEXPTM": field.exposure_time,
        "TMEASURE": field.exposure_time, "DURATION": field.exposure_time + 10.7,
        "SUBARRAY": "FULL", "SUBSTRT1": max(0, (NATIVE_SIZE - field.shape[1]) // 2) + 1,
        "SUBSTRT2": max(0, (NATIVE_SIZE - field.shape[0]) // 2) + 1, "SUBSIZE1": field.shape[1],
        "SUBSIZE2": field.shape[0], "FASTAXIS": -1, "SLOWAXIS": 2,
        "PATT_NUM": exposure.dither + 1, "NUMDTHPT": field.dithers, "APERNAME": aperture, "PPS_APER": aperture,
    }  # fmt: skip
    done = "WCS DARK DQINIT FLAT GANSCL JUMP LINEAR PHOTOM RAMP REFPIX SATURA SUPERB"
    return cards | {f"S_{step}": "COMPLETE" for step in done.split()}


def sci_cards(field: Field, exposure: Exposure) -> dict[str, Card]:
    """Keywords of the SCI header: photometry, pointing and WCS."""
    camera, d = exposure.stored, exposure.stored.detector
    axis = aim_of(attitude(d.v2, d.v3, camera.aim), 0.0, 0.0)
    pixel_area = field.pixel_scale**2
    cards: dict[str, Card] = {
        "XPOSURE": field.exposure_time, "PA_APER": (camera.aim.roll + d.yangle) % 360.0, "VA_SCALE": camera.va_scale,
        "BUNIT": "MJy/sr", "PHOTMJSR": PHOTMJSR, "PHOTUJA2": PHOTMJSR * 1e12 * STERADIAN_PER_ARCSEC2,
        "PIXAR_SR": pixel_area * STERADIAN_PER_ARCSEC2, "PIXAR_A2": pixel_area, "RADESYS": "ICRS",
        "RA_V1": axis.ra, "DEC_V1": axis.dec, "PA_V3": axis.roll, **camera.sip_cards(),
        "S_REGION": _s_region(field, camera), "V2_REF": d.v2, "V3_REF": d.v3, "VPARITY": d.parity,
        "V3I_YANG": d.yangle, "RA_REF": camera.aim.ra, "DEC_REF": camera.aim.dec, "ROLL_REF": camera.aim.roll,
        "VELOSYS": 0.0,
    }  # fmt: skip
    if field.moving:
        cards |= {"MT_RA": exposure.target[0], "MT_DEC": exposure.target[1]}
    return cards


def asdf_hdu(field: Field, exposure: Exposure) -> fits.BinTableHDU:
    """Pack the ASDF tree with the WCS as one row of bytes; the FITS keywords hold the rest of the metadata."""
    from asdf.util import load_yaml
    from astropy.io import fits

    wcs = make_gwcs(exposure.stored, _bounding_box(field))
    meta = {"filename": exposure.filename, "model_type": "ImageModel", "telescope": "JWST", "wcs": wcs}
    draft = load_yaml(io.BytesIO(_asdf_bytes({"meta": meta})))
    # asdf lists the extensions in the order of a set, but keeps the order of a list that it finds: write it twice.
    extensions = sorted(draft["history"]["extensions"], key=lambda extension: str(extension["extension_uri"]))
    content = np.frombuffer(_asdf_bytes({"meta": meta, "history": {"extensions": extensions}}), np.uint8)
    column = fits.Column("ASDF_METADATA", f"{content.size}B", array=content[None, :])
    return fits.BinTableHDU.from_columns([column], name="ASDF")


def _asdf_bytes(tree: dict[str, object]) -> bytes:
    import asdf

    buffer = io.BytesIO()
    asdf.AsdfFile(tree, version="1.6.0").write_to(buffer)
    return buffer.getvalue()
