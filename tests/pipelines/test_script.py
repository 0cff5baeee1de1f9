"""The Python call as users write it first: at the top of a script, without a guard, with workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import streamimg3
from tests.conftest import SKIP

SCRIPT = """
import sys
import streamimg3
print("the script runs")
session = streamimg3.Session(output_dir=sys.argv[2], workers=2)
obs = streamimg3.run("image3", sys.argv[1], session=session, resample={{"tile": 64}}, **{skip})
print("made", obs.xarray() if hasattr(obs, "xarray") else obs.url)
"""


def test_plain_script_with_workers(field: Path, tmp_path: Path) -> None:
    """It runs once, not again in every worker, and makes the product."""
    script = tmp_path / "reduce.py"
    script.write_text(SCRIPT.format(skip=SKIP))
    path = os.pathsep.join([str(Path(streamimg3.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(script), str(field), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the script runs") == 1
    assert "made" in done.stdout
    assert len(list((tmp_path / "out").glob("*_i2d.fits"))) == 1
