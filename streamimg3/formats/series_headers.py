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
    source = [value(k, sci, primary) for k in ("SRCXPOS", "SRCYPOS")]
    names = {
        "instrument": "INSTRUME", "detector": "DETECTOR", "channel": "CHANNEL", "subarray": "SUBARRAY", "filter": "FILTER",
        "pupil": "PUPIL", "grating": "GRATING", "target": "TARGNAME", "slit": "SLTNAME", "source_type": "SRCTYPE",
    }  # fmt: skip
    return SeriesFacts(
        exp_type,
        (card_value(primary, "TSOVISIT", url) is True or exp_type in SERIES_TYPES) and whole("NINTS") != 1,
        bunit=exposure.record.bunit,
        pixel_area=exposure.record.pixar_sr,
        integration_time=value("EFFINTTM"),
        position=None if x is None or y is None else (y - 1, x - 1),
        dispaxis=whole("DISPAXIS"),
        order=whole("SPORDER"),
        source=None if source[0] is None or source[1] is None else (source[0], source[1]),
        calibrated=text("S_PHOTOM") == _DONE,
        integrations=whole("NINTS"),
        segment=whole("EXSEGNUM"),
        day=value("EXPMID"),
        **{field: text(keyword) for field, keyword in names.items()},  # type: ignore[arg-type]
    )
