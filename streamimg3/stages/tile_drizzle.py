"""One tile of a mosaic: read what touches it, in bands, drizzle every plane in one pass, write whole shards."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.geometry import Box
from streamimg3.kernels import pixels, spline
from streamimg3.kernels.drizzle import Canvas, Kernel, Patch, drizzle
from streamimg3.sky.pixmap import PixelMap, exact_window
from streamimg3.stages.layers import Layer, Setup
from streamimg3.stages.pixel_maps import read_map
from streamimg3.store import Observation
from streamimg3.store.exposure import stored_wcs
from streamimg3.store.layout import CHUNK, VARIANCES

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
_EXACT_PIXELS = 1 << 16  # pixels that go through a WCS object at a time: its temporaries take about 115 bytes each
_WINDOW = 34  # bytes per input pixel: image, weight, flags, masks, both map coordinates
_THINNEST = 32  # rows of the thinnest band


class Clock:
    """Processor seconds by kind of work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def on(self, kind: str) -> Iterator[None]:
        """Count what happens inside as ``kind``."""
        start = time.process_time()
        try:
            yield
        finally:
            self.seconds[kind] = self.seconds.get(kind, 0.0) + time.process_time() - start


def canvas_memory(setup: Setup) -> int:
    """Bytes that the accumulators of one tile take, with the codec's copies of the plane being written."""
    m = len(setup.noise)
    per_pixel = (
        4 * (1 + setup.drizzle_err) + 4 + 4 + 2 + 4 * (1 + m) * bool(m) + 8 * m + 4 * ("dq" in setup.planes) + 16
    )
    return setup.tile * setup.tile * per_pixel


def window_memory(setup: Setup, box: Box) -> int:
    """Bytes that an input window takes while it is drizzled."""
    return box.size * (_WINDOW + 8 * len(setup.noise) + 4 * setup.drizzle_err)


def task_memory(setup: Setup, boxes: Sequence[Box]) -> tuple[int, int]:
    """Return the memory of a tile that reads these windows, whole and in the thinnest bands."""
    canvas = canvas_memory(setup)
    widest = max(box.x1 - box.x0 for box in boxes)
    whole = max(window_memory(setup, box) for box in boxes)
    return canvas + whole, canvas + min(whole, window_memory(setup, Box(0, 0, _THINNEST, widest)))


@dataclass
class Sums:
    """Running variance sums of a tile (spec §7.6)."""

    values: F4
    weights: F4

    @classmethod
    def blank(cls, count: int, shape: tuple[int, int]) -> Sums:
        """Return sums to which nothing has contributed."""
        return cls(np.full((count, *shape), np.nan, np.float32), np.zeros((count, *shape), np.float32))


@dataclass(frozen=True)
class _Spot:
    """Where planes of a tile are written: all of it, or a part, beside which it stays as it is in the store."""

    obs: Observation
    path: str
    tile: Box
    part: Box

    @property
    def whole(self) -> bool:
        return self.part == self.tile

    def put(self, plane: str, lead: tuple[int, ...], values: NDArray[np.generic]) -> None:
        """Write the part; a shard is always written whole."""
        path = f"{self.path}/{plane}"
        if not self.whole:
            old = self.obs.window(path, lead, self.tile)
            old[self.part.within(self.tile)] = values
            values = old
        self.obs.write(path, lead, self.tile, values)


def drizzle_tile(
    obs: Observation, setup: Setup, layers: Sequence[Layer], boxes: tuple[Box, Box], limit: int
) -> dict[str, float]:
    """Make all planes of one tile and write them.

    Parameters
    ----------
    obs : Observation
        The store.
    setup : Setup
        Planes, kernel and frame.
    layers : sequence of Layer
        Those that touch the tile, in order.
    boxes : pair of Box
        The tile's pixels in the mosaic, and those of them that are made; the others stay as they are in the store.
    limit : int
        Memory granted, bytes.

    Returns
    -------
    dict
        Processor seconds by kind: read, map, drizzle, write.
    """
    clock, box = Clock(), boxes[1]
    spot = _Spot(obs, setup.path, *boxes)
    m = len(setup.noise)
    canvas = Canvas.blank((box.y0, box.x0), box.shape, (1 + setup.drizzle_err, m), "dq" in setup.planes)
    sums = Sums.blank(m, box.shape)
    depth = np.zeros(box.shape, np.uint16)
    for word in range(-(-len(setup.layers) // 32)):
        for layer in (la for la in layers if la.bit // 32 == word):
            _add(obs, setup, canvas, layer, box, limit, clock)
            if m:
                with clock.on("drizzle"):
                    index = {
                        "var_rnoise": setup.noise.index("var_rnoise") if "var_rnoise" in setup.noise else -1,
                        "weight": -2,
                    }
                    pixels.add_variances(
                        canvas.noise, sums.values, sums.weights, index.get(layer.weight, -1), layer.constant
                    )
        with clock.on("write"):
            _flush(spot, setup, canvas, depth, word)
    _finish(spot, setup, canvas, sums, depth, clock)
    return clock.seconds


def drizzle_layers(
    obs: Observation, setup: Setup, layers: Sequence[Layer], box: Box, limit: int, clock: Clock
) -> Canvas:
    """Drizzle image and weight of some exposures onto one tile; returns the sums, writes nothing."""
    canvas = Canvas.blank((box.y0, box.x0), box.shape, (1 + setup.drizzle_err, 0))
    for layer in layers:
        _add(obs, setup, canvas, layer, box, limit, clock)
    return canvas


def _add(obs: Observation, setup: Setup, canvas: Canvas, layer: Layer, box: Box, limit: int, clock: Clock) -> None:
    """Drizzle one exposure onto a tile, in bands that fit the memory."""
    kernel = Kernel(setup.kernel, setup.pixfrac, setup.ratio)
    with clock.on("map"):
        found = read_map(obs, setup.maps, layer.map)
    for window in bands(found.touching(box, kernel.reach), setup, limit - canvas_memory(setup)):
        patch = _patch(obs, setup, layer, found, window, clock)
        with clock.on("drizzle"):
            drizzle(canvas, patch, kernel, layer.bit % 32)


def bands(cells: Sequence[Box], setup: Setup, free: int) -> list[Box]:
    """Join rows of grid cells to bands of rows, cut at chunk borders, each within ``free`` bytes where possible."""
    if not cells:
        return []
    whole = cells[0]
    for cell in cells[1:]:
        whole = whole.union(cell)
    per_row = window_memory(setup, Box(0, whole.x0, 1, whole.x1))
    rows = max(_THINNEST, free // per_row)
    if rows < whole.shape[0]:
        rows = rows // CHUNK * CHUNK if rows >= CHUNK else rows
    found = []
    y = whole.y0
    while y < whole.y1:
        end = min((y // rows + 1) * rows if rows < whole.shape[0] else whole.y1, whole.y1)
        inside = [c for c in cells if c.y0 < end and c.y1 > y]
        if inside:
            found.append(Box(y, min(c.x0 for c in inside), end, max(c.x1 for c in inside)))
        y = end
    return found


def _patch(obs: Observation, setup: Setup, layer: Layer, found: PixelMap, box: Box, clock: Clock) -> Patch:
    """Read a window of an exposure and make it ready: weights, sky, map."""
    with clock.on("map"):
        grown = box.grow(1).intersect(Box.of_shape(layer.shape)) or box
        y, x = window_map(obs, setup, layer, found, grown)
    with clock.on("read"):
        sci = read(obs, layer, "sci", box)
        nan = read(obs, layer, "nan", box)
        if layer.elsewhere:  # what has been made of the exposure may have no value where the exposure has one
            nan = nan | np.isnan(sci)
        dq = read(obs, layer, "dq", box) if "dq" in layer.planes else np.zeros(box.shape, np.uint32)
        noise = np.empty((len(setup.noise), *box.shape), np.float32)
        for k, name in enumerate(setup.noise):
            noise[k] = _noise_plane(obs, layer, name, box)
        if layer.weight in setup.noise:
            raw = noise[setup.noise.index(layer.weight)]
        else:
            raw = _raw(obs, layer, box)
    with clock.on("drizzle"):
        good = pixels.usable(dq, nan, layer.bad)
        if "outlier" in layer.planes:
            good &= read(obs, layer, "outlier", box) == 0
        weight = _weights(raw, layer, good)
        if layer.level:
            sci = sci - np.float32(layer.level)
        data = sci[None] if not setup.drizzle_err else np.stack([sci, read(obs, layer, "err", box)])
    flags = dq if "dq" in setup.planes else np.zeros((0, 0), np.uint32)
    limits = np.ascontiguousarray(found.limits[box.y0 : box.y1])
    return Patch((box.y0, box.x0), layer.shape, y, x, data, noise, weight, limits, flags)


def _raw(obs: Observation, layer: Layer, box: Box) -> F4:
    """What the weights of a window are made from."""
    if layer.weight == "constant":
        return np.full(box.shape, layer.constant, np.float32)
    plane: F4 = read(obs, layer, layer.weight, box)
    return plane


def raw_weights(obs: Observation, layer: Layer, box: Box, good: NDArray[np.bool_]) -> F4:
    """Return the weight of every pixel of a window; 0 where it is not ``good``."""
    return _weights(_raw(obs, layer, box), layer, good)


def read(obs: Observation, layer: Layer, plane: str, box: Box):  # type: ignore[no-untyped-def]
    """Return a window of a layer's plane, in the plane's own dtype, of shape ``box.shape``."""
    path, row = layer.source(plane)
    return obs.window(path, (row,), box)


def _noise_plane(obs: Observation, layer: Layer, name: str, box: Box) -> F4 | float:
    """A variance of a window; where an exposure has none but ERR, its square stands for all of them."""
    if name in layer.planes and name != "err":
        plane: F4 = read(obs, layer, name, box)
        return plane
    bare = not any(v in layer.planes for v in VARIANCES)
    if "err" in layer.planes and (name == "err" or (bare and name == "var_poisson")):
        err: F4 = read(obs, layer, "err", box)
        return np.square(err)
    return math.nan


def _weights(raw: F4, layer: Layer, good: NDArray[np.bool_]) -> F4:
    """Weight of every pixel (spec §7.4); 0 where it does not take part."""
    if layer.weight == "var_rnoise":
        weight = pixels.inverse_variance(raw)
    elif layer.weight == "weight":
        weight = np.where(np.isfinite(raw) & (raw > 0), raw, np.float32(0.0))
    else:
        weight = raw
    weight[~good] = 0.0
    return weight


def window_map(obs: Observation, setup: Setup, layer: Layer, found: PixelMap, box: Box) -> tuple[F8, F8]:
    """Output rows and columns of every pixel of an input box."""
    if not found.exact:
        rows = spline.basis(found.knots[0], found.order, box.y0, box.y1)
        cols = spline.basis(found.knots[1], found.order, box.x0, box.x1)
        y, x = (spline.evaluate(c, rows, cols) for c in found.coefficients)
        _blank_outside(found.valid, box, y, x)
        return y, x
    source, target = stored_wcs(obs, layer.path, layer.row, layer.wcs_kind, layer.correction), setup.target
    y, x = np.empty(box.shape), np.empty(box.shape)
    step = max(1, _EXACT_PIXELS // box.shape[1])
    for top in range(box.y0, box.y1, step):
        part = Box(top, box.x0, min(top + step, box.y1), box.x1)
        at = part.within(box)
        y[at], x[at] = exact_window(source, target, part)
    return y, x


def _blank_outside(valid: Box, box: Box, *planes: F8) -> None:
    """Set map values outside the bounding box to NaN."""
    inside = valid.intersect(box)
    if inside == box:
        return
    keep = np.zeros(box.shape, bool)
    if inside is not None:
        keep[inside.within(box)] = True
    for plane in planes:
        plane[~keep] = np.nan


def _flush(spot: _Spot, setup: Setup, canvas: Canvas, depth: NDArray[np.uint16], word: int) -> None:
    """Write the context plane of 32 exposures, count them, and clear it for the next."""
    any_here = bool(canvas.context.any())
    if any_here:
        depth += np.bitwise_count(canvas.context.view(np.uint32))
    if "con" in setup.planes and (any_here or not spot.whole):
        spot.put("con", (word,), canvas.context)
    canvas.context[:] = 0


def _finish(spot: _Spot, setup: Setup, canvas: Canvas, sums: Sums, depth: NDArray[np.uint16], clock: Clock) -> None:
    """Turn the sums into planes and write them."""
    divisor = np.float64(setup.ratio) if setup.measured else setup.ratio
    empty = canvas.weight == 0
    with clock.on("drizzle"):
        canvas.data[0][empty] = math.nan if setup.fill is None else setup.fill
        planes: dict[str, NDArray[np.generic]] = {
            "sci": canvas.data[0],
            "wht": canvas.weight,
            "ncontrib": depth,
            "dq": canvas.dq,
        }
        if setup.drizzle_err:
            planes["err"] = np.where(empty, np.float32(np.nan), canvas.data[1] / divisor).astype(np.float32)
        if setup.noise:
            for k in range(len(setup.noise)):
                sums.values[k] = pixels.final_variances(sums.values[k], sums.weights[k], divisor)
            planes["err"] = pixels.total_error(sums.values)
            planes |= dict(zip(setup.noise, sums.values, strict=True)) if setup.noise == VARIANCES else {}
    with clock.on("write"):
        for name in setup.planes:
            if name != "con":
                spot.put(name, (), planes[name])
