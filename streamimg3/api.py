"""The public calls: ingest, plan, run, export, open; the command line is a thin face of these."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from streamimg3 import companions, config
from streamimg3.engine import Runner, Task
from streamimg3.engine.budget import MIB, share
from streamimg3.engine.receipts import Ledger, digest
from streamimg3.engine.runner import Progress
from streamimg3.errors import InputError
from streamimg3.pipelines import image3
from streamimg3.products import export, export_preview, foreseen
from streamimg3.session import DEFAULT_MEMORY, Session
from streamimg3.store import Observation
from streamimg3.store.backend import is_local, normalise
from streamimg3.store.documents import AssociationDocument

__all__ = [
    "DEFAULT_MEMORY",
    "Session",
    "export",
    "export_preview",
    "ingest",
    "open",
    "plan",
    "run",
    "run_settings",
    "summary",
]

if TYPE_CHECKING:
    from streamimg3.formats.association import Association
    from streamimg3.formats.ingest import Found

PIPELINES = ("image3",)


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
    """
    session = session or Session()
    obs, missing = _headers(inputs, session)
    if missing is not None:
        _pixels(obs, missing, session, session.runner(obs.url))
    return obs


@dataclass(frozen=True)
class _Missing:
    """Pixels that are still to be brought in: the association, what its headers say, the tasks, and the digest."""

    association: Association
    found: list[Found]
    tasks: list[Task]
    mark: str


def _headers(
    inputs: str | Sequence[str], session: Session, runner: Runner | None = None
) -> tuple[Observation, _Missing | None]:
    """Make the store with all that comes from headers; returns what of the pixels is still missing.

    While the headers are read, the workers of ``runner`` start.
    """
    from streamimg3.formats import ingest as door
    from streamimg3.formats.association import read_inputs

    association = read_inputs([inputs] if isinstance(inputs, str) else list(inputs), session.storage_options)
    obs = Observation.at(session.store or _default_store(session, association.product), session.storage_options)
    root = _own(obs, session.force)
    if runner is not None and not root.get("ingested"):
        runner.warm()
    for note in association.notes:
        session.progress.note(note)
    mark = digest(1, door.fingerprints(association, session.storage_options))
    if root.get("ingested") and root.get("ingest") == mark and not session.force:
        session.progress.note(f"ingest: {len(association.science)} files unchanged, kept")
        obs.mend()
        if obs.document(AssociationDocument) != (new := door.association_document(association)):
            obs.commit(new)
        return obs, None
    if root.get("ingested") and not session.force and not _same_members(obs, [m.url for m in association.science]):
        raise InputError(
            f"{obs.url} holds other exposures: give another --store, or --force-ingest to replace them and all results"
        )
    found = door.scan(association, session.storage_options)
    tasks = [_ingest_task(found, n) for n in range(len(association.science))]
    session.runner(obs.url).require(tasks)
    ledger = Ledger(obs.backend, "ingest", mark)
    if session.force or "_created" not in ledger.done():
        door.clear(obs)
        door.create(obs, association, found)
        ledger.mark("_created")
    return obs, _Missing(association, found, tasks, mark)


def _pixels(obs: Observation, missing: _Missing, session: Session, runner: Runner) -> None:
    """Bring in the pixels that are still missing and finish the store."""
    from streamimg3.formats import ingest as door

    obs.backend.sweep()
    door.write_order(obs, missing.association, missing.found)
    work = partial(_ingest_work, obs=obs, mark=missing.mark, options=dict(session.storage_options))
    ledger = Ledger(obs.backend, "ingest", missing.mark)
    runner.fill(work, missing.tasks, ledger)
    door.commit(obs, len(missing.found), missing.mark)


def _own(obs: Observation, force: bool) -> dict[str, Any]:
    """Return the root attributes; refuse a folder that holds something else."""
    root = obs.root()
    if root is None and is_local(obs.url) and os.path.isdir(obs.url) and os.listdir(obs.url) and not force:
        entries = set(os.listdir(obs.url))
        if not entries <= {"receipts", "exposures", "documents", "ingest", "scratch"}:
            raise InputError(f"{obs.url} is a folder with other things in it: give --store another path")
    return root or {}


def _same_members(obs: Observation, urls: list[str]) -> bool:
    document = obs.document(AssociationDocument)
    return document is not None and [m.url for m in document.members if m.exptype.lower() == "science"] == urls


def _default_store(session: Session, product: str) -> str:
    return f"{normalise(session.output_dir)}/{product}.zarr"


def _ingest_task(found: Sequence[Any], number: int) -> Task:
    from streamimg3.formats.ingest import band_memory

    mine = [f.record for f in found if f.member == number]
    need = max(band_memory(r.shape) for r in mine) + 48 * MIB
    writes = tuple((f"exposures/{r.name}", (0, 0, *r.shape)) for r in mine)
    return Task(f"m{number:06d}", need, need, writes=writes, item=number, libraries=32 * MIB)  # astropy's FITS


def _ingest_work(task: Task, *, obs: Observation, mark: str, options: dict[str, str]) -> dict[str, float]:
    import time

    from streamimg3.formats.ingest import read_order, store_member

    start = time.process_time()
    member, records = read_order(obs, mark)[task.item if isinstance(task.item, int) else task.item[0]]
    store_member(obs, member, records, options)
    return {"ingest": time.process_time() - start}


def parameters(pipeline: str, settings: config.Settings, progress: Progress) -> image3.Params:
    """Build and validate the parameters of a pipeline.

    Raises
    ------
    InputError
        If the pipeline, a step or a parameter is unknown, or a value is out of range.
    """
    name = pipeline.removeprefix("calwebb_")
    if name not in PIPELINES:
        raise InputError(f"unknown pipeline '{pipeline}': this version has {', '.join(PIPELINES)}")
    for note in config.pipeline_notes(settings):
        progress.note(note)
    steps, skipped = config.take_skips(settings, image3.STEPS)
    made: dict[str, Any] = {}
    for step, stage in image3.STAGES.items():
        made[step], notes = config.build(stage.Params, steps.get(step, {}), step)
        for note in notes:
            progress.note(note)
    return image3.Params(skip=skipped, **made)


def plan(
    pipeline: str, inputs: str | Sequence[str], settings: config.Settings, session: Session
) -> dict[str, list[Task]]:
    """Return the tasks of every step; reads headers, no pixel.

    Parameters
    ----------
    pipeline, inputs, session
        As for :func:`run`.
    settings : dict
        Parameters by step.
    """
    params = parameters(pipeline, settings, session.progress)
    given = companions.output_wcs(params, session)
    obs, _ = _opened(inputs, session)
    if given is not None:
        obs.commit(given)
    companions.bring(obs, params, session)
    return image3.plan(obs, params)


def summary(step: str, tasks: Sequence[Task], session: Session) -> dict[str, Any]:
    """Return a plan in numbers: tasks, workers, projected and smallest memory (bytes), pixels read and written.

    Raises
    ------
    BudgetError
        If the session's memory cannot hold the tasks.
    """
    granted = session.runner("").check(tasks)
    alone = share(None, 1, [replace(t, nbytes=t.least) for t in tasks])

    def pixels(boxes: Any) -> int:
        return sum((y1 - y0) * (x1 - x0) for t in tasks for _, (y0, x0, y1, x1) in boxes(t))

    return {
        "step": step, "tasks": len(tasks), "workers": granted.workers, "projected": granted.projected,
        "smallest": alone.projected, "pixels_read": pixels(lambda t: t.reads), "pixels_written": pixels(lambda t: t.writes),
    }  # fmt: skip


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
        ``image3`` (or ``calwebb_image3``).
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
    """
    return run_settings(pipeline, inputs, config.as_settings(steps), session or Session(), until)


def run_settings(
    pipeline: str, inputs: str | Sequence[str], settings: config.Settings, session: Session, until: str | None = None
) -> Observation:
    """Run a pipeline with parameters by step; see :func:`run`."""
    params = parameters(pipeline, settings, session.progress)
    if until is not None and until not in image3.STEPS:
        raise InputError(f"--until {until}: the steps are {', '.join(image3.STEPS)}")
    given = companions.output_wcs(params, session)
    with session.runner(session.store or (inputs if isinstance(inputs, str) else "")) as runner:
        obs, missing = _opened(inputs, session, runner)
        if given is not None:
            obs.commit(given)
        companions.bring(obs, params, session)
        planned = image3.plan(obs, params, rough=True)
        products = foreseen(obs, planned.get("resample", []), session)
        coming = missing.tasks if missing is not None else []
        runner.require([*coming, *chain(*planned.values()), *products])  # refused before a pixel is read
        if missing is not None:
            _pixels(obs, missing, session, runner)
        document = image3.run(obs, params, runner, until)
        export(obs, session, runner, document)
    return obs


def _opened(
    inputs: str | Sequence[str], session: Session, runner: Runner | None = None
) -> tuple[Observation, _Missing | None]:
    """Return the store that the inputs are, or the one they go into with what is still missing in it."""
    from streamimg3.formats.names import looks_like_fits

    names = [inputs] if isinstance(inputs, str) else list(inputs)
    if len(names) == 1 and not names[0].lower().endswith((".json", ".yaml", ".yml")) and not looks_like_fits(names[0]):
        obs = Observation.at(names[0], session.storage_options)
        if obs.root() is not None:
            if session.store is not None and normalise(session.store) != obs.url:
                raise InputError(f"the input {obs.url} is a store itself: leave out --store {session.store}")
            obs.require()
            obs.mend()
            return obs, None
    return _headers(names, session, runner)
