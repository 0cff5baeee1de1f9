"""The checklist of tso3, measured on the products of both sides: statements, one function each, known differences."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import QTable
from image3_checks import Measure
from judging import Checklist
from parity_cases import Deliberate
from parity_lines import Line
from peer_tso3 import CASES
from sides import Sides

PLANES = ("SCI", "ERR", "DQ", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")
SUMS = (
    "aperture_sum", "aperture_sum_err", "annulus_sum", "annulus_sum_err", "annulus_mean", "annulus_mean_err",
    "aperture_bkg", "aperture_bkg_err", "net_aperture_sum", "net_aperture_sum_err",
)  # fmt: skip
PLACES = ("aperture_x", "aperture_y", "centroid_x", "centroid_y")
SHAPES = ("psf_width_x", "psf_width_y", "psf_flux")
NUMBERS = (
    "FLUX", "FLUX_ERROR", "FLUX_VAR_POISSON", "FLUX_VAR_RNOISE", "FLUX_VAR_FLAT", "SURF_BRIGHT", "SB_ERROR",
    "SB_VAR_POISSON", "SB_VAR_RNOISE", "SB_VAR_FLAT", "BACKGROUND", "BKGD_ERROR", "BKGD_VAR_POISSON", "BKGD_VAR_RNOISE",
    "BKGD_VAR_FLAT", "NPIXELS",
)  # fmt: skip
TIMES = ("INT_NUM", "SEGMENT", "MJD-BEG", "MJD-AVG", "MJD-END", "TDB-BEG", "TDB-MID", "TDB-END", "N_ALONGDISP")
# Keywords that name the software, the moment or the reference's own services; S_REGION repeats the first segment's
OWN = re.compile(r"DATE|CAL_VER|CAL_VCS|CRDS_VER|CRDS_CTX|S3VER|CHECKSUM|DATASUM|R_APCORR|COMMENT|HISTORY|")
DO_NOT_USE, OUTLIER = 1, 16


@dataclass(frozen=True)
class Run(Sides):
    """Both sides of one case."""

    def segments(self, ending: str) -> list[tuple[Path, Path]]:
        """Our product and the reference's for each segment.

        Raises
        ------
        RuntimeError
            If one is missing.
        """
        names = [m.replace("_calints.fits", f"_o001_{ending}") for m in self.facts["members"]]
        pairs = [(self.ours / name, self.theirs / name) for name in names]
        lost = [str(p) for pair in pairs for p in pair if not p.exists()]
        if lost:
            raise RuntimeError(f"{lost[0]} is missing {self.error[-120:]}")
        return pairs

    def product(self, ending: str) -> tuple[Path, Path]:
        """Our product of the whole and the reference's.

        Raises
        ------
        RuntimeError
            If either is missing.
        """
        found = [sorted(folder.glob(f"jw*_{ending}")) for folder in (self.ours, self.theirs)]
        found = [[p for p in some if "-seg" not in p.name] for some in found]
        if not all(found):
            raise RuntimeError(f"no {ending} of {'ours' if not found[0] else 'the reference'} {self.error[-120:]}")
        return found[0][0], found[1][0]

    @property
    def tables(self) -> tuple[QTable, QTable]:
        """The tables of photometry."""
        ours, theirs = (QTable.read(path) for path in self.product("phot.ecsv"))
        return ours, theirs

    @property
    def curves(self) -> tuple[QTable, QTable]:
        """The light curves."""
        ours, theirs = (QTable.read(path) for path in self.product("whtlt.ecsv"))
        return ours, theirs


Check = Callable[[Run], Measure]


# ---------------------------------------------------------------- helpers
def both(*measures: Measure) -> Measure:
    """Return the measures as one."""
    text = "; ".join(m.text for m in measures if m.text)
    return Measure(text, all(m.holds for m in measures), max(m.size for m in measures))


def pixels(path: Path, name: str) -> np.ndarray:
    """Return an image in this machine's byte order."""
    with fits.open(path) as hdus:
        return np.array(hdus[name].data)


def same_planes(pairs: Sequence[tuple[Path, Path]], names: Sequence[str]) -> Measure:
    """Whether planes agree to the bit."""
    bad, count = [], 0
    for ours, theirs in pairs:
        for name in names:
            a, b = pixels(ours, name), pixels(theirs, name)
            count += a.size
            if a.shape != b.shape or not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
                differ = f"shape {a.shape}/{b.shape}" if a.shape != b.shape else f"{differing(a, b)} px differ"
                bad.append(f"{ours.name[25:31]} {name} {differ}")
    return Measure("; ".join(bad) or f"{len(pairs) * len(names)} planes identical ({count} px)", not bad, len(bad))


def differing(a: np.ndarray, b: np.ndarray) -> int:
    """Number of pixels that differ; NaN is like NaN."""
    same = a == b
    return int(np.count_nonzero(~(same | (np.isnan(a) & np.isnan(b)) if a.dtype.kind == "f" else same)))


def ratio(a: np.ndarray, b: np.ndarray, relative: bool = True) -> float:
    """Largest difference, relative to the reference; infinite where NaN are elsewhere."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or not np.array_equal(np.isnan(a), np.isnan(b)):
        return math.inf
    known = np.isfinite(a) & np.isfinite(b)
    difference, size = np.abs(a - b)[known], np.abs(b)[known]
    if not difference.size:
        return 0.0
    return float((difference / np.where(size > 0, size, 1.0) if relative else difference).max())


def columns_agree(ours: QTable, theirs: QTable, names: Sequence[str], limit: float, relative: bool = True) -> Measure:
    """Whether columns that both tables have agree."""
    there = [n for n in names if n in theirs.colnames]
    lost = [n for n in there if n not in ours.colnames]
    worst = {n: ratio(ours[n].value, theirs[n].value, relative) for n in there if n not in lost}
    name = max(worst, key=lambda n: worst[n], default="")
    size = math.inf if lost else max(worst.values(), default=math.inf)
    text = f"{len(worst)} columns, {'r' if relative else 'px'} <= {size:.1e} ({name})" if worst else "no such column"
    return Measure(f"missing {lost}" if lost else text, size <= limit, size)


def spectra(run: Run) -> Iterator[tuple[np.ndarray, np.ndarray, fits.Header, fits.Header]]:
    """Tables of spectra of both sides with their headers.

    Raises
    ------
    RuntimeError
        If there are not as many of both.
    """
    with fits.open(run.product("x1dints.fits")[0]) as ours, fits.open(run.product("x1dints.fits")[1]) as theirs:
        mine, others = ([h for h in hdus if h.name == "EXTRACT1D"] for hdus in (ours, theirs))
        if len(mine) != len(others):
            raise RuntimeError(f"{len(mine)} tables of spectra, the reference has {len(others)}")
        for a, b in zip(mine, others, strict=True):
            yield a.data, b.data, a.header, b.header


def numbers_agree(run: Run, limit: float) -> Measure:
    """Whether the numbers of all spectra agree, with NaN and DQ at the same places."""
    worst: dict[str, float] = {}
    flags = 0
    for ours, theirs, _, _ in spectra(run):
        flags += int(np.count_nonzero(ours["DQ"] != theirs["DQ"]))
        for name in NUMBERS:
            worst[name] = max(worst.get(name, 0.0), ratio(ours[name], theirs[name]))
    name = max(worst, key=lambda n: worst[n])
    text = f"{len(NUMBERS)} columns, r <= {worst[name]:.1e} ({name}), {flags} flags differ"
    return Measure(text, worst[name] <= limit and not flags, worst[name] if not flags else math.inf)


# ---------------------------------------------------------------- statements on images
def no_series(run: Run) -> Measure:
    """19: what is no time series is refused, and nothing is made."""
    made = [p.name for p in run.ours.iterdir() if p.suffix in (".fits", ".ecsv")]
    theirs = run.facts["products"]
    said = run.error.removeprefix("streamimg3: ")[-140:]
    return Measure(
        f"{said} (products: ours {made}, the reference's {theirs})", "no time series" in said and not made, 0
    )


def medians(run: Run) -> Measure:
    """20: rolling and whole medians."""
    return same_planes(run.segments("median.fits"), ("SCI",))


def flags(run: Run) -> Measure:
    """21: pixels, errors, flags and variances with the outliers."""
    found = same_planes(run.segments("crfints.fits"), PLANES)
    count = sum(int(np.count_nonzero(pixels(ours, "DQ") & OUTLIER)) for ours, _ in run.segments("crfints.fits"))
    return Measure(f"{found.text}, {count} outliers", found.holds, found.size)


def nan_windows(run: Run) -> Measure:
    """22: where the median is NaN nothing is flagged."""
    unknown = flagged = 0
    for (ours, _), (median, _) in zip(run.segments("crfints.fits"), run.segments("median.fits"), strict=True):
        blind = np.isnan(pixels(median, "SCI"))
        unknown += int(blind.sum())
        flagged += int(np.count_nonzero(pixels(ours, "DQ")[blind] & OUTLIER))
    return Measure(f"{unknown} medians are NaN, {flagged} outliers among them", unknown > 0 and not flagged, flagged)


def names(run: Run) -> Measure:
    """24: the association is named once in the names of the cubes."""
    found = sorted(p.name for p in run.ours.glob("*_crfints.fits"))
    theirs = sorted(p.name for p in (run.inputs / "peer").glob("*_crfints.fits"))
    once = all(name.count("_o001") == 1 for name in found)
    return Measure(f"{len(found)} names, the reference's too", bool(found) and once and found == theirs, 0)


def units(run: Run) -> Measure:
    """25: the unit of the photometry."""
    ours, theirs = run.tables
    found = {n: (str(ours[n].unit), str(theirs[n].unit)) for n in (*SUMS, "psf_flux") if n in theirs.colnames}
    bad = {n: pair for n, pair in found.items() if pair[0] != pair[1]}
    return Measure(str(bad) if bad else f"{len(found)} columns in {ours['aperture_sum'].unit}", not bad, len(bad))


def centroids(run: Run) -> Measure:
    """26: where the star and the aperture are."""
    return columns_agree(*run.tables, PLACES, 1e-6, relative=False)


def sums(run: Run) -> Measure:
    """27, 29: the light in aperture and ring."""
    return columns_agree(*run.tables, SUMS, 1e-6)


def shapes(run: Run) -> Measure:
    """28: width and flux of the fitted star; where they differ, whose squares are smaller."""
    from tso3_fits import sums_of_squares

    found = columns_agree(*run.tables, SHAPES, 1e-5)
    if found.holds:
        return found
    ours, theirs = run.tables
    rows = [
        k
        for k in range(len(ours))
        if any(ratio(ours[n][k : k + 1].value, theirs[n][k : k + 1].value) > 1e-5 for n in SHAPES)
    ]
    squares = [sums_of_squares(run, table)[rows] for table in (ours, theirs)]
    better = squares[0] <= squares[1] * (1 + 1e-9)
    text = f"{len(ours) - len(rows)} of {len(ours)} rows to 1e-5; of the others ours have the smaller squares in {better.sum()}"
    return Measure(text, False, 1.0 if better.all() else math.inf)


def table(run: Run) -> Measure:
    """30: columns in their order, units, meta, rows and times of the table of photometry."""
    ours, theirs = run.tables
    bad = []
    if ours.colnames != theirs.colnames:
        bad.append(f"columns {ours.colnames} / {theirs.colnames}")
    bad += [f"unit of {n}" for n in theirs.colnames if n in ours.colnames and ours[n].unit != theirs[n].unit]
    if list(ours.meta) != list(theirs.meta):
        bad.append(f"meta {list(ours.meta)} / {list(theirs.meta)}")
    bad += [f"meta {k}" for k in theirs.meta if k != "apertures" and ours.meta.get(k) != theirs.meta[k]]
    for name in ("MJD", "BJD_TDB"):
        bad += [f"{name} differs"] if not np.array_equal(np.asarray(ours[name]), np.asarray(theirs[name])) else []
    sky = [n for n in ("aperture_ra_icrs", "aperture_dec_icrs") if ratio(ours[n].value, theirs[n].value, False) > 1e-9]
    text = f"{len(ours)} rows, {len(ours.colnames)} columns, times equal; the text on the apertures is our own"
    return Measure("; ".join([*bad, *sky]) or text, not bad and not sky, len(bad))


# ---------------------------------------------------------------- statements on spectra
def profile(run: Run) -> Measure:
    """31: weights, wavelengths, limits of the box."""
    ours, theirs = run.product("profile.fits")
    weights = same_planes([(ours, theirs)], ("SCI",))
    wave = max(ratio(a["WAVELENGTH"], b["WAVELENGTH"]) for a, b, _, _ in spectra(run))
    keys = ("EXTRXSTR", "EXTRXSTP", "EXTRYSTR", "EXTRYSTP")
    limits = max(abs(a[k] - b[k]) for _, _, a, b in spectra(run) for k in keys)
    text = f"{weights.text}; wavelength r <= {wave:.1e}; limits differ by {limits:.1e}"
    return Measure(text, weights.holds and wave <= 1e-15 and limits <= 1e-12, max(wave, limits))


def mean_background(run: Run) -> Measure:
    """32: spectra with a background of order 0, or without."""
    return numbers_agree(run, 1e-12)


def other_backgrounds(run: Run) -> Measure:
    """33: spectra with other backgrounds."""
    return numbers_agree(run, 1e-10)


def no_file(run: Run) -> Measure:
    """34: whole images are summed without a file, and the units are those of counts without photom."""
    found = {a.get("TUNIT3") for _, _, a, _ in spectra(run)}, {b.get("TUNIT3") for _, _, _, b in spectra(run)}
    return both(numbers_agree(run, 1e-12), Measure(f"flux in {found[0]}", found[0] == found[1] == {"DN/s"}, 0))


def aperture_correction(run: Run) -> Measure:
    """35: ten columns are corrected for light outside the box."""
    return numbers_agree(run, 1e-12)


def layout(run: Run) -> Measure:
    """36: extensions, tables of times, columns, segments, times, headers."""
    pair = run.product("x1dints.fits")
    bad = []
    with fits.open(pair[0]) as ours, fits.open(pair[1]) as theirs:
        for a, b in ((ours, theirs),):
            if [(h.name, h.ver) for h in a] != [(h.name, h.ver) for h in b]:
                bad.append(f"extensions {[h.name for h in a]} / {[h.name for h in b]}")
        if ours["INT_TIMES"].data.tobytes() != theirs["INT_TIMES"].data.tobytes():
            bad.append("INT_TIMES")
        bad += [f"PRIMARY {text}" for text in _cards(ours[0].header, theirs[0].header)]
        lost = set(theirs["HDRTAB"].columns.names) ^ set(ours["HDRTAB"].columns.names)
        bad += (
            [f"HDRTAB {sorted(n for n in lost if not OWN.fullmatch(n))}"]
            if any(not OWN.fullmatch(n) for n in lost)
            else []
        )
        bad += [
            f"HDRTAB {n}"
            for n in theirs["HDRTAB"].columns.names
            if n not in lost and not OWN.fullmatch(n) and list(ours["HDRTAB"].data[n]) != list(theirs["HDRTAB"].data[n])
        ]
    for number, (a, b, head, other) in enumerate(spectra(run), 1):
        bad += [f"EXTRACT1D,{number} {text}" for text in _cards(head, other)]
        bad += [f"{n} of EXTRACT1D,{number}" for n in TIMES if not np.array_equal(a[n], b[n], equal_nan=n[1] != "N")]
    return Measure("; ".join(bad) or "extensions, columns, units, times, keywords equal", not bad, len(bad))


def _cards(ours: fits.Header, theirs: fits.Header) -> Iterator[str]:
    for key in dict.fromkeys([*ours, *theirs]):
        if not OWN.fullmatch(key) and ours.get(key) != theirs.get(key):
            yield f"{key} {ours.get(key)!r} / {theirs.get(key)!r}"


def light_curve(run: Run) -> Measure:
    """37: times and sums of the light curve; the spectra keep their times."""
    ours, theirs = run.curves
    worst = {n: ratio(np.asarray(ours[n]), np.asarray(theirs[n])) for n in theirs.colnames if n in ours.colnames}
    meta = [k for k in theirs.meta if ours.meta.get(k) != theirs.meta[k]]
    lost = sum(int(np.isnan(a["MJD-AVG"]).sum()) for a, _, _, _ in spectra(run))
    size = max(worst.values(), default=math.inf)
    good = ours.colnames == theirs.colnames and not meta and size <= 1e-12 and not lost
    return Measure(
        f"{len(ours)} rows of {ours.colnames}, r <= {size:.1e}; meta {meta or 'equal'}; {lost} times lost", good, size
    )


def orders(run: Run) -> Measure:
    """38: each order has its own limits; with ``compat`` the reference's."""
    from streamimg3.kernels.white_light import RangeRow, Series, band_sums, light_curves, order_limits

    theirs = QTable.read(run.inputs / "peer" / "orders_whtlt.ecsv")
    with fits.open(run.inputs / "peer" / "orders_x1dints.fits") as hdus:
        parts = [(h.data, h.header["SPORDER"]) for h in hdus if h.name == "EXTRACT1D"]
        found = {}
        for compat in (True, False):
            rows = [RangeRow(*r) for r in run.facts["ranges"]]
            limits = order_limits([o for _, o in parts], "P750L", rows, compat=compat)
            series = []
            for data, order in parts:
                flux, error, wave = (np.asarray(data[n], np.float64) for n in ("FLUX", "FLUX_ERROR", "WAVELENGTH"))
                times = (np.asarray(data[n], np.float64) for n in ("MJD-AVG", "TDB-MID"))
                series.append(Series(*times, band_sums(flux, error, wave, limits[order]), order))
            (curve,) = light_curves(series)
            found[compat] = {o: ratio(curve.curves[o].flux, theirs[f"whitelight_flux_order_{o}"].value) for o in (1, 2)}
    size = max(found[True].values())
    text = f"compat r <= {size:.1e}; own limits: order 1 r {found[False][1]:.1e}, order 2 differs by r {found[False][2]:.1e}"
    return Measure(text, size <= 1e-12 and found[False][1] <= 1e-12 and found[False][2] > 1e-3, size)


CHECKS: dict[int, Check] = {
    19: no_series, 20: medians, 21: flags, 22: nan_windows, 24: names, 25: units, 26: centroids, 27: sums, 28: shapes,
    29: sums, 30: table, 31: profile, 32: mean_background, 33: other_backgrounds, 34: no_file, 35: aperture_correction,
    36: layout, 37: light_curve, 38: orders,
}  # fmt: skip


def _line(number: int, text: str, tests: str = "", every: str = "") -> Line:
    """A statement; ``every`` names the kind of cases that all show it."""
    mine = [
        c.name
        for c in CASES.values()
        if number in c.lines or (every and every in ("all", _kind(c.name)) and c.lines != (19,))
    ]
    return Line(number, text, tuple(mine), tuple(tests.split()))


def _kind(name: str) -> str:
    return name.partition("-")[0]


LINES = (
    _line(19, "what is no time series: no product, a message"),
    _line(20, "rolling medians, odd and even, with their edges; short segments: the median of all", every="all"),
    _line(21, "flags and NaN of _crfints, by segment", every="all"),
    _line(22, "a NaN in the window: no flag; on demand NaN are left out", "kernels/test_rolling_median.py"),
    _line(23, "in blocks of time as in one piece", "kernels/test_rolling_median.py stages/test_tso_outlier_detection.py"),
    _line(24, "names with the association's id once", every="all"),
    _line(25, "MJy/sr -> Jy, DN/s -> electron", "pipelines/test_tso3.py", every="images"),
    _line(26, "centroids to 1e-6 px, NaN rows equal", every="images"),
    _line(27, "sums of aperture and ring to 1e-6", every="images"),
    _line(28, "widths and flux of the fit to 1e-5"),
    _line(29, "WLP8 and SUB64P: the whole array"),
    _line(30, "_phot.ecsv: columns, order, units, meta, rows, times", every="images"),
    _line(31, "profile to the bit, wavelength to 1e-15", every="spectra"),
    _line(32, "mean background: all columns to 1e-12, NaN equal"),
    _line(33, "polynomial, median, smoothing, curved limits: to 1e-10"),
    _line(34, "no extract1d file: the whole array; no photom: DN/s"),
    _line(35, "aperture correction of ten columns"),
    _line(36, "x1dints: tables, columns, times, keywords", every="spectra"),
    _line(37, "whtlt: columns, sums to 1e-12, duplicates dropped, spectra unchanged", every="spectra"),
    _line(38, "each order has its own limits; compat as the reference"),
    _line(39, "memory", "memory/test_tso3.py"),
)  # fmt: skip
DELIBERATE = (
    Deliberate(
        28, ("images-counts", "images-moving"), 1.0, "the reference's search ends by its tolerance, or after 100 steps"
    ),
    Deliberate(
        36, ("spectra-holes", "spectra-orders"), 2, "the reference's light curve makes times that occur twice NaN"
    ),
)

CHECKLIST = Checklist(LINES, CHECKS, DELIBERATE)
