"""Make time series for tso3 and run the reference on them.  Started with the reference's interpreter, never with ours.

    PEER_PYTHON scripts/peer_tso3.py FOLDER [CASE ...]

Every case becomes a folder with its segments, reference files, the association ``tso3_asn.json``, ``peer/`` with what the
reference made, and, written last, ``case.json``: the segments, the parameters of the steps (names of files lie in the
folder), the products, and by which error the reference ended, if by one.
"""

import importlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table
from peer_kit import STERADIANS, Kit, Steps, add_times, describe, expose, place, reference, run_cases, write_association

ASSOCIATION = "tso3_asn.json"
IMAGE = "jw00001001001_02101_00001-seg{:03d}_nrca1_calints.fits"
SPECTRUM = "jw00001001001_04101_00001-seg{:03d}_mirimage_calints.fits"
SIDE, SPECTRAL = 64, (120, 40)  # rows and columns
APERTURE = {
    "id": "MIR_LRS-SLITLESS", "region_type": "target", "bkg_order": 0, "dispaxis": 2, "xstart": 14.0, "xstop": 24.0,
    "ystart": 5, "ystop": 110, "extract_width": 8, "bkg_fit": "poly", "bkg_coeff": [[2.5], [8.5], [30.5], [36.5]],
}  # fmt: skip
RANGES = [(1, "P750L", 5.7, 11.0), (2, "P750L", 4.0, 5.1)]  # of two orders


@dataclass(frozen=True)
class Case:
    """One run of the reference.

    Attributes
    ----------
    name, why : str
        Name of the folder; what the case is there for.
    lines : tuple of int
        Statements of the checklist that it can show.
    spectra : bool
        Whether the series are of spectra; otherwise of images.
    lengths : tuple of int
        Integrations of the segments.
    changes : tuple of str
        What is changed in the recipe's segments: names in `CHANGES`.
    steps : dict
        Parameters by step, over those that point to the reference files.
    aperture : dict, optional
        Keys of the extract1d file that differ from `APERTURE`; None = there is no file.
    apcorr : bool
        Whether there is an aperture correction.
    orders : bool
        Whether to make light curves of two spectral orders too.
    """

    name: str
    why: str
    lines: tuple[int, ...]
    spectra: bool = False
    lengths: tuple[int, ...] = (12, 7)
    changes: tuple[str, ...] = ()
    steps: Steps = field(default_factory=dict)
    aperture: dict[str, Any] | None = field(default_factory=dict)
    apcorr: bool = False
    orders: bool = False


# ---------------------------------------------------------------- segments
def _holes(model: Any, rng: np.random.Generator) -> None:
    """Flag pixels with a value, blank pixels without a flag, and blank a variance here and there."""
    shape = model.data.shape
    model.dq[rng.random(shape) < 0.004] |= 1
    model.dq[rng.random(shape) < 0.004] |= 2048
    for plane in (model.data, model.err, model.var_rnoise):
        plane[rng.random(shape) < 0.003] = np.nan


def _blank(model: Any, rng: np.random.Generator) -> None:
    """Leave no pixel of one integration."""
    model.data[2] = np.nan
    model.dq[2] |= 1


def _wander(model: Any, rng: np.random.Generator) -> None:
    """Shift integrations by whole pixels."""
    for k in range(len(model.data)):
        step = tuple(rng.integers(-2, 3, 2))
        model.data[k] = np.roll(model.data[k], step, (0, 1))


def _lens(model: Any, rng: np.random.Generator) -> None:
    """Take the weak lens, whose star fills the sub-array."""
    model.meta.instrument.pupil, model.meta.subarray.name = "WLP8", "SUB64P"


def _counts(model: Any, rng: np.random.Generator) -> None:
    model.meta.bunit_data = model.meta.bunit_err = "DN/s"
    model.meta.exposure.integration_time = 47.5


def _bright(model: Any, rng: np.random.Generator) -> None:
    """Make the star one of hundreds of Jy: the reference's fit of its width stops by an absolute tolerance."""
    for name, power in (("data", 1), ("err", 1), ("var_poisson", 2), ("var_rnoise", 2)):
        setattr(model, name, getattr(model, name) * np.float32(1e7**power))


def _uncalibrated(model: Any, rng: np.random.Generator) -> None:
    model.meta.cal_step.photom = "SKIPPED"
    model.meta.bunit_data = model.meta.bunit_err = "DN/s"


def _extended(model: Any, rng: np.random.Generator) -> None:
    model.meta.target.source_type = "EXTENDED"


def _twice(model: Any, rng: np.random.Generator) -> None:
    """Give two integrations the same time."""
    times = model.int_times.copy()
    times["int_mid_MJD_UTC"][3] = times["int_mid_MJD_UTC"][2]
    model.int_times = times


def _turned(model: Any, rng: np.random.Generator) -> None:
    """Let the dispersion run along rows."""
    models, wcs = importlib.import_module("astropy.modeling.models"), importlib.import_module("gwcs").wcs
    for name in ("data", "err", "dq", "var_poisson", "var_rnoise", "var_flat"):
        setattr(model, name, np.ascontiguousarray(getattr(model, name).swapaxes(1, 2)))
    model.meta.wcsinfo.dispersion_direction = 1
    area, old = model.meta.subarray, model.meta.wcs
    area.xsize, area.ysize = area.ysize, area.xsize
    steps = [(old.pipeline[0].frame, models.Mapping((1, 0)) | old.pipeline[0].transform), (old.pipeline[1].frame, None)]
    turned = wcs.WCS(steps)
    _, ny, nx = model.data.shape
    turned.bounding_box = ((4.5, nx - 6.5), (-0.5, ny - 0.5))  # as the recipe's
    model.meta.wcs = turned


def _unbounded(model: Any, rng: np.random.Generator) -> None:
    """Give every pixel a wavelength: limits in wavelength make the reference fail where there is none."""
    model.meta.wcs.bounding_box = None


def _single(model: Any, rng: np.random.Generator) -> None:
    """Make it an exposure that is no time series."""
    model.meta.visit.tsovisit, model.meta.exposure.type = False, "NRC_IMAGE"


CHANGES: dict[str, Callable[[Any, np.random.Generator], None]] = {
    "holes": _holes, "blank": _blank, "wander": _wander, "lens": _lens, "counts": _counts, "bright": _bright, "twice": _twice,
    "uncalibrated": _uncalibrated, "extended": _extended, "turned": _turned, "unbounded": _unbounded, "single": _single,
}  # fmt: skip


def write_segments(kit: Kit, case: Case) -> list[str]:
    """Write the segments of a case into the current folder; returns their names."""
    make = spectra if case.spectra else images
    start, names = 1, []
    for number, length in enumerate(case.lengths, 1):
        name = (SPECTRUM if case.spectra else IMAGE).format(number)
        model = make(kit, name, np.arange(start, start + length), np.random.default_rng(number))
        describe(model, {
            "exposure.nints": sum(case.lengths), "exposure.integration_start": start,
            "exposure.integration_end": start + length - 1, "exposure.segment_number": number,
            "filename": name, "visit.tsovisit": True, "target.catalog_name": "STAR", "bunit_data": "MJy/sr",
            "bunit_err": "MJy/sr",
        })  # fmt: skip
        add_times(model, start, 5e-4)
        model.save(name)
        model.close()
        change(kit, name, case.changes, number)
        names.append(name)
        start += length
    return names


def cube(kit: Kit, truth: np.ndarray, noise: float, hits: int, rng: np.random.Generator) -> Any:
    """A cube with noise, so many cosmic rays in each integration, and one dead pixel."""
    model = kit.datamodels.CubeModel(truth.shape)
    sci = truth + noise * rng.standard_normal(truth.shape)
    for plane in sci:
        plane[tuple(rng.integers(size, size=hits) for size in plane.shape)] += 40.0
    model.data, model.dq = sci.astype(np.float32), np.zeros(truth.shape, np.uint32)
    shares = {"err": noise, "var_poisson": 0.6 * noise**2, "var_rnoise": 0.4 * noise**2, "var_flat": 0.0}
    for plane, value in shares.items():
        setattr(model, plane, np.full(truth.shape, value, np.float32))
    dead = (slice(None), truth.shape[1] // 3, truth.shape[2] // 2 - 9)
    model.data[dead], model.dq[dead] = np.nan, 1
    return model


def images(kit: Kit, name: str, numbers: np.ndarray, rng: np.random.Generator) -> Any:
    """A star that is a little longer than wide, jitters, and is dimmed by 1 % for a while."""
    y, x = np.indices((SIDE, SIDE))
    light = 100 * np.where((numbers > 20) & (numbers <= 40), 0.99, 1.0)
    jitter = 0.05 * rng.standard_normal((len(numbers), 2))
    stars = [
        f * np.exp(-0.5 * (((y - 30.6 - a) / 1.1) ** 2 + ((x - 32.4 - b) / 1.3) ** 2))
        for f, (a, b) in zip(light, jitter, strict=True)
    ]
    model = cube(kit, 2.0 + np.array(stars), 0.1, 6, rng)
    expose(model, name, "NRC_TSIMAGE", "F210M")
    describe(model, {
        "wcsinfo.siaf_xref_sci": 33.0, "wcsinfo.siaf_yref_sci": 31.0,
        "photometry.pixelarea_steradians": 0.063**2 * STERADIANS, "photometry.pixelarea_arcsecsq": 0.063**2,
    })  # fmt: skip
    step = importlib.import_module("jwst.assign_wcs").AssignWcsStep
    return step.call(
        model, override_distortion="distortion.asdf", override_filteroffset="N/A", configure_log=False
    )  # fmt: skip


def spectra(kit: Kit, name: str, numbers: np.ndarray, rng: np.random.Generator) -> Any:
    """A slitless spectrum, dispersed along columns and slightly inclined, dimmed by 2 % for a while."""
    y, x = np.indices(SPECTRAL)
    light = 60 * np.where((numbers > 8) & (numbers <= 16), 0.98, 1.0)
    profile = np.exp(-0.5 * ((x - 18.3 - 0.01 * y) / 1.5) ** 2)
    model = cube(kit, (1 + 0.01 * y) + light[:, None, None] * profile, 0.2, 8, rng)
    expose(model, name, "MIR_LRS-SLITLESS", "P750L", None)
    describe(model, {
        "instrument.name": "MIRI", "instrument.detector": "MIRIMAGE", "instrument.channel": None, "instrument.module": None,
        "target.source_type": "POINT", "cal_step.photom": "COMPLETE", "photometry.pixelarea_steradians": 0.11**2 * STERADIANS,
        "wcsinfo.dispersion_direction": 2, "wcsinfo.v3yangle": 0.0, "wcsinfo.vparity": 1,
        "wcsinfo.s_region": "POLYGON ICRS 10 -20 10.01 -20 10.01 -19.99 10 -19.99",
    })  # fmt: skip
    place(model, SPECTRAL, (529, 1), "SLITLESSPRISM")
    model.meta.wcs = spectral_wcs()
    return model


def spectral_wcs() -> Any:
    """Right ascension grows a little along rows; the wavelength falls along columns; there is none near both ends."""
    models, gwcs = importlib.import_module("astropy.modeling.models"), importlib.import_module("gwcs")
    frames, u = gwcs.coordinate_frames, importlib.import_module("astropy.units")
    sky = importlib.import_module("astropy.coordinates").ICRS()
    wavelength = frames.SpectralFrame(name="wavelength", axes_order=(2,), unit=(u.micron,), axes_names=("wavelength",))
    place_on_sky = frames.CelestialFrame(name="sky", axes_order=(0, 1), reference_frame=sky)
    world = frames.CompositeFrame([place_on_sky, wavelength], name="world")
    detector = frames.Frame2D(name="detector", axes_order=(0, 1), unit=(u.pix, u.pix))
    angles = models.Polynomial1D(1, c0=10.0, c1=3e-5) & models.Const1D(-20.0)
    fall = models.Polynomial1D(2, c0=12.0, c1=-0.055, c2=2e-5)
    found = gwcs.wcs.WCS([(detector, models.Mapping((0, 1, 1)) | (angles & fall)), (world, None)])
    ny, nx = SPECTRAL
    found.bounding_box = ((-0.5, nx - 0.5), (4.5, ny - 6.5))
    return found


def change(kit: Kit, name: str, changes: tuple[str, ...], number: int) -> None:
    """Change a segment, with numbers that depend on the segment only."""
    model = kit.datamodels.CubeModel(name)
    rng = np.random.default_rng(1000 + number)
    for which in changes:
        CHANGES[which](model, rng)
    model.meta.exposure.segment_number = number
    model.save(f"changed_{name}")
    model.close()
    Path(f"changed_{name}").replace(name)


# ---------------------------------------------------------------- reference files
def write_references(kit: Kit, case: Case) -> Steps:
    """Write the reference files of a case; returns the parameters that point to them, by step."""
    if not case.spectra:
        kit.gain("gain.fits", (SIDE, SIDE), instrument="NIRCAM", detector="NRCA2")
        return {"tso_photometry": {"override_gain": "gain.fits", "save_catalog": True}}
    files = {"override_extract1d": "N/A", "override_apcorr": "N/A"}
    if case.aperture is not None:
        aperture = {key: value for key, value in (APERTURE | case.aperture).items() if value is not None}
        tree = {
            "reftype": "EXTRACT1D", "instrument": "MIRI", "telescope": "JWST", "exp_type": "MIR_LRS-SLITLESS",
            "pedigree": "DUMMY", "description": "x", "author": "x", "history": "x", "useafter": "2014-01-01T00:00:00",
            "apertures": [aperture],
        }  # fmt: skip
        Path("extract1d.json").write_text(json.dumps(tree, indent=1))
        files["override_extract1d"] = "extract1d.json"
    if case.apcorr:
        files["override_apcorr"] = write_apcorr(kit)
    return {"extract_1d": {**files, "save_profile": True}}


def write_apcorr(kit: Kit) -> str:
    """Write ``apcorr.fits``: wavelengths fall and do not cover the spectrum, nor do the sizes."""
    model = kit.datamodels.MirLrsApcorrModel()
    kit.identify(model, "MIRI", "apcorr", "MIRIMAGE", "MIR_LRS-SLITLESS")
    wavelength, size = np.linspace(11.0, 6.5, 9), np.array([3, 5, 7, 8, 12])
    factor = 1 + 0.05 * wavelength[:, None] / size + 0.01 * np.cos(np.arange(45.0)).reshape(9, 5)
    kinds = [
        ("subarray", "S17"), ("wavelength", "f4", (9,)), ("nelem_wl", "i2"), ("size", "u1", (5,)), ("nelem_size", "i2"),
        ("apcorr", "f4", (9, 5)), ("apcorr_err", "f4", (9, 5)),
    ]  # fmt: skip
    table = np.array([("SLITLESSPRISM", wavelength, 9, size, 5, factor, np.zeros((9, 5)))], dtype=kinds)
    model.apcorr_table, model.sizeunit = table, "pixels"
    model.save("apcorr.fits")
    return "apcorr.fits"


# ---------------------------------------------------------------- runs
def run(kit: Kit, case: Case) -> dict[str, Any]:
    """Make a case in the current folder and run the reference on it; returns what ``case.json`` says."""
    middle = (SIDE - 1) / 2
    kit.distortion("distortion.asdf", 0.063, (middle, middle), instrument="NIRCAM", detector="NRCA2")
    members = write_segments(kit, case)
    product = "miri_p750l-slitlessprism" if case.spectra else "nircam_f210m-sub64"
    products = {f"jw00001-o001_t001_{product}": dict.fromkeys(members, "science")}
    write_association(ASSOCIATION, "tso3", products, "Asn_Lv3TSO")
    steps: Steps = {"outlier_detection": {"save_intermediate_results": True}}
    for given in (write_references(kit, case), case.steps):
        for step, parameters in given.items():
            steps[step] = steps.get(step, {}) | parameters
    if case.name in LONG:
        del steps["outlier_detection"]["save_intermediate_results"]
    Path("peer").mkdir()
    spent = time_steps()
    seconds, error = reference("Tso3Pipeline", ASSOCIATION, steps)
    if case.orders:
        two_orders(kit)
    return {
        "name": case.name, "why": case.why, "lines": case.lines, "association": ASSOCIATION, "members": members,
        "changes": case.changes, "steps": steps, "peer_error": error, "ranges": RANGES if case.orders else [],
        "products": sorted(path.name for path in Path("peer").iterdir()), "cpu_seconds": round(seconds, 2),
        "cpu_by_step": {step: round(s, 3) for step, s in spent.items()},
    }  # fmt: skip


def time_steps() -> dict[str, float]:
    """Let the steps of the pipeline count their CPU seconds from now on; returns where they do."""
    spent: dict[str, float] = {}
    for step, kind in importlib.import_module("jwst.pipeline").Tso3Pipeline.step_defs.items():
        plain = getattr(kind, "uncounted", kind.run)

        def counted(self: Any, *given: Any, step: str = step, plain: Callable[..., Any] = plain, **named: Any) -> Any:
            begun = time.process_time()
            try:
                return plain(self, *given, **named)
            finally:
                spent[step] = spent.get(step, 0.0) + time.process_time() - begun

        kind.uncounted, kind.run = plain, counted
    return spent


def two_orders(kit: Kit) -> None:
    """Copy the spectra to a second order with other wavelengths; write them, and the light curves of both orders."""
    white_light = importlib.import_module("jwst.white_light.white_light").white_light
    (product,) = Path("peer").glob("*_x1dints.fits")
    model = kit.datamodels.TSOMultiSpecModel(str(product))
    for spectrum in list(model.spec):
        table = np.array(spectrum.spec_table)
        table["WAVELENGTH"] = 0.5 * table["WAVELENGTH"] + 0.7
        table["FLUX"] *= 0.3
        other = kit.datamodels.TSOSpecModel(spec_table=table)
        spectrum.spectral_order, other.spectral_order, other.detector = 1, 2, spectrum.detector
        model.spec.append(other)
    model.save("peer/orders_x1dints.fits")
    ranges = Table(rows=RANGES, names=("order", "filter", "min_wave", "max_wave"))
    white_light(model, waverange_table=ranges).write("peer/orders_whtlt.ecsv", format="ascii.ecsv")


def _window(width: int) -> dict[str, Any]:
    return {"rolling_window_width": width}


_EVEN, _ODD, _TWO = ({"outlier_detection": _window(width)} for width in (4, 5, 2))
_CURVED = {
    "src_coeff": [[13.5, 0.35], [20.5, 0.4]], "bkg_coeff": [[2.5], [7.25, 0.1], [29.75, 0.08], [36.5]],
    "independent_var": "wavelength", "extract_width": None,
}  # fmt: skip


def _spectra(name: str, why: str, extract: dict[str, Any] | None = None, **more: Any) -> Case:
    steps = {**_ODD, "extract_1d": extract or {}}
    changes = more.pop("changes", ("holes",))
    return Case(name, why, more.pop("lines", (31, 32, 33)), True, (9, 4), changes, steps, **more)


CASES = {
    case.name: case
    for case in (
        Case("images", "the recipe: default window, and a segment that is shorter", (20, 21, 26, 27), lengths=(40, 20)),
        Case("images-even", "window of 4; holes", (20, 21, 22, 26, 27), changes=("holes",), steps=_EVEN),
        Case("images-single", "no time series", (19,), changes=("single",)),
        Case("images-two", "window of 2", (20,), steps=_TWO),
        Case("images-counts", "count rates, with gain", (25, 26, 27, 28), changes=("counts", "holes"), steps=_ODD),
        Case("images-moving", "apertures follow the star; other radii and boxes", (26, 27, 28),
             changes=("wander", "holes", "bright"),
             steps={"outlier_detection": {**_window(5), "snr": "25.0 4.0"}, "tso_photometry": {
                 "moving_centroid": True, "radius": 4.5, "radius_inner": 7.25, "radius_outer": 11.0, "fit_box_width": 15}}),
        Case("images-blank", "an integration without a pixel", (22, 26, 27), changes=("blank",), steps=_ODD),
        Case("images-planned", "no centroid; count rates, with gain", (25, 27), changes=("counts", "holes"),
             steps={**_ODD, "tso_photometry": {"centroid_source": False}}),
        Case("images-lens", "the whole sub-array is summed", (29,), changes=("lens", "holes"), steps=_ODD),
        _spectra("spectra", "the recipe: mean of two strips", lines=(31, 32, 36, 37), changes=()),
        _spectra("spectra-holes", "mean of two strips; holes; a time twice", lines=(31, 32, 37), changes=("holes", "twice")),
        _spectra("spectra-mean", "bkg_fit mean overrides the file's order", {"bkg_fit": "mean"}, aperture={"bkg_order": 2}),
        _spectra("spectra-line", "straight line", {"bkg_fit": "poly", "bkg_order": 1}),
        _spectra("spectra-cubic", "polynomial of order 3, smoothed over 5", {"bkg_order": 3, "smoothing_length": 5}),
        _spectra("spectra-median", "median", {"bkg_fit": "median"}),
        _spectra("spectra-median-smooth", "median, smoothed over 7", {"bkg_fit": "median", "smoothing_length": 7}),
        _spectra("spectra-curved", "limits that depend on the wavelength, one narrow strip", changes=("unbounded", "holes"),
                 aperture=_CURVED),
        _spectra("spectra-curved-median", "the same, median", {"bkg_fit": "median"}, changes=("unbounded", "holes"),
                 aperture=_CURVED),
        _spectra("spectra-offset", "the box is moved; fractional start and stop", {"position_offset": 0.3},
                 aperture={"extract_width": None, "xstart": 14.2, "xstop": 22.9, "ystart": 7.5, "ystop": 101.5}),
        _spectra("spectra-turned", "dispersion along rows", lines=(31, 32), changes=("turned", "holes"),
                 aperture={"dispaxis": 1, "ystart": 14.0, "ystop": 24.0, "xstart": 5, "xstop": 110}),
        _spectra("spectra-nofile", "no extract1d file, no photometric calibration", lines=(31, 32, 34),
                 changes=("uncalibrated", "holes"), aperture=None),
        _spectra("spectra-apcorr", "aperture correction", lines=(32, 35), apcorr=True),
        _spectra("spectra-extended", "aperture correction given, but the source is extended", lines=(35,),
                 changes=("extended",), apcorr=True),
        _spectra("spectra-limits", "light curve over a range of wavelengths", lines=(37,)),
        _spectra("spectra-orders", "light curves of two orders", lines=(37, 38), changes=("holes", "twice"), orders=True),
    )
}  # fmt: skip
CASES["spectra-limits"].steps["white_light"] = {"min_wavelength": 6.5, "max_wavelength": 9.25}


# Long ones, to measure what they cost
LONG = {
    case.name: case
    for case in (
        Case("long-images", "two segments with the default window", (21, 26, 27), lengths=(600, 400)),
        Case("long-spectra", "the same of spectra, mean of two strips", (21, 32, 37), True, (600, 400)),
    )
}


if __name__ == "__main__":
    run_cases(run, {**CASES, **LONG})
