"""image2 on the command line: references from a folder, one line for what is missing, a plan, a kill and a resume."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

import streamimg3
from streamimg3 import Observation
from tests.conftest import command_line
from tests.pipelines.rates import Case, Rate, make


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Four products, two backgrounds."""
    sky = (Rate(11, stars=False), Rate(12, stars=False))
    return make(tmp_path_factory.mktemp("rates"), {f"jw0{n}_nrca2": (Rate(n), sky) for n in range(1, 5)})


def arguments(case: Case, folder: Path) -> list[str]:
    """What a user would type."""
    return ["run", "image2", case.association, "--references", str(case.folder / "references"), "--offline",
            "--store", str(folder / "x.zarr"), "--output-dir", str(folder), "--workers", "2"]  # fmt: skip


def sums(folder: Path) -> dict[str, str]:
    """SHA-256 of the pixels of all products."""
    found = {}
    for path in sorted(folder.glob("*.fits")):
        with fits.open(path) as hdus:
            pixels = [np.ascontiguousarray(h.data).tobytes() for h in hdus if h.is_image and h.data is not None]
        found[path.name] = hashlib.sha256(b"".join(pixels)).hexdigest()
    return found


def test_a_folder_of_references_serves_all(case: Case, tmp_path: Path) -> None:
    said = command_line(*arguments(case, tmp_path))
    assert said.returncode == 0, said.stderr
    assert f"reference flat: {case.references['flat']}" in said.stderr
    assert len(list(tmp_path.glob("*_cal.fits"))) == len(list(tmp_path.glob("*_i2d.fits"))) == 4
    shown = command_line("info", str(tmp_path / "x.zarr"))
    assert shown.returncode == 0 and "exposures: 4" in shown.stdout and "rectified/jw01_nrca2" in shown.stdout
    (tmp_path / "again").mkdir()
    made = command_line("export", str(tmp_path / "x.zarr"), "--output-dir", str(tmp_path / "again"))
    assert made.returncode == 0, made.stderr
    assert sums(tmp_path / "again") == sums(tmp_path)


def test_workers_make_the_wcs_of_many(tmp_path: Path) -> None:
    """From 8 exposures on; the same as one process makes."""
    case = make(tmp_path / "rates", {f"jw{n:02d}_nrca2": (Rate(n), ()) for n in range(1, 10)})
    found = {}
    for workers in ("1", "2"):
        folder = tmp_path / workers
        folder.mkdir()
        said = command_line(*arguments(case, folder)[:-1], workers)
        assert said.returncode == 0, said.stderr
        assert ("assign_wcs: 3 tasks" in said.stderr) == (workers == "2")
        records = Observation.at(str(folder / "x.zarr")).records()
        found[workers] = sums(folder), [(r.name, r.s_region, r.checksums["sci"]) for r in records]
        regions = [fits.getheader(path, "SCI")["S_REGION"] for path in sorted(folder.glob("*_cal.fits"))]
        assert regions == [r.s_region for r in records]
    assert found["1"] == found["2"] and len(found["1"][0]) == 18


def test_without_references_one_line_says_what_to_give(case: Case, tmp_path: Path) -> None:
    said = command_line("run", "calwebb_image2", case.association, "--output-dir", tmp_path)
    assert said.returncode == 2
    assert said.stderr.splitlines()[-1].startswith("streamimg3: ") and "--references DIR" in said.stderr
    assert not list(tmp_path.glob("*.fits"))


def test_a_plan_for_machines(case: Case, tmp_path: Path) -> None:
    said = command_line("plan", *arguments(case, tmp_path)[1:], "--json")
    assert said.returncode == 0, said.stderr
    steps = {row["step"]: row for row in json.loads(said.stdout)}
    assert list(steps) == ["bkg_subtract", "calibration", "resample"]
    assert steps["calibration"]["tasks"] == 4 and steps["resample"]["tasks"] == 4


def test_a_killed_run_goes_on(case: Case, tmp_path: Path) -> None:
    """kill -9 once the first exposure is in; the same products in the end."""
    whole = tmp_path / "whole"
    whole.mkdir()
    assert command_line(*arguments(case, whole)).returncode == 0
    folder = tmp_path / "killed"
    folder.mkdir()
    path = os.pathsep.join([str(Path(streamimg3.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "streamimg3", *arguments(case, folder)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
                          stderr=subprocess.DEVNULL) as process:  # fmt: skip
        until = time.monotonic() + 60
        while not list((folder / "x.zarr").glob("receipts/ingest/*/m*")) and time.monotonic() < until:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert command_line(*arguments(case, folder)).returncode == 0
    assert sums(folder) == sums(whole)
