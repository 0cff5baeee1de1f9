"""Positions and angles as people write them, and the mosaic's FITS keywords as a WCS."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.sky.wcs import Wcs

F8 = NDArray[np.float64]
_ARCSEC = {
    "": 1.0, "arcsec": 1.0, "as": 1.0, '"': 1.0, "″": 1.0, "mas": 1e-3, "arcmin": 60.0, "am": 60.0, "'": 60.0, "′": 60.0,
    "deg": 3600.0, "d": 3600.0, "°": 3600.0,
}  # fmt: skip
_PIXELS = ("pix", "px", "pixel", "pixels")


def parse_size(text: str | float, scale: float) -> int:
    """Return a length on the sky in whole pixels, at least 1.

    Parameters
    ----------
    text : str or float
        ``5arcsec``, ``0.5arcmin``, ``1deg``, ``64pix``; a bare number is arcsec.
    scale : float
        Arcsec per pixel.

    Raises
    ------
    InputError
        If it is no length.

    Examples
    --------
    >>> parse_size("5arcsec", 0.05), parse_size("64pix", 0.05), parse_size(0.1, 0.05)
    (100, 64, 2)
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?\d+)?)\s*(\D*?)\s*", str(text))
    unit = match[2].lower() if match else ""
    if not match or float(match[1]) <= 0 or unit not in (*_ARCSEC, *_PIXELS):
        raise InputError(f"'{text}' is no size: write for example 5arcsec, 0.5arcmin or 64pix")
    value = float(match[1])
    exact = value if unit in _PIXELS else value * _ARCSEC[unit] / scale
    return max(1, math.ceil(exact - 1e-6))


def parse_angle(text: str | float) -> float:
    """Return an angle in arcsec; a bare number is arcsec.

    Examples
    --------
    >>> parse_angle("0.5arcmin"), parse_angle(3)
    (30.0, 3.0)
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][-+]?\d+)?)\s*(\D*?)\s*", str(text))
    if not match or match[2].lower() not in _ARCSEC:
        raise InputError(f"'{text}' is no angle: write for example 5arcsec or 0.5arcmin")
    return float(match[1]) * _ARCSEC[match[2].lower()]


def parse_position(text: str) -> tuple[float, float]:
    """Return right ascension and declination (ICRS, degrees) of ``RA DEC`` in degrees or sexagesimal (hours).

    Raises
    ------
    InputError
        If it is no position.

    Examples
    --------
    >>> parse_position("275.2 -16.18"), parse_position("18:20:48, -16:10:48")
    ((275.2, -16.18), (275.2, -16.18))
    """
    parts = text.replace(",", " ").split()
    try:
        if len(parts) == 6:
            parts = [":".join(parts[:3]), ":".join(parts[3:])]
        ra, dec = parts
        hours = _is_sexagesimal(ra)
        degrees = round(_sexagesimal(ra) * 15.0, 11) if hours else _sexagesimal(ra), round(_sexagesimal(dec), 11)
    except ValueError as error:
        raise _no_position(text) from error
    if not (0.0 <= degrees[0] <= 360.0 and -90.0 <= degrees[1] <= 90.0):
        raise _no_position(text)
    return degrees


def _no_position(text: str) -> InputError:
    return InputError(f"'{text}' is no position: write RA DEC in degrees (275.2 -16.18) or as 18:20:48 -16:10:48")


def _is_sexagesimal(text: str) -> bool:
    return re.search(r"[:hms]", text) is not None


def _sexagesimal(text: str) -> float:
    """Degrees or hours of one coordinate."""
    if not _is_sexagesimal(text) and not re.search(r"[d°'\"]", text):
        return float(text)
    sign = -1.0 if text.strip().startswith("-") else 1.0
    numbers = [float(n) for n in re.split(r"[:hdms°'\"]", text.strip().lstrip("+-")) if n]
    if not 1 <= len(numbers) <= 3:
        raise ValueError(text)
    return sign * sum(n / 60.0**i for i, n in enumerate(numbers))


def keyword_wcs(cards: Mapping[str, float | str], shape: tuple[int, int]) -> Wcs:
    """Return the WCS that FITS keywords describe (the attribute ``wcs`` of a mosaic), for an image of ``shape``.

    Examples
    --------
    >>> cards = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 1.0, "CRPIX2": 1.0}
    >>> keyword_wcs(cards | {"CRVAL1": 10.0, "CRVAL2": 20.0, "CDELT1": -1e-4, "CDELT2": 1e-4}, (5, 5)).kind
    'fits'
    """
    from astropy.io import fits

    text = "".join(fits.Card(key, value).image for key, value in cards.items())
    return Wcs("fits", text.encode("ascii"), shape)


def shifted_keywords(cards: Mapping[str, float | str], y0: float, x0: float) -> dict[str, float | str]:
    """Return the keywords of a window whose first pixel is ``(y0, x0)``.

    Examples
    --------
    >>> shifted_keywords({"CRPIX1": 10.0, "CRPIX2": 20.0, "CRVAL1": 3.0}, 5, 2)
    {'CRPIX1': 8.0, 'CRPIX2': 15.0, 'CRVAL1': 3.0}
    """
    moved = {"CRPIX1": float(cards["CRPIX1"]) - x0, "CRPIX2": float(cards["CRPIX2"]) - y0}
    return {**cards, **moved}


def pixel_scale(wcs: Wcs, y: float | None = None, x: float | None = None) -> float:
    """Return arcsec per pixel: the square root of a pixel's area, in the middle of the image or at ``(y, x)``."""
    y0, x0 = ((n - 1) / 2 if at is None else at for n, at in zip(wcs.shape, (y, x), strict=True))
    ra, dec = wcs.to_sky(np.array([y0, y0, y0 + 1]), np.array([x0, x0 + 1, x0]), bounded=False)
    cos = math.cos(math.radians(float(dec[0])))
    east = (np.diff(ra[[0, 1]])[0] * cos, np.diff(ra[[0, 2]])[0] * cos)
    north = (dec[1] - dec[0], dec[2] - dec[0])
    return 3600.0 * math.sqrt(abs(float(east[0] * north[1] - east[1] * north[0])))


def separation(ra: F8, dec: F8, ra0: float, dec0: float) -> F8:
    """Return great-circle distances from a position, arcsec (all others in degrees).

    Examples
    --------
    >>> separation(np.array([10.0]), np.array([1.0]), 10.0, 0.0).round(6)
    array([3600.])
    """
    lon, lat = np.radians(ra - ra0), np.radians(dec)
    lat0 = math.radians(dec0)
    half = np.sin((lat - lat0) / 2) ** 2 + np.cos(lat) * math.cos(lat0) * np.sin(lon / 2) ** 2
    return np.asarray(np.degrees(2 * np.arcsin(np.sqrt(np.clip(half, 0, 1)))) * 3600.0)
