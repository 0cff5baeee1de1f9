"""Light curves from the spectra of a time series: sums over wavelength (spec others §2.7)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Outcome, Runner, Task
from streamimg3.engine.budget import MIB
from streamimg3.engine.receipts import digest
from streamimg3.errors import InputError
from streamimg3.kernels.white_light import (
    BandSums,
    Curve,
    LightCurves,
    Limits,
    RangeRow,
    Series,
    band_sums,
    light_curves,
    order_limits,
)
from streamimg3.stages.series_blocks import references_of
from streamimg3.store import Observation
from streamimg3.store.documents import CatalogColumn, StageCost, plain, utc_now
from streamimg3.store.rows import Column, read_rows, write_table
from streamimg3.store.series_documents import LightCurveDocument, SeriesFacts, SpectraDocument, SpectrumSeries

NAME = "white_light"
REFTYPES = ("wavelengthrange",)
PATH = "white_light"
UNUSED: dict[str, str] = {}
_BLOCK = 2**20  # points of spectra that are read at a time
_NRS = ("NRS1", "NRS2")
_CODE = 1  # raised when the numbers that a given input leads to change

F8 = NDArray[np.float64]
_Sums = tuple[tuple[str, int, F8, F8, NDArray[np.int64]], ...]  # path, first row, flux, error, points


@dataclass(frozen=True)
class Params:
    """Parameters of white_light: names and defaults of jwst 3.0.0 unless said otherwise.

    Parameters
    ----------
    min_wavelength, max_wavelength : float or None
        Limits in microns, included; None = those of the wavelengthrange file (NIRISS SOSS), else everything.
    errors : bool
        Ours: a column with errors for each flux.
    normalize : bool
        Ours: columns with flux (and error) over the median flux.
    compat : bool
        Ours: as in the reference, the limits of the first order hold for all.
    override_wavelengthrange : str or None
        Reference file, or ``N/A``.

    Raises
    ------
    InputError
        If the limits are in the wrong order.
    """

    min_wavelength: float | None = None
    max_wavelength: float | None = None
    errors: bool = False
    normalize: bool = False
    compat: bool = False
    override_wavelengthrange: str | None = None

    def __post_init__(self) -> None:
        low, high = self.min_wavelength, self.max_wavelength
        if low is not None and high is not None and not low < high:
            raise InputError(f"{NAME}.min_wavelength = {low}: it must be less than max_wavelength = {high}")


def _tasks(spectra: Sequence[SpectrumSeries]) -> list[Task]:
    tasks = []
    for number, one in enumerate(spectra):
        last = max(s.last for s in one.segments)
        rows = max(1, _BLOCK // max(1, one.points))
        need = 16 * MIB + rows * one.points * 8 * 6
        for first in range(0, last, rows):
            item = (number, first, min(first + rows, last))
            box = (first, 0, item[2], one.points)
            reads = tuple((f"{one.path}/{name}", box) for name in ("flux", "flux_error"))
            tasks.append(Task(f"w{number}i{first:08d}", need, need, reads, item=item))
    return tasks


def plan(obs: Observation, params: Params, rough: bool = False) -> list[Task]:
    """Return the tasks, as far as there are spectra already: blocks of spectra of one order."""
    document = obs.document(SpectraDocument)
    return _tasks(document.spectra) if document is not None else []


def _work(task: Task, *, obs: Observation, spectra: tuple[SpectrumSeries, ...], limits: dict[int, Limits]) -> _Sums:
    number, first, last = task.item if isinstance(task.item, tuple) else (0, 0, 0)
    one = spectra[number]
    flux, error = (read_rows(obs, f"{one.path}/{name}", first, last) for name in ("flux", "flux_error"))
    sums = band_sums(flux, error, read_rows(obs, f"{one.path}/wavelength"), limits[one.order])
    return ((one.path, first, sums.flux, sums.error, sums.points),)


def run(obs: Observation, params: Params, runner: Runner) -> LightCurveDocument:
    """Make the light curves of the store's spectra unless it holds the same already.

    Raises
    ------
    InputError
        If the wavelengthrange file has nothing, or too much, for an order and the filter.
    """
    spectra = obs.document(SpectraDocument)
    if spectra is None or not spectra.spectra:
        document = LightCurveDocument(status="SKIPPED", reason="there are no spectra", parameters=plain(params))
        obs.commit(document)
        return document
    references = references_of(obs)
    ranges = None if references.ranges is None else [dataclasses.astuple(r) for r in references.ranges]
    mark = digest(_CODE, dataclasses.asdict(params), spectra.digest, ranges)
    kept = obs.document(LightCurveDocument)
    if kept is not None and kept.digest == mark:
        runner.progress.note(f"{NAME}: unchanged, kept")
        return kept
    facts = references.exposures[spectra.spectra[0].segments[0].index].facts
    rows = None if ranges is None else [RangeRow(*r) for r in ranges]
    given = params.min_wavelength, params.max_wavelength
    if None not in given:
        rows = None
    limits = order_limits([s.order for s in spectra.spectra], facts.filter or "", rows, given, params.compat)
    cost, none = Outcome(), ()
    chosen = {order: limit for order, limit in limits.items() if order is not None}
    work = partial(_work, obs=obs, spectra=spectra.spectra, limits=chosen)
    sums: _Sums = runner.fold(work, _tasks(spectra.spectra), none, NAME, cost)
    curves = light_curves([part for one in spectra.spectra for part in _series(obs, one, sums)])
    columns = table_columns(curves, spectra.spectra[0].flux_unit, params)
    write_table(obs, PATH, columns, [c.name for c, _ in columns if c.name.startswith(("MJD_UTC", "BJD_TDB"))])
    obs.consolidate()
    count, dropped = len(columns[0][1]), sum(c.dropped for c in curves)
    notes = (f"{dropped} spectra without a time, or with one that came before, are left out",) if dropped else ()
    for note in notes:
        runner.progress.note(f"{NAME}: {note}")
    document = LightCurveDocument(
        mark, utc_now(), parameters=plain(params), rows=count, columns=tuple(c for c, _ in columns),
        meta=table_meta(facts, count), dropped=dropped, notes=notes, cost=StageCost.of(cost),
    )  # fmt: skip
    obs.commit(document)
    return document


def _series(obs: Observation, one: SpectrumSeries, sums: _Sums) -> list[Series]:
    """Return the sums of each segment with its times."""
    mine = sorted((s for s in sums if s[0] == one.path), key=lambda s: s[1])
    flux, error, points = (np.concatenate([s[place] for s in mine]) for place in (2, 3, 4))
    utc, tdb = (read_rows(obs, f"{one.path}/int_mid_{kind}") for kind in ("mjd_utc", "bjd_tdb"))
    found = []
    for segment in one.segments:
        at = slice(segment.first, segment.last)
        part = BandSums(flux[at], error[at], np.asarray(points[at], np.int64))
        found.append(Series(utc[at], tdb[at], part, one.order, one.detector or ""))
    return found


def table_columns(curves: Sequence[LightCurves], unit: str, params: Params) -> list[Column]:
    """Return the columns of the table: times, then fluxes, by detector; shorter ones end in NaN.

    Names tell the detector where there are several (or NIRSpec's), and the order where there are several.
    """
    length = max(len(c.mjd_utc) for c in curves)
    orders = {order for c in curves for order in c.curves}
    columns: list[Column] = []
    fluxes: list[Column] = []
    for curve in curves:
        mark = f"_{curve.detector}" if len(curves) > 1 or curve.detector in _NRS else ""
        for name, values, text in (
            ("MJD_UTC", curve.mjd_utc, "middle of the integration, MJD, UTC"),
            ("BJD_TDB", curve.bjd_tdb, "middle of the integration, barycentric MJD, TDB"),
        ):
            columns.append((CatalogColumn(f"{name}{mark}", "float64", description=text), _padded(values, length)))
        for order, one in curve.curves.items():
            tail = (f"_order_{order}" if len(orders) > 1 else "") + mark
            fluxes += [(c, _padded(v, length)) for c, v in _curve_columns(one, tail, unit, params)]
    return [*columns, *fluxes]


def _curve_columns(curve: Curve, tail: str, unit: str, params: Params) -> list[Column]:
    found: list[Column] = [(_column(f"whitelight_flux{tail}", unit, "sum of the spectrum's fluxes"), curve.flux)]
    if params.errors:
        found.append((_column(f"whitelight_flux_error{tail}", unit, "error of the sum"), curve.error))
    if params.normalize:
        scaled = curve.normalized()
        found.append((_column(f"whitelight_norm{tail}", None, "sum over its median"), scaled.flux))
        if params.errors:
            found.append(
                (_column(f"whitelight_norm_error{tail}", None, "error of the sum over its median"), scaled.error)
            )
    return found


def _column(name: str, unit: str | None, text: str) -> CatalogColumn:
    return CatalogColumn(name, "float64", unit, text)


def _padded(values: NDArray[np.generic], length: int) -> F8:
    return np.concatenate([np.asarray(values, np.float64), np.full(length - len(values), math.nan)])


def table_meta(facts: SeriesFacts, rows: int) -> dict[str, str | int | None]:
    """Return what the table says of itself, under the reference's names."""
    names = ("instrument", "exp_type", "subarray", "filter", "pupil")
    meta: dict[str, str | int | None] = {name: getattr(facts, name) for name in names}
    return meta | {"target_name": facts.target, "number_of_integrations": rows}
