"""A run that can be killed: its command, its processes and what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamimg3
from streamimg3 import Observation
from streamimg3.formats.simulate import Field, simulate
from streamimg3.store.documents import ResampleDocument
from tests.conftest import SKIP


def _children(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        return [int(c) for t in threads for c in Path(f"/proc/{pid}/task/{t}/children").read_text().split()]
    except OSError:  # it has just ended
        return []


@dataclass(frozen=True)
class Result:
    """What a finished run left: SHA-256 of every mosaic plane, and of the product but for its date."""

    planes: dict[str, str]
    product: str


@dataclass(frozen=True)
class Runnable:
    """One command line, in a folder of its own.

    Parameters
    ----------
    association : Path
        What is combined.
    folder : Path
        Store and product go here.
    """

    association: Path
    folder: Path

    @property
    def store(self) -> Path:
        """The store."""
        return self.folder / "x.zarr"

    def start(self, log: str) -> subprocess.Popen[bytes]:
        """Start it as the leader of a process group."""
        self.folder.mkdir(exist_ok=True)
        command = [
            sys.executable, "-m", "streamimg3", "run", "image3", str(self.association), "--store", str(self.store),
            "--output-dir", str(self.folder), "--workers", "2", "--memory", "4GiB", "--set", "resample.tile=128",
            *(f"--steps.{step}.skip=true" for step in SKIP), "--log-json", str(self.folder / log),
        ]  # fmt: skip
        path = os.pathsep.join([str(Path(streamimg3.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        said = open(self.folder / f"{log}.err", "wb")  # noqa: SIM115 (the process keeps it)
        with said:
            return subprocess.Popen(
                command, stderr=said, start_new_session=True, env={**os.environ, "PYTHONPATH": path},
                # A shell starts what runs in the background with Ctrl-C ignored, which would be inherited.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )  # fmt: skip

    def finish(self, log: str) -> list[dict[str, Any]]:
        """Run it to its good end and return its events."""
        process = self.start(log)
        assert process.wait(timeout=300) == 0, (self.folder / f"{log}.err").read_text()
        return self.events(log)

    def events(self, log: str) -> list[dict[str, Any]]:
        """Return the whole lines of a log."""
        path = self.folder / log
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def stages(self, log: str) -> set[str]:
        """Return the stages that have begun."""
        return {e["stage"] for e in self.events(log) if e["event"] == "start"}

    def receipts(self, stage: str) -> set[str]:
        """Return the keys of finished tasks of a stage."""
        return {p.name for p in self.store.glob(f"receipts/{stage}/*/*") if re.fullmatch(r"[rm]\d+(c\d+)?", p.name)}

    def result(self) -> Result:
        """Return what it made."""
        obs = Observation.at(str(self.store))
        document = obs.document(ResampleDocument)
        assert document is not None
        planes = {p: np.ascontiguousarray(obs.array(f"{document.path}/{p}")[...]) for p in document.planes}
        (product,) = self.folder.glob("*_i2d.fits")
        data = product.read_bytes()
        # The date of writing, and the digest in the ASDF extension that depends on it, are all that may differ.
        date = re.search(rb"DATE    = '([^']+)'", data)
        assert date is not None
        data = re.sub(rb"_fits_hash: [0-9a-f]{64}", b"_fits_hash", data.replace(date[1], b"date"))
        sums = {name: hashlib.sha256(values.tobytes()).hexdigest() for name, values in planes.items()}
        return Result(sums, hashlib.sha256(data).hexdigest())

    def left_behind(self) -> list[str]:
        """Return half-written products."""
        return [p.name for p in self.folder.glob(".*.partial")]


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Return the worker processes: children of the fork server, which is a child of the driver."""
    return [grandchild for child in _children(process.pid) for grandchild in _children(child)]


def family_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Return the driver and everything it has started that still runs."""
    found, queue = [], [process.pid]
    while queue:
        found.append(queue.pop())
        queue += _children(found[-1])
    return found


def runs(pid: int) -> bool:
    """Return whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill driver, fork server and workers at once, as a job system does."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


def wait_for(seconds: float, process: subprocess.Popen[bytes]) -> bool:
    """Wait, but not longer than the process lives; returns whether it still does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        time.sleep(0.005)
    return process.poll() is None


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody disturbed: how it went, how long it took (s) and what it made."""

    run: Runnable
    events: list[dict[str, Any]]
    started: float
    seconds: float
    result: Result

    def moment(self, stage: str, kind: str) -> float:
        """Return when a stage began (``start``) or ended (``stage``), in seconds after the process was started."""
        (found,) = [e["time"] for e in self.events if e["event"] == kind and e.get("stage") == stage]
        return float(found) - self.started


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    """Four exposures of 512 x 512 in tiles of 128, run to the end."""
    folder = tmp_path_factory.mktemp("faults")
    run = Runnable(simulate(folder / "in", Field(shape=(512, 512), dithers=4)), folder / "undisturbed")
    run.finish("warm.jsonl")  # compiled kernels are cached now
    again = Runnable(run.association, folder / "timed")
    started, clock = time.time(), time.monotonic()
    events = again.finish("log.jsonl")
    seconds = time.monotonic() - clock
    assert run.result() == again.result()
    yield Undisturbed(again, events, started, seconds, again.result())
