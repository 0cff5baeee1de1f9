"""Products on a local disk: written past the system's page cache where the file system lets them.

Nobody reads a product soon, whereas the store's chunks are read again: its pages would push those out, and pages that the
system has to find anew take several times as long to fill as the disk takes to fetch the bytes from where they are.
"""

from __future__ import annotations

import errno
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor

_BUFFER = 2 * 2**20  # bytes that go to the disk together; a multiple of any block size, as direct writing wants it
_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux


class DirectFile:
    """A new file that is written front to back: one buffer is filled while the disk takes the other.

    Parameters
    ----------
    path : str
        A file that does not exist.
    """

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._free, self._other = (memoryview(mmap.mmap(-1, _BUFFER)) for _ in range(2))  # begin where a page does
        self._filled = 0
        self._direct = self._switch(True)
        self._disk = ThreadPoolExecutor(1)
        self._going: Future[None] | None = None
        self._open = True

    def _switch(self, direct: bool) -> bool:
        """Begin or end direct writing; returns whether it is so now."""
        if not _DIRECT:
            return False
        import fcntl

        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | _DIRECT if direct else flags & ~_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False  # a file system that has no such thing
        return direct

    def write(self, data: bytes | memoryview, /) -> int:
        """Append bytes; returns how many were taken."""
        taken = min(len(data), _BUFFER - self._filled)
        self._free[self._filled : self._filled + taken] = memoryview(data)[:taken]
        self._filled += taken
        if self._filled == _BUFFER:
            self._wait()
            self._going = self._disk.submit(self._put, self._free)
            self._free, self._other, self._filled = self._other, self._free, 0
        return taken

    def _put(self, rest: memoryview) -> None:
        while len(rest):
            try:
                taken = os.write(self._file, rest)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._direct = self._switch(False)  # its blocks are larger, or it takes none after all
                continue
            rest = rest[taken:]

    def _wait(self) -> None:
        """Wait for the disk; what went wrong there is raised here."""
        going, self._going = self._going, None
        if going is not None:
            going.result()

    def sync(self) -> None:
        """Write what is left, which is no whole block, and wait until everything is on disk."""
        self._wait()
        self._direct = self._switch(False)
        self._put(self._free[: self._filled])
        self._filled = 0
        os.fsync(self._file)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file."""
        if self._open:
            self._open = False
            self._disk.shutdown()
            os.close(self._file)
