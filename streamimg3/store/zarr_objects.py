"""Zarr's object store, with writes that are one request each, and patience where obstore has none."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from zarr.storage import ObjectStore

from streamimg3.store.objects import FIRST, LONGEST, PATIENCE

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

T = TypeVar("T")


class WholeObjects(ObjectStore):  # type: ignore[type-arg]
    """Puts every object with a single request, and asks again where an answer breaks off or does not come.

    Shards are 16 MiB at most. In parts, as obstore sends whatever is larger than 5 MiB, each would take half a dozen
    requests, the last of which cannot be repeated if its answer is lost.
    """

    tries = 8  # how often something is asked again

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Read an object or a part of it; see :class:`zarr.abc.store.Store`."""
        return await self._again(lambda: super(WholeObjects, self).get(key, prototype, byte_range))

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object; see :class:`zarr.abc.store.Store`."""
        import obstore

        self._check_writable()
        data = value.as_buffer_like()
        await self._again(lambda: obstore.put_async(self.store, key, data, use_multipart=False))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object that is not there yet; see :class:`zarr.abc.store.Store`."""
        await self._again(lambda: super(WholeObjects, self).set_if_not_exists(key, value))

    async def delete(self, key: str) -> None:
        """Delete an object; see :class:`zarr.abc.store.Store`."""
        await self._again(lambda: super(WholeObjects, self).delete(key))

    async def delete_dir(self, prefix: str) -> None:
        """Delete everything under a prefix, many objects with one request; see :class:`zarr.abc.store.Store`."""
        self._check_writable()
        keys = await self._again(lambda: self._below(prefix.rstrip("/") + "/" if prefix else ""))
        if keys:
            await self._again(lambda: self._delete(keys))

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:  # type: ignore[override]
        """Yield the names right under a prefix; see :class:`zarr.abc.store.Store`."""
        for name in await self._again(lambda: self._names(prefix)):
            yield name

    async def _below(self, prefix: str) -> list[str]:
        import obstore

        return [found["path"] for found in await obstore.list(self.store, prefix).collect_async()]

    async def _delete(self, keys: list[str]) -> None:
        import obstore

        with contextlib.suppress(FileNotFoundError):
            await obstore.delete_async(self.store, keys)

    async def _names(self, prefix: str) -> list[str]:
        return [name async for name in super().list_dir(prefix)]

    async def _again(self, call: Callable[[], Awaitable[T]]) -> T:
        from obstore.exceptions import GenericError

        begun, pause = time.monotonic(), FIRST
        for _ in range(self.tries):
            try:
                return await call()
            except GenericError:
                if time.monotonic() - begun > PATIENCE:
                    raise
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST)
        return await call()
