"""A plan in numbers: what it says of bytes, requests and seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamimg3 import Observation, Session, api
from streamimg3.engine import Outcome, Task
from streamimg3.forecast import summary
from streamimg3.speed import Speed, Stopwatch

BOX = (0, 0, 2048, 2048)


def test_bytes_and_requests_of_a_window() -> None:
    """Whole planes are a table and one stretch; a window in the middle is a stretch for each row of chunks."""
    whole = Task("a", 100, 100, reads=(("exposures/2048x2048/sci[3]", BOX),))
    row = summary("stars", [whole], Session(workers=1))
    assert row["bytes_read"] == pytest.approx(2048 * 2048 * 4 * 0.7)
    assert row["requests"] == 1 + 1 + 1  # table, chunks, receipt
    window = Task("b", 100, 100, reads=(("exposures/2048x2048/sci[3]", (300, 300, 600, 1000)),))
    row = summary("stars", [window], Session(workers=1))
    assert row["bytes_read"] == pytest.approx(2 * 3 * 256 * 256 * 4 * 0.7)  # rows 256..768, columns 256..1024
    assert row["requests"] == 1 + 2 + 1


def test_what_is_written_is_counted() -> None:
    task = Task("a", 100, 100, writes=(("mosaic/sci", (0, 0, 1024, 1024)), ("mosaic/dq", (0, 0, 1024, 1024))))
    row = summary("resample", [task], Session(workers=1))
    assert row["bytes_written"] == pytest.approx(1024 * 1024 * 4 * (0.7 + 0.1))
    assert row["requests"] == 2 + 1 and row["pixels_written"] == 2 * 1024 * 1024


def test_seconds_come_from_the_timing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Speed.kept() is None
    Speed({"resample": 0.5}).keep()
    kept = Speed.kept()
    assert kept is not None
    tasks = [Task(f"t{n}", 100, 100, reads=(("exposures/2048x2048[3]", BOX),)) for n in range(4)]
    assert summary("resample", tasks, Session(workers=1), kept)["seconds"] == pytest.approx(
        0.5 * 4 * 4.194304, abs=0.06
    )
    assert summary("skymatch", tasks, Session(workers=1), kept)["seconds"] is None
    (tmp_path / "streamimg3" / "speed.json").write_text("{")
    assert Speed.kept() is None


def test_stages_are_summed_up_by_step() -> None:
    watch = Stopwatch()
    for stage, seconds in (("stars", 1.0), ("tweakreg-wcs", 0.5), ("outlier_detection-median", 2.0), ("resample", 3.0)):
        watch.finish(stage, Outcome(cpu_s=seconds))
    assert watch.cpu_s == {"tweakreg": 1.5, "outlier_detection": 2.0, "resample": 3.0}


def test_a_plan_of_all_steps(ingested: Observation, tmp_path: Path) -> None:
    """Every step has tasks, bytes and requests, and a new store begins with the ingest."""
    session = Session(store=ingested.url, output_dir=str(tmp_path), workers=1)
    records = ingested.records()
    new = Session(store=str(tmp_path / "new.zarr"), output_dir=str(tmp_path), workers=1)
    plans = api.plan("image3", [r.url for r in records], {"tweakreg": {"skip": True}}, new)
    assert list(plans)[:2] == ["ingest", "skymatch"]
    for step, tasks in plans.items():
        row = api.summary(step, tasks, session)
        assert row["tasks"] == len(tasks) and row["requests"] >= len(tasks)
        assert row["per_worker"] <= row["projected"]
        assert row["bytes_read"] + row["bytes_written"] > 0, step
