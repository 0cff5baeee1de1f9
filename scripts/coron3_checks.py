"""The checklist of coron3, measured on the products of both sides: statements, one function each, known differences."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table
from compare_products import compare_headers
from image3_checks import Measure
from image3_products import cards, layout, plane_differences
from judging import Checklist
from numpy.typing import NDArray
from parity_cases import Deliberate
from parity_lines import Line
from peer_coron3 import CASES
from sides import Sides

from streamimg3.kernels.bad_fill import NON_SCIENCE, Filling, fill_bad
from streamimg3.kernels.klip import accumulate, project, solve
from streamimg3.stages.reference_planes import flags_of

Array = NDArray[Any]
PLANES = ("SCI", "ERR", "DQ", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")
PEAK = 1e-6  # of the brightest pixel of the star: what float32 products can tell
SAME_SHIFT, TRUE_SHIFT = 1e-6, 1e-3  # pixels
# Keywords of i2d that the reference replaces by those of the exposures when it blends them once more at the end
QUIRKS = ("PIXAR_SR", "PIXAR_A2", "XPOSURE", "TELAPSE")


@dataclass(frozen=True)
class Run(Sides):
    """Both sides of one case."""

    def members(self, kind: str) -> list[str]:
        """Files of the association of one role."""
        tree = json.loads((self.inputs / self.facts["association"]).read_text())
        return [m["expname"] for m in tree["products"][0]["members"] if m["exptype"] == kind]

    def pairs(self, ending: str) -> list[tuple[Path, Path]]:
        """Our products and the reference's whose names end so.

        Raises
        ------
        RuntimeError
            If the names differ, or there are none.
        """
        ours, theirs = (sorted(p.name for p in folder.glob(f"*_{ending}.fits")) for folder in (self.ours, self.theirs))
        if ours != theirs or not ours:
            raise RuntimeError(f"{ending}: ours {ours}, reference {theirs} {self.error[-120:]}")
        return [(self.ours / name, self.theirs / name) for name in ours]

    @property
    def recorded(self) -> dict[str, Array]:
        """What the reference keeps to itself."""
        with np.load(self.inputs / "recorded.npz") as arrays:
            return {k: v.astype(v.dtype.newbyteorder("=")) for k, v in arrays.items()}

    def document(self, name: str) -> dict[str, Any]:
        """A document of our store."""
        found: dict[str, Any] = json.loads((self.ours / "store.zarr" / "documents" / f"{name}.json").read_text())
        return found

    @property
    def shifts(self) -> list[Array]:
        """Our shifts (x, y) and factors of the references, by science exposure."""
        rows = self.document("align_refs")["exposures"]
        return [np.array([row["x"], row["y"], row["beta"]]).T for row in rows]


Check = Callable[[Run], Measure]


def pixels(path: Path, extension: str) -> Array:
    """Pixels of one extension, in the machine's byte order."""
    with fits.open(path) as hdus:
        data = hdus[extension].data
        return np.ascontiguousarray(data.astype(data.dtype.newbyteorder("=")))


def _both(*measures: Measure) -> Measure:
    text = "; ".join(m.text for m in measures if m.text)
    return Measure(text, all(m.holds for m in measures), max(m.size for m in measures))


def _equal(pairs: list[tuple[Path, Path]], names: tuple[str, ...]) -> Measure:
    """Planes bit by bit."""
    found = [(name, d) for pair in pairs for name, d in plane_differences(*pair, names)]
    bad = [f"{name} {d.text()}" for name, d in found if d.differ]
    size = max((d.size if d.nan_equal else math.inf for _, d in found), default=math.inf)
    count = sum(d.pixels for _, d in found)
    return Measure("; ".join(bad) or f"{len(found)} planes identical ({count} px)", bool(found) and not bad, size)


def _apart(ours: Array, theirs: Array, peak: float) -> float:
    """Largest difference, in units of the peak; inf if NaN stands elsewhere."""
    if ours.shape != theirs.shape or not np.array_equal(np.isnan(ours), np.isnan(theirs)):
        return math.inf
    return float(np.nanmax(np.abs(ours.astype(np.float64) - theirs), initial=0.0)) / peak


def _headers(pairs: list[tuple[Path, Path]]) -> Measure:
    """Extensions and keywords."""
    other = [f.text() for pair in pairs for f in compare_headers(*pair) if not f.reason and f.keyword not in QUIRKS]
    same = all(layout(ours) == layout(theirs) for ours, theirs in pairs)
    text = f"{'same extensions' if same else 'OTHER extensions'}, {len(other)} other keywords {other[:4] or ''}"
    return Measure(text, same and not other, 0.0 if same else math.inf)


# ---------------------------------------------------------------- statements
def exposures(run: Run) -> Measure:
    """40: every exposure after outlier detection."""
    pairs = run.pairs("crfints")
    once = all(ours.name.count("_a3001_") == 1 for ours, _ in pairs)
    return _both(_equal(pairs, PLANES), _headers(pairs), Measure("", once, 0.0))


def stack(run: Run) -> Measure:
    """41: the references one after the other."""
    if run.facts["peer_error"].startswith("ValueError"):
        return Measure(f"refused: {run.error[-120:]}", "different shapes" in run.error, 0.0)
    pairs = run.pairs("psfstack")
    return _both(_equal(pairs, ("SCI", "ERR", "DQ")), _headers(pairs))


def filled(run: Run) -> Measure:
    """42: what bad pixels become, in references and science."""
    parameters, recorded = run.facts["steps"]["align_refs"], run.recorded
    bits = parameters.get("bad_bits", "DO_NOT_USE")
    blank = NON_SCIENCE if CASES[run.inputs.name].camera == "MIRI" else 0
    filling = Filling(parameters.get("median_box_length", 3), flags_of(bits or ""), blank, True)
    (stacked, _), different, count = run.pairs("psfstack")[0], 0, 0
    science = [run.ours / name.replace("calints", "a3001_crfints") for name in run.members("science")]
    wanted = [(stacked, "psf_0"), *((path, f"science_{k}") for k, path in enumerate(science))]
    for path, name in wanted:
        made = pixels(path, "SCI")
        fill_bad(made, pixels(path, "DQ").astype(np.uint32), filling)
        different += int(np.count_nonzero(made.view(np.uint32) != recorded[name].view(np.uint32)))
        count += made.size
    return Measure(f"{different} of {count} pixels differ", different == 0, float(different))


def known_shifts(run: Run) -> Measure:
    """44: shifts that are known."""
    shifts = np.repeat(np.array(run.facts["shifts"])[:, ::-1], CASES[run.inputs.name].nints, axis=0)
    errors = [float(np.abs(found[:, :2] - shifts).max()) for found in run.shifts]
    theirs = [float(np.abs(run.recorded[f"shifts_{k}"][:, :2] - shifts).max()) for k in range(len(errors))]
    text = f"ours {max(errors):.1e} px from the truth, reference {max(theirs):.1e} px"
    return Measure(text, max(errors) <= TRUE_SHIFT, max(errors))


def same_shifts(run: Run) -> Measure:
    """45, 46: shifts and factors as the reference finds them in double precision."""
    recorded = run.recorded
    apart = [np.abs(found - recorded[f"shifts_{k}"]).max(axis=0) for k, found in enumerate(run.shifts)]
    shift, factor = float(np.max([a[:2] for a in apart])), float(np.max([a[2] for a in apart]))
    return Measure(f"shifts {shift:.1e} px, factors {factor:.1e} apart", shift <= SAME_SHIFT, shift)


def aligned(run: Run) -> Measure:
    """45: the aligned references, and their errors."""
    pairs, measures = run.pairs("psfalign"), []
    for ours, theirs in pairs:
        sci, other = pixels(ours, "SCI"), pixels(theirs, "SCI")
        measures.append(_apart(sci, other, float(np.abs(other).max())))
    errors = [(np.isnan(pixels(o, "ERR")).mean(), np.isnan(pixels(t, "ERR")).mean()) for o, t in pairs]
    mine, peer = (float(np.mean(e)) for e in zip(*errors, strict=True))
    text = f"SCI {max(measures):.1e} of peak apart, 3-D; NaN in ERR ours {mine:.0%}, reference {peer:.0%}"
    return _both(same_shifts(run), Measure(text, max(measures) <= PEAK and mine == 0.0, max(measures)), _headers(pairs))


def weights(run: Run) -> Measure:
    """46: weights count; without them nothing is moved."""
    if not CASES[run.inputs.name].masked:
        state = run.document("run")["statuses"]["align_refs"]
        theirs = sorted(run.theirs.glob("*_psfalign.fits"))
        told = cards(theirs[0]).get("S_PSFALI") if theirs else "-"
        return Measure(f"align_refs {state}, reference {told}", state == "SKIPPED", 0.0)
    return same_shifts(run)


def subtracted(run: Run) -> Measure:
    """47: what is left of the star, from the whole run and from what the reference subtracted."""
    measures = []
    for k, (ours, theirs) in enumerate(run.pairs("psfsub")):
        peak = float(np.nanmax(np.abs(run.recorded[f"klip_science_{k}"])))
        measures.append(tuple(_apart(pixels(ours, e), pixels(theirs, e), peak) for e in ("SCI", "ERR")))
        same = [bool(np.array_equal(plane, pixels(ours, "ERR")[0])) for plane in pixels(ours, "ERR")]
        measures[-1] = (*measures[-1], 0.0 if all(same) else math.inf)  # type: ignore[assignment]
    worst = [float(max(m[i] for m in measures)) for i in range(3)]
    others = _equal(run.pairs("psfsub"), ("DQ", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT"))
    text = f"SCI {worst[0]:.1e}, ERR {worst[1]:.1e} of the star's peak apart"
    whole = Measure(text, max(worst) <= PEAK, max(worst))
    return _both(same_input(run), whole, others, _headers(run.pairs("psfsub")))


def same_input(run: Run) -> Measure:
    """47: KLIP of the very planes that the reference subtracted."""
    recorded, wanted = run.recorded, run.facts["steps"]["klip"].get("truncate", 50)
    measures = []
    for k, (_, theirs) in enumerate(run.pairs("psfsub")):
        science, refs = recorded[f"klip_science_{k}"], recorded[f"klip_psf_{k}"]
        made = project(refs, science, solve(accumulate(refs, science), [wanted]))
        peak = float(np.nanmax(np.abs(science)))
        measures.append(_apart(made.subtracted[0], pixels(theirs, "SCI"), peak))
        measures.append(_apart(made.err[0], pixels(theirs, "ERR")[0], peak))
    return Measure(f"same aligned cube: {max(measures):.1e} of peak", max(measures) <= PEAK, max(measures))


def tolerant(run: Run) -> Measure:
    """49: NaN and a single reference."""
    made = [pixels(path, "SCI") for path in sorted(run.ours.glob("*_psfsub.fits"))]
    finite = float(np.mean([np.isfinite(sci).mean() for sci in made])) if made else 0.0
    notes = run.document("klip")["notes"] if made else []
    text = f"{finite:.1%} finite ({'; '.join(notes)[:100]}); reference {run.facts['peer_error'][:60]}"
    return Measure(text, finite > 0.5 and bool(notes), 0.0)


def mosaic(run: Run) -> Measure:
    """51: the combined image."""
    pairs = run.pairs("i2d")
    (ours, theirs), names = pairs[0], ("SCI", "ERR", "WHT", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")
    worst = max(_apart(pixels(ours, e), pixels(theirs, e), float(np.nanmax(np.abs(pixels(theirs, e)), initial=1e-30)))
                for e in names if np.isfinite(pixels(theirs, e)).any())  # fmt: skip
    context = _equal(pairs, ("CON", "WHT"))
    planes = -(-len(run.members("science")) * CASES[run.inputs.name].nints // 32)
    table = len(fits.getdata(ours, "HDRTAB"))
    depth = pixels(ours, "CON").shape[0]
    text = f"planes {worst:.1e} of their peak apart; CON {depth} planes, HDRTAB {table} rows"
    right = depth == planes and table == len(run.members("science"))
    return _both(Measure(text, worst <= PEAK and right, worst), context, _headers(pairs))


def written(run: Run) -> Measure:
    """52: which products there are."""
    if not run.members("psf") or not run.members("science"):
        there = [p.name for p in run.ours.glob("*.fits")]
        return Measure(f"{len(there)} products: {run.error[-140:]}", not there and "exptype" in run.error, 0.0)
    kinds = ("psfstack", "psfalign", "psfsub", "i2d")
    missing = [k for k in kinds if not list(run.ours.glob(f"*_{k}.fits"))]
    return Measure(f"missing: {missing}" if missing else f"{', '.join(kinds)} written", not missing, 0.0)


def contrast(run: Run) -> Measure:
    """53: the contrast curve and the signal-to-noise image."""
    (path,) = run.ours.glob("*_contrast.ecsv")
    ours, theirs = Table.read(path), fits.getdata(next(run.theirs.glob("*_contrast.fits")), "CONTRAST")
    radii = np.array_equal(np.asarray(ours["radius"]), theirs["radius"])
    sigma = _apart(
        np.asarray(ours["sigma"]), np.asarray(theirs["sigma"], np.float32), float(np.nanmax(theirs["sigma"]))
    )
    snr = [pixels(next(folder.glob("*_snr.fits")), "SCI") for folder in (run.ours, run.theirs)]
    apart = _apart(snr[0], snr[1], float(np.nanmax(np.abs(snr[1]))))
    text = f"radii {'equal' if radii else 'DIFFER'}, sigma {sigma:.1e}, SNR {apart:.1e} of the largest apart"
    return Measure(text, radii and max(sigma, apart) <= PEAK, max(sigma, apart))


CHECKS: dict[int, Check] = {
    40: exposures, 41: stack, 42: filled, 44: known_shifts, 45: aligned, 46: weights, 47: subtracted, 49: tolerant,
    51: mosaic, 52: written, 53: contrast,
}  # fmt: skip

_TEXTS = {
    40: "crfints of psf and science exposures, names with the association's id once",
    41: "psfstack in association order; other shapes are refused",
    42: "bad pixels filled, low edges and MIRI's NON_SCIENCE included",
    43: "shift operator as scipy's fourier_shift",
    44: "known shifts are recovered to 1e-3 px",
    45: "psfalign as the reference's in double precision; ERR is not poisoned by NaN",
    46: "psfmask weights count; N/A is SKIPPED",
    47: "psfsub for any number of components; ERR the same for all integrations",
    48: "KLIP as pyKLIP's klip_math",
    49: "NaN and a single reference are handled",
    50: "KLIP does not depend on bands; one decomposition for all integrations",
    51: "i2d of all integrations: planes, CON, HDRTAB",
    52: "what is written; without psf or science nothing is",
    53: "contrast curve and signal-to-noise image",
}
_TESTS = {
    42: ("kernels/test_bad_fill.py",),
    43: ("kernels/test_align.py",),
    48: ("kernels/test_klip.py",),
    50: ("kernels/test_klip.py", "pipelines/test_coron3.py"),
    53: ("kernels/test_contrast.py",),
}
LINES = tuple(
    Line(number, text, tuple(n for n, case in CASES.items() if number in case.lines and number in CHECKS),
         _TESTS.get(number, ()))
    for number, text in _TEXTS.items()
)  # fmt: skip


_UNSHIFTED = (
    "as released the reference finds no shifts (single precision), so that it subtracts references that are not aligned; "
    "what is made of the same aligned cube agrees"
)
_FIT = (
    "of 34 references 3 lie so badly that the reference's fit ends 6e-5 px from the minimum (the sum of squares is smaller here); "
    "what is made of the same aligned cube agrees"
)
DELIBERATE: tuple[Deliberate, ...] = (
    Deliberate(47, ("stock",), math.inf, _UNSHIFTED),
    Deliberate(47, ("many",), 1e-5, _FIT),
    Deliberate(51, ("many",), 1e-5, _FIT),
)

CHECKLIST = Checklist(LINES, CHECKS, DELIBERATE)
