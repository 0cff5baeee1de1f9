"""Several filters on one grid: a detection image of all of them, and fluxes of each in the same sources."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Task
from streamimg3.geometry import Box, TileGrid
from streamimg3.kernels.aperture import circle_sums
from streamimg3.store import Observation

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
METHODS = ("ivar", "chi2")
PLANES = ("sci", "err", "wht")
_PIXEL = 44  # bytes per pixel of a tile in work, measured
Fluxes = tuple[tuple[NDArray[np.int64], F8], ...]


@dataclass(frozen=True)
class Band:
    """One filter: its store, the group of its mosaic, and its sky level (image's unit)."""

    observation: Observation
    path: str
    sky: float


def tile_tasks(shape: tuple[int, int], tile: int, bands: int) -> list[Task]:
    """Return one task for each tile."""
    need = tile * tile * (_PIXEL + 8 * bands)
    return [
        Task(t.key, need, need, writes=(("mosaic", t.box.as_tuple()),), item=(t.row, t.col))
        for t in TileGrid(shape, tile)
    ]


def _box(task: Task, shape: tuple[int, int], tile: int) -> Box:
    row, col = task.item if isinstance(task.item, tuple) else (task.item, 0)
    return TileGrid(shape, tile).tile(row, col).box


def combine_work(
    task: Task, *, obs: Observation, bands: tuple[Band, ...], method: str, shape: tuple[int, int], tile: int
) -> dict[str, float]:
    """Write one tile of the detection image.

    ``ivar``: the mean of all filters weighted by their inverse variance; ``chi2``: the root of the sum of the squared
    signal-to-noise ratios (negative where the mean signal is), whose error is 1.
    """
    start = time.process_time()
    box = _box(task, shape, tile)
    weight, signal, squares = (np.zeros(box.shape) for _ in range(3))
    for band in bands:
        sci, err = (band.observation.window(f"{band.path}/{p}", (), box).astype(np.float64) for p in ("sci", "err"))
        good = np.isfinite(sci) & np.isfinite(err) & (err > 0)
        inverse = np.zeros(box.shape)
        inverse[good] = 1.0 / err[good] ** 2
        above = np.where(good, sci - band.sky, 0.0)
        weight += inverse
        signal += above * inverse
        squares += above**2 * inverse
    covered = weight > 0
    sci, err = np.full(box.shape, np.nan), np.full(box.shape, np.nan)
    if method == "ivar":
        sci[covered] = signal[covered] / weight[covered]
        err[covered] = 1.0 / np.sqrt(weight[covered])
    else:
        sci[covered] = np.sign(signal[covered]) * np.sqrt(squares[covered])
        err[covered] = 1.0
    for plane, values in zip(PLANES, (sci, err, weight), strict=True):
        obs.write(f"mosaic/{plane}", (), box, values.astype(np.float32))
    return {"combine": time.process_time() - start}


def flux_work(task: Task, *, obs: Observation, bands: tuple[Band, ...], shape: tuple[int, int], tile: int) -> Fluxes:
    """Return, for the sources in one tile, labels and (label, filter, [flux, variance, pixels]) sums over their pixels."""
    box = _box(task, shape, tile)
    labels = obs.window("mosaic/segmentation", (), box).astype(np.int64)
    found, place = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(found), len(bands), 3))
    for k, band in enumerate(bands):
        sci, err = (band.observation.window(f"{band.path}/{p}", (), box).astype(np.float64) for p in ("sci", "err"))
        good = (np.isfinite(sci) & np.isfinite(err)).ravel()
        at = place.ravel()[good]
        for n, values in enumerate((sci - band.sky, err**2, np.ones(box.shape))):
            sums[:, k, n] = np.bincount(at, values.ravel()[good], minlength=len(found))
    keep = found > 0
    return ((found[keep], sums[keep]),)


def circle_work(
    task: Task, *, bands: tuple[Band, ...], centres: F8, radii: tuple[float, ...], shape: tuple[int, int], tile: int
) -> Fluxes:
    """Return, for the sources whose centres lie in one tile, their numbers and (source, filter, 2 radii) fluxes and errors."""
    box = _box(task, shape, tile)
    inside = (centres[:, 0] >= box.y0) & (centres[:, 0] < box.y1) & (centres[:, 1] >= box.x0) & (centres[:, 1] < box.x1)
    which = np.flatnonzero(inside)
    made = np.full((len(which), len(bands), 2 * len(radii)), np.nan)
    reach = int(np.ceil(max(radii))) + 2
    window = box.grow(reach).intersect(Box.of_shape(shape))
    if len(which) and window is not None:
        for k, band in enumerate(bands):
            sci, err = (
                band.observation.window(f"{band.path}/{p}", (), window).astype(np.float32) for p in ("sci", "err")
            )
            for n, radius in enumerate(radii):
                total, error = circle_sums(
                    sci - np.float32(band.sky), err, (window.y0, window.x0), centres[which], radius
                )
                made[:, k, 2 * n], made[:, k, 2 * n + 1] = total, error
    return ((which, made),)
