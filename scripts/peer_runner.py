"""Run the reference pipeline once, without a network.  Started with the reference's interpreter, never with ours.

    python peer_runner.py JOB.json

JOB.json holds ``asn`` (path), ``output_dir``, ``steps`` (step -> parameter -> value), ``metrics`` (file to write) and
optionally ``pipeline`` (default ``Image3Pipeline``) and ``wcs_file`` (write the output WCS of the mosaic there, as a custom
``output_wcs`` file); or, without ``asn``, ``shrink`` (list of exposures whose WCS bounding box loses ``border`` columns left
and right), or ``references`` (folder for the reference files that source_catalog needs).
"""

import importlib
import json
import math
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The packages below exist in the reference's environment only, so they are imported by name where they are used.
CRDS_CONFIG = {
    "observatory": "jwst",
    "operational_context": "jwst_0000.pmap",
    "latest_context": "jwst_0000.pmap",
    "edit_context": "jwst_0000.pmap",
    "effective_context": "jwst_0000.pmap",
    "last_synced": "never",
    "bad_files": "",
    "bad_files_list": [],
    "force_remote_mode": False,
    "connected": False,
    "crds_version": {"str": "none"},
    "mapping_checksum": "",
    "reference_url": {},
    "mapping_url": {},
}
FILTERS = ["F115W", "F150W", "F200W", "F277W", "F356W", "F444W"]
SIGMA = 1.0  # px


def go_offline(cache: Path) -> None:
    """Point CRDS at a cache that holds nothing but its own configuration.

    Parameters
    ----------
    cache : Path
        Folder that becomes ``CRDS_PATH``; made if missing.

    Notes
    -----
    ``crds`` only needs a readable ``server_config`` to name a context when products are saved.  An invalid server name
    and ``STPIPE_DISABLE_CRDS_STEPPARS`` keep it from asking for parameter files.
    """
    config = cache / "config" / "jwst"
    config.mkdir(parents=True, exist_ok=True)
    (config / "server_config").write_text(repr(CRDS_CONFIG))
    os.environ["CRDS_PATH"] = str(cache)
    os.environ["CRDS_SERVER_URL"] = "https://offline.invalid"
    os.environ["STPIPE_DISABLE_CRDS_STEPPARS"] = "true"


def know_no_references() -> None:
    """Let reference types that the parameters do not name a file for count as ones that do not apply."""
    client = importlib.import_module("stpipe.crds_client")

    def nothing(parameters: dict[str, Any], types: list[str], observatory: str) -> dict[str, str]:
        return dict.fromkeys(types, "N/A")

    client.get_multiple_reference_paths = nothing  # type: ignore[attr-defined]


class Meter:
    """CPU, wall time and peak resident memory of named stretches of this process."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str, float]] = {}
        self._peak = 0
        self._stop = threading.Event()
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._stop.wait(0.02):
            self._peak = max(self._peak, int(Path("/proc/self/statm").read_text().split()[1]) * page)

    def measure(self, name: str, call: Callable[[], Any]) -> Any:
        """Run `call` and file its cost under `name`; the value of `call` is handed through."""
        self._peak = 0
        before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        try:
            return call()
        finally:
            after = resource.getrusage(resource.RUSAGE_SELF)
            cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
            wall = time.monotonic() - started
            self.records[name] = {"cpu_s": cpu, "wall_s": wall, "peak_rss": float(self._peak)}

    def stop(self) -> None:
        """End the sampling thread."""
        self._stop.set()


def meter_step(cls: Any, name: str, meter: Meter) -> None:
    """Wrap the ``run`` method of one step class so that `meter` sees exactly that step."""
    original = cls.run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        return meter.measure(name, lambda: original(self, *args, **kwargs))

    cls.run = run


def run_pipeline(job: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Run a pipeline as the job says; return the cost of every step and of the whole."""
    name = job.get("pipeline", "Image3Pipeline")
    if name != "Image3Pipeline":  # all that image3 needs is made
        know_no_references()
    pipeline = getattr(importlib.import_module("jwst.pipeline"), name)
    meter = Meter()
    for name, step in pipeline.step_defs.items():
        meter_step(step, name, meter)
    started, begun = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    pipeline.call(job["asn"], steps=job["steps"], save_results=True, output_dir=job["output_dir"])
    ended = resource.getrusage(resource.RUSAGE_SELF)
    meter.stop()
    cpu = ended.ru_utime - started.ru_utime + ended.ru_stime - started.ru_stime
    wall = time.monotonic() - begun
    meter.records["pipeline"] = {"cpu_s": cpu, "wall_s": wall, "peak_rss": float(ended.ru_maxrss) * 1024}
    return meter.records


def write_output_wcs(product: Path, target: Path) -> None:
    """Write the WCS of a resampled product as a custom ``output_wcs`` file (keys wcs, array_shape, pixel_scale)."""
    datamodels = importlib.import_module("stdatamodels.jwst.datamodels")
    asdf = importlib.import_module("asdf")
    with datamodels.open(str(product)) as model:
        scale = float(model.meta.photometry.pixelarea_arcsecsq) ** 0.5
        tree = {"wcs": model.meta.wcs, "array_shape": list(model.data.shape), "pixel_scale": scale}
        asdf.AsdfFile(tree).write_to(str(target))


def write_references(folder: Path) -> None:
    """Write aperture corrections of a Gaussian image, and magnitude offsets, for NIRCam's wide filters.

    Radii are in pixels.  What the numbers are does not matter where two programs read the same ones.
    """
    datamodels = importlib.import_module("stdatamodels.jwst.datamodels")
    numpy = importlib.import_module("numpy")
    table = importlib.import_module("astropy.table").Table
    folder.mkdir(parents=True, exist_ok=True)
    fractions = [n / 10 for n in range(1, 9)]
    rows = [
        (name, "CLEAR", f, SIGMA * math.sqrt(-2 * math.log(1 - f)), 1 / f, 16.0, 26.0)
        for name in FILTERS
        for f in fractions
    ]
    numbers = [(name, "f4") for name in ("eefraction", "radius", "apcorr", "skyin", "skyout")]
    apertures = datamodels.NrcImgApcorrModel()
    apertures.apcorr_table = numpy.array(rows, dtype=[("filter", "S12"), ("pupil", "S15"), *numbers])
    offsets = datamodels.ABVegaOffsetModel()
    values = numpy.linspace(0.8, 3.2, len(FILTERS)).astype("f4")
    offsets.abvega_offset = table({"filter": FILTERS, "pupil": ["CLEAR"] * len(FILTERS), "abvega_offset": values})
    for model, kind, name in ((apertures, "APCORR", "apcorr.fits"), (offsets, "ABVEGAOFFSET", "abvegaoffset.asdf")):
        meta = model.meta
        meta.instrument.name, meta.telescope, meta.reftype = "NIRCAM", "JWST", kind
        meta.author, meta.description, meta.pedigree = "parity", "made up", "DUMMY"
        meta.useafter = "2020-01-01T00:00:00"
        model.save(str(folder / name))


def shrink_bounding_box(path: Path, border: int) -> None:
    """Take `border` columns left and right out of an exposure's WCS, as the MIRI imager's own WCS does.

    The footprint text ``S_REGION`` follows, because the output frame is derived from it.
    """
    datamodels = importlib.import_module("stdatamodels.jwst.datamodels")
    with datamodels.open(str(path)) as model:
        ny, nx = model.data.shape
        wcs = model.meta.wcs
        wcs.bounding_box = ((border - 0.5, nx - border - 0.5), (-0.5, ny - 0.5))
        corners = wcs.footprint(center=False).ravel()
        model.meta.wcsinfo.s_region = "POLYGON ICRS  " + " ".join(f"{value:.9f}" for value in corners)
        model.save(str(path))


def main() -> None:
    """Do the one job that the command line names."""
    job = json.loads(Path(sys.argv[1]).read_text())
    go_offline(Path(job["crds_cache"]))
    if "shrink" in job:
        for name in job["shrink"]:
            shrink_bounding_box(Path(name), int(job["border"]))
        return
    if "references" in job:
        write_references(Path(job["references"]))
        return
    records = run_pipeline(job)
    if job.get("wcs_file"):
        products = sorted(Path(job["output_dir"]).glob("*_i2d.fits"))
        write_output_wcs(products[0], Path(job["wcs_file"]))
    Path(job["metrics"]).write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
