"""FITS images of any other telescope: chips and their planes, companion files, facts from the usual keywords."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from astropy.io import fits

from streamimg3.errors import InputError
from streamimg3.formats.fits_file import FitsFile, Hdu, card_value, names_of, number, open_fits, parse_cards
from streamimg3.formats.fits_wcs import checked_wcs, has_celestial_keywords, wcs_cards
from streamimg3.formats.local_copy import exists
from streamimg3.formats.names import dq_names, file_name, relative_to, root_name, weight_names
from streamimg3.formats.sources import RECORD_FIELDS, Fact, Plane, Source

if TYPE_CHECKING:
    from streamimg3.formats.association import Member

_PLANES = {
    "ERR": "err",
    "DQ": "dq",
    "VAR_POISSON": "var_poisson",
    "VAR_RNOISE": "var_rnoise",
    "VAR_FLAT": "var_flat",
    "AREA": "area",
    "WHT": "weight",
    "WEIGHT": "weight",
    "IVAR": "weight",
    "INVVAR": "weight",
}
_NOT_IMAGES = {
    *_PLANES,
    "CTX",
    "CON",
    "SAMP",
    "TIME",
    "MASK",
    "BPM",
    "VAR",
    "SIGMA",
    "EXP",
    "WCSDVARR",
    "D2IMARR",
    "HDRTAB",
}
_SOME_BIT = "DQ: any non-zero flag means DO_NOT_USE"

# The first keyword that is there wins; the image's header is asked before the primary one.
_NUMBERS = {
    "exposure_time": ("EXPTIME", "XPOSURE", "EFFEXPTM", "EXPOSURE", "EXP_TIME", "TEXPTIME", "ITIME"),
    "start_mjd": ("EXPSTART", "MJD-BEG", "MJD-OBS", "MJD_OBS"),
    "end_mjd": ("EXPEND", "MJD-END", "MJD_END"),
}
_FACTS = {
    "bunit": ("BUNIT",),
    "telescop": ("TELESCOP",),
    "instrume": ("INSTRUME",),
    "detector": ("DETECTOR", "CCDNAME", "CCDCHIP"),
}


def generic_sources(file: FitsFile) -> list[Source]:
    """Describe every chip in a FITS file that is not JWST's.

    A chip is each SCI extension (with the ERR, DQ and WHT of the same EXTVER), or else each 2-D image with a celestial
    WCS that is not named as a companion plane.

    Parameters
    ----------
    file : FitsFile
        Open file.

    Raises
    ------
    InputError
        If there is no 2-D image, no celestial WCS, a WCS that cannot work, or planes of different shapes.
    """
    chips = _chips(file)
    names = _chip_names(root_name(file.url), chips)
    return [_source(file, chip, name, alone=len(chips) == 1) for chip, name in zip(chips, names, strict=True)]


def fits_wcs_text(source: Source) -> str:
    """Return the cards needed to rebuild a source's WCS with astropy.

    Parameters
    ----------
    source : Source
        Its image cards are used, merged with the primary ones where they lack a WCS.

    Returns
    -------
    str
        80-character cards, joined: ``WCS(Header.fromstring(text))``.
    """
    return source.wcs_cards if source.wcs_cards is not None else wcs_cards(source.primary_cards, source.sci_cards)


@contextmanager
def with_companions(sources: Sequence[Source], member: Member, options: Mapping[str, str]) -> Iterator[list[Source]]:
    """Add the weight and DQ maps that lie in files of their own, and keep those files open.

    Parameters
    ----------
    sources : sequence of Source
        The chips of one file.
    member : Member
        Names the maps; where it does not, and the file is not JWST's, they are looked for next to the file by name
        (``_ooi_`` with ``_oow_`` and ``_ood_``, ``_sci.fits`` with ``_wht.fits``, ``X.fits`` with ``X.weight.fits``).
    options : mapping of str to str
        Storage options for remote URLs.

    Raises
    ------
    InputError
        If a map is missing, unreadable, or of another shape.
    """
    completed = list(sources)
    with ExitStack() as stack:
        for plane, named, likely in (("weight", member.weight, weight_names), ("dq", member.dq, dq_names)):
            url = named or _beside(sources, plane, likely(file_name(member.url)), options)
            if url is not None:
                maps = stack.enter_context(open_fits(url, options))
                units = _map_units(completed, maps)
                completed = [_with_map(source, maps, hdu, plane) for source, hdu in zip(completed, units, strict=True)]
        yield [_with_notes(source) for source in completed]


def _beside(sources: Sequence[Source], plane: str, names: Sequence[str], options: Mapping[str, str]) -> str | None:
    if any(source.is_jwst or source.plane(plane) for source in sources):
        return None
    urls = [relative_to(sources[0].url, name) for name in names]
    return next((url for url in urls if exists(url, options)), None)


def _map_units(sources: Sequence[Source], maps: FitsFile) -> list[Hdu]:
    """Return the image of a companion file that belongs to each chip: by extension name, or else by position."""
    images = [hdu for hdu in maps.hdus if len(hdu.shape) == 2]
    by_name = {(hdu.name, hdu.version): hdu for hdu in images}
    wanted = [_extension(source) for source in sources]
    if all(key in by_name for key in wanted):
        return [by_name[key] for key in wanted]
    if len(images) != len(sources):
        raise InputError(
            f"{maps.url}: holds {len(images)} 2-D images, but {sources[0].filename} has {len(sources)}; "
            "name the right map in the association"
        )
    return images


def _extension(source: Source) -> tuple[str, int]:
    header = parse_cards(source.sci_cards)
    name, version = (card_value(header, keyword, source.filename) for keyword in ("EXTNAME", "EXTVER"))
    return str(name or "").upper(), int(version or 1)


def _with_map(source: Source, maps: FitsFile, hdu: Hdu, plane: str) -> Source:
    if hdu.shape != source.shape:
        raise InputError(
            f"{maps.url}: its {plane} map has shape {hdu.shape}, the image in {source.filename} {source.shape}; "
            "name the right map in the association"
        )
    kept = tuple(old for old in source.planes if old.name != plane)
    note = f"{'weight map' if plane == 'weight' else 'DQ map'} {maps.filename} used"
    return replace(source, planes=(*kept, maps.plane(hdu, plane, "any")), notes=(*source.notes, note))


def _with_notes(source: Source) -> Source:
    """Say what is assumed about planes that no file had."""
    if source.is_jwst:
        return source
    notes = [] if source.plane("err") else ["no ERR"]
    notes.append(_SOME_BIT if source.plane("dq") else "no DQ: NaN pixels are bad")
    return replace(source, notes=(*source.notes, *notes))


def _chips(file: FitsFile) -> list[Hdu]:
    science = [hdu for hdu in file.hdus if hdu.name == "SCI" and hdu.shape]
    images = science or [hdu for hdu in file.hdus if hdu.shape and hdu.name not in _NOT_IMAGES]
    flat = [hdu for hdu in images if len(hdu.shape) == 2]
    if not images:
        raise InputError(
            f"{file.url}: holds no image; give files with a 2-D image, or a pattern that leaves this one out"
        )
    if not flat or (science and len(flat) < len(science)):
        raise InputError(f"{file.url}: needs a 2-D image but holds {names_of(images)}; split cubes into single images")
    inherited = not file.hdus[0].shape and has_celestial_keywords(file.hdus[0].cards)
    placed = [hdu for hdu in flat if inherited or has_celestial_keywords(hdu.cards)]
    if not placed:
        raise InputError(f"{file.url}: has no celestial WCS (no RA/DEC axes); solve its astrometry first")
    return placed


def _chip_names(root: str, chips: Sequence[Hdu]) -> list[str]:
    if len(chips) == 1:
        return [root]
    names = [f"{root}_sci{hdu.version}" if hdu.name in ("SCI", "") else f"{root}_{hdu.name.lower()}" for hdu in chips]
    uses = Counter(names)
    return [name if uses[name] == 1 else f"{root}_hdu{hdu.index}" for name, hdu in zip(names, chips, strict=True)]


def _source(file: FitsFile, chip: Hdu, name: str, *, alone: bool) -> Source:
    shape = chip.shape[0], chip.shape[1]
    primary = file.hdus[0]
    planes, notes = _planes(file, chip, alone=alone)
    wcs = checked_wcs(file, primary.cards, chip.cards, shape)
    record, doubts = _record(file, chip)
    record["s_region"] = wcs.s_region
    # The chips of one file were exposed together.
    record["group_id"] = None if alone else root_name(file.url)
    return Source(
        name=name,
        filename=file.filename,
        url=file.url,
        shape=shape,
        planes=planes,
        primary_cards=primary.cards,
        sci_cards=chip.cards,
        asdf=None,
        wcs_cards=wcs.cards,
        wcs_tables=wcs.tables,
        record=record,
        notes=(*file.notes, *wcs.notes, *doubts, *notes),
        is_jwst=False,
    )


def _planes(file: FitsFile, chip: Hdu, *, alone: bool) -> tuple[tuple[Plane, ...], tuple[str, ...]]:
    planes = {"sci": file.plane(chip, "sci")}
    notes: list[str] = []
    for hdu in file.hdus:
        name = _PLANES.get(hdu.name)
        if name is None or name in planes or not (alone or hdu.version == chip.version):
            continue
        if not hdu.shape:
            notes.append(f"{hdu.name} is empty")
        elif hdu.shape != chip.shape:
            raise InputError(
                f"{file.url}: {hdu.name} has shape {hdu.shape}, the image {chip.shape}; make the file again"
            )
        else:
            planes[name] = file.plane(hdu, name, "any")
    return tuple(planes.values()), tuple(notes)


def _record(file: FitsFile, chip: Hdu) -> tuple[dict[str, Fact], tuple[str, ...]]:
    record: dict[str, Fact] = dict.fromkeys(RECORD_FIELDS)
    headers = (chip.header, file.hdus[0].header)
    doubts: list[str] = []
    for name, keywords in _NUMBERS.items():
        for header, keyword in ((header, keyword) for keyword in keywords for header in headers):
            try:
                record[name] = number(header, keyword, file.url)
            except InputError:
                doubts.append(f"{keyword} is not a number: ignored")
            if record[name] is not None:
                break
    for name, keywords in _FACTS.items():
        facts = (card_value(header, keyword, file.url) for keyword in keywords for header in headers)
        record[name] = next((fact for fact in facts if fact not in (None, "")), None)
    record["filter"] = _filter(headers, file.url)
    return record, tuple(dict.fromkeys(doubts))


def _filter(headers: Sequence[fits.Header], label: str) -> Fact:
    """Return FILTER, or what is in the two wheels other than CLEAR."""
    for keywords in (("FILTER",), ("FILTER1", "FILTER2")):
        found = [card_value(header, keyword, label) for header in headers for keyword in keywords]
        names = [str(name) for name in found if name not in (None, "") and not str(name).startswith("CLEAR")]
        if names:
            return "+".join(dict.fromkeys(names))
    return None
