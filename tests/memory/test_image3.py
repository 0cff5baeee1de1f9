"""All of image3 within its declared memory, however many exposures there are."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.memory.conftest import simulate
from tests.memory.family_rss import MIB, Measured, run_measured

pytestmark = [
    pytest.mark.scale,
    pytest.mark.skipif(sys.platform != "linux", reason="resident memory is sampled through /proc"),
]


def _image3(association: str, folder: Path, memory: str, workers: int) -> Measured:
    """Run everything from files to products; store and products are removed afterwards."""
    command = [
        sys.executable, "-m", "streamimg3", "run", "image3", association, "--output-dir", str(folder / "out"),
        "--memory", memory, "--workers", str(workers),
    ]  # fmt: skip
    measured = run_measured(command, folder / "log.jsonl")
    assert measured.code == 0, measured.stderr
    for product in ("crf.fits", "i2d.fits", "segm.fits", "cat.ecsv"):
        assert list((folder / "out").glob(f"*_{product}"))
    shutil.rmtree(folder / "out")
    return measured


def _figures(title: str, measured: Measured) -> str:
    """Return the figures of a run as text."""
    rows = [f"{title}: peak {measured.peak / MIB:.0f} MiB"]
    for event in (e for e in measured.events if e["event"] == "stage"):
        rows.append(
            f"  {event['stage']:28s} peak {event['peak_rss'] / MIB:5.0f} MiB, projected {event['projected'] / MIB:5.0f};"
            f" {event['done']} tasks, {event['wall_s']:.1f} s"
        )
    return "\n".join(rows)


def test_budget_is_kept(preset_c: str, tmp_path: Path) -> None:
    """24 exposures of 2048 x 2048 pixels, four detectors, with 1 GiB for driver and two workers."""
    measured = _image3(preset_c, tmp_path, "1GiB", 2)
    print("\n" + _figures("24 x 2048², --memory 1GiB --workers 2", measured))
    assert measured.peak <= 1024 * MIB


def test_peak_does_not_depend_on_the_number_of_exposures(tmp_path: Path) -> None:
    """Four times the groups over four times the area take the same memory."""
    peaks = []
    for count, pointings in ((24, (1, 2)), (96, (2, 4))):
        folder = tmp_path / str(count)
        options = ("--preset", "a", "--size", 512, "--dithers", 3, "--pointings", *pointings, "--detectors", 4)
        association = simulate(folder / "in", *options)
        assert len(list((folder / "in").glob("*_cal.fits"))) == count
        measured = _image3(association, folder, "1GiB", 2)
        shutil.rmtree(folder / "in")
        print("\n" + _figures(f"{count} x 512², --memory 1GiB --workers 2", measured))
        peaks.append(measured.peak)
    assert peaks[1] <= 1.10 * peaks[0]
