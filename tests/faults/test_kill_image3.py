"""All of image3, killed at any moment: the same command again ends with the same numbers everywhere in the store."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import streamimg3
from streamimg3 import Observation
from streamimg3.formats.simulate import Field, simulate
from tests.faults.conftest import kill_group, wait_for

pytestmark = pytest.mark.faults

MOMENTS = 6
# What documents say of the run itself rather than of its result
_PASSING = ("cost", "made", "meta")


def _start(association: Path, folder: Path, *more: object) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "streamimg3", "run", "image3", str(association), "--output-dir", str(folder), "--workers", "2",
        "--memory", "4GiB", "--set", "resample.tile=256", "--set", "outlier_detection.tile=256",
        *map(str, more),
    ]  # fmt: skip
    path = os.pathsep.join([str(Path(streamimg3.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with (folder / "log").open("ab") as said:
        return subprocess.Popen(command, stderr=said, start_new_session=True, env={**os.environ, "PYTHONPATH": path})


def _result(folder: Path) -> dict[str, str]:
    """SHA-256 of every array of the store, the documents without what passes, and which products there are."""
    (store,) = folder.glob("*.zarr")
    obs = Observation.at(str(store))
    sums = {}
    for node in sorted(store.rglob("zarr.json")):
        path = str(node.parent.relative_to(store))
        if json.loads(node.read_text())["node_type"] == "array":
            sums[path] = hashlib.sha256(obs.array(path)[...].tobytes()).hexdigest()
    for file in sorted((store / "documents").iterdir()):
        tree = {k: v for k, v in json.loads(file.read_text()).items() if k not in _PASSING}
        if file.name == "provenance.json":  # the rest of it tells where and when the run was
            tree = tree["results"]
        sums[file.name] = json.dumps(tree, sort_keys=True)
    assert not list(folder.rglob("*.partial"))
    return sums | {p.name: "product" for p in folder.iterdir() if p.suffix in (".fits", ".ecsv")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float, dict[str, str]]:
    """The association, the seconds that a run takes, and what it makes."""
    folder = tmp_path_factory.mktemp("image3")
    association = simulate(folder / "in", Field(shape=(512, 512), dithers=4))
    assert _start(association, folder / "warm").wait(timeout=300) == 0
    begun = time.monotonic()
    assert _start(association, folder / "out").wait(timeout=300) == 0
    seconds = time.monotonic() - begun
    result = _result(folder / "out")
    assert result == _result(folder / "warm")
    assert sum(v == "product" for v in result.values()) == 4 + 3
    return association, seconds, result


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_killed(undisturbed: tuple[Path, float, dict[str, str]], tmp_path: Path, moment: int) -> None:
    """Driver and workers die at some moment, wherever the pipeline is."""
    association, seconds, expected = undisturbed
    delay = seconds * (moment + random.Random(moment).random()) / MOMENTS
    process = _start(association, tmp_path / "run")
    if wait_for(delay, process):
        kill_group(process)
    again = _start(association, tmp_path / "run")
    assert again.wait(timeout=300) == 0, (tmp_path / "run" / "log").read_text()
    assert _result(tmp_path / "run") == expected


def test_killed_while_products_are_written(undisturbed: tuple[Path, float, dict[str, str]], tmp_path: Path) -> None:
    """What was written whole by then is not written again."""
    association, _, expected = undisturbed
    folder = tmp_path / "run"
    process = _start(association, folder)
    end = time.monotonic() + 120.0
    while not (noted := [p for p in folder.glob("*.zarr/receipts/export/*/*") if p.stat().st_size]):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.002)
    kill_group(process)
    before = {
        name: (folder / name).stat().st_mtime_ns for p in noted for name in [Path(json.loads(p.read_text())[0][1]).name]
    }
    assert _start(association, folder).wait(timeout=300) == 0
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    assert _result(folder) == expected
