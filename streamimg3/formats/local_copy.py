"""Files as seekable streams: local paths, fsspec URLs, and gzip files, unpacked where nothing is left behind."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import IO, Protocol, TypeVar

from streamimg3.errors import InputError
from streamimg3.formats.names import absolute, is_remote
from streamimg3.formats.ranged_file import open_ranged
from streamimg3.store.backend import freeze
from streamimg3.store.objects import again, for_others, serves, settings

_COPY_BYTES = 1 << 20
_BLOCK_BYTES = 2 << 20  # one request; bands of several planes take turns, so a few blocks are kept
_BLOCKS_KEPT = 16
_GZIP_MAGIC = b"\x1f\x8b"
_OTHER_PACKERS = {b"BZh": "bzip2", b"PK\x03\x04": "zip", b"\xfd7zXZ": "xz", b"\x1f\x9d": "compress"}


T = TypeVar("T")


class FileSystem(Protocol):
    """What this package uses of an fsspec file system."""

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder."""

    def info(self, path: str) -> Mapping[str, object]:
        """Return what is known of a file: its size, and its tag or time of change."""

    def isdir(self, path: str) -> bool:
        """Whether there is a folder."""

    def ls(self, path: str, detail: bool = True) -> list[str]:
        """Return the paths right under a folder (with ``detail=False``)."""

    def glob(self, path: str) -> list[str]:
        """Return the paths that fit a pattern."""

    def unstrip_protocol(self, name: str) -> str:
        """Return the URL of a path."""

    def open(self, path: str, mode: str = "rb", **how: object) -> IO[bytes]:
        """Open a file; ``how`` says in which blocks it is fetched and how many of them are kept."""


def filesystem(url: str, options: Mapping[str, str]) -> tuple[FileSystem, str]:
    """Return the fsspec file system of a URL or local path, and the path inside it.

    Parameters
    ----------
    url : str
        Local path or fsspec URL.
    options : mapping of str to str
        Storage options (``key``, ``secret``, ``endpoint_url``, ``region``, ``anon`` ...); ``true`` and ``false`` become booleans.
        They go to object stores only: local disk, memory and plain web servers take none.

    Raises
    ------
    InputError
        If nothing installed can open this kind of URL.
    """
    import fsspec

    plain = not is_remote(url) or url.startswith(("http://", "https://", "memory://"))
    try:
        if serves(url):
            return _of_objects(url, options)
        booleans = {"true": True, "false": False}
        wanted = {} if plain else {k: booleans.get(v.lower(), v) for k, v in for_others(options).items()}
        found: tuple[FileSystem, str] = fsspec.core.url_to_fs(absolute(url), **wanted)
    except (ImportError, ValueError) as exc:
        raise InputError(f"{url}: cannot be opened ({one_line(exc)}); check the URL or install what it names") from exc
    return found


def _of_objects(url: str, options: Mapping[str, str]) -> tuple[FileSystem, str]:
    """An object store as a file system, for looking around in; files are read and written elsewhere."""
    from obstore.fsspec import FsspecStore

    protocol, _, path = url.partition("://")
    names = {"s3a": "s3", "gcs": "gs"}
    fs: FileSystem = FsspecStore(names.get(protocol, protocol), **settings(url, freeze(dict(options))))
    return fs, path


def _asked(url: str, options: Mapping[str, str], call: Callable[[], T]) -> T:
    """Ask a file system; an object store again after passing troubles."""
    return again(call, freeze(dict(options))) if serves(url) else call()


def missing(urls: Sequence[str], options: Mapping[str, str]) -> list[str]:
    """Return those of `urls` that do not exist; remote ones are asked for in parallel."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        there = list(pool.map(lambda url: exists(url, options), urls))
    return [url for url, found in zip(urls, there, strict=True) if not found]


def exists(url: str, options: Mapping[str, str]) -> bool:
    """Return whether a file exists at a path or URL.

    Raises
    ------
    InputError
        If the place cannot be asked (no permission, no connection).
    """
    if not is_remote(url):
        return os.path.exists(absolute(url))
    fs, path = filesystem(url, options)
    with _named(url):
        return _asked(url, options, lambda: fs.exists(path))


def file_mark(url: str, options: Mapping[str, str]) -> str:
    """Return what tells a file from a changed one: its size, and its tag or time of change."""
    fs, path = filesystem(url, options)
    info = _asked(url, options, lambda: fs.info(path))
    changed = (
        info.get("ETag") or info.get("e_tag") or info.get("mtime") or info.get("LastModified") or info.get("created")
    )
    return f"{info.get('size')}-{changed}"


def files_in(url: str, options: Mapping[str, str]) -> list[str] | None:
    """Return the URLs of what a folder holds, or None if `url` is not a folder."""
    fs, path = filesystem(url, options)
    with _named(url):
        found = _asked(url, options, lambda: fs.ls(path, detail=False) if fs.isdir(path) else None)
        return None if found is None else [_whole(fs, hit, url) for hit in found]


def matching(url: str, options: Mapping[str, str]) -> list[str]:
    """Return the URLs of the files that match a glob pattern."""
    fs, path = filesystem(url, options)
    with _named(url):
        return [_whole(fs, hit, url) for hit in _asked(url, options, lambda: fs.glob(path))]


def _whole(fs: FileSystem, path: str, url: str) -> str:
    return fs.unstrip_protocol(path) if is_remote(url) else path


def read_text(url: str, options: Mapping[str, str]) -> str:
    """Return a whole text file (UTF-8).

    Raises
    ------
    InputError
        If the file is missing, cannot be read, or is not text.
    """
    fs, path = filesystem(url, options)
    with _named(url), open_ranged(url, options) if serves(url) else fs.open(path, "rb") as stream:
        raw = stream.read()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InputError(f"{url}: is not a text file; give an association in JSON or YAML") from exc


@contextmanager
def open_seekable(url: str, options: Mapping[str, str]) -> Iterator[IO[bytes]]:
    """Open a file for random reading, whatever it lies on.

    Gzip files (recognised by content) and streams without random access are copied, piece by piece, into an unnamed
    temporary file, which the operating system deletes even if the process is killed. ``TMPDIR`` says where.

    Parameters
    ----------
    url : str
        Local path or fsspec URL.
    options : mapping of str to str
        Storage options for remote URLs.

    Yields
    ------
    binary file
        Readable and seekable, at position 0.

    Raises
    ------
    InputError
        If the file is missing, unreadable, empty, packed in an unknown way, or its gzip data is damaged.
    """
    with _opened(url, options) as stream:
        with _named(url):
            start = stream.read(6)
        for magic, packer in _OTHER_PACKERS.items():
            if start.startswith(magic):
                raise InputError(f"{url}: is packed with {packer}; unpack it or use gzip")
        if not start:
            raise InputError(f"{url}: is empty (0 bytes); fetch it again")
        if start.startswith(_GZIP_MAGIC):
            with _rewound(stream, url, options) as packed, _unpacked(packed, url) as copy:
                yield copy
        elif not stream.seekable():
            with _rewound(stream, url, options) as whole, _copied(whole, url) as copy:
                yield copy
        else:
            stream.seek(0)
            yield stream


@contextmanager
def _opened(url: str, options: Mapping[str, str]) -> Iterator[IO[bytes]]:
    with ExitStack() as stack:
        with _named(url):
            if serves(url):
                stream: IO[bytes] = stack.enter_context(open_ranged(url, options))
            elif is_remote(url):
                fs, path = filesystem(url, options)
                keep = {"maxblocks": _BLOCKS_KEPT}
                opened = fs.open(path, "rb", block_size=_BLOCK_BYTES, cache_type="blockcache", cache_options=keep)
                stream = stack.enter_context(opened)
            else:
                stream = stack.enter_context(open(absolute(url), "rb"))
        yield stream


@contextmanager
def _rewound(stream: IO[bytes], url: str, options: Mapping[str, str]) -> Iterator[IO[bytes]]:
    if stream.seekable():
        stream.seek(0)
        yield stream
    else:
        with _opened(url, options) as again:
            yield again


@contextmanager
def _unpacked(packed: IO[bytes], url: str) -> Iterator[IO[bytes]]:
    with gzip.GzipFile(fileobj=packed) as stream, _copied(stream, url) as copy:
        yield copy


@contextmanager
def _copied(stream: IO[bytes] | gzip.GzipFile, url: str) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile(prefix="streamimg3-") as scratch:
        try:
            shutil.copyfileobj(stream, scratch, _COPY_BYTES)
            scratch.flush()
        except (EOFError, gzip.BadGzipFile, zlib.error) as exc:
            raise InputError(f"{url}: is truncated or damaged gzip data ({one_line(exc)}); fetch it again") from exc
        except OSError as exc:
            room = tempfile.gettempdir()
            raise InputError(
                f"{url}: cannot be copied into {room} ({one_line(exc)}); point TMPDIR to a larger disk"
            ) from exc
        # A second, read-only handle: the FITS reader refuses handles that could write.
        with open(os.dup(scratch.fileno()), "rb") as copy:
            copy.seek(0)
            yield copy


@contextmanager
def _named(url: str) -> Iterator[None]:
    """Turn whatever a file system raises (each has errors of its own) into one line that names the file."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as exc:
        raise InputError(f"{url}: does not exist; check the name") from exc
    except IsADirectoryError as exc:
        raise InputError(f"{url}: is a folder, not a file") from exc
    except Exception as exc:
        raise InputError(
            f"{url}: cannot be read ({one_line(exc)}); check the address, permissions and credentials"
        ) from exc


def one_line(exc: BaseException | str) -> str:
    """Return what an error or warning says, on one line and not too long."""
    return " ".join(str(exc).split())[:200] or type(exc).__name__
