"""The memory of tso3 does not depend on the number of integrations."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.memory.family_rss import MIB, Measured, run_measured
from tests.pipelines.time_series import Scene, write_series

pytestmark = [
    pytest.mark.scale,
    pytest.mark.skipif(sys.platform != "linux", reason="resident memory is sampled through /proc"),
]

SHAPE = (64, 256)
SEGMENT = 1000  # integrations of a file


def _run(folder: Path, count: int, memory: str, spectra: bool, cubes: bool = True) -> Measured:
    """Simulate a series, run tso3 on it, remove it; without ``cubes`` no ``_crfints`` are written."""
    scene = Scene(spectra=spectra, shape=SHAPE, count=count, dimmed=(count // 3, count // 2))
    association = write_series(folder, scene, (SEGMENT,) * (count // SEGMENT))
    command = [
        sys.executable, "-m", "streamimg3", "run", "tso3", association, "--store", str(folder / "x.zarr"), "--output-dir",
        str(folder / "out"), "--memory", memory, "--workers", "1",
    ]  # fmt: skip
    command += ["--set", f"extract_1d.override_extract1d={folder / 'extract1d.json'}"] if spectra else []
    command += [] if cubes else ["--set", "outlier_detection.save_results=false"]
    measured = run_measured(command, folder / "log.jsonl")
    shutil.rmtree(folder)
    assert measured.code == 0, measured.stderr
    print(f"\n{count} x {SHAPE[0]} x {SHAPE[1]}, --memory {memory}: peak {measured.peak / MIB:.0f} MiB")
    for event in (e for e in measured.events if e["event"] == "stage"):
        own, projected = event["peak_rss"] / MIB, event["projected"] / MIB
        print(f"    {event['stage']:<28} {own:6.0f} MiB, {projected:.0f} projected, {event['wall_s']:.1f} s")
    return measured


@pytest.mark.parametrize("spectra", [True, False])
def test_two_thousand_integrations(tmp_path: Path, spectra: bool) -> None:
    """2,000 integrations (SCI 125 MiB, all planes 750 MiB) in 300 MiB."""
    measured = _run(tmp_path / "few", 2000, "340MiB", spectra)
    assert measured.peak <= 300 * MIB


def test_twenty_thousand_integrations(tmp_path: Path) -> None:
    """Ten times as many take the same memory: 8 GB of planes within 512 MiB (without 8 GB more for ``_crfints``)."""
    few = _run(tmp_path / "few", 2000, "512MiB", spectra=True, cubes=False).peak
    many = _run(tmp_path / "many", 20000, "512MiB", spectra=True, cubes=False).peak
    assert few <= 512 * MIB and many <= 512 * MIB
    assert many <= 1.10 * few
