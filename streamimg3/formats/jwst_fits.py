"""JWST level-2 image files: planes by extension name, facts by keyword, the gWCS as raw ASDF bytes."""

from __future__ import annotations

from streamimg3.errors import InputError
from streamimg3.formats.fits_file import FitsFile, Hdu, card_value, number
from streamimg3.formats.fits_wcs import checked_wcs, has_celestial_keywords
from streamimg3.formats.names import root_name
from streamimg3.formats.sources import RECORD_FIELDS, Fact, Plane, Source

_PLANES = {
    "SCI": "sci",
    "ERR": "err",
    "DQ": "dq",
    "VAR_POISSON": "var_poisson",
    "VAR_RNOISE": "var_rnoise",
    "VAR_FLAT": "var_flat",
    "AREA": "area",
}
_ABSENT = {"DQ": "no DQ: NaN pixels are bad"}

# Field -> keyword; the unit where the data model keeps it is asked first, the other one second.
_PRIMARY_NUMBERS = {
    "exposure_time": "EFFEXPTM",
    "measurement_time": "TMEASURE",
    "duration": "DURATION",
    "start_mjd": "EXPSTART",
    "end_mjd": "EXPEND",
    "bkglevel": "BKGLEVEL",
}
_PRIMARY_FACTS = {
    "bkgsub": "BKGSUB",
    "bkgmeth": "BKGMETH",
    "targtype": "TARGTYPE",
    "telescop": "TELESCOP",
    "instrume": "INSTRUME",
    "detector": "DETECTOR",
    "filter": "FILTER",
    "pupil": "PUPIL",
    "exp_type": "EXP_TYPE",
    "datamodl": "DATAMODL",
}
_SCI_NUMBERS = {
    "pixar_sr": "PIXAR_SR",
    "pixar_a2": "PIXAR_A2",
    "ra_ref": "RA_REF",
    "dec_ref": "DEC_REF",
    "roll_ref": "ROLL_REF",
    "v3yangle": "V3I_YANG",
    "mt_ra": "MT_RA",
    "mt_dec": "MT_DEC",
}
_SCI_FACTS = {"bunit": "BUNIT", "s_region": "S_REGION", "vparity": "VPARITY"}
_GROUP = ("PROGRAM", "OBSERVTN", "VISIT", "VISITGRP", "SEQ_ID", "ACT_ID", "EXPOSURE")


def is_jwst(file: FitsFile) -> bool:
    """Return whether a file carries JWST's keywords and layout (TELESCOP is JWST and there is a SCI extension)."""
    telescope = card_value(file.hdus[0].header, "TELESCOP", file.url)
    return telescope == "JWST" and any(hdu.name == "SCI" for hdu in file.hdus)


def jwst_source(file: FitsFile) -> Source:
    """Describe the exposure in a JWST file.

    Parameters
    ----------
    file : FitsFile
        Open file for which `is_jwst` holds.

    Returns
    -------
    Source
        With the ASDF extension's bytes, or with FITS WCS cards and a note when it holds no WCS.

    Raises
    ------
    InputError
        If SCI is not one 2-D image, planes differ in shape, or there is no finite WCS at all.
    """
    sci = _science(file)
    asdf, notes = _asdf(file)
    planes, absent = _planes(file, sci)
    record = _record(file, sci)
    cards: str | None = None
    tables: bytes | None = None
    if asdf is None:
        primary = file.hdus[0]
        if not (has_celestial_keywords(sci.cards) or has_celestial_keywords(primary.cards)):
            raise InputError(f"{file.url}: has neither a gWCS nor a FITS WCS; run assign_wcs on it first")
        wcs = checked_wcs(file, primary.cards, sci.cards, (sci.shape[0], sci.shape[1]))
        cards, tables, notes = wcs.cards, wcs.tables, (*notes, *wcs.notes)
        record["s_region"] = record["s_region"] or wcs.s_region
    elif record["s_region"] is None:
        notes = (*notes, "no S_REGION")
    return Source(
        name=root_name(file.url),
        filename=file.filename,
        url=file.url,
        shape=(sci.shape[0], sci.shape[1]),
        planes=planes,
        primary_cards=file.hdus[0].cards,
        sci_cards=sci.cards,
        asdf=asdf,
        wcs_cards=cards,
        wcs_tables=tables,
        record=record,
        notes=(*file.notes, *notes, *absent),
        is_jwst=True,
    )


def _science(file: FitsFile) -> Hdu:
    found = [hdu for hdu in file.hdus if hdu.name == "SCI"]
    if len(found) > 1:
        raise InputError(f"{file.url}: holds {len(found)} SCI extensions (a multi-slit product); imaging needs one")
    shape = found[0].shape
    if len(shape) == 2:
        return found[0]
    kinds = {
        0: "SCI holds no pixels; fetch the file again",
        3: f"SCI is a cube of integrations {shape} where a 2-D image is needed; give the _cal or _rate file",
        4: f"SCI is an uncalibrated ramp {shape}; run calwebb_detector1 on it first",
    }
    raise InputError(f"{file.url}: " + kinds.get(len(shape), f"SCI has shape {shape} where a 2-D image is needed"))


def _planes(file: FitsFile, sci: Hdu) -> tuple[tuple[Plane, ...], tuple[str, ...]]:
    planes: list[Plane] = []
    notes: list[str] = []
    for extname, name in _PLANES.items():
        hdu = file.find(extname, sci.version)
        if hdu is None:
            notes.append(_ABSENT.get(extname, f"no {extname}"))
        elif not hdu.shape:
            notes.append(f"{_ABSENT.get(extname, f'no {extname}')} (the extension is empty)")
        elif hdu.shape != sci.shape:
            raise InputError(f"{file.url}: {extname} has shape {hdu.shape}, SCI {sci.shape}; make the file again")
        else:
            planes.append(file.plane(hdu, name))
    return tuple(planes), tuple(notes)


def _asdf(file: FitsFile) -> tuple[bytes | None, tuple[str, ...]]:
    """Return the bytes of the ASDF extension if they hold a WCS; they are searched, not parsed."""
    hdu = next((hdu for hdu in file.hdus if hdu.name == "ASDF"), None)
    if hdu is None:
        return None, ("no ASDF extension: the FITS WCS is used",)
    content = file.raw(hdu)
    if not content.startswith(b"#ASDF"):
        return None, ("the ASDF extension is damaged: the FITS WCS is used",)
    if b"gwcs/wcs-" not in content:
        return None, ("no WCS in the ASDF extension: the FITS WCS is used",)
    return content, ()


def _record(file: FitsFile, sci: Hdu) -> dict[str, Fact]:
    record: dict[str, Fact] = dict.fromkeys(RECORD_FIELDS)
    primary, science = file.hdus[0].header, sci.header
    for first, second, numbers, facts in (
        (primary, science, _PRIMARY_NUMBERS, _PRIMARY_FACTS),
        (science, primary, _SCI_NUMBERS, _SCI_FACTS),
    ):
        for name, keyword in numbers.items():
            value = number(first, keyword, file.url)
            record[name] = number(second, keyword, file.url) if value is None else value
        for name, keyword in facts.items():
            fact = card_value(first, keyword, file.url)
            record[name] = card_value(second, keyword, file.url) if fact is None else fact
    parts = [card_value(primary, keyword, file.url) for keyword in _GROUP]
    if all(part not in (None, "") for part in parts):
        record["group_id"] = "jw{}{}{}_{}{}{}_{}".format(*parts)
    record["s_region"] = _outline(record["s_region"], file.url)
    return record


def _outline(text: Fact, label: str) -> str | None:
    """Return S_REGION, None when blank; a WCS that is not a number shows here first."""
    if not isinstance(text, str) or not text:
        return None
    if "nan" in text.lower() or "inf" in text.lower():
        raise InputError(f"{label}: its WCS is not finite (S_REGION is {text[:60]!r}); run assign_wcs on it again")
    return text
