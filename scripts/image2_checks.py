"""The checklist of image2, measured on the products of both sides: statements, one function each, known differences."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from compare_products import compare_headers
from image3_checks import Measure
from image3_products import cards, layout, plane_differences, sip_error, wcs_of
from judging import Checklist
from parity_cases import Deliberate
from parity_lines import Line
from peer_image2_cases import CASES
from sides import Sides

PLANES = ("SCI", "ERR", "DQ", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")
FRAMES = ["detector", "v2v3", "v2v3vacorr", "world"]
FRAME = ("CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2", "CDELT1", "CDELT2", "PC1_1", "PC1_2", "PC2_1", "PC2_2")
PHOTOMETRY = ("PHOTMJSR", "PHOTUJA2", "PIXAR_SR", "PIXAR_A2", "BUNIT")
SAME_SKY = 1e-12  # degrees
SAME_PIXEL = 1e-6
SIP_LIMIT = 0.0105  # px: the fit's own limit is 0.01 on its nodes, the points here lie between them
REFERENCE_RATIO = 1e-7
TOLERANCE = 1e-9  # relative, of the numbers of an output frame
DO_NOT_USE, NO_FLAT = 1, 1 << 18


@dataclass(frozen=True)
class Run(Sides):
    """Both sides of one case."""

    def pair(self, ending: str) -> tuple[Path, Path]:
        """Our product and the reference's whose names end so.

        Raises
        ------
        RuntimeError
            If either is missing.
        """
        found = [sorted(folder.glob(f"*_{ending}.fits")) for folder in (self.ours, self.theirs)]
        if not all(found):
            raise RuntimeError(f"no {ending} of {'ours' if not found[0] else 'the reference'} {self.error[-120:]}")
        return found[0][0], found[1][0]

    @property
    def cal(self) -> tuple[Path, Path]:
        """The calibrated exposures."""
        return self.pair("cal" if "ints" not in self.science.name else "calints")

    @property
    def bsub(self) -> tuple[Path, Path]:
        """The exposures without background."""
        return self.pair("bsub" if "ints" not in self.science.name else "bsubints")

    @property
    def science(self) -> Path:
        """The exposure that was started from."""
        tree = json.loads((self.inputs / self.facts["association"]).read_text())
        return self.inputs / str(tree["products"][0]["members"][0]["expname"])


Check = Callable[[Run], Measure]


def _planes(pair: tuple[Path, Path], names: tuple[str, ...]) -> Measure:
    found = list(plane_differences(*pair, names))
    bad = [(name, d) for name, d in found if d.differ]
    size = max((d.size if d.nan_equal else math.inf for _, d in found), default=math.inf)
    pixels = sum(d.pixels for _, d in found)
    text = "; ".join(f"{name} {d.text()}" for name, d in bad)
    return Measure(text or f"{len(found)} planes identical ({pixels} px)", bool(found) and not bad, size)


def _both(*measures: Measure) -> Measure:
    text = "; ".join(m.text for m in measures)
    return Measure(text, all(m.holds for m in measures), max(m.size for m in measures))


def _cards(pair: tuple[Path, Path], extension: str, names: tuple[str, ...], relative: float = 0.0) -> Measure:
    ours, theirs = (cards(path, extension) for path in pair)
    bad = [n for n in names if not _same(ours.get(n), theirs.get(n), relative)]
    shown = [f"{n} {ours.get(n)} / {theirs.get(n)}" for n in bad]
    there = sum(n in theirs for n in names)
    return Measure("; ".join(shown) or f"{there} keywords equal", not bad, math.inf if bad else 0.0)


def _same(a: object, b: object, relative: float) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=relative)
    return a == b


# ---------------------------------------------------------------- statements
def mean(run: Run) -> Measure:
    """1, 2: the mean background, its error and flags."""
    return _planes(run.pair("combinedbackground"), ("SCI", "ERR", "DQ"))


def only_counts_and_flags(run: Run) -> Measure:
    """3: what subtraction changes."""
    ours, theirs = run.bsub
    same = _planes((ours, run.science), ("ERR", "VAR_POISSON", "VAR_RNOISE"))
    return _both(_planes((ours, theirs), PLANES), Measure(f"others as they came: {same.text}", same.holds, same.size))


def no_background(run: Run) -> Measure:
    """4: nothing is said and nothing written."""
    header = cards(run.cal[0])
    written = [p.name for p in run.ours.glob("*_bsub*")]
    return Measure(f"S_BKDSUB {header.get('S_BKDSUB')}, {len(written)} _bsub", "S_BKDSUB" not in header and not written)


def positions(run: Run) -> Measure:
    """5, 6: the sky of 25 pixels, the way back, and the frames."""
    ours, theirs = (wcs_of(path) for path in run.cal)
    header = cards(run.cal[1], "SCI")
    nx, ny = header["NAXIS1"], header["NAXIS2"]
    x, y = (a.ravel() for a in np.meshgrid(np.linspace(0, nx - 1, 5), np.linspace(0, ny - 1, 5)))
    here, there = (np.array(w(x, y, with_bounding_box=False)) for w in (ours, theirs))
    apart = float(np.abs(here - there).max())
    back = [np.array(w.invert(*there, with_bounding_box=False)) for w in (ours, theirs)]
    pixel = float(np.abs(back[0] - back[1]).max())
    named = list(ours.available_frames) == list(theirs.available_frames) == FRAMES
    text = f"{apart:.1e} deg, back {pixel:.1e} px, frames {'equal' if named else ours.available_frames}"
    return Measure(text, apart <= SAME_SKY and pixel <= SAME_PIXEL and named, apart)


def outline(run: Run) -> Measure:
    """7: the bounding box and S_REGION to the letter."""
    boxes = [wcs_of(path).bounding_box.bounding_box(order="F") for path in run.cal]
    same = [tuple(float(v) for pair in box for v in pair) for box in boxes]
    text = _cards(run.cal, "SCI", ("S_REGION",))
    return _both(text, Measure(f"box {same[0]}", same[0] == same[1], 0.0))


def sip(run: Run) -> Measure:
    """8: how far the FITS keywords are from the gWCS."""
    error, kind = sip_error(run.cal[0]), cards(run.cal[0], "SCI")["CTYPE1"]
    return Measure(f"{error:.1e} px, {kind}", error <= SIP_LIMIT and kind.endswith("-SIP"), error)


def bad_flat(run: Run) -> Measure:
    """9: flags and NaN where the flat field is no use."""
    ours, _ = run.pair("flat_field")
    with fits.open(ours) as hdus:
        dq, sci = np.array(hdus["DQ"].data), np.array(hdus["SCI"].data)
    none = (dq & NO_FLAT) > 0
    good = bool(none.any()) and bool((dq[none] & DO_NOT_USE).all()) and bool(np.isnan(sci[none]).all())
    return _both(Measure(f"{int(none.sum())} px without flat field are NaN and flagged", good, 0.0), flat_planes(run))


def flat_planes(run: Run) -> Measure:
    """9, 10, 11: all planes after the flat field; a skipped step says so."""
    if run.facts["peer_error"]:
        return _errors(run)
    header = [cards(path) for path in run.cal]
    states = [h.get("S_FLAT") for h in header]
    if states[1] == "SKIPPED":
        return _both(_planes(run.cal, PLANES), Measure(f"S_FLAT {states[0]}", states[0] == states[1], 0.0))
    saved = "flat_field" if list((run.inputs / "peer").glob("*_flat_field.fits")) else ""
    return _planes(run.pair(saved) if saved else run.cal, PLANES)


def _errors(run: Run) -> Measure:
    """Cases by which the reference ends with an error."""
    text = f"ours {run.error or 'succeeds'}; reference {run.facts['peer_error']}"
    return Measure(" ".join(text.split())[:200], bool(run.error), 0.0 if not run.error else math.inf)


def cut(run: Run) -> Measure:
    """11: what is cut out of larger reference files."""
    if run.facts["peer_error"]:
        return _errors(run)
    return _both(flat_planes(run), _planes(run.cal, (*PLANES, "AREA")))


def photometry(run: Run) -> Measure:
    """12, 13: pixels and keywords after the conversion."""
    return _both(_planes(run.cal, PLANES), _cards(run.cal, "SCI", PHOTOMETRY, REFERENCE_RATIO))


def rows(run: Run) -> Measure:
    """14: which row of the table counts, and what happens without."""
    if run.facts["peer_error"]:
        return _errors(run)
    state = _cards(run.cal, "PRIMARY", ("S_PHOTOM",))
    return _both(photometry(run), Measure(f"S_PHOTOM {state.text}", state.holds, 0.0))


def inverse(run: Run) -> Measure:
    """15: inverse steps."""
    return photometry(run)


def structure(run: Run) -> Measure:
    """16: extensions, units, keywords."""
    found = []
    for ours, theirs in _products(run):
        same = layout(ours) == layout(theirs)
        other = [f.text() for f in compare_headers(ours, theirs) if not f.reason]
        name = ours.name.rpartition("_")[2]
        text = f"{name}: {'same extensions' if same else 'OTHER extensions'}, {len(other)} other keywords {other[:3] or ''}"
        found.append(Measure(text, same and not other, 0.0))
    return _both(*found)


def _products(run: Run) -> Iterator[tuple[Path, Path]]:
    yield run.cal
    if list((run.inputs / "peer").glob("*_i2d.fits")):
        yield run.pair("i2d")


def rectified(run: Run) -> Measure:
    """17: the rectified image."""
    pair = run.pair("i2d")
    frame = _cards(pair, "SCI", FRAME, TOLERANCE)
    return _both(_planes(pair, ("SCI", "ERR", "CON", "WHT", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")), frame)


CHECKS: dict[int, Check] = {
    1: mean, 2: mean, 3: only_counts_and_flags, 4: no_background, 5: positions, 6: positions, 7: outline, 8: sip, 9: bad_flat,
    10: flat_planes, 11: cut, 12: photometry, 13: photometry, 14: rows, 15: inverse, 16: structure, 17: rectified,
}  # fmt: skip

_TEXTS = {
    1: "mean of 2-D backgrounds, its ERR and the OR of DQ equal",
    2: "mean of 3-D backgrounds of other lengths equal",
    3: "background subtraction changes SCI and DQ only",
    4: "no background: no S_BKDSUB, no _bsub",
    5: "gWCS forward to 1e-12 deg, inverse to 1e-6 px, names of the frames",
    6: "velocity aberration and sub-array offsets included",
    7: "bounding box of the sub-array, S_REGION to the letter",
    8: "FITS-SIP keywords within 0.01 px of the gWCS",
    9: "pixels without flat field: DQ 1 (+ 2^18) and NaN",
    10: "VAR_FLAT, VAR_POISSON, VAR_RNOISE, ERR after the flat field; a small flat field is SKIPPED",
    11: "sub-array cut out of larger flat field and area",
    12: "float32 product without, double product with time tables; PHOTMJSR, PHOTUJA2",
    13: "exponential and power-law changes, several tables multiply",
    14: "MIRI falls back to GENERIC; without a row data and BUNIT stay (SKIPPED)",
    15: "inverse flat_field and photom",
    16: "extensions, BUNIT, PIXAR, AREA, keywords of _cal and _i2d",
    17: "_i2d of 2-D images only: planes and frame equal",
    18: "bands of any height give the same pixels",
}
_TESTS = {
    6: ("sky/test_imaging_wcs.py",),
    15: ("stages/test_flat_field.py", "stages/test_photom.py"),
    18: ("pipelines/test_image2.py",),
}
LINES = tuple(
    Line(number, text, tuple(name for name, case in CASES.items() if number in case.lines), _TESTS.get(number, ()))
    for number, text in _TEXTS.items()
)

_ZEROS = (
    "a pixel without a value in any integration of a background counts as 0 in the reference's mean; here that background "
    "is left out of it"
)
_PLACE = (
    "the reference puts what overlaps of a background at the origin of the science array, wherever it belongs; here it is "
    "put where it belongs"
)
_ANY = 1e9  # a difference without a bound: other numbers are subtracted
DELIBERATE = (
    Deliberate(2, ("cube", "cube-empty"), _ANY, _ZEROS),
    Deliberate(3, ("cube",), _ANY, _ZEROS),
    Deliberate(1, ("cover-end",), math.inf, _PLACE),
    Deliberate(2, ("cube-part",), math.inf, f"{_PLACE}; {_ZEROS}"),
    Deliberate(
        10, ("no-variances",), 1.0, "the reference ends with an error; here ERR is made of the exposure's own ERR"
    ),
    Deliberate(14, ("unmatched",), 1.0, "nothing has been converted, so the step says SKIPPED, not COMPLETE"),
    Deliberate(
        16, ("no-variances-no-flat",), 1.0, "without variances there are none in _i2d; the reference writes empty ones"
    ),
)

CHECKLIST = Checklist(LINES, CHECKS, DELIBERATE)
