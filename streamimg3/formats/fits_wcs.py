"""The FITS WCS of an image: the cards that rebuild it, checks that refuse what cannot work, its outline on the sky."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS, NoConvergence

from streamimg3.errors import InputError
from streamimg3.formats.fits_file import FitsFile, card_value, parse_cards, quietly
from streamimg3.formats.local_copy import one_line

_NUMBERS = re.compile(
    r"(CRVAL|CRPIX|CDELT|CROTA)\d|(CD|PC)\d_\d|PV\d_\d+|(A|B|AP|BP)_(ORDER|DMAX|\d_\d)|LONPOLE|LATPOLE"
)
_TEXTS = re.compile(r"PS\d_\d+|C(TYPE|UNIT)\d|RADE(SYS|CSYS)|WCSAXES|WCSNAME|EQUINOX|EPOCH|WAT\d_\d+|NAXIS\d?")
_TABLES = re.compile(r"C[PQ](DIS|ERR)\d|D[PQ]\d|D2IM(DIS|ERR)\d|D2IM\d?|AXISCORR")
_PLATE = re.compile(r"AMD[XY]\d+|PPO\d|[XY]PIXELSZ|PLT(RA|DEC)[HMSN]+|PLTDECSN|CNPIX\d")
_RECORD_CARD = re.compile(r"(D[PQ]\d|D2IM\d) ")
_RECORD = re.compile(r"\w+ += *'(EXTVER|NAXES|AXIS\.\d+|(?!AXIS)[A-Z0-9_]+(\.[A-Z0-9_]+)*): *[-+.\dED]+ *'")
_SIP = re.compile(r"(A|B|AP|BP)_(ORDER|DMAX|\d_\d)")
_TAN = re.compile(r"-TAN( *')")
_CELESTIAL = re.compile(r"(RA|DEC|[A-Z]LON|[A-Z]LAT)-")
_TABLE_NAMES = {r"C[PQ]DIS\d": "WCSDVARR", r"D2IMDIS\d|AXISCORR": "D2IMARR"}


@dataclass(frozen=True)
class FitsWcs:
    """A FITS WCS that was rebuilt from its cards and checked.

    Parameters
    ----------
    cards : str
        80-character cards, joined; ``WCS(Header.fromstring(cards))`` rebuilds the WCS.
    tables : bytes or None
        A FITS file with the look-up tables the cards refer to, to pass to `astropy.wcs.WCS` as ``fobj``.
    s_region : str
        ``POLYGON ICRS`` of the outer corners, degrees.
    notes : tuple of str
        What astropy had to change, and says again at each rebuild.
    """

    cards: str
    tables: bytes | None
    s_region: str
    notes: tuple[str, ...]


def has_celestial_keywords(cards: str) -> bool:
    """Return whether the first two axes are named as sky coordinates (nothing is computed)."""
    return _is_celestial(parse_cards(cards))


def wcs_cards(primary_cards: str, image_cards: str) -> str:
    """Return the cards needed to rebuild an image's WCS.

    They are the image's own; the primary header's where the image has none (the reference system alone, where the
    image lacks just that and inherits).

    Parameters
    ----------
    primary_cards, image_cards : str
        80-character cards, joined.

    Returns
    -------
    str
        80-character cards, joined, without END, in standard form; dates, which astropy would comment on and no
        transformation needs, are left out.
    """
    return _joined(_chosen(primary_cards, image_cards))


def checked_wcs(file: FitsFile, primary_cards: str, image_cards: str, shape: tuple[int, int]) -> FitsWcs:
    """Rebuild an image's WCS from its cards alone and try it on the image's corners.

    Parameters
    ----------
    file : FitsFile
        Holds the look-up tables, and names the file in messages.
    primary_cards, image_cards : str
        80-character cards, joined.
    shape : tuple of int
        ``(ny, nx)``.

    Raises
    ------
    InputError
        If there is no celestial WCS, a keyword is not a finite number, a distortion is incomplete or cannot be
        inverted, or a corner has no sky position.
    """
    chosen = _chosen(primary_cards, image_cards)
    cards = _joined(chosen)
    header = parse_cards(cards)
    if not _is_celestial(header):
        raise InputError(f"{file.url}: has no celestial WCS (no RA/DEC axes); solve its astrometry first")
    _check_numbers(header, file.url)
    _check_sip(header, file.url)
    _check_distortion(cards, file.url)
    tables = _lookup_tables(file, header)
    wcs, notes = _build(cards, tables, file.url)
    if tables is not None:
        notes = (*notes, "WCS uses look-up tables")
    if _is_old_scamp(chosen):
        notes = (*notes, "WCS: -TAN with a PV polynomial is read as -TPV")
    if _is_unmarked_sip(chosen):
        notes = (*notes, "WCS: SIP coefficients are applied although CTYPE lacks -SIP")
    return FitsWcs(cards, tables, _outline(wcs, shape, file.url), notes)


def _is_celestial(header: fits.Header) -> bool:
    with quietly():
        return all(_CELESTIAL.match(str(header.get(f"CTYPE{axis}", ""))) for axis in (1, 2))


def _chosen(primary_cards: str, image_cards: str) -> dict[str, str]:
    primary, image = parse_cards(primary_cards), parse_cards(image_cards)
    chosen = _select(image)
    if not _is_celestial(image):
        return {**_select(primary), **{key: card for key, card in chosen.items() if key.startswith("NAXIS")}}
    system = {"RADESYS", "EQUINOX", "EPOCH"}
    if image.get("INHERIT") is True and not chosen.keys() & system:
        chosen |= {key: card for key, card in _select(primary).items() if key in system}
    return chosen


def _joined(chosen: Mapping[str, str]) -> str:
    if _is_old_scamp(chosen):
        return "".join(_TAN.sub(r"-TPV\1", card) for key, card in chosen.items() if not _SIP.fullmatch(key))
    if _is_unmarked_sip(chosen):
        marked = {key: _TAN.sub("-TAN-SIP'", chosen[key])[:80] for key in ("CTYPE1", "CTYPE2")}
        return "".join({**chosen, **marked}.values())
    return "".join(chosen.values())


def _select(header: fits.Header) -> dict[str, str]:
    """Return keyword -> standard cards of every WCS keyword; record-valued and repeated cards are joined in order."""
    chosen: dict[str, str] = {}
    with quietly():
        for card in header.cards:
            keyword = card.keyword.split(".")[0]
            if any(pattern.fullmatch(keyword) for pattern in (_NUMBERS, _TEXTS, _TABLES, _PLATE)):
                card.verify("silentfix")
                image = card.image
                if keyword == "RADECSYS":  # the old spelling, on which wcslib comments
                    keyword, image = "RADESYS", "RADESYS = " + image[10:]
                chosen[keyword] = chosen.get(keyword, "") + image
    return chosen


def _is_old_scamp(chosen: Mapping[str, str]) -> bool:
    """Return whether -TAN comes with a PV polynomial, as SCAMP wrote before 2012: it means -TPV, and SIP is redundant.

    Shupe et al. 2012, Proc. SPIE 8451, 84511M, section 7.
    """
    plain = all(_TAN.search(chosen.get(f"CTYPE{axis}", "")) for axis in (1, 2))
    return plain and any(int(found[1]) >= 5 for key in chosen if (found := re.fullmatch(r"PV[12]_(\d+)", key)))


def _is_unmarked_sip(chosen: Mapping[str, str]) -> bool:
    """Return whether there are SIP coefficients but CTYPE does not say so; astropy applies them all the same."""
    plain = all(_TAN.search(chosen.get(f"CTYPE{axis}", "")) for axis in (1, 2))
    return plain and "A_ORDER" in chosen and not _is_old_scamp(chosen)


def _check_numbers(header: fits.Header, label: str) -> None:
    for keyword in header:
        if _NUMBERS.fullmatch(keyword):
            value = card_value(header, keyword, label)
            if isinstance(value, str) or value is None or not math.isfinite(value):
                raise InputError(
                    f"{label}: WCS keyword {keyword} is {value!r}, not a finite number; correct the header"
                )


def _check_sip(header: fits.Header, label: str) -> None:
    named = all(str(header.get(f"CTYPE{axis}", "")).endswith("-SIP") for axis in (1, 2))
    orders = [key for key in ("A_ORDER", "B_ORDER") if key in header]
    if len(orders) == 1 or (named and not orders):
        absent = "A_ORDER" if "A_ORDER" not in orders else "B_ORDER"
        raise InputError(
            f"{label}: its SIP distortion is incomplete ({absent} is missing); restore it or drop -SIP from CTYPE"
        )


def _check_distortion(cards: str, label: str) -> None:
    """Refuse distortion records that are not plain ones: wcslib crashes on some that are damaged."""
    for card in (cards[at : at + 80] for at in range(0, len(cards), 80)):
        if _RECORD_CARD.match(card) and not _RECORD.match(card):
            raise InputError(f"{label}: distortion card {card.rstrip()!r} is damaged; correct the header")


def _lookup_tables(file: FitsFile, header: fits.Header) -> bytes | None:
    """Return the look-up tables as a FITS file of their own, or None if the WCS refers to none."""
    wanted = {name for key in header for pattern, name in _TABLE_NAMES.items() if re.match(pattern, key)}
    if not wanted:
        return None
    found = [hdu for hdu in file.hdus if hdu.name in wanted]
    lost = wanted - {hdu.name for hdu in found}
    if lost:
        raise InputError(
            f"{file.url}: the look-up table {min(lost)} of its WCS is not in the file; fetch the whole file"
        )
    primary: bytes = fits.PrimaryHDU().header.tostring().encode("ascii")
    return primary + b"".join(file.raw(hdu, with_header=True) for hdu in found)


def _build(cards: str, tables: bytes | None, label: str) -> tuple[WCS, tuple[str, ...]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if tables is None:
                wcs = WCS(parse_cards(cards))
            else:
                with fits.open(BytesIO(tables), memmap=False) as opened:
                    wcs = WCS(parse_cards(cards), opened)
            wcs.wcs.set()
        except Exception as exc:  # astropy and wcslib have no common error for a bad header
            raise InputError(f"{label}: its WCS is not usable ({one_line(exc)}); correct the header") from exc
    if wcs.naxis != 2 or not wcs.has_celestial:
        raise InputError(f"{label}: its WCS has {wcs.naxis} axes; two celestial ones are needed")
    return wcs, tuple("WCS: " + one_line(entry.message) for entry in caught)


def _outline(wcs: WCS, shape: tuple[int, int], label: str) -> str:
    ny, nx = shape
    x = np.array([-0.5, -0.5, nx - 0.5, nx - 0.5])
    y = np.array([-0.5, ny - 0.5, ny - 0.5, -0.5])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # about NaN, which is looked for here
            world = wcs.all_pix2world(x, y, 0)
            if not np.all(np.isfinite(world)):
                raise ValueError("no sky position")
            icrs = wcs.pixel_to_world(x, y).icrs
            back = wcs.all_world2pix(*world, 0)
    except (ValueError, AttributeError, NoConvergence) as exc:
        raise InputError(
            f"{label}: its WCS does not work at the image corners ({one_line(exc)}); correct the header"
        ) from exc
    error = float(np.max(np.hypot(back[0] - x, back[1] - y)))
    if not error < 1.0:  # NaN too
        raise InputError(f"{label}: its WCS cannot be inverted (corners come back {error:.3g} px off)")
    ra, dec = np.round(icrs.ra.deg, 9) % 360.0, np.round(icrs.dec.deg, 9)
    return "POLYGON ICRS  " + " ".join(f"{a:.9f} {d:.9f}" for a, d in zip(ra, dec, strict=True))
