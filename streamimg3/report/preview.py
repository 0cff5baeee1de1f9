"""A picture of the mosaic: binned band by band, stretched, with compass, scale bar and colour bar."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.geometry import Box
from streamimg3.sky.wcs import Wcs
from streamimg3.store import Observation
from streamimg3.store.documents import ResampleDocument

F4 = NDArray[np.float32]
_BAND = 4_000_000  # pixels read at a time


@dataclass(frozen=True)
class Binned:
    """A plane in bins of ``factor`` pixels; NaN where a bin holds no pixel with a value."""

    values: F4
    factor: int


def binned(obs: Observation, path: str, shape: tuple[int, int], size: int, rows: int = 1024) -> Binned:
    """Average a plane in square bins, reading bands of rows.

    Parameters
    ----------
    obs : Observation
        The store.
    path : str
        Plane, for example ``mosaic/sci``.
    shape : tuple of int
        Its rows and columns.
    size : int
        Longest side of the result.
    rows : int
        Rows read at a time, about.
    """
    factor = max(1, math.ceil(max(shape) / size))
    rows = min(rows, max(1, _BAND // shape[1]))
    step = max(1, rows // factor) * factor
    ny, nx = -(-shape[0] // factor), -(-shape[1] // factor)
    out = np.full((ny, nx), np.nan, np.float32)
    edges = np.arange(0, shape[1], factor)
    for y0 in range(0, shape[0], step):
        y1 = min(y0 + step, shape[0])
        band = np.asarray(obs.window(path, (), Box(y0, 0, y1, shape[1])), np.float32)
        good = np.isfinite(band)
        band[~good] = 0.0
        starts = np.arange(0, y1 - y0, factor)
        total = np.add.reduceat(np.add.reduceat(band, edges, axis=1), starts, axis=0)
        count = np.add.reduceat(np.add.reduceat(good, edges, axis=1, dtype=np.int32), starts, axis=0)
        with np.errstate(invalid="ignore"):
            out[y0 // factor : y0 // factor + len(starts)] = np.where(count > 0, total / count, np.nan)
    return Binned(out, factor)


def preview(obs: Observation, name: str = "resample", size: int = 1000, kind: str = "png") -> bytes:
    """Return a picture of a mosaic with north arrow, scale bar and colour bar.

    Parameters
    ----------
    obs : Observation
        A store with a finished mosaic.
    name : str
        Document of the mosaic.
    size : int
        Longest side of the image in pixels.
    kind : str
        ``png`` or ``jpg``.

    Raises
    ------
    InputError
        If the store has no such mosaic, or it holds no value.
    """
    document = obs.document(ResampleDocument, name)
    if document is None:
        raise InputError(f"{obs.url} holds no finished mosaic: run image3 first")
    small = binned(obs, f"{document.path}/sci", document.shape, size)
    if not np.isfinite(small.values).any():
        raise InputError(f"{obs.url}: the mosaic holds no value to show")
    wcs = Wcs("gwcs", document.wcs_asdf.encode("latin-1"), document.shape)
    unit = str(obs.array(f"{document.path}/sci").attrs["units"])
    return _draw(small, wcs, document.pixel_scale, "" if unit == "1" else unit, kind)


def limits(values: F4) -> tuple[float, float, float]:
    """Return black, white and softening of an asinh stretch: from just below the sky to the bright end."""
    good = values[np.isfinite(values)]
    sky, low, high = np.percentile(good, [50.0, 16.0, 99.7])
    noise = max(float(sky - low), 1e-6 * max(1.0, abs(float(sky))))
    black = float(sky) - 2.0 * noise
    return black, max(float(high), black + 4.0 * noise), 3.0 * noise


def _draw(small: Binned, wcs: Wcs, pixel_scale: float, unit: str, kind: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import AsinhNorm
    from matplotlib.figure import Figure

    ny, nx = small.values.shape
    black, white, soft = limits(small.values)
    figure = Figure(figsize=(nx / 100 + 1.2, ny / 100 + 0.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = axes.imshow(
        small.values - black,
        origin="lower",
        cmap="magma",
        norm=AsinhNorm(soft, 0.0, white - black),
        interpolation="nearest",
    )
    axes.set_facecolor("0.25")
    axes.set_xticks([])
    axes.set_yticks([])
    bar = figure.colorbar(shown, ax=axes, fraction=0.035, pad=0.01)
    ticks = np.linspace(0.0, 1.0, 6)
    bar.set_ticks(list(np.sinh(ticks * np.arcsinh((white - black) / soft)) * soft))
    bar.set_ticklabels([f"{black + v:.4g}" for v in bar.get_ticks()])
    bar.set_label(unit or "pixel value")
    _scale_bar(axes, nx, ny, pixel_scale * small.factor)
    _compass(axes, nx, ny, wcs)
    stream = io.BytesIO()
    figure.savefig(stream, format=kind)
    return stream.getvalue()


def _scale_bar(axes, nx: int, ny: int, scale: float) -> None:  # type: ignore[no-untyped-def]
    """A bar of a round angle, about a sixth of the width."""
    wanted = nx * scale / 6
    unit, sign = (60.0, "′") if wanted >= 60 else (1.0, "″")
    power = 10.0 ** math.floor(math.log10(wanted / unit))
    count = max(v * power for v in (1, 2, 5) if v * power <= wanted / unit)
    length, text = count * unit, f"{count:g}{sign}"
    x0, y0 = 0.05 * nx, 0.04 * ny
    axes.plot([x0, x0 + length / scale], [y0, y0], color="white", lw=2)
    axes.text(x0 + length / scale / 2, y0 + 0.01 * ny, text, color="white", ha="center", va="bottom")


def _compass(axes, nx: int, ny: int, wcs: Wcs) -> None:  # type: ignore[no-untyped-def]
    """Arrows to north and east at the middle of the mosaic, drawn in a corner."""
    y, x = (n / 2 for n in wcs.shape)
    ra, dec = (float(v) for v in wcs.to_sky(np.asarray(y), np.asarray(x), bounded=False))
    step = 1e-4
    north = wcs.to_pixel(np.asarray(ra), np.asarray(dec + step))
    east = wcs.to_pixel(np.asarray(ra + step / math.cos(math.radians(dec))), np.asarray(dec))
    reach = 0.06 * min(nx, ny)
    cx, cy = 0.9 * nx, 0.08 * ny
    for label, (py, px) in (("N", north), ("E", east)):
        dy, dx = float(py) - y, float(px) - x
        length = math.hypot(dy, dx)
        tip = cx + reach * dx / length, cy + reach * dy / length
        axes.annotate("", tip, (cx, cy), arrowprops={"arrowstyle": "->", "color": "white"})
        axes.text(
            cx + 1.3 * reach * dx / length,
            cy + 1.3 * reach * dy / length,
            label,
            color="white",
            ha="center",
            va="center",
        )
