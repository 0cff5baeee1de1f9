"""Tile-compressed FITS front to back: bands of rows are packed one by one, so that memory does not grow with the image.

Each band is packed by astropy as an image of its own; its compressed tiles go to a temporary file, their descriptors are moved
to where they lie in the whole heap, and the table is written when all bands are known (FITS standard 4.0, section 10).
"""

from __future__ import annotations

import io
import shutil
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from streamimg3.formats.fits_stream import BLOCK, Image, Sink, Unit, write_units

_WIDTH = 512  # columns of a tile
_HEIGHTS = (64, 32, 16, 8, 4, 2, 1)  # rows of a tile: the first that divides a band
_LARGE = 2**31  # heaps beyond this have descriptors of 64 bits
_UNSIGNED_ZERO = 2**31


def write_packed(sink: Sink, units: Sequence[Unit], quantize: float | None = None) -> int:
    """Write header-data units with their images tile-compressed.

    Parameters
    ----------
    sink : Sink
        Receives the bytes in order.
    units : sequence of Unit
        The primary unit first.
    quantize : float, optional
        Floating-point planes are rounded to the noise of a tile over so much (RICE); None = lossless (GZIP_2).

    Returns
    -------
    int
        Bytes written.
    """
    size = 0
    for unit in units:
        size += _write_image(sink, unit, quantize) if isinstance(unit, Image) else write_units(sink, [unit])
    return size


@dataclass
class _Table:
    """Rows of a compressed image in the making: columns of descriptors and numbers, and the heap so far."""

    heap: IO[bytes]
    header: fits.Header | None = None
    longest: list[int] = field(default_factory=list)
    rows: list[tuple[NDArray[np.int64], bytes]] = field(default_factory=list)
    size: int = 0


def _write_image(sink: Sink, image: Image, quantize: float | None) -> int:
    with tempfile.TemporaryFile() as heap:
        table = _Table(heap)
        for lead in np.ndindex(image.shape[:-2]):
            for y0 in range(0, image.shape[-2], image.rows):
                band = image.read(tuple(lead), y0, min(y0 + image.rows, image.shape[-2]))
                _add(table, _signed(band), _tile(image), quantize)
        wide = table.size >= _LARGE
        body = b"".join(_row(pairs, numbers, wide) for pairs, numbers in table.rows)
        header = _header(table, image, len(body) // max(1, len(table.rows)), wide).tostring().encode("ascii")
        sink.write(header)
        sink.write(body)
        heap.seek(0)
        shutil.copyfileobj(heap, _Writer(sink), 2**22)  # type: ignore[misc]
    padding = -(len(body) + table.size) % BLOCK
    sink.write(bytes(padding))
    return len(header) + len(body) + table.size + padding


class _Writer:
    """A sink as something that files can be copied to."""

    def __init__(self, sink: Sink) -> None:
        self.write = sink.write


def _tile(image: Image) -> tuple[int, int]:
    height = next(h for h in _HEIGHTS if image.rows % h == 0)
    return height, min(_WIDTH, image.shape[-1])


def _signed(band: NDArray[np.generic]) -> NDArray[np.generic]:
    """Flags as FITS stores them: shifted to signed numbers."""
    if band.dtype != np.uint32:
        return band
    shifted: NDArray[np.int32] = (band.astype(np.uint32) ^ np.uint32(_UNSIGNED_ZERO)).view(np.int32)
    return shifted


def _add(table: _Table, band: NDArray[np.generic], tile: tuple[int, int], quantize: float | None) -> None:
    """Pack a band and append its tiles."""
    shape = (min(tile[0], band.shape[0]), tile[1])
    if band.dtype.kind == "f" and quantize is not None:
        how = {"compression_type": "RICE_1", "quantize_level": float(quantize), "quantize_method": -1}
    elif band.dtype.kind == "f":
        how = {"compression_type": "GZIP_2", "quantize_level": 0.0}
    else:
        how = {"compression_type": "RICE_1"}
    packed = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(band, tile_shape=shape, **how)]).writeto(packed)
    data = packed.getvalue()
    with fits.open(io.BytesIO(data), disable_image_compression=True) as hdus:
        header, start = hdus[1].header, hdus[1].fileinfo()["datLoc"]
    count, width, heap = header["NAXIS2"], header["NAXIS1"], header["PCOUNT"]
    forms = [str(header[f"TFORM{n}"]) for n in range(1, header["TFIELDS"] + 1)]
    arrays = [n for n, form in enumerate(forms) if form.startswith(("1P", "1Q"))]
    narrow = forms[arrays[0]].startswith("1P")
    size = 8 if narrow else 16
    for k in range(count):
        row = bytes(data[start + k * width : start + (k + 1) * width])
        pairs = np.frombuffer(row[: size * len(arrays)], ">i4" if narrow else ">i8").astype(np.int64).reshape(-1, 2)
        pairs[:, 1] += np.where(pairs[:, 0] > 0, table.size, 0)
        table.rows.append((pairs, row[size * len(arrays) :]))
        table.longest = [max(a, int(b)) for a, b in zip(table.longest or [0] * len(pairs), pairs[:, 0], strict=True)]
    table.heap.write(data[start + count * width : start + count * width + heap])
    table.size += heap
    table.header = table.header or header.copy()


def _row(pairs: NDArray[np.int64], numbers: bytes, wide: bool) -> bytes:
    return b"".join(struct.pack(">qq" if wide else ">ii", int(n), int(at)) for n, at in pairs) + numbers


def _header(table: _Table, image: Image, width: int, wide: bool) -> fits.Header:
    """The table's header: structure, how it is packed, and the image's own cards."""
    assert table.header is not None
    first, plain = table.header, image.header
    cards = [
        fits.Card("XTENSION", "BINTABLE", "binary table extension"), fits.Card("BITPIX", 8), fits.Card("NAXIS", 2),
        fits.Card("NAXIS1", width), fits.Card("NAXIS2", len(table.rows)), fits.Card("PCOUNT", table.size),
        fits.Card("GCOUNT", 1), fits.Card("TFIELDS", first["TFIELDS"]),
    ]  # fmt: skip
    for n in range(1, first["TFIELDS"] + 1):
        form = str(first[f"TFORM{n}"])
        if n <= len(table.longest):
            form = f"1{'Q' if wide else 'P'}B({table.longest[n - 1]})"
        cards += [fits.Card(f"TTYPE{n}", first[f"TTYPE{n}"]), fits.Card(f"TFORM{n}", form)]
    shape = tuple(reversed(image.shape))
    height, across = _tile(image)
    tile = (across, min(height, image.shape[-2]), *(1,) * (len(shape) - 2))
    cards += [fits.Card("ZIMAGE", True), fits.Card("ZTENSION", "IMAGE"), fits.Card("ZBITPIX", plain["BITPIX"])]
    cards += [fits.Card("ZNAXIS", len(shape)), *(fits.Card(f"ZNAXIS{n}", v) for n, v in enumerate(shape, 1))]
    cards += [fits.Card(f"ZTILE{n}", v) for n, v in enumerate(tile, 1)]
    cards += [fits.Card("ZPCOUNT", 0), fits.Card("ZGCOUNT", 1), fits.Card("ZCMPTYPE", first["ZCMPTYPE"])]
    names = [k for k in first if k.startswith(("ZNAME", "ZVAL"))]
    cards += [fits.Card(k, first[k]) for k in (*names, *(k for k in ("ZBLANK", "ZQUANTIZ") if k in first))]
    structure = {"XTENSION", "BITPIX", "NAXIS", "PCOUNT", "GCOUNT", *(f"NAXIS{n}" for n in range(1, len(shape) + 1))}
    return fits.Header([*cards, *(c for c in plain.cards if c.keyword not in structure)])
