"""All of tso3, killed at any moment: the same command again ends with the same numbers everywhere in the store."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import streamimg3
from streamimg3 import Observation
from tests.faults.conftest import kill_group, wait_for
from tests.pipelines.time_series import Scene, write_series

pytestmark = pytest.mark.faults

MOMENTS = 5
_PASSING = ("cost", "made")  # what documents say of the run itself rather than of its result


def _start(folder: Path, inputs: Path, spectra: bool) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "streamimg3", "run", "tso3", str(inputs / "series_tso3_asn.json"), "--output-dir", str(folder),
        "--workers", "2", "--memory", "4GiB",
    ]  # fmt: skip
    if spectra:
        command += ["--set", f"extract_1d.override_extract1d={inputs / 'extract1d.json'}"]
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


@pytest.mark.parametrize("spectra", [False, True])
def test_killed(tmp_path: Path, spectra: bool) -> None:
    """Driver and workers die at some moment, wherever the pipeline is; then again, and it ends well."""
    inputs = tmp_path / "in"
    write_series(inputs, Scene(spectra=spectra, shape=(64, 128), count=700, dimmed=(300, 400)), (400, 300))
    assert _start(tmp_path / "warm", inputs, spectra).wait(timeout=300) == 0
    begun = time.monotonic()
    assert _start(tmp_path / "out", inputs, spectra).wait(timeout=300) == 0
    seconds, expected = time.monotonic() - begun, _result(tmp_path / "out")
    assert expected == _result(tmp_path / "warm")
    for moment in range(MOMENTS):
        folder = tmp_path / f"run{moment}"
        delay = seconds * (moment + random.Random(moment).random()) / MOMENTS
        while not wait_for(delay, process := _start(folder, inputs, spectra)):
            shutil.rmtree(folder)
            delay *= 0.7  # it was done before: the machine has more time for it than when it was measured
        kill_group(process)
        again = _start(folder, inputs, spectra)
        assert again.wait(timeout=300) == 0, (folder / "log").read_text()
        assert _result(folder) == expected
