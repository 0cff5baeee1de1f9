"""The checklist of image3, measured on the products of both sides: one function per statement."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits
from compare_products import Finding, compare_headers
from image3_products import (
    ImageDifference,
    Products,
    cards,
    column_differences,
    grid,
    image_difference,
    layout,
    plane,
    plane_differences,
    read_table,
    separation,
    sip_error,
    wcs_distance,
    wcs_of,
)
from parity_cases import COLUMNS
from peer import BLOCK

STEPS = ("S_MTWCS", "S_TWKREG", "S_SKYMAT", "S_OUTLIR")
LEVELS = ("BKGMETH", "BKGLEVEL", "BKGSUB")
TIMES = ("NDRIZ", "EFFEXPTM", "TMEASURE", "DURATION", "EXPSTART", "EXPEND", "XPOSURE", "TELAPSE")
FRAME = ("CRPIX1", "CRPIX2", "CRVAL1", "CRVAL2", "CDELT1", "CDELT2", "PC1_1", "PC1_2", "PC2_1", "PC2_2")
SAME_SKY = 1e-7  # arcsec: two fits of the same stars in another order of operations
SAME_LEVEL = 1e-12  # relative
SIP_LIMIT = 0.0105  # px: the fit's own limit is 0.01 on its nodes, the grid here lies between them


@dataclass(frozen=True)
class Pair:
    """Both sides of one case: folders, and the folder of the exposures that they started from."""

    ours: Products
    theirs: Products
    inputs: Path

    @property
    def exposures(self) -> list[tuple[Path, Path, Path]]:
        """Input, our product and the reference's of every exposure that the reference has a product of.

        Raises
        ------
        RuntimeError
            If ours lack one.
        """
        found = []
        for theirs in self.theirs.crf:
            ours = self.ours.folder / theirs.name
            if not ours.exists():
                raise RuntimeError(f"{ours.name} is missing")
            root = theirs.name.removesuffix("_crf.fits").rpartition("_")[0]
            found.append((self.inputs / f"{root}_cal.fits", ours, theirs))
        return found

    @property
    def mosaics(self) -> tuple[Path, Path]:
        """Our mosaic and the reference's.

        Raises
        ------
        RuntimeError
            If either is missing.
        """
        if self.ours.i2d is None or self.theirs.i2d is None:
            raise RuntimeError("a mosaic is missing")
        return self.ours.i2d, self.theirs.i2d


@dataclass(frozen=True)
class Measure:
    """What was measured, in words, whether the statement holds, and the size of the difference where it has one."""

    text: str
    holds: bool
    size: float = math.inf


Check = Callable[[Pair], Measure]


# ---------------------------------------------------------------- helpers
def _differences(ours: Path, theirs: Path) -> list[Finding]:
    """Headers that differ without a reason; sky levels have lines of their own."""
    # the reference counts the groups on and on from one group's mosaic to the next: 1, 2, 3 ... where each holds one
    own = {"BKGLEVEL", "NDRIZ"} if ours.name.endswith("_outlier_i2d.fits") else {"BKGLEVEL"}
    return [f for f in compare_headers(ours, theirs) if not f.reason and f.keyword not in own]


def _statuses(path: Path) -> tuple[object, ...]:
    header = cards(path)
    return tuple(header.get(name) for name in STEPS)


def _same_statuses(pair: Pair, wanted: tuple[object, ...] | None = None) -> tuple[str, bool]:
    rows = [(_statuses(ours), _statuses(theirs)) for _, ours, theirs in pair.exposures]
    same = bool(rows) and all(a == b for a, b in rows) and (wanted is None or rows[0][0] == wanted)
    shown = " ".join(f"{k}={v}" for k, v in zip(STEPS, rows[0][0] if rows else (), strict=False) if v)
    return f"{shown or 'no exposures'}{'' if same else f'; reference {rows[0][1] if rows else None}'}", same


def _planes(pair: Pair, names: tuple[str, ...]) -> Measure:
    found = list(plane_differences(*pair.mosaics, names))
    good = [d.nan_equal and (not d.differ or d.small) for _, d in found]
    size = max((d.size if d.nan_equal else math.inf for _, d in found), default=math.inf)
    return Measure("; ".join(f"{name} {d.text()}" for name, d in found), all(good) and bool(found), size)


def _total(differences: Sequence[ImageDifference]) -> ImageDifference:
    return ImageDifference(
        sum(d.differ for d in differences),
        sum(d.pixels for d in differences),
        max((d.ulp for d in differences), default=0),
        all(d.nan_equal for d in differences),
        max((d.size for d in differences), default=0.0),
    )


def _exposure_planes(pair: Pair, names: tuple[str, ...]) -> ImageDifference:
    return _total([d for _, ours, theirs in pair.exposures for _, d in plane_differences(ours, theirs, names)])


def _unchanged(pair: Pair) -> float:
    return max(wcs_distance(ours, came) for came, ours, _ in pair.exposures)


def _table(pair: Pair, names: Sequence[str] = ()) -> Measure:
    ours, theirs = pair.ours.catalog, pair.theirs.catalog
    if ours is None or theirs is None:
        return Measure("a catalogue is missing", False)
    a, b = read_table(ours), read_table(theirs)
    order = [n for n in a.colnames if n in b.colnames] == list(b.colnames)
    found = [c for c in column_differences(a, b) if not names or c.name in names]
    apart = [c for c in found if not c.equal and c.name.partition(".")[0] in COLUMNS]
    bad = sorted((c for c in found if not c.equal and c not in apart), key=lambda c: (c.nan_equal, -c.relative))
    judged = [c for c in found if c not in apart]
    size = max((c.relative if not c.kind and c.nan_equal else math.inf for c in judged), default=math.inf)
    shown = "".join(f"; {c.name} {c.kind or f'{c.relative:.1e}'}{'' if c.nan_equal else ' NaN'}" for c in bad[:6])
    text = f"{len(a)} / {len(b)} sources, {len(judged) - len(bad)} of {len(found)} columns equal, {len(apart)} differ on purpose"
    return Measure(f"{text}{'' if order else ', other order'}{shown}", order and not bad, size if order else math.inf)


def _levels(pair: Pair) -> tuple[list[float | None], list[float | None]]:
    rows = [(cards(ours).get("BKGLEVEL"), cards(theirs).get("BKGLEVEL")) for _, ours, theirs in pair.exposures]
    return [a for a, _ in rows], [b for _, b in rows]


def _same_levels(pair: Pair) -> Measure:
    ours, theirs = _levels(pair)
    if any((a is None) != (b is None) for a, b in zip(ours, theirs, strict=True)):
        return Measure(f"known for other exposures: {ours} / {theirs}", False)
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    worst = max((abs(a - b) / abs(b) if b else abs(a) for a, b in pairs), default=0.0)
    return Measure(f"{len(pairs)} levels, worst relative difference {worst:.1e}", worst <= SAME_LEVEL, worst)


# ---------------------------------------------------------------- flow
def one_exposure(pair: Pair) -> Measure:
    """Line 4."""
    text, same = _same_statuses(pair, (None, "FAILED", "SKIPPED", "FAILED"))
    products = [p for p in (pair.ours.i2d, pair.ours.catalog, pair.ours.one("_segm.fits"), *pair.ours.crf) if p]
    return Measure(f"{text}; {len(products)} products", same and len(products) == 4)


def one_group(pair: Pair) -> Measure:
    """Line 5."""
    text, same = _same_statuses(pair, (None, "FAILED", "SKIPPED", "COMPLETE"))
    groups = [cards(p)["NDRIZ"] for p in pair.mosaics]
    return Measure(f"{text}; NDRIZ {groups[0]} / {groups[1]}", same and groups == [1, 1])


def groups_counted(pair: Pair) -> Measure:
    """Line 3."""
    groups = [cards(p)["NDRIZ"] for p in pair.mosaics]
    return Measure(f"{len(pair.exposures)} exposures, NDRIZ {groups[0]} / {groups[1]}", groups[0] == groups[1])


def moving_target(pair: Pair) -> Measure:
    """Line 6."""
    text, same = _same_statuses(pair)
    statuses = _statuses(pair.exposures[0][1])
    own = [(cards(came, "SCI")["MT_RA"], cards(came, "SCI")["MT_DEC"]) for came, _, _ in pair.exposures]
    mean = np.mean(own, axis=0)
    worst = 0.0
    for (came, ours, _), (ra, dec) in zip(pair.exposures, own, strict=True):
        x, y = grid(cards(came, "SCI"))
        before, after = (wcs_of(path)(x, y, with_bounding_box=False) for path in (came, ours))
        worst = max(worst, separation((before[0] + mean[0] - ra, before[1] + mean[1] - dec), after))
    frames = {wcs_of(p).output_frame.name for p in (*pair.mosaics, *(o for _, o, _ in pair.exposures))}
    holds = same and statuses[0] == "COMPLETE" and statuses[1] is None and frames == {"moving_target"}
    return Measure(
        f"{text}; frames {'/'.join(sorted(frames))}; shift off by {worst:.1e} arcsec", holds and worst <= SAME_SKY
    )


def skipped_steps(pair: Pair) -> Measure:
    """Line 8."""
    text, same = _same_statuses(pair, (None, "SKIPPED", "SKIPPED", "COMPLETE"))
    moved = _unchanged(pair)
    return Measure(f"{text}; WCS moved by {moved:.1e} arcsec", same and moved == 0)


# ---------------------------------------------------------------- alignment
def reference_group(pair: Pair) -> Measure:
    """Line 9."""
    came, ours, _ = pair.exposures[0]
    before, after = cards(came, "SCI"), cards(ours, "SCI")
    changed = [k for k in before if k and k in after and before[k] != after[k]] + [k for k in before if k not in after]
    moved = wcs_distance(ours, came)
    return Measure(
        f"{len(changed)} keywords of SCI changed, WCS moved by {moved:.1e} arcsec", not changed and moved == 0
    )


def star_catalogues(pair: Pair) -> Measure:
    """Line 10."""
    names = pair.theirs.names("_cal_cat.ecsv")
    if not names or names != pair.ours.names("_cal_cat.ecsv"):
        return Measure(f"{len(pair.ours.names('_cal_cat.ecsv'))} / {len(names)} catalogues", False)
    worst, counts, other = 0.0, [0, 0], 0
    for name in names:
        a, b = (read_table(side.folder / name) for side in (pair.ours, pair.theirs))
        counts = [counts[0] + len(a), counts[1] + len(b)]
        if len(a) != len(b):
            other += 1
            continue
        columns = [c for c in ("x", "y", "xcentroid", "ycentroid") if c in a.colnames and c in b.colnames]
        worst = max([worst, *(float(np.abs(a[c] - b[c]).max(initial=0)) for c in columns)])
        other += not columns or list(a["id"] if "id" in a.colnames else []) != list(
            b["id"] if "id" in b.colnames else []
        )
    return Measure(
        f"{counts[0]} / {counts[1]} sources, worst {worst:.1e} px, {other} lists differ", not other and worst < 1e-6
    )


def refused_alignment(pair: Pair) -> Measure:
    """Line 11."""
    text, same = _same_statuses(pair, (None, "FAILED", "COMPLETE", "COMPLETE"))
    moved = _unchanged(pair)
    return Measure(f"{text}; WCS moved by {moved:.1e} arcsec", same and moved == 0)


def unmatched_groups(pair: Pair) -> Measure:
    """Line 12."""
    text, same = _same_statuses(pair, (None, "COMPLETE", "COMPLETE", "COMPLETE"))
    moved = _unchanged(pair)
    return Measure(f"{text}; WCS moved by {moved:.1e} arcsec", same and moved == 0)


def corrections(pair: Pair) -> Measure:
    """Line 13."""
    found = [wcs_distance(ours, theirs) for _, ours, theirs in pair.exposures]
    moved = max(wcs_distance(theirs, came) for came, _, theirs in pair.exposures)
    return Measure(f"worst {max(found):.1e} arcsec apart, corrections up to {moved:.3f} arcsec", max(found) <= SAME_SKY)


def corrected_frames(pair: Pair) -> Measure:
    """Line 15."""
    moved = [(came, ours) for came, ours, theirs in pair.exposures if wcs_distance(theirs, came) > 0]
    frames = all("v2v3corr" in wcs_of(ours).available_frames for _, ours in moved)
    errors = [sip_error(ours) for _, ours in moved]
    pixels = all(
        cards(came, "SCI").get(k) == cards(ours, "SCI").get(k) for came, ours in moved for k in ("CRPIX1", "CRPIX2")
    )
    text = (
        f"{len(moved)} corrected, v2v3corr {'in all' if frames else 'missing'}, SIP to {max(errors, default=0):.4f} px"
    )
    return Measure(
        f"{text}, CRPIX {'kept' if pixels else 'changed'}",
        bool(moved) and frames and pixels and max(errors) <= SIP_LIMIT,
    )


# ---------------------------------------------------------------- sky
def matched_levels(pair: Pair) -> Measure:
    """Lines 19 and 20."""
    found = _same_levels(pair)
    lowest = min((v for v in _levels(pair)[0] if v is not None), default=math.nan)
    size = found.size if lowest == 0 else math.inf
    return Measure(f"{found.text}, lowest {lowest}", found.holds and lowest == 0, size)


def no_overlap(pair: Pair) -> Measure:
    """Line 21."""
    headers = [cards(ours) for _, ours, _ in pair.exposures]
    there = [k for h in headers for k in LEVELS if k in h]
    same = all(h.get("S_SKYMAT") == "SKIPPED" for h in headers)
    return Measure(f"S_SKYMAT {headers[0].get('S_SKYMAT')}, {len(there)} BKG keywords", same and not there)


def subtracted(pair: Pair) -> Measure:
    """Line 22."""
    exposures = _exposure_planes(pair, ("SCI",))
    flags = [cards(ours).get("BKGSUB") for _, ours, _ in pair.exposures]
    mosaic = _planes(pair, ("SCI",))
    holds = exposures.nan_equal and exposures.small and all(flags) and mosaic.holds
    return Measure(f"exposures: {exposures.text()}; BKGSUB {flags[0]}; mosaic: {mosaic.text}", holds)


def other_methods(pair: Pair) -> Measure:
    """Line 23."""
    method = [cards(path).get("BKGMETH") for path in pair.exposures[0][1:]]
    found = _same_levels(pair)
    size = found.size if method[0] == method[1] else math.inf
    return Measure(f"{method[0]}: {found.text}", found.holds and method[0] == method[1], size)


# ---------------------------------------------------------------- outliers
def _intermediate(pair: Pair, end: str) -> Measure:
    names = pair.theirs.names(end)
    if not names or pair.ours.names(end) != names:
        return Measure(f"{len(pair.ours.names(end))} / {len(names)} files {end}", False)
    found = _total([image_difference(*(plane(s.folder / n, "SCI") for s in (pair.ours, pair.theirs))) for n in names])
    return Measure(found.text(), found.nan_equal and found.small, found.size)


def medians(pair: Pair) -> Measure:
    """Line 27."""
    return _intermediate(pair, "_median.fits")


def blots(pair: Pair) -> Measure:
    """Line 28."""
    return _intermediate(pair, "_blot.fits")


def flags(pair: Pair) -> Measure:
    """Lines 29 and 31."""
    found = _exposure_planes(pair, ("DQ",))
    pixels = _exposure_planes(pair, ("SCI", "ERR", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT"))
    count, wrong = 0, 0
    for _, ours, _ in pair.exposures:
        dq, sci = plane(ours, "DQ"), plane(ours, "SCI")
        hit = (dq & 16) != 0
        count += int(hit.sum())
        wrong += int((hit & ((dq & 17 != 17) | ~np.isnan(sci))).sum())
    text = f"DQ {found.text()}; {count} outliers; SCI ERR VAR {pixels.text()}"
    return Measure(text, not found.differ and not wrong and not pixels.differ and count > 0)


def flagged_block(pair: Pair) -> Measure:
    """Line 33: outliers are found among pixels that are NON_SCIENCE, and the same ones."""
    counts = [sum(int(((plane(p, "DQ")[BLOCK] & 528) == 528).sum()) for p in side) for side in _sides(pair)]
    found = _exposure_planes(pair, ("DQ",))
    return Measure(
        f"{counts[0]} / {counts[1]} outliers in the block; DQ {found.text()}", not found.differ and counts[0] > 0
    )


def _sides(pair: Pair) -> tuple[list[Path], list[Path]]:
    return [ours for _, ours, _ in pair.exposures], [theirs for _, _, theirs in pair.exposures]


# ---------------------------------------------------------------- mosaic
def context(pair: Pair) -> Measure:
    """Line 1."""
    return _planes(pair, ("CON",))


def frame(pair: Pair) -> Measure:
    """Line 34."""
    a, b = (cards(path, "SCI") for path in pair.mosaics)
    worst = max(abs(a[k] - b[k]) / max(abs(b[k]), 1e-300) if a[k] != b[k] else 0.0 for k in FRAME)
    shapes = [(h["NAXIS2"], h["NAXIS1"]) for h in (a, b)]
    return Measure(f"shape {shapes[0]} / {shapes[1]}, worst {worst:.1e}", shapes[0] == shapes[1] and worst <= 1e-12)


def mosaic_planes(pair: Pair) -> Measure:
    """Line 38."""
    return _planes(pair, ("SCI", "WHT", "CON"))


def noise_planes(pair: Pair) -> Measure:
    """Line 40."""
    return _planes(pair, ("ERR", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT"))


def empty_pixels(pair: Pair) -> Measure:
    """Line 45."""
    with fits.open(pair.mosaics[0]) as hdus:
        none = hdus["WHT"].data == 0
        alike = [np.array_equal(none, np.isnan(hdus[n].data)) for n in ("SCI", "ERR")]
        alike.append(np.array_equal(none, ~hdus["CON"].data.astype(bool).any(axis=0)))
    return Measure(f"{int(none.sum())} px without weight; SCI, ERR NaN and CON 0 there: {alike}", all(alike))


def no_flags(pair: Pair) -> Measure:
    """Line 47."""
    there = [any(row[0] == "DQ" for row in layout(path)) for path in pair.mosaics]
    return Measure(f"DQ in the mosaic: {there[0]} / {there[1]}", there == [False, False])


def times(pair: Pair) -> Measure:
    """Line 51."""
    rows = [{**cards(path), **cards(path, "SCI")} for path in pair.mosaics]
    bad = [k for k in TIMES if rows[0].get(k) != rows[1].get(k)]
    return Measure(f"{len(TIMES) - len(bad)} of {len(TIMES)} keywords equal {' '.join(bad)}", not bad)


def table_of_headers(pair: Pair) -> Measure:
    """Line 52."""
    bad = [f for f in _differences(*pair.mosaics) if f.hdu == "HDRTAB"]
    names = [cards(path).get("DETECTOR") for path in pair.mosaics]
    shown = "".join(f"; {f.text()[:90]}" for f in bad[:3])
    return Measure(
        f"DETECTOR {names[0]} / {names[1]}; HDRTAB: {len(bad)} differences{shown}", names[0] == names[1] and not bad
    )


def outline(pair: Pair) -> Measure:
    """Line 53."""
    a, b = (cards(path, "SCI").get("S_REGION", "") for path in pair.mosaics)
    if a == b:
        return Measure(f"equal ({len(a)} characters)", True)
    numbers = [np.array([float(w) for w in t.split() if w[0] in "-0123456789"]) for t in (a, b)]
    if numbers[0].shape != numbers[1].shape:
        return Measure(f"{len(numbers[0]) // 2} / {len(numbers[1]) // 2} vertices", False)
    worst = float(np.abs(numbers[0] - numbers[1]).max())
    return Measure(f"{len(numbers[0]) // 2} vertices, at most {worst:.1e} deg apart", worst <= 1.1e-9)


def background_keywords(pair: Pair) -> Measure:
    """Line 54."""
    rows = [[k for k in LEVELS if k in cards(path)] for path in pair.mosaics]
    return Measure(f"{rows[0]} / {rows[1]}", rows == [["BKGMETH"]] * 2)


# ---------------------------------------------------------------- catalogue and products
def segments(pair: Pair) -> Measure:
    """Line 56."""
    ours, theirs = pair.ours.one("_segm.fits"), pair.theirs.one("_segm.fits")
    if ours is None or theirs is None:
        return Measure("a segmentation is missing", False)
    a, b = plane(ours, "SCI"), plane(theirs, "SCI")
    found = image_difference(a, b)
    return Measure(f"{a.max()} / {b.max()} labels, {found.text()}", not found.differ)


def catalogue(pair: Pair) -> Measure:
    """Lines 57 and 58."""
    return _table(pair)


def neighbours(pair: Pair) -> Measure:
    """Line 59."""
    return _table(pair, ("nn_label", "nn_dist"))


def no_sources(pair: Pair) -> Measure:
    """Line 60."""
    there = [[p.name for p in (s.catalog, s.one("_segm.fits")) if p] for s in (pair.ours, pair.theirs)]
    return Measure(
        f"mosaic {pair.ours.i2d is not None}, catalogues {there}", pair.ours.i2d is not None and there == [[], []]
    )


def names_and_layout(pair: Pair) -> Measure:
    """Line 61."""
    ends = ("_crf.fits", "_i2d.fits", "_segm.fits", "_cat.ecsv", "_median.fits", "_blot.fits")
    missing = [n for e in ends for n in pair.theirs.names(e) if n not in pair.ours.names(e)]
    more = [n for e in ends for n in pair.ours.names(e) if n not in pair.theirs.names(e)]
    both = [n for e in ends[:3] for n in pair.theirs.names(e) if n in pair.ours.names(e)]
    files = [(pair.ours.folder / n, pair.theirs.folder / n) for n in both]
    other = [a.name for a, b in files if layout(a) != layout(b)]
    bad = [(a.name, f) for a, b in files for f in _differences(a, b) if f.hdu != "HDRTAB"]
    shown = "".join(f"; {name.rpartition('_')[2]} {f.text()[:100]}" for name, f in bad[:4])
    listed = f"{len(missing)} missing {missing[:2]}, {len(more)} more {more[:2]}, {len(other)} with other extensions"
    return Measure(f"{listed}, {len(bad)} keywords differ{shown}", not (missing or more or other or bad))


CHECKS: dict[int, Check] = {
    1: context, 3: groups_counted, 4: one_exposure, 5: one_group, 6: moving_target, 8: skipped_steps, 9: reference_group,
    10: star_catalogues, 11: refused_alignment, 12: unmatched_groups, 13: corrections, 15: corrected_frames,
    19: matched_levels, 20: matched_levels, 21: no_overlap, 22: subtracted, 23: other_methods, 27: medians, 28: blots,
    29: flags, 31: flags, 32: flags, 33: flagged_block,
    34: frame, 38: mosaic_planes, 40: noise_planes, 45: empty_pixels, 47: no_flags,
    51: times, 52: table_of_headers, 53: outline, 54: background_keywords, 56: segments, 57: catalogue, 58: catalogue,
    59: neighbours, 60: no_sources, 61: names_and_layout,
}  # fmt: skip
