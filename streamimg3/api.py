"""The public calls: ingest, plan, run, export, open; the command line is a thin face of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from streamimg3 import companions, config
from streamimg3.engine import Task
from streamimg3.engine.runner import Progress
from streamimg3.errors import InputError
from streamimg3.forecast import summary
from streamimg3.foresight import first, loading, require
from streamimg3.formats.names import absolute
from streamimg3.ingestion import bring_headers, bring_pixels, opened
from streamimg3.multi import catalog_multi
from streamimg3.parameter_table import CALL, Origins, Parameter, origins_of, table
from streamimg3.pipelines import NAMES, module_of
from streamimg3.products import export, export_as, export_preview
from streamimg3.provenance import Order, check_same_place, differences, read_record, record, version_notes
from streamimg3.reporting import report_of_run
from streamimg3.session import DEFAULT_MEMORY, TASK_LIMIT, Session
from streamimg3.store import Observation
from streamimg3.store.documents import ProvenanceDocument, utc_now

__all__ = [
    "DEFAULT_MEMORY",
    "TASK_LIMIT",
    "Session",
    "catalog_multi",
    "describe",
    "export",
    "export_as",
    "export_preview",
    "ingest",
    "open",
    "plan",
    "replay",
    "run",
    "run_settings",
    "summary",
]

if TYPE_CHECKING:
    from streamimg3.pipelines import coron3, image2, image3, tso3

    Params = image2.Params | image3.Params | coron3.Params | tso3.Params


def open(url: str, **storage_options: str) -> Observation:
    """Open a store for reading.

    Parameters
    ----------
    url : str
        Local path or fsspec URL.
    **storage_options : str
        Credentials and endpoint.

    Returns
    -------
    Observation

    Raises
    ------
    InputError
        If there is no finished store.
    StoreError
        If the store is newer than this software.

    Examples
    --------
    >>> obs = streamimg3.open(store)
    >>> len(obs.records()), obs.records()[0].shape
    (4, (192, 192))
    """
    obs = Observation.at(url, storage_options)
    obs.require()
    return obs


def ingest(inputs: str | Sequence[str], session: Session | None = None) -> Observation:
    """Bring exposures into a store; what is there already and unchanged is kept.

    Parameters
    ----------
    inputs : str or sequence of str
        One association, or FITS files, folders and patterns.
    session : Session, optional
        Where and how.

    Raises
    ------
    InputError
        If an input is missing or bad, or the store holds another product.

    Examples
    --------
    >>> session = streamimg3.Session(store=f"{folder}/field.zarr", workers=1)
    >>> obs = streamimg3.ingest(association, session)
    >>> obs.records()[0].planes[:3]
    ('sci', 'err', 'dq')
    """
    session = session or Session()
    with session.writing():
        obs, missing = bring_headers(inputs, session)
        if missing is not None:
            bring_pixels(obs, missing, session, session.runner(obs.url))
    return obs


def parameters(pipeline: str, settings: config.Settings, progress: Progress) -> Params:
    """Build and validate the parameters of a pipeline.

    Parameters
    ----------
    pipeline : str
        With or without ``calwebb_``.
    settings : dict
        Parameters by step.
    progress : Progress
        Is told of parameters that have no meaning here.

    Raises
    ------
    InputError
        If the pipeline, a step or a parameter is unknown, or a value is out of range.
    """
    name = pipeline.removeprefix("calwebb_")
    if name not in NAMES:
        raise InputError(f"unknown pipeline '{pipeline}': this version has {', '.join(NAMES)}")
    module = module_of(name)
    if name == "image2":
        settings = config.with_bsub(settings)
    for note in config.pipeline_notes(settings):
        progress.note(note)
    settings = config.without_absent(settings, getattr(module, "ABSENT", ()))
    steps, skipped = config.take_skips(settings, module.STEPS)
    optional = [s for s in getattr(module, "OPTIONAL", ()) if settings.get(s, {}).get("skip") is not False]
    skipped |= frozenset(optional)
    made: dict[str, Any] = {}
    for step, stage in module.STAGES.items():
        made[step], notes = config.build(stage.Params, steps.get(step, {}), step, getattr(stage, "UNUSED", {}))
        for note in notes:
            progress.note(note)
    params: Params = module.Params(skip=skipped, **made)
    return params


class Plan(dict[str, list[Task]]):
    """The tasks of every step, and the smallest budget (bytes) that holds them all, products included."""

    smallest: int = 0


def plan(pipeline: str, inputs: str | Sequence[str], settings: config.Settings, session: Session) -> Plan:
    """Return the tasks of every step; reads headers, no pixel, and leaves nothing but what it adds to a store that is there.

    Parameters
    ----------
    pipeline, inputs, session
        As for :func:`run`.
    settings : dict
        Parameters by step.

    Returns
    -------
    Plan
        A dict of lists of tasks by step; each task names what it reads and writes, and the memory it needs in bytes.

    Raises
    ------
    InputError
        If an input or a parameter is bad.
    BudgetError
        If the memory cannot hold the work.

    Examples
    --------
    >>> tasks = streamimg3.plan("image3", store, {"resample": {"tile": 64}}, streamimg3.Session(workers=1))
    >>> len(tasks["resample"]) > 4, max(t.nbytes for t in tasks["resample"]) < 2**27
    (True, True)
    """
    params = parameters(pipeline, settings, session.progress)
    session = loading(session, params)
    given = companions.output_wcs(params, session)
    with session.drafting(), session.writing():
        runner = session.runner(session.store or (inputs if isinstance(inputs, str) else ""))
        full, runner.load = runner.load, first(runner, params)
        obs, missing = opened(inputs, session, params, runner=runner)
        if given is not None:
            obs.commit(given)
        before: dict[str, list[Task]] = {}
        if missing is not None:
            before = {"ingest": missing.tasks}
            if params.pipeline == "image2":
                before = {"bkg_subtract": list(missing.means), "calibration": missing.tasks}
        companions.bring(obs, params, session)
        found = Plan({**before, **module_of(params.pipeline).plan(obs, params)})
        full()  # then this process is as large as one that works
        _, found.smallest = require(obs, params, missing, session, runner, full)
        return found


def run(
    pipeline: str,
    inputs: str | Sequence[str],
    *,
    until: str | None = None,
    session: Session | None = None,
    **steps: Any,
) -> Observation:
    """Run a pipeline from files (or a store) to products.

    Parameters
    ----------
    pipeline : str
        ``image2``, ``image3``, ``coron3`` or ``tso3`` (or ``calwebb_image2`` ...).
    inputs : str or sequence of str
        An association, FITS files, folders, patterns, or a store that was ingested before.
    until : str, optional
        Last step to run.
    session : Session, optional
        Store, output folder, memory, workers.
    **steps : dict
        Parameters by step, for example ``resample={"pixfrac": 0.8}, tweakreg={"skip": True}``.

    Returns
    -------
    Observation
        The store with the results; products lie in the session's output folder.

    Raises
    ------
    InputError
        If an input or a parameter is bad.
    BudgetError
        If the memory cannot hold the work.

    Examples
    --------
    >>> session = streamimg3.Session(output_dir=folder, memory="1GiB", workers=1)
    >>> obs = streamimg3.run("image3", association, session=session, resample={"pixfrac": 0.8}, tweakreg={"skip": True})
    >>> bool((obs.xarray()["mosaic"].wht > 0).any())
    True
    """
    return run_settings(pipeline, inputs, config.as_settings(steps), session or Session(), until)


def run_settings(
    pipeline: str,
    inputs: str | Sequence[str],
    settings: config.Settings,
    session: Session,
    until: str | None = None,
    origins: Origins | None = None,
) -> Observation:
    """Run a pipeline with parameters by step.

    Parameters
    ----------
    pipeline, inputs, session, until
        As for :func:`run`.
    settings : dict
        Parameters by step, and those of the pipeline.
    origins : mapping, optional
        By step and name, where parameters came from.
    """
    started = utc_now()
    params = parameters(pipeline, settings, session.progress)
    session = loading(session, params)
    module = module_of(params.pipeline)
    if until is not None and until not in module.STEPS:
        raise InputError(f"--until {until}: the steps are {', '.join(module.STEPS)}")
    given = companions.output_wcs(params, session)
    with session.writing(), session.runner(session.store or (inputs if isinstance(inputs, str) else "")) as runner:
        full, runner.load = runner.load, first(runner, params)
        obs, missing = opened(inputs, session, params, until, runner)
        if given is not None:
            obs.commit(given)
        companions.bring(obs, params, session)
        full, _ = require(obs, params, missing, session, runner, full)
        if missing is not None:
            bring_pixels(obs, missing, session, runner)
        runner.load = full
        document = module.run(obs, params, runner, until)
        written = export(obs, session, runner, document)
        if session.report:
            told = origins if origins is not None else origins_of([(CALL, settings)])
            names = [inputs] if isinstance(inputs, str) else list(inputs)
            asked = Order(document.pipeline, tuple(map(absolute, names)), settings, told, until, started)
            url = record(obs, asked, effective(module.STAGES, params), session, runner, written)
            session.progress.note(f"wrote {url}")
            report_of_run(obs, session, runner)
    return obs


def effective(stages: Mapping[str, Any], params: Params) -> dict[str, dict[str, Any]]:
    """Return the effective parameters of all steps by name."""
    found: dict[str, dict[str, Any]] = {}
    for row in table(stages, params, {}):
        found.setdefault(row.step, {})[row.name] = row.value
    return found


def describe(pipeline: str, settings: config.Settings | None = None, origins: Origins | None = None) -> list[Parameter]:
    """Return every parameter of a pipeline: type, default, unit, meaning, the effective value and where it came from.

    Parameters
    ----------
    pipeline : str
        ``image2`` or ``image3``.
    settings : dict, optional
        Parameters by step that are set.
    origins : mapping, optional
        By step and name, where they came from.

    Raises
    ------
    InputError
        If the pipeline or a parameter is unknown.

    Examples
    --------
    >>> rows = streamimg3.describe("image3", {"resample": {"pixfrac": 0.8}})
    >>> [(r.value, r.default, r.origin, r.unit) for r in rows if r.step == "resample" and r.name == "pixfrac"]
    [(0.8, 1.0, 'call', 'input pixel')]
    """
    chosen = settings or {}
    params = parameters(pipeline, chosen, Progress())
    return table(
        module_of(params.pipeline).STAGES, params, origins if origins is not None else origins_of([(CALL, chosen)])
    )


def replay(url: str, session: Session) -> list[str]:
    """Run again what a run's record says, in another place, and compare.

    Parameters
    ----------
    url : str
        ``<product>_run.json`` of the run.
    session : Session
        Output folder (and store, memory, workers) of the new run; parameters and inputs are the record's.

    Returns
    -------
    list of str
        What is different, in inputs and results; empty = every byte of the results is the same.

    Raises
    ------
    InputError
        If the record cannot be read, or the new run would be in the same place.

    Examples
    --------
    >>> first, again = (streamimg3.Session(output_dir=f"{folder}/{n}", workers=1) for n in ("first", "again"))
    >>> obs = streamimg3.run("image3", association, session=first, until="skymatch")
    >>> streamimg3.replay(obs.url.replace(".zarr", "_run.json"), again)
    []
    """
    before = read_record(url, session.storage_options)
    for note in version_notes(before):
        session.progress.note(note)
    for place in (session.store, None if session.store else f"{session.output_dir}/{before.store.rsplit('/', 1)[1]}"):
        if place is not None:
            check_same_place(before, place)
    again = replace(session, offline=before.offline, references=before.references, report=True)
    inputs: Sequence[str] = before.arguments
    if before.arguments == (before.store,):  # the run had gone on from the store itself
        inputs = [i.url for i in before.inputs]
    obs = run_settings(
        before.pipeline, inputs, config.as_settings(before.settings), again, before.until, before.origins
    )
    after = obs.document(ProvenanceDocument)
    return differences(before, after) if after is not None else ["the new run has left no record"]
