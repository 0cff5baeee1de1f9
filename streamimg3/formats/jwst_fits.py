"""JWST level-2 files, images and cubes: planes by extension name, facts by keyword, the gWCS as raw ASDF bytes."""

from __future__ import annotations

import re
from dataclasses import replace

from astropy.io import fits

from streamimg3.errors import InputError
from streamimg3.formats.fits_file import FitsFile, Hdu, card_value, number
from streamimg3.formats.fits_wcs import checked_wcs, has_celestial_keywords
from streamimg3.formats.int_times import integration_times
from streamimg3.formats.names import root_name
from streamimg3.formats.sources import RECORD_FIELDS, Cube, CubePlane, Fact, Plane, Source

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
_OPTIONAL = {"WAVELENGTH": "wavelength"}  # of spectra; nobody misses it elsewhere
# What may be one image for all integrations, and its name then
_SHARED = {"area": "area", "dq": "pixeldq", "wavelength": "wavelength"}
_SPECTRAL_CUBES = ("IFUCubeModel",)
_THIRD_AXIS = re.compile(r"(NAXIS|CTYPE|CUNIT|CRVAL|CRPIX|CDELT|CROTA)3 |(CD|PC)(3_\d|\d_3) |PV3_")

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


def is_jwst(file: FitsFile, unnamed: bool = False) -> bool:
    """Return whether a file carries JWST's keywords and layout (TELESCOP is JWST and there is a SCI extension).

    Without TELESCOP, the name of one of JWST's data models (DATAMODL) says it too, and with ``unnamed`` nothing need say it.
    """
    header = file.hdus[0].header
    telescope = card_value(header, "TELESCOP", file.url)
    named = telescope == "JWST" or (not telescope and bool(unnamed or card_value(header, "DATAMODL", file.url)))
    return named and any(hdu.name == "SCI" for hdu in file.hdus)


def jwst_source(file: FitsFile, bare: bool = False) -> Source:
    """Describe the exposure in a JWST file.

    Parameters
    ----------
    file : FitsFile
        Open file for which `is_jwst` holds.
    bare : bool
        It need not have a WCS, for it is about to get one: ``asdf`` is then whatever metadata tree it has, or None, and
        there are no FITS WCS cards.

    Returns
    -------
    Source
        With the ASDF extension's bytes, or with FITS WCS cards and a note when it holds no WCS.

    Raises
    ------
    InputError
        If SCI is not one image or one cube of integrations, planes differ in shape, or there is no finite WCS at all.
    """
    sci = _science(file)
    shape = sci.shape[-2], sci.shape[-1]
    asdf, notes = _tree(file) if bare else _asdf(file)
    planes, cube, absent = _planes(file, sci)
    record = facts_of(file.hdus[0].header, sci.header, file.url)
    cards: str | None = None
    tables: bytes | None = None
    if asdf is None and not bare:
        primary = file.hdus[0]
        if not (has_celestial_keywords(sci.cards) or has_celestial_keywords(primary.cards)):
            raise InputError(f"{file.url}: has neither a gWCS nor a FITS WCS; run assign_wcs on it first")
        wcs = checked_wcs(file, primary.cards, sci.cards if cube is None else _of_one_image(sci.cards), shape)
        cards, tables, notes = wcs.cards, wcs.tables, (*notes, *wcs.notes)
        record["s_region"] = record["s_region"] or wcs.s_region
    elif record["s_region"] is None and not bare:
        notes = (*notes, "no S_REGION")
    return Source(
        name=root_name(file.url),
        filename=file.filename,
        url=file.url,
        shape=shape,
        planes=planes,
        primary_cards=file.hdus[0].cards,
        sci_cards=sci.cards,
        asdf=asdf,
        wcs_cards=cards,
        wcs_tables=tables,
        record=record,
        notes=(*file.notes, *notes, *absent),
        is_jwst=True,
        cube=cube,
    )


def _of_one_image(cards: str) -> str:
    """Return the cards of a cube without its third axis: time or wavelength are none of the sky's."""
    kept = [card for at in range(0, len(cards), 80) if not _THIRD_AXIS.match(card := cards[at : at + 80])]
    two = {"WCSAXES": "WCSAXES =                    2", "NAXIS": "NAXIS   =                    2"}
    return "".join(two.get(card[:8].strip(), card).ljust(80) for card in kept)


def _science(file: FitsFile) -> Hdu:
    found = [hdu for hdu in file.hdus if hdu.name == "SCI"]
    if len(found) > 1:
        raise InputError(f"{file.url}: holds {len(found)} SCI extensions (a multi-slit product); imaging needs one")
    shape = found[0].shape
    model = card_value(file.hdus[0].header, "DATAMODL", file.url)
    if len(shape) == 3 and model in _SPECTRAL_CUBES:
        raise InputError(f"{file.url}: SCI is a spectral cube {shape} ({model}), not a cube of integrations")
    if len(shape) == 3 and file.is_copy:
        raise InputError(
            f"{file.url}: is a cube that cannot be read in pieces where it is; unpack or copy it to disk first"
        )
    if len(shape) in (2, 3):
        return found[0]
    kinds = {
        0: "SCI holds no pixels; fetch the file again",
        4: f"SCI is an uncalibrated ramp {shape}; run calwebb_detector1 on it first",
    }
    raise InputError(f"{file.url}: " + kinds.get(len(shape), f"SCI has shape {shape} where a 2-D image is needed"))


def _planes(file: FitsFile, sci: Hdu) -> tuple[tuple[Plane, ...], Cube | None, tuple[str, ...]]:
    """Return the planes that are images, those of a cube, and notes on what is missing."""
    planes: list[Plane] = []
    cubes: list[CubePlane] = []
    notes: list[str] = []
    for extname, name in {**_PLANES, **(_OPTIONAL if len(sci.shape) == 3 else {})}.items():
        hdu = file.find(extname, sci.version)
        if extname in _OPTIONAL and (hdu is None or hdu.shape != sci.shape[1:]):
            continue
        if hdu is None:
            notes.append(_ABSENT.get(extname, f"no {extname}"))
        elif not hdu.shape:
            notes.append(f"{_ABSENT.get(extname, f'no {extname}')} (the extension is empty)")
        elif hdu.shape == sci.shape[1:] and name in _SHARED:
            planes.append(replace(file.plane(hdu, name), name=_SHARED[name]))
        elif hdu.shape != sci.shape or (len(sci.shape) == 3 and name == "area"):
            raise InputError(f"{file.url}: {extname} has shape {hdu.shape}, SCI {sci.shape}; make the file again")
        elif len(sci.shape) == 3:
            cubes.append(file.cube_plane(hdu, name))
        else:
            planes.append(file.plane(hdu, name))
    if not cubes:
        return tuple(planes), None, tuple(notes)
    numbers, times, doubts = integration_times(file, sci.shape[0])
    return tuple(planes), Cube(tuple(cubes), numbers, times), (*notes, *doubts)


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


def _tree(file: FitsFile) -> tuple[bytes | None, tuple[str, ...]]:
    """Return the metadata tree of a file, whatever it holds."""
    hdu = next((hdu for hdu in file.hdus if hdu.name == "ASDF"), None)
    content = b"" if hdu is None else file.raw(hdu)
    return content if content.startswith(b"#ASDF") else None, ()


def facts_of(primary: fits.Header, science: fits.Header, url: str) -> dict[str, Fact]:
    """Return the facts in the two headers of a JWST exposure.

    Raises
    ------
    InputError
        If a value is not what it should be; the line names the file.
    """
    record: dict[str, Fact] = dict.fromkeys(RECORD_FIELDS)
    for first, second, numbers, facts in (
        (primary, science, _PRIMARY_NUMBERS, _PRIMARY_FACTS),
        (science, primary, _SCI_NUMBERS, _SCI_FACTS),
    ):
        for name, keyword in numbers.items():
            value = number(first, keyword, url)
            record[name] = number(second, keyword, url) if value is None else value
        for name, keyword in facts.items():
            fact = card_value(first, keyword, url)
            record[name] = card_value(second, keyword, url) if fact is None else fact
    parts = [card_value(primary, keyword, url) for keyword in _GROUP]
    if all(part not in (None, "") for part in parts):
        record["group_id"] = "jw{}{}{}_{}{}{}_{}".format(*parts)
    record["s_region"] = _outline(record["s_region"], url)
    return record


def _outline(text: Fact, label: str) -> str | None:
    """Return S_REGION, None when blank; a WCS that is not a number shows here first."""
    if not isinstance(text, str) or not text:
        return None
    if "nan" in text.lower() or "inf" in text.lower():
        raise InputError(f"{label}: its WCS is not finite (S_REGION is {text[:60]!r}); run assign_wcs on it again")
    return text
