"""Headers of a mosaic of any other telescope: the first exposure's without structure and WCS, then the mosaic's own."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

from astropy.io import fits

from streamimg3.formats.blend import Value, card_values, merge, readable_cards
from streamimg3.formats.i2d_header import (
    Headers,
    Mosaic,
    decided,
    first_of_groups,
    make_card,
    note_cards,
    own_card,
    placed,
    present,
    total_of,
)
from streamimg3.formats.step_facts import Changes, StepFacts
from streamimg3.sky.wcs import Wcs
from streamimg3.store import Exposure

_EXPOSURE_TIMES = ("EXPTIME", "XPOSURE", "EFFEXPTM", "EXPOSURE", "EXP_TIME", "TEXPTIME", "ITIME")
_FIRST_TIMES = ("EXPSTART", "MJD-BEG", "MJD-OBS", "MJD_OBS", "DATE-OBS", "DATE-BEG")
_LAST_TIMES = ("EXPEND", "MJD-END", "MJD_END", "DATE-END")
_NAMES = ("TELESCOP", "INSTRUME", "DETECTOR", "FILTER", "FILTER1", "FILTER2")

_STRUCTURE = re.compile(
    r"SIMPLE|BLOCKED|XTENSION|BITPIX|NAXIS\d*|EXTEND|NEXTEND|[PG]COUNT|GROUPS|BSCALE|BZERO|BLANK|DATAM(IN|AX)|EXT(NAME|VER|LEVEL)"
    r"|INHERIT|[CZ]HECKSUM|Z?DATASUM|DATE|FILENAME|TFIELDS|END"
)
_WCS = re.compile(
    r"(CRVAL|CRPIX|CDELT|CROTA|CTYPE|CUNIT|CRDER|CSYER|CNAME)\d[A-Z]?|((CD|PC)\d_\d|P[VS]\d_\d+)[A-Z]?"
    r"|(A|B|AP|BP)_(ORDER|DMAX|\d_\d)|(LONPOLE|LATPOLE|EQUINOX|RADESYS|WCSAXES|WCSNAME)[A-Z]?|EPOCH|RADECSYS|WAT\d_\d+"
    r"|C[PQ](DIS|ERR)\d|D[PQ]\d.*|D2IM.*|AXISCORR|AMD[XY]\d+|PPO\d|[XY]PIXELSZ|PLT(RA|DEC)\w+|CNPIX\d|LTV\d|LTM\d_\d"
    r"|ORIENTAT|S_REGION|WCSDVARR"
)


def is_wcs(keyword: str) -> bool:
    """Whether a keyword belongs to the WCS, or is derived from it."""
    return _WCS.fullmatch(keyword) is not None


def generic_rows(exposures: Sequence[Exposure], facts: StepFacts) -> list[dict[str, Value]]:
    """Return keyword -> value of every exposure as the steps left it; what is in both headers is the image's own."""
    rows = []
    for exposure in exposures:
        merged = card_values(exposure.cards("primary")) | card_values(exposure.cards("sci"))
        simple = {k: v for k, v in merged.items() if len(k) <= 8 and not _STRUCTURE.fullmatch(k)}
        rows.append({"FILENAME": exposure.record.filename, **simple, **_seen(exposure, facts)})
    return rows


def _seen(exposure: Exposure, facts: StepFacts) -> dict[str, Value]:
    """What the steps changed in the keywords of an exposure."""
    primary, sci = facts.exposure(exposure.record)
    found = present({k: v for k, v in {**primary, **sci}.items() if k != "DATE"})
    if exposure.correction is not None and exposure.record.wcs_kind == "fits":
        corrected = card_values(exposure.wcs.cards().partition(Wcs.TABLES)[0].decode("ascii"))
        found |= {k: v for k, v in corrected.items() if is_wcs(k)}
    return found


def generic_headers(mosaic: Mosaic, rows: Sequence[Mapping[str, Value]]) -> Headers:
    """Return the headers of a mosaic of any other telescope: the first exposure's without structure and WCS, then ours.

    Parameters
    ----------
    mosaic : Mosaic
        The mosaic.
    rows : sequence of mapping
        Keywords of all exposures, or of the first one where headers are not to be merged.
    """
    texts = [mosaic.exposures[0].cards(h) for h in ("primary", "sci")]
    primary = {c.keyword: c for c in _plain(texts[0])}
    sci = {} if texts[0] == texts[1] else {c.keyword: c for c in _plain(texts[1])}
    own = decided(mosaic)
    for name, value in _generic_changes(mosaic, rows).items():
        for cards in [c for c in (primary, sci) if name in c] or [primary]:
            _change(cards, name, value)
    if (unit := mosaic.exposures[0].record.bunit) is not None:
        primary.pop("BUNIT", None)
        own[1]["BUNIT"] = unit
    for cards, changes in zip((primary, sci), own, strict=True):
        for name, value in changes.items():
            _change(cards, name, value)
    err = [sci["BUNIT"]] if "BUNIT" in sci else []
    metadata = present(placed("PRIMARY", own[0]) | placed("SCI", own[1]))
    return Headers([*primary.values(), own_card(), *note_cards(mosaic)], list(sci.values()), err, metadata)


def _plain(cards: str) -> Iterator[fits.Card]:
    """Yield the cards without structure and WCS, in standard form (long keywords as they are)."""
    for card in readable_cards(cards):
        if not (_STRUCTURE.fullmatch(card.keyword) or is_wcs(card.keyword)):
            yield make_card(card.keyword, card.value, {card.keyword: card.comment}) if len(card.keyword) <= 8 else card


def _change(cards: dict[str, fits.Card], name: str, value: Value | None) -> None:
    old = cards.get(name)
    if value is None:
        cards.pop(name, None)
    else:
        cards[name] = make_card(name, value, {name: old.comment} if old is not None else {})


def _generic_changes(mosaic: Mosaic, rows: Sequence[Mapping[str, Value]]) -> Changes:
    """Return times and names of all exposures together, for the keywords that the first one has."""
    first, changes = rows[0], Changes()
    total = total_of([r.exposure_time for r in first_of_groups([e.record for e in mosaic.exposures])])
    if total is not None:
        known = [k for k in _EXPOSURE_TIMES if k in first and _same(first[k], mosaic.exposures[0].record.exposure_time)]
        changes |= dict.fromkeys(known or ["EXPTIME"], total)
    for rule, names in (("min", _FIRST_TIMES), ("max", _LAST_TIMES), ("multi", _NAMES)):
        for name in names:
            if name in first:
                changes[name] = merge(rule, [row[name] for row in rows if name in row])
    return changes


def _same(value: Value, other: float | None) -> bool:
    return other is not None and not isinstance(value, str | bool) and math.isclose(value, other, rel_tol=1e-9)
