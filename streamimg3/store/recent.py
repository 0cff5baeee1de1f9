"""What was fetched a moment ago: neighbouring tiles and bands want the same chunks again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

Span = tuple[int, int]
MOST = 8 * 2**20  # bytes that a process keeps


@dataclass
class Fetched:
    """Parts of one version of an object.

    Parameters
    ----------
    tag : str
        Names the version: the service's ETag.
    first : int
        Where ``end`` begins in the object.
    end : bytes
        Its last bytes.
    spans : dict of (int, int) to bytes
        Other ranges of it.
    """

    tag: str
    first: int
    end: bytes
    spans: dict[Span, bytes] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return len(self.end) + sum(map(len, self.spans.values()))


class Recent:
    """Parts of objects, the most recent ones, up to a number of bytes; threads may share it."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._kept: OrderedDict[tuple[str, str], Fetched] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def get(self, name: tuple[str, str]) -> Fetched | None:
        """Return what is kept of an object."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)

    def put(self, name: tuple[str, str], fetched: Fetched) -> None:
        """Keep parts of an object instead of those of an earlier version."""
        with self._lock:
            self._drop(name)
            self._kept[name] = fetched
            self._held += fetched.nbytes
            self._shrink()

    def add(self, name: tuple[str, str], tag: str, spans: Mapping[Span, bytes]) -> None:
        """Keep more parts of the same version."""
        with self._lock:
            kept = self._kept.get(name)
            if kept is None or kept.tag != tag:
                return
            new = {span: data for span, data in spans.items() if span not in kept.spans}
            kept.spans.update(new)
            self._held += sum(map(len, new.values()))
            self._shrink()

    def drop(self, name: tuple[str, str]) -> None:
        """Forget an object."""
        with self._lock:
            self._drop(name)

    def _drop(self, name: tuple[str, str]) -> None:
        if name in self._kept:
            self._held -= self._kept.pop(name).nbytes

    def _shrink(self) -> None:
        """Forget the oldest objects, and of the last one the ranges that came first."""
        while self._held > self._most and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))
        for fetched in self._kept.values():
            while self._held > self._most and fetched.spans:
                self._held -= len(fetched.spans.pop(next(iter(fetched.spans))))


@lru_cache(maxsize=1)
def recent() -> Recent:
    """Return what this process keeps."""
    return Recent()
