"""Make exposures for image2 and run the reference on them.  Started with the reference's interpreter, never with ours.

    PEER_PYTHON scripts/peer_image2.py FOLDER [CASE ...]

Every case becomes a folder with its exposures, reference files, the association ``image2_asn.json``, ``peer/`` with what
the reference made (on the large cases it is not run), and, written last, ``case.json``: the parameters of the steps (names
of files lie in the folder), the products, and by which error the reference ended, if by one.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from peer_image2_cases import CASES, LARGE, Camera, Case, Flat, Part, Photom
from peer_kit import (
    STERADIANS,
    Kit,
    Steps,
    add_times,
    describe,
    expose,
    place,
    reference,
    run_cases,
    statuses,
    write_association,
)

ASSOCIATION = "image2_asn.json"
STEPS = ("bkg_subtract", "assign_wcs", "flat_field", "photom", "resample")
SCIENCE, BACKGROUND = "jw00001001001_02101_{:05d}", "jw00001002001_02101_{:05d}"
STAMP = 14  # pixels from the middle of a star to where it ends
DISTORTION = 1e-5  # quadratic term in pixels; enough to need SIP polynomials
PHOTOMETRY = {
    "NIRCAM": ("NrcImgPhotomModel", 2),
    "MIRI": ("MirImgPhotomModel", 2),
    "NIRISS": ("NisImgPhotomModel", 2),
    "FGS": ("FgsImgPhotomModel", 0),
}
FLAGS = {"DO_NOT_USE": 1, "SATURATED": 2, "JUMP_DET": 4, "NON_SCIENCE": 512, "HOT": 2048}
FLAT_FLAGS = {
    "DO_NOT_USE": (1, 1),
    "NO_FLAT_FIELD": (1 << 18, 4),
    "UNRELIABLE_FLAT": (1 << 25, 2),
}  # JWST's, the file's


# ---------------------------------------------------------------- exposures
def pixels(part: Part, seed: int, stars: bool) -> dict[str, np.ndarray]:
    """Planes of an exposure in DN/s: sky with a gradient, stars, noise, cosmic rays, and bad pixels of many kinds."""
    rng = np.random.default_rng(seed)
    ny, nx = part.shape
    shape = (part.nints, ny, nx) if part.nints else (ny, nx)
    y, x = np.mgrid[:ny, :nx]
    truth = part.level * (1 + 0.05 * x / nx - 0.03 * y / ny)
    if stars:
        for _ in range(max(3, ny * nx // 1500)):
            flux, y0, x0 = 2.0 * rng.pareto(1.0) + 1.0, rng.uniform(0, ny), rng.uniform(0, nx)
            near = slice(max(0, int(y0) - STAMP), int(y0) + STAMP), slice(max(0, int(x0) - STAMP), int(x0) + STAMP)
            truth[near] += min(flux, 400.0) * np.exp(-((y[near] - y0) ** 2 + (x[near] - x0) ** 2) / 4.5)
    seconds, gain, read = 100.0, 2.05, 0.012
    poisson = np.broadcast_to(truth / gain / seconds, shape) * rng.uniform(0.98, 1.02, shape)
    readout = np.broadcast_to(read**2 * rng.uniform(0.7, 1.4, (ny, nx)), shape)
    sci = truth + np.sqrt(poisson + readout) * rng.standard_normal(shape)
    dq = np.zeros(shape, np.uint32)
    hits = rng.random(shape) < 0.01
    sci = np.where(hits, sci + rng.exponential(20.0, shape), sci)
    dq[hits & (rng.random(shape) < 0.5)] |= FLAGS["JUMP_DET"]
    planes = {"data": sci, "var_poisson": poisson, "var_rnoise": readout}
    planes = {name: np.array(plane, np.float32) for name, plane in planes.items()}
    planes["err"] = np.sqrt(planes["var_poisson"] + planes["var_rnoise"])
    _spoil(planes, dq, rng)
    if part.empty:
        planes["data"][..., 0] = planes["err"][..., 0] = np.nan
    return {**planes, "dq": dq}


def _spoil(planes: dict[str, np.ndarray], dq: np.ndarray, rng: np.random.Generator) -> None:
    """Flag pixels; make some NaN with a flag, some without, and some in one plane only."""
    shape = dq.shape
    dead = rng.random(shape[-2:]) < 0.004  # in all integrations
    dq[..., dead] |= FLAGS["DO_NOT_USE"]
    for plane in planes.values():
        plane[..., dead] = np.nan
    saturated = rng.random(shape) < 0.004
    dq[saturated] |= FLAGS["SATURATED"] | FLAGS["DO_NOT_USE"]
    planes["data"][saturated] = np.nan
    dq[rng.random(shape) < 0.004] |= FLAGS["DO_NOT_USE"]  # with a value
    dq[rng.random(shape) < 0.004] |= FLAGS["HOT"]
    for name in planes:
        planes[name][rng.random(shape) < 0.0015] = np.nan  # without a flag
    dq[..., :2, :] |= FLAGS["NON_SCIENCE"]


def write_exposure(kit: Kit, case: Case, part: Part, base: str, seed: int) -> str:
    """Write one ``_rate.fits`` or ``_rateints.fits`` into the current folder; returns its name."""
    science, camera = base.startswith(SCIENCE[:13]), case.camera
    name = f"{base}_{camera.detector.lower()}_{'rateints' if part.nints else 'rate'}.fits"
    planes = pixels(part, seed, science)
    model = (kit.datamodels.CubeModel if part.nints else kit.datamodels.ImageModel)(planes["data"].shape)
    for plane, values in planes.items():
        if not (science and plane in case.without):
            setattr(model, plane, values)
    expose(model, name, camera.exp_type)
    _identify(model, camera, part)
    describe(model, {
        "observation.exposure_number": str(int(base[-5:])), "observation.observation_number": base[7:10].lstrip("0"),
    })  # fmt: skip
    if part.nints:
        add_times(model)
    model.save(name)
    return name


def _identify(model: Any, camera: Camera, part: Part) -> None:
    found = {name: getattr(camera, name) for name in ("detector", "filter", "pupil")} | {"name": camera.instrument}
    if camera.instrument != "NIRCAM":
        found |= {"channel": None, "module": None}
    describe(model, {f"instrument.{name}": value for name, value in found.items()})
    place(model, part.shape, part.corner, part.name)


# ---------------------------------------------------------------- reference files
def write_flat(kit: Kit, camera: Camera, flat: Flat, science: Part) -> str:
    """Write ``flat.fits``, with bad pixels of every kind among those that the science exposure is divided by."""
    (ny, nx), (y0, x0) = flat.shape, flat.corner
    kit.flat("flat.fits", flat.shape, flat.corner, instrument=camera.instrument, detector=camera.detector)
    rows = slice(max(0, science.corner[0] - y0), min(ny, science.corner[0] - y0 + science.shape[0]))
    columns = slice(max(0, science.corner[1] - x0), min(nx, science.corner[1] - x0 + science.shape[1]))
    rng = np.random.default_rng(11)
    with fits.open("flat.fits", mode="update") as file:
        sci, err, dq = (file[name].data[rows, columns] for name in ("SCI", "ERR", "DQ"))
        err[...] = rng.uniform(0.001, 0.004, err.shape)
        for values, value in ((sci, np.nan), (sci, 0.0), (sci, 0.2), (err, np.nan)):
            values[rng.random(values.shape) < 0.003] = value
        for jwst, own in FLAT_FLAGS.values():
            dq[rng.random(dq.shape) < 0.003] |= own if flat.own_flags else jwst
        if flat.own_flags:
            file["DQ"].data[file["DQ"].data == 1 << 18] = FLAT_FLAGS["NO_FLAT_FIELD"][1]
            file.append(_flag_table())
    return "flat.fits"


def _flag_table() -> fits.BinTableHDU:
    own = [value for _, value in FLAT_FLAGS.values()]
    names = np.array(list(FLAT_FLAGS))
    columns = [
        fits.Column("BIT", "J", array=[value.bit_length() - 1 for value in own]),
        fits.Column("VALUE", "J", array=own),
        fits.Column("NAME", "40A", array=names),
        fits.Column("DESCRIPTION", "80A", array=names),
    ]
    return fits.BinTableHDU.from_columns(columns, name="DQ_DEF")


def write_photom(kit: Kit, camera: Camera, photom: Photom) -> str:
    """Write ``photom.fits``; the tables of coefficients repeat the keys of the rows."""
    name, nkeys = PHOTOMETRY[camera.instrument]
    model = getattr(kit.datamodels, name)()
    kit.identify(model, camera.instrument, "photom", camera.detector, camera.exp_type)
    rows = [(*row, 0.1) for row in photom.rows]
    model.phot_table = np.array(rows, dtype=model.get_dtype("phot_table"))
    for table in ("linear", "exponential", "powerlaw"):
        coefficients = getattr(photom, table)
        if coefficients:
            kind = model.get_dtype(f"timecoeff_{table}")  # one of the tables of NIRISS has no keys
            keys = nkeys if len(kind) > len(coefficients[0]) else 0
            rows = [(*row[:keys], *values) for row, values in zip(photom.rows, coefficients, strict=True)]
            setattr(model, f"timecoeff_{table}", np.array(rows, dtype=kind))
    model.meta.photometry.pixelarea_arcsecsq = camera.scale**2
    model.meta.photometry.pixelarea_steradians = camera.scale**2 * STERADIANS
    model.save("photom.fits")
    return "photom.fits"


def write_offsets(kit: Kit, camera: Camera, rows: tuple[tuple[str, str, float, float], ...]) -> str:
    """Write ``filteroffset.asdf``: filter, pupil, columns, rows."""
    filters = [
        {"filter": name, "pupil": pupil, "column_offset": column, "row_offset": row}
        for name, pupil, column, row in rows
    ]
    if camera.instrument == "MIRI":
        filters = [{key: value for key, value in row.items() if key != "pupil"} for row in filters]
    model = kit.datamodels.FilteroffsetModel(filters=filters, instrument=camera.instrument)
    kit.identify(model, camera.instrument, "filteroffset", camera.detector, camera.exp_type)
    model.save("filteroffset.asdf")
    return "filteroffset.asdf"


def write_references(kit: Kit, case: Case) -> dict[str, dict[str, Any]]:
    """Write the reference files of a case; returns the parameters that point to them, by step."""
    camera = case.camera
    identity = {"instrument": camera.instrument, "detector": camera.detector}
    kit.distortion("distortion.asdf", camera.scale, (camera.centre, camera.centre), DISTORTION, **identity)
    if case.area:
        kit.area("area.fits", case.area, camera.scale, **identity)
    return {
        "assign_wcs": {
            "override_distortion": "distortion.asdf",
            "override_filteroffset": write_offsets(kit, camera, case.offsets) if case.offsets else "N/A",
        },
        "flat_field": {"override_flat": write_flat(kit, camera, case.flat, case.science) if case.flat else "N/A"},
        "photom": {
            "override_photom": write_photom(kit, camera, case.photom) if case.photom else "N/A",
            "override_area": "area.fits" if case.area else "N/A",
        },
    }


# ---------------------------------------------------------------- runs
def make(kit: Kit, case: Case) -> dict[str, Any]:
    """Make a case in the current folder; returns what ``case.json`` says of it."""
    backgrounds = [
        write_exposure(kit, case, part, BACKGROUND.format(k), 100 + k) for k, part in enumerate(case.backgrounds, 1)
    ]
    products = {}
    for k in range(case.copies):
        name = write_exposure(kit, case, case.science, SCIENCE.format(k + 1), 100 - k)
        products[name.rsplit("_", 1)[0]] = {name: "science"} | dict.fromkeys(backgrounds, "background")
    write_association(ASSOCIATION, "image2", products)
    steps: Steps = {step: {} for step in STEPS}
    if case.lines and case.backgrounds:
        steps["bkg_subtract"] = {"save_combined_background": True, "save_results": True}
    for given in (write_references(kit, case), case.steps):
        for step, parameters in given.items():
            steps[step] |= parameters
    return {
        "name": case.name, "why": case.why, "lines": case.lines, "association": ASSOCIATION, "steps": steps,
        "peer_error": "", "cpu_seconds": 0.0,
    }  # fmt: skip


def run(kit: Kit, case: Case) -> dict[str, Any]:
    """Make a case in the current folder and run the reference on it; returns what ``case.json`` says."""
    made = make(kit, case)
    Path("peer").mkdir()
    seconds, error = reference("Image2Pipeline", ASSOCIATION, made["steps"])
    if error.partition(":")[0] != case.fails:
        raise RuntimeError(f"{case.name}: the reference ended with {error or 'success'}, not {case.fails or 'success'}")
    products = sorted(path.name for path in Path("peer").iterdir())
    found = {name: statuses(name) for name in products}
    return made | {"peer_error": error, "products": products, "statuses": found, "cpu_seconds": round(seconds, 2)}


if __name__ == "__main__":
    if set(sys.argv[2:]) & set(LARGE):
        run_cases(make, LARGE)
    else:
        run_cases(run, CASES)
