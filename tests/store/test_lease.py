"""One run at a time writes to a store; what a dead run left is taken over, at once on the same machine."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import streamimg3
from streamimg3 import Session, ingest
from streamimg3.errors import StoreError
from streamimg3.store import lease
from streamimg3.store.backend import Backend
from streamimg3.store.lease import KEY, Holder, Lease

NUMBERS = itertools.count()


@pytest.fixture(params=["local", "memory"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """Local disk, and behind fsspec."""
    return Backend(str(tmp_path / "x.zarr") if request.param == "local" else f"memory://lease-{next(NUMBERS)}")


def test_the_second_is_refused_until_the_first_ends(backend: Backend) -> None:
    first = Lease(backend)
    with pytest.raises(StoreError, match=rf"another run \(process {os.getpid()} on .* its lease ends in \d+ s$"):
        Lease(backend)
    first.check()
    first.give_back()
    assert backend.get(KEY) is None
    Lease(backend).give_back()


def test_one_of_many_gets_it(tmp_path: Path) -> None:
    """Local disk: runs that start at the same moment."""
    backend = Backend(str(tmp_path / "x.zarr"))

    def take(_: int) -> Lease | None:
        try:
            return Lease(backend)
        except StoreError:
            return None

    with ThreadPoolExecutor(8) as pool:
        taken = [found for found in pool.map(take, range(8)) if found is not None]
    assert len(taken) == 1
    taken[0].give_back()


def test_a_lease_runs_out(backend: Backend) -> None:
    """One of another machine that says nothing more is taken over when its time is over, not before."""
    elsewhere = replace(Holder.this_process(), host="elsewhere")
    backend.put(KEY, elsewhere.to_json())
    with pytest.raises(StoreError, match="on elsewhere"):
        Lease(backend)
    backend.put(KEY, replace(elsewhere, until=time.time() - 1.0).to_json())
    Lease(backend).give_back()


def test_a_damaged_lease_holds_nobody(backend: Backend) -> None:
    backend.put(KEY, b"{")
    Lease(backend).give_back()


def test_a_dead_process_of_this_machine_holds_nobody(tmp_path: Path) -> None:
    """The same command can be run again at once after kill -9."""
    code = (
        "import sys, os\nfrom streamimg3.store.backend import Backend\nfrom streamimg3.store.lease import Lease\n"
        "Lease(Backend(sys.argv[1]))\nos.kill(os.getpid(), 9)"
    )
    path = os.pathsep.join([str(Path(streamimg3.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.zarr")], env=env, check=False)
    backend = Backend(str(tmp_path / "x.zarr"))
    assert backend.get(KEY) is not None
    if sys.platform == "linux":
        Lease(backend).give_back()


def test_a_run_that_was_overtaken_ends(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renewal goes on while the run does, and finds out if another one has taken the store."""
    monkeypatch.setattr(lease, "SECONDS", 0.8)
    mine = Lease(backend)
    before = backend.get(KEY)
    time.sleep(1.0)
    assert before is not None and backend.get(KEY) != before
    mine.check()
    theirs = replace(Holder.this_process(), until=time.time() + 60)
    backend.put(KEY, theirs.to_json())
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            mine.check()
        except StoreError as error:
            assert "has lost its lease" in str(error)
            break
        time.sleep(0.05)
    else:
        pytest.fail("nobody noticed")
    mine.give_back()
    kept = backend.get(KEY)
    assert kept is not None and json.loads(kept)["run"] == theirs.run


def test_a_run_is_refused_while_another_writes(field: Path, tmp_path: Path) -> None:
    """From the face of it; afterwards the store is free."""
    store = str(tmp_path / "x.zarr")
    ingest(str(field), Session(store=store, workers=1))
    other = Lease(Backend(store))
    with pytest.raises(StoreError, match="is being written by another run"):
        ingest(str(field), Session(store=store, workers=1))
    other.give_back()
    ingest(str(field), Session(store=store, workers=1))
    assert Backend(store).get(KEY) is None
