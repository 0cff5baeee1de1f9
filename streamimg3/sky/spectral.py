"""Wavelengths and source positions from the WCS of spectra (spec others §2.5)."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.sky.wcs import Wcs

F8 = NDArray[np.float64]
_SLIT = "slit_frame"
_ORDERS = 3  # inputs of a WCS that wants to know the spectral order, as NIRISS SOSS has it


class Source(NamedTuple):
    """Where a source is expected: pixel along the dispersion, and across it there; and across for every pixel along."""

    along: int
    across: float
    trace: F8


def wavelengths(wcs: Wcs, order: int) -> F8:
    """Return the wavelength of every pixel.

    Parameters
    ----------
    wcs : Wcs
        A gWCS with three outputs, the last of which is the wavelength.
    order : int
        Spectral order, for a WCS that asks for it.

    Returns
    -------
    ndarray of float64, shape (ny, nx)
        In the WCS's own unit, microns; NaN outside the bounding box.

    Raises
    ------
    InputError
        If the WCS cannot be read or gives no wavelengths.
    """
    y, x = np.mgrid[: wcs.shape[0], : wcs.shape[1]].astype(np.float64)
    return np.ascontiguousarray(_world(wcs, x, y, order)[2], np.float64)


def position(wcs: Wcs, y: float, x: float, order: int) -> tuple[float, float] | None:
    """Return right ascension and declination (degrees) of a pixel, None where there is none."""
    ra, dec, wavelength = (float(np.asarray(v)) for v in _world(wcs, np.array(x), np.array(y), order))
    return (ra, dec) if all(map(math.isfinite, (ra, dec, wavelength))) else None


def across_scale(wcs: Wcs, y: float, x: float, dispaxis: int, order: int) -> float:
    """Return how many arcseconds of sky a pixel across the dispersion covers, at a place."""
    step = (1.0, 0.0) if dispaxis == 1 else (0.0, 1.0)
    one, two = position(wcs, y, x, order), position(wcs, y + step[0], x + step[1], order)
    if one is None or two is None:
        raise InputError("its WCS gives no position at the middle of the spectrum: sizes in arcsec cannot be used")
    (ra0, dec0), (ra1, dec1) = (np.deg2rad(p) for p in (one, two))
    half = math.sin((dec1 - dec0) / 2) ** 2 + math.cos(dec0) * math.cos(dec1) * math.sin((ra1 - ra0) / 2) ** 2
    return math.degrees(2 * math.asin(math.sqrt(half))) * 3600


def _world(wcs: Wcs, x: F8, y: F8, order: int) -> Any:
    found = wcs.gwcs()
    inputs = int(found.forward_transform.n_inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NaN outside the box
        world = found(x, y, order) if inputs == _ORDERS else found(x, y)
    if not isinstance(world, tuple | list) or len(world) < 3:
        raise InputError("its WCS gives no wavelengths: it is not one of spectra")
    return world


def slit_source(wcs: Wcs, dispaxis: int, source: tuple[float, float]) -> Source | None:
    """Return where a source in a slit of NIRSpec is on the detector.

    Parameters
    ----------
    wcs : Wcs
        With a frame of the slit.
    dispaxis : int
        1 = wavelength changes along x, 2 = along y.
    source : tuple of float
        Its (x, y) in the slit, as the header has it.

    Returns
    -------
    Source or None
        None if the WCS has no such frame, or puts the source outside the bounding box.
    """
    found = wcs.gwcs()
    box = found.bounding_box
    if _SLIT not in found.available_frames or box is None:
        return None
    (x0, x1), (y0, y1) = ((float(a), float(b)) for a, b in box.bounding_box(order="F"))
    spans = ((x0, x1), (y0, y1)) if dispaxis == 1 else ((y0, y1), (x0, x1))
    along = int(np.round((spans[0][0] + spans[0][1]) / 2))
    backward = found.get_transform(_SLIT, "detector")
    middle = _middle_wavelength(found, spans, dispaxis) * (1e-6 if "gwa" in found.available_frames else 1.0)
    place = backward(source[0], source[1], middle)
    across = float(place[1] if dispaxis == 1 else place[0])
    if not spans[1][0] <= across <= spans[1][1]:  # NaN, too
        return None
    return Source(along, across, _trace(found, ((x0, x1), (y0, y1)), source, wcs.shape[1]))


def _middle_wavelength(found: Any, spans: tuple[tuple[float, float], tuple[float, float]], dispaxis: int) -> float:
    """Mean wavelength at the middle of the bounding box."""
    across = np.arange(round(spans[1][1]), dtype=np.float64)
    along = np.full(len(across), (spans[0][0] + spans[0][1]) / 2)
    x, y = (along, across) if dispaxis == 1 else (across, along)
    values = np.asarray(found(x, y)[2], np.float64)
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else math.nan


def _trace(
    found: Any, box: tuple[tuple[float, float], tuple[float, float]], source: tuple[float, float], nx: int
) -> F8:
    """Row of the source for every column: wavelengths in even steps through the slit, put on the columns."""
    (x0, x1), (y0, y1) = box
    count = int(x1 - x0)
    columns = np.arange(math.ceil(x0 - 1e-9), math.floor(x1 + 1e-9) + 1, dtype=np.float64)
    rows = np.arange(math.ceil(y0 - 1e-9), math.floor(y1 + 1e-9) + 1, dtype=np.float64)
    x, y = np.meshgrid(columns, rows)
    in_slit = np.asarray(found.get_transform("detector", _SLIT)(x, y)[2], np.float64)
    steps = np.linspace(np.nanmin(in_slit), np.nanmax(in_slit), count)
    at_x, at_y, *_ = found.get_transform(_SLIT, "detector")(np.full(count, source[0]), np.full(count, source[1]), steps)
    order = np.argsort(at_x)
    at_x, at_y = np.asarray(at_x)[order], np.asarray(at_y)[order]
    wanted = np.arange(count, dtype=np.float64)
    values = np.interp(wanted, at_x, at_y)
    for inside, (a, b) in ((wanted < at_x[0], (0, 1)), (wanted > at_x[-1], (-2, -1))):  # straight on beyond the ends
        slope = (at_y[b] - at_y[a]) / (at_x[b] - at_x[a])
        values[inside] = at_y[a] + slope * (wanted[inside] - at_x[a])
    trace = np.full(nx, np.nan)
    start = math.ceil(x0)
    trace[start : start + count] = values[: nx - start]
    return trace
