"""Contrast curves and signal-to-noise images out of the store: ``_contrast.ecsv`` and ``_snr.fits`` (spec others §3.7)."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.formats.asdf_tree import asdf_unit
from streamimg3.formats.fits_stream import Image, Unit, primary, write_units
from streamimg3.formats.i2d import described, mosaic_tree
from streamimg3.formats.i2d_header import Mosaic
from streamimg3.formats.publish import open_product
from streamimg3.geometry import Box
from streamimg3.store import Observation
from streamimg3.store.coron_documents import Contrast
from streamimg3.store.documents import ResampleDocument


def write_contrast(obs: Observation, curve: Contrast, url: str, options: Mapping[str, str]) -> str:
    """Write a contrast curve as an ECSV table: radius in pixels and arcsec, sigma in the image's unit; returns its URL.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    from astropy.table import Column, Table

    document = obs.document(ResampleDocument, curve.mosaic)
    scale = document.pixel_scale if document is not None else math.nan
    unit = obs.records()[0].bunit
    radius = np.array(curve.radius, np.float32)
    sigma = np.array([math.nan if s is None else s for s in curve.sigma], np.float32)
    table = Table(meta={"mosaic": curve.mosaic, "pixel_scale": scale})
    table["radius"] = Column(radius, unit="pix", description="mean radius of the ring")
    table["sigma"] = Column(sigma, description=f"standard deviation in the ring [{unit or 'pixel value'}]")
    table["separation"] = Column(radius * np.float32(scale), unit="arcsec", description="mean radius of the ring")
    text = io.StringIO()
    table.write(text, format="ascii.ecsv")
    with open_product(url, options) as sink:
        sink.write(text.getvalue().encode("utf-8"))
    return url


def write_snr(obs: Observation, mosaic: Mosaic, url: str, options: Mapping[str, str]) -> str:
    """Write a mosaic over its error as a FITS file; returns its URL.

    Raises
    ------
    InputError
        If the mosaic has no error.
    StoreError
        If it cannot be written.
    """
    path = mosaic.document.path
    if "err" not in mosaic.document.planes:
        raise InputError(f"{obs.url}: the mosaic {path} has no ERR, so that nothing is known of its noise")

    def read(lead: tuple[int, ...], y0: int, y1: int) -> NDArray[np.generic]:
        box = Box(y0, 0, y1, mosaic.document.shape[1])
        sci, err = (obs.window(f"{path}/{plane}", (), box) for plane in ("sci", "err"))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio: NDArray[np.generic] = np.divide(sci, err, dtype=np.float32)
        return ratio

    headers, _ = described(mosaic)
    cards = tuple(card for card in headers.sci if card.keyword != "BUNIT")
    units: list[Unit] = [primary(headers.primary)]
    units.append(Image("SCI", mosaic.document.shape, "float32", read, 256, cards))
    units.append(asdf_unit(mosaic_tree(mosaic, headers), units))
    with open_product(url, options) as sink:
        write_units(sink, units)
    return url
