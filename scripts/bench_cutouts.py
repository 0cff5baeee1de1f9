"""Cut-outs by the hundred thousand: processor time, memory, and whether each is the mosaic's own pixels.

    python scripts/bench_cutouts.py STORE [--count 100000] [--size 64] [--work FOLDER]

Random positions over the mosaic of STORE are cut out into one array and into one FITS file each, in processes of their own;
then every stamp of the array, and some of the files, are compared with the mosaic and with astropy's WCS of its keywords.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from streamimg3 import Observation
from streamimg3.geometry import Box


def positions(obs: Observation, count: int, table: Path) -> None:
    """Write a catalogue of random positions, all of whose stamps have pixels of the mosaic."""
    from streamimg3.sky.wcs import Wcs
    from streamimg3.store.documents import ResampleDocument

    document = obs.document(ResampleDocument)
    assert document is not None
    rng = np.random.default_rng(11)
    y, x = (rng.uniform(0, n - 1, count) for n in document.shape)
    ra, dec = Wcs("gwcs", document.wcs_asdf.encode("latin-1"), document.shape).to_sky(y, x, bounded=False)
    rows = "".join(f"{i},{a!r},{d!r}\n" for i, (a, d) in enumerate(zip(ra.tolist(), dec.tolist(), strict=True), 1))
    table.write_text("id,RA,DEC\n" + rows)


def measured(store: str, table: Path, size: int, output: Path, memory: str) -> dict[str, float]:
    """Run the command in a process of its own: processor and wall seconds, peak memory (MiB) as the system counts it."""
    command = [
        sys.executable, "-m", "streamimg3", "cutout", store, "--catalog", str(table), "--size", f"{size}pix",
        "-o", str(output), "--memory", memory,
    ]  # fmt: skip
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))])
        time.sleep(0.02)
    if process.wait():
        sys.exit(process.returncode)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_s": cpu, "wall_s": time.monotonic() - start, "peak_mib": peak / 1024}


def compared(obs: Observation, output: Path) -> int:
    """Return how many stamps of an array differ from the mosaic in any pixel."""
    stamps = Observation.at(str(output))
    y0, x0 = stamps.array("y0")[:], stamps.array("x0")[:]
    ny, nx = obs.array("mosaic/sci").shape
    values = stamps.array("sci")
    size = values.shape[1]
    wrong = 0
    for start in range(0, len(y0), 4096):
        block = values[start : start + 4096]
        for i, stamp in enumerate(block, start):
            box = Box(int(y0[i]), int(x0[i]), int(y0[i]) + size, int(x0[i]) + size)
            inside = box.intersect(Box(0, 0, ny, nx))
            expected = np.full((size, size), np.nan, np.float32)
            expected[inside.within(box)] = _mosaic(obs)[inside.slices]
            wrong += not np.array_equal(stamp, expected, equal_nan=True)
    return wrong


_WHOLE: dict[str, np.ndarray] = {}


def _mosaic(obs: Observation) -> np.ndarray:
    if obs.url not in _WHOLE:
        _WHOLE[obs.url] = obs.array("mosaic/sci")[...]
    return _WHOLE[obs.url]


def wcs_error(obs: Observation, folder: Path, count: int) -> float:
    """Return the largest distance (degrees) between a file's WCS and the mosaic's, over corners of ``count`` files."""
    from astropy.io import fits
    from astropy.wcs import WCS

    whole = WCS(fits.Header(obs.attributes("mosaic")["wcs"]))
    worst = 0.0
    for path in sorted(folder.iterdir())[:: max(1, sum(1 for _ in folder.iterdir()) // count)]:
        header = fits.getheader(path)
        corners = np.array([[0.0, 0.0], [header["NAXIS1"] - 1.0, header["NAXIS2"] - 1.0]])
        shift = np.array([-header["LTV1"], -header["LTV2"]])
        found, expected = WCS(header).all_pix2world(corners, 0), whole.all_pix2world(corners + shift, 0)
        worst = max(worst, float(np.abs(found - expected).max()))
    return worst


def main() -> None:
    """Measure and print JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--memory", default="512MiB")
    parser.add_argument("--work", type=Path, default=Path("bench-cutouts"))
    given = parser.parse_args()
    shutil.rmtree(given.work, ignore_errors=True)
    given.work.mkdir(parents=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    obs = Observation.at(given.store)
    table = given.work / "positions.csv"
    positions(obs, given.count, table)
    for output in (given.work / "stamps.zarr", given.work / "files"):
        told = measured(given.store, table, given.size, output, given.memory)
        told |= {"per_cpu_s": given.count / told["cpu_s"]}
        if output.suffix:
            told["different"] = compared(obs, output)
        else:
            told |= {"files": float(sum(1 for _ in output.iterdir())), "wcs_error_deg": wcs_error(obs, output, 500)}
        print(json.dumps({"output": output.name, **{k: round(v, 14) for k, v in told.items()}}))


if __name__ == "__main__":
    main()
