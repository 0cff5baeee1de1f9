"""Make exposures for coron3 and run the reference on them.  Started with the reference's interpreter, never with ours.

    PEER_PYTHON scripts/peer_coron3.py FOLDER [CASE ...]

Every case becomes a folder with its exposures and reference files,
the association ``coron3_asn.json``, ``peer/`` with what the reference made, ``recorded.npz`` with what it keeps to itself
(filled planes and shifts, by science exposure) and, written last, ``case.json``: the parameters of the steps (names of
files lie in the folder), the true shifts, the products, and by which error the reference ended, if by one.
"""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from peer_kit import STERADIANS, Kit, Steps, describe, expose, point, reference, run_cases, statuses, write_association
from scipy.ndimage import fourier_shift

ASSOCIATION, PRODUCT = "coron3_asn.json", "jw00001-a3001_t001_coron"
STEPS = ("outlier_detection", "stack_refs", "align_refs", "klip", "resample")
SATURATED, NON_SCIENCE = 2, 512
CAMERAS = {
    "NIRCAM": ("NRCA2", "F200W", "MASKRND", "NRC_CORON", "MASK335R", 0.063),
    "MIRI": ("MIRIMAGE", "F1065C", None, "MIR_4QPM", "4QPM_1065", 0.11),
}
Shift = tuple[float, float]  # pixels along y and x


@dataclass(frozen=True)
class Case:
    """One run of the reference.

    Attributes
    ----------
    name, why : str
        Name of the folder; what the case is there for.
    lines : tuple of int
        Statements of the checklist that it can show.
    shape : tuple of int
        Rows and columns of the integrations.
    science, psf : int
        Numbers of exposures.
    nints : int
        Integrations of each.
    shifts : tuple of pairs of float
        Of the PSF exposures, in turn.
    bad : str
        "" = no bad pixel, nor any outlier; "few" = cosmic rays and single pixels, "edges" = at edges and in corners and lumps too.
    alike : bool
        One star for all exposures, moved by phases, nearly without noise: the shifts are exactly known.
    patched : bool
        The reference aligns in double precision; else as released.
    masked : bool
        It has weights for the alignment.
    steps : dict
        Parameters by step.
    uneven : bool
        The last PSF exposure is smaller.
    saved : bool
        The reference is told to save its results.
    fails : str
        Error by which the reference ends, if it does.
    """

    name: str
    why: str
    lines: tuple[int, ...]
    camera: str = "NIRCAM"
    shape: tuple[int, int] = (48, 48)
    science: int = 2
    psf: int = 3
    nints: int = 3
    shifts: tuple[Shift, ...] = ((-0.2, -0.35), (0.0, 0.0), (0.7, 1.5))
    bad: str = "few"
    alike: bool = False
    patched: bool = True
    masked: bool = True
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    uneven: bool = False
    saved: bool = True
    fails: str = ""


def _modes(number: int) -> dict[str, dict[str, Any]]:
    return {"klip": {"truncate": number}}


_KNOWN: tuple[Shift, ...] = ((-0.3, 0.4), (0.7, 1.5), (-2.2, 1.25))
_ALL = (40, 41, 42, 45, 47)
CASES = {
    case.name: case
    for case in (
        Case("stock", "as released: shifts are not found", (40, 41, 42, 47), patched=False, steps=_modes(6)),
        Case("patched", "the same in double precision", (*_ALL, 46, 51, 53), steps=_modes(6)),
        Case("truncate-0", "means are subtracted", _ALL, steps=_modes(0)),
        Case("truncate-9", "as many components as references", _ALL, steps=_modes(9)),
        Case("truncate-50", "more components than references", _ALL, steps=_modes(50)),
        Case("clean", "no bad pixel: errors of aligned references", (45, 47), bad="", steps=_modes(6)),
        Case("known", "shifts that are known", (44, 45), alike=True, shifts=_KNOWN, bad="", steps=_modes(6)),
        Case("known-stock", "the same as released", (44,), alike=True, shifts=_KNOWN, bad="", patched=False),
        Case("edges", "bad pixels at edges, in corners and in lumps", _ALL, bad="edges", steps=_modes(6)),
        Case("box-5", "a larger box, another flag", _ALL, bad="edges",
             steps={**_modes(6), "align_refs": {"median_box_length": 5, "bad_bits": "DO_NOT_USE, SATURATED"}}),
        Case("no-bits", "only NaN are bad: what is filled serves others", _ALL, bad="edges",
             steps={**_modes(6), "align_refs": {"bad_bits": ""}}),
        Case("miri", "pixels outside the field become 0", _ALL, "MIRI", bad="edges", steps=_modes(6)),
        Case("odd", "odd numbers of rows and columns", _ALL, shape=(45, 51), steps=_modes(4)),
        Case("loose", "other flags and cut of outliers", (40,), steps={
             "outlier_detection": {"snr": "3.0 2.0", "good_bits": "~DO_NOT_USE+SATURATED", "maskpt": 0.3}}),
        Case("all-flags-good", "flags are ignored in the median", (40,), steps={"outlier_detection": {"good_bits": None}}),
        Case("one-integration", "stacks of one", (40, 47), nints=1, bad="", steps=_modes(2)),
        Case("no-mask", "no weights: not aligned", (46, 47), bad="", masked=False, steps=_modes(6)),
        Case("no-mask-nan", "no weights: NaN reach KLIP", (46, 49), masked=False, fails="LinAlgError"),
        Case("one-reference", "a single reference", (49,), psf=1, nints=1, bad="", fails="LinAlgError"),
        Case("uneven", "references of two sizes", (41,), uneven=True, fails="ValueError"),
        Case("no-psf", "nothing to subtract", (52,), psf=0),
        Case("no-science", "nothing to subtract from", (52,), science=0, fails="IndexError"),
        Case("unsaved", "what is written all the same", (52,), steps=_modes(6), saved=False),
        Case("many", "more than 32 planes", (47, 51), shape=(40, 40), nints=17, psf=2, steps=_modes(6)),
    )
}  # fmt: skip


# ---------------------------------------------------------------- exposures
def star(shape: tuple[int, int], at: Shift, kind: int, step: int) -> np.ndarray:
    """A star behind a mask; wings and lobes depend on `kind` and a little on `step`."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    y, x = y - (shape[0] - 1) / 2 - at[0], x - (shape[1] - 1) / 2 - at[1]
    r, angle = np.hypot(y, x), np.arctan2(y, x)
    lobes = 1 + 0.4 * np.cos(6 * angle + 0.1 * kind + 0.05 * step) + 0.3 * np.cos(0.9 * r + 0.2 * kind)
    return (9 + kind) * np.exp(-r / 7) * lobes


def known_star(shape: tuple[int, int], at: Shift) -> np.ndarray:
    """A star that does not change, moved by phases."""
    image = star(shape, (0.0, 0.0), 1, 0)
    return np.fft.ifftn(fourier_shift(np.fft.fftn(image), at)).real


def pixels(case: Case, shape: tuple[int, int], seed: int, at: Shift, companion: bool) -> dict[str, np.ndarray]:
    """Planes of an exposure."""
    rng = np.random.default_rng(seed)
    steps = range(case.nints)
    sci = np.array(
        [known_star(shape, at) if case.alike else star(shape, at, seed % 10, k if case.bad else 0) for k in steps]
    )
    if companion and not case.alike:
        y, x = np.mgrid[: shape[0], : shape[1]]
        sci += 1.5 * np.exp(-((y - 0.6 * shape[0]) ** 2 + (x - 0.7 * shape[1]) ** 2) / 4)
    err = (1e-5 if case.alike else 0.02) * rng.uniform(0.9, 1.1, sci.shape)
    sci += (1.0 if case.bad else 0.5) * err * rng.standard_normal(sci.shape)  # half: then nothing is an outlier
    planes = {"data": sci, "err": err, "var_poisson": err**2 / 3, "var_rnoise": 2 * err**2 / 3, "var_flat": 0 * err}
    planes = {name: plane.astype(np.float32) for name, plane in planes.items()}
    dq = np.zeros(sci.shape, np.uint32)
    if case.bad:
        _spoil(planes, dq, rng)
    if case.bad == "edges":
        _spoil_edges(planes, dq, case.camera == "MIRI")
    return {**planes, "dq": dq}


def _spoil(planes: dict[str, np.ndarray], dq: np.ndarray, rng: np.random.Generator) -> None:
    """Cosmic rays; pixels with a flag, or NaN, or both, or NaN in another plane only."""
    sci = planes["data"]
    sci[rng.random(sci.shape) < 0.002] += 5
    for flag, value in ((1, np.nan), (1, None), (SATURATED, None)):
        at = rng.random(sci.shape) < 0.003
        dq[at] |= flag
        if value is not None:
            sci[at] = value
    for name in ("data", "err", "var_rnoise"):
        planes[name][rng.random(sci.shape) < 0.001] = np.nan


def _spoil_edges(planes: dict[str, np.ndarray], dq: np.ndarray, miri: bool) -> None:
    """Bad pixels at every edge, in the corners, and a lump in whose middle there is nothing good around."""
    sci = planes["data"]
    for at in ((0, 9), (12, 0), (-1, 7), (8, -1), (0, 0), (-1, -1), (0, -1), (1, 1), (2, 20), (21, 1)):
        sci[(slice(None), *at)] = np.nan
    sci[:, 30:34, 8:13] = np.nan
    dq[:, 30:32, 8:13] |= 1
    dq[:, 36, 36] |= SATURATED
    if miri:
        dq[:, :, -4:] |= NON_SCIENCE | 1
        dq[:, 5:7, 20:23] |= NON_SCIENCE  # good ones: what has a value keeps it
        sci[:, 20:, -3:] = np.nan


def write_exposure(kit: Kit, case: Case, base: str, planes: dict[str, np.ndarray], roll: float) -> str:
    """Write one ``_calints.fits`` into the current folder; returns its name."""
    detector, band, pupil, kind, coronagraph, scale = CAMERAS[case.camera]
    name = f"{base}_{detector.lower()}_calints.fits"
    model = kit.datamodels.CubeModel(planes["data"].shape)
    for plane, values in planes.items():
        setattr(model, plane, values)
    expose(model, name, kind, band, pupil)
    point(model, roll)
    if case.camera == "MIRI":
        describe(model, dict.fromkeys(("instrument.channel", "instrument.module", "instrument.pupil")))
    describe(model, {
        "instrument.name": case.camera, "instrument.detector": detector, "instrument.coronagraph": coronagraph,
        "observation.observation_number": base[7:10].lstrip("0"), "observation.exposure_number": base[17:19],
        "exposure.integration_start": 1, "exposure.integration_end": case.nints,
        "bunit_data": "MJy/sr", "bunit_err": "MJy/sr", "cal_step.photom": "COMPLETE",
        "photometry.pixelarea_steradians": scale**2 * STERADIANS, "photometry.pixelarea_arcsecsq": scale**2,
    })  # fmt: skip
    step = importlib.import_module("jwst.assign_wcs").AssignWcsStep
    model = step.call(
        model, override_distortion="distortion.asdf", override_filteroffset="N/A", configure_log=False
    )  # fmt: skip
    model.meta.filename = name
    model.save(name)
    return name


def write_weights(kit: Kit, case: Case) -> None:
    """Write ``psfmask.fits``: a ring with weights of many values."""
    kit.psfmask("psfmask.fits", case.shape, instrument=case.camera, detector=CAMERAS[case.camera][0])
    with fits.open("psfmask.fits", mode="update") as file:
        file["SCI"].data *= np.random.default_rng(17).uniform(0.3, 1.0, case.shape).astype(np.float32)


def write_members(kit: Kit, case: Case) -> dict[str, str]:
    """Write the exposures; returns the members of the association, with their roles."""
    members = []
    for k in range(1, case.science + 1):
        at = (0.0, 0.0) if case.alike else (-0.07, 0.1 * k)
        planes = pixels(case, case.shape, k, at, True)
        members.append((write_exposure(kit, case, f"jw00001001001_0310{k}_00001", planes, 20.0 + 10 * k), "science"))
    for k in range(1, case.psf + 1):
        smaller = case.uneven and k == case.psf
        shape = (case.shape[0] - 2, case.shape[1]) if smaller else case.shape
        planes = pixels(case, shape, 10 + k, case.shifts[k - 1], False)
        members.append((write_exposure(kit, case, f"jw00001003001_0310{k}_00001", planes, 30.0), "psf"))
    return dict(members)


# ---------------------------------------------------------------- runs
@contextmanager
def watched(patched: bool) -> Iterator[dict[str, np.ndarray]]:
    """Keep what the reference computes on the way; with `patched` its shifts are made in double precision.

    Yields
    ------
    dict of str to ndarray
        For each science exposure k: ``psf_k`` and ``science_k``, the filled planes; ``shifts_k``, (x, y, factor) of each
        reference; ``klip_science_k`` and ``klip_psf_k``, what KLIP is given.
    """
    fill = importlib.import_module("jwst.coron.align_refs_step")
    registration = importlib.import_module("jwst.coron.imageregistration")
    klip = importlib.import_module("jwst.coron.klip")
    saved = (fill.median_replace_img, registration.align_array, registration.fourier_imshift, klip.klip)
    kept: dict[str, np.ndarray] = {}

    def keep(name: str, values: np.ndarray) -> None:
        number = sum(key.rpartition("_")[0] == name for key in kept)
        kept[f"{name}_{number}"] = np.array(values)

    def filling(model: Any, *rest: Any) -> Any:
        filled = saved[0](model, *rest)
        calls = sum(key.startswith(("psf_", "science_")) for key in kept)
        keep("science" if calls % 2 else "psf", filled.data)
        return filled

    def aligning(*given: Any, **named: Any) -> Any:
        shifts = saved[1](*given, **named)
        keep("shifts", shifts)
        return shifts

    def subtracting(science: Any, psf: Any, *rest: Any, **named: Any) -> Any:
        keep("klip_science", science.data)
        keep("klip_psf", psf.data)
        return saved[3](science, psf, *rest, **named)

    fill.median_replace_img, registration.align_array, klip.klip = filling, aligning, subtracting
    if patched:
        registration.fourier_imshift = lambda image, shift: saved[2](np.asarray(image, np.float64), shift)
    try:
        yield kept
    finally:
        fill.median_replace_img, registration.align_array, registration.fourier_imshift, klip.klip = saved


def write_contrast() -> None:
    """Let the reference make a contrast curve and a signal-to-noise image of its combined image."""
    step = importlib.import_module("jwst.coron").HlspStep
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        step.call(f"peer/{PRODUCT}_i2d.fits", output_dir="peer", configure_log=False)


def run(kit: Kit, case: Case) -> dict[str, Any]:
    """Make a case in the current folder and run the reference on it; returns what ``case.json`` says."""
    detector, *_, scale = CAMERAS[case.camera]
    y0, x0 = ((size - 1) / 2 for size in case.shape)
    kit.distortion("distortion.asdf", scale, (y0, x0), instrument=case.camera, detector=detector)
    if case.masked:
        write_weights(kit, case)
    write_association(ASSOCIATION, "coron3", {PRODUCT: write_members(kit, case)}, "Asn_Lv3Coron", "a3001")
    steps: Steps = {step: {} for step in STEPS}
    steps["outlier_detection"]["save_intermediate_results"] = True
    steps["align_refs"]["override_psfmask"] = "psfmask.fits" if case.masked else "N/A"
    for step, parameters in case.steps.items():
        steps[step] |= parameters
    Path("peer").mkdir()
    with watched(case.patched) as kept:
        seconds, error = reference("Coron3Pipeline", ASSOCIATION, steps, case.saved)
    if error.partition(":")[0] != case.fails:
        raise RuntimeError(f"{case.name}: the reference ended with {error or 'success'}, not {case.fails or 'success'}")
    if 53 in case.lines:
        write_contrast()
    np.savez("recorded.npz", **kept)
    products = sorted(path.name for path in Path("peer").iterdir())
    return {
        "name": case.name, "why": case.why, "lines": case.lines, "association": ASSOCIATION, "steps": steps,
        "patched": case.patched, "saved": case.saved, "shifts": case.shifts[: case.psf] if case.alike else None,
        "peer_error": error, "products": products, "statuses": {name: statuses(name) for name in products},
        "cpu_seconds": round(seconds, 2),
    }  # fmt: skip


if __name__ == "__main__":
    run_cases(run, CASES)
