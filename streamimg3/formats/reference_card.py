"""The card of a reference file: what it is for, when it is valid, and how well it fits an exposure."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from astropy.io import fits

from streamimg3.errors import InputError
from streamimg3.formats.fits_file import card_value
from streamimg3.formats.local_copy import open_seekable
from streamimg3.formats.names import file_name
from streamimg3.formats.reference_header import PATTERNS, Facts, Head, facts_of, read_head

# field: FITS keyword, keyword of its pattern ("" = has none)
SELECTORS = {
    "detector": ("DETECTOR", "P_DETECT"),
    "channel": ("CHANNEL", "P_CHANNE"),
    "module": ("MODULE", "P_MODULE"),
    "filter": ("FILTER", "P_FILTER"),
    "pupil": ("PUPIL", "P_PUPIL"),
    "band": ("BAND", "P_BAND"),
    "exp_type": ("EXP_TYPE", "P_EXP_TY"),
    "subarray": ("SUBARRAY", "P_SUBARR"),
    "readpatt": ("READPATT", "P_READPA"),
    "coronmsk": ("CORONMSK", ""),
}
DETECTORS = {
    "NIRCAM": ("NRCA1", "NRCA2", "NRCA3", "NRCA4", "NRCALONG", "NRCB1", "NRCB2", "NRCB3", "NRCB4", "NRCBLONG"),
    "NIRISS": ("NIS",),
    "MIRI": ("MIRIMAGE", "MIRIFUSHORT", "MIRIFULONG"),
    "FGS": ("GUIDER1", "GUIDER2"),
    "NIRSPEC": ("NRS1", "NRS2"),
}

# Which facts decide, where it is not all of them: tables and images that are cut or searched serve many modes.
_DECIDING = {
    "flat": ("detector", "filter", "pupil", "band", "subarray", "readpatt"),
    "photom": ("detector", "band", "exp_type"),
    "area": ("detector", "filter", "pupil", "exp_type"),
    "gain": ("detector", "band", "subarray"),
    "distortion": ("detector", "channel", "module", "band", "exp_type", "filter", "pupil"),
    "filteroffset": ("detector", "channel", "module", "exp_type", "subarray"),
    "psfmask": ("detector", "filter", "coronmsk", "exp_type", "subarray"),
}
_ONLY_MIRI = ("band", "readpatt")  # other instruments' reference files just tell how they were made
_OF_ONE_DETECTOR = ("flat", "photom", "area", "gain")
_FREE = ("ANY", "N/A", "GENERIC", "ALL")
_MAY_BE_UNKNOWN = ("channel", "module", "band", "readpatt", "coronmsk")  # of an exposure
_PACKED = re.compile(r"\s*\|\s*")
_DATES = ("%Y-%m-%dT%H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d", "%b %d %Y %H:%M:%S", "%b %d %Y")
_PIECE = 1 << 20


@dataclass(frozen=True)
class ExposureFacts:
    """What an exposure's header says that decides which reference files it needs; "" = unknown.

    Parameters
    ----------
    name : str
        The file, for messages.
    instrument, detector, ... : str
        Values of INSTRUME, DETECTOR, CHANNEL, MODULE, FILTER, PUPIL, BAND, EXP_TYPE, SUBARRAY, READPATT, CORONMSK.
    date : str
        DATE-OBS and TIME-OBS, ISO 8601.
    """

    name: str
    instrument: str
    detector: str
    channel: str = ""
    module: str = ""
    filter: str = ""
    pupil: str = ""
    band: str = ""
    exp_type: str = ""
    subarray: str = ""
    readpatt: str = ""
    coronmsk: str = ""
    date: str = ""

    @classmethod
    def of_header(cls, header: fits.Header, name: str) -> ExposureFacts:
        """Return the facts in an exposure's primary header.

        Raises
        ------
        InputError
            If instrument or detector are not in it, or a card cannot be read.
        """

        def text(keyword: str) -> str:
            return str(card_value(header, keyword, name) or "").upper()

        values = {field: text(keyword) for field, (keyword, _) in SELECTORS.items()}
        instrument, detector = text("INSTRUME"), values["detector"]
        if not instrument or not detector:
            raise InputError(f"{name}: has no INSTRUME or DETECTOR; reference files cannot be chosen for it")
        if instrument == "NIRCAM":
            values["channel"] = values["channel"] or ("LONG" if detector.endswith("LONG") else "SHORT")
            values["module"] = values["module"] or detector[3:4]
        date, time = text("DATE-OBS"), text("TIME-OBS")
        return cls(name=name, instrument=instrument, date=_iso(f"{date}T{time}" if time else date), **values)

    @property
    def optics(self) -> dict[str, str]:
        """All facts but name and date, unknown ones left out; two exposures with the same need the same files."""
        facts = {"instrument": self.instrument, **{field: str(getattr(self, field)) for field in SELECTORS}}
        return {field: value for field, value in facts.items() if value}

    def __str__(self) -> str:
        return " ".join(self.optics[k] for k in ("instrument", "detector", "filter", "pupil") if k in self.optics)


@dataclass(frozen=True)
class ReferenceCard:
    """What one reference file is for, from its own header.

    Parameters
    ----------
    url : str
        Local path or fsspec URL.
    reftype : str
        ``flat``, ``photom`` ... in lower case.
    instrument : str
        INSTRUME, upper case; "" = none given (JSON files only).
    detector, channel, ... : tuple of str
        The values it is for; empty = any (``ANY``, ``N/A``, ``GENERIC`` or no such keyword). A ``P_`` keyword
        (``A|B|C|``) takes the place of the plain one.
    useafter : str
        ISO 8601; "" = none given.
    pedigree, author, model : str
        As written.
    sha256 : str
        Of the content; "" until it is asked for, because that reads all of it.
    """

    url: str
    reftype: str
    instrument: str
    detector: tuple[str, ...] = ()
    channel: tuple[str, ...] = ()
    module: tuple[str, ...] = ()
    filter: tuple[str, ...] = ()
    pupil: tuple[str, ...] = ()
    band: tuple[str, ...] = ()
    exp_type: tuple[str, ...] = ()
    subarray: tuple[str, ...] = ()
    readpatt: tuple[str, ...] = ()
    coronmsk: tuple[str, ...] = ()
    useafter: str = ""
    pedigree: str = ""
    author: str = ""
    model: str = ""
    sha256: str = ""

    def allowed(self, field: str) -> tuple[str, ...]:
        """Return the values of a selecting fact; empty = any."""
        values: tuple[str, ...] = getattr(self, field)
        return values


@dataclass(frozen=True, order=True)
class Rank:
    """How well a card fits; the greatest is the best: exact matches, then matches of a pattern, then date and name.

    A file without USEAFTER, which no official one lacks, comes after all others.
    """

    dated: bool
    exact: int
    pattern: int
    useafter: str
    name: str


def read_card(url: str, options: Mapping[str, str]) -> ReferenceCard:
    """Return the card of a reference file; only its header is read.

    Parameters
    ----------
    url : str
        Local path or fsspec URL of a FITS, ASDF or JSON file.
    options : mapping of str to str
        Storage options for remote URLs.

    Raises
    ------
    InputError
        If the file is unreadable, is no reference file, or its header contradicts itself.
    """
    return card_of(read_head(url, options))


def card_of(head: Head) -> ReferenceCard:
    """Return the card in a header that has been read; see `read_card`."""
    facts = facts_of(head)
    reftype, instrument = facts.get("REFTYPE", "").lower(), facts.get("INSTRUME", "")
    if not reftype:
        model = f", DATAMODL {facts['DATAMODL']}" if "DATAMODL" in facts else ""
        where = "meta.reftype" if head.kind == "ASDF" else "REFTYPE"
        raise InputError(f"{head.url}: is not a reference file (no {where}{model}); give a JWST reference file")
    if facts.get("TELESCOP", "JWST") != "JWST":
        raise InputError(f"{head.url}: is a reference file of {facts['TELESCOP']}, not of JWST")
    if not instrument and head.kind != "JSON":
        raise InputError(f"{head.url}: has no INSTRUME; it cannot be told what it is for, add the keyword")
    if reftype in _OF_ONE_DETECTOR and not facts.keys() & set(SELECTORS["detector"]):
        raise InputError(f"{head.url}: has no DETECTOR; it cannot be told what it is for, add the keyword")
    _check_keywords(facts, head.url)
    selected = {field: _values(facts, *keywords) for field, keywords in SELECTORS.items()}
    _check_detectors(selected["detector"], instrument, head.url)
    written = facts.get("USEAFTER", "")
    if written and not _iso(written):
        raise InputError(f"{head.url}: USEAFTER {written!r} is not a date; write it as 2022-05-01T00:00:00")
    return ReferenceCard(
        head.url,
        reftype,
        instrument,
        detector=selected["detector"],
        channel=selected["channel"],
        module=selected["module"],
        filter=selected["filter"],
        pupil=selected["pupil"],
        band=selected["band"],
        exp_type=selected["exp_type"],
        subarray=selected["subarray"],
        readpatt=selected["readpatt"],
        coronmsk=selected["coronmsk"],
        useafter=_iso(written),
        pedigree=facts.get("PEDIGREE", ""),
        author=facts.get("AUTHOR", ""),
        model=facts.get("DATAMODL", ""),
    )


def _check_keywords(facts: Facts, url: str) -> None:
    for keyword in facts:
        close = difflib.get_close_matches(keyword, PATTERNS, 1, 0.85)
        if keyword.startswith("P_") and keyword not in PATTERNS and close:
            raise InputError(f"{url}: has a keyword {keyword}, which selects nothing; it should be {close[0]}")


def _check_detectors(detectors: tuple[str, ...], instrument: str, url: str) -> None:
    known = DETECTORS.get(instrument)
    wrong = [name for name in detectors if known and name not in (*known, "MULTIPLE")]
    if wrong and known:
        raise InputError(f"{url}: is for detector {wrong[0]}, which {instrument} does not have ({', '.join(known)})")


def _values(facts: Facts, keyword: str, pattern: str) -> tuple[str, ...]:
    text = facts.get(pattern, "") or facts.get(keyword, "")
    parts = tuple(dict.fromkeys(part for part in _PACKED.split(text.strip()) if part))
    return () if any(part in _FREE for part in parts) else parts


def _iso(text: str) -> str:
    """Return a date in one of the usual spellings as ISO 8601, "" if it is none."""
    clean = text.strip().upper().removesuffix("Z").replace(",", "")
    spelled = re.sub(r"^(\d{4}-\d\d-\d\d) (\d)", r"\1T\2", clean)
    for form in _DATES:
        try:
            return datetime.strptime(spelled, form).isoformat(timespec="milliseconds")
        except ValueError:
            continue
    return ""


def deciding(reftype: str, instrument: str) -> tuple[str, ...]:
    """Return the facts that decide whether a file of a type fits an exposure of an instrument."""
    fields = _DECIDING.get(reftype, tuple(SELECTORS))
    return tuple(f for f in fields if instrument == "MIRI" or f not in _ONLY_MIRI)


def misfit(card: ReferenceCard, exposure: ExposureFacts) -> str:
    """Return why a card does not fit an exposure, as ``has FILTER F444W``; "" = it fits."""
    if card.instrument and card.instrument != exposure.instrument:
        return f"has INSTRUME {card.instrument}"
    for field in deciding(card.reftype, exposure.instrument):
        if _match(card, field, exposure) is None:
            return f"has {SELECTORS[field][0]} {'|'.join(card.allowed(field))}"
    if exposure.date and card.useafter > exposure.date:
        return f"has USEAFTER {card.useafter[:19]}"
    return ""


def rank(card: ReferenceCard, exposure: ExposureFacts) -> Rank:
    """Return how well a card that fits does so."""
    fields = deciding(card.reftype, exposure.instrument)
    matches = [_match(card, field, exposure) for field in fields]
    counts = matches.count("exact"), matches.count("pattern")
    return Rank(card.useafter != "", *counts, card.useafter, file_name(card.url))


def _match(card: ReferenceCard, field: str, exposure: ExposureFacts) -> str | None:
    """Return ``exact``, ``pattern`` or ``any``; None = does not match."""
    allowed, value = card.allowed(field), str(getattr(exposure, field))
    if value and value in allowed:
        return "exact" if len(allowed) == 1 else "pattern"
    if not allowed or (not value and field in _MAY_BE_UNKNOWN):
        return "any"
    if field == "readpatt":  # a flat of another read-out is better than none: it only loses against one that fits
        return "any"
    # sub-arrays are cut out of full frames; a mask for a coronagraph is not
    return "any" if field == "subarray" and allowed == ("FULL",) and card.reftype != "psfmask" else None


def checksum(url: str, options: Mapping[str, str]) -> str:
    """Return the SHA-256 of a file, read in pieces (of a gzip file: of what is in it).

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    total = hashlib.sha256()
    with open_seekable(url, options) as stream:
        while piece := stream.read(_PIECE):
            total.update(piece)
    return total.hexdigest()
