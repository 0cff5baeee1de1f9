"""Where bytes live: one Zarr store object for any URL, and small blobs beside the arrays.

Local paths go through Zarr's local store (temporary file, then rename), object stores through obstore (ten times
faster small reads than s3fs), every other URL through fsspec.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from streamimg3.errors import InputError, StoreError, StreamImgError
from streamimg3.store import objects
from streamimg3.store.objects import Options
from streamimg3.store.shards import Blob, LocalObject

if TYPE_CHECKING:
    from zarr.abc.store import Store

_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")  # how Zarr names a file until it is whole
T = TypeVar("T")


def freeze(options: dict[str, str] | Options | None) -> Options:
    """Return storage options in a form that can be a dictionary key and travel to workers."""
    return tuple(sorted(dict(options or {}).items()))


def normalise(url: str) -> str:
    """Return an absolute path for a local URL, other URLs without a trailing slash."""
    if url.startswith("file://"):
        url = url[len("file://") :]
    if url.startswith("s3a://"):
        url = "s3://" + url[len("s3a://") :]
    return url.rstrip("/") if "://" in url else os.path.abspath(os.path.expanduser(url))


def is_local(url: str) -> bool:
    """Whether a URL is a path on this machine."""
    return "://" not in url


@dataclass(frozen=True)
class Backend:
    """The bytes under one URL.

    Parameters
    ----------
    url : str
        Absolute local path or fsspec URL.
    options : tuple of (str, str)
        Storage options: ``key``, ``secret``, ``token``, ``endpoint_url``, ``region``, ``anon`` for S3, and ``retries``
        and ``timeout``; passed on to fsspec for other protocols.
    """

    url: str
    options: Options = ()

    @property
    def zarr(self) -> Store:
        """The Zarr store; opened once per process."""
        return _open(self.url, self.options)

    def get(self, key: str) -> bytes | None:
        """Return a blob, or None where there is none.

        Raises
        ------
        StoreError
            From this and the other calls: if the place cannot be reached, read or written.
        """
        from zarr.core.buffer import default_buffer_prototype

        found = self._sync(lambda store: store.get(key, default_buffer_prototype()), "read", key)
        return None if found is None else bytes(found.to_bytes())

    def blob(self, key: str) -> Blob:
        """Return an object of which ranges are read; nothing is read yet."""
        if is_local(self.url):
            return LocalObject(os.path.join(self.url, key))
        if objects.serves(self.url):
            return objects.RemoteObject(self.url, self.options, key)
        return _Ranged(self.zarr, key)

    def put(self, key: str, data: bytes) -> None:
        """Write a blob; it appears whole or not at all."""
        from zarr.core.buffer.cpu import Buffer

        self._sync(lambda store: store.set(key, Buffer.from_bytes(data)), "write", key)

    def swap(self, key: str, old: bytes | None, new: bytes) -> bool:
        """Replace a blob if it still is what it was (None = absent); returns whether it was.

        Nobody else's swap comes between on local disk and in object stores; other places cannot promise that.
        """
        if is_local(self.url):
            with _locked(os.path.join(self.url, f"{key}.lock")):
                return self._swapped(key, old, new)
        if objects.serves(self.url):
            try:
                store = objects.object_store(self.url, self.options)
                return objects.again(lambda: objects.swap(store, key, old, new), self.options)
            except StreamImgError:
                raise
            except Exception as error:  # obstore's own
                raise StoreError(f"cannot write {self.url}/{key}: {reason(error)}") from error
        return self._swapped(key, old, new)

    def _swapped(self, key: str, old: bytes | None, new: bytes) -> bool:
        if self.get(key) != old:
            return False
        self.put(key, new)
        return True

    def keys(self, prefix: str) -> list[str]:
        """Return the names right under a prefix."""

        async def listed(store: Store) -> list[str]:
            """Return all the names; the store gives them one by one."""
            return [key async for key in store.list_dir(prefix)]

        return sorted(self._sync(listed, "list", prefix))

    def remove(self, keys: Iterable[str]) -> None:
        """Delete blobs; missing ones are no error."""
        if not objects.serves(self.url):
            for key in keys:
                self._sync(lambda store, key=key: store.delete(key), "delete", key)  # type: ignore[misc]
            return
        try:
            store, names = objects.object_store(self.url, self.options), list(keys)
            objects.again(lambda: objects.remove(store, names), self.options)
        except StreamImgError:
            raise
        except Exception as error:  # obstore's own
            raise StoreError(f"cannot delete objects in {self.url}: {reason(error)}") from error

    def remove_tree(self, prefix: str) -> None:
        """Delete everything under a prefix."""
        self._sync(lambda store: store.delete_dir(prefix), "delete", prefix)

    def sweep(self) -> None:
        """Remove half-written files that a killed run has left (on local disk; object stores have none)."""
        if not is_local(self.url):
            return
        for folder, _, names in os.walk(self.url):
            for name in names:
                if _PARTIAL.search(name):
                    with contextlib.suppress(FileNotFoundError):
                        os.remove(os.path.join(folder, name))

    def _sync(self, call: Callable[[Store], Awaitable[T]], verb: str, key: str) -> T:
        from zarr.core.sync import sync

        try:
            return sync(call(self.zarr))  # type: ignore[arg-type]
        except StreamImgError:
            raise
        except Exception as error:  # every backend has errors of its own, without a common base
            raise StoreError(f"cannot {verb} {self.url}/{key}: {reason(error)}") from error


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Be the only process of this machine that does this, where the system has such locks (not on Windows)."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {reason(error)}") from error
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


class _Ranged:
    """An object behind any Zarr store, of which ranges are read."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key

    def tail(self, nbytes: int) -> bytes | None:
        """Return the last bytes; None if there is no such object."""
        from zarr.abc.store import SuffixByteRequest
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        found = sync(self._store.get(self._key, default_buffer_prototype(), SuffixByteRequest(nbytes)))
        return None if found is None else bytes(found.to_bytes())

    def ranges(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of some ranges."""
        from zarr.abc.store import RangeByteRequest
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        wanted = [(self._key, RangeByteRequest(start, end)) for start, end in spans]
        found = sync(self._store.get_partial_values(default_buffer_prototype(), wanted))
        return [b"" if part is None else bytes(part.to_bytes()) for part in found]

    def close(self) -> None:
        """Nothing is held open."""


_METADATA = "169.254.169.254"  # where clients look for credentials when nobody has given any
_REFUSED_KEYS = ("SignatureDoesNotMatch", "InvalidAccessKeyId")
_NO_KEY = (
    "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give --storage-option key=… and secret=…"
    " (anon=true for public buckets)"
)


def reason(error: Exception) -> str:
    """Return what went wrong in one short line; object stores answer with pages.

    Examples
    --------
    >>> reason(OSError(28, "No space left on device"))
    'No space left on device'
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if any(code in str(error) for code in _REFUSED_KEYS):
        return "the server refuses the credentials: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and _METADATA in lines[0]:
        return _NO_KEY
    return lines[0][:300] if lines else type(error).__name__


@lru_cache(maxsize=32)
def _open(url: str, options: Options) -> Store:
    if is_local(url):
        from streamimg3.store.zarr_folder import Folder

        return Folder(url)
    try:
        if objects.serves(url):
            from streamimg3.store.zarr_objects import WholeObjects

            store = WholeObjects(objects.object_store(url, options))
            store.tries = objects.retries(dict(options))
            return store
        return _open_fsspec(url, dict(options))
    except ImportError as error:
        raise InputError(
            f"{url}: reading this kind of URL needs an extra package ({error}): pip install '.[cloud]' in the clone"
        ) from error


def _open_fsspec(url: str, options: dict[str, str]) -> Store:
    from zarr.storage import FsspecStore

    return FsspecStore.from_url(url, storage_options=objects.for_others(options))
