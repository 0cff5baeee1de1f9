"""Products appear under their name whole or not at all, on local disk and behind any URL."""

from __future__ import annotations

import errno
import glob
import os
import posixpath
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Protocol

from streamimg3.errors import InputError, StoreError
from streamimg3.formats.direct_file import DirectFile
from streamimg3.formats.names import absolute, is_remote
from streamimg3.formats.upload import PART, Upload
from streamimg3.store.objects import serves

_PIECE = 8 * 2**20  # handed over at a time: uploads keep a copy
UPLOAD_MEMORY = 48 * 2**20  # what an upload holds: the part being filled, the one being sent, and a copy


class _File(Protocol):
    """What is used of an open file."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Append bytes; returns how many were taken, None = all."""

    def close(self) -> None:
        """Finish the file."""


class _Remote(Protocol):
    """What is used of an fsspec file system."""

    def open(self, path: str, mode: str, **how: object) -> IO[bytes]:
        """Open a file; ``how`` says in which parts it is sent and when it appears."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder and those above it."""

    def ls(self, path: str, detail: bool = True) -> list[str]:
        """Return the paths right under a folder (with ``detail=False``)."""

    def mv(self, path1: str, path2: str) -> None:
        """Give a file another path."""

    def rm_file(self, path: str) -> None:
        """Delete a file."""

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder."""


class Product:
    """A file being made; whatever goes wrong while writing is one line that names it."""

    def __init__(self, file: _File, url: str) -> None:
        self._file = file
        self._url = url

    def write(self, data: bytes | memoryview, /) -> int:
        """Append all of the bytes.

        Raises
        ------
        StoreError
            If the disk is full or the place does not take them.
        """
        with _named(self._url):
            rest = memoryview(data)
            while len(rest):
                # An unbuffered file may take a part only.
                piece = rest[:_PIECE]
                taken = self._file.write(piece)
                rest = rest[taken if isinstance(taken, int) else len(piece) :]
        return len(data)


@contextmanager
def open_product(url: str, options: Mapping[str, str]) -> Iterator[Product]:
    """Open a file for writing that takes its name only when the context ends well.

    Local files are written beside their place as ``.<name>.<random>.partial``, synced and renamed; uploads to S3 are
    completed at the end, or aborted; elsewhere the partial file is moved. What an earlier, killed run left of the same
    name is removed first, so two runs must not write one name at a time.

    Parameters
    ----------
    url : str
        Local path or fsspec URL; missing local folders are made.
    options : mapping of str to str
        Storage options for remote URLs.

    Yields
    ------
    Product
        Has ``write``.

    Raises
    ------
    StoreError
        If the place cannot be written to: full disk, no permission, no connection.
    InputError
        If nothing installed can open this kind of URL.
    """
    opened = _open_remote(url, options) if is_remote(url) else _open_local(absolute(url))
    with opened as product:
        yield product


@contextmanager
def _open_local(path: str) -> Iterator[Product]:
    folder, name = os.path.split(path)
    partial = os.path.join(folder, f".{name}.{secrets.token_hex(6)}.partial")
    with _named(path):
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, "there is a folder of this name")
        os.makedirs(folder, exist_ok=True)
        for left in glob.glob(os.path.join(glob.escape(folder), f".{glob.escape(name)}.*.partial")):
            os.remove(left)
        file = DirectFile(partial)
    try:
        yield Product(file, path)
        with _named(path):
            file.sync()
            file.close()
            os.replace(partial, path)
            _sync_folder(folder)
    finally:
        file.close()
        if os.path.exists(partial):
            os.remove(partial)


def _sync_folder(folder: str) -> None:
    """Make the rename itself durable, where folders can be opened (not on Windows)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _open_remote(url: str, options: Mapping[str, str]) -> Iterator[Product]:
    if serves(url):
        opened = _upload(url, options)
    else:
        from streamimg3.formats.local_copy import filesystem

        with _named(url):
            found, path = filesystem(url, options)
        fs: _Remote = found  # type: ignore[assignment]
        opened = _moved(fs, path, url)
    with opened as product:
        yield product


@contextmanager
def _upload(url: str, options: Mapping[str, str]) -> Iterator[Product]:
    """Write to an object store; nothing is visible before the upload is completed, and an aborted one leaves nothing."""
    with _named(url):
        file = Upload(url, options)
    done = False
    try:
        yield Product(file, url)
        with _named(url):
            file.commit()
        done = True
    finally:
        if not done:
            with suppress(Exception):  # there is an error already, the one that is told
                file.discard()


@contextmanager
def _moved(fs: _Remote, path: str, url: str) -> Iterator[Product]:
    folder, name = posixpath.split(path)
    start = f".{name}."
    partial = posixpath.join(folder, f"{start}{secrets.token_hex(6)}.partial")
    with _named(url):
        if folder:
            fs.makedirs(folder, exist_ok=True)
            for left in fs.ls(folder, detail=False) if fs.exists(folder) else []:
                if posixpath.basename(left).startswith(start) and left.endswith(".partial"):
                    fs.rm_file(left)
        file = fs.open(partial, "wb", block_size=PART)
    try:
        yield Product(file, url)
        with _named(url):
            file.close()
            fs.mv(partial, path)
    finally:
        with _named(url):
            file.close()
            if fs.exists(partial):
                fs.rm_file(partial)


@contextmanager
def _named(url: str) -> Iterator[None]:
    """Turn what a file system raises (each has errors of its own) into one line that names the product."""
    try:
        yield
    except (InputError, StoreError):
        raise
    except Exception as exc:
        raise StoreError(f"cannot write {url} ({_reason(exc)}): {_advice(exc, url)}") from exc


def _reason(exc: BaseException) -> str:
    text = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
    return " ".join(str(text).split())[:200] or type(exc).__name__


def _advice(exc: BaseException, url: str) -> str:
    if is_remote(url):
        return "check the address, permissions and credentials"
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space or give another output folder"
    return "give an output folder that you may write to"
