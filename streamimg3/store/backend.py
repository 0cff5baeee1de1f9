"""Where bytes live: one Zarr store object for any URL, and small blobs beside the arrays.

Local paths go through Zarr's own local store (temporary file, then rename), ``s3://`` through obstore (ten times
faster small reads than s3fs), every other URL through fsspec.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from streamimg3.errors import InputError, StoreError, StreamImgError

if TYPE_CHECKING:
    from zarr.abc.store import Store

_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")  # how Zarr names a file until it is whole
Options = tuple[tuple[str, str], ...]
T = TypeVar("T")


def freeze(options: dict[str, str] | Options | None) -> Options:
    """Return storage options in a form that can be a dictionary key and travel to workers."""
    return tuple(sorted(dict(options or {}).items()))


def normalise(url: str) -> str:
    """Return an absolute path for a local URL, other URLs without a trailing slash."""
    if url.startswith("file://"):
        url = url[len("file://") :]
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
        Storage options: ``key``, ``secret``, ``endpoint_url``, ``region``, ``anon`` for S3; passed on to fsspec for
        other protocols.
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

    def put(self, key: str, data: bytes) -> None:
        """Write a blob; it appears whole or not at all."""
        from zarr.core.buffer.cpu import Buffer

        self._sync(lambda store: store.set(key, Buffer.from_bytes(data)), "write", key)

    def keys(self, prefix: str) -> list[str]:
        """Return the names right under a prefix."""

        async def listed(store: Store) -> list[str]:
            """Return all the names; the store gives them one by one."""
            return [key async for key in store.list_dir(prefix)]

        return sorted(self._sync(listed, "list", prefix))

    def remove(self, keys: Iterable[str]) -> None:
        """Delete blobs; missing ones are no error."""
        for key in keys:
            self._sync(lambda store, key=key: store.delete(key), "delete", key)  # type: ignore[misc]

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


def reason(error: Exception) -> str:
    """Return what went wrong in one short line; object stores answer with pages.

    Examples
    --------
    >>> reason(OSError(28, "No space left on device"))
    'No space left on device'
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


@lru_cache(maxsize=32)
def _open(url: str, options: Options) -> Store:
    if is_local(url):
        from streamimg3.store.zarr_folder import Folder

        return Folder(url)
    try:
        if url.startswith("s3://"):
            return _open_s3(url, dict(options))
        return _open_fsspec(url, dict(options))
    except ImportError as error:
        raise InputError(
            f"{url}: reading this kind of URL needs an extra package ({error}): pip install 'streamimg3[cloud]'"
        ) from error


def _open_s3(url: str, options: dict[str, str]) -> Store:
    """Open an S3 prefix with obstore; credentials come from the options or the usual AWS variables."""
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    names = {
        "key": "access_key_id",
        "secret": "secret_access_key",
        "endpoint_url": "endpoint",
        "region": "region",
        "token": "session_token",
    }
    config: dict[str, str | bool] = {names[k]: v for k, v in options.items() if k in names}
    endpoint = str(config.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL") or "")
    if endpoint:
        config["endpoint"] = endpoint
        config["virtual_hosted_style_request"] = False
    if options.get("anon", "").lower() in ("1", "true", "yes"):
        config["skip_signature"] = True
    config.setdefault("region", os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1")
    client = {"allow_http": True} if endpoint.startswith("http://") else {}
    return ObjectStore(S3Store.from_url(url, config=config, client_options=client))  # type: ignore[arg-type]


def _open_fsspec(url: str, options: dict[str, str]) -> Store:
    from zarr.storage import FsspecStore

    return FsspecStore.from_url(url, storage_options=dict(options))
