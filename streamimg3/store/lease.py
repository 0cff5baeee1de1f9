"""One run at a time writes to a store: a small object says whose turn it is, and for how long."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from streamimg3.errors import StoreError
from streamimg3.store.backend import Backend

KEY = "lease/holder.json"
SECONDS = 60.0  # that a lease is good for; clocks of machines that share a store should agree better than that
_BEATS = 4  # renewals in that time


@dataclass(frozen=True)
class Holder:
    """Who writes to a store: a process of a machine, and until when (s since 1970) if it says nothing more."""

    run: str
    host: str
    place: str
    pid: int
    started: str
    since: str
    until: float

    @classmethod
    def this_process(cls) -> Holder:
        """Return this process as a holder, from now on."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        pid = os.getpid()
        return cls(uuid.uuid4().hex, socket.gethostname(), _place(), pid, _started(pid), since, time.time() + SECONDS)

    @classmethod
    def parse(cls, data: bytes) -> Holder | None:
        """Return who a lease names, None if it is damaged."""
        with suppress(ValueError, TypeError, AttributeError):
            return cls(**json.loads(data))
        return None

    def to_json(self) -> bytes:
        """Return the lease as it is stored."""
        return json.dumps(asdict(self)).encode()

    @property
    def gone(self) -> bool:
        """Whether the lease has run out, or its process was on this machine and is not there any more."""
        here = self.host == socket.gethostname() and self.place == _place() != ""
        return time.time() > self.until or (here and _started(self.pid) != self.started)


def _place() -> str:
    """What tells this machine's process numbers from others': its boot and process space; empty if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as f:
            return f"{f.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process was started, in the system's ticks; empty if it is not there (or a zombie)."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            fields = f.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


class Lease:
    """The right to write to a store, renewed by a thread until it is given back.

    Parameters
    ----------
    backend : Backend
        The store.

    Raises
    ------
    StoreError
        If another run has it.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._lost = ""
        self._stop = threading.Event()
        self._mine = self._take()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _take(self) -> bytes:
        found = self._backend.get(KEY)
        holder = Holder.parse(found) if found is not None else None
        if holder is not None and not holder.gone:
            raise StoreError(
                f"{self._backend.url} is being written by another run (process {holder.pid} on {holder.host}, since"
                f" {holder.since}): wait until it has ended, or give another --store; if it is gone, its lease ends in"
                f" {max(1, round(holder.until - time.time()))} s"
            )
        mine = Holder.this_process().to_json()
        if not self._backend.swap(KEY, found, mine):
            raise StoreError(f"{self._backend.url} has just been taken by another run: wait until it has ended")
        return mine

    def _renew(self) -> None:
        while not self._stop.wait(SECONDS / _BEATS):
            holder = Holder.parse(self._mine)
            assert holder is not None
            later = replace(holder, until=time.time() + SECONDS).to_json()
            with suppress(StoreError):  # the place cannot be reached just now
                if not self._backend.swap(KEY, self._mine, later):
                    self._lost = "another run has taken it over"
                    return
                self._mine = later

    def check(self) -> None:
        """Raise if the store is another run's by now: this one must not write to it any more.

        Raises
        ------
        StoreError
            Saying so.
        """
        if self._lost:
            raise StoreError(
                f"{self._backend.url}: this run has lost its lease ({self._lost}), as one that was stopped for more than"
                f" {SECONDS:.0f} s does: it ends here, and the other goes on"
            )

    def give_back(self) -> None:
        """Let others write."""
        self._stop.set()
        self._thread.join()
        if not self._lost:
            with suppress(StoreError):  # it runs out by itself
                if self._backend.get(KEY) == self._mine:
                    self._backend.remove([KEY])
