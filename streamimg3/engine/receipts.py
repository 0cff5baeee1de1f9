"""Which tasks of a stage are done: one small blob per finished task, filed under the stage's digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


class Blobs(Protocol):
    """Small named byte strings, written whole or not at all."""

    def put(self, key: str, data: bytes) -> None:
        """Write one."""

    def keys(self, prefix: str) -> list[str]:
        """List the names under a prefix."""

    def remove_tree(self, prefix: str) -> None:
        """Delete all under a prefix."""


def digest(*parts: object) -> str:
    """Return a digest of JSON-like values: equal inputs and parameters give the same text.

    Examples
    --------
    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Ledger:
    """The receipts of one stage under one digest.

    Parameters
    ----------
    blobs : Blobs
        Where they are kept.
    stage, digest : str
        What they stand for; another digest starts afresh.
    """

    blobs: Blobs
    stage: str
    digest: str

    @property
    def prefix(self) -> str:
        """Folder of these receipts."""
        return f"receipts/{self.stage}/{self.digest}"

    def done(self) -> set[str]:
        """Return the keys of finished tasks."""
        return set(self.blobs.keys(self.prefix))

    def mark(self, key: str) -> None:
        """Record that a task has finished: everything it wrote is in place."""
        self.blobs.put(f"{self.prefix}/{key}", b"done\n")

    def forget_others(self, names: Iterable[str] | None = None) -> None:
        """Drop receipts of other digests of this stage: their results have been or will be overwritten."""
        for name in self.blobs.keys(f"receipts/{self.stage}") if names is None else names:
            if name != self.digest:
                self.blobs.remove_tree(f"receipts/{self.stage}/{name}")
