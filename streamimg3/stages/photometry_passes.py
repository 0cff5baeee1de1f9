"""The passes of photometry of time series, a block of integrations at a time: search, fit, sums (spec others §2.3)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Task
from streamimg3.geometry import Box
from streamimg3.kernels.centroid import Boxes, find_centres, fit_stars
from streamimg3.kernels.time_aperture import Apertures, TimeSums, aperture_series, whole_series
from streamimg3.stages.series_blocks import Setting, pieces
from streamimg3.store import ExposureRecord
from streamimg3.store.layout import FLAGS
from streamimg3.store.rows import read_rows, write_rows
from streamimg3.store.series_documents import SeriesFacts

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
Point = tuple[float, float]

SCRATCH = "scratch/tso_photometry"
BYTES = {"search": 20, "fit": 20, "sums": 24}  # per pixel of an integration at hand, by pass
_LENS = ("WLP8", "SUB64P")  # the star's image fills this sub-array behind this weak lens


@dataclass(frozen=True)
class How:
    """Boxes and apertures; whether the search goes on from integration to integration, and whether apertures move."""

    search: Boxes
    fit: Boxes
    apertures: Apertures
    track: bool
    moves: bool


@dataclass(frozen=True)
class Aim:
    """Where the star of a segment is: as planned, as first found, and the aperture's centre (None = it moves).

    ``lost`` says that it was not found, ``whole`` that all pixels are summed.
    """

    start: Point
    guess: Point | None = None
    centre: Point | None = None
    lost: bool = False
    whole: bool = False


Work = Callable[..., dict[str, float]]


def sums_all(facts: SeriesFacts) -> bool:
    """Whether all pixels of an image are summed, for the star fills it."""
    return (facts.pupil, facts.subarray) == _LENS


@dataclass(frozen=True)
class _Piece:
    """Some integrations ``first..last`` of a segment; ``row`` is the first one's in its series."""

    record: ExposureRecord
    first: int
    last: int
    row: int


def _pieces(task: Task, setting: Setting) -> Iterator[_Piece]:
    one = setting.series[_number(task)]
    for first, last in pieces(task, one):
        for part in one.parts(first, last):
            yield _Piece(part.record, part.first, part.last, first + part.start)


def _number(task: Task) -> int:
    return task.item[0] if isinstance(task.item, tuple) else task.item


def _pixels(
    setting: Setting, piece: _Piece, box: Box, with_err: bool = False
) -> tuple[F4, NDArray[np.bool_], F4 | None]:
    """Read pixels in the unit of the photometry; where they are bad; and their errors if wanted."""
    seen = setting.seen(piece.record)
    span = piece.first, piece.last, box
    bad = seen.invalid(*span) if setting.judged else (seen.flags(*span) & np.uint32(FLAGS["DO_NOT_USE"])) != 0
    matched = bad if setting.judged else None  # pixels that are flagged only keep their values otherwise
    factor = _factor(setting, piece.record, box)
    sci = seen.floats("sci", *span, matched)
    sci *= factor
    err = None
    if with_err:
        err = seen.floats("err", *span, matched)
        err *= factor
    bad |= np.isnan(sci)
    return sci, bad, err


def _factor(setting: Setting, record: ExposureRecord, box: Box) -> float | F4:
    """What turns pixels into Jy or electrons; 1 where the unit is another one."""
    entry = setting.entry(record)
    if entry.facts.bunit == "MJy/sr" and entry.facts.pixel_area is not None:
        return 1e6 * entry.facts.pixel_area
    if entry.facts.bunit == "DN/s" and entry.facts.integration_time is not None and entry.gain is not None:
        gain = np.asarray(setting.obs.array(f"references/gain{entry.gain}")[box.slices], np.float32)
        return entry.facts.integration_time * gain
    return 1.0


def search(task: Task, *, setting: Setting, how: How, aims: Mapping[int, Aim]) -> dict[str, float]:
    """Find the star roughly: columns y, x."""
    begun = time.process_time()
    number = _number(task)
    found, last = [], None
    for piece in _pieces(task, setting):
        sci, bad, _ = _pixels(setting, piece, Box.of_shape(piece.record.shape))
        start = aims[piece.record.index].start
        if how.track:
            found.append(_followed(sci, bad, last or start, how.search))
            known = found[-1][~np.isnan(found[-1][:, 0])]
            last = (float(known[-1, 0]), float(known[-1, 1])) if len(known) else last
        else:
            found.append(find_centres(sci, bad, start, how.search))
    _write(task, setting, "search", number, np.concatenate(found))
    return {"centroid": time.process_time() - begun}


def _followed(sci: F4, bad: NDArray[np.bool_], guess: Point, boxes: Boxes) -> F8:
    """Find the star in each integration from where it was in the one before, and once more about what was found."""
    found = np.empty((len(sci), 2))
    for k in range(len(sci)):
        image, mask = sci[k : k + 1], bad[k : k + 1]
        for _ in range(2):
            place = find_centres(image, mask, guess, boxes)[0]
            if not math.isnan(place[0]):
                guess = float(place[0]), float(place[1])
        found[k] = place
    return found


def fit(task: Task, *, setting: Setting, how: How, aims: Mapping[int, Aim]) -> dict[str, float]:
    """Find the star exactly, and how wide it is: columns y, x, width in y, width in x, flux."""
    begun = time.process_time()
    number = _number(task)
    found = []
    for piece in _pieces(task, setting):
        sci, bad, _ = _pixels(setting, piece, Box.of_shape(piece.record.shape))
        aim = aims[piece.record.index]
        guess = aim.guess or aim.start
        if not how.track:
            found.append(np.column_stack(fit_stars(sci, bad, guess, how.fit)))
            continue
        places = read_rows(setting.obs, f"{SCRATCH}/search/{number}", piece.row, piece.row + len(sci))
        for k, place in enumerate(places):
            here = guess if math.isnan(place[0]) else (float(place[0]), float(place[1]))
            found.append(np.column_stack(fit_stars(sci[k : k + 1], bad[k : k + 1], here, how.fit)))
    _write(task, setting, "fit", number, np.concatenate(found))
    return {"fit": time.process_time() - begun}


def sums(task: Task, *, setting: Setting, how: How, aims: Mapping[int, Aim]) -> dict[str, float]:
    """Sum the light in the apertures: columns total, error and area of each circle, then of the ring."""
    begun = time.process_time()
    number = _number(task)
    found = []
    for piece in _pieces(task, setting):
        aim = aims[piece.record.index]
        centres: F8 | Point
        if aim.whole:
            found.append(_whole(setting, piece, how))
            continue
        if aim.centre is not None:
            centres = aim.centre
            places = np.array([aim.centre])
        else:
            places = read_rows(setting.obs, f"{SCRATCH}/fit/{number}", piece.row, piece.row + piece.last - piece.first)
            centres = places = np.ascontiguousarray(places[:, :2])
        box = _window(places, how.apertures.reach, piece.record.shape)
        sci, _, err = _pixels(setting, piece, box, with_err=True)
        assert err is not None
        found.append(_columns(aperture_series(sci, err, centres, how.apertures, (box.y0, box.x0))))
    _write(task, setting, "sums", number, np.concatenate(found))
    return {"photometry": time.process_time() - begun}


def _whole(setting: Setting, piece: _Piece, how: How) -> F8:
    sci, _, err = _pixels(setting, piece, Box.of_shape(piece.record.shape), with_err=True)
    assert err is not None
    rows = np.full((len(sci), 3 * (len(how.apertures.radii) + 1)), np.nan)
    rows[:, 0], rows[:, 1] = whole_series(sci, err)
    return rows


def _columns(found: TimeSums) -> F8:
    circles = np.stack([found.total, found.error, found.area], axis=2).reshape(len(found.total), -1)
    return np.column_stack([circles, found.ring_total, found.ring_error, found.ring_area])


def _window(places: F8, reach: int, shape: tuple[int, int]) -> Box:
    """Return the part of an image that apertures about some places need; one pixel where they miss it."""
    known = places[~np.isnan(places).any(axis=1)]
    corners = []
    for axis, size in enumerate(shape):
        low = math.floor(known[:, axis].min()) - reach if len(known) else 0
        high = math.ceil(known[:, axis].max()) + reach + 1 if len(known) else 1
        low = min(max(low, 0), size - 1)
        corners.append((low, min(max(high, low + 1), size)))
    return Box(corners[0][0], corners[1][0], corners[0][1], corners[1][1])


def _write(task: Task, setting: Setting, name: str, number: int, rows: F8) -> None:
    first = task.item[1] if isinstance(task.item, tuple) else 0
    write_rows(setting.obs, f"{SCRATCH}/{name}/{number}", first, rows)


WORKS: dict[str, Work] = {"search": search, "fit": fit, "sums": sums}
