"""Sizes, and how a declared memory is shared out."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamimg3.engine import Task, budget
from streamimg3.engine.budget import MIB, Watch, family, parse_size, resident, share, show_size
from streamimg3.errors import BudgetError, InputError

DRIVER = 100 * MIB


@pytest.fixture
def _steady_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver whose own memory does not change between two looks at it."""
    monkeypatch.setattr(budget, "resident", lambda pid="self": DRIVER)


def task(most: int, least: int, key: str = "t") -> Task:
    return Task(key, most, least)


# ---------------------------------------------------------------- sizes
@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("1GiB", 2**30), ("1 gib", 2**30), ("512MiB", 512 * 2**20), ("512 MB", 512 * 10**6), ("1.5k", 1500), ("2KiB", 2048),
        ("3T", 3 * 10**12), ("1TiB", 2**40), ("17", 17), (17, 17), ("17b", 17), (" .5 GiB ", 2**29),
    ],
)  # fmt: skip
def test_sizes(text: str | int, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "1 GiBs", "-1GiB", "0", "0GiB", "1,5GiB", "one", "1 G i B", "nan", 0, -5])
def test_no_sizes(text: str | int) -> None:
    with pytest.raises(InputError, match=f"'{re.escape(str(text))}' is no amount of memory"):
        parse_size(text)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 2**50))
def test_shown_sizes_are_near(nbytes: int) -> None:
    shown = parse_size(show_size(max(nbytes, MIB)))
    assert abs(shown - max(nbytes, MIB)) <= (0.05 * 2**30 if nbytes >= 2**30 else 0.5 * MIB) + 1


# ---------------------------------------------------------------- sharing
sizes = st.integers(1, 4096).map(lambda n: n * MIB // 4)
task_lists = st.lists(st.tuples(sizes, sizes).map(lambda p: task(max(p), min(p))), min_size=1, max_size=6)
keep_fixture = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.usefixtures("_steady_driver")
@keep_fixture
@given(memory=st.integers(1, 8192).map(lambda n: n * MIB), workers=st.integers(1, 8), tasks=task_lists)
def test_what_is_granted_fits(memory: int, workers: int, tasks: list[Task]) -> None:
    most, least = max(t.nbytes for t in tasks), max(t.least for t in tasks)
    try:
        granted = share(memory, workers, tasks)
    except BudgetError:
        assert memory < DRIVER + budget.SLACK + least
        return
    assert 1 <= granted.workers <= min(workers, len(tasks))
    assert least <= granted.each <= most
    assert granted.projected <= memory
    if granted.workers < min(workers, len(tasks)):  # one more would not have fitted
        more = granted.workers + 1
        assert (
            DRIVER + budget.SLACK + budget.SERVER + more * (budget.WORKER + least) + granted.workers * budget.MORE
            > memory
        )


@pytest.mark.usefixtures("_steady_driver")
@keep_fixture
@given(workers=st.integers(1, 8), tasks=task_lists)
def test_the_named_budget_is_the_smallest_that_works(workers: int, tasks: list[Task]) -> None:
    with pytest.raises(BudgetError) as refused:
        share(MIB, workers, tasks)
    largest = max(tasks, key=lambda t: t.least)
    text = str(refused.value)
    assert f"task {largest.key}," in text and show_size(largest.least) in text
    found = re.search(r"--memory (\S+)$", text)
    assert found
    named = parse_size(found[1])
    assert share(named, workers, tasks).workers >= 1
    with pytest.raises(BudgetError):
        share(named - 17 * MIB, workers, tasks)  # named with 8 MiB to spare and rounded up to 8 MiB


@pytest.mark.usefixtures("_steady_driver")
def test_the_task_that_is_too_big_is_named() -> None:
    with pytest.raises(BudgetError, match="cannot hold task r0001c0002, which needs 300 MiB"):
        share(200 * MIB, 4, [task(MIB, MIB, "a"), task(900 * MIB, 300 * MIB, "r0001c0002"), task(MIB, MIB, "z")])


@pytest.mark.usefixtures("_steady_driver")
def test_no_bound() -> None:
    granted = share(None, 3, [task(10 * MIB, MIB)] * 5)
    assert (granted.workers, granted.each) == (3, 10 * MIB)
    assert granted.projected == DRIVER + budget.SLACK + budget.SERVER + 3 * (budget.WORKER + 10 * MIB) + 2 * budget.MORE


# ---------------------------------------------------------------- what is in use
def test_resident_memory_of_this_process_grows_with_it() -> None:
    before = resident()
    held = np.ones(40 * MIB // 8)
    assert resident() - before > 35 * MIB
    assert resident(os.getpid()) > 35 * MIB
    del held


def test_a_process_that_is_gone_has_none() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    assert resident(gone.pid) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_family_has_the_children() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert set(family(os.getpid())) >= {os.getpid(), child.pid}
        child.kill()


def test_the_watch_sees_a_peak_that_is_over() -> None:
    with Watch(interval=0.005) as watch:
        start = watch.now
        held = np.ones(60 * MIB // 8)
        watch.sample()
        del held
    assert watch.peak - start > 50 * MIB
    assert watch.peak >= watch.now


# ---------------------------------------------------------------- libraries
@pytest.mark.usefixtures("_steady_driver")
def test_libraries_count_in_every_worker_and_not_in_this_process() -> None:
    """What the work has to load is there already in a process that works alone."""
    plain, loading = [task(100 * MIB, 100 * MIB)] * 4, [Task("t", 100 * MIB, 100 * MIB, libraries=60 * MIB)] * 4
    alone = [share(4096 * MIB, 1, tasks) for tasks in (plain, loading)]
    assert alone[0] == alone[1]
    three = [share(4096 * MIB, 3, tasks) for tasks in (plain, loading)]
    assert three[1].projected - three[0].projected == 3 * 60 * MIB
    enough = three[0].projected
    assert share(enough, 3, plain).workers == 3 and share(enough, 3, loading).workers == 2
