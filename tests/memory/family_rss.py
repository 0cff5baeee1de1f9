"""Resident memory of a process and all its descendants, sampled from outside (Linux), independently of the package's own count."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 2**20
INTERVAL = 0.02  # s


def _pages(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):  # gone since it was listed
        return 0


def _children(pid: str) -> list[str]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        return [c for t in threads for c in Path(f"/proc/{pid}/task/{t}/children").read_text().split()]
    except OSError:
        return []


def family(pid: int) -> list[str]:
    """Return the process and everything it has started, that still runs."""
    found, queue = [], [str(pid)]
    while queue:
        found.append(queue.pop())
        queue += _children(found[-1])
    return found


@dataclass
class Measured:
    """What a command did: exit code, what it said, its events and its memory over time.

    Parameters
    ----------
    code : int
        Exit code.
    stderr : str
        What it said.
    events : list of dict
        The lines of its ``--log-json`` file.
    samples : list of (float, int)
        Time (s since the epoch) and resident bytes of the whole family.
    """

    code: int
    stderr: str
    events: list[dict[str, Any]]
    samples: list[tuple[float, int]] = field(repr=False)

    @property
    def peak(self) -> int:
        """Largest sample, bytes."""
        return max(nbytes for _, nbytes in self.samples)

    def between(self, start: float, end: float) -> int:
        """Return the largest sample of a span of time, bytes."""
        return max((nbytes for t, nbytes in self.samples if start <= t <= end), default=0)

    def event(self, kind: str, stage: str) -> dict[str, Any]:
        """Return the only event of a kind for a stage."""
        (found,) = [e for e in self.events if e["event"] == kind and e.get("stage") == stage]
        return found

    def stage_peak(self, stage: str) -> int:
        """Return the largest sample between start and end of a stage, bytes."""
        return self.between(self.event("start", stage)["time"], self.event("stage", stage)["time"])


def run_measured(command: list[str], log: Path) -> Measured:
    """Run a command with ``--log-json`` to ``log`` and sample its memory until it ends."""
    samples = []
    with open(log.with_suffix(".err"), "w+") as said:
        process = subprocess.Popen([*command, "--log-json", str(log)], stderr=said, stdout=said)
        while process.poll() is None:
            samples.append((time.time(), PAGE * sum(_pages(p) for p in family(process.pid))))
            time.sleep(INTERVAL)
        said.seek(0)
        text = said.read()
    events = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return Measured(process.returncode, text, events, samples)
