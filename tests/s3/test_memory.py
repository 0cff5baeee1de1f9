"""Declared memory is kept when everything lies on S3: buffers of requests and uploads count too."""

from __future__ import annotations

import sys
from pathlib import Path

import obstore
import pytest

from tests.memory.conftest import simulate
from tests.memory.family_rss import MIB, run_measured
from tests.s3.conftest import BUCKET, Server

pytestmark = [
    pytest.mark.s3,
    pytest.mark.skipif(sys.platform != "linux", reason="resident memory is sampled through /proc"),
]


@pytest.fixture(scope="module")
def association(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four exposures of 1024 x 1024, 28 MB each."""
    folder = tmp_path_factory.mktemp("thousand")
    path = Path(simulate(folder, "--preset", "a", "--size", 1024))
    for file in [path, *path.parent.glob("*_cal.fits")]:
        obstore.put(server.bucket(), f"large/{file.name}", file)
    return f"s3://{BUCKET}/large/{path.name}"


@pytest.mark.parametrize(("budget", "workers"), [(450, 1), (900, 2)])
def test_budget_is_kept(
    server: Server, association: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int, workers: int
) -> None:
    """All of image3, from S3 to S3, in one process and in three."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    command = [
        sys.executable, "-m", "streamimg3", "run", "image3", association, "--store", f"s3://{BUCKET}/mem{workers}.zarr",
        "--output-dir", f"s3://{BUCKET}/mem{workers}", "--memory", f"{budget}MiB", "--workers", str(workers),
    ]  # fmt: skip
    measured = run_measured(command, tmp_path / "log.jsonl")
    assert measured.code == 0, measured.stderr
    stages = [(e["stage"], e["projected"] / MIB, e["peak_rss"] / MIB) for e in measured.events if e["event"] == "stage"]
    print(f"\n--memory {budget}MiB --workers {workers}: peak {measured.peak / MIB:.0f} MiB")
    print(
        "\n".join(
            f"  {name:28s} {projected:5.0f} projected {peak:5.0f} own" for name, projected, peak in stages if projected
        )
    )
    assert measured.peak <= budget * MIB
    assert (
        len(server.keys(f"mem{workers}/")) == 4 + 3 + 3
    )  # of each exposure; of the mosaic; report, its numbers, the run
