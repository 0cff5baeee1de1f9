"""Zarr's object store, with writes that are one request each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr.storage import ObjectStore

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer


class WholeObjects(ObjectStore):  # type: ignore[type-arg]
    """Puts every object with a single request.

    Shards are 16 MiB at most. In parts, as obstore sends whatever is larger than 5 MiB, each would take half a dozen
    requests, the last of which cannot be repeated if its answer is lost.
    """

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object; see :class:`zarr.abc.store.Store`."""
        import obstore

        self._check_writable()
        await obstore.put_async(self.store, key, value.as_buffer_like(), use_multipart=False)
