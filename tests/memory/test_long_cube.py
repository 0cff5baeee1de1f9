"""An exposure of many integrations of a full detector is calibrated within the declared memory."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from astropy.io import fits

from streamimg3 import Observation
from streamimg3.formats.fits_stream import Image, primary, write_units
from streamimg3.geometry import Box
from tests.formats.reference_files import flat, kit
from tests.memory.family_rss import MIB, run_measured
from tests.pipelines.rates import CORON, POINTING

pytestmark = [
    pytest.mark.scale,
    pytest.mark.skipif(sys.platform != "linux", reason="resident memory is sampled through /proc"),
]

SIDE, COUNT = 2048, 200
PLANES = ("SCI", "ERR", "DQ", "VAR_POISSON", "VAR_RNOISE")
KEEP_SIZE, PUNCH_HOLE = 1, 2  # of <linux/falloc.h>


@dataclass
class _Sparse:
    """A file in which bytes that are 0 take no place on the disk."""

    file: BinaryIO

    def write(self, data: bytes | memoryview, /) -> int:
        if np.frombuffer(data, np.uint8).any():
            return self.file.write(data)
        self.file.truncate(self.file.seek(len(data), os.SEEK_CUR))
        return len(data)


def _noise(count: int) -> np.ndarray:
    """One image of noise, which no codec makes small; integration k is its rows from k on."""
    return np.random.default_rng(3).normal(1.0, 0.1, (SIDE + count, SIDE)).astype(np.float32)


def _write(path: Path, count: int) -> None:
    """Write count rates: noise in SCI; errors of 0, so that only SCI, and what is made of it, takes place on the disk."""
    noise = _noise(count)
    blank = {"f": np.zeros((SIDE, SIDE), np.float32), "u": np.full((SIDE, SIDE), 2**31, np.uint32)}  # stored as 0

    def rows(plane: str, lead: tuple[int, ...], y0: int, y1: int) -> np.ndarray:
        if plane == "SCI":
            return noise[lead[0] + y0 : lead[0] + y1].copy()
        return blank["u" if plane == "DQ" else "f"][y0:y1].copy()

    shape = (count, SIDE, SIDE)
    cards = tuple(fits.Card(k, v) for k, v in ({"BUNIT": "DN/s"} | POINTING).items())
    units = [
        Image(
            plane, shape, "uint32" if plane == "DQ" else "float32", lambda *where, name=plane: rows(name, *where),
            cards=cards if plane == "SCI" else (),
        )
        for plane in PLANES
    ]  # fmt: skip
    header = CORON.header((SIDE, SIDE), (1, 1), DATAMODL="CubeModel", EXPMID=60000.1, NINTS=count)
    with open(path, "wb") as file:
        write_units(_Sparse(file), [primary(header.cards), *units])


@contextmanager
def _vanishing(folder: Path) -> Iterator[None]:
    """Take what has been written to products off the disk while they are written: nothing here reads them."""
    done = threading.Event()

    def punch() -> None:
        while not done.wait(0.2):
            for path in folder.glob("*calints*"):
                with open(path, "rb+") as file:
                    size = ctypes.c_long(max(0, os.fstat(file.fileno()).st_size - 64 * MIB))
                    ctypes.CDLL(None).fallocate(file.fileno(), KEEP_SIZE | PUNCH_HOLE, ctypes.c_long(0), size)

    thread = threading.Thread(target=punch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_budget_is_kept(tmp_path: Path) -> None:
    """200 integrations of 2048 x 2048 (3.4 GB of SCI, 20 GB of products) and a background of 10, in 1 GiB."""
    name = "jw01_nrca2"
    _write(tmp_path / f"{name}_rateints.fits", COUNT)
    _write(tmp_path / "bkg_rateints.fits", 10)
    files = kit(tmp_path / "references", CORON, (SIDE, SIDE))
    flat(files["flat"], CORON, (SIDE, SIDE), {"ERR": np.zeros((SIDE, SIDE), np.float32)})
    out = tmp_path / "out"
    out.mkdir()
    command = [
        sys.executable, "-m", "streamimg3", "run", "image2", str(tmp_path / f"{name}_rateints.fits"),
        "--references", str(tmp_path / "references"), "--store", str(tmp_path / "x.zarr"), "--output-dir", str(out),
        "--set", f"bkg_subtract.bkg_list={tmp_path / 'bkg_rateints.fits'}", "--memory", "1GiB", "--workers", "2",
    ]  # fmt: skip
    with _vanishing(out):
        measured = run_measured(command, tmp_path / "log.jsonl")
    assert measured.code == 0, measured.stderr
    for stage in ("bkg_subtract", "ingest", "export"):
        event = measured.event("stage", stage)
        print(
            f"\n{COUNT} x {SIDE}²: {stage} {event['peak_rss'] / MIB:.0f} MiB, {event['projected'] / MIB:.0f} projected,"
            f" {measured.stage_peak(stage) / MIB:.0f} sampled; {event['wall_s']:.0f} s, {event['cpu_s']:.0f} of a processor"
        )
        assert event["peak_rss"] <= event["projected"] <= 1.25 * event["peak_rss"], stage
    print(f"in all {measured.peak / MIB:.0f} MiB")
    assert measured.peak <= 1024 * MIB
    (product,) = out.glob("*_calints.fits")
    assert product.stat().st_size > 6 * COUNT * SIDE**2 * 4
    (exposure,) = Observation.at(str(tmp_path / "x.zarr")).exposures()
    assert exposure.record.integrations == COUNT
    # far from bad pixels: what was written, less its background, over the flat field, times the factor of the file
    box = Box(1000, 0, 1003, 40)
    found = [exposure.read_block("sci", k, k + 1, box)[0] for k in (0, 199)]
    noise = _noise(COUNT)
    response = fits.getdata(files["flat"], "SCI")[box.slices]
    apart = (noise[1199:1202, :40] - noise[1000:1003, :40]) / response
    ratio = (found[1] - found[0]) / apart
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=2e-4)  # differences of numbers near 1 keep 4 digits
    for path in (product, tmp_path / f"{name}_rateints.fits"):
        path.unlink()
    shutil.rmtree(tmp_path / "x.zarr")
