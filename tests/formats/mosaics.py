"""A small mosaic in a store, made without any pipeline step: what the door out gets to see."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import asdf
import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from streamimg3.geometry import Box
from streamimg3.sky.mosaic_frame import as_asdf, from_fits_cards
from streamimg3.store import ExposureRecord, Observation
from streamimg3.store.documents import AssociationDocument, ResampleDocument
from streamimg3.store.layout import PLANES

SHAPE = (75, 90)
TILE = 32
EXPOSURE_SHAPE = (20, 24)
ALL_PLANES = ("sci", "err", "dq", "con", "wht", "var_poisson", "var_rnoise", "var_flat", "ncontrib")
EXACT_AREA = 2.2219276015343518e-14  # its card ends after 15 digits
REGION = "POLYGON ICRS  " + " ".join(f"{v:.9f}" for v in (10, 20, 10.01, 20, 10.01, 20.01, 10, 20.01))

Cards = Mapping[str, Any]


def frame_text(shape: tuple[int, int] = SHAPE) -> bytes:
    """ASDF text of a tangent-plane gWCS."""
    header = fits.Header()
    header["NAXIS"], header["NAXIS1"], header["NAXIS2"] = 2, shape[1], shape[0]
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRPIX1"], header["CRPIX2"], header["CRVAL1"], header["CRVAL2"] = 40.25, 38.5, 10.005, 20.005
    header["CDELT1"], header["CDELT2"] = -1e-5, 1e-5
    wcs, _ = from_fits_cards(header.tostring())
    wcs.bounding_box = ((-0.5, shape[1] - 0.5), (-0.5, shape[0] - 0.5))
    return as_asdf(wcs)


def jwst_cards(index: int, **changes: Any) -> tuple[str, str]:
    """PRIMARY and SCI cards of a JWST exposure; None removes a keyword."""
    primary: dict[str, Any] = {
        "DATE": f"2026-01-0{index + 1}T00:00:00.000",
        "FILENAME": f"jw0{index}_cal.fits",
        "CAL_VER": "1.2.3",
        "DATAMODL": "ImageModel",
        "TELESCOP": "JWST",
        "DATE-OBS": f"2024-03-0{index + 1}",
        "TIME-OBS": f"0{3 - index}:00:00.000",
        "TARG_RA": 10.5,
        "INSTRUME": "NIRCAM",
        "DETECTOR": f"NRCB{index + 1}",
        "MODULE": "B",
        "FILTER": "F200W",
        "FWPOSTOL": "within commanded tolerance",
        "EXPMID": 60000.0 + index,
        "NINTS": 1,
        "EFFEXPTM": 100.5,
        "IS_PSF": index == 1,
        "S_WCS": "COMPLETE",
        "BKGLEVEL": 0.5 * index,
        "BKGMETH": "match",
        "BKGSUB": False,
        "MYKEY": "in no schema",
    }
    sci: dict[str, Any] = {
        "BUNIT": "MJy/sr",
        "PHOTMJSR": 2.5,
        "PIXAR_SR": EXACT_AREA,
        "RADESYS": "ICRS",
        "WCSAXES": 2,
        "CRPIX1": 10.5,
        "CTYPE1": "RA---TAN-SIP",
        "CD1_1": 1e-5,
        "S_REGION": REGION,
        "V2_REF": -100.0,
        "A_ORDER": 2,
        "VELOSYS": 0.0,
    }
    for header, section in ((primary, primary), (sci, sci)):
        header.update({k: v for k, v in changes.items() if k in section})
    primary.update({k: v for k, v in changes.items() if k not in sci})
    return _cards(primary, "TARG_RA", "Target information"), _cards(sci, "PHOTMJSR", "Photometry information")


def _cards(values: Cards, before: str, heading: str) -> str:
    cards = []
    for name, value in values.items():
        if name == before:
            cards += [fits.Card("", ""), fits.Card("", heading), fits.Card("", "")]
        if value is not None:
            cards.append(fits.Card(name, value, f"comment of {name}"))
    return str(fits.Header(cards).tostring(endcard=False, padding=False))


def jwst_record(index: int, group: str | None = None, **changes: Any) -> ExposureRecord:
    """Facts of a JWST exposure; two seconds of overhead, a minute apart."""
    facts: dict[str, Any] = {
        "name": f"jw0{index}", "filename": f"jw0{index}_cal.fits", "url": f"/data/jw0{index}_cal.fits", "index": index,
        "group_id": group or f"group{index}", "shape": EXPOSURE_SHAPE, "row": index, "planes": ("sci",),
        "wcs_kind": "gwcs", "is_jwst": True, "s_region": REGION, "bunit": "MJy/sr", "exposure_time": 100.5,
        "measurement_time": 100.25, "duration": 102.5, "start_mjd": 60000.0 + index, "end_mjd": 60000.5 + index,
    }  # fmt: skip
    return ExposureRecord(**facts | changes)


def jwst_tree() -> bytes:
    """ASDF text of an exposure: metadata with all digits."""
    stream = io.BytesIO()
    asdf.AsdfFile({"meta": {"photometry": {"pixelarea_steradians": EXACT_AREA}}}).write_to(stream)
    return stream.getvalue()


def write_exposures(obs: Observation, records: Sequence[ExposureRecord], cards: Sequence[tuple[str, str]]) -> None:
    """Make a store of exposures that have headers, but no pixels."""
    obs.write_root({"ingested": True})
    texts = [jwst_tree() if r.wcs_kind == "gwcs" else b"" for r in records]
    for name, rows in (
        ("cards_primary", [c[0].encode() for c in cards]),
        ("cards_sci", [c[1].encode() for c in cards]),
        ("wcs", texts),
    ):
        obs.create_table(EXPOSURE_SHAPE, name, rows)
    obs.write_records(records)
    obs.commit(AssociationDocument(product="field", pool="pool.csv", table="/asn/field_asn.json"))


def write_mosaic(
    obs: Observation, planes: Sequence[str] = ALL_PLANES, parameters: Mapping[str, Any] | None = None, **document: Any
) -> dict[str, NDArray[np.generic]]:
    """Fill the mosaic's planes with numbers that differ everywhere and commit its document."""
    pixels: dict[str, NDArray[np.generic]] = {}
    for plane in planes:
        shape = (2, *SHAPE) if plane == "con" else SHAPE
        dtype = np.dtype(PLANES[plane].dtype)
        values = np.random.default_rng(len(plane)).integers(0, 2**32, shape, np.uint64)
        if dtype.kind == "f":
            pixels[plane] = (values / 2**30).astype(dtype)
            pixels[plane][..., :10, :10] = np.nan
        else:
            pixels[plane] = values.astype(dtype)
        obs.create_image(f"mosaic/{plane}", shape, TILE, "MJy/sr")
        for lead in np.ndindex(shape[:-2]):
            obs.write(f"mosaic/{plane}", lead, Box(0, 0, *SHAPE), pixels[plane][lead])
    facts: dict[str, Any] = {
        "parameters": {"pixfrac": 0.75, "kernel": "square", "fillval": "NAN", "weight_type": "ivm", **(parameters or {})},
        "planes": tuple(planes), "shape": SHAPE, "tile": TILE, "wcs_asdf": frame_text().decode("latin-1"),
        "pixel_scale": 0.036, "pixel_scale_ratio": 1.25, "s_region": REGION,
    }  # fmt: skip
    obs.commit(ResampleDocument(**facts | document))
    return pixels


def jwst_mosaic(url: str, count: int = 3, **document: Any) -> tuple[Observation, dict[str, NDArray[np.generic]]]:
    """Make a store of ``count`` JWST exposures in groups of two, and a mosaic of them."""
    obs = Observation.at(url)
    write_exposures(
        obs, [jwst_record(i, f"group{i // 2}") for i in range(count)], [jwst_cards(i) for i in range(count)]
    )
    return obs, write_mosaic(obs, **document)
