"""Tasks in this process and in others: receipts, order of sums, lost workers, errors."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from streamimg3.engine import Outcome, Runner, Task, budget
from streamimg3.engine.budget import MIB
from streamimg3.engine.receipts import Ledger
from streamimg3.engine.runner import Progress
from streamimg3.errors import BudgetError, InputError, TaskError
from streamimg3.store.backend import Backend


def tasks(count: int, nbytes: int = MIB) -> list[Task]:
    return [Task(f"t{n:02d}", nbytes, nbytes // 2, item=n) for n in range(count)]


# ---------------------------------------------------------------- work (must be importable by other processes)
def note(task: Task, folder: Path) -> dict[str, float]:
    """Leave a line for each time a task runs."""
    with (folder / task.key).open("a") as f:
        f.write(f"{os.getpid()}\n")
    return {"noted": 1.0, "half": 0.5}


def fraction(task: Task) -> float:
    """A number whose sum depends on the order; later tasks are faster."""
    assert isinstance(task.item, int)
    time.sleep(0.02 * (task.item % 3 == 0))
    return random.Random(task.item).uniform(-1.0, 1.0) * 10.0 ** (task.item % 7)


def limit(task: Task) -> tuple[int, ...]:
    return (task.limit,)


def die_once(task: Task, folder: Path) -> dict[str, float]:
    """The third task kills its process the first time."""
    mark = folder / "died"
    if task.key == "t02" and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return note(task, folder)


def die_always(task: Task, folder: Path, pause: float = 0.0) -> dict[str, float]:
    """The last of four tasks kills its process each time; the others take a while."""
    if task.key == "t03":
        note(task, folder)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(pause)
    return note(task, folder)


def fail(task: Task, error: type[Exception]) -> dict[str, float]:
    if task.key == "t01":
        raise error("the reason")
    return {}


# ---------------------------------------------------------------- fixtures
class Listener(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int, int]] = []
        self.keys: list[str] = []
        self.ended: list[Outcome] = []
        self.notes: list[str] = []

    def start(self, stage: str, total: int, kept: int) -> None:
        self.started.append((stage, total, kept))

    def advance(self, stage: str, key: str, rss: int) -> None:
        assert rss > 0
        self.keys.append(key)

    def finish(self, stage: str, outcome: Outcome) -> None:
        self.ended.append(outcome)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Backend(str(tmp_path / "store")), "stage", "digest")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where tasks leave notes."""
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


@pytest.fixture(params=["serial", "pool", "executor"])
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """One of the three ways to run."""
    if request.param == "executor":
        with ThreadPoolExecutor(2) as threads:
            yield Runner(workers=2, progress=Listener(), executor=threads)
    else:
        yield Runner(workers=1 if request.param == "serial" else 2, progress=Listener())


def runs(folder: Path) -> dict[str, int]:
    """How often each task has run."""
    return {p.name: len(p.read_text().split()) for p in sorted(folder.glob("t*"))}


# ---------------------------------------------------------------- fill
def test_the_second_run_does_nothing(runner: Runner, ledger: Ledger, folder: Path) -> None:
    work = partial(note, folder=folder)
    first = runner.fill(work, tasks(5), ledger)
    assert (first.tasks_done, first.tasks_kept) == (5, 0)
    assert first.split == {"noted": 5.0, "half": 2.5}
    assert ledger.done() == {t.key for t in tasks(5)}
    second = runner.fill(work, tasks(5), ledger)
    assert (second.tasks_done, second.tasks_kept) == (0, 5)
    third = runner.fill(work, tasks(7), ledger)
    assert (third.tasks_done, third.tasks_kept) == (2, 5)
    assert runs(folder) == {t.key: 1 for t in tasks(7)}
    heard = runner.progress
    assert isinstance(heard, Listener)
    assert heard.started == [("stage", 5, 0), ("stage", 5, 5), ("stage", 7, 5)]
    assert sorted(heard.keys) == [t.key for t in tasks(7)]
    assert heard.ended == [first, second, third]
    assert first.peak_rss > 0 and first.wall_s > 0 and first.projected > 0


def test_workers_are_other_processes(ledger: Ledger, folder: Path) -> None:
    Runner(workers=2).fill(partial(note, folder=folder), tasks(2), ledger)
    pids = {int(p.read_text()) for p in folder.glob("t*")}
    assert os.getpid() not in pids


def test_one_worker_is_this_process(ledger: Ledger, folder: Path) -> None:
    Runner(workers=1).fill(partial(note, folder=folder), tasks(2), ledger)
    assert {int(p.read_text()) for p in folder.glob("t*")} == {os.getpid()}


# ---------------------------------------------------------------- fold
def test_sums_have_the_same_bits_for_any_number_of_workers() -> None:
    one = Runner(workers=1).fold(fraction, tasks(20), 0.0)
    two = Runner(workers=2).fold(fraction, tasks(20), 0.0)
    assert one.hex() == two.hex()
    turned = Runner(workers=1).fold(fraction, tasks(20)[::-1], 0.0)
    assert turned != one, "the order matters for these numbers"


def test_the_sum_starts_at_zero_and_follows_the_order_of_tasks(runner: Runner) -> None:
    def of(n: int) -> int:
        return (MIB + n) // 2 * 2

    mixed = [Task(f"t{n}", of(n), of(n) // 2, item=n) for n in (3, 1, 2)]
    assert runner.fold(limit, mixed, ()) == tuple(t.nbytes for t in mixed)
    assert runner.fold(limit, [], (7,)) == (7,)


def test_tasks_are_told_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "resident", lambda pid="self": 100 * MIB)
    small, big = Task("a", 4 * MIB, MIB), Task("b", 90 * MIB, 10 * MIB)
    memory = 100 * MIB + budget.SLACK + 50 * MIB
    assert Runner(memory=memory).fold(limit, [small, big], ()) == (4 * MIB, 50 * MIB)
    assert Runner().fold(limit, [small, big], ()) == (4 * MIB, 90 * MIB)


def test_nothing_runs_if_the_budget_cannot_hold_it(runner: Runner, ledger: Ledger, folder: Path) -> None:
    with pytest.raises(BudgetError):
        replace(runner, memory=MIB).fill(partial(note, folder=folder), tasks(3), ledger)
    assert runs(folder) == {} and ledger.done() == set()


# ---------------------------------------------------------------- lost workers
def test_a_killed_worker_is_replaced_and_its_tasks_run_again(ledger: Ledger, folder: Path) -> None:
    heard = Listener()
    outcome = Runner(workers=2, progress=heard).fill(partial(die_once, folder=folder), tasks(8), ledger)
    assert outcome.tasks_done == 8 and outcome.retried == 1
    assert ledger.done() == {t.key for t in tasks(8)}
    assert any("worker died" in text for text in heard.notes)
    counts = runs(folder)
    assert set(counts) == {t.key for t in tasks(8)}
    assert counts["t02"] == 1, "it died before it did anything"
    assert max(counts.values()) <= 2, "only tasks in flight at the time ran again"


@pytest.mark.parametrize("pause", [0.0, 0.3])
def test_a_task_that_always_kills_its_worker_is_given_up_and_named(ledger: Ledger, folder: Path, pause: float) -> None:
    """Whether the other tasks are faster than the loss of the pool or not."""
    with pytest.raises(TaskError, match=r"workers died \d+ times .*t03"):
        Runner(workers=2).fill(partial(die_always, folder=folder, pause=pause), tasks(4), ledger)
    assert 2 <= runs(folder)["t03"] <= 10
    assert ledger.done() <= {"t00", "t01", "t02"}


# ---------------------------------------------------------------- errors
@pytest.mark.parametrize("error", [ValueError, KeyError, ZeroDivisionError])
def test_an_exception_names_the_task(runner: Runner, ledger: Ledger, error: type[Exception]) -> None:
    with pytest.raises(TaskError, match=f"task t01 failed 2 times: {error.__name__}: .*the reason"):
        runner.fill(partial(fail, error=error), tasks(3), ledger)
    assert "t01" not in ledger.done()


def test_running_out_of_memory_names_the_task_and_the_knob(runner: Runner, ledger: Ledger) -> None:
    with pytest.raises(TaskError, match=r"task t01 ran out of memory.*: give a larger --memory"):
        runner.fill(partial(fail, error=MemoryError), tasks(3), ledger)


def test_errors_of_ours_pass_as_they_are(runner: Runner, ledger: Ledger) -> None:
    with pytest.raises(InputError, match=r"^the reason$"):
        runner.fill(partial(fail, error=InputError), tasks(3), ledger)


def test_what_is_finished_stays_finished(ledger: Ledger) -> None:
    with pytest.raises(TaskError):
        Runner().fill(partial(fail, error=ValueError), tasks(3), ledger)
    assert ledger.done() == {"t00"}
    assert Runner().fill(partial(fail, error=type(None)), tasks(1), ledger).tasks_kept == 1


# ---------------------------------------------------------------- workers that stay
def whoami(task: Task) -> tuple[int, ...]:
    time.sleep(0.05)  # so that each worker gets some
    return (os.getpid(),)


_PINNED: list[bytearray] = []


def hold(task: Task) -> tuple[int, ...]:
    """Leave freed memory behind, as an allocator does: blocks that it keeps, for something above them is in use."""
    kept = [bytearray(3 * MIB) for _ in range(40)]
    _PINNED.append(bytearray(200_000))
    del kept
    return (budget.resident(),)


def test_warm_workers_are_those_that_work() -> None:
    """What was started ahead is used, by one stage after the other."""
    with Runner(workers=2) as runner:
        runner.warm()
        started = runner._staff.pids
        assert len(started) == 2
        seen = {pid for _ in range(2) for pid in runner.fold(whoami, tasks(6), ())}
        assert seen and seen <= started


def test_nothing_is_started_ahead_without_memory_for_it() -> None:
    with Runner(memory=budget.resident() + 120 * MIB, workers=2) as runner:
        runner.warm()
        assert not runner._staff


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is asked to give memory back")
def test_idle_workers_hold_nothing_that_was_freed() -> None:
    """What a task has freed is neither held beside what the next one needs nor counted."""
    with Runner(workers=2) as runner:
        runner.fold(whoami, tasks(8), ())
        before = budget.resident_family()
        held = runner.fold(hold, tasks(8), ())
        assert max(held) > 120 * MIB  # at the end of a task it is all there still
        assert budget.resident_family() - before < 30 * MIB


def test_a_fold_tells_what_it_took(runner: Runner) -> None:
    """Tasks, wall and processor time are added to what the stage took so far."""
    cost = Outcome(tasks_done=2, wall_s=10.0)
    runner.fold(fraction, tasks(5), 0.0, "sum", cost)
    assert cost.tasks_done == 7 and cost.wall_s > 10.0 and cost.cpu_s > 0.0


def test_a_budget_is_required_without_workers(runner: Runner) -> None:
    """What is to come is checked against the budget, and nobody is hired or sent home for it."""
    runner.require(tasks(3))
    with pytest.raises(BudgetError, match="smallest budget that works"):
        replace(runner, memory=MIB).require(tasks(3))
    assert not runner._staff
