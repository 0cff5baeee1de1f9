"""All of image3, killed at twenty random moments one after the other: the same bytes, and hardly anything done twice."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from streamimg3.formats.simulate import Field, simulate
from tests.faults.conftest import kill_group, wait_for
from tests.faults.test_kill_image3 import _result, _start

pytestmark = pytest.mark.faults

KILLS = 20
# Products are written anew by every run, and tasks whose values only add up leave no receipts
_AGAIN = ("export", "checksums", "report", "outlier_detection-weights", "outlier_detection-count", "tweakreg-wcs")


def _finished(log: Path) -> Counter[tuple[str, str]]:
    """How often each task was told to be finished."""
    lines = log.read_text().splitlines() if log.exists() else []
    events = [json.loads(line) for line in lines if line.endswith("}")]
    tasks = [(e["stage"], e["key"]) for e in events if e["event"] == "task"]
    return Counter(t for t in tasks if t[0] not in _AGAIN)


def test_twenty_kills(tmp_path: Path) -> None:
    """The longer it has been running, the further the next attempt gets."""
    association = simulate(tmp_path / "in", Field(shape=(512, 512), dithers=4))
    for name in ("warm", "out"):
        assert _start(association, tmp_path / name, "--log-json", tmp_path / f"{name}.jsonl").wait(timeout=300) == 0
    expected = _result(tmp_path / "out")
    events = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    seconds = events[-1]["time"] - events[0]["time"]
    log, folder, rng = tmp_path / "log.jsonl", tmp_path / "run", random.Random("soak")
    for _ in range(KILLS):
        process = _start(association, folder, "--log-json", log)
        before = len(log.read_text()) if log.exists() else 0
        while process.poll() is None and (not log.exists() or len(log.read_text()) == before):
            wait_for(0.01, process)  # it is loading: nothing can be lost
        if wait_for(rng.uniform(0.0, 2.0 * seconds / KILLS), process):
            kill_group(process)
    assert _start(association, folder, "--log-json", log).wait(timeout=300) == 0, (folder / "log").read_text()
    assert _result(folder) == expected
    finished = _finished(log)
    again = sum(finished.values()) - len(finished)
    print(f"\n{KILLS} kills: {len(finished)} tasks, {again} of them done again after they had been finished")
    assert len(finished) > 30
    assert again <= 0.05 * len(finished)
