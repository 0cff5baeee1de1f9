"""Compare each exposure with the median and keep one bit-plane of outliers (spec image3 §6.3-§6.5)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Task
from streamimg3.geometry import Box
from streamimg3.kernels import pixels
from streamimg3.kernels.blot import blot
from streamimg3.kernels.clip import clip_stream
from streamimg3.kernels.outliers import REACH, Thresholds, resampled_outliers
from streamimg3.sky.pixmap import PixelMap
from streamimg3.stages.layers import Layer, Setup, read_setup
from streamimg3.stages.outlier_median import ROOT
from streamimg3.stages.pixel_maps import read_map
from streamimg3.stages.placement import Placed, placed
from streamimg3.stages.tile_drizzle import Clock, read, window_map
from streamimg3.store import Observation
from streamimg3.store.layout import CHUNK, chunking

F4 = NDArray[np.float32]
_ROW = 44  # bytes per pixel of a band: map, image, error, median, flags and their codec's copies
_HEIGHTS = (CHUNK, CHUNK // 2, CHUNK // 4, 32)  # rows of a band: whole chunks if possible, for each is decoded whole


@dataclass(frozen=True)
class Noise:
    """Noise of exposures without ERR: background rms, or read noise and Poisson noise where those are given.

    ``level`` and ``rms`` are the clipped median and standard deviation of each exposure (None where it has ERR),
    ``gain`` (electrons per unit of the image) and ``read_noise`` (in the image's unit) the user's.
    """

    level: tuple[float | None, ...]
    rms: tuple[float | None, ...]
    gain: float | None = None
    read_noise: float | None = None

    def of(self, exposure: int, sci: F4) -> F4:
        """Return the error of an image."""
        rms, level = self.rms[exposure], self.level[exposure]
        if rms is None or level is None:
            return np.zeros_like(sci)
        variance = np.full(sci.shape, rms**2 if self.read_noise is None else self.read_noise**2, np.float32)
        if self.gain is not None:
            signal = sci - np.float32(level) if self.read_noise is None else sci
            variance += np.maximum(signal, np.float32(0.0)) / np.float32(self.gain)
        return np.sqrt(variance)


@dataclass(frozen=True)
class Comparison:
    """What flagging needs to know beside the set-up.

    ``backgrounds`` is what each exposure has more than the median (None = ``backg``); ``subtract`` says that levels are
    taken off the exposures for good, ``blots`` that the blotted medians are kept.
    """

    thresholds: Thresholds
    backgrounds: tuple[float | None, ...]
    backg: float
    subtract: bool
    noise: Noise
    blots: bool


def flag_tasks(setup: Setup, places: Sequence[Placed], blots: bool = False) -> list[Task]:
    """Return one task for each exposure; with ``blots`` they keep the blotted medians."""
    tasks = []
    for layer, place in zip(setup.layers, places, strict=True):
        most, least = (_memory(setup, layer, place, rows, blots) for rows in (_HEIGHTS[0], _HEIGHTS[-1]))
        name = f"{layer.path}[{layer.row}]"
        box = ((name, (0, 0, *layer.shape)),)
        tasks.append(Task(f"e{layer.exposure:06d}", max(most, least), least, box, box, layer.bit))
    return tasks


def _memory(setup: Setup, layer: Layer, place: Placed, rows: int, blots: bool) -> int:
    """Bytes for an exposure in bands of some rows: map, a shard of results with the codec's copy, and the band.

    A band has its own planes, and the window of the mosaic under it.
    """
    ny, nx = layer.shape
    _, (shard_rows, _) = chunking(layer.shape)
    fixed = 2 * place.nbytes + 2 * shard_rows * nx * (5 if blots else 1)
    grown = min(rows, ny) + 2 * REACH
    if place.slopes is None:
        return fixed + grown * nx * _ROW + 12 * setup.shape[0] * setup.shape[1]
    span = [min(along + grown * across + 64.0, n) for (along, across), n in zip(place.slopes, setup.shape, strict=True)]
    return int(fixed + grown * nx * _ROW + 12 * span[0] * span[1])


def flag_work(task: Task, *, obs: Observation, mark: str, comparison: Comparison) -> dict[str, float]:
    """Blot, compare and write the outliers of one exposure."""
    setup = read_setup(obs, mark)
    layer = setup.layers[task.item if isinstance(task.item, int) else task.item[0]]
    clock = Clock()
    with clock.on("map"):
        found = read_map(obs, setup.maps, layer.map)
    ny, nx = layer.shape
    _, (shard_rows, _) = chunking(layer.shape)
    place = placed(found, setup)
    fitting = (r for r in _HEIGHTS if _memory(setup, layer, place, r, comparison.blots) <= task.limit)
    rows = next(fitting, _HEIGHTS[-1])
    for top in range(0, ny, shard_rows):
        shard = Box(top, 0, min(top + shard_rows, ny), nx)
        flags = np.zeros(shard.shape, np.uint8)
        blots = np.empty(shard.shape, np.float32) if comparison.blots else None
        for y0 in range(shard.y0, shard.y1, rows):
            band = Box(y0, 0, min(y0 + rows, shard.y1), nx)
            found_flags, blotted = _flag_band(obs, setup, layer, found, band, comparison, clock)
            flags[band.within(shard)] = found_flags
            if blots is not None:
                blots[band.within(shard)] = blotted
        with clock.on("write"):
            obs.write(f"{layer.path}/outlier", (layer.row,), shard, flags)
            if blots is not None:
                obs.write(f"{layer.path}/blot", (layer.row,), shard, blots)
    return clock.seconds


def _flag_band(
    obs: Observation, setup: Setup, layer: Layer, found: PixelMap, band: Box, comparison: Comparison, clock: Clock
) -> tuple[NDArray[np.bool_], F4]:
    """Outliers and blotted median of a band of rows."""
    box = band.grow(REACH).intersect(Box.of_shape(layer.shape)) or band
    with clock.on("map"):
        y, x = window_map(obs, setup, layer, found, box)
    with clock.on("blot"):
        blotted, noise = _blots(obs, setup, y, x)
    with clock.on("read"):
        sci = read(obs, layer, "sci", box)
        if noise is None:
            noise = _noise(obs, layer, sci, box, comparison.noise)
    level = comparison.backgrounds[layer.bit]
    if comparison.subtract and level is not None:
        sci, level = sci - np.float32(level), None
    with clock.on("flag"):
        flags = resampled_outliers(
            sci, noise, blotted, comparison.backg if level is None else level, comparison.thresholds
        )
    inner = band.within(box)
    return flags[inner], blotted[inner]


def _blots(obs: Observation, setup: Setup, y: NDArray[np.float64], x: NDArray[np.float64]) -> tuple[F4, F4 | None]:
    """The median, and its error where that was made, in the pixels of an exposure."""
    inside = (y >= 0) & (y < setup.shape[0]) & (x >= 0) & (x < setup.shape[1])
    if not inside.any():
        blank = np.full(y.shape, np.nan, np.float32)
        return blank, blank if setup.drizzle_err else None
    low = [math.floor(float(v[inside].min())) for v in (y, x)]
    high = [math.floor(float(v[inside].max())) + 3 for v in (y, x)]  # a neighbour, and one for single precision
    whole = Box.of_shape(setup.shape)
    window = Box(max(low[0] - 1, 0), max(low[1] - 1, 0), *high).intersect(whole) or whole
    origin = (window.y0, window.x0)
    planes = [
        blot(np.asarray(obs.window(f"{ROOT}/{p}", (), window), np.float32), origin, setup.shape, y, x)
        for p in (("median", "median_err") if setup.drizzle_err else ("median",))
    ]
    return planes[0], planes[1] if setup.drizzle_err else None


def _noise(obs: Observation, layer: Layer, sci: F4, box: Box, noise: Noise) -> F4:
    """ERR, or the noise model of an exposure without it."""
    if "err" in layer.planes:
        err: F4 = read(obs, layer, "err", box)
        return err
    return noise.of(layer.exposure, sci)


# ---------------------------------------------------------------- noise of exposures without ERR
def rms_tasks(layers: tuple[Layer, ...]) -> list[Task]:
    """Return one task for each exposure without ERR."""
    return [
        Task(f"e{la.exposure:06d}", 16 * 8 * CHUNK * la.shape[1], 16 * CHUNK * la.shape[1],
             ((f"{la.path}[{la.row}]", (0, 0, *la.shape)),), item=la.bit)
        for la in layers if "err" not in la.planes
    ]  # fmt: skip


def rms_work(task: Task, *, obs: Observation, layers: tuple[Layer, ...]) -> tuple[tuple[int, float, float], ...]:
    """Return the exposure's index, and the clipped median and standard deviation of its good pixels."""
    layer = layers[task.item if isinstance(task.item, int) else task.item[0]]
    ny, nx = layer.shape

    def chunks():  # type: ignore[no-untyped-def]
        for y0 in range(0, ny, CHUNK):
            box = Box(y0, 0, min(y0 + CHUNK, ny), nx)
            dq = read(obs, layer, "dq", box) if "dq" in layer.planes else np.zeros(box.shape, np.uint32)
            sci = read(obs, layer, "sci", box)
            yield sci, ~(pixels.usable(dq, read(obs, layer, "nan", box), layer.bad) & np.isfinite(sci))

    found = clip_stream(chunks)
    return ((layer.exposure, found.median, found.std),)


def count_tasks(layers: tuple[Layer, ...]) -> list[Task]:
    """Return one task for each exposure, to count its outliers."""
    return [
        Task(f"e{la.exposure:06d}", 4 * la.shape[0] * la.shape[1], 4 * la.shape[0] * la.shape[1], item=la.bit)
        for la in layers
    ]


def count_work(task: Task, *, obs: Observation, layers: tuple[Layer, ...]) -> tuple[int, ...]:
    """Return the number of outliers of an exposure."""
    layer = layers[task.item if isinstance(task.item, int) else task.item[0]]
    return (int(np.count_nonzero(read(obs, layer, "outlier", Box.of_shape(layer.shape)))),)
