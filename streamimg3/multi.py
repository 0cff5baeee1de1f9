"""One catalogue over several filters on a common grid, from a detection image of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamimg3 import config
from streamimg3.engine import Runner
from streamimg3.engine.receipts import Ledger, digest
from streamimg3.errors import InputError
from streamimg3.session import Session
from streamimg3.store import Observation
from streamimg3.store.columns import Column, read_column, write_columns
from streamimg3.store.documents import (
    AssociationDocument,
    CatalogColumn,
    CatalogDocument,
    ResampleDocument,
    StageCost,
    utc_now,
)

if TYPE_CHECKING:
    from streamimg3.stages.multi_filter import Band

F8 = NDArray[np.float64]
RADII = (0.1, 0.25)  # arcsec
_CODE = 1  # raised when the numbers a given input leads to change


@dataclass(frozen=True)
class _Filters:
    """What is combined: names, stores and mosaics, in order."""

    names: tuple[str, ...]
    stores: tuple[Observation, ...]
    documents: tuple[ResampleDocument, ...]


def catalog_multi(
    stores: Mapping[str, str | Observation],
    session: Session,
    method: str = "ivar",
    radii: Sequence[float] = RADII,
    settings: Mapping[str, Any] | None = None,
) -> Observation:
    """Detect on all filters together and measure each in the same sources.

    Parameters
    ----------
    stores : mapping of str to str or Observation
        Filter names and their stores, whose mosaics lie on one grid (``--grid-from``) and have errors.
    session : Session
        ``store`` is where the detection image and the catalogue go (default ``<output_dir>/multi.zarr``), the table
        ``<output_dir>/multi_cat.ecsv``.
    method : str
        Detection image: ``ivar`` (inverse-variance mean) or ``chi2``.
    radii : sequence of float
        Radii of circular apertures in arcsec.
    settings : mapping, optional
        Parameters of source_catalog for the detection.

    Returns
    -------
    Observation
        A store with the detection image, the segmentation and the catalogue: the columns of source_catalog on the detection
        image, and for each filter F ``F_isophotal_flux`` and ``F_aper<radius>_flux`` with their errors (Jy, or the image's
        unit), over the filter's own sky level.

    Raises
    ------
    InputError
        If grids differ, a mosaic has no errors, or a parameter is wrong.

    Examples
    --------
    >>> session = streamimg3.Session(output_dir=folder, workers=1)
    >>> obs = streamimg3.catalog_multi({"red": store, "blue": store}, session, radii=[0.1])
    >>> flux = obs.xarray()["catalog"]
    >>> bool((flux["red_isophotal_flux"] == flux["blue_isophotal_flux"]).all())
    True
    """
    from streamimg3.report.rgb import same_grid
    from streamimg3.stages import source_catalog
    from streamimg3.stages.multi_filter import METHODS, Band

    if method not in METHODS:
        raise InputError(f"--detection {method}: it must be one of {', '.join(METHODS)}")
    found = {
        n: s if isinstance(s, Observation) else Observation.at(s, session.storage_options) for n, s in stores.items()
    }
    filters = _Filters(tuple(found), tuple(found.values()), tuple(same_grid(list(found.values()))))
    bare = [n for n, d in zip(filters.names, filters.documents, strict=True) if "err" not in d.planes]
    if bare:
        raise InputError(f"the mosaic of {bare[0]} has no ERR, which weights the detection image")
    params, notes = config.build(source_catalog.Params, settings or {}, source_catalog.NAME)
    for note in notes:
        session.progress.note(note)
    obs = Observation.at(session.store or f"{session.output_dir}/multi.zarr", session.storage_options)
    bands = tuple(Band(o, d.path, _sky(o, d)) for o, d in zip(filters.stores, filters.documents, strict=True))
    with session.writing(), session.runner(obs.url) as runner:
        session.hold(obs)
        _detection(obs, filters, bands, method, runner)
        document = source_catalog.run(obs, params, runner)
        if document.status == "COMPLETE":
            _measure(obs, filters, bands, tuple(radii), runner, document)
            from streamimg3.formats.catalog import export_catalog

            session.progress.note(f"wrote {export_catalog(obs, session.output_dir, session.storage_options)}")
    return obs


def _sky(obs: Observation, document: ResampleDocument) -> float:
    """Clipped median of the mosaic at a reduced scale."""
    from streamimg3.report.picture import reduced

    values = reduced(obs, document, "sci", 1500).values
    seen = values[np.isfinite(values)].astype(np.float64)
    for _ in range(5):
        middle, spread = float(np.median(seen)), float(seen.std())
        seen = seen[np.abs(seen - middle) <= 3 * spread]
    return float(np.median(seen)) if len(seen) else 0.0


def _detection(obs: Observation, filters: _Filters, bands: tuple[Band, ...], method: str, runner: Runner) -> None:
    """Make the detection image unless the store holds it."""
    from streamimg3.stages.multi_filter import PLANES, combine_work, tile_tasks

    first = filters.documents[0]
    mark = digest(_CODE, method, filters.names, [d.digest for d in filters.documents])
    kept = obs.document(ResampleDocument)
    if kept is not None and kept.digest == mark:
        runner.progress.note("detection image: unchanged, kept")
        return
    root = obs.root()
    if root is not None and not root.get("filters"):
        raise InputError(f"{obs.url} is a store of something else: give --store another path")
    ledger = Ledger(obs.backend, "detection", mark)
    if "_created" not in ledger.done():
        for folder in ("documents", "receipts", "mosaic", "catalog", "scratch", "exposures"):
            obs.backend.remove_tree(folder)
        obs.write_root({"ingested": True, "filters": list(filters.names), "stores": [o.url for o in filters.stores]})
        records = (
            [replace(r, bunit=None) for r in filters.stores[0].records()]
            if method == "chi2"
            else filters.stores[0].records()
        )
        obs.write_records(records)
        obs.commit(AssociationDocument(product="multi"))
        obs.write_group("mosaic", {})
        for plane in PLANES:
            obs.create_image(f"mosaic/{plane}", first.shape, first.tile, records[0].bunit)
        ledger.mark("_created")
    work = partial(combine_work, obs=obs, bands=bands, method=method, shape=first.shape, tile=first.tile)
    outcome = runner.fill(work, tile_tasks(first.shape, first.tile, len(bands)), ledger)
    cards = filters.stores[0].attributes(first.path).get("wcs")
    obs.write_group("mosaic", {"wcs": cards, "shape": list(first.shape), "detection": method})
    obs.consolidate()
    obs.commit(
        replace(
            first, digest=mark, made=utc_now(), path="mosaic", planes=PLANES, exposures=(), map_errors=(),
            notes=(f"detection image ({method}) of {', '.join(filters.names)}",), cost=StageCost.of(outcome),
        )
    )  # fmt: skip


def _measure(
    obs: Observation,
    filters: _Filters,
    bands: tuple[Band, ...],
    radii: tuple[float, ...],
    runner: Runner,
    document: CatalogDocument,
) -> None:
    """Add the columns of every filter to the catalogue."""
    from streamimg3.stages.multi_filter import circle_work, flux_work, tile_tasks

    first = filters.documents[0]
    label = read_column(obs, "catalog", "label").astype(np.int64)
    centres = np.stack([read_column(obs, "catalog", f"{n}centroid") for n in "yx"], axis=1).astype(np.float64)
    tasks = tile_tasks(first.shape, first.tile, len(bands))
    common: dict[str, Any] = {"bands": bands, "shape": first.shape, "tile": first.tile}
    none: tuple[tuple[NDArray[np.int64], F8], ...] = ()
    sums = np.zeros((int(label.max()) + 1, len(bands), 3))
    if document.segmentation:
        for labels, part in runner.fold(partial(flux_work, obs=obs, **common), tasks, none, "fluxes"):
            np.add.at(sums, labels, part)
    pixels = tuple(r / first.pixel_scale for r in radii)
    circles = np.full((len(label), len(bands), 2 * len(radii)), np.nan)
    work = partial(circle_work, centres=centres, radii=pixels, **common)
    for which, values in runner.fold(work, tasks, none, "apertures"):
        circles[which] = values
    columns = _columns(filters, bands, first, radii, sums[label] if document.segmentation else None, circles)
    names = {c.name for c, _ in columns}
    before = [(c, read_column(obs, "catalog", c.name)) for c in document.columns if c.name not in names]
    notes = tuple(f"{name}: sky {band.sky:.6g} taken off" for name, band in zip(filters.names, bands, strict=True))
    write_columns(obs, "catalog", [*before, *columns])
    obs.consolidate()
    obs.commit(
        replace(
            document, columns=tuple(c for c, _ in (*before, *columns)), notes=tuple(dict.fromkeys((*document.notes, *notes))),
            meta={**document.meta, "filters": list(filters.names), "aperture_radii_arcsec": list(radii), "sky": list(notes)},
        )
    )  # fmt: skip


def _columns(
    filters: _Filters,
    bands: tuple[Band, ...],
    first: ResampleDocument,
    radii: tuple[float, ...],
    sums: F8 | None,
    circles: F8,
) -> list[Column]:
    made: list[Column] = []
    for k, (name, obs) in enumerate(zip(filters.names, filters.stores, strict=True)):
        bunit = next((r.bunit for r in obs.records() if r.bunit), None)
        factor = 1e6 * first.pixel_scale**2 / float(np.rad2deg(3600)) ** 2 if bunit == "MJy/sr" else 1.0
        unit = "Jy" if bunit == "MJy/sr" else bunit
        pairs: list[tuple[str, str, F8, F8]] = []
        if sums is not None:
            pairs.append(("isophotal", "over the source's pixels", sums[:, k, 0], np.sqrt(sums[:, k, 1])))
        for n, radius in enumerate(radii):
            text = f"in a circle of {radius:g} arcsec"
            pairs.append((f"aper{radius:g}", text, circles[:, k, 2 * n], circles[:, k, 2 * n + 1]))
        for kind, text, flux, error in pairs:
            made.append((CatalogColumn(f"{name}_{kind}_flux", "float64", unit, f"{name} flux {text}"), flux * factor))
            made.append(
                (CatalogColumn(f"{name}_{kind}_flux_err", "float64", unit, f"{name} flux error {text}"), error * factor)
            )
    return made
