"""Cubes come in within the declared memory, however many integrations they have."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from streamimg3 import Observation
from streamimg3.formats.fits_stream import Image, primary, write_units
from streamimg3.geometry import Box
from tests.formats.cubes import TAN
from tests.memory.family_rss import MIB, Measured, run_measured

pytestmark = [
    pytest.mark.scale,
    pytest.mark.skipif(sys.platform != "linux", reason="resident memory is sampled through /proc"),
]

SIDE = 1024


def _pixels(count: int, plane: str) -> np.ndarray:
    """One image of noise, which no codec makes small; it is moved down by a row from integration to integration."""
    noise = np.random.default_rng(len(plane)).normal(1.0, 0.1, (SIDE + count, SIDE)).astype(np.float32)
    return noise.view(np.uint32) if plane == "dq" else noise


def _write(path: Path, count: int) -> None:
    """Write a cube with SCI, ERR, DQ and VAR_RNOISE, band by band."""
    cards = {"TELESCOP": "JWST", "DATAMODL": "CubeModel", "EXP_TYPE": "NRC_TSIMAGE", "NINTS": count}
    wcs = tuple(fits.Card(k, v) for k, v in ({"BUNIT": "MJy/sr"} | TAN).items())
    units: list[Image] = []
    for plane in ("sci", "err", "dq", "var_rnoise"):
        noise = _pixels(count, plane)

        def read(lead: tuple[int, ...], y0: int, y1: int, noise: np.ndarray = noise) -> np.ndarray:
            return noise[lead[0] + y0 : lead[0] + y1].copy()

        shape = (count, SIDE, SIDE)
        units.append(Image(plane.upper(), shape, str(noise.dtype), read, cards=wcs if plane == "sci" else ()))
    with open(path, "wb") as sink:
        write_units(sink, [primary([fits.Card(k, v) for k, v in cards.items()]), *units])


def _ingest(counts: tuple[int, ...], folder: Path, memory: str, workers: int) -> Measured:
    """Bring files with so many integrations into a store; the files are removed."""
    (folder / "in").mkdir(parents=True)
    for number, count in enumerate(counts):
        _write(folder / "in" / f"jw{number}_calints.fits", count)
    command = [
        sys.executable, "-m", "streamimg3", "ingest", str(folder / "in"), "--store", str(folder / "x.zarr"),
        "--memory", memory, "--workers", str(workers),
    ]  # fmt: skip
    measured = run_measured(command, folder / "log.jsonl")
    shutil.rmtree(folder / "in")
    assert measured.code == 0, measured.stderr
    event = measured.event("stage", "ingest")
    print(
        f"\n{sum(counts)} x {SIDE}², --memory {memory} --workers {workers}: peak {measured.peak / MIB:.0f} MiB, ingest"
        f" {measured.stage_peak('ingest') / MIB:.0f} sampled, {event['peak_rss'] / MIB:.0f} own,"
        f" {event['projected'] / MIB:.0f} projected; {event['done']} tasks, {event['wall_s']:.1f} s"
    )
    return measured


@pytest.mark.parametrize(("memory", "budget", "workers"), [("512MiB", 512, 1), ("1GiB", 1024, 2)])
def test_budget_is_kept(tmp_path: Path, memory: str, budget: int, workers: int) -> None:
    """200 integrations of 1024 x 1024 in two files, 3.1 GiB; a shard holds the end of one and the beginning of the other."""
    measured = _ingest((110, 90), tmp_path, memory, workers)
    assert measured.peak <= budget * MIB
    event = measured.event("stage", "ingest")
    assert event["peak_rss"] <= event["projected"] <= 1.25 * event["peak_rss"]
    one, two = Observation.at(str(tmp_path / "x.zarr")).exposures()
    assert one.record.integrations + two.record.integrations == 200
    for place in (0, 1, 89):
        wanted = _pixels(90, "dq")[place + 1000 : place + 1003, :40]
        np.testing.assert_array_equal(two.read_block("dq", place, place + 1, Box(1000, 0, 1003, 40))[0], wanted)


def test_peak_does_not_depend_on_the_number_of_integrations(tmp_path: Path) -> None:
    """Eight times as many take the same memory."""
    few = _ingest((12,), tmp_path / "few", "2GiB", 1).stage_peak("ingest")
    many = _ingest((96,), tmp_path / "many", "2GiB", 1).stage_peak("ingest")
    assert many <= 1.10 * few
