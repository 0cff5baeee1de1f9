"""FITS files written front to back: headers, then pixels as big-endian bands of rows, two bands in memory at most.

Nothing is rewritten, so any sink will do, a multipart upload included. While one band is swapped and written, one
background thread reads the next (decoding releases the interpreter lock).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, cast

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

BLOCK = 2880
_BITPIX = {"uint8": 8, "int16": 16, "int32": 32, "uint32": 32, "int64": 64, "float32": -32, "float64": -64}
# FITS has no unsigned 32-bit type: values are shifted by this (FITS standard 4.0, section 5.2.5)
_UNSIGNED_ZERO = 2**31

Read = Callable[[tuple[int, ...], int, int], NDArray[np.generic]]


class Sink(Protocol):
    """Where bytes go."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Take all of the bytes."""


@dataclass(frozen=True)
class Image:
    """An image extension whose pixels are read when they are due.

    Parameters
    ----------
    name : str
        EXTNAME.
    shape : tuple of int
        ``(ny, nx)``, or ``(planes, ny, nx)``.
    dtype : str
        ``uint8 int16 int32 uint32 int64 float32 float64``; uint32 is stored as int32 with BZERO 2147483648.
    read : callable
        ``read(lead, y0, y1)`` returns rows ``y0..y1`` (half-open) of plane ``lead`` as an array ``(y1 - y0, nx)`` of
        this dtype, which the writer may overwrite; it is called from one background thread, never twice at a time.
    rows : int
        Height of a band; the last one of a plane may be lower.
    cards : list of astropy Card
        What follows EXTNAME in the header.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Read = field(repr=False)
    rows: int = 1024
    cards: tuple[fits.Card, ...] = ()

    @property
    def header(self) -> fits.Header:
        """The complete header: structural cards, EXTNAME, the image's own cards, EXTVER."""
        cards = [
            fits.Card("XTENSION", "IMAGE", "Image extension"),
            fits.Card("BITPIX", _BITPIX[self.dtype], "array data type"),
            fits.Card("NAXIS", len(self.shape), "number of array dimensions"),
            *(fits.Card(f"NAXIS{i + 1}", n) for i, n in enumerate(reversed(self.shape))),
            fits.Card("PCOUNT", 0, "number of parameters"),
            fits.Card("GCOUNT", 1, "number of groups"),
        ]
        if self.dtype == "uint32":
            cards += [fits.Card("BSCALE", 1), fits.Card("BZERO", _UNSIGNED_ZERO)]
        cards.append(fits.Card("EXTNAME", self.name, "extension name"))
        return fits.Header([*cards, *self.cards, fits.Card("EXTVER", 1, "extension value")])

    @property
    def nbytes(self) -> int:
        """Size of the pixels."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Whole:
    """A unit that is in memory: a primary header without data, or a table as bytes."""

    header: fits.Header
    data: bytes = b""


def primary(cards: Sequence[fits.Card]) -> Whole:
    """Return a primary unit without data, made of these cards."""
    head = [
        fits.Card("SIMPLE", True, "conforms to FITS standard"),
        fits.Card("BITPIX", 8, "array data type"),
        fits.Card("NAXIS", 0, "number of array dimensions"),
        fits.Card("EXTEND", True),
    ]
    return Whole(fits.Header([*head, *cards]))


def table(name: str, columns: Sequence[tuple[str, str]], data: bytes, rows: int) -> Whole:
    """Return a binary table.

    Parameters
    ----------
    name : str
        EXTNAME.
    columns : sequence of (str, str)
        TTYPE and TFORM.
    data : bytes
        All rows, big-endian, packed.
    rows : int
        Number of rows.
    """
    width = len(data) // rows if rows else 0
    cards = [
        fits.Card("XTENSION", "BINTABLE", "binary table extension"),
        fits.Card("BITPIX", 8, "array data type"),
        fits.Card("NAXIS", 2, "number of array dimensions"),
        fits.Card("NAXIS1", width, "length of dimension 1"),
        fits.Card("NAXIS2", rows, "length of dimension 2"),
        fits.Card("PCOUNT", 0, "number of group parameters"),
        fits.Card("GCOUNT", 1, "number of groups"),
        fits.Card("TFIELDS", len(columns), "number of table fields"),
    ]
    for i, (title, form) in enumerate(columns, 1):
        cards += [fits.Card(f"TTYPE{i}", title), fits.Card(f"TFORM{i}", form)]
    cards.append(fits.Card("EXTNAME", name, "extension name"))
    return Whole(fits.Header(cards), data)


@dataclass(frozen=True)
class Rows:
    """A binary table whose rows are read when they are due.

    Parameters
    ----------
    header : astropy.io.fits.Header
        Complete.
    count, width : int
        Rows, and bytes of one.
    read : callable
        ``read(first, last)`` returns rows as an array of a packed big-endian structured dtype of this width; it is called
        from one background thread, never twice at a time.
    band : int
        Rows that are read at a time.
    """

    header: fits.Header
    count: int
    width: int
    read: Callable[[int, int], NDArray[np.void]] = field(repr=False)
    band: int = 64

    @property
    def name(self) -> str:
        """EXTNAME."""
        return str(self.header["EXTNAME"])

    @property
    def nbytes(self) -> int:
        """Size of the rows."""
        return self.count * self.width


Unit = Image | Whole | Rows


def write_units(sink: Sink, units: Sequence[Unit]) -> int:
    """Write header-data units one after the other.

    Parameters
    ----------
    sink : Sink
        Receives the bytes in order.
    units : sequence of Image or Whole
        The primary unit first.

    Returns
    -------
    int
        Bytes written.

    Raises
    ------
    StoreError
        What reading or writing raises is passed on; what has been written by then is no FITS file.
    """
    size = 0
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="fits-band") as reader:
        bands = _Ahead(reader, units)
        try:
            for unit in units:
                size += _write_unit(sink, unit, bands)
        finally:
            bands.drop()
    return size


def _write_unit(sink: Sink, unit: Unit, bands: _Ahead) -> int:
    header = unit.header.tostring().encode("ascii")
    sink.write(header)
    if isinstance(unit, Whole):
        sink.write(unit.data)
        size = len(unit.data)
    else:
        for _ in range(_band_count(unit)):
            band = bands.take()
            sink.write(_big_endian(band, unit.dtype) if isinstance(unit, Image) else _packed(band, unit))
        size = unit.nbytes
    padding = -size % BLOCK
    sink.write(bytes(padding))
    return len(header) + size + padding


class _Ahead:
    """Bands of all images in order; while one is in use, the next is being read."""

    def __init__(self, reader: ThreadPoolExecutor, units: Sequence[Unit]) -> None:
        self._reader = reader
        self._jobs = _jobs(units)
        self._next = self._start()

    def _start(self) -> Future[NDArray[np.generic]] | None:
        job = next(self._jobs, None)
        return None if job is None else self._reader.submit(job)

    def take(self) -> NDArray[np.generic]:
        """Return the band that is due."""
        if self._next is None:
            raise IndexError("all bands have been taken")
        band = self._next.result()
        self._next = self._start()
        return band

    def drop(self) -> None:
        """Forget what is being read."""
        if self._next is not None:
            self._next.cancel()


_Job = Callable[[], NDArray[np.generic]]


def _jobs(units: Sequence[Unit]) -> Iterator[_Job]:
    for unit in units:
        if isinstance(unit, Image):
            for lead in np.ndindex(unit.shape[:-2]):
                for y0 in range(0, unit.shape[-2], unit.rows):
                    yield partial(_read, unit, lead, y0, min(y0 + unit.rows, unit.shape[-2]))
        elif isinstance(unit, Rows):
            for first in range(0, unit.count, unit.band):
                yield partial(unit.read, first, min(first + unit.band, unit.count))


def _band_count(unit: Image | Rows) -> int:
    if isinstance(unit, Rows):
        return -(-unit.count // unit.band)
    return math.prod(unit.shape[:-2]) * -(-unit.shape[-2] // unit.rows)


def _packed(rows: NDArray[np.generic], unit: Rows) -> memoryview:
    """Return the bytes of some rows of a table."""
    if rows.dtype.itemsize != unit.width or not rows.flags.c_contiguous:
        raise ValueError(f"{unit.name}: got rows of {rows.dtype.itemsize} bytes, not {unit.width}")
    return rows.view(np.uint8).reshape(-1).data


def _read(image: Image, lead: tuple[int, ...], y0: int, y1: int) -> NDArray[np.generic]:
    band = image.read(lead, y0, y1)
    if band.shape != (y1 - y0, image.shape[-1]) or band.dtype != np.dtype(image.dtype):
        wanted = f"{image.dtype} ({y1 - y0}, {image.shape[-1]})"
        raise ValueError(f"{image.name} rows {y0}-{y1}: got {band.dtype.name} {band.shape}, not {wanted}")
    return band


def _big_endian(band: NDArray[np.generic], dtype: str) -> memoryview:
    """Return the bytes of a band as FITS stores them; the band itself is overwritten where it can be."""
    if not (band.flags.writeable and band.flags.c_contiguous):
        band = band.copy(order="C")
    if dtype == "uint32":
        flags = cast(NDArray[np.uint32], band)
        flags ^= np.uint32(_UNSIGNED_ZERO)  # = subtracting 2^31, read as signed
    if band.dtype.itemsize > 1 and sys.byteorder == "little":
        band.byteswap(inplace=True)
    return band.reshape(-1).view(np.uint8).data
