"""Exposures are calibrated within the declared memory, and the projection is near to what is used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.memory.family_rss import MIB, Measured, run_measured
from tests.pipelines.rates import Case, Rate, make

pytestmark = [
    pytest.mark.scale,
    pytest.mark.skipif(sys.platform != "linux", reason="resident memory is sampled through /proc"),
]

SIDE = 2048


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Three exposures of a full detector, four backgrounds."""
    sky = tuple(Rate(10 + n, shape=(SIDE, SIDE), stars=False) for n in range(4))
    products = {f"jw0{n}_nrca2": (Rate(n, shape=(SIDE, SIDE)), sky) for n in range(1, 4)}
    return make(tmp_path_factory.mktemp("rates"), products, (SIDE, SIDE))


def _run(case: Case, folder: Path, memory: str, workers: int) -> Measured:
    command = [
        sys.executable, "-m", "streamimg3", "run", "image2", case.association, "--references",
        str(case.folder / "references"), "--store", str(folder / "x.zarr"), "--output-dir", str(folder),
        "--memory", memory, "--workers", str(workers),
    ]  # fmt: skip
    measured = run_measured(command, folder / "log.jsonl")
    assert measured.code == 0, measured.stderr
    for stage in ("bkg_subtract", "ingest", "export"):
        event = measured.event("stage", stage)
        own, projected = event["peak_rss"] / MIB, event["projected"] / MIB
        print(
            f"\n--memory {memory} --workers {workers}: {stage} {own:.0f} MiB, {projected:.0f} projected, {event['wall_s']:.1f} s"
        )
    return measured


@pytest.mark.parametrize(("memory", "budget", "workers"), [("512MiB", 512, 1), ("2GiB", 2048, 2)])
def test_budget_is_kept(case: Case, tmp_path: Path, memory: str, budget: int, workers: int) -> None:
    """Little memory: planes one by one; much: all planes of an exposure at once."""
    measured = _run(case, tmp_path, memory, workers)
    assert measured.peak <= budget * MIB
    for stage in ("bkg_subtract", "ingest", "export"):
        event = measured.event("stage", stage)
        assert event["peak_rss"] <= event["projected"] <= 1.25 * event["peak_rss"], stage
