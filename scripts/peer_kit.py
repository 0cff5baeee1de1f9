"""What every script that makes cases for the reference shares.  Started with the reference's interpreter, never with ours.

The reference is kept off the network; small reference files are made up, and the headers of exposures; and the cases that
the command line names become folders, each with ``case.json``, which is written last.
"""

import json
import os
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.modeling.models import Mapping as Pick
from astropy.modeling.models import Polynomial2D, Shift
from peer_runner import go_offline, know_no_references

Steps = dict[str, dict[str, Any]]
STERADIANS = (np.pi / 648000) ** 2  # per square arcsec
SEED = 4711
AIM = {"ra": 10.0, "dec": -20.0, "roll": 30.0}  # degrees
APERTURE = {"v2": 120.0, "v3": -490.0}  # arcsec


# ---------------------------------------------------------------- the reference
@dataclass(frozen=True)
class Kit:
    """The reference's data models, which write the files of a case into the current folder."""

    datamodels: ModuleType

    def identify(self, model: Any, instrument: str, reftype: str, detector: str = "NRCA2", exp_type: str = "") -> None:
        """Say in a reference file what it is and for whom."""
        found = {
            "telescope": "JWST", "reftype": reftype, "author": "streamimg3", "pedigree": "DUMMY", "description": "made up",
            "useafter": "2021-01-01T00:00:00", "instrument.name": instrument, "instrument.detector": detector,
        }  # fmt: skip
        describe(model, found | ({"exposure.type": exp_type} if exp_type else {}))

    def distortion(
        self, path: str, scale: float, centre: tuple[float, float], quadratic: float = 1e-6, **who: str
    ) -> str:
        """Write a distortion file: pixels of `scale` arcsec about `centre` (y, x), bent by a quadratic term.

        Parameters
        ----------
        path : str
            File to write.
        scale : float
            Size of a pixel in arcsec.
        centre : tuple of float
            Pixel that lies at `APERTURE`.
        quadratic : float
            Largest of the quadratic coefficients, in pixels per square pixel.
        **who : str
            ``instrument``, ``detector``.
        """
        bent = scale * quadratic
        along_x = Polynomial2D(2, c1_0=-scale, c2_0=0.8 * bent, c1_1=-0.3 * bent)
        along_y = Polynomial2D(2, c0_1=scale, c0_2=-bent, c2_0=0.4 * bent)
        y0, x0 = centre
        model = (Shift(-x0) & Shift(-y0)) | _both(along_x, along_y) | (Shift(APERTURE["v2"]) & Shift(APERTURE["v3"]))
        model.inverse = (
            (Shift(-APERTURE["v2"]) & Shift(-APERTURE["v3"]))
            | _both(*_way_back(along_x, along_y, max(y0, x0, 32.0)))
            | (Shift(x0) & Shift(y0))
        )
        file = self.datamodels.DistortionModel(model=model, input_units=u.pix, output_units=u.arcsec)
        self.identify(file, who["instrument"], "distortion", who["detector"], "NRC_IMAGE")
        if who["instrument"] == "NIRCAM":
            describe(file, {"instrument.channel": "SHORT", "instrument.module": "A"})
        describe(file, {"instrument.p_filter": "ANY|", "instrument.p_pupil": "ANY|"})
        file.save(path)
        return path

    def flat(self, path: str, shape: tuple[int, int], corner: tuple[int, int] = (1, 1), **who: str) -> str:
        """Write a flat field with 2 % of noise, and at its start a pixel that is NaN, one that is 0 and one with a flag."""
        model = self.datamodels.FlatModel(shape)
        self.identify(model, who["instrument"], "flat", who["detector"])
        model.data = np.random.default_rng(SEED).normal(1.0, 0.02, shape).astype(np.float32)
        model.err, model.dq = np.full(shape, 0.003, np.float32), np.zeros(shape, np.uint32)
        model.data[2, 6], model.data[4, 3], model.dq[6, 9] = np.nan, 0.0, 1 << 18
        place(model, shape, corner, "FULL")
        model.save(path)
        return path

    def area(self, path: str, shape: tuple[int, int], side: float, **who: str) -> str:
        """Write relative areas of pixels, nearly 1; a pixel has sides of `side` arcsec."""
        model = self.datamodels.PixelAreaModel(shape)
        self.identify(model, who["instrument"], "area", who["detector"])
        y, x = np.indices(shape)
        model.data = (1 + 1e-5 * (x - y)).astype(np.float32)
        describe(
            model, {"photometry.pixelarea_arcsecsq": side**2, "photometry.pixelarea_steradians": side**2 * STERADIANS}
        )
        model.save(path)
        return path

    def gain(self, path: str, shape: tuple[int, int], value: float = 2.0, **who: str) -> str:
        """Write a gain that is the same everywhere, in electrons per DN."""
        model = self.datamodels.GainModel(shape)
        self.identify(model, who["instrument"], "gain", who["detector"])
        model.data = np.full(shape, value, np.float32)
        place(model, shape, (1, 1), "FULL")
        model.save(path)
        return path

    def psfmask(self, path: str, shape: tuple[int, int], inner: float = 6.0, **who: str) -> str:
        """Write weights for the alignment of PSFs: 1 on a ring from `inner` pixels to 0.4 of the width."""
        model = self.datamodels.PsfMaskModel(shape)
        self.identify(model, who["instrument"], "psfmask", who["detector"])
        y, x = np.indices(shape)
        radius = np.hypot(y - (shape[0] - 1) / 2, x - (shape[1] - 1) / 2)
        model.data = ((radius > inner) & (radius < 0.4 * shape[1])).astype(np.float32)
        model.save(path)
        return path


def load_kit(work: Path) -> Kit:
    """Take the reference off the network, and import it; `work` becomes the folder of its empty cache."""
    go_offline(work / "crds")
    know_no_references()
    return Kit(import_module("stdatamodels.jwst.datamodels"))


def _both(along_x: Polynomial2D, along_y: Polynomial2D) -> Any:
    return Pick((0, 1, 0, 1)) | (along_x & along_y)


def _way_back(along_x: Polynomial2D, along_y: Polynomial2D, reach: float) -> list[Polynomial2D]:
    """Polynomials of degree 3 from angles to pixels, by least squares over `reach` pixels to every side."""
    x, y = (a.ravel() for a in np.meshgrid(*[np.linspace(-reach, reach, 41)] * 2))
    v2, v3 = along_x(x, y), along_y(x, y)
    unit = max(np.abs(v2).max(), np.abs(v3).max())
    terms = [(i, j) for i in range(4) for j in range(4 - i)]
    matrix = np.stack([(v2 / unit) ** i * (v3 / unit) ** j for i, j in terms], axis=1)
    found = []
    for wanted in (x, y):
        solution = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
        found.append(
            Polynomial2D(3, **{f"c{i}_{j}": c / unit ** (i + j) for (i, j), c in zip(terms, solution, strict=True)})
        )
    return found


# ---------------------------------------------------------------- headers of exposures
def describe(model: Any, values: Mapping[str, Any]) -> None:
    """Set metadata by their dotted names."""
    for name, value in values.items():
        model[f"meta.{name}"] = value


def place(model: Any, shape: tuple[int, int], corner: tuple[int, int], name: str) -> None:
    """Say where on the detector the pixels of a file lie; `corner` = (SUBSTRT2, SUBSTRT1)."""
    found = {"name": name, "ystart": corner[0], "xstart": corner[1], "ysize": shape[0], "xsize": shape[1]}
    describe(model, {f"subarray.{key}": value for key, value in found.items()})


def expose(model: Any, name: str, exp_type: str, band: str | None = "F200W", pupil: str | None = "CLEAR") -> None:
    """Give an exposure the headers that are the same in all cases, as NIRCam's NRCA2; it looks at `AIM`."""
    shape = model.data.shape
    describe(model, {
        "filename": name, "bunit_data": "DN/s", "bunit_err": "DN/s", "visit.tsovisit": False,
        "instrument.name": "NIRCAM", "instrument.detector": "NRCA2", "instrument.channel": "SHORT", "instrument.module": "A",
        "instrument.filter": band, "instrument.pupil": pupil,
        "exposure.type": exp_type, "exposure.nints": shape[0] if len(shape) == 3 else 1, "exposure.ngroups": 5,
        "exposure.start_time": 59900.0, "exposure.mid_time": 59900.0006, "exposure.end_time": 59900.0012,
        "exposure.exposure_time": 100.0, "exposure.duration": 110.0, "exposure.measurement_time": 95.0,
        "exposure.integration_time": 50.0, "exposure.group_time": 10.0,
        "observation.date": "2022-12-01", "observation.time": "00:00:00", "observation.program_number": "1",
        "observation.observation_number": "1", "observation.visit_number": "1", "observation.visit_group": "2",
        "observation.sequence_id": "1", "observation.activity_id": "1", "observation.exposure_number": "1",
        "subarray.fastaxis": -1, "subarray.slowaxis": 2, "target.ra": AIM["ra"], "target.dec": AIM["dec"],
    })  # fmt: skip
    place(model, shape[-2:], (1, 1), "FULL")
    point(model, AIM["roll"])


def point(model: Any, roll: float) -> None:
    """Aim an exposure at `AIM`, turned by `roll` degrees."""
    ny, nx = model.data.shape[-2:]
    describe(model, {
        "wcsinfo.v2_ref": APERTURE["v2"], "wcsinfo.v3_ref": APERTURE["v3"], "wcsinfo.v3yangle": -0.5, "wcsinfo.vparity": -1,
        "wcsinfo.ra_ref": AIM["ra"], "wcsinfo.dec_ref": AIM["dec"], "wcsinfo.roll_ref": roll,
        "wcsinfo.crpix1": (nx + 1) / 2, "wcsinfo.crpix2": (ny + 1) / 2, "wcsinfo.crval1": AIM["ra"], "wcsinfo.crval2": AIM["dec"],
        "wcsinfo.ctype1": "RA---TAN", "wcsinfo.ctype2": "DEC--TAN", "wcsinfo.cunit1": "deg", "wcsinfo.cunit2": "deg",
        "wcsinfo.wcsaxes": 2, "wcsinfo.cdelt1": 2e-5, "wcsinfo.cdelt2": 2e-5, "wcsinfo.pc1_1": -1.0, "wcsinfo.pc1_2": 0.0,
        "wcsinfo.pc2_1": 0.0, "wcsinfo.pc2_2": 1.0, "velocity_aberration.scale_factor": 1.00001,
    })  # fmt: skip


def add_times(model: Any, first: int = 1, step: float = 4e-4) -> None:
    """Give a cube its table of times: integrations of `step` days, numbered from `first`; 1.5 minutes earlier at the barycentre."""
    numbers = np.arange(first, first + len(model.data))
    table = np.zeros(len(numbers), model.get_dtype("int_times"))
    table["integration_number"] = numbers
    for zone, shift in (("UTC", 0.0), ("BJD_TDB", -1e-3)):
        names = [name for name in table.dtype.names if name.endswith(zone)]
        for name, part in zip(names, (0.0, 0.5, 1.0), strict=True):
            table[name] = 59900.0 + shift + step * (numbers - 1 + part)
    model.int_times = table


# ---------------------------------------------------------------- runs
def write_association(
    path: str, kind: str, products: Mapping[str, Mapping[str, str]], rule: str = "x", number: str = "o001"
) -> None:
    """Write an association: names of products to their members, file names and their roles; `number` is its ``asn_id``."""
    listed = [
        {"name": product, "members": [{"expname": name, "exptype": role} for name, role in members.items()]}
        for product, members in products.items()
    ]
    tree = {
        "asn_type": kind, "asn_rule": rule, "program": "00001", "asn_id": number, "asn_pool": "none", "target": "t001",
        "products": listed,
    }  # fmt: skip
    Path(path).write_text(json.dumps(tree, indent=1))


def reference(pipeline: str, association: str, steps: Steps, save_results: bool = True) -> tuple[float, str]:
    """Run a pipeline of the reference here, with products in ``peer``; returns its CPU seconds and its error, if any."""
    kind = getattr(import_module("jwst.pipeline"), pipeline)
    started, error = time.process_time(), ""
    try:
        kind.call(association, save_results=save_results, output_dir="peer", steps=steps, configure_log=False)
    except Exception as problem:  # what it ends with is the result
        error = f"{type(problem).__name__}: {' '.join(str(problem).split())}"
        Path("peer_error.txt").write_text(traceback.format_exc())
    return time.process_time() - started, error


def statuses(product: str) -> dict[str, str]:
    """Status keywords of a product in ``peer``."""
    if not product.endswith(".fits"):
        return {}
    header = fits.getheader(Path("peer") / product)
    return {name: value for name, value in header.items() if name.startswith("S_")}


def run_cases(run: Callable[[Kit, Any], dict[str, Any]], cases: Mapping[str, Any]) -> None:
    """Make the cases that the command line names, or all; `run` returns what ``case.json`` says."""
    folder, names = Path(sys.argv[1]).resolve(), sys.argv[2:] or list(cases)
    kit = load_kit(folder / ".kit")
    for name in names:
        home = folder / name
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        os.chdir(home)
        found = run(kit, cases[name])
        Path("case.json").write_text(json.dumps(found, indent=1))
        print(f"{name:<22} {found['cpu_seconds']:5.1f} s  {found['peer_error'][:80]}", flush=True)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{used.ru_utime + used.ru_stime:.0f} CPU seconds, {used.ru_maxrss / 1024:.0f} MiB at most")
