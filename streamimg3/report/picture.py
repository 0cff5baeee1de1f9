"""Planes of the mosaic at a size for the screen, and as pictures inside a page."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from numpy.typing import NDArray

from streamimg3.geometry import Box
from streamimg3.report.preview import Binned, binned, limits
from streamimg3.report.svg import show
from streamimg3.store import Observation
from streamimg3.store.documents import OverviewDocument, ResampleDocument, RunDocument

F4 = NDArray[np.float32]
U1 = NDArray[np.uint8]
# A few colours of a perceptually even map from dark blue to yellow, and what lies between them
_RAMP = np.array(
    [(17, 12, 48), (45, 30, 105), (28, 72, 140), (20, 113, 142), (32, 151, 133), (88, 188, 103), (178, 218, 65), (253, 231, 76)],
    float,
)  # fmt: skip


def shown_mosaic(obs: Observation) -> ResampleDocument | None:
    """Return the mosaic that a report shows: the product's, or the last of the several that coron3 made."""
    run = obs.document(RunDocument)
    several = run.mosaics if run is not None and run.pipeline == "coron3" else ()
    names = (ResampleDocument.kind, *reversed(several))
    return next((found for name in names if (found := obs.document(ResampleDocument, name)) is not None), None)


def reduced(obs: Observation, document: ResampleDocument, plane: str, size: int) -> Binned:
    """Return a plane with at most ``size`` pixels along its longest side: an overview, binned further, or the plane itself.

    Parameters
    ----------
    obs : Observation
        The store.
    document : ResampleDocument
        The mosaic.
    plane : str
        Its plane.
    size : int
        Largest side of the result.
    """
    found = obs.document(OverviewDocument)
    if found is None or plane not in found.planes or document.path != "mosaic":
        return binned(obs, f"{document.path}/{plane}", document.shape, size)
    best = max((level for level in found.levels if max(level.shape) >= size), key=lambda v: v.factor, default=None)
    if best is None:
        return binned(obs, f"{document.path}/{plane}", document.shape, size)
    made = binned(obs, f"{best.path}/{plane}", best.shape, size)
    return Binned(made.values, made.factor * best.factor)


def labels_at(obs: Observation, document: ResampleDocument, factor: int) -> NDArray[np.uint32]:
    """Return every ``factor``-th label of the segmentation, in both directions."""
    ny, nx = document.shape
    rows = max(1, 4_000_000 // nx // factor) * factor
    parts = []
    for y0 in range(0, ny, rows):
        band = np.asarray(obs.window(f"{document.path}/segmentation", (), Box(y0, 0, min(y0 + rows, ny), nx)))
        parts.append(band[::factor, ::factor].astype(np.uint32))
    return np.concatenate(parts)


def stretched(values: F4) -> U1:
    """Return 8-bit grey of an asinh stretch, 0 where there is no value; upside down, as pictures are stored."""
    good = np.isfinite(values)
    if not good.any():
        return np.zeros(values.shape, np.uint8)
    black, white, soft = limits(values)
    scaled = np.arcsinh(np.clip(values - black, 0, white - black) / soft) / math.asinh((white - black) / soft)
    grey = np.where(good, 8 + 247 * scaled, 0)
    return np.asarray(np.flipud(grey), np.float32).astype(np.uint8)


def jpeg(grey: U1, quality: int = 85) -> bytes:
    """Return a JPEG of 8-bit grey, or of (y, x, 3) colours."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, format="JPEG", quality=quality)
    return stream.getvalue()


def png(pixels: U1) -> bytes:
    """Return a PNG of (y, x), (y, x, 3) or (y, x, 4) pixels."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", compress_level=6)
    return stream.getvalue()


def outlines(labels: NDArray[np.uint32]) -> bytes:
    """Return a transparent PNG with the outlines of labels (upside down, as pictures are stored)."""
    edge = np.zeros(labels.shape, np.bool_)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= down & (labels[1:] > 0)
    edge[:-1] |= down & (labels[:-1] > 0)
    edge[:, 1:] |= right & (labels[:, 1:] > 0)
    edge[:, :-1] |= right & (labels[:, :-1] > 0)
    from PIL import Image

    picture = Image.fromarray(np.flipud(edge).astype(np.uint8))
    picture.putpalette([0, 0, 0, 52, 211, 153])
    stream = io.BytesIO()
    picture.save(stream, format="PNG", transparency=0, bits=1, compress_level=6)
    return stream.getvalue()


def data_url(data: bytes) -> str:
    """Return bytes of a PNG or JPEG as the address of a picture inside a page."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def figure_png(values: NDArray[np.floating], label: str, zero: bool = False) -> str:
    """Return a map in colours with a colour bar, as HTML.

    Parameters
    ----------
    values : ndarray, shape (ny, nx)
        NaN = no value; with ``zero``, 0 is none either.
    label : str
        What the colours mean.
    """
    good = np.isfinite(values) & ((values > 0) | (not zero))
    low, high = (float(v) for v in np.percentile(values[good], [1, 99])) if good.any() else (0.0, 1.0)
    low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
    scaled = np.clip((np.where(good, values, low) - low) / (high - low), 0, 1) * (len(_RAMP) - 1)
    step = np.minimum(scaled.astype(int), len(_RAMP) - 2)
    part = (scaled - step)[..., None]
    colours = _RAMP[step] * (1 - part) + _RAMP[step + 1] * part
    colours[~good] = (226, 232, 240)
    picture = data_url(png(np.flipud(colours).astype(np.uint8)))
    ramp = ", ".join(f"rgb({r:.0f},{g:.0f},{b:.0f})" for r, g, b in _RAMP)
    return (
        f'<img class="map" alt="map: {label}" src="{picture}"><div class="bar"><span>{show(low)}</span>'
        f'<i style="background:linear-gradient(90deg,{ramp})"></i><span>{show(high)}</span></div><div class="unit">{label}</div>'
    )
