"""Corrections worked into the keywords of a FITS header: CRVAL and the linear matrix, whatever the distortion."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.sky.correction import Correction

if TYPE_CHECKING:
    from astropy.io.fits import Header

    from streamimg3.sky.wcs import FitsProjection

F8 = NDArray[np.float64]
_TURNS = 12
_SETTLED = 1e-9  # pixels
_TOLERABLE = 0.1  # pixels: a header of this projection says something else than the correction
_NODES = 9


def corrected(text: bytes, shape: tuple[int, int], correction: Correction, centre: tuple[float, float]) -> bytes:
    """Return the cards (and tables) of a FITS WCS with a correction in CRVAL and CD or PC.

    A correction that is linear in a tangent plane is not quite linear in the header's own plane; the keywords are those
    that fit it best over the image (the rest is of the order of shift x field of view squared, 1e-7 arcsec for JWST).

    Parameters
    ----------
    text : bytes
        As in :class:`~streamimg3.sky.wcs.Wcs`.
    shape : tuple of int
        Rows and columns.
    correction : Correction
        ``tangent`` without ``origin``, or ``moving``.
    centre : tuple of 2 floats
        Where the correction's plane touches the sky (degrees).

    Raises
    ------
    InputError
        If the correction belongs to a gWCS, or the header's projection cannot carry it.
    """
    from astropy.io import fits

    from streamimg3.sky.wcs import FitsProjection, Wcs

    if correction.origin is not None:
        raise InputError("this correction belongs to the V2V3 plane of a JWST gWCS, and the exposure has a FITS WCS")
    cards, mark, tables = text.partition(Wcs.TABLES)
    header = fits.Header.fromstring(cards.decode("ascii"))
    projection = FitsProjection(text)
    y, x = (v.ravel() for v in np.meshgrid(*(np.linspace(-0.5, n - 0.5, _NODES) for n in shape), indexing="ij"))
    foci = np.array(projection.wcs.pix2foc(x, y, 0))
    sky = projection.as_icrs(projection.wcs.wcs_pix2world(*foci, 0))
    error = np.inf
    wanted = np.array(projection.as_native(*_target(correction, centre, *sky)))
    for turn in range(_TURNS):
        found = np.array(projection.wcs.wcs_world2pix(*wanted, 0))
        before, error = error, float(np.abs(found - foci).max())
        if error < _SETTLED or (turn > 3 and error > 0.5 * before):  # beside a pole the first step also turns the image
            break
        _adjust(header, projection, foci, found)
        projection = FitsProjection(_cards(header) + mark + tables)
    if not error < _TOLERABLE:
        raise InputError(
            f"the FITS WCS cannot carry its correction (it would be {error:.2g} pixel off): use a gWCS or TAN"
        )
    if correction.name:
        header["WCSNAME"] = correction.name
    return _cards(header) + mark + tables


def _target(correction: Correction, centre: tuple[float, float], ra: F8, dec: F8) -> tuple[F8, F8]:
    """Where the correction puts positions."""
    from streamimg3.sky.tangent import TangentPlane

    if correction.kind == "moving":
        return (ra + correction.shift[0]) % 360.0, dec + correction.shift[1]
    return TangentPlane.at(*centre).correct(correction, ra, dec)


def _adjust(header: Header, projection: FitsProjection, foci: F8, found: F8) -> None:
    """Change CRVAL and the matrix so that ``found`` moves to ``foci``: found = focus + c + G (focus - CRPIX)."""
    wcs = projection.wcs
    reference = wcs.wcs.crpix - 1.0
    offsets = foci - reference[:, None]
    columns = np.column_stack([np.ones(offsets.shape[1]), *offsets])
    scale = np.abs(columns).max(axis=0)  # CRPIX may lie thousands of pixels outside
    terms = np.linalg.lstsq(columns / scale, (found - foci).T, rcond=None)[0] / scale[:, None]
    before, after = (np.array(wcs.wcs_pix2world(*at[:, None], 0))[:, 0] for at in (reference, reference + terms[0]))
    step = (after - before + 180.0) % 360.0 - 180.0
    cd = wcs.wcs.has_cd()
    matrix = (wcs.wcs.cd if cd else wcs.wcs.get_pc()) @ (np.eye(2) + terms[1:].T)
    for row, axis in enumerate(projection.axes):
        value = float(wcs.wcs.crval[row] + step[row])
        header[f"CRVAL{axis}"] = value % 360.0 if row == wcs.wcs.lng else value
        if f"CUNIT{axis}" in header:  # the library has turned everything into degrees
            header[f"CUNIT{axis}"] = "deg"
        for column, other in enumerate(projection.axes):
            header.remove(f"PC{axis:03d}{other:03d}", ignore_missing=True)
            header[f"{'CD' if cd else 'PC'}{axis}_{other}"] = float(matrix[row, column])
        if not cd:
            header.remove(f"CROTA{axis}", ignore_missing=True)
            header[f"CDELT{axis}"] = float(wcs.wcs.get_cdelt()[row])


def _cards(header: Header) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # comments cut short to make room for longer numbers
        return str(header.tostring(endcard=False, padding=False)).encode("ascii")
