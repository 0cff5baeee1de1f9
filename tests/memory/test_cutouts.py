"""Cut-outs by the hundred thousand within the declared memory, each the mosaic's own pixels."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.scale,
    pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc"),
]
BENCH = Path(__file__).parents[2] / "scripts" / "bench_cutouts.py"


def test_memory_and_pixels(preset_c: str, tmp_path: Path) -> None:
    """10⁵ stamps of 64² out of 38 Mpixel with 512 MiB, as an array and as files."""
    command = [sys.executable, "-m", "streamimg3", "run", "image3", preset_c, "--output-dir", str(tmp_path / "out")]
    skipped = ("tweakreg", "skymatch", "outlier_detection", "source_catalog")
    subprocess.run([*command, *(a for s in skipped for a in ("--set", f"{s}.skip=true"))], check=True)
    (store,) = (tmp_path / "out").glob("*.zarr")
    done = subprocess.run(
        [sys.executable, BENCH, store, "--work", tmp_path / "work"], capture_output=True, text=True, check=True
    )
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "work")
    print("\n" + done.stdout)
    array, files = (json.loads(line) for line in done.stdout.splitlines())
    assert array["peak_mib"] <= 512 and files["peak_mib"] <= 512
    assert array["different"] == 0 and files["files"] == 100_000 and files["wcs_error_deg"] <= 1e-11
    assert array["per_cpu_s"] >= 5000
