"""Exposures and mosaics as WCS values: JWST-like gWCS, SIP headers of the same map, plain tangent planes."""

from __future__ import annotations

import numpy as np
from astropy.io import fits

from streamimg3.formats.simulated_wcs import Aim, Camera, Mount, make_detector, make_gwcs
from streamimg3.sky.mosaic_frame import Reference, as_asdf
from streamimg3.sky.wcs import Wcs

SCALE = 0.031  # arcsec
AIM = Aim(150.1163, 2.2010, 32.0)


def camera(aim: Aim = AIM, variant: int = 0, parity: int = -1, corner: bool = False) -> Camera:
    """A detector with the distortion of its centre, or of its corner, where it is strongest."""
    detector = make_detector("TEST", Mount(-122.0, -458.0, 0.35, parity), variant, SCALE, 1024.0)
    return Camera(detector, (-850.0, -900.0) if corner else (47.5, 54.5), aim, 1.00007)


def gwcs_of(camera: Camera, shape: tuple[int, int], inset: tuple[float, float] = (0.0, 0.0)) -> Wcs:
    """Its gWCS; the bounding box leaves out ``inset`` pixels at each end of rows and columns."""
    (dy, dx), (ny, nx) = inset, shape
    box = ((dx - 0.5, nx - 0.5 - dx), (dy - 0.5, ny - 0.5 - dy))  # x first, as gwcs wants
    return Wcs("gwcs", as_asdf(make_gwcs(camera, box)), shape)


def sip_of(camera: Camera, shape: tuple[int, int]) -> Wcs:
    """Its FITS header, which differs from the gWCS by thousandths of a pixel."""
    return from_cards(camera.sip_cards(), shape)


def from_cards(cards: dict[str, str | float | int], shape: tuple[int, int]) -> Wcs:
    """A FITS WCS of header cards."""
    return Wcs("fits", fits.Header(cards).tostring(endcard=False, padding=False).encode(), shape)


def tangent_cards(
    shape: tuple[int, int], angle: float, scale: float = SCALE, centre: tuple[float, float] = (AIM.ra, AIM.dec)
) -> dict[str, str | float | int]:
    """Cards of a tangent plane about ``centre`` with +Y at position angle ``angle``, east to the left."""
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return {
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg", "RADESYS": "ICRS",
        "CRPIX1": (shape[1] + 1) / 2, "CRPIX2": (shape[0] + 1) / 2, "CRVAL1": centre[0], "CRVAL2": centre[1],
        "CDELT1": scale / 3600, "CDELT2": scale / 3600, "PC1_1": -c, "PC1_2": s, "PC2_1": s, "PC2_2": c,
    }  # fmt: skip


def tangent(
    shape: tuple[int, int], angle: float, scale: float = SCALE, centre: tuple[float, float] = (AIM.ra, AIM.dec)
) -> Wcs:
    """The same as a WCS."""
    return from_cards(tangent_cards(shape, angle, scale, centre), shape)


def reference_of(camera: Camera, wcs: Wcs) -> Reference:
    """The exposure as the one that lends a mosaic its scale and orientation."""
    d, aim = camera.detector, camera.aim
    return Reference(wcs, aim.ra, aim.dec, aim.roll, d.yangle, d.parity)
