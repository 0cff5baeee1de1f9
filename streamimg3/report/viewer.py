"""The mosaic inside the page: one picture that can be zoomed, outlines of the sources, and the catalogue to click on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from streamimg3.report.picture import data_url, jpeg, labels_at, outlines, reduced, shown_mosaic, stretched
from streamimg3.report.sections.catalog import column, magnitudes
from streamimg3.sky.positions import pixel_scale
from streamimg3.sky.wcs import Wcs
from streamimg3.store import Observation
from streamimg3.store.documents import CatalogDocument, ResampleDocument

SIZE = 2400  # pixels along the longest side of the picture
_SOURCES = 20000  # brightest ones that are drawn


def viewer_html(obs: Observation, size: int = SIZE) -> str:
    """Return the viewer with all it needs, empty where there is no mosaic.

    Parameters
    ----------
    obs : Observation
        The store.
    size : int
        Pixels along the longest side of the picture.
    """
    document = shown_mosaic(obs)
    if document is None:
        return ""
    small = reduced(obs, document, "sci", size)
    if not np.isfinite(small.values).any():
        return ""
    wcs = Wcs("gwcs", document.wcs_asdf.encode("latin-1"), document.shape)
    ny, nx = small.values.shape
    facts: dict[str, Any] = {
        "width": nx, "height": ny, "factor": small.factor, "scale": pixel_scale(wcs) * small.factor,
        "north": _angle(wcs), **_corner(wcs, small.factor),
    }  # fmt: skip
    catalog = obs.document(CatalogDocument)
    segmentation = ""
    if catalog is not None and catalog.sources:
        facts["sources"], facts["of"] = _sources(obs, catalog, small.factor, ny), catalog.sources
        if catalog.segmentation:
            segmentation = data_url(outlines(labels_at(obs, document, small.factor)))
    script = (Path(__file__).parent / "viewer.js").read_text()
    return (
        '<div class="viewer" id="viewer"><div class="tools">'
        '<button type="button" data-do="in" title="zoom in">+</button>'
        '<button type="button" data-do="out" title="zoom out">−</button>'
        '<button type="button" data-do="fit" title="whole image">fit</button>'
        '<label><input type="checkbox" id="show-segments"> outlines</label>'
        '<label><input type="checkbox" id="show-sources"> catalogue</label>'
        '<span id="where"></span></div><canvas id="view" tabindex="0" aria-label="mosaic"></canvas>'
        '<div id="source" hidden></div>'
        f'<img id="picture" hidden alt="" src="{data_url(jpeg(stretched(small.values)))}">'
        f'<img id="segments" hidden alt=""{f" src={chr(34)}{segmentation}{chr(34)}" if segmentation else ""}>'
        f'<script type="application/json" id="facts">{_safe(facts)}</script><script>{script}</script></div>'
    )


def _safe(tree: dict[str, Any]) -> str:
    """JSON that may stand inside a page."""
    return json.dumps(tree, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _angle(wcs: Wcs) -> float:
    """Direction of north in the picture, degrees anticlockwise from up."""
    y, x = ((n - 1) / 2 for n in wcs.shape)
    ra, dec = (float(v[0]) for v in wcs.to_sky(np.array([y]), np.array([x]), bounded=False))
    up = wcs.to_pixel(np.array([ra]), np.array([dec + 1e-4]))
    return math.degrees(math.atan2(x - float(up[1][0]), float(up[0][0]) - y))


def _corner(wcs: Wcs, factor: int) -> dict[str, list[float]]:
    """Tangent point and matrix for positions under the pointer: a plane through the middle, good to a second of arc."""
    y, x = ((n - 1) / 2 for n in wcs.shape)
    ra, dec = wcs.to_sky(np.array([y, y, y + 1]), np.array([x, x + 1, x]), bounded=False)
    cos = math.cos(math.radians(float(dec[0])))
    right = [float((ra[1] - ra[0]) * cos), float(dec[1] - dec[0])]
    upward = [float((ra[2] - ra[0]) * cos), float(dec[2] - dec[0])]
    return {
        "middle": [float(ra[0]), float(dec[0])], "at": [x / factor, y / factor],
        "right": [v * factor for v in right], "up": [v * factor for v in upward],
    }  # fmt: skip


def _sources(obs: Observation, document: CatalogDocument, factor: int, height: int) -> list[list[float | None]]:
    """Number, place in the picture (downward), radius, magnitude, right ascension and declination of the brightest sources."""
    x, y = column(obs, document, "xcentroid"), column(obs, document, "ycentroid")
    if x is None or y is None:
        return []
    blank = np.full(len(x), np.nan)
    label = column(obs, document, "label")
    size = column(obs, document, "semimajor_sigma")
    unit = next((c.unit for c in document.columns if c.name == "semimajor_sigma"), None)
    magnitude, _ = magnitudes(obs, document)
    ra, dec = column(obs, document, "sky_centroid.ra"), column(obs, document, "sky_centroid.dec")
    mosaic = obs.document(ResampleDocument)
    pixels = mosaic.pixel_scale if mosaic is not None and unit == "arcsec" else 1.0
    radius = np.maximum(3.0 * (size if size is not None else blank) / pixels / factor, 1.5)
    table = np.stack(
        [
            label if label is not None else np.arange(1, len(x) + 1), (x + 0.5) / factor, height - (y + 0.5) / factor,
            np.where(np.isfinite(radius), radius, 4.0), magnitude if magnitude is not None else blank,
            ra if ra is not None else blank, dec if dec is not None else blank,
        ],
        axis=1,
    )  # fmt: skip
    faint = np.where(np.isfinite(table[:, 4]), table[:, 4], np.inf)
    table = table[np.argsort(faint, kind="stable")[:_SOURCES]]
    table = table[np.isfinite(table[:, 1:3]).all(axis=1)]
    decimals = (0, 2, 2, 2, 3, 7, 7)
    return [
        [round(v, d) if math.isfinite(v) else None for v, d in zip(row, decimals, strict=True)]
        for row in table.tolist()
    ]
