"""A real Dask cluster whose workers die, hang, run out of memory or fail: tasks run again, a bounded number of times."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import streamimg3
from streamimg3.engine import Runner, Task
from streamimg3.engine.budget import MIB
from streamimg3.engine.cluster import Cluster as Crew
from streamimg3.engine.cluster import connect
from streamimg3.engine.receipts import Ledger
from streamimg3.errors import BudgetError, TaskError
from streamimg3.store.backend import Backend
from tests.engine.test_drain import fail_first, hang_once
from tests.engine.test_runner import Listener, fail, fraction, runs, tasks

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from servers import Cluster  # noqa: E402

pytestmark = pytest.mark.faults
LIMIT = 400  # MiB


# ---------------------------------------------------------------- work (must be importable by workers)
def noted(task: Task, folder: Path) -> dict[str, float]:
    """Leave a line for each time a task runs."""
    with (folder / task.key).open("a") as f:
        f.write(f"{os.getpid()}\n")
    return {}


def die_once(task: Task, folder: Path) -> dict[str, float]:
    """The third task kills its worker the first time."""
    mark = folder / "died"
    if task.key == "t02" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.1)
    return noted(task, folder)


def die_always(task: Task, folder: Path) -> dict[str, float]:
    noted(task, folder)
    if task.key == "t03":
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


def hang(task: Task, folder: Path) -> dict[str, float]:
    hang_once(task, folder)
    return noted(task, folder)


def eat_once(task: Task, folder: Path) -> dict[str, float]:
    """The second task takes more than its worker may have, the first time; the cluster ends that worker."""
    mark = folder / "ate"
    if task.key == "t01" and not mark.exists():
        mark.touch()
        held = []
        for _ in range(LIMIT // 20 * 2):
            held.append(b"x" * (20 * MIB))
            time.sleep(0.05)
        time.sleep(30)
    return noted(task, folder)


def _nothing() -> None:
    """There is nothing to be loaded."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler and two workers that find these tests."""
    path = os.pathsep.join([str(ROOT), str(Path(streamimg3.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    made = Cluster(tmp_path_factory.mktemp("dask"), {**os.environ, "PYTHONPATH": path}, memory=f"{LIMIT}MiB")
    yield made
    made.close()


@pytest.fixture
def runner(cluster: Cluster) -> Iterator[Runner]:
    """A runner on it."""
    with connect(cluster.address) as client:
        yield Runner(progress=Listener(), executor=Crew(client, _nothing), patience=8.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where tasks leave notes."""
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Backend(str(tmp_path / "store")), "stage", "digest")


def test_sums_have_the_same_bits(runner: Runner, cluster: Cluster) -> None:
    """And the limits of the workers are what tasks are given."""
    assert runner.fold(fraction, tasks(20), 0.0).hex() == Runner().fold(fraction, tasks(20), 0.0).hex()
    found = runner.check(tasks(20, 100 * MIB))
    assert found.workers == 2 and found.each == 100 * MIB
    found = runner.check([Task("t", 1000 * MIB, 10 * MIB)])
    assert 100 * MIB < found.each < 0.75 * LIMIT * MIB
    with pytest.raises(BudgetError, match=r"cannot hold task t: .*memory limit of at least"):
        runner.check([Task("t", 1000 * MIB, 500 * MIB)])


def test_a_killed_worker(runner: Runner, ledger: Ledger, folder: Path) -> None:
    outcome = runner.fill(partial(die_once, folder=folder), tasks(8), ledger)
    assert outcome.tasks_done == 8 and outcome.retried == 1
    assert runs(folder) == {t.key: 1 for t in tasks(8)}, "it died before it did anything; nobody else was disturbed"


def test_a_task_that_always_kills_its_worker(runner: Runner, ledger: Ledger, folder: Path) -> None:
    with pytest.raises(TaskError, match=r"workers died 4 times in a row at tasks t03"):
        runner.fill(partial(die_always, folder=folder), tasks(4), ledger)
    assert runs(folder)["t03"] == 4
    assert ledger.done() <= {"t00", "t01", "t02"}


def test_a_worker_that_hangs(runner: Runner, ledger: Ledger, folder: Path) -> None:
    start = time.monotonic()
    outcome = runner.fill(partial(hang, folder=folder), tasks(6), ledger)
    assert time.monotonic() - start < 90
    assert outcome.tasks_done == 6 and outcome.retried == 1
    heard = runner.progress
    assert isinstance(heard, Listener) and any("t01 has taken more than 8 s" in text for text in heard.notes)


def test_a_worker_out_of_memory(cluster: Cluster, ledger: Ledger, folder: Path) -> None:
    """The cluster's nanny ends it; the task runs again, with less."""
    with connect(cluster.address) as client:
        runner = Runner(executor=Crew(client, _nothing), progress=Listener())
        outcome = runner.fill(partial(eat_once, folder=folder), tasks(4), ledger)
    assert outcome.tasks_done == 4 and outcome.retried >= 1
    assert set(runs(folder)) == {t.key for t in tasks(4)}


def test_errors_of_tasks(runner: Runner, ledger: Ledger, tmp_path: Path) -> None:
    """A passing one is tried again; one that stays the same ends the run, with key and traceback."""
    assert runner.fold(partial(fail_first, folder=tmp_path), tasks(4), ()) == ("t00", "t01", "t02", "t03")
    with pytest.raises(TaskError, match="task t01 failed 2 times: ValueError: the reason"):
        runner.fill(partial(fail, error=ValueError), tasks(3), ledger)
    heard = runner.progress
    assert isinstance(heard, Listener) and 'raise error("the reason")' in heard.notes[-1]
