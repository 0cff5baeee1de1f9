"""Kill -9 at any moment, run the same command again: the same bytes, and nothing that was finished is done twice."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.conftest import Runnable, Undisturbed, family_of, kill_group, runs, wait_for, workers_of

pytestmark = pytest.mark.faults

MOMENTS = 5
ALWAYS = ("export", "checksums", "report")  # made by every run


def _spread(seed: str, low: float, high: float) -> list[float]:
    """Random delays, one in each part of a span of time (s)."""
    rng = random.Random(seed)
    width = (high - low) / MOMENTS
    return [low + (i + rng.random()) * width for i in range(MOMENTS)]


def _run_again(run: Runnable) -> None:
    """Run to the end after a kill, and check that nothing of what was finished is done again."""
    receipts = {stage: run.receipts(stage) for stage in ("ingest", "resample")}
    events = run.finish("again.jsonl")
    started = {e["stage"]: e for e in events if e["event"] == "start"}
    for stage, done in receipts.items():
        if stage in started:
            assert started[stage]["kept"] >= len(done), (stage, done)
            redone = {e["key"] for e in events if e["event"] == "task" and e["stage"] == stage}
            assert not redone & done
        else:  # the whole stage was finished and says so
            assert any(e["event"] == "note" and "kept" in e["text"] and stage in e["text"] for e in events)


def _kill_during(run: Runnable, stage: str, finished: int, delay: float) -> None:
    """Kill everything a moment after a stage has finished some of its tasks."""
    process = run.start("killed.jsonl")
    while len(run.receipts(stage)) < finished or stage not in run.stages("killed.jsonl"):
        assert process.poll() is None, (run.folder / "killed.jsonl.err").read_text()
        time.sleep(0.002)
    assert wait_for(delay, process)
    kill_group(process)


@pytest.fixture
def run(undisturbed: Undisturbed, tmp_path: Path) -> Runnable:
    """The same command in another folder."""
    return Runnable(undisturbed.run.association, tmp_path / "run")


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_killed_driver(undisturbed: Undisturbed, run: Runnable, moment: int) -> None:
    """Driver and workers die at some moment of the run, whatever goes on then."""
    process = run.start("killed.jsonl")
    if wait_for(_spread("driver", 0.0, undisturbed.seconds)[moment], process):
        kill_group(process)
    _run_again(run)
    assert run.result() == undisturbed.result
    assert run.left_behind() == []


@pytest.mark.parametrize(("finished", "delay"), [(0, 0.0), (0, 0.03), (1, 0.01), (2, 0.02), (3, 0.0)])
def test_killed_while_ingesting(undisturbed: Undisturbed, run: Runnable, finished: int, delay: float) -> None:
    """Driver and workers die while exposures come in."""
    _kill_during(run, "ingest", finished, delay)
    _run_again(run)
    assert run.result() == undisturbed.result
    assert run.left_behind() == []


@pytest.mark.parametrize(("finished", "delay"), [(0, 0.01), (3, 0.02), (8, 0.0), (13, 0.03), (19, 0.0)])
def test_killed_while_resampling(undisturbed: Undisturbed, run: Runnable, finished: int, delay: float) -> None:
    """Driver and workers die while tiles are made: what was finished is kept."""
    _kill_during(run, "resample", finished, delay)
    assert len(run.receipts("resample")) >= finished
    _run_again(run)
    assert run.result() == undisturbed.result
    assert run.left_behind() == []


def test_half_written_shards_are_swept(run: Runnable) -> None:
    """What a killed writer left beside a shard is removed by the next run."""
    _kill_during(run, "resample", 1, 0.0)
    shard = next(run.store.glob("mosaic/sci/c/*/*"))
    left = shard.with_name(f"{shard.name}.0123456789abcdef0123456789abcdef.partial")
    left.write_bytes(bytes(1000))
    run.finish("again.jsonl")
    assert not left.exists()
    assert not list(run.store.rglob("*.partial"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_nobody_outlives_the_driver(undisturbed: Undisturbed, run: Runnable, how: signal.Signals) -> None:
    """The driver alone is killed, terminated or interrupted: its workers end too, and the next run goes on."""
    process = run.start("killed.jsonl")
    while not run.receipts("resample"):
        assert process.poll() is None, (run.folder / "killed.jsonl.err").read_text()
    started = family_of(process)
    assert len(started) >= 4  # driver, fork server, two workers
    os.kill(process.pid, how)
    code = process.wait(timeout=60)
    end = time.monotonic() + 10
    while (left := [p for p in started if runs(p)]) and time.monotonic() < end:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
    said = (run.folder / "killed.jsonl.err").read_text()
    assert "Traceback" not in said
    if how == signal.SIGINT:
        assert code == 130
        assert said.splitlines()[-1] == "streamimg3: interrupted; run the same command again to go on"
    done = run.receipts("resample")
    events = run.finish("again.jsonl")
    (start,) = [e for e in events if e["event"] == "start" and e["stage"] == "resample"]
    assert start["kept"] >= len(done) > 0
    assert run.result() == undisturbed.result


def test_killed_again_and_again(undisturbed: Undisturbed, run: Runnable) -> None:
    """One run that is killed at five moments one after the other, each time a little later, gets there all the same."""
    seen = 0
    for delay in _spread("often", 0.0, undisturbed.seconds):
        process = run.start("killed.jsonl")
        if wait_for(delay, process):
            kill_group(process)
        done = len(run.receipts("resample"))
        assert done >= seen
        seen = done
    run.finish("again.jsonl")
    assert run.result() == undisturbed.result


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_killed_worker(undisturbed: Undisturbed, run: Runnable, moment: int) -> None:
    """One worker dies, as one that runs out of memory: the run goes on by itself, and every task is done."""
    low, high = undisturbed.moment("ingest", "start"), undisturbed.moment("resample", "stage")
    delay = _spread("worker", low, high)[moment]
    process = run.start("log.jsonl")
    wait_for(delay, process)
    victims: list[int] = []
    while process.poll() is None and not victims:
        victims = workers_of(process)[:1]
    if victims:
        os.kill(victims[0], signal.SIGKILL)
    assert process.wait(timeout=300) == 0, (run.folder / "log.jsonl.err").read_text()
    assert run.result() == undisturbed.result
    stages = {e["stage"]: e for e in run.events("log.jsonl") if e["event"] == "stage"}
    wanted = {e["stage"]: e["tasks"] for e in undisturbed.events if e["event"] == "start"}
    assert {stage: e["done"] for stage, e in stages.items()} == wanted
    assert all(e["retried"] <= 1 for e in stages.values())
    events = run.finish("again.jsonl")
    assert not [e for e in events if e["event"] == "task" and e["stage"] not in ALWAYS]
    assert run.result() == undisturbed.result


def test_killed_worker_is_noticed(undisturbed: Undisturbed, run: Runnable) -> None:
    """A worker that dies in the middle of the tiles is in the log: a note, and a count in the stage's event."""
    process = run.start("log.jsonl")
    while not run.receipts("resample"):
        assert process.poll() is None, (run.folder / "log.jsonl.err").read_text()
    os.kill(workers_of(process)[0], signal.SIGKILL)
    assert process.wait(timeout=300) == 0
    events = run.events("log.jsonl")
    (stage,) = [e for e in events if e["event"] == "stage" and e["stage"] == "resample"]
    assert stage["retried"] == 1
    assert any(e["event"] == "note" and "a worker died" in e["text"] for e in events)
    assert run.result() == undisturbed.result
