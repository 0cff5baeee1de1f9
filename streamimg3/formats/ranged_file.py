"""A file in an object store, of which ranges are read: small reads share a buffer, large ones are one request each."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import cast

from streamimg3.store.backend import freeze
from streamimg3.store.objects import again, object_store

_BUFFER = 2**18  # a header, or a few; more would be read for nothing at the head of each plane


class _Ranges(io.RawIOBase):
    """The bytes of an object, unbuffered."""

    mode = "rb"

    def __init__(self, folder: str, name: str, options: Mapping[str, str]) -> None:
        import obstore

        self._options = freeze(dict(options))
        self._store, self.name = object_store(folder, self._options), name
        self._size = int(again(lambda: obstore.head(self._store, name), self._options)["size"])
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go somewhere else."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Fill a buffer with one request; returns how many bytes there were."""
        import obstore

        target = memoryview(buffer).cast("B")
        end = min(self._at + len(target), self._size)
        count = end - self._at
        if count <= 0:
            return 0
        found = again(lambda: obstore.get_range(self._store, self.name, start=self._at, end=end), self._options)
        target[:count] = memoryview(found)
        self._at = end
        return count


def open_ranged(url: str, options: Mapping[str, str]) -> io.BufferedReader:
    """Open an object for random reading.

    Parameters
    ----------
    url : str
        Of an object that obstore serves.
    options : mapping of str to str
        Storage options.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    folder, _, name = url.rpartition("/")
    return io.BufferedReader(cast(io.RawIOBase, _Ranges(folder, name, options)), _BUFFER)
