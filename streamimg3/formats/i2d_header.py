"""Headers of a mosaic: metadata of its exposures merged, then what the mosaic itself decides (spec image3 §7.7)."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from astropy.io import fits

from streamimg3.formats.asdf_tree import OWN_KEYWORD
from streamimg3.formats.blend import (
    Metadata,
    Value,
    blend,
    exposure_metadata,
    jwst_keywords,
    readable_cards,
)
from streamimg3.formats.fits_file import parse_cards, quietly
from streamimg3.formats.step_facts import Changes, StepFacts, replaced, status_keyword
from streamimg3.sky.mosaic_frame import linear_terms
from streamimg3.sky.wcs import Wcs
from streamimg3.store import Exposure, ExposureRecord
from streamimg3.store.documents import ResampleDocument

_POINTING = ("V2_REF", "V3_REF", "RA_REF", "DEC_REF", "ROLL_REF", "V3I_YANG", "VPARITY")
_MATRIX = ("CD1_1", "CD1_2", "CD2_1", "CD2_2")

# Keywords that no exposure brings along; all others keep the comment that they had
_COMMENTS = {
    "DATE": "UTC time at which the mosaic was finished",
    "FILENAME": "name of this file",
    "ASNPOOL": "association pool",
    "ASNTABLE": "association that lists the exposures",
    "NDRIZ": "exposure groups in the mosaic",
    "RESWHT": "what pixels were weighted by",
    "PIXFRAC": "drop size in input pixels",
    "PXSCLRT": "output over input pixel scale",
    "XPOSURE": "[s] exposure time",
    "TELAPSE": "[s] sum of the exposures' durations",
    "EXPTIME": "[s] exposure time",
    "PIXAR_SR": "[sr] area of a pixel",
    "PIXAR_A2": "[arcsec2] area of a pixel",
    "BUNIT": "unit of the pixel values",
    "RADESYS": "celestial reference system",
    "S_REGION": "outline of the covered sky",
    "WCSAXES": "number of WCS axes",
    "BKGMETH": "how background levels were found",
    "BKGLEVEL": "background level, in the unit of the pixels",
    "BKGSUB": "whether it has been taken off the pixels",
    OWN_KEYWORD: "version of streamimg3 that made this file",
}
_COMMENT_PATTERNS = (
    (re.compile(r"CRPIX(\d)"), "[pixel] reference pixel, axis {}, from 1"),
    (re.compile(r"CRVAL(\d)"), "[deg] sky position of the reference pixel"),
    (re.compile(r"CTYPE(\d)"), "coordinate and projection, axis {}"),
    (re.compile(r"CUNIT(\d)"), "unit of axis {}"),
    (re.compile(r"CDELT(\d)"), "[deg/pixel] scale of axis {}"),
    (re.compile(r"(?:PC|CD)(\d_\d)"), "matrix element {}"),
)
# Headings of sections that exposures may lack
HEADINGS = {
    "meta.asn": "Association information",
    "meta.cal_step": "Calibration step information",
    "meta.resample": "Resample Parameters",
    "meta.background": "Background information",
    "meta.exposure": "Exposure parameters",
    "meta.photometry": "Photometry information",
    "meta.coordinates": "Information about the coordinates in the file",
    "meta.wcsinfo": "WCS parameters",
}


@dataclass(frozen=True)
class Mosaic:
    """What the headers of a mosaic are made from.

    Parameters
    ----------
    document : ResampleDocument
        The mosaic's own facts.
    exposures : tuple of Exposure
        Those in the mosaic, in order.
    filename : str
        Name of the product.
    facts : StepFacts
        How the pipeline's steps ended and what they found about the exposures.
    untouched : bool
        HDRTAB lists the exposures as they came, without what the steps say.
    """

    document: ResampleDocument
    exposures: tuple[Exposure, ...]
    filename: str
    facts: StepFacts
    untouched: bool = False

    @property
    def is_jwst(self) -> bool:
        """Whether all exposures carry JWST's keywords."""
        return all(e.record.is_jwst for e in self.exposures)

    @property
    def blended(self) -> bool:
        """Whether headers are merged, rather than the first exposure's being taken."""
        return bool(self.document.parameters.get("blendheaders", True))

    @property
    def wcs(self) -> Wcs:
        """The frame."""
        return Wcs("gwcs", self.document.wcs_asdf.encode("latin-1"), self.document.shape)


@dataclass(frozen=True)
class Headers:
    """Cards of a mosaic's extensions, without structural ones, and the metadata tree's values by place."""

    primary: list[fits.Card]
    sci: list[fits.Card]
    err: list[fits.Card]
    metadata: Metadata


# ---------------------------------------------------------------- what the mosaic decides
def decided(mosaic: Mosaic) -> tuple[Changes, Changes]:
    """Return the keywords of PRIMARY and SCI that the mosaic decides, whatever the exposures say."""
    document, settings = mosaic.document, mosaic.document.parameters
    groups = first_of_groups([e.record for e in mosaic.exposures])
    primary, _ = mosaic.facts.exposure(mosaic.exposures[0].record)  # the first exposure speaks for all, as elsewhere
    primary |= {"DATE": mosaic.document.made, "FILENAME": mosaic.filename, "BKGLEVEL": None, "BKGSUB": None}
    primary |= {status_keyword("resample"): document.status}
    primary |= {
        "NDRIZ": len(groups),
        "RESWHT": str(settings.get("weight_type", "ivm")),
        "PIXFRAC": float(settings.get("pixfrac", 1.0)),
        "PXSCLRT": float(document.pixel_scale_ratio),
    }
    area = document.pixel_scale**2
    sci: Changes = {"PIXAR_SR": float(area / np.rad2deg(3600) ** 2), "PIXAR_A2": float(area)}
    sci |= dict.fromkeys((*_POINTING, *_MATRIX)) | wcs_keywords(mosaic.wcs) | {"S_REGION": document.s_region}
    return primary, sci


def first_of_groups(records: Sequence[ExposureRecord]) -> list[ExposureRecord]:
    """Return the first exposure of each group: detectors that were exposed together count once."""
    first: dict[str, ExposureRecord] = {}
    for record in records:
        first.setdefault(record.group_id, record)
    return list(first.values())


def wcs_keywords(wcs: Wcs) -> dict[str, Value]:
    """Return the FITS WCS of a mosaic: exact for a tangent-plane gWCS, else fitted with straight axes (spec §7.7)."""
    exact = linear_terms(wcs)
    if exact is not None:
        return {"WCSAXES": 2, "RADESYS": "ICRS", **exact}
    (y0, y1), (x0, x1) = wcs.bounds or ((-0.5, wcs.shape[0] - 0.5), (-0.5, wcs.shape[1] - 0.5))
    fitted = wcs.gwcs().to_fits_sip(bounding_box=((x0, x1), (y0, y1)), degree=1, npoints=12)
    kept = re.compile(r"WCSAXES|(CRPIX|CRVAL|CTYPE|CUNIT)[12]|CD[12]_[12]|RADESYS")
    found: dict[str, Value] = {key: fitted[key] for key in fitted if kept.fullmatch(key)}
    return found | {key: str(found[key]).removesuffix("-SIP") for key in ("CTYPE1", "CTYPE2")}


def total_of(values: Sequence[float | None]) -> float | None:
    """Sum from left to right, as the reference does; None where no value is known."""
    known = [v for v in values if v is not None]
    total = 0.0
    for value in known:
        total += value
    return total if known else None


def own_card() -> fits.Card:
    """Return the card that names the version of this software."""
    try:
        number = version("streamimg3")
    except PackageNotFoundError:
        number = "not installed"
    return fits.Card(OWN_KEYWORD, number, _COMMENTS[OWN_KEYWORD])


def make_card(name: str, value: Value, comments: Mapping[str, str]) -> fits.Card:
    """Return a card with a comment.

    Parameters
    ----------
    name : str
        Keyword.
    value : str, bool, int or float
        Characters that FITS headers cannot hold become question marks.
    comments : mapping
        Comments of keywords as they came; others have one of our own.
    """
    comment = comments.get(name) or _COMMENTS.get(name) or _comment(name)
    if isinstance(value, str):
        value = re.sub(r"[^ -~]", "?", value)  # FITS headers hold printable ASCII only
    card = fits.Card(name, value, comment)
    with quietly():  # astropy remarks that a long comment is cut
        str(card)
    return card


def _comment(name: str) -> str:
    for pattern, text in _COMMENT_PATTERNS:
        if (match := pattern.fullmatch(name)) is not None:
            return text.format(match[1])
    step = next((k.path.split(".")[2] for k in jwst_keywords() if k.name == name and ".cal_step." in k.path), "")
    return f"status of {step}" if step else ""


def note_cards(mosaic: Mosaic) -> list[fits.Card]:
    """Return what is to be known of a mosaic as HISTORY, in lines of 72 characters."""
    lines = [line for note in mosaic.document.notes for line in textwrap.wrap(re.sub(r"[^ -~]", "?", note), 72)]
    return [fits.Card("HISTORY", line) for line in lines]


# ---------------------------------------------------------------- JWST
def jwst_rows(mosaic: Mosaic, exposures: Sequence[Exposure]) -> list[Metadata]:
    """Return the metadata of exposures as the mosaic saw them: cards, association, step statuses, background."""
    rows = []
    facts = replace(mosaic.facts, statuses={}, outliers=None) if mosaic.untouched else mosaic.facts
    for exposure in exposures:
        primary, sci = facts.exposure(exposure.record)
        sci |= dict.fromkeys(k.name for k in jwst_keywords() if k.hdu == "SCI" and replaced(k.name, sci))
        changes = placed("PRIMARY", primary) | placed("SCI", sci)
        rows.append(present({**exposure_metadata(exposure), **changes}))
    return rows


def present(changes: Mapping[str, Value | None]) -> Metadata:
    """Return the values that are not None."""
    return {path: value for path, value in changes.items() if value is not None}


def placed(hdu: str, changes: Changes) -> dict[str, Value | None]:
    """Keywords that JWST has, by their place in the metadata tree."""
    return {k.path: changes[k.name] for k in jwst_keywords() if k.hdu == hdu and k.name in changes}


def jwst_headers(mosaic: Mosaic, rows: Sequence[Metadata]) -> Headers:
    """Return the headers of a mosaic of JWST exposures.

    Parameters
    ----------
    mosaic : Mosaic
        The mosaic.
    rows : sequence of Metadata
        Of all exposures; with ``blendheaders`` off only the first is used.
    """
    merged: dict[str, Value | None] = dict(blend(rows) if mosaic.blended else rows[0])
    primary, sci = decided(mosaic)
    merged |= placed("PRIMARY", primary | _jwst_times(mosaic) | {"DATAMODL": "ImageModel"})
    merged |= placed("SCI", sci | _jwst_elapsed(mosaic))
    metadata = present(merged)
    if "err" in mosaic.document.planes and "meta.bunit_data" in metadata:
        metadata["meta.bunit_err"] = metadata["meta.bunit_data"]
    cards = arranged(metadata, *(mosaic.exposures[0].cards(h) for h in ("primary", "sci")))
    return Headers([*cards["PRIMARY"], own_card(), *note_cards(mosaic)], cards["SCI"], cards["ERR"], metadata)


def _jwst_times(mosaic: Mosaic) -> Changes:
    """Return the times of the whole mosaic; detectors that were exposed together count once."""
    groups = first_of_groups([e.record for e in mosaic.exposures])
    measured = [r.measurement_time for r in groups]
    starts, ends = ([t for r in groups if (t := getattr(r, name)) is not None] for name in ("start_mjd", "end_mjd"))
    return {
        "EFFEXPTM": total_of([r.exposure_time for r in groups]),
        "TMEASURE": None if None in measured else total_of(measured),
        "DURATION": total_of([r.duration for r in groups]),
        "EXPSTART": min(starts, default=None),
        "EXPEND": max(ends, default=None),
    }


def _jwst_elapsed(mosaic: Mosaic) -> Changes:
    times = _jwst_times(mosaic)
    return {"XPOSURE": times["EFFEXPTM"], "TELAPSE": times["DURATION"]}


def arranged(metadata: Metadata, primary_cards: str, sci_cards: str) -> dict[str, list[fits.Card]]:
    """Cards of each extension in JWST's order, under the section headings of the first exposure."""
    comments: dict[str, str] = {}
    headings = dict(HEADINGS)
    for hdu, cards in (("SCI", sci_cards), ("PRIMARY", primary_cards)):
        comments |= {card.keyword: card.comment for card in readable_cards(cards) if card.comment}
        headings |= _headings(hdu, cards)
    found: dict[str, list[fits.Card]] = {"PRIMARY": [], "SCI": [], "ERR": []}
    written: set[str] = set()
    for keyword in jwst_keywords():
        if keyword.path in metadata:
            section = section_of(keyword.path)
            if section in headings and section not in written:
                found[keyword.hdu] += [fits.Card("", ""), fits.Card("", headings[section]), fits.Card("", "")]
            written.add(section)
            found[keyword.hdu].append(make_card(keyword.name, metadata[keyword.path], comments))
    return found


def section_of(path: str) -> str:
    """Return the section of the header that a place in the metadata tree belongs to (``meta.wcsinfo``), or nothing."""
    return ".".join(path.split(".")[:2]) if path.count(".") > 1 else ""


def _headings(hdu: str, cards: str) -> dict[str, str]:
    """Section -> heading, from the blank-keyword cards in front of the section's first keyword."""
    paths = {(k.hdu, k.name): k.path for k in jwst_keywords()}
    found: dict[str, str] = {}
    heading = ""
    for card in parse_cards(cards).cards:
        if card.keyword == "":
            heading = str(card.value).strip() or heading
        elif heading:
            section = section_of(paths.get((hdu, card.keyword), ""))
            found |= {section: heading} if section else {}
            heading = ""
    return found
