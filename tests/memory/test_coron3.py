"""coron3 keeps within the declared memory, whatever the number of references and integrations."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.memory.family_rss import MIB, Measured, run_measured
from tests.pipelines.coronagraphs import Files, Scene, make

pytestmark = [
    pytest.mark.scale,
    pytest.mark.skipif(sys.platform != "linux", reason="resident memory is sampled through /proc"),
]

STAGES = (
    "outlier_detection-median",
    "outlier_detection-flags",
    "align_refs-fit",
    "klip-sums",
    "klip",
    "resample",
    "export",
)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """500 references and 50 integrations of 320 x 320: 1.3 GB."""
    return make(tmp_path_factory.mktemp("many"), Scene(shape=(320, 320), science=(50,), psf=(50,) * 10))


def _run(files: Files, folder: Path, memory: str, workers: int, *more: str) -> Measured:
    command = [
        sys.executable, "-m", "streamimg3", "run", "coron3", files.association, "--store", str(folder / "x.zarr"),
        "--output-dir", str(folder), "--memory", memory, "--workers", str(workers),
        "--set", f"align_refs.override_psfmask={files.weights}", *more,
    ]  # fmt: skip
    measured = run_measured(command, folder / "log.jsonl")
    assert measured.code == 0, measured.stderr
    print(f"\n--memory {memory} --workers {workers}: {measured.peak / MIB:.0f} MiB at most")
    for stage in STAGES:
        event = measured.event("stage", stage)
        shown = event["peak_rss"] / MIB, event["projected"] / MIB, event["wall_s"], event["cpu_s"]
        print("  {:<26} {:5.0f} MiB, {:5.0f} projected, {:6.1f} s wall, {:6.1f} s CPU".format(stage, *shown))
    return measured


@pytest.mark.parametrize(("memory", "budget", "workers"), [("512MiB", 512, 1), ("2GiB", 2048, 2)])
def test_budget_is_kept(many: Files, tmp_path: Path, memory: str, budget: int, workers: int) -> None:
    """In one process with little memory, and with two workers."""
    measured = _run(many, tmp_path, memory, workers)
    assert measured.peak <= budget * MIB
    for stage in STAGES:
        event = measured.event("stage", stage)
        assert event["peak_rss"] <= event["projected"]
