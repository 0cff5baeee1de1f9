"""One opened FITS file: what its headers promise, checked against its size, and planes read in bands of rows."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import IO, Literal

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.formats.local_copy import one_line, open_seekable
from streamimg3.formats.names import file_name
from streamimg3.formats.sources import CubePlane, Fact, Plane

_BLOCK = 2880
_CARD = 80
_ILLEGAL = re.compile(rb"[^ -~]")
_BITPIX = (8, 16, 32, 64, -32, -64)
_LARGEST_TILE = 2**22  # pixels

Pixels = NDArray[np.float32] | NDArray[np.uint32]


@dataclass(frozen=True)
class Hdu:
    """One header-data unit as its header describes it.

    Parameters
    ----------
    index : int
        0 is the primary one.
    name, version : str, int
        EXTNAME in capitals and EXTVER.
    shape : tuple of int
        Image shape, slowest axis first; ``()`` when there is no image (tables, empty units).
    compressed : bool
        A tile-compressed image.
    cards : str
        The 80-character cards joined, without END; of a compressed image, those of the image it stands for.
    start, data_start, data_size : int
        Bytes from the beginning of the file; the size is without padding.
    """

    index: int
    name: str
    version: int
    shape: tuple[int, ...]
    compressed: bool
    cards: str
    start: int
    data_start: int
    data_size: int

    @property
    def header(self) -> fits.Header:
        """The cards, parsed."""
        return parse_cards(self.cards)


@dataclass(frozen=True)
class FitsFile:
    """An open FITS file; everything it hands out is valid until its context ends.

    Parameters
    ----------
    url : str
        Where it came from.
    hdus : tuple of Hdu
        In file order.
    notes : tuple of str
        Oddities that were tolerated.
    """

    url: str
    hdus: tuple[Hdu, ...]
    notes: tuple[str, ...]
    stream: IO[bytes] = field(repr=False, compare=False)
    opened: fits.HDUList = field(repr=False, compare=False)

    @property
    def filename(self) -> str:
        """The file name without its folder."""
        return file_name(self.url)

    def find(self, name: str, version: int = 1) -> Hdu | None:
        """Return the unit with this EXTNAME and EXTVER, or None."""
        return next((hdu for hdu in self.hdus if hdu.name == name and hdu.version == version), None)

    def raw(self, hdu: Hdu, *, with_header: bool = False) -> bytes:
        """Return the bytes of a unit's data as they are in the file; with its header, padded to whole blocks."""
        start = hdu.start if with_header else hdu.data_start
        size = _padded(hdu.data_start + hdu.data_size - start) if with_header else hdu.data_size
        self.stream.seek(start)
        return self.stream.read(size).ljust(size, b"\0")

    def plane(self, hdu: Hdu, name: str, flags: Literal["verbatim", "any"] = "verbatim") -> Plane:
        """Return a plane that reads the 2-D image of `hdu` in bands.

        Parameters
        ----------
        hdu : Hdu
            A 2-D image.
        name : str
            Plane name; ``dq`` gives uint32, every other name float32.
        flags : {"verbatim", "any"}
            For ``dq``: the file's own bits, or 1 (DO_NOT_USE) wherever any bit is set.
        """
        image = self._image(hdu)
        label = f"{self.url}: {hdu.name or 'HDU'} {hdu.version}"
        if name != "dq":
            return Plane(name, "float32", _bands(image, label, _as_float32))
        return Plane(name, "uint32", _bands(image, label, _as_flags if flags == "verbatim" else _as_do_not_use))

    @property
    def is_copy(self) -> bool:
        """Whether this is an unnamed temporary copy of the file (gzip, or a server without random access)."""
        return isinstance(getattr(self.stream, "name", None), int)  # a nameless file's name is its number

    def cube_plane(self, hdu: Hdu, name: str) -> CubePlane:
        """Return a plane that reads the 3-D image of `hdu` in blocks; ``dq`` gives the file's own bits as uint32.

        Raises
        ------
        InputError
            If it is compressed in pieces that are too large to be unpacked one at a time.
        """
        image = self._image(hdu)
        label = f"{self.url}: {hdu.name or 'HDU'} {hdu.version}"
        if hdu.compressed and math.prod(image.tile_shape) > _LARGEST_TILE:
            raise InputError(f"{label} is compressed in tiles of {image.tile_shape}, too large; unpack it with funpack")
        if name != "dq":
            return CubePlane(name, "float32", _blocks(image, label, _as_float32))
        return CubePlane(name, "uint32", _blocks(image, label, _as_flags))

    def table(self, hdu: Hdu) -> fits.FITS_rec:
        """Return a binary table, whole."""
        with quietly(), _damage(f"{self.url}: {hdu.name} is not a readable table"):
            return self.opened[hdu.index].data

    def _image(self, hdu: Hdu) -> fits.ImageHDU:
        with quietly(), _damage(f"{self.url}: HDU {hdu.index} is not a readable image"):
            image = self.opened[hdu.index]
            if image.shape != hdu.shape:
                raise ValueError(f"shape {image.shape} instead of {hdu.shape}")
            return image


@contextmanager
def open_fits(url: str, options: Mapping[str, str]) -> Iterator[FitsFile]:
    """Open a FITS file and compare its size with what its headers promise; no pixel is read.

    Parameters
    ----------
    url : str
        Local path or fsspec URL; gzip files are unpacked into a temporary file first.
    options : mapping of str to str
        Storage options for remote URLs.

    Raises
    ------
    InputError
        If it is not FITS, is truncated, or a header cannot be understood.
    """
    with open_seekable(url, options) as stream:
        hdus, notes = _scan(stream, url)
        stream.seek(0)
        with quietly(), _damage(f"{url}: cannot be read as FITS"):
            # uint=False: astropy then honours BLANK in unsigned images too; memmap=False: a band is all that is held.
            opened = fits.open(stream, mode="readonly", memmap=False, uint=False, lazy_load_hdus=True)
        with opened:
            with quietly(), _damage(f"{url}: a compressed image has a damaged header"):
                hdus = tuple(_image_cards(hdu, opened) for hdu in hdus)
            yield FitsFile(url, hdus, notes, stream, opened)


def parse_cards(cards: str) -> fits.Header:
    """Return the header in joined 80-character cards."""
    with quietly():
        return fits.Header.fromstring(cards)


@contextmanager
def quietly() -> Iterator[None]:
    """Hold back what astropy says about cards that bend the standard: the ones that matter are checked by value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@contextmanager
def readable_cards(url: str) -> Iterator[None]:
    """Turn astropy's error about a card that no reader can make sense of into one line that names the file."""
    try:
        with quietly():
            yield
    except fits.VerifyError as exc:
        raise InputError(f"{url}: a header card cannot be read ({one_line(exc)}); correct the header") from exc


def card_value(header: fits.Header, keyword: str, label: str) -> Fact:
    """Return the value of a keyword, or None if it is absent or has no value.

    Parameters
    ----------
    header : astropy.io.fits.Header
        Where to look.
    keyword : str
        Its name.
    label : str
        The file, for the message.

    Raises
    ------
    InputError
        If the card cannot be read as FITS (``CRVAL1 = NaN``, for example).
    """
    with quietly():
        try:
            value = header.get(keyword)
        except (fits.VerifyError, ValueError) as exc:
            raise InputError(f"{label}: keyword {keyword} has no readable value; correct the header") from exc
    if value is None or isinstance(value, fits.card.Undefined):
        return None
    if isinstance(value, str):
        return value.strip()
    return value if isinstance(value, bool | int | float) else str(value)


def number(header: fits.Header, keyword: str, label: str) -> float | None:
    """Return a keyword's value as a finite float, or None if it is absent.

    Raises
    ------
    InputError
        If the value is text or not finite.
    """
    value = card_value(header, keyword, label)
    if value is None or value == "":
        return None
    try:
        result = float(value)
    except ValueError as exc:
        raise InputError(f"{label}: keyword {keyword} is {value!r}, not a number; correct the header") from exc
    if not math.isfinite(result):
        raise InputError(f"{label}: keyword {keyword} is {value}, not finite; correct the header")
    return result


@contextmanager
def _damage(what: str) -> Iterator[None]:
    """Turn whatever astropy trips over in a damaged file (it has no common error for this) into one line."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as exc:
        raise InputError(f"{what} ({one_line(exc)}); fetch the file again") from exc


def _scan(stream: IO[bytes], url: str) -> tuple[tuple[Hdu, ...], tuple[str, ...]]:
    size = stream.seek(0, 2)
    hdus: list[Hdu] = []
    position = 0
    while position < size:
        stream.seek(position)
        if hdus and stream.read(8) != b"XTENSION":
            return tuple(hdus), (f"{size - position} bytes after the last HDU are ignored",)
        index = len(hdus)
        hdu = _read_unit(stream, position, index, url)
        end = hdu.data_start + hdu.data_size
        if end > size:
            raise InputError(
                f"{url}: is truncated (HDU {index} {hdu.name} needs {end} bytes, the file has {size}); fetch it again"
            )
        hdus.append(hdu)
        position = _padded(end)
    return tuple(hdus), _promise(hdus, url)


def _promise(hdus: Sequence[Hdu], url: str) -> tuple[str, ...]:
    """Return a note if the primary header counts more extensions than there are (they were cut off, or taken out)."""
    count = card_value(hdus[0].header, "NEXTEND", url)
    if isinstance(count, int) and count > len(hdus) - 1:
        return (f"NEXTEND promises {count} extensions, the file has {len(hdus) - 1}",)
    return ()


def _read_unit(stream: IO[bytes], position: int, index: int, url: str) -> Hdu:
    cards, data_start = _read_cards(stream, position, index, url)
    header = parse_cards(cards)
    try:
        with quietly():
            shape, size = _layout(header)
            compressed = header.get("ZIMAGE") is True
            name, version = str(header.get("EXTNAME", "")).strip().upper(), int(header.get("EXTVER", 1))
            if compressed:
                shape = _compressed_shape(header)
            elif str(header.get("XTENSION", "IMAGE")).strip() != "IMAGE":
                shape = ()
    except (KeyError, ValueError, TypeError, OverflowError, fits.VerifyError) as exc:
        raise InputError(
            f"{url}: the header of HDU {index} is damaged ({one_line(exc)}); fetch the file again"
        ) from exc
    return Hdu(index, name, version, shape, compressed, cards, position, data_start, size)


def _read_cards(stream: IO[bytes], position: int, index: int, url: str) -> tuple[str, int]:
    """Return the cards before END and where the data begin."""
    stream.seek(position)
    text = bytearray()
    while True:
        block = stream.read(_BLOCK)
        if not text and index == 0 and not block.startswith(b"SIMPLE"):
            raise InputError(f"{url}: is not a FITS file (it begins with {bytes(block[:16])!r})")
        for card in range(0, len(block), _CARD):
            if block[card : card + _CARD].rstrip() == b"END":
                cards = _ILLEGAL.sub(b"?", bytes(text + block[:card]))
                return cards.decode("ascii"), position + len(text) + _BLOCK
        text += block
        if len(block) < _BLOCK:
            raise InputError(f"{url}: is truncated inside the header of HDU {index}; fetch it again")


def _layout(header: fits.Header) -> tuple[tuple[int, ...], int]:
    """Return the image shape, () without data, and the size of the data in bytes."""
    axes = [int(header[f"NAXIS{axis}"]) for axis in range(1, int(header["NAXIS"]) + 1)]
    if not axes or 0 in axes:
        return (), 0
    groups, heap = int(header.get("GCOUNT", 1)), int(header.get("PCOUNT", 0))
    if min(*axes, groups, heap) < 0 or int(header["BITPIX"]) not in _BITPIX:
        raise ValueError(f"BITPIX {header['BITPIX']}, axes {axes}, GCOUNT {groups}, PCOUNT {heap}")
    return tuple(reversed(axes)), abs(int(header["BITPIX"])) // 8 * groups * (heap + math.prod(axes))


def _compressed_shape(header: fits.Header) -> tuple[int, ...]:
    """Return the shape of a tile-compressed image, whose table must have one row per tile."""
    axes = range(1, int(header["ZNAXIS"]) + 1)
    sizes = [int(header[f"ZNAXIS{axis}"]) for axis in axes]
    tiles = [int(header.get(f"ZTILE{axis}", sizes[0] if axis == 1 else 1)) for axis in axes]
    rows = math.prod(-(-size // tile) for size, tile in zip(sizes, tiles, strict=True) if tile > 0)
    if min(sizes + tiles, default=0) < 1 or rows != int(header["NAXIS2"]):
        raise ValueError(f"ZNAXISn {sizes}, ZTILEn {tiles}, {header['NAXIS2']} rows")
    return tuple(reversed(sizes))


def _image_cards(hdu: Hdu, opened: fits.HDUList) -> Hdu:
    """Return a unit; a compressed one with the cards of the image instead of those of its table."""
    if not hdu.compressed:
        return hdu
    cards = opened[hdu.index].header.tostring(sep="", endcard=False, padding=False)
    return replace(hdu, cards=cards)


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _bands(
    image: fits.ImageHDU, label: str, convert: Callable[[NDArray[np.generic]], Pixels]
) -> Callable[[int, int], Pixels]:
    ny = int(image.shape[0])

    def read(y0: int, y1: int) -> Pixels:
        """Return rows ``y0`` to ``y1`` (excluded), converted."""
        if not 0 <= y0 < y1 <= ny:
            raise ValueError(f"{label}: rows {y0}..{y1} are not inside 0..{ny}")
        with quietly(), _damage(f"{label}: rows {y0}..{y1} cannot be read"):
            rows = image.section[y0:y1]
        return convert(rows)

    return read


def _blocks(
    image: fits.ImageHDU, label: str, convert: Callable[[NDArray[np.generic]], Pixels]
) -> Callable[[int, int, int, int], Pixels]:
    count, ny = int(image.shape[0]), int(image.shape[1])

    def read(first: int, last: int, y0: int, y1: int) -> Pixels:
        what = f"{label}: integrations {first}..{last}, rows {y0}..{y1}"
        if not (0 <= first < last <= count and 0 <= y0 < y1 <= ny):
            raise ValueError(f"{what} are not inside 0..{count}, 0..{ny}")
        with quietly(), _damage(f"{what} cannot be read"):
            block = image.section[first:last, y0:y1]
        return convert(block)

    return read


def _as_float32(rows: NDArray[np.generic]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf
        return np.ascontiguousarray(rows, dtype=np.float32)


def _as_flags(rows: NDArray[np.generic]) -> NDArray[np.uint32]:
    if rows.dtype.kind == "f":  # scaled by BZERO; float64 holds every 32-bit integer exactly, BLANK is NaN
        values = rows.astype(np.float64, copy=False)
        if not (values.min() >= 0 and values.max() < 2.0**32):  # a NaN makes either false
            values = np.where((values >= 0) & (values < 2.0**32), values, 1.0)
        return np.ascontiguousarray(values, dtype=np.uint32)
    return np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("=")).astype(np.uint32)


def _as_do_not_use(rows: NDArray[np.generic]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(rows != 0, dtype=np.uint32)


def names_of(hdus: Sequence[Hdu]) -> str:
    """Return the names of units for a message."""
    return ", ".join(f"{hdu.name or 'HDU ' + str(hdu.index)} {hdu.shape}" for hdu in hdus)
