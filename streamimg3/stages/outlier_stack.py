"""Outliers in detector pixels, without resampling: each exposure against the median of all (spec image3 §6.5)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Task
from streamimg3.errors import InputError
from streamimg3.geometry import Box
from streamimg3.kernels.clip import clip_stream
from streamimg3.kernels.outliers import nan_median, stacked_outliers
from streamimg3.stages.layers import Layer, Setup, read_setup
from streamimg3.stages.outlier_flags import Noise
from streamimg3.stages.tile_drizzle import Clock, raw_weights, read
from streamimg3.store import Observation
from streamimg3.store.layout import CHUNK, chunking

F4 = NDArray[np.float32]
_PIXEL = 40  # bytes per pixel of a band while one exposure of it is read and compared
_THINNEST = 16


def check_shapes(setup: Setup) -> None:
    """Refuse exposures of different shapes.

    Raises
    ------
    InputError
        Naming both.
    """
    shapes = {la.shape for la in setup.layers}
    if len(shapes) > 1:
        listed = " and ".join(f"{ny} x {nx}" for ny, nx in sorted(shapes))
        raise InputError(
            f"outlier_detection.resample_data = False compares detector pixels, but the exposures have {listed} pixels:"
            " leave resample_data at True"
        )


def _weight(obs: Observation, layer: Layer, box: Box) -> F4:
    """Weight of every pixel of a band."""
    dq = read(obs, layer, "dq", box) if "dq" in layer.planes else np.zeros(box.shape, np.uint32)
    good = (dq & np.uint32(layer.bad)) == 0
    return raw_weights(obs, layer, box, good)


# ---------------------------------------------------------------- weight threshold of each exposure
def threshold_tasks(setup: Setup) -> list[Task]:
    """Return one task for each exposure."""
    need = [16 * CHUNK * la.shape[1] for la in setup.layers]
    return [Task(f"e{la.exposure:06d}", n, n, item=la.bit) for la, n in zip(setup.layers, need, strict=True)]


def threshold_work(task: Task, *, obs: Observation, layers: tuple[Layer, ...], maskpt: float) -> tuple[float, ...]:
    """Return ``maskpt`` times the clipped mean weight of an exposure."""
    layer = layers[task.item if isinstance(task.item, int) else task.item[0]]
    ny, nx = layer.shape

    def chunks() -> Iterator[tuple[F4, NDArray[np.bool_]]]:
        for y0 in range(0, ny, CHUNK):
            weight = _weight(obs, layer, Box(y0, 0, min(y0 + CHUNK, ny), nx))
            yield weight, ~np.isfinite(weight) | (weight == 0)

    return (clip_stream(chunks).mean * maskpt,)


# ---------------------------------------------------------------- median and flags
def stack_tasks(setup: Setup) -> list[Task]:
    """Return one task for each row of shards of the stack."""
    (ny, nx), count = setup.layers[0].shape, len(setup.layers)
    _, (rows, _) = chunking((ny, nx))
    tasks = []
    for number, y0 in enumerate(range(0, ny, rows)):
        box = Box(y0, 0, min(y0 + rows, ny), nx)
        flags = box.size * count
        most, least = (flags + nx * n * (4 * count + _PIXEL) for n in (min(CHUNK, ny), min(_THINNEST, ny)))
        planes = tuple((f"{la.path}[{la.row}]", box.as_tuple()) for la in setup.layers)
        tasks.append(Task(f"b{number:04d}", most, least, planes, planes, (box.y0, box.y1)))
    return tasks


def stack_work(
    task: Task, *, obs: Observation, mark: str, thresholds: tuple[float | None, ...], snr: float, noise: Noise
) -> dict[str, float]:
    """Flag the outliers of all exposures in one row of shards."""
    setup = read_setup(obs, mark)
    y0, y1 = task.item  # type: ignore[misc]
    nx, layers = setup.layers[0].shape[1], setup.layers
    clock = Clock()
    flags = np.zeros((len(layers), y1 - y0, nx), np.uint8)
    free = task.limit - flags.nbytes
    rows = max(_THINNEST, min(CHUNK, free // (nx * (4 * len(layers) + _PIXEL))))
    for top in range(y0, y1, rows):
        band = Box(top, 0, min(top + rows, y1), nx)
        with clock.on("read"):
            stack = np.stack([_masked(obs, la, band, thresholds[la.bit]) for la in layers])
        with clock.on("median"):
            median = nan_median(stack)
        for la in layers:
            with clock.on("flag"):
                sci = read(obs, la, "sci", band)
                err = read(obs, la, "err", band) if "err" in la.planes else noise.of(la.exposure, sci)
                flags[la.bit, top - y0 : band.y1 - y0] = stacked_outliers(sci, err, median, snr)
    with clock.on("write"):
        for la in layers:
            obs.write(f"{la.path}/outlier", (la.row,), Box(y0, 0, y1, nx), flags[la.bit])
    return clock.seconds


def _masked(obs: Observation, layer: Layer, band: Box, threshold: float | None) -> F4:
    """An exposure with NaN where its weight is too low."""
    sci: F4 = np.array(read(obs, layer, "sci", band))
    if threshold is not None and not math.isnan(threshold):
        sci[_weight(obs, layer, band) < np.float64(threshold)] = np.nan
    return sci
