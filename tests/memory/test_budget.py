"""Declared memory is kept: the resident memory of driver and workers, sampled from outside while real runs go on."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import SKIP
from tests.memory.conftest import simulate
from tests.memory.family_rss import MIB, Measured, run_measured

pytestmark = [
    pytest.mark.scale,
    pytest.mark.skipif(sys.platform != "linux", reason="resident memory is sampled through /proc"),
]

STAGES = ("ingest", "resample")


def _image3(association: str, folder: Path, memory: str, workers: int) -> Measured:
    """Run ingest, resample and export under a budget; the store is removed afterwards."""
    skips = [f"--steps.{step}.skip=true" for step in SKIP]
    command = [
        sys.executable, "-m", "streamimg3", "run", "image3", association, "--output-dir", str(folder / "out"),
        "--memory", memory, "--workers", str(workers), *skips,
    ]  # fmt: skip
    measured = run_measured(command, folder / "log.jsonl")
    assert measured.code == 0, measured.stderr
    assert list((folder / "out").glob("*_i2d.fits"))
    shutil.rmtree(folder / "out")
    return measured


def _figures(title: str, measured: Measured, stages: Sequence[str] = STAGES) -> str:
    """Return the figures of a run as text."""
    seconds = measured.samples[-1][0] - measured.samples[0][0]
    rows = [f"{title}: peak {measured.peak / MIB:.0f} MiB in {seconds:.0f} s, {len(measured.samples)} samples"]
    for stage in stages:
        event = measured.event("stage", stage)
        rows.append(
            f"  {stage:9s} peak {measured.stage_peak(stage) / MIB:5.0f} MiB sampled, {event['peak_rss'] / MIB:5.0f} own,"
            f" {event['projected'] / MIB:5.0f} projected; {event['done']} tasks, {event['wall_s']:.1f} s"
        )
    after = measured.between(measured.event("stage", "resample")["time"], float("inf"))
    return "\n".join([*rows, f"  export    peak {after / MIB:5.0f} MiB sampled"])


@pytest.mark.parametrize(("memory", "budget", "workers"), [("512MiB", 512, 1), ("1GiB", 1024, 2)])
def test_budget_is_kept(preset_c: str, tmp_path: Path, memory: str, budget: int, workers: int) -> None:
    """Ingest, resample and export of 24 x 2048 x 2048 stay within the budget, and each stage's projection is near."""
    measured = _image3(preset_c, tmp_path, memory, workers)
    print("\n" + _figures(f"24 x 2048², --memory {memory} --workers {workers}", measured))
    assert measured.peak <= budget * MIB
    for stage in STAGES:
        event = measured.event("stage", stage)
        assert abs(event["projected"] - event["peak_rss"]) <= 0.25 * event["peak_rss"], stage
        assert event["projected"] <= budget * MIB, stage
        # Its own count is every 50 ms, so it may miss what is held for a moment; it can't be more than what is sampled here.
        assert 0.85 * measured.stage_peak(stage) <= event["peak_rss"] <= 1.05 * measured.stage_peak(stage), stage


def test_smallest_budget_is_kept(preset_c: str, tmp_path: Path) -> None:
    """The budget that a refusal names carries the work, which does not take more than it."""
    command = [sys.executable, "-m", "streamimg3"]
    store = str(tmp_path / "x.zarr")
    subprocess.run([*command, "ingest", preset_c, "--store", store], check=True, capture_output=True)
    skips = [f"--steps.{step}.skip=true" for step in SKIP]
    line = [*command, "run", "image3", store, "--output-dir", str(tmp_path), "--workers", "1", *skips, "--memory"]
    refused = subprocess.run([*line, "64MiB"], capture_output=True, text=True, check=False)
    assert refused.returncode == 3, refused.stderr
    named = re.search(r"--memory (\d+)MiB", refused.stderr)
    assert named
    measured = run_measured([*line, f"{named[1]}MiB"], tmp_path / "log.jsonl")
    shutil.rmtree(store)
    assert measured.code == 0, measured.stderr
    print("\n" + _figures(f"24 x 2048², --memory {named[1]}MiB --workers 1", measured, ["resample"]))
    assert measured.peak <= int(named[1]) * MIB


def test_peak_does_not_depend_on_the_number_of_exposures(tmp_path: Path) -> None:
    """Four times the pointings at the same depth, so four times the exposures and mosaic, take the same memory."""
    peaks = {}
    for count, pointings in ((24, (2, 4)), (96, (4, 8))):
        folder = tmp_path / str(count)
        options = ("--preset", "a", "--size", 1024, "--dithers", 3, "--pointings", *pointings, "--detectors", 1)
        association = simulate(folder / "in", *options)
        assert len(list((folder / "in").glob("*_cal.fits"))) == count
        measured = _image3(association, folder, "2GiB", 1)
        shutil.rmtree(folder / "in")
        print("\n" + _figures(f"{count} x 1024², --memory 2GiB --workers 1", measured))
        peaks[count] = {stage: measured.stage_peak(stage) for stage in STAGES} | {"all": measured.peak}
    for what, peak in peaks[96].items():
        assert peak <= 1.10 * peaks[24][what], what


def test_the_first_run_of_an_installation_keeps_to_its_budget(tmp_path: Path) -> None:
    """Loops are compiled before anything else is held, once, and the user is told."""
    options = ("--preset", "a", "--size", 512, "--dithers", 2, "--detectors", 1)
    association = simulate(tmp_path / "in", *options)
    said = []
    for name in ("first", "second"):
        command = [
            "env", f"NUMBA_CACHE_DIR={tmp_path / 'cache'}", sys.executable, "-m", "streamimg3", "run", "image3", association,
            "--output-dir", str(tmp_path / name), "--memory", "768MiB", "--workers", "2",
        ]  # fmt: skip
        measured = run_measured(command, tmp_path / f"{name}.jsonl")
        assert measured.code == 0, measured.stderr
        assert measured.peak <= 768 * MIB
        print(
            f"\n{name} run: peak {measured.peak / MIB:.0f} MiB in {measured.samples[-1][0] - measured.samples[0][0]:.0f} s"
        )
        said.append("compiling" in measured.stderr)
    assert said == [True, False]
