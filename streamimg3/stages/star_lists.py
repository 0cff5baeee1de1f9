"""The stars of every exposure, found once and kept in the store with what an alignment must know of the WCS (spec §4.3)."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Task
from streamimg3.engine.receipts import Ledger, digest
from streamimg3.geometry import Box
from streamimg3.kernels.segment_stars import SegmentOptions, find_segments
from streamimg3.kernels.stars import FinderOptions, StarList, find_stars
from streamimg3.sky.alignment import Member
from streamimg3.sky.tangent import Origin, TangentPlane, own_plane
from streamimg3.sky.wcs import Wcs
from streamimg3.store import Exposure, Observation
from streamimg3.store.flags import bad_bits
from streamimg3.store.stars import LISTS, StarTable, read_custom, read_list, write_list

F8 = NDArray[np.float64]
_CODE = 1  # raised when the same pixels lead to other stars
_GOOD = "~DO_NOT_USE+NON_SCIENCE"
_ROWS = 256  # rows of flags that are read at a time
_FIXED = 24 * 2**20  # a gWCS, bands of the finder
_LIBRARIES = 64 * 2**20  # gwcs and asdf


Finder = FinderOptions | SegmentOptions


@dataclass(frozen=True)
class Listing:
    """What lists are made from: the finder, and the user's own lists by exposure (digests)."""

    finder: Finder
    custom: Mapping[int, str] = field(default_factory=dict)

    def key(self, exposure: Exposure) -> str:
        """Return the name of an exposure's list; it changes with all that the list depends on."""
        record = exposure.record
        if record.index in self.custom:
            source: object = self.custom[record.index]
            sums = {"wcs": record.checksums.get("wcs")}
        else:
            source = [type(self.finder).__name__, dataclasses.asdict(self.finder)]
            sums = {p: record.checksums.get(p) for p in ("sci", "dq", "weight", "wcs")}
        mark = digest(_CODE, source, sums, record.shape, record.is_jwst, record.roll_ref)
        return f"{record.index:05d}-{mark}"

    def tasks(self, exposures: Sequence[Exposure]) -> list[Task]:
        """Return one task per exposure."""
        return [self._task(e) for e in exposures]

    def _task(self, exposure: Exposure) -> Task:
        ny, nx = exposure.record.shape
        if exposure.record.index in self.custom:
            return Task(self.key(exposure), _FIXED, _FIXED, item=exposure.record.index, libraries=_LIBRARIES)
        size = _FIXED + ny * nx * (9 if isinstance(self.finder, FinderOptions) else 24) + 4 * _ROWS * nx
        whole = Box(0, 0, ny, nx).as_tuple()
        planes = [p for p in ("sci", "dq", "weight") if exposure.has(p)]
        reads = tuple((f"{exposure.group}/{p}[{exposure.record.row}]", whole) for p in planes)
        return Task(self.key(exposure), size, size, reads, (), exposure.record.index, _LIBRARIES)


@dataclass(frozen=True)
class Lists(Ledger):
    """The lists in the store as receipts: one that is there is done."""

    def done(self) -> set[str]:
        """Return the keys of all lists."""
        return {name.removesuffix(".json") for name in self.blobs.keys(LISTS) if name.endswith(".json")}

    def mark(self, key: str) -> None:
        """A list is its own receipt."""


def ledger(obs: Observation) -> Lists:
    """Return the receipts of all lists of a store."""
    return Lists(obs.backend, "stars", "")


def work(task: Task, *, obs: Observation, listing: Listing, mark: str) -> dict[str, float]:
    """Find (or take over) the stars of one exposure and keep them.

    Parameters
    ----------
    task : Task
        Its ``item`` is the exposure's index, its ``key`` the list's name.
    obs : Observation
        The store.
    listing : Listing
        How stars are found.
    mark : str
        Changes with the store's exposures.

    Returns
    -------
    dict
        Processor seconds by kind of work.
    """
    index = task.item if isinstance(task.item, int) else task.item[0]
    exposure = _exposures(obs, mark)[index]
    start = time.process_time()
    if index in listing.custom:
        found = read_custom(obs, index)
        kind = "custom"
    else:
        found = _detected(exposure, listing.finder)
        kind = "detect"
    middle = time.process_time()
    write_list(obs, task.key, _placed(exposure, found))
    return {kind: middle - start, "place": time.process_time() - middle}


@functools.lru_cache(maxsize=2)
def _exposures(obs: Observation, mark: str) -> tuple[Exposure, ...]:
    return obs.exposures(aligned=False)


def _detected(exposure: Exposure, finder: Finder) -> StarTable:
    ny, nx = exposure.record.shape
    sci = exposure.read("sci", Box(0, 0, ny, nx)).astype(np.float32, copy=False)
    stars = _find(sci, _without_coverage(exposure), finder)
    columns = {"id": stars.id, "x": stars.x, "y": stars.y, "flux": np.asarray(stars.flux, np.float64)}
    return StarTable(columns, {"detected": len(stars)})


def _find(sci: NDArray[np.float32], bad: NDArray[np.bool_], finder: Finder) -> StarList:
    if isinstance(finder, FinderOptions):
        return find_stars(sci, bad, finder)
    return find_segments(sci, bad, finder)


def _without_coverage(exposure: Exposure) -> NDArray[np.bool_]:
    """Pixels that are no part of the image: DO_NOT_USE or NON_SCIENCE (any flag, where flags are not JWST's), weight 0."""
    ny, nx = exposure.record.shape
    bad = np.zeros((ny, nx), np.bool_)
    excluding = bad_bits(_GOOD) if exposure.record.is_jwst else bad_bits("0")
    for y in range(0, ny, _ROWS):
        box = Box(y, 0, min(y + _ROWS, ny), nx)
        if exposure.has("dq"):
            bad[box.slices] |= (exposure.read("dq", box).astype(np.uint32, copy=False) & np.uint32(excluding)) != 0
        if exposure.has("weight"):
            bad[box.slices] |= ~(exposure.read("weight", box).astype(np.float32, copy=False) > 0)
    return bad


def _placed(exposure: Exposure, found: StarTable) -> StarTable:
    """The stars inside the WCS's bounding box with their places on the sky, and the plane of the exposure."""
    wcs = exposure.wcs.uncorrected
    x, y = (np.asarray(found.columns[n], np.float64) for n in ("x", "y"))
    keep = np.isfinite(x) & np.isfinite(y)
    if wcs.bounds is not None:
        (y0, y1), (x0, x1) = wcs.bounds
        keep &= (x > x0) & (x < x1) & (y > y0) & (y < y1)
    table = found.take(keep)
    none = np.zeros(0)
    ra, dec = wcs.to_sky(y[keep], x[keep], bounded=False) if keep.any() else (none, none)
    plane, origin = own_plane(wcs, _origin(exposure))
    meta = found.meta | {
        "exposure": exposure.record.name,
        "plane": list(plane.axes),
        "origin": None if origin is None else list(origin),
        "scale": pixel_scale(wcs, plane),
        "corners": [v.tolist() for v in _corners(wcs)],
    }
    return StarTable(table.columns | {"ra": np.asarray(ra), "dec": np.asarray(dec)}, meta)


def pixel_scale(wcs: Wcs, plane: TangentPlane) -> float:
    """Return the size of a pixel (arcsec) in a tangent plane, at the point where that touches the sky."""
    ny, nx = wcs.shape
    touch = wcs.to_pixel(*plane.deproject(np.zeros(1), np.zeros(1)))
    y, x = (float(v[0]) for v in touch)
    for cy, cx in ((y, x), ((ny - 1) / 2, (nx - 1) / 2)):
        sky = wcs.to_sky(cy + np.array([-0.5, 0.5, 0.5, -0.5]), cx + np.array([-0.5, -0.5, 0.5, 0.5]), bounded=False)
        v, u = plane.project(*sky)
        area = 0.5 * abs(float(u @ np.roll(v, -1) - v @ np.roll(u, -1)))
        if np.isfinite(area) and area > 0:
            return float(np.sqrt(area))
    return 1.0


def _corners(wcs: Wcs) -> tuple[F8, F8]:
    """Sky at the corners of the bounding box, or of the image where there is none."""
    ny, nx = wcs.shape
    (y0, y1), (x0, x1) = wcs.bounds or ((-0.5, ny - 0.5), (-0.5, nx - 0.5))
    return wcs.to_sky(np.array([y0, y1, y1, y0]), np.array([x0, x0, x1, x1]), bounded=False)


def _origin(exposure: Exposure) -> Origin | None:
    """V2_REF, V3_REF and ROLL_REF of a JWST exposure."""
    if exposure.record.wcs_kind != "gwcs":
        return None
    numbers = [number_card(exposure.cards("sci"), k) for k in ("V2_REF", "V3_REF", "ROLL_REF")]
    v2, v3, roll = numbers
    return None if v2 is None or v3 is None or roll is None else (v2, v3, roll)


def number_card(cards: str, keyword: str) -> float | None:
    """Return the number in a FITS card, None where there is none.

    Examples
    --------
    >>> number_card("V2_REF  =          -122.427986 / [arcsec]".ljust(80), "V2_REF")
    -122.427986
    """
    start = f"{keyword:<8}="
    for at in range(0, len(cards), 80):
        if cards.startswith(start, at):
            try:
                return float(cards[at + 9 : at + 80].split("/", 1)[0].strip().replace("D", "E"))
            except ValueError:
                return None
    return None


@dataclass(frozen=True, eq=False)
class Listed:
    """One exposure's list as an alignment takes it."""

    member: Member
    origin: Origin | None
    stars: int


def read_listed(obs: Observation, exposure: Exposure, key: str) -> Listed:
    """Return the list of an exposure.

    Raises
    ------
    StoreError
        If it is missing or damaged.
    """
    table = read_list(obs, key)
    meta, columns = table.meta, table.columns
    origin = None if meta["origin"] is None else (meta["origin"][0], meta["origin"][1], meta["origin"][2])
    member = Member(
        exposure.record.group_id, TangentPlane(tuple(meta["plane"])), meta["scale"], columns["ra"], columns["dec"],
        columns.get("weight"), np.array(meta["corners"]),
    )  # fmt: skip
    return Listed(member, origin, len(table))
