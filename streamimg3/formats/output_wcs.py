"""The user's own output frame: an ASDF file with a gWCS, a FITS file, or the text of a FITS header."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping

from streamimg3.errors import InputError
from streamimg3.formats.local_copy import open_seekable
from streamimg3.sky.mosaic_frame import as_asdf, from_fits_cards
from streamimg3.store import Observation
from streamimg3.store.documents import OutputWcsDocument, ResampleDocument


def read_output_wcs(url: str, options: Mapping[str, str]) -> OutputWcsDocument:
    """Read an output WCS (spec image3 §7.2, custom WCS).

    Parameters
    ----------
    url : str
        ``.asdf`` with the key ``wcs`` (and optionally ``pixel_scale`` in arcsec, ``pixel_area``, ``pixel_shape``,
        ``array_shape``), a FITS file whose first celestial header is used, header text (``.hdr``, ``.txt``), or a store, whose
        mosaic's frame is used.
    options : mapping
        Storage options of the URL.

    Raises
    ------
    InputError
        If the file holds no usable WCS or no shape.
    """
    if url.rstrip("/").endswith(".zarr"):
        return _from_store(url, options)
    with open_seekable(url, options) as stream:
        data = stream.read()
    return _from_asdf(url, data) if url.endswith(".asdf") else _from_fits(url, data)


def _from_store(url: str, options: Mapping[str, str]) -> OutputWcsDocument:
    """The frame of another store's mosaic: filters that are to lie on one grid."""
    found = Observation.at(url, options).document(ResampleDocument)
    if found is None:
        raise InputError(f"{url} holds no finished mosaic to take the grid from: run image3 on it first")
    return OutputWcsDocument(url, found.wcs_asdf, found.shape, found.pixel_scale)


def _from_asdf(url: str, data: bytes) -> OutputWcsDocument:
    import asdf

    try:
        with asdf.open(io.BytesIO(data)) as tree:
            wcs = tree.tree.get("wcs")
            scale, area = tree.tree.get("pixel_scale"), tree.tree.get("pixel_area")
            pixel_shape = tree.tree.get("pixel_shape")
            shape = tree.tree.get("array_shape") or (pixel_shape[::-1] if pixel_shape else None)
            if wcs is None or not hasattr(wcs, "forward_transform"):
                raise InputError(f"{url}: no gWCS under the key 'wcs': write it as asdf.AsdfFile({{'wcs': wcs}})")
            shape = wcs.array_shape or shape
            if shape is None and wcs.bounding_box is not None:
                shape = tuple(int(axis[1] + 0.5) for axis in wcs.bounding_box.bounding_box(order="C"))
            if shape is None:
                raise InputError(
                    f"{url}: the WCS has no array_shape and no bounding box: give resample.output_shape or add array_shape"
                )
            wcs.array_shape = tuple(int(n) for n in shape)
            text = as_asdf(wcs)
    except ValueError as error:
        raise InputError(f"{url}: is no ASDF file: {error}") from error
    if scale is None and area is not None:
        scale = math.sqrt(float(area))
    ny, nx = (int(n) for n in shape)
    return OutputWcsDocument(url, text.decode("latin-1"), (ny, nx), None if scale is None else float(scale))


def _from_fits(url: str, data: bytes) -> OutputWcsDocument:
    from astropy.io import fits
    from astropy.wcs import WCS

    if data.startswith(b"SIMPLE"):
        with fits.open(io.BytesIO(data), memmap=False) as hdus:
            headers = [h.header for h in hdus if h.header.get("NAXIS", 0) >= 2]
        cards = next((h.tostring() for h in headers if WCS(h).has_celestial), None)
    else:
        text = data.decode("ascii", "replace")
        cards = fits.Header.fromstring(text, sep="\n" if "\n" in text else "").tostring()
    if cards is None:
        raise InputError(f"{url}: no header with a celestial WCS")
    try:
        wcs, shape = from_fits_cards(cards)
    except InputError as error:
        raise InputError(f"{url}: {error}") from error
    wcs.array_shape = shape
    return OutputWcsDocument(url, as_asdf(wcs).decode("latin-1"), shape, None)
