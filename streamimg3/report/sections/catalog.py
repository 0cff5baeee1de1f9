"""The catalogue: number counts, the locus of the stars, how well positions are known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamimg3.report.qa import Figure, Judge, Section, Table
from streamimg3.report.svg import Axis, Plot
from streamimg3.store import Observation
from streamimg3.store.columns import read_column
from streamimg3.store.documents import CatalogDocument

F8 = NDArray[np.float64]
PATH = "catalog"


def catalog(obs: Observation) -> Section | None:
    """Return the section, or None where no sources were looked for."""
    document = obs.document(CatalogDocument)
    if document is None:
        return None
    judge = Judge("catalogue")
    judge.at_least("sources", float(document.sources), 1, 1, "", document.reason or "")
    if not document.sources:
        return Section("catalog", "Catalogue", document.reason or "", tuple(judge.checks))
    magnitude, label = magnitudes(obs, document)
    figures = []
    if magnitude is not None and np.isfinite(magnitude).sum() >= 3:
        figures.append(_counts(magnitude, label))
        figures += _locus(obs, document, magnitude, label)
    figures += _errors(obs, document, magnitude, label)
    rows = [("sources", str(document.sources)), ("segmentation", "yes" if document.segmentation else "no")]
    rows += [("note", note) for note in document.notes]
    return Section(
        "catalog", "Catalogue", "", tuple(judge.checks), tuple(figures), (Table(("what", "value"), tuple(rows)),)
    )


def column(obs: Observation, document: CatalogDocument, name: str) -> F8 | None:
    """Return a column as numbers, None where the catalogue has none of this name."""
    if name not in {c.name for c in document.columns}:
        return None
    return np.asarray(read_column(obs, PATH, name), np.float64)


def magnitudes(obs: Observation, document: CatalogDocument) -> tuple[F8 | None, str]:
    """Return magnitudes and what they are: AB, or instrumental where fluxes have no known zero point."""
    for name, label in (("isophotal_abmag", "isophotal AB magnitude"), ("aper_total_abmag", "total AB magnitude")):
        found = column(obs, document, name)
        if found is not None and np.isfinite(found).any():
            return found, label
    flux = column(obs, document, "isophotal_flux")
    flux = flux if flux is not None else column(obs, document, "aper_total_flux")
    if flux is None:
        return None, ""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(flux > 0, -2.5 * np.log10(flux), np.nan), "−2.5 log₁₀ of the isophotal flux"


def _counts(magnitude: F8, label: str) -> Figure:
    good = magnitude[np.isfinite(magnitude)]
    edges = np.arange(np.floor(good.min() * 2) / 2, good.max() + 0.5, 0.5)
    edges = edges if len(edges) > 1 else np.array([good.min() - 0.25, good.min() + 0.25])
    counts, _ = np.histogram(good, edges)
    plot = Plot(Axis(label), Axis("sources per half magnitude", log=True, low=0.7))
    plot.bars((edges[:-1] + edges[1:]) / 2, counts, width=float(edges[1] - edges[0]) * 0.9)
    turn = (edges[int(np.argmax(counts))] + edges[int(np.argmax(counts)) + 1]) / 2
    return Figure("Number counts", plot.svg(), f"Most sources at {turn:.2f}: fainter ones begin to be missed.")


def _locus(obs: Observation, document: CatalogDocument, magnitude: F8, label: str) -> list[Figure]:
    """Size against magnitude: stars lie along a line at the size of the point-spread function."""
    size = column(obs, document, "semimajor_sigma")
    unit = next((c.unit for c in document.columns if c.name == "semimajor_sigma"), None) or ""
    if size is None or not (np.isfinite(size) & np.isfinite(magnitude)).any():
        return []
    plot = Plot(Axis(label), Axis(f"semimajor sigma {unit}".strip(), log=True))
    extended = column(obs, document, "is_extended")
    if extended is not None:
        plot.points(magnitude[extended > 0], size[extended > 0], "extended", "#d97706", size=2)
        plot.points(magnitude[extended == 0], size[extended == 0], "point-like", "#2563eb", size=2)
    else:
        plot.points(magnitude, size, size=2)
    return [Figure("Star locus", plot.svg(), "Point sources gather along the smallest size, galaxies lie above.")]


def _errors(obs: Observation, document: CatalogDocument, magnitude: F8 | None, label: str) -> list[Figure]:
    error = column(obs, document, "ra_err")
    unit = next((c.unit for c in document.columns if c.name == "ra_err"), None)
    if error is None or magnitude is None or not np.isfinite(error).any():
        return []
    scale = {"deg": 3.6e6, "arcsec": 1e3, "mas": 1.0}.get(unit or "", 1.0)
    plot = Plot(Axis(label), Axis("error of right ascension, mas", log=True))
    plot.points(magnitude, error * scale, size=2)
    return [Figure("Position errors", plot.svg())]
