"""Exposures out of the store, as the steps left them: ``<exposure>_<association>_crf.fits`` (spec image3 §2, §10)."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from functools import partial

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.formats.asdf_tree import asdf_unit
from streamimg3.formats.crf_header import crf_headers, crf_tree
from streamimg3.formats.fits_stream import Image, Unit, primary, write_units
from streamimg3.formats.i2d import resident
from streamimg3.formats.names import absolute, is_remote
from streamimg3.formats.publish import UPLOAD_MEMORY, open_product
from streamimg3.formats.step_facts import StepFacts
from streamimg3.geometry import Box
from streamimg3.store import Exposure, Observation
from streamimg3.store.layout import FLAGS, PLANES, VARIANCES, chunking

# Planes in the order of JWST's files; a weight map that came with an image of another telescope follows them
_EXTENSIONS = {
    "sci": "SCI",
    "err": "ERR",
    "dq": "DQ",
    "area": "AREA",
    "var_poisson": "VAR_POISSON",
    "var_rnoise": "VAR_RNOISE",
    "var_flat": "VAR_FLAT",
    "weight": "WHT",
}
_MATCHED = ("sci", "err", *VARIANCES)  # NaN together
_OUTLIER = FLAGS["OUTLIER"] | FLAGS["DO_NOT_USE"]
# Memory of the writer, measured: per pixel of a band two bands, flags, masks and the codec; and the metadata tree
_ROW, _SPARE = 32, 32 * 2**20
_LEAST = 32  # rows of a band, however small the memory


def export_crf(
    obs: Observation,
    destination: str,
    options: Mapping[str, str],
    *,
    statuses: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> list[str]:
    """Write every exposure as a FITS file: its pixels and headers with what the steps of image3 found.

    Parameters
    ----------
    obs : Observation
        A store in which outlier_detection has run (it may have failed: pixels are then as they came).
    destination : str
        Folder, local or remote.
    options : mapping of str to str
        Storage options of the destination.
    statuses : mapping of str to str, optional
        Status of the pipeline's steps, for the ``S_xxxxxx`` keywords.
    limit : int, optional
        Bytes that this process may hold altogether; bands are made lower to keep to it.

    Returns
    -------
    list of str
        Paths or URLs in the order of the exposures; empty where the user skips outlier_detection.

    Raises
    ------
    InputError
        If nothing is known of outlier_detection.
    StoreError
        If pixels cannot be read or a product cannot be written; nothing is left under its name.
    """
    facts = StepFacts.of(obs, statuses or {})
    if facts.outlier_status is None:
        raise InputError(f"{obs.url} holds no result of outlier_detection: run image3 first")
    if not facts.has_crf:
        return []
    return [write_crf(exposure, facts, destination, options, limit) for exposure in obs.exposures()]


def write_crf(
    exposure: Exposure, facts: StepFacts, destination: str, options: Mapping[str, str], limit: int | None = None
) -> str:
    """Write one exposure; see :func:`export_crf`."""
    folder, name = absolute(destination), facts.file_name(exposure.record)
    url = posixpath.join(folder, name) if is_remote(folder) else os.path.join(folder, name)
    if limit is not None and is_remote(url):
        limit -= UPLOAD_MEMORY
    with open_product(url, options) as product:
        write_units(product, _units(exposure, facts, limit))
    return url


def _units(exposure: Exposure, facts: StepFacts, limit: int | None) -> list[Unit]:
    """All header-data units in order; of the pixels, only where to read them."""
    headers = crf_headers(exposure, facts)
    cards = {"SCI": headers.sci, "ERR": headers.err}
    pixels = SeenPixels(exposure, facts)
    rows = band_rows(exposure.record.shape, limit)
    units: list[Unit] = [primary(headers.primary)]
    for plane, extension in _EXTENSIONS.items():
        if exposure.has(plane) or plane == "dq":
            units.append(_image(plane, extension, pixels, rows, cards.get(extension, [])))
    units += headers.tables
    if exposure.record.wcs_kind == "gwcs":
        units.append(asdf_unit(crf_tree(exposure, facts), units))
    return units


def _image(plane: str, extension: str, pixels: SeenPixels, rows: int, cards: list[fits.Card]) -> Image:
    read = partial(pixels.read, plane)
    return Image(extension, pixels.shape, PLANES[plane].dtype, read, rows, tuple(cards))


def band_rows(shape: tuple[int, int], limit: int | None) -> int:
    """Return the rows of a band: a shard's, else those of whole chunks, so that none is decoded twice, else fewer."""
    (chunk, _), (shard, _) = chunking(shape)
    if limit is None:
        return shard
    rows = max(_LEAST, (limit - resident() - _SPARE) // (_ROW * shape[1]))
    if rows >= chunk:
        return min(shard, rows // chunk * chunk)
    return max(d for d in range(1, chunk + 1) if chunk % d == 0 and d <= rows)


class SeenPixels:
    """The pixels of an exposure seen through the documents: sky taken off, outliers flagged, bad pixels NaN everywhere.

    A pixel is bad if any of SCI, ERR and the variances is NaN or its flags say DO_NOT_USE (spec image3 §1). Which ones
    are is found out once per band and kept as one bit per pixel. Where outlier_detection did not succeed, flags and NaN
    are as they came.
    """

    def __init__(self, exposure: Exposure, facts: StepFacts) -> None:
        self.shape = exposure.record.shape
        self._exposure = exposure
        self._level = np.float32(facts.taken_off(exposure.record))
        self._matched = facts.outlier_status == "COMPLETE"
        self._bad: dict[tuple[int, int], NDArray[np.uint8]] = {}

    def read(self, plane: str, lead: tuple[int, ...], y0: int, y1: int) -> NDArray[np.generic]:
        """Return rows ``y0..y1`` (half-open) of a plane in its own dtype; `lead` is empty."""
        box = Box(y0, 0, y1, self.shape[1])
        if plane == "dq":
            return self._flags(box)
        band = self._exposure.read(plane, box).astype(np.float32, copy=False)
        if plane == "sci" and self._level:
            band = band - self._level
        if self._matched and plane in _MATCHED:
            band = np.where(self._is_bad(box), np.float32(np.nan), band)
        return band

    def _flags(self, box: Box) -> NDArray[np.uint32]:
        flags = self._stored_flags(box)
        if self._matched:
            flags[self._outliers(box)] |= np.uint32(_OUTLIER)
            flags[self._is_bad(box)] |= np.uint32(FLAGS["DO_NOT_USE"])
        return flags

    def _stored_flags(self, box: Box) -> NDArray[np.uint32]:
        if not self._exposure.has("dq"):
            return np.zeros(box.shape, np.uint32)
        return self._exposure.read("dq", box).astype(np.uint32)

    def _outliers(self, box: Box) -> NDArray[np.bool_]:
        return self._exposure.read("outlier", box).astype(bool)

    def _is_bad(self, box: Box) -> NDArray[np.bool_]:
        key = (box.y0, box.y1)
        if key not in self._bad:
            bad = (self._stored_flags(box) & FLAGS["DO_NOT_USE"]) != 0
            bad |= self._outliers(box)
            bad |= self._exposure.read("nan", box).astype(bool)
            self._bad[key] = np.packbits(bad)
        return np.unpackbits(self._bad[key], count=box.shape[0] * box.shape[1]).reshape(box.shape).view(bool)
