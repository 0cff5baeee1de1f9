"""Reads windows of the store's arrays: the chunks that a window touches, each checked, wherever the bytes lie.

The arrays are ordinary sharded Zarr arrays. Zarr itself asks for the chunks of a shard one after the other, and the faster
reader for local disks does not check a chunk of which it needs a part; here nearby chunks come with one request, and
every chunk's checksum is compared.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import StoreError

if TYPE_CHECKING:
    from streamimg3.store.backend import Backend

_ABSENT = 2**64 - 1  # offset of a chunk that is empty
_CHECK = 4  # bytes of a checksum
_AT_ONCE = 8 * 2**20  # packed bytes held at a time
Index = tuple[int, ...]
Span = tuple[int, int]


class Blob(Protocol):
    """An object of which ranges are read."""

    def tail(self, nbytes: int) -> bytes | None:
        """Return the last bytes; None if it does not exist."""

    def ranges(self, spans: Sequence[Span]) -> list[bytes]:
        """Return the bytes of some ranges ``(start, end)``."""

    def close(self) -> None:
        """Give back what it holds open."""


class LocalObject:
    """A file of which ranges are read."""

    def __init__(self, path: str) -> None:
        self._file: int | None = None
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._file = os.open(path, os.O_RDONLY)

    def tail(self, nbytes: int) -> bytes | None:
        """Return the last bytes; None if there is no file."""
        if self._file is None:
            return None
        return os.pread(self._file, nbytes, max(0, os.fstat(self._file).st_size - nbytes))

    def ranges(self, spans: Sequence[Span]) -> list[bytes]:
        """Return the bytes of some ranges."""
        assert self._file is not None
        return [os.pread(self._file, end - start, start) for start, end in spans]

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)


@dataclass(frozen=True)
class Sharding:
    """How an array is cut and packed.

    Parameters
    ----------
    shape, shard, chunk : tuple of int
        Of the array, of an object and of what is packed by itself.
    dtype : dtype
        Of the values, little-endian.
    fill : scalar
        Value of what is not stored.
    checked : bool
        Whether chunks carry a checksum.
    """

    shape: Index
    shard: Index
    chunk: Index
    dtype: np.dtype[Any]
    fill: Any
    checked: bool

    @classmethod
    def of(cls, array: Any) -> Sharding | None:
        """Return how a Zarr array is cut, None if it is packed in another way than this module reads."""
        codecs = array.metadata.to_dict()["codecs"]
        if len(codecs) != 1 or codecs[0]["name"] != "sharding_indexed":
            return None
        inner = codecs[0]["configuration"]
        names = [c["name"] for c in inner["codecs"]]
        plain = [c["name"] for c in inner["index_codecs"]] == ["bytes", "crc32c"] and inner["index_location"] == "end"
        keyed = array.metadata.chunk_key_encoding.to_dict() == {"name": "default", "configuration": {"separator": "/"}}
        little = array.dtype.itemsize == 1 or inner["codecs"][0]["configuration"]["endian"] == "little"
        if names not in (["bytes", "blosc"], ["bytes", "blosc", "crc32c"]) or not (plain and keyed and little):
            return None
        return cls(array.shape, array.shards, array.chunks, array.dtype, array.fill_value, names[-1] == "crc32c")

    @property
    def per_shard(self) -> Index:
        """Chunks of a shard along each axis."""
        return tuple(s // c for s, c in zip(self.shard, self.chunk, strict=True))

    @property
    def index_bytes(self) -> int:
        """Size of the table at the end of a shard: start and length of each chunk, and a checksum."""
        return 16 * math.prod(self.per_shard) + _CHECK


def read_window(backend: Backend, path: str, sharding: Sharding, window: Sequence[Span]) -> NDArray[Any]:
    """Return a window of an array.

    Parameters
    ----------
    backend : Backend
        The store.
    path : str
        Array in the store.
    sharding : Sharding
        How it is cut.
    window : sequence of (int, int)
        First and last place along each axis, half-open, within the array.

    Raises
    ------
    StoreError
        If a chunk does not have its checksum or cannot be unpacked: the message names it.
    """
    out = np.empty([stop - start for start, stop in window], sharding.dtype)
    scratch = np.empty(sharding.chunk, sharding.dtype)
    for place in product(*(range(a // s, -(-b // s)) for (a, b), s in zip(window, sharding.shard, strict=True))):
        key = "/".join([path, "c", *map(str, place)])
        blob = backend.blob(key)
        try:
            _read_shard(blob, f"{backend.url}/{key}", _Part(sharding, place, window), out, scratch)
        finally:
            blob.close()
    return out


@dataclass(frozen=True)
class _Part:
    """What one shard, at its place among the shards, holds of a window."""

    sharding: Sharding
    place: Index
    window: Sequence[Span]

    def touched(self) -> list[Index]:
        """Chunks that the window touches, by their place in the shard."""
        axes = []
        for (a, b), s, c, p in zip(self.window, self.sharding.shard, self.sharding.chunk, self.place, strict=True):
            first, last = max(a - p * s, 0), min(b - p * s, s)
            axes.append(range(first // c, -(-last // c)))
        return list(product(*axes))

    def overlap(self, chunk: Index) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Where a chunk lies in the window, and which part of the chunk that is."""
        there, here = [], []
        cut = zip(self.window, self.sharding.shard, self.sharding.chunk, self.place, chunk, strict=True)
        for (a, b), s, c, p, k in cut:
            start = p * s + k * c
            first, last = max(a, start), min(b, start + c)
            there.append(slice(first - a, last - a))
            here.append(slice(first - start, last - start))
        return tuple(there), tuple(here)


def _read_shard(blob: Blob, name: str, part: _Part, out: NDArray[Any], scratch: NDArray[Any]) -> None:
    """Fill in what one shard holds of a window."""
    sharding, chunks = part.sharding, part.touched()
    packed = blob.tail(sharding.index_bytes)
    index = None if packed is None else _index(packed, name, sharding)
    there = [] if index is None else [(c, int(index[c][0]), int(index[c][1])) for c in chunks]
    there = [entry for entry in there if entry[1] != _ABSENT]
    for chunk in set(chunks) - {chunk for chunk, _, _ in there}:
        out[part.overlap(chunk)[0]] = sharding.fill
    for group in _groups(there):
        spans = [(start, start + nbytes) for _, start, nbytes in group]
        for (chunk, _, nbytes), data in zip(group, blob.ranges(spans), strict=True):
            if len(data) != nbytes:
                raise _damaged(name, chunk, f"{len(data)} of {nbytes} bytes")
            _unpack(data, name, chunk, sharding.checked, scratch)
            at, inside = part.overlap(chunk)
            out[at] = scratch[inside]


def _index(packed: bytes, name: str, sharding: Sharding) -> NDArray[np.uint64]:
    """Starts and lengths of a shard's chunks."""
    if len(packed) != sharding.index_bytes or _body(packed) is None:
        raise _damaged(name, None, "the table of its chunks has not its checksum")
    return np.frombuffer(packed[:-_CHECK], "<u8").reshape(*sharding.per_shard, 2)


def _groups(entries: Sequence[tuple[Index, int, int]]) -> Iterator[list[tuple[Index, int, int]]]:
    """Chunks with start and length in the order in which they lie; not too many bytes at a time."""
    group: list[tuple[Index, int, int]] = []
    held = 0
    for entry in sorted(entries, key=lambda e: e[1]):
        if group and held + entry[2] > _AT_ONCE:
            yield group
            group, held = [], 0
        group.append(entry)
        held += entry[2]
    if group:
        yield group


def _unpack(data: bytes, name: str, chunk: Index, checked: bool, scratch: NDArray[Any]) -> None:
    """Check a chunk and unpack it."""
    from numcodecs import blosc

    body = _body(data) if checked else data
    if body is None:
        raise _damaged(name, chunk, "it has not its checksum")
    blosc.use_threads = False  # workers are processes
    try:
        blosc.decompress(body, scratch)
    except (RuntimeError, ValueError) as error:
        raise _damaged(name, chunk, str(error)) from error


def _body(data: bytes) -> bytes | None:
    """Return bytes without the checksum that ends them, None if that is not theirs."""
    import google_crc32c

    body = data[:-_CHECK]
    found: int = google_crc32c.value(body)
    return body if found == int.from_bytes(data[-_CHECK:], "little") else None


def _damaged(name: str, chunk: Index | None, why: str) -> StoreError:
    which = "" if chunk is None else f", chunk {'/'.join(map(str, chunk))} of it"
    return StoreError(
        f"cannot read {name}{which}: it is damaged ({why}); put it back from a copy, or make it again:"
        " --force-ingest for exposures, or remove the store"
    )
