"""Shards written chunk by chunk: what comes is encoded at once, and no more than one chunk of it is held.

The bytes are those of Zarr v3's sharding (chunks in any order, then the index with its CRC-32C), so that any Zarr reads
them. Zarr itself takes a shard whole, and several times the processor time and memory for it.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from tempfile import SpooledTemporaryFile
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import StoreError
from streamimg3.store.backend import Backend, is_local, reason

_EMPTY = 2**64 - 1  # offset and size of a chunk that is not stored
_SMALL = 2**18  # bytes of a shard that waits in memory
_BEHIND = 4 * 2**20  # bytes between two calls that send a file's pages to disk


class _Sink(Protocol):
    """Where the bytes of a shard go; it appears whole or not at all."""

    def write(self, data: bytes) -> None:
        """Append bytes."""

    def commit(self) -> None:
        """Let the shard appear."""

    def discard(self) -> None:
        """Leave nothing."""


class LocalShard:
    """A shard on a local disk: a file beside its place, named as Zarr names files in the making, then renamed.

    Parameters
    ----------
    path : str
        Its place.
    cached : bool
        Leave it in the system's page cache, for it is read soon. If not, its pages are sent to disk while it is written,
        and others take their place: pages that the system has to find anew take several times as long to fill.
    """

    def __init__(self, path: str, cached: bool = True) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._path, self._partial = path, f"{path}.{uuid.uuid4().hex}.partial"
        self._file = open(self._partial, "xb", buffering=0)  # noqa: SIM115 (closed by commit or discard)
        self._behind, self._cached = 0, cached or not hasattr(os, "posix_fadvise")

    def write(self, data: bytes) -> None:
        """Append bytes."""
        rest = memoryview(data)
        while len(rest):  # an unbuffered file may take a part only
            rest = rest[self._file.write(rest) :]
        self._behind += len(data)
        if self._behind >= _BEHIND:
            self._pass_on()

    def _pass_on(self) -> None:
        """Have the system begin to write what is new, and forget what is on disk; nobody waits for it."""
        if not self._cached:
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._behind = 0

    def commit(self) -> None:
        """Let the shard appear."""
        self._pass_on()
        self._file.close()
        os.replace(self._partial, self._path)

    def discard(self) -> None:
        """Leave nothing."""
        self._file.close()
        with suppress(FileNotFoundError):
            os.remove(self._partial)


class GatheredShard:
    """A shard for a place that takes whole blobs only.

    Many are made side by side: all but small ones wait in unnamed temporary files, not in memory. ``TMPDIR`` says where.

    Parameters
    ----------
    put : callable
        Takes all the bytes.
    """

    def __init__(self, put: Callable[[bytes], None]) -> None:
        self._put = put
        self._found = SpooledTemporaryFile(_SMALL, prefix="streamimg3-")  # noqa: SIM115 (closed by commit or discard)

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._found.write(data)

    def commit(self) -> None:
        """Let the shard appear."""
        self._found.seek(0)
        self._put(self._found.read())
        self._found.close()

    def discard(self) -> None:
        """Leave nothing."""
        self._found.close()


@dataclass(frozen=True)
class Cut:
    """How an array is cut and encoded.

    Parameters
    ----------
    shape, chunk, shard : tuple of int
        Of the array, of an inner chunk, of a shard.
    dtype : dtype
        Little-endian.
    fill : float or int
        Chunks of nothing else are not stored.
    encode : callable
        Encodes a chunk.
    """

    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...]
    dtype: np.dtype[Any]
    fill: float
    encode: Callable[[NDArray[np.generic]], bytes] = field(repr=False)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Chunks in a shard."""
        return tuple(s // c for s, c in zip(self.shard, self.chunk, strict=True))


def cut_of(array: Any, path: str) -> Cut:
    """Return how a Zarr array is cut and encoded.

    Raises
    ------
    StoreError
        If it is not encoded as this package's stacks are.
    """
    from numcodecs.blosc import Blosc

    shuffles = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
    try:
        (sharding,) = array.metadata.to_dict()["codecs"]
        inner = sharding["configuration"]
        to_bytes, blosc, *check = inner["codecs"]
        index = [codec["name"] for codec in inner["index_codecs"]]
        checked = [codec["name"] for codec in check] == ["crc32c"]
        known = (sharding["name"], to_bytes["name"], blosc["name"], *index, inner["index_location"])
        given = blosc["configuration"]
        shuffle = shuffles[given["shuffle"]]
        if known != ("sharding_indexed", "bytes", "blosc", "bytes", "crc32c", "end") or len(check) != checked:
            raise ValueError(known)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is not encoded as its ingest leaves it: remove the store and ingest again") from error
    encoder = Blosc(given["cname"], clevel=given["clevel"], shuffle=shuffle, blocksize=given["blocksize"])
    chunk = tuple(int(n) for n in inner["chunk_shape"])
    pack = cast(Callable[[NDArray[np.generic]], bytes], encoder.encode)  # the size of an element is the array's
    encode = (lambda chunk: with_checksum(pack(chunk))) if checked else pack
    return Cut(array.shape, chunk, array.shards, array.dtype.newbyteorder("<"), array.fill_value, encode)


class ShardWriter:
    """One shard in the making.

    Parameters
    ----------
    cut : Cut
        How its array is cut.
    number : tuple of int
        Place of the shard among all, along each axis.
    sink : LocalShard or GatheredShard
        Where its bytes go.
    """

    def __init__(self, cut: Cut, number: tuple[int, ...], sink: _Sink) -> None:
        self._cut, self._sink = cut, sink
        begin = [n * s for n, s in zip(number, cut.shard, strict=True)]
        self._size = tuple(min(s, n - b) for s, n, b in zip(cut.shard, cut.shape, begin, strict=True))
        self._index = np.full((*cut.chunks, 2), _EMPTY, "<u8")
        self._offset = 0

    @property
    def empty(self) -> bool:
        """Whether no chunk has been stored."""
        return self._offset == 0

    def put(self, start: tuple[int, ...], values: NDArray[np.generic]) -> None:
        """Encode and write whole chunks.

        Parameters
        ----------
        start : tuple of int
            First pixel in the shard, along each axis.
        values : ndarray, of as many axes
            Pixels; they end where a chunk does, or the shard, or the array.

        Raises
        ------
        ValueError
            If they do not begin and end so.
        """
        chunk = self._cut.chunk
        stop = tuple(a + n for a, n in zip(start, values.shape, strict=True))
        for a, b, c, size in zip(start, stop, chunk, self._size, strict=True):
            if a % c or (b % c and b != size) or b > size:
                raise ValueError(f"{start}..{stop} are no whole chunks of {chunk} in a shard of {self._size}")
        for first in product(*(range(0, n, c) for n, c in zip(values.shape, chunk, strict=True))):
            piece = values[tuple(slice(f, f + c) for f, c in zip(first, chunk, strict=True))]
            place = tuple((a + f) // c for a, f, c in zip(start, first, chunk, strict=True))
            self._put(place, piece)

    def _put(self, place: tuple[int, ...], piece: NDArray[np.generic]) -> None:
        cut = self._cut
        if _is_all(piece, cut.fill):
            return
        if piece.shape != cut.chunk:  # at the rim of the array
            whole = np.full(cut.chunk, cut.fill, cut.dtype)
            whole[tuple(slice(n) for n in piece.shape)] = piece
            piece = whole
        data = cut.encode(np.ascontiguousarray(piece, cut.dtype))
        self._sink.write(data)
        self._index[place] = self._offset, len(data)
        self._offset += len(data)

    def finish(self) -> None:
        """Write the index, and let the shard appear."""
        index = self._index.tobytes()
        self._sink.write(with_checksum(index))
        self._sink.commit()


@contextmanager
def writing(
    backend: Backend, group: str, arrays: Mapping[str, Any], number: tuple[int, ...], cached: bool = True
) -> Iterator[dict[str, ShardWriter]]:
    """Write the same shard of several arrays side by side; they appear when the context ends well.

    Parameters
    ----------
    backend : Backend
        The store.
    group : str
        Where the arrays are.
    arrays : mapping
        Their names, and the Zarr arrays.
    number : tuple of int
        Place of the shard along each axis.
    cached : bool
        See `LocalShard`.

    Raises
    ------
    StoreError
        If the bytes cannot be written, or the arrays are encoded otherwise than this package does.
    """
    keys = {name: f"{group}/{name}/{array.metadata.encode_chunk_key(number)}" for name, array in arrays.items()}
    cuts = {name: cut_of(array, f"{backend.url}/{group}/{name}") for name, array in arrays.items()}
    try:
        with ExitStack() as undo:
            made = {}
            for name, cut in cuts.items():
                sink = _sink(backend, keys[name], cached)
                undo.callback(sink.discard)
                made[name] = ShardWriter(cut, number, sink)
            yield made
            for name, writer in made.items():
                if writer.empty:  # nothing is stored where all pixels are empty
                    backend.remove([keys[name]])
                else:
                    writer.finish()
    except OSError as error:
        raise StoreError(f"cannot write {backend.url}/{group}: {reason(error)}") from error


def _sink(backend: Backend, key: str, cached: bool) -> LocalShard | GatheredShard:
    if is_local(backend.url):
        return LocalShard(f"{backend.url}/{key}", cached)
    return GatheredShard(partial(backend.put, key))


def _is_all(piece: NDArray[np.generic], fill: float) -> bool:
    """Whether pixels are nothing but the empty value; the first one tells in most cases."""
    first = piece.flat[0]
    if isinstance(fill, float | np.floating) and math.isnan(fill):
        return bool(np.isnan(first)) and bool(np.isnan(piece).all())
    return bool(first == fill) and bool((piece == fill).all())


def with_checksum(data: bytes) -> bytes:
    """Return bytes with the CRC-32C that ends them.

    Examples
    --------
    >>> with_checksum(b"123456789")[-4:].hex()
    '839206e3'
    """
    import google_crc32c

    checksum: int = google_crc32c.value(data)
    return data + checksum.to_bytes(4, "little")
