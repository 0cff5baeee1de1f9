"""Headers of an exposure's own product: the exposure's cards, word for word, with what the steps changed (image3 §10)."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from astropy.io import fits

from streamimg3.errors import StoreError
from streamimg3.formats.asdf_tree import NDARRAY, OWN_KEYWORD, put, take
from streamimg3.formats.blend import Value, jwst_keywords
from streamimg3.formats.fits_file import parse_cards, quietly
from streamimg3.formats.fits_stream import Whole
from streamimg3.formats.generic_header import is_wcs
from streamimg3.formats.i2d_header import HEADINGS, make_card, own_card, section_of
from streamimg3.formats.step_facts import Changes, StepFacts, is_sip, replaced
from streamimg3.sky.wcs import Wcs
from streamimg3.store import Exposure

# Cards that say how an extension is stored; the writer makes its own
_STRUCTURE = re.compile(
    r"SIMPLE|BLOCKED|XTENSION|BITPIX|NAXIS\d*|EXTEND|NEXTEND|[PG]COUNT|GROUPS|BSCALE|BZERO|BLANK|DATAM(?:IN|AX)"
    r"|EXT(?:NAME|VER|LEVEL)|INHERIT|[CZ]HECKSUM|Z?DATASUM|END|Z(?:IMAGE|TENSION|BITPIX|NAXIS\d*|PCOUNT|GCOUNT|SIMPLE)"
)


@dataclass(frozen=True)
class CrfHeaders:
    """Cards of an exposure's product without structural ones; ``tables`` are extensions that a FITS WCS looks up."""

    primary: list[fits.Card]
    sci: list[fits.Card]
    err: list[fits.Card]
    tables: list[Whole]


def crf_headers(exposure: Exposure, facts: StepFacts) -> CrfHeaders:
    """Return the headers of an exposure's product.

    Parameters
    ----------
    exposure : Exposure
        As the alignment left it.
    facts : StepFacts
        What the steps say.

    Returns
    -------
    CrfHeaders
        JWST's keywords stand where JWST's data models put them; a gWCS leaves the FITS keywords that approximate it to
        the alignment, a FITS WCS is written as corrected.
    """
    texts = exposure.cards("primary"), exposure.cards("sci")
    primary, sci = facts.exposure(exposure.record)
    if exposure.record.wcs_kind == "gwcs":
        cards = [revised(texts[0], "PRIMARY", primary), revised(texts[1], "SCI", sci)]
        tables: list[Whole] = []
    else:
        own, tables = _fits_wcs(exposure.wcs)
        changes = {k: v for k, v in sci.items() if not is_wcs(k)} | {"S_REGION": exposure.s_region}
        kept = [_without_wcs(text) for text in texts]
        if texts[0] == texts[1]:  # one header for both: the image's extension repeats the WCS and the unit only
            kept[1] = [c for c in kept[1] if c.keyword == "BUNIT"]
        cards = [_changed(kept[0], "PRIMARY", primary), [*_changed(kept[1], "SCI", changes), *own]]
    unit = next((c for c in cards[1] if c.keyword == "BUNIT"), None)
    return CrfHeaders([*cards[0], own_card()], cards[1], [unit] if unit is not None else [], tables)


# ---------------------------------------------------------------- cards
def revised(text: str, hdu: str, changes: Changes) -> list[fits.Card]:
    """Return joined cards with changes, in JWST's order; those that say how the extension is stored are left out.

    Parameters
    ----------
    text : str
        80 characters each.
    hdu : str
        ``PRIMARY`` or ``SCI``.
    changes : mapping
        Keyword to value; None removes it.
    """
    return _changed(list(_readable(text)), hdu, changes)


def _without_wcs(text: str) -> list[fits.Card]:
    return [card for card in _readable(text) if not is_wcs(card.keyword)]


def _readable(text: str) -> Iterator[fits.Card]:
    """Yield the cards that are no structure, as they are; those that are not FITS are mended or left out."""
    with quietly():
        for card in parse_cards(text).cards:
            try:
                str(card)
            except (fits.VerifyError, ValueError):
                continue
            if not _STRUCTURE.fullmatch(card.keyword) and card.keyword != OWN_KEYWORD:
                yield card


def _changed(cards: list[fits.Card], hdu: str, changes: Changes) -> list[fits.Card]:
    """Replace, remove and add keywords; a new one goes to its place in JWST's order, or to the end."""
    cards = [c for c in cards if not replaced(c.keyword, changes)]
    order = {k.name: (i, section_of(k.path)) for i, k in enumerate(k for k in jwst_keywords() if k.hdu == hdu)}
    for name, value in changes.items():
        at = next((i for i, c in enumerate(cards) if c.keyword == name), None)
        if value is None:
            cards = [c for c in cards if c.keyword != name]
        elif at is not None:
            cards[at] = _same_or_new(cards[at], name, value)
        else:
            _insert(cards, make_card(name, value, {}), order)
    return cards


def _same_or_new(card: fits.Card, name: str, value: Value) -> fits.Card:
    if type(card.value) is type(value) and card.value == value:
        return card
    return make_card(name, value, {name: card.comment})


def _insert(cards: list[fits.Card], card: fits.Card, order: Mapping[str, tuple[int, str]]) -> None:
    """Put a card before the first one that JWST has later, under the heading of its own section."""
    if card.keyword not in order:
        cards.append(card)
        return
    place, section = order[card.keyword]
    later = (i for i, c in enumerate(cards) if c.keyword in order and order[c.keyword][0] > place)
    known = next((i for i, c in enumerate(cards) if order.get(c.keyword, (0, ""))[1] == section), None)
    at = next(later, None)
    if at is None:
        at = _end(cards, order)
    elif order[cards[at].keyword][1] != section:
        while at > 0 and cards[at - 1].keyword == "":  # the heading of the later section
            at -= 1
    heading = HEADINGS.get(section, "") if section and known is None else ""
    cards[at:at] = [*_heading(heading), card]


def _end(cards: Sequence[fits.Card], order: Mapping[str, tuple[int, str]]) -> int:
    """Index behind the last keyword that JWST has, so that keywords of others and commentary stay last."""
    return max((i + 1 for i, c in enumerate(cards) if c.keyword in order), default=len(cards))


def _heading(text: str) -> list[fits.Card]:
    return [fits.Card("", ""), fits.Card("", text), fits.Card("", "")] if text else []


def _fits_wcs(wcs: Wcs) -> tuple[list[fits.Card], list[Whole]]:
    """Cards of a FITS WCS, and the look-up tables that they refer to as extensions."""
    text, _, tables = wcs.cards().partition(Wcs.TABLES)
    cards = [c for c in _readable(text.decode("ascii")) if is_wcs(c.keyword)]
    found: list[Whole] = []
    if tables:
        with fits.open(io.BytesIO(tables)) as hdus:
            for hdu in hdus[1:]:
                data = hdu.data.astype(hdu.data.dtype.newbyteorder(">"))
                found.append(Whole(hdu.header.copy(), data.tobytes()))
    return cards, found


# ---------------------------------------------------------------- metadata tree
def crf_tree(exposure: Exposure, facts: StepFacts) -> dict[str, object]:
    """Return the exposure's own metadata tree with what the steps changed, and with the corrected gWCS.

    Arrays of the exposure's file are left out: those that the product has are referred to by its writer.

    Raises
    ------
    StoreError
        If the exposure's metadata tree is damaged.
    """
    tree = changed_tree(exposure.wcs.text, facts.exposure(exposure.record), exposure.record.name)
    put(tree, "meta.wcs", exposure.wcs.gwcs())
    return tree


def changed_tree(text: bytes, changes: tuple[Changes, Changes], name: str) -> dict[str, object]:
    """Return a metadata tree with changed keywords, without its arrays and its WCS.

    Parameters
    ----------
    text : bytes
        An ASDF file.
    changes : pair of mappings
        Keywords of PRIMARY and SCI to values; None removes one.
    name : str
        The exposure, for messages.

    Raises
    ------
    StoreError
        If the tree is damaged.
    """
    from asdf.util import load_yaml

    try:
        read = load_yaml(io.BytesIO(text), tagged=True)
    except Exception as error:  # the YAML reader's errors have no public base class here
        line = " ".join(str(error).split())[:200]
        raise StoreError(f"the metadata of exposure {name} are damaged ({line}): ingest again") from error
    tree: dict[str, object] = {
        k: v for k, v in read.items() if k not in ("asdf_library", "history", "_fits_hash", "wcs")
    }
    take(tree, "meta.wcs")
    tree = {k: _without_arrays(v) for k, v in tree.items() if not _is_array(v)}
    for hdu, mine in zip(("PRIMARY", "SCI"), changes, strict=True):
        _change_tree(tree, hdu, mine)
    return tree


def _change_tree(tree: dict[str, object], hdu: str, changes: Changes) -> None:
    paths = {k.name: k.path for k in jwst_keywords() if k.hdu == hdu}
    sip = [name for name in (*changes, *_keywords_of(tree)) if name not in paths and hdu == "SCI" and is_sip(name)]
    for name, path in (paths | {name: f"meta.wcsinfo.{name.lower()}" for name in sip}).items():
        value = changes.get(name)
        if value is not None:
            put(tree, path, value)
        elif name in changes or replaced(name, changes):
            take(tree, path)


def _keywords_of(tree: Mapping[str, object]) -> list[str]:
    meta = tree.get("meta")
    found = meta.get("wcsinfo") if isinstance(meta, dict) else None
    return [str(name).upper() for name in found] if isinstance(found, dict) else []


def _is_array(value: object) -> bool:
    return str(getattr(value, "_tag", "")).partition("-")[0] == NDARRAY.partition("-")[0]


def _without_arrays(value: object) -> object:
    if isinstance(value, dict):
        for key in [k for k, v in value.items() if _is_array(v)]:
            del value[key]
        for inner in value.values():
            _without_arrays(inner)
    elif isinstance(value, list):
        for inner in value:
            _without_arrays(inner)
    return value
