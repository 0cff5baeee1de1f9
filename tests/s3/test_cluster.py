"""From S3 to S3 on a Dask cluster: the bytes of a serial run on local disk, through the death of workers and driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import obstore
import pytest

from streamimg3 import Observation, Session, run
from streamimg3.formats.simulate import Field, simulate
from tests.memory.family_rss import MIB, family
from tests.s3.arrays import pixels_of, sums_of
from tests.s3.conftest import BUCKET, Cluster, Server

pytestmark = pytest.mark.s3

TILES = {step: {"tile": 256} for step in ("resample", "outlier_detection")}
WORDS = [w for step in TILES for w in ("--set", f"{step}.tile=256")]
LIMIT = 900  # MiB, of each worker


@dataclass(frozen=True)
class Expected:
    """A serial run on local disk: its input, the SHA-256 of every array, and of the pixels of every product."""

    association: Path
    arrays: dict[str, str]
    products: dict[str, str]


@pytest.fixture(scope="module")
def expected(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """Preset a; it lies on S3 too."""
    folder = tmp_path_factory.mktemp("preset_a")
    association = simulate(folder / "in", Field(shape=(512, 512), dithers=4))
    obs = run("image3", str(association), session=Session(output_dir=str(folder / "out"), workers=1), **TILES)
    for path in [association, *association.parent.glob("*_cal.fits")]:
        obstore.put(server.bucket(), f"a/{path.name}", path)
    products = {p.name: pixels_of(p.read_bytes()) for p in (folder / "out").glob("*.fits")}
    assert len(products) == 4 + 2
    return Expected(association, sums_of(obs), products)


@pytest.fixture(scope="module")
def cluster(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler and two worker processes."""
    made = Cluster(tmp_path_factory.mktemp("dask"), server.environment, workers=2, memory=f"{LIMIT}MiB")
    yield made
    made.close()


def _command(expected: Expected, cluster: Cluster, name: str) -> list[str]:
    return [
        sys.executable, "-m", "streamimg3", "run", "image3", f"s3://{BUCKET}/a/{expected.association.name}",
        "--store", f"s3://{BUCKET}/{name}.zarr", "--output-dir", f"s3://{BUCKET}/{name}",
        "--cluster", str(cluster.file), *WORDS,
    ]  # fmt: skip


def _check(server: Server, expected: Expected, name: str) -> None:
    """Every array and the pixels of every product are those expected, and nothing else was published."""
    assert sums_of(Observation.at(f"s3://{BUCKET}/{name}.zarr", server.options)) == expected.arrays
    names = [key.rsplit("/", 1)[1] for key in server.keys(f"{name}/")]
    made = {
        n: pixels_of(bytes(obstore.get(server.bucket(), f"{name}/{n}").bytes())) for n in names if n.endswith("fits")
    }
    assert made == expected.products


def test_same_bytes_within_the_workers_limits(
    server: Server, expected: Expected, cluster: Cluster, tmp_path: Path
) -> None:
    """Every array and product; workers stay below what Dask would hold them up at, the driver below 300 MiB."""
    workers, peaks, driver = cluster.pids(), dict[int, int](), 0
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen(_command(expected, cluster, "dask"), env=server.environment, stderr=log)
        while process.poll() is None:
            peaks = {pid: max(peaks.get(pid, 0), _resident(pid)) for pid in workers}
            driver = max(driver, sum(_resident(int(pid)) for pid in family(process.pid)))
            time.sleep(0.02)
        log.seek(0)
        said = log.read()
    assert process.returncode == 0, said
    print(f"\nworkers {[round(p / MIB) for p in peaks.values()]} MiB of {LIMIT} MiB, driver {driver / MIB:.0f} MiB")
    assert f"cluster: 2 workers at tcp://127.0.0.1:{cluster.address.rsplit(':', 1)[1]}, memory of each" in said
    assert cluster.pids() == workers, "no worker was replaced"
    assert max(peaks.values()) <= 0.8 * LIMIT * MIB
    assert driver <= 300 * MIB
    _check(server, expected, "dask")


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _wait_for(log: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    while not (log.exists() and text in log.read_text()):
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)


def test_workers_and_driver_die(server: Server, expected: Expected, cluster: Cluster, tmp_path: Path) -> None:
    """A worker is killed among the stars, the driver among the tiles; the same command again ends as if nothing had been."""
    log = tmp_path / "log.jsonl"
    command = [*_command(expected, cluster, "dies"), "--log-json", str(log)]
    with open(tmp_path / "said", "wb") as said:
        process = subprocess.Popen(command, env=server.environment, stderr=said)
        _wait_for(log, '"event": "task", "stage": "stars"', process)
        cluster.kill_worker(cluster.pids()[0])
        _wait_for(log, '"event": "task", "stage": "resample"', process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    keys = server.keys("dies.zarr/receipts/resample")
    done = subprocess.run(command, env=server.environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "stars: unchanged" in done.stderr or "tweakreg: unchanged, kept" in done.stderr
    finished = [key for key in keys if not key.endswith("_created")]
    assert len(finished) >= 1
    _check(server, expected, "dies")


def test_what_the_cluster_is_not(server: Server, expected: Expected, cluster: Cluster, tmp_path: Path) -> None:
    """Nobody at the address, and a store that only this process sees, are one line each."""
    line = _command(expected, cluster, "none")
    where = line.index("--cluster") + 1
    nobody = [*line[:where], "tcp://127.0.0.1:9", *line[where + 1 :]]
    done = subprocess.run(nobody, env=server.environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "no Dask scheduler answers there" in done.stderr.splitlines()[-1], done.stderr
    local = [*line, "--store", "memory://x"]
    done = subprocess.run(local, env=server.environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "memory:// lives in one process" in done.stderr.splitlines()[-1], done.stderr
    assert server.keys("none") == []
