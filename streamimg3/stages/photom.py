"""Convert counts to surface brightness (spec others §1.5): parameters, the factor, and the arithmetic of a band."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from streamimg3.errors import InputError
from streamimg3.kernels.photometry import (
    Change,
    Exponential,
    Linear,
    PowerLaw,
    conversion,
    convert,
    per_square_arcsec,
    time_correction,
)
from streamimg3.stages.calibrated_band import Planes

NAME = "photom"
REFTYPES = ("photom", "area")
UNIT = "MJy/sr"
COUNTS = "DN/s"
_CHANGES: dict[str, type[Change]] = {"linear": Linear, "exponential": Exponential, "powerlaw": PowerLaw}
_SOURCES = (None, "POINT", "EXTENDED")


@dataclass(frozen=True)
class Params:
    """Parameters of the photom step: names, meaning and defaults of jwst 3.0.0.

    Parameters
    ----------
    inverse : bool
        Divide instead of multiply: back to DN/s.
    source_type : str or None
        POINT or EXTENDED; spectroscopy only, it has no effect on images.
    apply_time_correction : bool
        Follow the change of the response with time, where the reference file describes one.
    override_photom, override_area : str or None
        Reference files, or ``N/A``.
    save_results : bool
        Write the exposures as this step leaves them.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    inverse: bool = False
    source_type: str | None = None
    apply_time_correction: bool = True
    override_photom: str | None = None
    override_area: str | None = None
    save_results: bool = False

    def __post_init__(self) -> None:
        if (self.source_type or None) not in _SOURCES:
            raise InputError(f"{NAME}.source_type = {self.source_type!r}: it must be POINT, EXTENDED or None")


def correction(times: Mapping[str, Mapping[str, float]], day: float | None, name: str) -> float:
    """Return the response at a time relative to that for which the reference file's factor holds.

    Parameters
    ----------
    times : mapping
        Coefficients by kind of change (``linear``, ``exponential``, ``powerlaw``); none = 1.
    day : float or None
        Middle of the exposure, MJD.
    name : str
        The exposure, for messages.

    Raises
    ------
    InputError
        If the time is needed and unknown, or the response then is no positive number.
    """
    if not times:
        return 1.0
    if day is None or not math.isfinite(day):
        raise InputError(
            f"{name}: has no EXPMID, and its photometry changes with time: add it, or set {NAME}.apply_time_correction=false"
        )
    changes = [kind(**times[key]) for key, kind in _CHANGES.items() if key in times]
    found = float(time_correction(changes, day))
    if not (math.isfinite(found) and found > 0):
        raise InputError(f"{name}: the photom reference file gives a response of {found} at EXPMID {day}; give another")
    return found


def keywords(photmjsr: float, correction: float) -> dict[str, float]:
    """Return PHOTMJSR and PHOTUJA2 of an exposure."""
    factor = conversion(photmjsr, correction)
    return {"PHOTMJSR": float(factor), "PHOTUJA2": float(per_square_arcsec(factor))}


def apply(planes: Planes, photmjsr: float, correction: float, inverse: bool) -> None:
    """Multiply a band by its factor in place (or divide), and its variances by the factor squared."""
    convert(planes, conversion(photmjsr, correction), inverse)
