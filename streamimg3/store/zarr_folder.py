"""Zarr's store in a local folder; who only looks for something there leaves no folder behind."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from zarr.abc.store import Store
from zarr.storage import LocalStore

if TYPE_CHECKING:
    from zarr.core.common import AccessModeLiteral


class Folder(LocalStore):
    """A folder that is made by the first object that is written into it."""

    async def _open(self, *, mode: AccessModeLiteral | None = None) -> None:
        """Leave the disk alone: Zarr would make the folder even for reading.

        Raises
        ------
        NotADirectoryError
            If a file is in the way.
        """
        there = next(path for path in (self.root.absolute(), *self.root.absolute().parents) if path.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
        await Store._open(self)
