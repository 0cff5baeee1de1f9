"""Sum the spectra of a time series over a box, less a fitted background (spec others §2.5, §2.6)."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Outcome, Runner, Task
from streamimg3.engine.receipts import Ledger, digest
from streamimg3.errors import InputError
from streamimg3.geometry import Box
from streamimg3.kernels.boxcar import Variances, selected
from streamimg3.kernels.spectrum_columns import Columns, calibrated, corrected, multiplied
from streamimg3.stages.series_blocks import Setting, block_length, block_tasks, pieces, references_of, times_of
from streamimg3.stages.spectrum_design import Design, Recipe, stored_design
from streamimg3.stages.spectrum_designer import Designer, Found, Wanted
from streamimg3.store import ExposureRecord, Observation
from streamimg3.store.documents import OutlierDocument, StageCost, plain, utc_now
from streamimg3.store.layout import COLUMNS, TIMES
from streamimg3.store.rows import INTEGRATION, create_rows, write_rows
from streamimg3.store.series import Series, time_series
from streamimg3.store.series_documents import SpectraDocument, SpectrumSegment, SpectrumSeries

NAME = "extract_1d"
REFTYPES = ("extract1d", "apcorr")
PATH, PROFILES = "spectra", "profiles"
FITS = ("poly", "mean", "median")
UNUSED = {
    **dict.fromkeys(("center_xy", "ifu_autocen", "bkg_sigma_clip", "ifu_rfcorr", "ifu_set_srctype", "ifu_rscale",
                     "ifu_covar_scale"), "it belongs to spectral cubes"),
    **dict.fromkeys(("soss_atoca", "soss_threshold", "soss_n_os", "soss_wave_grid_in", "soss_wave_grid_out", "soss_estimate",
                     "soss_rtol", "soss_max_grid_size", "soss_tikfac", "soss_width", "soss_bad_pix", "soss_modelname",
                     "soss_order_3", "override_pastasoss", "override_specprofile", "override_speckernel"),
                    "spectra of NIRISS SOSS are summed over a box"),
    **dict.fromkeys(("model_nod_pair", "optimize_psf_location", "override_psf", "save_scene_model", "save_residual_image"),
                    "it belongs to optimal extraction"),
    "log_increment": "progress is told by blocks",
}  # fmt: skip
VARIABLES = {
    "flux": "flux", "flux_error": "error of flux", "flux_var_poisson": "variance of flux due to Poisson noise",
    "flux_var_rnoise": "variance of flux due to read noise", "flux_var_flat": "variance of flux due to the flat field",
    "background": "background for each pixel of the box", "background_error": "error of background",
    "background_var_poisson": "variance of background due to Poisson noise",
    "background_var_rnoise": "variance of background due to read noise",
    "background_var_flat": "variance of background due to the flat field", "npixels": "pixels that were summed",
}  # fmt: skip
_BYTES = 56  # per pixel of an integration at hand: planes, flags, the same turned; sums and columns
_CODE = 1  # raised when the numbers that a given input leads to change

F8 = NDArray[np.float64]


@dataclass(frozen=True)
class Params:
    """Parameters of extract_1d: names and defaults of jwst 3.0.0.

    Parameters
    ----------
    subtract_background : bool or None
        None = where the extract1d file says where the background is.
    apply_apcorr : bool
        Correct point sources for light outside the box, if there is an apcorr file.
    extraction_type : str
        ``box``; optimal extraction is not there.
    use_source_posn : bool or None
        Move the box to where the WCS expects the source; None = as the extract1d file says, else only for NRS_BRIGHTOBJ.
    position_offset : float
        Pixels by which the box is moved across the dispersion besides.
    smoothing_length : int or None
        Pixels of the box that the background is smoothed with; None = as the file says.
    bkg_fit : str or None
        poly, mean or median; None = as the file says, else poly.
    bkg_order : int or None
        Order of the polynomial; None = as the file says, else 0.
    save_profile : bool
        Write the weights of the pixels (``_profile``).
    by_segment : bool
        Ours: write a file of spectra for each segment, instead of one for all.
    override_extract1d, override_apcorr : str or None
        Reference files, or ``N/A``.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    subtract_background: bool | None = None
    apply_apcorr: bool = True
    extraction_type: str | None = "box"
    use_source_posn: bool | None = None
    position_offset: float = 0.0
    smoothing_length: int | None = None
    bkg_fit: str | None = None
    bkg_order: int | None = None
    save_profile: bool = False
    by_segment: bool = False
    override_extract1d: str | None = None
    override_apcorr: str | None = None

    def __post_init__(self) -> None:
        checks = [
            (self.extraction_type in ("box", None), "extraction_type", "box"),
            (self.bkg_fit in (None, *FITS), "bkg_fit", "one of " + ", ".join(FITS)),
            (self.bkg_order is None or self.bkg_order >= 0, "bkg_order", "at least 0"),
            (self.smoothing_length is None or self.smoothing_length >= 0, "smoothing_length", "at least 0"),
        ]
        for good, name, wanted in checks:
            if not good:
                raise InputError(f"{NAME}.{name} = {getattr(self, name)!r}: it must be {wanted}")

    @property
    def wanted(self) -> Wanted:
        """What is said of boxes and backgrounds."""
        return Wanted(
            self.subtract_background, self.apply_apcorr, self.use_source_posn, self.position_offset,
            self.smoothing_length, self.bkg_fit, self.bkg_order,
        )  # fmt: skip


def plan(obs: Observation, params: Params, rough: bool = False) -> list[Task]:
    """Return the tasks: a block of integrations each, all orders of which are extracted at once."""
    return _tasks(time_series(obs.records()))


def _tasks(series: tuple[Series, ...]) -> list[Task]:
    planes = ("sci", "var_poisson", "var_rnoise", "var_flat", "dq", "nan", "outlier")
    # results of a block, of which one is being packed
    results = max(block_length(one) * max(one.shape) for one in series) * 8 * (len(VARIABLES) + 3)
    return block_tasks(series, (_BYTES, results), planes, PATH)


Target = tuple[Recipe, str]  # how a spectrum is extracted, and where it goes


def work(task: Task, *, setting: Setting, targets: dict[int, tuple[Target, ...]]) -> dict[str, float]:
    """Extract the spectra of a block of integrations; ``targets`` are by exposure."""
    begun = time.process_time()
    number, first, last = task.item if isinstance(task.item, tuple) else (0, 0, 0)
    one = setting.series[number]
    found: dict[str, dict[str, F8]] = {}
    for start, stop in pieces(task, one):
        for part in one.parts(start, stop):
            wanted, at = targets.get(part.record.index, ()), start + part.start - first
            if not wanted:
                continue
            pixels = _pixels(setting, part.record, part.first, part.last)
            for recipe, path in wanted:
                design = stored_design(setting.obs, recipe, setting.mark)
                columns = _extracted(design, *pixels)
                rows = found.setdefault(path, _blank(last - first, columns.flux.shape[1]))
                for name, values in _variables(columns).items():
                    rows[name][at : at + len(values)] = values
    for path, rows in found.items():
        for name, values in rows.items():
            write_rows(setting.obs, f"{path}/{name}", first, values)
    del found
    return {NAME: time.process_time() - begun}


def _pixels(
    setting: Setting, record: ExposureRecord, first: int, last: int
) -> tuple[NDArray[np.float32], Variances | None]:
    """Read pixels and variances; those that are absent are 0."""
    seen, box = setting.seen(record), Box.of_shape(record.shape)
    bad = seen.invalid(first, last, box)
    sci = seen.floats("sci", first, last, box, bad)
    names = ("var_poisson", "var_rnoise", "var_flat")
    if not any(seen.exposure.has(name) for name in names):
        return sci, None
    planes = [
        seen.floats(name, first, last, box, bad) if seen.exposure.has(name) else np.zeros(sci.shape, np.float32)
        for name in names
    ]
    return sci, Variances(*planes)


def _extracted(design: Design, sci: NDArray[np.float32], variances: Variances | None) -> Columns:
    sums = selected(design.extraction(sci, variances), design.points)
    columns = calibrated(sums, design.recipe.solid_angle, design.recipe.point)
    factors = design.factors(columns.pixels)
    if factors is not None:
        columns = corrected(columns, factors)
    return columns if design.response is None else multiplied(columns, design.response)


def _blank(rows: int, points: int) -> dict[str, F8]:
    return {name: np.full((rows, points), np.nan) for name in VARIABLES}


def _variables(columns: Columns) -> dict[str, F8]:
    """Return the arrays of the store; surface brightness follows from flux and pixels."""
    values = (
        columns.flux, columns.error, *columns.variances, columns.background, columns.background_error,
        *columns.background_variances, columns.pixels,
    )  # fmt: skip
    return dict(zip(VARIABLES, (np.asarray(v, np.float64) for v in values), strict=True))


def run(obs: Observation, params: Params, runner: Runner, outliers: bool, photom: bool = True) -> SpectraDocument:
    """Extract the spectra of all time series unless the store holds the same already.

    Parameters
    ----------
    obs : Observation
        A store with time series of spectra.
    params : Params
        How.
    runner : Runner
        Memory and workers.
    outliers : bool
        Whether the outliers that the store holds count.
    photom : bool
        Whether spectra are multiplied by the response that a photom file gives for spectra (NIRISS SOSS).

    Returns
    -------
    SpectraDocument
        ``status`` SKIPPED with a reason where there is no spectrum to be extracted.

    Raises
    ------
    InputError
        If an extract1d file does not speak of these spectra, or a header does not say what is needed.
    """
    references, records = references_of(obs), obs.records()
    found = obs.document(OutlierDocument) if outliers else None
    basis = [r.checksums for r in records], found and found.digest, references.digest, photom
    mark = digest(_CODE, dataclasses.asdict(params), [dataclasses.asdict(e.facts) for e in references.exposures], basis)
    kept = obs.document(SpectraDocument)
    if kept is not None and kept.digest == mark:
        runner.progress.note(f"{NAME}: unchanged, kept")
        return kept
    return _extract(Setting(obs, mark, outliers), params, runner, photom)


def _extract(setting: Setting, params: Params, runner: Runner, photom: bool) -> SpectraDocument:
    """Extract the spectra, and commit them."""
    obs, mark = setting.obs, setting.mark
    ledger = Ledger(obs.backend, NAME, mark)
    fresh = "_created" not in ledger.done()
    if fresh:
        _retract(obs)
        ledger.forget_others()
        for path in (PATH, PROFILES):
            obs.backend.remove_tree(path)
            obs.write_group(path, {})
    designs = Designer(setting, params.wanted, photom).designs()
    document = _described(setting, designs, params)
    for note in document.notes:
        runner.progress.note(f"{NAME}: {note}")
    if document.spectra:
        if fresh:
            _create(setting, designs, document)
            ledger.mark("_created")
        targets = _targets(document, designs)
        cost = Outcome()
        cost += runner.fill(partial(work, setting=setting, targets=targets), _tasks(setting.series), ledger)
        document = dataclasses.replace(document, cost=StageCost.of(cost))
    obs.consolidate()
    obs.commit(document)
    obs.backend.remove_tree(f"receipts/{NAME}")
    return document


def _retract(obs: Observation) -> None:
    """Withdraw what an earlier run made, before its arrays go."""
    if obs.document(SpectraDocument) is not None:
        obs.retract(SpectraDocument.kind)


def _targets(document: SpectraDocument, designs: Found) -> dict[int, tuple[Target, ...]]:
    paths = {(s.index, one.order): one.path for one in document.spectra for s in one.segments}
    return {
        index: tuple((d.recipe, paths[index, d.recipe.order]) for d in mine)
        for index, mine in designs.by_exposure.items()
    }


def _described(setting: Setting, designs: Found, params: Params) -> SpectraDocument:
    """Return the document of what is going to be extracted: one entry for each series, order and set of wavelengths."""
    spectra: list[SpectrumSeries] = []
    for one in setting.series:
        groups: dict[tuple[int, bytes], list[ExposureRecord]] = {}
        for record in one.records:
            for design in designs.by_exposure.get(record.index, ()):
                groups.setdefault((design.recipe.order, design.wavelength.tobytes()), []).append(record)
        orders = {order for order, _ in groups}
        for place, ((order, _), records) in enumerate(groups.items()):
            several = [key for key in groups if key[0] == order]
            name = one.name + (f"_order{order}" if len(orders) > 1 else "") + (f"_{place}" if len(several) > 1 else "")
            spectra.append(_entry(setting, one, name, order, [(r, designs.of(r, order)) for r in records]))
    reason = None if spectra else "; ".join(designs.notes) or "there is no spectrum"
    return SpectraDocument(
        setting.mark,
        utc_now(),
        "SKIPPED" if reason else "COMPLETE",
        reason,
        plain(params),
        tuple(spectra),
        tuple(designs.notes),
    )


def _entry(
    setting: Setting, one: Series, name: str, order: int, members: list[tuple[ExposureRecord, Design]]
) -> SpectrumSeries:
    segments = []
    for record, design in members:
        start, facts = one.start(record), setting.entry(record).facts
        segments.append(
            SpectrumSegment(
                record.index,
                start,
                start + record.integrations,
                facts.segment,
                design.limits,
                design.position,
                design.brightness,
                design.recipe.number,
                design.recipe.correction is not None,
            )
        )
    first = members[0][1]
    return SpectrumSeries(
        f"{PATH}/{name}", one.name, first.slit, order, members[0][0].detector, first.recipe.dispaxis,
        int(first.points.sum()), tuple(segments), *first.units,
    )  # fmt: skip


def _create(setting: Setting, designs: Found, document: SpectraDocument) -> None:
    """Create the empty arrays of the spectra, and write wavelengths, times and the weights of pixels."""
    obs = setting.obs
    for design in designs.unique:
        design.store(obs)
    for spectrum in document.spectra:
        one = next(s for s in setting.series if s.name == spectrum.name)
        design = designs.of(next(r for r in one.records if r.index == spectrum.segments[0].index), spectrum.order)
        obs.write_group(spectrum.path, {"order": spectrum.order, "exposure": spectrum.name})
        wavelength = design.wavelength[design.points]
        attrs = {"units": "um", "long_name": "wavelength"}
        obs.create_array(
            f"{spectrum.path}/wavelength", wavelength.shape, "float64", wavelength.shape, ("wavelength",), attrs
        )
        write_rows(obs, f"{spectrum.path}/wavelength", 0, wavelength)
        for name, values in times_of(obs, one).items():
            attrs = {"long_name": COLUMNS[name]} | ({"units": "d"} if name in TIMES else {})
            place = f"{spectrum.path}/{name}"
            obs.create_array(place, values.shape, str(values.dtype), values.shape, (INTEGRATION,), attrs)
            write_rows(obs, place, 0, values)
        units = {"flux": spectrum.flux_unit, "background": spectrum.brightness_unit}
        for name, text in VARIABLES.items():
            unit = "1" if name == "npixels" else units[name.split("_")[0]]
            unit = f"({unit})^2" if "_var_" in name else unit
            attrs = {"units": unit, "long_name": text, "coordinates": " ".join(("integration_number", *TIMES))}
            shape = (one.count, len(wavelength))
            create_rows(obs, f"{spectrum.path}/{name}", shape, block_length(one), attrs, (INTEGRATION, "wavelength"))
