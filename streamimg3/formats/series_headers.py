"""What the headers of a time series say that its steps need (spec others §2)."""

from __future__ import annotations

from astropy.io import fits

from streamimg3.formats.fits_file import card_value, number, parse_cards
from streamimg3.store import Exposure
from streamimg3.store.series_documents import SeriesFacts

SERIES_TYPES = ("NRC_TSIMAGE", "NRC_TSGRISM", "NRS_BRIGHTOBJ")  # EXP_TYPE of what is a time series by itself
_DONE = "COMPLETE"


def series_facts(exposure: Exposure) -> SeriesFacts:
    """Return what the headers of a segment say.

    Raises
    ------
    InputError
        If a value is not what it should be.
    """
    url = exposure.record.url
    primary, sci = parse_cards(exposure.cards("primary")), parse_cards(exposure.cards("sci"))

    def text(keyword: str) -> str | None:
        for header in (primary, sci):
            value = card_value(header, keyword, url)
            if isinstance(value, str) and value.strip():
                return value.strip()
        return None

    def value(keyword: str, header: fits.Header = primary, other: fits.Header = sci) -> float | None:
        found = number(header, keyword, url)
        return number(other, keyword, url) if found is None else found

    def whole(keyword: str) -> int | None:
        found = value(keyword)
        return None if found is None else int(found)

    exp_type = (text("EXP_TYPE") or "").upper()
    x, y = (value(k, sci, primary) for k in ("XREF_SCI", "YREF_SCI"))
    slit = tuple(value(k, sci, primary) for k in ("SRCXPOS", "SRCYPOS"))
    return SeriesFacts(
        exp_type, card_value(primary, "TSOVISIT", url) is True or exp_type in SERIES_TYPES,
        *(text(k) for k in ("INSTRUME", "DETECTOR", "CHANNEL", "SUBARRAY", "FILTER", "PUPIL", "GRATING", "TARGNAME")),
        exposure.record.bunit, exposure.record.pixar_sr, value("EFFINTTM"),
        None if x is None or y is None else (y - 1, x - 1),
        whole("DISPAXIS"), whole("SPORDER"), text("SLTNAME"), text("SRCTYPE"),
        None if None in slit else slit,  # type: ignore[arg-type]
        text("S_PHOTOM") == _DONE, whole("NINTS"), whole("EXSEGNUM"), value("EXPMID"),
    )  # fmt: skip
