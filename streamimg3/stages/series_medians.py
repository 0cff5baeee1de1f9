"""The pixels of a strip of a time series against their medians: reading, judging, writing (spec others §2.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from streamimg3.geometry import Box
from streamimg3.kernels.outliers import nan_median
from streamimg3.kernels.rolling_median import QUARTILES, Window, clip_series, outliers, rolling_median, rolls
from streamimg3.store import Exposure, Observation
from streamimg3.store.cubes import CubeStack

F4 = NDArray[np.float32]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class Method:
    """How pixels are judged; names as in the step's parameters, ``bad`` are the flags that keep a pixel out."""

    width: int
    snr: float
    bad: int
    clip: bool
    maxiters: int | None
    aware: bool
    variability: bool
    compat: bool
    keep: bool

    @property
    def bytes_per_pixel(self) -> int:
        """Most bytes that judging takes for each pixel of each integration that is read."""
        return 32 if self.clip else 34 if self.variability else 28


@dataclass
class Strip:
    """Rows ``y0..y1`` of the integrations ``first..last`` of a stack, and what is found out about them.

    Parameters
    ----------
    obs : Observation
        The store.
    stack : CubeStack
        Which stack.
    span : tuple of int
        First integration, and the one behind the last.
    rows : tuple of int
        First row, and the one behind the last.
    """

    obs: Observation
    stack: CubeStack
    span: tuple[int, int]
    rows: tuple[int, int]
    _flags: NDArray[np.uint8] = field(init=False, repr=False)
    _medians: dict[tuple[int, int, int], F4] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        nx = self.stack.shape[1]
        shape = (self.span[1] - self.span[0], self.rows[1] - self.rows[0], -(-nx // 8))
        self._flags = np.zeros(shape, np.uint8)

    def box(self, rows: tuple[int, int]) -> Box:
        """Return some whole rows."""
        return Box(rows[0], 0, rows[1], self.stack.shape[1])

    def read(self, plane: str, first: int, last: int, rows: tuple[int, int]) -> NDArray[np.generic] | None:
        """Return rows of a plane of some integrations of the stack; None where no exposure has it."""
        parts = [p for p in self.stack.parts(first, last) if Exposure(self.obs, p.record).has(plane)]
        if not parts:
            return None
        box = self.box(rows)
        if len(parts) == 1 and parts[0].last - parts[0].first == last - first:
            return Exposure(self.obs, parts[0].record).read_block(plane, parts[0].first, parts[0].last, box)
        whole: NDArray[np.generic] = np.zeros((last - first, *box.shape), np.uint32 if plane == "dq" else np.float32)
        for p in parts:
            found = Exposure(self.obs, p.record).read_block(plane, p.first, p.last, box)
            whole[p.start : p.start + p.last - p.first] = found
        return whole

    def bad(self, first: int, last: int, rows: tuple[int, int], bits: int) -> Bool | None:
        """Return where flags keep pixels out; None = nowhere."""
        found = self.read("dq", first, last, rows) if bits else None
        return None if found is None else np.asarray((found.astype(np.uint32, copy=False) & np.uint32(bits)) != 0)

    def keep(self, first: int, rows: tuple[int, int], flags: Bool, median: F4 | None) -> None:
        """Remember what was found from an integration of the stack on."""
        at, y = first - self.span[0], rows[0] - self.rows[0]
        self._flags[at : at + len(flags), y : y + flags.shape[1]] = np.packbits(flags, axis=2)
        if median is not None:
            self._medians[first, len(flags), y] = median

    def write(self, first: int, last: int) -> None:
        """Write the flags, and the medians where they were kept, of some integrations: whole shards."""
        at, nx, box = first - self.span[0], self.stack.shape[1], self.box(self.rows)
        packed = self._flags[at : at + last - first]
        span = (slice(first, last),)
        self.obs.write(f"{self.stack.path}/outlier", span, box, np.unpackbits(packed, axis=2, count=nx))
        if self._medians:
            block = np.full((last - first, *box.shape), np.float32(np.nan))
            for (start, count, y), values in self._medians.items():
                a, b = max(start, first), min(start + count, last)
                if a < b:
                    found = values if values.ndim == 2 else values[a - start : b - start]
                    block[a - first : b - first, y : y + values.shape[-2]] = found
            self.obs.write(f"{self.stack.path}/median", span, box, block)


def flag_band(strip: Strip, scope: tuple[int, int], rows: tuple[int, int], method: Method) -> None:
    """Judge some rows of the integrations that a strip and a scope have in common.

    Parameters
    ----------
    strip : Strip
        Takes what is found.
    scope : tuple of int
        Integrations of the stack that medians may be taken over.
    rows : tuple of int
        First row, and the one behind the last.
    method : Method
        How.
    """
    first, last = max(strip.span[0], scope[0]), min(strip.span[1], scope[1])
    err = strip.read("err", first, last, rows)
    if err is None:
        return
    if method.clip:
        _clipped(strip, (first, last), rows, method)
    elif rolls(method.width, scope[1] - scope[0]):
        _rolled(strip, (first, last), scope, rows, method, np.asarray(err, np.float32))
    else:
        _against_all(strip, (first, last), scope, rows, method, np.asarray(err, np.float32))


def _rolled(
    strip: Strip, span: tuple[int, int], scope: tuple[int, int], rows: tuple[int, int], method: Method, err: F4
) -> None:
    window = Window(method.width, scope[1] - scope[0], method.aware, method.compat)
    here = span[0] - scope[0], span[1] - scope[0]
    lo, hi = window.needed(*here)
    sci = np.asarray(strip.read("sci", scope[0] + lo, scope[0] + hi, rows), np.float32)
    bad = strip.bad(scope[0] + lo, scope[0] + hi, rows, method.bad)
    median, scatter = rolling_median(sci, bad, window, here, method.variability)
    if lo <= here[0] and here[1] <= hi:
        own = sci[here[0] - lo : here[1] - lo]
    else:  # a window of 2, in compatible mode, is elsewhere
        own = np.asarray(strip.read("sci", *span, rows), np.float32)
    flags = outliers(own, err, median, method.snr, scatter)
    strip.keep(span[0], rows, flags, median.astype(np.float32) if method.keep else None)


def _against_all(
    strip: Strip, span: tuple[int, int], scope: tuple[int, int], rows: tuple[int, int], method: Method, err: F4
) -> None:
    """One median of all integrations; as in the reference, flags do not keep pixels out of it."""
    sci = np.asarray(strip.read("sci", *scope, rows), np.float32)
    median = nan_median(sci)
    own = sci[span[0] - scope[0] : span[1] - scope[0]]
    scatter = None
    if method.variability:
        scatter = np.broadcast_to(_quartile_scatter(sci), own.shape)
    flags = outliers(own, err, median, method.snr, scatter)
    strip.keep(span[0], rows, flags, median if method.keep else None)


def _quartile_scatter(sci: F4) -> F4:
    """Standard deviation of every pixel's series from the distance of its quartiles, shape (ny, nx)."""
    series = np.sort(sci, axis=0)  # NaN come last
    count = np.count_nonzero(~np.isnan(series), axis=0)
    ends = []
    for part in (0.25, 0.75):
        place = part * np.maximum(count - 1, 0)
        low = np.floor(place).astype(np.int64)
        high = np.minimum(low + 1, np.maximum(count - 1, 0))
        a, b = (np.take_along_axis(series, at[None], axis=0)[0] for at in (low, high))
        ends.append(a + (place - low) * (b - a))
    found = np.where(count > 0, (ends[1] - ends[0]) / QUARTILES, math.nan)
    return np.asarray(found, np.float32)


def _clipped(strip: Strip, span: tuple[int, int], rows: tuple[int, int], method: Method) -> None:
    sci = np.array(strip.read("sci", *span, rows), np.float32)
    bad = strip.bad(*span, rows, method.bad)
    if bad is not None:
        sci[bad] = np.nan
    flags = clip_series(sci, method.snr, method.maxiters)
    strip.keep(span[0], rows, flags, nan_median(sci) if method.keep else None)
