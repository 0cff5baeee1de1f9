"""Servers that fail in every way: the run ends with the bytes of an undisturbed one, or in one line with nothing half-done."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest

from streamimg3 import Observation, Session, run
from tests.s3.arrays import sums_of
from tests.s3.conftest import BUCKET, Proxy, Server

pytestmark = [pytest.mark.s3, pytest.mark.faults]

TILES = {step: {"tile": 64} for step in ("resample", "outlier_detection")}
WORDS = [w for step in TILES for w in ("--set", f"{step}.tile=64")]


@pytest.fixture(scope="module")
def expected(field: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """SHA-256 of every array of a serial run on local disk."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return sums_of(run("image3", str(field), session=Session(output_dir=str(folder), workers=1), **TILES))


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """Stands before the server; one request in twenty fails, waits, is never answered, or is cut off."""
    made = Proxy(server.ports["s3.port"], "--faults", 0.05, "--seed", 7, "--pause", 0.5)
    yield made
    made.close()


def _command(association: str, name: str, *more: object) -> list[str]:
    where = ["--store", f"s3://{BUCKET}/{name}.zarr", "--output-dir", f"s3://{BUCKET}/{name}"]
    return [sys.executable, "-m", "streamimg3", "run", "image3", association, *where, *WORDS, *map(str, more)]


def _sums(server: Server, name: str) -> dict[str, str]:
    return sums_of(Observation.at(f"s3://{BUCKET}/{name}.zarr", server.options))


def test_one_request_in_twenty_goes_wrong(
    server: Server, proxy: Proxy, association: str, expected: dict[str, str]
) -> None:
    """Errors, slow answers, no answers and cut ones, wherever they hit: nobody notices but by the time it takes."""
    line = _command(association, "five", "--workers", 2, "--storage-option", "timeout=2")
    environment = server.environment_at(proxy.endpoint)
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=400, check=False)
    counts = proxy.counts()
    print(counts)
    assert done.returncode == 0, done.stderr
    assert set(counts["faults"]) >= {"error", "slow", "hang", "cut"}  # type: ignore[call-overload]
    assert _sums(server, "five") == expected
    assert len(server.keys("five/")) == 4 + 3 + 3


def test_the_server_is_killed_and_comes_back(
    server: Server, association: str, expected: dict[str, str], tmp_path: Path
) -> None:
    """Twice, for a second each: requests are tried again until it answers."""
    log = tmp_path / "log.jsonl"
    with open(tmp_path / "said", "wb") as said:
        process = subprocess.Popen(
            [*_command(association, "back", "--workers", 2), "--log-json", str(log)],
            env=server.environment,
            stderr=said,
        )
        for event in ('"event": "task", "stage": "ingest"', '"event": "task", "stage": "resample"'):
            while not (log.exists() and event in log.read_text()):
                assert process.poll() is None, (tmp_path / "said").read_text()
                time.sleep(0.01)
            server.kill()
            time.sleep(1.0)
            server.start()
        assert process.wait(timeout=300) == 0, (tmp_path / "said").read_text()
    assert _sums(server, "back") == expected


def test_a_flipped_byte_is_named(server: Server, association: str) -> None:
    """A run that meets it says which chunk of which object, and publishes nothing."""
    line = _command(association, "flip", "--workers", 1)
    done = subprocess.run(
        [*line, "--until", "skymatch"], env=server.environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    (key,) = server.keys("flip.zarr/exposures/192x192/sci/c/2/")
    data = bytearray(bytes(obstore.get(server.bucket(), key).bytes()))
    data[len(data) // 2] ^= 4
    obstore.put(server.bucket(), key, bytes(data))
    done = subprocess.run(line, env=server.environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert re.search(rf"^streamimg3: cannot read s3://{BUCKET}/{key}, chunk [\d/]+ of it: it is damaged", last), last
    assert "Traceback" not in done.stderr
    assert [k for k in server.keys("flip/") if k.endswith("_i2d.fits")] == []
    assert "flip.zarr/documents/resample.json" not in server.keys("flip.zarr/documents")


@pytest.fixture
def cutting(server: Server) -> Iterator[Proxy]:
    """Stands before the server, and will break off what goes through it."""
    made = Proxy(server.ports["s3.port"], "--kinds", "cut")
    yield made
    made.close()


def test_uploads_that_are_cut_off(server: Server, cutting: Proxy, field: Path, tmp_path: Path) -> None:
    """Every upload breaks off in the middle: one line, nothing published; afterwards the products are whole."""
    proxy = cutting
    log = tmp_path / "log.jsonl"
    line = [
        sys.executable, "-m", "streamimg3", "run", "image3", str(field), "--store", str(tmp_path / "x.zarr"),
        "--output-dir", f"s3://{BUCKET}/cut", *WORDS, "--workers", "1", "--log-json", str(log),
        "--storage-option", "timeout=2", "--storage-option", "retries=2",
    ]  # fmt: skip
    with open(tmp_path / "said", "w+") as said:
        process = subprocess.Popen(line, env=server.environment_at(proxy.endpoint), stderr=said)
        while not (log.exists() and '"stage": "resample", "done"' in log.read_text()):
            assert process.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.01)
        proxy.disturb(1.0)
        code = process.wait(timeout=300)
        said.seek(0)
        text = said.read()
    assert code == 1, text
    assert text.splitlines()[-1].startswith(f"streamimg3: cannot write s3://{BUCKET}/cut/"), text
    assert server.keys("cut/") == []
    proxy.disturb(0.0)
    done = subprocess.run(line, env=server.environment_at(proxy.endpoint), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resample: unchanged, kept" in done.stderr and len(server.keys("cut/")) == 4 + 3 + 3


def test_two_runs_on_one_store(server: Server, association: str, expected: dict[str, str]) -> None:
    """Started together, one works and the other is told who has the store; the result is that of one run."""
    results: list[subprocess.CompletedProcess[str]] = []

    def start() -> None:
        line = _command(association, "twice", "--workers", 1)
        results.append(
            subprocess.run(line, env=server.environment, capture_output=True, text=True, timeout=300, check=False)
        )

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused, done = sorted(results, key=lambda r: -r.returncode)
    assert done.returncode == 0, done.stderr
    assert refused.returncode == 1, refused.stderr
    last = refused.stderr.splitlines()[-1]
    assert "another run" in last and "twice.zarr" in last, last
    assert _sums(server, "twice") == expected
    assert server.keys("twice.zarr/lease") == []
