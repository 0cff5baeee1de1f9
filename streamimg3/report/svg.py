"""Plots as SVG text: a few kilobytes each, sharp at any size, without any library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from numpy.typing import NDArray

F8 = NDArray[np.float64]
COLOURS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#64748b")
_WIDTH, _HEIGHT = 520.0, 340.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 68.0, 14.0, 14.0, 46.0
_MOST = 3000  # points of one series; more are thinned out evenly


@dataclass(frozen=True)
class Axis:
    """One axis: what is along it, whether it is logarithmic, its ends (None = by the values), whether it counts things."""

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None
    whole: bool = False


@dataclass
class Plot:
    """A plot in the making.

    Examples
    --------
    >>> plot = Plot(Axis("x"), Axis("y"))
    >>> plot.points([1, 2], [3, 4], "both")
    >>> plot.svg().count("<circle")
    3
    """

    x: Axis
    y: Axis
    equal: bool = False
    _marks: list[Callable[[Callable[[float], float], Callable[[float], float]], str]] = field(default_factory=list)
    _xs: list[F8] = field(default_factory=list)
    _ys: list[F8] = field(default_factory=list)
    _legend: list[tuple[str, str]] = field(default_factory=list)

    def _series(self, x: Sequence[float] | F8, y: Sequence[float] | F8) -> tuple[F8, F8]:
        xs, ys = np.asarray(x, float), np.asarray(y, float)
        good = np.isfinite(xs) & np.isfinite(ys)
        good &= (xs > 0) | (not self.x.log)
        good &= (ys > 0) | (not self.y.log)
        xs, ys = xs[good], ys[good]
        step = max(1, math.ceil(len(xs) / _MOST))
        self._xs.append(xs)
        self._ys.append(ys)
        return xs[::step], ys[::step]

    def _named(self, name: str, colour: str) -> None:
        if name:
            self._legend.append((name, colour))

    def points(
        self, x: Sequence[float] | F8, y: Sequence[float] | F8, name: str = "", colour: str = COLOURS[0],
        titles: Sequence[str] = (), size: float = 2.6,
    ) -> None:  # fmt: skip
        """Add points; ``titles`` are shown when one is pointed at."""
        xs, ys = self._series(x, y)
        self._named(name, colour)
        told = list(titles) if len(titles) == len(xs) else [""] * len(xs)

        def draw(px: Callable[[float], float], py: Callable[[float], float]) -> str:
            dots = [
                f'<circle cx="{px(a):.1f}" cy="{py(b):.1f}" r="{size}">{f"<title>{escape(t)}</title>" if t else ""}</circle>'
                for a, b, t in zip(xs.tolist(), ys.tolist(), told, strict=True)
            ]
            return f'<g fill="{colour}" fill-opacity="0.65">{"".join(dots)}</g>'

        self._marks.append(draw)

    def line(
        self, x: Sequence[float] | F8, y: Sequence[float] | F8, name: str = "", colour: str = COLOURS[0], dash: str = ""
    ) -> None:
        """Add a line through points."""
        xs, ys = self._series(x, y)
        self._named(name, colour)

        def draw(px: Callable[[float], float], py: Callable[[float], float]) -> str:
            path = " ".join(f"{px(a):.1f},{py(b):.1f}" for a, b in zip(xs.tolist(), ys.tolist(), strict=True))
            dashes = f' stroke-dasharray="{dash}"' if dash else ""
            return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dashes}/>'

        self._marks.append(draw)

    def bars(
        self, x: Sequence[float] | F8, y: Sequence[float] | F8, name: str = "", colour: str = COLOURS[0],
        titles: Sequence[str] = (), width: float = 0.8,
    ) -> None:  # fmt: skip
        """Add upright bars of a width in units of x."""
        xs, ys = self._series(x, y)
        self._xs.append(np.concatenate([xs - width / 2, xs + width / 2]))
        if not self.y.log:
            self._ys.append(np.zeros(1))
        self._named(name, colour)
        told = list(titles) if len(titles) == len(xs) else [""] * len(xs)
        floor = _HEIGHT - _BOTTOM

        def draw(px: Callable[[float], float], py: Callable[[float], float]) -> str:
            drawn = []
            for a, b, t in zip(xs.tolist(), ys.tolist(), told, strict=True):
                left, right, top = px(a - width / 2), px(a + width / 2), py(b)
                title = f"<title>{escape(t)}</title>" if t else ""
                drawn.append(
                    f'<rect x="{left:.1f}" y="{min(top, floor):.1f}" width="{max(right - left, 0.6):.1f}"'
                    f' height="{max(floor - top, 0.8):.1f}">{title}</rect>'
                )
            return f'<g fill="{colour}" fill-opacity="0.8">{"".join(drawn)}</g>'

        self._marks.append(draw)

    def arrows(self, x: F8, y: F8, dx: F8, dy: F8, titles: Sequence[str]) -> None:
        """Add arrows from ``(x, y)`` to ``(x + dx, y + dy)``."""
        xs, ys = self._series(x, y)
        self._xs.append(np.asarray(x + dx))
        self._ys.append(np.asarray(y + dy))

        def draw(px: Callable[[float], float], py: Callable[[float], float]) -> str:
            drawn = []
            for a, b, u, v, t in zip(xs, ys, dx, dy, titles, strict=True):
                x0, y0, x1, y1 = px(a), py(b), px(a + u), py(b + v)
                drawn.append(
                    f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{COLOURS[0]}" stroke-width="1.6"'
                    f' marker-end="url(#tip)"/><circle cx="{x0:.1f}" cy="{y0:.1f}" r="3" fill="{COLOURS[0]}">'
                    f"<title>{escape(t)}</title></circle>"
                )
            return "".join(drawn)

        self._marks.append(draw)

    def svg(self) -> str:
        """Return the plot as an ``<svg>`` element."""
        xs = np.concatenate(self._xs) if self._xs else np.zeros(0)
        ys = np.concatenate(self._ys) if self._ys else np.zeros(0)
        xlim, ylim = _limits(xs, self.x), _limits(ys, self.y)
        if self.equal:
            xlim, ylim = _equal(xlim, ylim)
        px = _scale(xlim, self.x.log, _LEFT, _WIDTH - _RIGHT)
        py = _scale(ylim, self.y.log, _HEIGHT - _BOTTOM, _TOP)
        marks = "".join(mark(px, py) for mark in self._marks)
        return (
            f'<svg class="plot" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" '
            f'aria-label="{escape(self.y.label)} against {escape(self.x.label)}">'
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6" markerHeight="6" orient="auto">'
            f'<path d="M0 0L10 5L0 10z" fill="{COLOURS[0]}"/></marker></defs>'
            f"{_frame(xlim, ylim, px, py, self)}{marks}{_legend(self._legend)}</svg>"
        )


def _limits(values: F8, axis: Axis) -> tuple[float, float]:
    low = axis.low if axis.low is not None else (float(values.min()) if len(values) else 0.0)
    high = axis.high if axis.high is not None else (float(values.max()) if len(values) else 1.0)
    if axis.log:
        low, high = max(low, 1e-30), max(high, 1e-30)
        return (low / 1.25, high * 1.25) if high > low else (low / 3, low * 3)
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        return low - pad, high + pad
    pad = 0.05 * (high - low)
    below = low if axis.low is not None or low == 0 else low - pad
    return below, high if axis.high is not None else high + pad


def _equal(xlim: tuple[float, float], ylim: tuple[float, float]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Widen one of the ranges so that a unit has the same length on both axes."""
    wide, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    unit = max((xlim[1] - xlim[0]) / wide, (ylim[1] - ylim[0]) / high)
    grown = []
    for (low, up), length in ((xlim, wide), (ylim, high)):
        middle, half = (low + up) / 2, unit * length / 2
        grown.append((middle - half, middle + half))
    return grown[0], grown[1]


def _scale(limits: tuple[float, float], log: bool, start: float, end: float) -> Callable[[float], float]:
    low, high = (math.log10(v) for v in limits) if log else limits

    def place(value: float) -> float:
        at = math.log10(max(value, 1e-300)) if log else value
        return start + (end - start) * min(max((at - low) / (high - low), -0.02), 1.02)

    return place


def ticks(low: float, high: float, count: int = 6, whole: bool = False) -> list[float]:
    """Return round numbers inside a range, only integers if they are to be ``whole``.

    Examples
    --------
    >>> ticks(0.0, 1.0), ticks(0.6, 2.4, whole=True)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [1.0, 2.0])
    """
    raw = max((high - low) / count, 1.0 if whole else 0.0)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in ((1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    every = max(1, (last - first + 1) // 6)
    whole = [10.0**n for n in range(first, last + 1, every)]
    if len(whole) >= 2:
        return whole
    return [m * 10.0**n for n in range(first - 1, last + 1) for m in (1, 2, 5) if low <= m * 10.0**n <= high]


def show(value: float) -> str:
    """Return a number as short as it is told apart."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        mantissa, _, power = f"{value:.3g}".partition("e")
        return f"{mantissa}e{int(power)}" if power else mantissa
    return f"{value:.6g}"


def brief(value: float, digits: int = 4) -> str:
    """Return a number with a few digits.

    Examples
    --------
    >>> brief(1234.5678), brief(0.000012345)
    ('1235', '1.23e-5')
    """
    return show(float(f"{value:.{digits}g}"))


def _frame(
    xlim: tuple[float, float], ylim: tuple[float, float], px: Callable[[float], float], py: Callable[[float], float],
    plot: Plot,
) -> str:  # fmt: skip
    """Box, grid, ticks and labels."""
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [f'<rect class="box" x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" height="{bottom - _TOP}"/>']
    xpower, ypower = _power(xlim, plot.x), _power(ylim, plot.y)
    for value in _log_ticks(*xlim) if plot.x.log else ticks(*xlim, whole=plot.x.whole):
        at = px(value)
        parts.append(f'<path class="grid" d="M{at:.1f} {_TOP}V{bottom}"/>')
        parts.append(
            f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{show(float(f"{value / 10**xpower:.9g}"))}</text>'
        )
    for value in _log_ticks(*ylim) if plot.y.log else ticks(*ylim):
        at = py(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{right}"/>')
        parts.append(
            f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{show(float(f"{value / 10**ypower:.9g}"))}</text>'
        )
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text class="label" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{_label(plot.x, xpower)}</text>'
    )
    parts.append(
        f'<text class="label" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{_label(plot.y, ypower)}</text>'
    )
    return "".join(parts)


def _power(limits: tuple[float, float], axis: Axis) -> int:
    """Power of ten that the numbers along an axis are divided by, so that they are short."""
    largest = max(abs(v) for v in limits)
    short = axis.log or not 0 < largest < math.inf or 1e-2 <= largest < 1e5
    return 0 if short else math.floor(math.log10(largest))


def _label(axis: Axis, power: int) -> str:
    return escape(axis.label) + (f" (10<tspan dy='-4' font-size='75%'>{power}</tspan>)" if power else "")


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    """Names of the series in the upper right corner."""
    if not entries:
        return ""
    width = 26 + 6.4 * max(len(name) for name, _ in entries)
    left = _WIDTH - _RIGHT - width - 4
    parts = [
        f'<rect class="legend" x="{left:.1f}" y="{_TOP + 4}" width="{width:.1f}" height="{16 * len(entries) + 6}" rx="3"/>'
    ]
    for i, (name, colour) in enumerate(entries):
        y = _TOP + 16 + 16 * i
        parts.append(f'<circle cx="{left + 11:.1f}" cy="{y - 1}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{left + 20:.1f}" y="{y + 3}">{escape(name)}</text>')
    return "".join(parts)
