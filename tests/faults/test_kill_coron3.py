"""coron3, killed at any moment: the same command again ends with the same numbers everywhere in the store."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import streamimg3
from tests.faults.conftest import kill_group, wait_for
from tests.faults.test_kill_image3 import _result as result
from tests.pipelines.coronagraphs import Files, Scene, make

pytestmark = pytest.mark.faults

MOMENTS = 6


def _start(files: Files, folder: Path, align_to: str) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "streamimg3", "run", "coron3", files.association, "--output-dir", str(folder), "--workers", "2",
        "--memory", "4GiB", "--set", f"align_refs.override_psfmask={files.weights}", "--set", "klip.tile=16",
        "--set", f"align_refs.align_to={align_to}", "--set", "klip.truncate=3,6",
    ]  # fmt: skip
    path = os.pathsep.join([str(Path(streamimg3.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with (folder / "log").open("ab") as said:
        return subprocess.Popen(command, stderr=said, start_new_session=True, env={**os.environ, "PYTHONPATH": path})


@pytest.fixture(scope="module", params=["first", "each"])
def undisturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Files, str, float, dict[str, str]]:
    """The exposures, what references are aligned to, the seconds that a run takes, and what it makes."""
    folder, kind = tmp_path_factory.mktemp("coron3"), str(request.param)
    files = make(folder / "in", Scene(shape=(96, 96), science=(3, 3), psf=(6, 6)))
    assert _start(files, folder / "warm", kind).wait(timeout=300) == 0
    begun = time.monotonic()
    assert _start(files, folder / "out", kind).wait(timeout=300) == 0
    seconds = time.monotonic() - begun
    found = result(folder / "out")
    assert found == result(folder / "warm")
    assert sum(v == "product" for v in found.values()) == 4 + 1 + 2 + 4 + 2 + 2 + 2
    return files, kind, seconds, found


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_killed(undisturbed: tuple[Files, str, float, dict[str, str]], tmp_path: Path, moment: int) -> None:
    """Driver and workers die at some moment, wherever the pipeline is."""
    files, kind, seconds, expected = undisturbed
    delay = seconds * (moment + random.Random(moment).random()) / MOMENTS
    process = _start(files, tmp_path / "run", kind)
    if wait_for(delay, process):
        kill_group(process)
    again = _start(files, tmp_path / "run", kind)
    assert again.wait(timeout=300) == 0, (tmp_path / "run" / "log").read_text()
    assert result(tmp_path / "run") == expected
