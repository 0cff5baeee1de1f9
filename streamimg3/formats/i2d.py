"""Mosaics out of the store: ``<product>_i2d.fits`` with extensions, types and keywords of JWST (spec image3 §10)."""

from __future__ import annotations

import os
import posixpath
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.formats.asdf_tree import asdf_unit, put
from streamimg3.formats.blend import Column, generic_table, jwst_table, packed
from streamimg3.formats.fits_stream import Image, Unit, Whole, primary, table, write_units
from streamimg3.formats.generic_header import generic_headers, generic_rows
from streamimg3.formats.i2d_header import Headers, Mosaic, jwst_headers, jwst_rows
from streamimg3.formats.names import absolute, common_root, is_remote
from streamimg3.formats.publish import UPLOAD_MEMORY, open_product
from streamimg3.formats.step_facts import StepFacts
from streamimg3.geometry import Box
from streamimg3.store import Observation
from streamimg3.store.coron_documents import KlipDocument
from streamimg3.store.documents import AssociationDocument, ResampleDocument

_EXTENSIONS = {
    "sci": "SCI",
    "err": "ERR",
    "dq": "DQ",
    "con": "CON",
    "wht": "WHT",
    "var_poisson": "VAR_POISSON",
    "var_rnoise": "VAR_RNOISE",
    "var_flat": "VAR_FLAT",
}
# Memory of the writer, measured: a band being written and one being read, ten times a shard's share of it in the codec
_BANDS, _CODEC, _SPARE = 2, 10, 16 * 2**20
_ALONE = "rectified-"  # begins the name of the mosaic of a single exposure
_LEAST = 16  # rows of a band, however small the memory


@dataclass(frozen=True)
class Packing:
    """How images are compressed: without loss, or floating-point planes rounded to the noise over ``quantize``."""

    quantize: float | None = None


def export_i2d(
    obs: Observation,
    destination: str,
    options: Mapping[str, str],
    *,
    name: str = "resample",
    limit: int | None = None,
    statuses: Mapping[str, str] | None = None,
    packing: Packing | None = None,
) -> str:
    """Write a mosaic of the store as a FITS file.

    Parameters
    ----------
    obs : Observation
        A store that holds a finished mosaic.
    destination : str
        Folder, or path or URL ending in ``.fits``, local or remote.
    options : mapping of str to str
        Storage options of the destination.
    name : str
        Name of the mosaic's document.
    limit : int, optional
        Bytes that this process may hold altogether; bands are made lower to keep to it.
    statuses : mapping of str to str, optional
        Status of the pipeline's steps (``{"tweakreg": "SKIPPED"}``) for the ``S_xxxxxx`` keywords.
    packing : Packing, optional
        Compress the images tile by tile; the name then ends in ``.fits.fz``.

    Returns
    -------
    str
        Path or URL of the product.

    Raises
    ------
    InputError
        If the store holds no such mosaic.
    StoreError
        If pixels cannot be read or the product cannot be written; nothing is left under its name.
    """
    document = obs.document(ResampleDocument, name)
    if document is None:
        raise InputError(f"{obs.url} holds no finished mosaic '{name}': run image3 first")
    url = mosaic_url(obs, destination, name)
    if limit is not None and is_remote(url):
        limit -= UPLOAD_MEMORY
    units = _units(obs, mosaic_of(obs, document, url, statuses or {}), limit)
    if packing is not None:
        from streamimg3.formats.fits_packed import write_packed

        rounded = (
            "" if packing.quantize is None else f"_q{packing.quantize:g}"
        )  # not in the place of the one without loss
        url = f"{url.removesuffix('.fits')}{rounded}.fits.fz"
        with open_product(url, options) as product:
            write_packed(product, units, packing.quantize)
        return url
    with open_product(url, options) as product:
        write_units(product, units)
    return url


def mosaic_url(obs: Observation, destination: str, name: str) -> str:
    """Return where a mosaic is written: in a folder under the name of its product, or the destination itself."""
    if destination.lower().endswith(".fits"):
        return absolute(destination)
    association = obs.document(AssociationDocument)
    if name.startswith(_ALONE):
        root = name.removeprefix(_ALONE)
    elif (number := _components(obs, name)) is not None:
        root = f"{association.product if association is not None else ''}_kl{number}".lstrip("_")
    elif name != "resample":  # one exposure group; the name is the one the reference gives to such mosaics
        root = f"{name.removeprefix('resample-')}_outlier"
    else:
        root = association.product if association is not None else ""
        root = root or common_root([r.filename for r in obs.records()])
    folder = absolute(destination)
    return posixpath.join(folder, f"{root}_i2d.fits") if is_remote(folder) else os.path.join(folder, f"{root}_i2d.fits")


def _components(obs: Observation, name: str) -> int | None:
    """Number of components that were subtracted before a mosaic was made, where there are mosaics of several numbers."""
    found = obs.document(KlipDocument)
    numbers = found.truncate if found is not None and len(found.truncate) > 1 else ()
    return next((k for k in numbers if name == f"resample-kl{k}"), None)


def mosaic_of(obs: Observation, document: ResampleDocument, url: str, statuses: Mapping[str, str]) -> Mosaic:
    """Return what the headers of a mosaic that is written to `url` are made from."""
    alone = document.path.startswith(_ALONE.replace("-", "/"))
    everything = obs.exposures(aligned=not alone)
    chosen = tuple(everything[i] for i in document.exposures) if document.exposures else everything
    name = posixpath.basename(url) if is_remote(url) else os.path.basename(url)
    facts = StepFacts() if alone else StepFacts.of(obs, statuses)
    return Mosaic(document, chosen, name, facts, untouched="klip" in statuses)


def _units(obs: Observation, mosaic: Mosaic, limit: int | None) -> list[Unit]:
    """All header-data units in order; of the pixels, only where to read them."""
    headers, columns = described(mosaic)
    units: list[Unit] = [primary(headers.primary), *_images(obs, mosaic.document, headers, limit)]
    if columns:
        hdrtab = table("HDRTAB", [(c.name, c.form) for c in columns], packed(columns), len(mosaic.exposures))
        units.append(Whole(fits.Header([*hdrtab.header.cards, fits.Card("EXTVER", 1, "extension value")]), hdrtab.data))
    return [*units, asdf_unit(mosaic_tree(mosaic, headers), units, columns)]


def described(mosaic: Mosaic) -> tuple[Headers, list[Column]]:
    """Headers and the columns of HDRTAB, none where headers are not to be merged."""
    blended = mosaic.blended
    sources = mosaic.exposures if blended else mosaic.exposures[:1]
    if mosaic.is_jwst:
        rows = jwst_rows(mosaic, sources)
        return jwst_headers(mosaic, rows), jwst_table(rows) if blended else []
    generic = generic_rows(sources, mosaic.facts)
    return generic_headers(mosaic, generic), generic_table(generic) if blended else []


# ---------------------------------------------------------------- pixels
def _images(obs: Observation, document: ResampleDocument, headers: Headers, limit: int | None) -> list[Image]:
    cards = {"SCI": headers.sci, "ERR": headers.err}
    planes = [plane for plane in _EXTENSIONS if plane in document.planes]
    return [
        image(obs, f"{document.path}/{plane}", _EXTENSIONS[plane], limit, cards.get(_EXTENSIONS[plane], ()))
        for plane in planes
    ]


def image(
    obs: Observation,
    path: str,
    extension: str,
    limit: int | None,
    cards: Sequence[fits.Card] = (),
    *,
    lead: tuple[int, ...] = (),
) -> Image:
    """Return an array of a mosaic (or what is behind its leading indices ``lead``) as an image extension."""
    array = obs.array(path)
    tile = min((array.shards or array.chunks)[-2:])
    shape, dtype = array.shape[len(lead) :], array.dtype.name
    rows = _band_rows(tile, shape[-1], array.dtype.itemsize, limit)
    return Image(extension, shape, dtype, partial(_read, obs, (path, lead), tile), rows, tuple(cards))


def _read(
    obs: Observation, source: tuple[str, tuple[int, ...]], tile: int, lead: tuple[int, ...], y0: int, y1: int
) -> NDArray[np.generic]:
    """Read a band shard by shard: all at once, the codec would hold a multiple of the band."""
    path, first = source
    array = obs.array(path)
    nx = array.shape[-1]
    band: NDArray[np.generic] = np.empty((y1 - y0, nx), array.dtype)
    for x0 in range(0, nx, tile):
        x1 = min(x0 + tile, nx)
        band[:, x0:x1] = obs.window(path, (*first, *lead), Box(y0, x0, y1, x1))
    return band


def _band_rows(tile: int, nx: int, itemsize: int, limit: int | None) -> int:
    """Return a tile's rows where they fit, else fewer: whole chunks if possible, so that none is decoded twice."""
    if limit is None:
        return tile
    rows = max(0, limit - resident() - _SPARE) // _row_memory(tile, nx, itemsize)
    chunk = max(d for d in range(1, min(tile, 512) + 1) if tile % d == 0)
    if rows >= chunk:
        return min(tile, rows // chunk * chunk)
    return max(d for d in range(1, chunk + 1) if chunk % d == 0 and d <= max(rows, _LEAST))


def _row_memory(tile: int, nx: int, itemsize: int) -> int:
    return itemsize * (_BANDS * nx + _CODEC * min(tile, nx))


def band_memory(shape: tuple[int, int], tile: int, rows: int) -> int:
    """Return the bytes that writing a mosaic of a shape takes in bands of some rows, beside its metadata."""
    return _SPARE + rows * _row_memory(tile, shape[1], 4)


def resident() -> int:
    """Bytes of this process in memory (Linux); elsewhere the most there ever were."""
    if sys.platform == "linux":
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# ---------------------------------------------------------------- metadata tree
def mosaic_tree(mosaic: Mosaic, headers: Headers) -> dict[str, object]:
    """Metadata and gWCS by their places."""
    nested: dict[str, object] = {"meta": {"wcs": mosaic.wcs.gwcs()}}
    for path, value in headers.metadata.items():
        put(nested, path, value)
    for setting in ("kernel", "fillval"):
        if setting in mosaic.document.parameters:
            put(nested, f"meta.resample.{setting}", str(mosaic.document.parameters[setting]))
    return nested
