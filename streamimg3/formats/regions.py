"""Region files for ds9: outlines of exposures, tiles, sources, and the outliers of each exposure."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from streamimg3.errors import InputError
from streamimg3.formats.catalog import product_url
from streamimg3.formats.names import absolute
from streamimg3.formats.publish import open_product
from streamimg3.geometry import Box, TileGrid
from streamimg3.sky.wcs import Wcs
from streamimg3.store import Exposure, Observation
from streamimg3.store.columns import read_column
from streamimg3.store.documents import CatalogDocument, OutlierDocument, ResampleDocument

_HEAD = '# Region file format: DS9 version 4.1\nglobal color={} dashlist=8 3 width=1 font="helvetica 10 normal roman" select=1\n'
_ROWS = 512


def export_regions(obs: Observation, destination: str, options: Mapping[str, str]) -> list[str]:
    """Write the region files that a store has something for.

    Parameters
    ----------
    obs : Observation
        The store.
    destination : str
        Folder or URL.
    options : mapping of str to str
        Storage options.

    Returns
    -------
    list of str
        ``<product>_footprints.reg``, ``_tiles.reg`` and ``_sources.reg`` (sky), and ``<exposure>_outliers.reg`` (pixels of
        the exposure).
    """
    kinds: dict[str, Callable[[Observation], Iterator[str] | None]] = {
        "footprints": footprints, "tiles": tiles, "sources": sources,
    }  # fmt: skip
    colours = {"footprints": "cyan", "tiles": "yellow", "sources": "green"}
    written = []
    for kind, make in kinds.items():
        lines = make(obs)
        if lines is not None:
            url = product_url(obs, destination, f"{kind}.reg")
            _write(url, options, [_HEAD.format(colours[kind]), "icrs\n", *lines])
            written.append(url)
    found = obs.document(OutlierDocument)
    if found is not None and found.status == "COMPLETE":
        folder = absolute(destination)
        for exposure in obs.exposures():
            url = posixpath.join(folder, f"{exposure.record.name}_outliers.reg")
            _write(url, options, [_HEAD.format("red"), "image\n", *outliers(exposure)])
            written.append(url)
    return written


def _write(url: str, options: Mapping[str, str], lines: list[str]) -> None:
    with open_product(url, options) as sink:
        sink.write("".join(lines).encode("utf-8"))


def footprints(obs: Observation) -> Iterator[str]:
    """Yield the outline of each exposure as the alignment left it, with its name."""
    for exposure in obs.exposures():
        numbers = [float(word) for word in exposure.s_region.split() if _is_number(word)]
        yield f"polygon({','.join(f'{v:.8f}' for v in numbers)}) # text={{{exposure.record.name}}}\n"


def _is_number(word: str) -> bool:
    return word.lstrip("+-").replace(".", "", 1).replace("e-", "", 1).isdigit()


def tiles(obs: Observation) -> Iterator[str] | None:
    """Yield the tiles of the mosaic; None where there is none."""
    document = obs.document(ResampleDocument)
    return None if document is None else _tiles(document)


def _tiles(document: ResampleDocument) -> Iterator[str]:
    wcs = Wcs("gwcs", document.wcs_asdf.encode("latin-1"), document.shape)
    for tile in TileGrid(document.shape, document.tile):
        y0, x0, y1, x1 = tile.box.as_tuple()
        y, x = np.array([y0, y0, y1, y1]) - 0.5, np.array([x0, x1, x1, x0]) - 0.5
        corners = np.stack(wcs.to_sky(y, x, bounded=False), axis=1).ravel()
        yield f"polygon({','.join(f'{v:.8f}' for v in corners)}) # text={{{tile.key}}}\n"


def sources(obs: Observation) -> Iterator[str] | None:
    """Yield an ellipse for each source (three sigma); None where there is no catalogue with shapes."""
    document = obs.document(CatalogDocument)
    names = {c.name for c in document.columns} if document is not None else set()
    if document is None or not document.sources or "sky_centroid.ra" not in names:
        return None
    return _sources(obs, document, names)


def _sources(obs: Observation, document: CatalogDocument, names: set[str]) -> Iterator[str]:
    def values(name: str, usual: float) -> np.ndarray:  # type: ignore[type-arg]
        return read_column(obs, "catalog", name) if name in names else np.full(document.sources, usual)

    units = {c.name: c.unit for c in document.columns}
    mosaic = obs.document(ResampleDocument)
    scale = 1.0 if units.get("semimajor_sigma") == "arcsec" or mosaic is None else mosaic.pixel_scale
    major, minor = (3.0 * scale * values(f"semi{n}_sigma", 1.0) for n in ("major", "minor"))
    columns = (
        values("sky_centroid.ra", 0),
        values("sky_centroid.dec", 0),
        major,
        minor,
        values("sky_orientation", 0),
        values("label", 0),
    )
    for ra, dec, a, b, angle, label in zip(*columns, strict=True):
        if np.isfinite([ra, dec]).all():
            a, b = (max(float(v), 0.05) if np.isfinite(v) else 0.5 for v in (a, b))
            turned = float(angle) + 90.0 if np.isfinite(angle) else 0.0
            yield f'ellipse({ra:.8f},{dec:.8f},{a:.4f}",{b:.4f}",{turned:.2f}) # text={{{int(label)}}}\n'


def outliers(exposure: Exposure) -> Iterator[str]:
    """Yield the flagged pixels of an exposure in its own pixels, counted from 1; runs along a row are one box."""
    ny, nx = exposure.record.shape
    for y0 in range(0, ny, _ROWS):
        flags = exposure.read("outlier", Box(y0, 0, min(y0 + _ROWS, ny), nx)) != 0
        edges = np.diff(np.pad(flags, ((0, 0), (1, 1))).astype(np.int8), axis=1)
        rows, starts = np.nonzero(edges == 1)
        _, ends = np.nonzero(edges == -1)
        for y, start, end in zip((rows + y0).tolist(), starts.tolist(), ends.tolist(), strict=True):
            yield f"box({(start + end + 1) / 2:g},{y + 1},{end - start},1,0)\n"


def need_mosaic(obs: Observation) -> ResampleDocument:
    """Return the mosaic's document.

    Raises
    ------
    InputError
        If there is none.
    """
    document = obs.document(ResampleDocument)
    if document is None:
        raise InputError(f"{obs.url} holds no finished mosaic: run image3 first")
    return document
