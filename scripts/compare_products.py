"""Differences between two resampled products: planes by bits, headers by keyword, the WCS by the sky it gives."""

import io
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray
from parity_cases import ALLOWED
from scipy import ndimage

PLANES = ("SCI", "ERR", "DQ", "CON", "WHT", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")
# Two releases of the drizzle library are compared, one of which rounds one product differently.
ULP_TOLERANCE = 2
# The output frame comes from double-precision formulae whose order of operations may differ.
HEADER_TOLERANCE = 1e-12
# Terms of a WCS that was fitted to measured stars: what they do to positions counts, here in pixels at the far corner of
# a detector. Two fits of the same stars, whose sums are formed in another order, are 1e-8 px apart.
FITTED_TOLERANCE_PX = 1e-6
DETECTOR_PX = 2048
FITTED_POWERS = re.compile(r"(?:A|B|AP|BP)_(\d)_(\d)")
FITTED_MATRIX = re.compile(r"CD\d_\d|CRVAL\d")
# 1e-10 degrees is 4e-7 arcsec, a hundred-thousandth of a pixel.
WCS_TOLERANCE_DEG = 1e-10

# Cards whose number or value follows from the columns of a table.
COLUMN_CARD = re.compile(r"T(TYPE|FORM|UNIT|NULL|SCAL|ZERO|DISP|DIM)\d+|TFIELDS|NAXIS1")


@dataclass(frozen=True)
class PlaneResult:
    """Comparison of one image plane.

    Attributes
    ----------
    name : str
        Extension name.
    pixels, differ : int
        Size of the plane; pixels that are not equal bit by bit (NaN equals NaN).
    max_ulp : int
        Largest distance in units of the last place over pixels that are numbers on both sides; for integer planes the
        largest difference.
    nan_equal : bool or None
        Whether NaN stands at the same pixels; None for integer planes.
    verdict : str
        What the table says.
    within : bool
        Whether the plane is within tolerance.
    where : str
        Where the differing pixels lie; empty if there are none.
    """

    name: str
    pixels: int
    differ: int
    max_ulp: int
    nan_equal: bool | None
    verdict: str
    within: bool
    where: str


@dataclass(frozen=True)
class Finding:
    """One difference outside the planes; `reason` is empty unless the difference is allowed."""

    hdu: str
    keyword: str
    ours: str
    theirs: str
    reason: str = ""

    def text(self) -> str:
        """One line: where, our value, their value."""
        return f"{self.hdu}.{self.keyword}: ours {self.ours}, reference {self.theirs}"


def compare_planes(ours: Path, theirs: Path, relative: float = 0.0) -> list[PlaneResult]:
    """Compare every image plane that either product has.

    Parameters
    ----------
    ours, theirs : Path
        The two ``_i2d.fits`` files.
    relative : float
        0: equal bits, or `ULP_TOLERANCE`; otherwise tolerance relative to the pixel and to the median absolute value of
        the plane (kernels with negative lobes have pixels near 0, where a relative difference means nothing).

    Returns
    -------
    list of PlaneResult
        One per plane, in the order of `PLANES`.
    """
    results = []
    with fits.open(ours) as left, fits.open(theirs) as right:
        for name in PLANES:
            here, there = name in left, name in right
            if here and there:
                results.append(_compare_plane(name, _pixels(left, name), _pixels(right, name), relative))
            elif here or there:
                text = "ours only" if here else "reference only"
                results.append(PlaneResult(name, 0, 0, 0, None, f"DIFFERS: {text}", False, ""))
    return results


def _pixels(hdus: fits.HDUList, name: str) -> NDArray[Any]:
    data = hdus[name].data
    return np.ascontiguousarray(data.astype(data.dtype.newbyteorder("=")))


def _compare_plane(name: str, a: NDArray[Any], b: NDArray[Any], relative: float) -> PlaneResult:
    if a.shape != b.shape or a.dtype != b.dtype:
        text = f"DIFFERS: {a.dtype}{a.shape} against {b.dtype}{b.shape}"
        return PlaneResult(name, a.size, a.size, 0, None, text, False, "")
    is_float = a.dtype.kind == "f"
    # Most planes are equal in most bits, so only the pixels that are not get looked at.
    other = _other_bits(a, b)
    here, there = a[other], b[other]
    nan_equal = bool(np.array_equal(np.isnan(here), np.isnan(there)))
    differ = ~((here == there) | (np.isnan(here) & np.isnan(there)))
    numbers = differ & ~(np.isnan(here) | np.isnan(there))
    worst = int(_distance(here[numbers], there[numbers]).max(initial=0))
    other[other] = differ
    close = nan_equal and relative > 0 and _close(here[numbers], there[numbers], relative, _scale(b))
    within_ulp = nan_equal and is_float and worst <= ULP_TOLERANCE
    count = int(differ.sum())
    verdict, within = _verdict(count, within_ulp, close, relative)
    where = locate(a, b, other) if count else ""
    return PlaneResult(name, a.size, count, worst, nan_equal if is_float else None, verdict, within, where)


def _other_bits(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
    integer = f"u{a.dtype.itemsize}"
    return np.asarray(a.view(integer) != b.view(integer))


def _distance(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.int64]:
    return ulp_distance(a, b) if a.dtype.kind == "f" else np.abs(a.astype(np.int64) - b.astype(np.int64))


def _verdict(differ: int, within_ulp: bool, close: bool, relative: float) -> tuple[str, bool]:
    if differ == 0:
        return "identical", True
    if within_ulp:
        return f"within {ULP_TOLERANCE} ulp", True
    if close:
        return f"within {relative:g}", True
    return "DIFFERS", False


def _scale(plane: NDArray[Any]) -> float:
    """Typical absolute value of a plane."""
    finite = np.abs(plane[np.isfinite(plane)])
    return float(np.median(finite)) if finite.size else 0.0


def _close(a: NDArray[Any], b: NDArray[Any], relative: float, scale: float) -> bool:
    return bool(np.all(np.abs(a - b) <= relative * np.maximum(np.abs(b), scale)))


def ulp_distance(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.int64]:
    """Number of representable numbers between `a` and `b`, element by element.

    Parameters
    ----------
    a, b : array of float32 or float64
        Equal shapes and dtypes, native byte order.  Where either is NaN the result means nothing.

    Returns
    -------
    array of int64
        0 where equal (+0 equals -0).
    """
    integer = np.int32 if a.dtype.itemsize == 4 else np.int64
    # Bits of negative floats count downwards from the sign bit; reflected, all floats are in order.
    lowest = np.int64(np.iinfo(integer).min)
    bits = [x.view(integer).astype(np.int64) for x in (a, b)]
    ordered = [np.where(x < 0, lowest - x, x) for x in bits]
    return np.asarray(np.abs(ordered[0] - ordered[1]))


def locate(a: NDArray[Any], b: NDArray[Any], differ: NDArray[np.bool_]) -> str:
    """Say where differing pixels lie: their box, how many at the rim or next to an uncovered pixel, three examples.

    Parameters
    ----------
    a, b : array, (..., ny, nx)
        The two planes.
    differ : array of bool, same shape
        Pixels that differ.

    Returns
    -------
    str
        One line.
    """
    flat = differ.reshape(-1, *differ.shape[-2:]).any(axis=0)
    ny, nx = flat.shape
    y, x = np.nonzero(flat)
    at_rim = (y < 2) | (x < 2) | (y >= ny - 2) | (x >= nx - 2)
    plane = b.reshape(-1, ny, nx)[0]
    empty = np.isnan(plane) if plane.dtype.kind == "f" else plane == 0
    near = ndimage.binary_dilation(empty, np.ones((3, 3)), iterations=2)[y, x] & ~at_rim
    box = f"rows {y.min()}..{y.max()} of {ny}, columns {x.min()}..{x.max()} of {nx}"
    counts = f"{at_rim.sum()} within 2 px of the rim, {near.sum()} within 2 px of an uncovered pixel"
    values = [f"({j},{i}) {a[..., j, i]} / {b[..., j, i]}" for j, i in list(zip(y, x, strict=True))[:3]]
    return f"{len(y)} px: {box}; {counts}, {len(y) - at_rim.sum() - near.sum()} elsewhere; " + ", ".join(values)


def compare_headers(ours: Path, theirs: Path) -> list[Finding]:
    """Compare HDU list, keywords, the HDRTAB table and the WCS in the metadata tree.

    Returns
    -------
    list of Finding
        Every difference; those in `parity_cases.ALLOWED` carry their reason.
    """
    with fits.open(ours) as left, fits.open(theirs) as right:
        names = [[hdu.name for hdu in hdus] for hdus in (left, right)]
        findings = [] if names[0] == names[1] else [Finding("file", "HDUs", " ".join(names[0]), " ".join(names[1]))]
        for name in [n for n in names[0] if n in names[1]]:
            findings += _compare_cards(name, left[name].header, right[name].header)
        if "HDRTAB" in left and "HDRTAB" in right:
            findings += _compare_tables(left["HDRTAB"], right["HDRTAB"])
        if "ASDF" in left and "ASDF" in right:
            sci = right["SCI"].header
            findings += _compare_wcs(left["ASDF"], right["ASDF"], (sci["NAXIS2"], sci["NAXIS1"]))
    return findings


def _compare_cards(name: str, ours: fits.Header, theirs: fits.Header) -> Iterator[Finding]:
    for keyword in dict.fromkeys([*theirs, *ours]):
        # One more column would rename all cards behind it: the columns are compared by name instead.
        if keyword in ("", "COMMENT", "HISTORY") or (name == "HDRTAB" and COLUMN_CARD.fullmatch(keyword)):
            continue
        a, b = ours.get(keyword, "absent"), theirs.get(keyword, "absent")
        if not _equal_values(keyword, a, b):
            yield _finding(name, keyword, repr(a), repr(b))


def _finding(hdu: str, keyword: str, ours: str, theirs: str) -> Finding:
    return Finding(hdu, keyword, ours, theirs, ALLOWED.get((hdu, keyword), ALLOWED.get(("*", keyword), "")))


def _equal_values(keyword: str, a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        relative, absolute = _tolerance(keyword)
        return math.isclose(a, b, rel_tol=relative, abs_tol=absolute) or (math.isnan(a) and math.isnan(b))
    return type(a) is type(b) and a == b


def _tolerance(keyword: str) -> tuple[float, float]:
    """Relative and absolute tolerance of a keyword."""
    if (powers := FITTED_POWERS.fullmatch(keyword)) is not None:
        return 0.0, FITTED_TOLERANCE_PX / DETECTOR_PX ** (int(powers[1]) + int(powers[2]))
    if FITTED_MATRIX.fullmatch(keyword):
        return FITTED_TOLERANCE_PX / DETECTOR_PX, 0.0
    return HEADER_TOLERANCE, 0.0


def _compare_tables(ours: fits.BinTableHDU, theirs: fits.BinTableHDU) -> Iterator[Finding]:
    if len(ours.data) != len(theirs.data):
        yield Finding("HDRTAB", "rows", str(len(ours.data)), str(len(theirs.data)))
        return
    here, there = ({column.name: column for column in hdu.columns} for hdu in (ours, theirs))
    order = [[name for name in first if name in second] for first, second in ((here, there), (there, here))]
    if order[0] != order[1]:
        yield Finding("HDRTAB", "column order", " ".join(order[0]), " ".join(order[1]))
    for name in dict.fromkeys([*there, *here]):
        if name not in here or name not in there:
            words = ("present", "absent") if name in here else ("absent", "present")
            yield _finding("HDRTAB", name, *words)
            continue
        kinds = [(column.format, column.unit, column.null, column.dim) for column in (here[name], there[name])]
        a, b = ours.data[name], theirs.data[name]
        if kinds[0] != kinds[1]:
            yield _finding("HDRTAB", name, str(kinds[0]), str(kinds[1]))
        elif not all(_equal_values(name, x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)):
            yield _finding("HDRTAB", name, str(list(a)[:3]), str(list(b)[:3]))


def _compare_wcs(ours: fits.BinTableHDU, theirs: fits.BinTableHDU, shape: tuple[int, int]) -> Iterator[Finding]:
    a, b = (_wcs_or_none(hdu) for hdu in (ours, theirs))
    if a is None or b is None:
        if (a is None) != (b is None):
            yield Finding("ASDF", "wcs", "absent" if a is None else "present", "absent" if b is None else "present")
        return
    for attribute in ("available_frames", "pixel_shape", "bounding_box"):
        left, right = (_described(wcs, attribute) for wcs in (a, b))
        if left != right:
            yield Finding("ASDF", f"wcs.{attribute}", left, right)
    ny, nx = shape
    x, y = np.meshgrid(np.linspace(-0.5, nx - 0.5, 7), np.linspace(-0.5, ny - 0.5, 7))
    sky = [np.array(wcs(x, y, with_bounding_box=False)) for wcs in (a, b)]
    worst = float(np.abs(sky[0] - sky[1]).max())
    # written so that a NaN counts as a difference
    if not worst <= WCS_TOLERANCE_DEG:
        yield Finding("ASDF", "wcs", f"{worst:g} deg away", "0")


def _wcs_or_none(hdu: fits.BinTableHDU) -> Any:
    try:
        return read_wcs(hdu)
    except KeyError:
        return None


def _described(wcs: Any, attribute: str) -> str:
    value: Any = getattr(wcs, attribute, None)
    # A bounding box object prints its whole model; the intervals alone are what counts.
    intervals = getattr(value, "bounding_box", None)
    return repr(intervals(order="F") if callable(intervals) else value)


def read_wcs(hdu: fits.BinTableHDU) -> Any:
    """The gWCS in the metadata tree of a product."""
    import asdf
    from asdf.exceptions import AsdfConversionWarning

    text = io.BytesIO(hdu.data["ASDF_METADATA"].tobytes())
    with warnings.catch_warnings():
        # The tree refers to the planes in their own HDUs, which cannot be followed from the tree alone.
        warnings.simplefilter("ignore", AsdfConversionWarning)
        with asdf.open(text, lazy_load=False) as tree:
            return tree["meta"]["wcs"]
