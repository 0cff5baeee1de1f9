"""Exposures come into a store: headers first, so that memory is checked and workers start, then pixels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from streamimg3.engine import Runner, Task
from streamimg3.engine.budget import MIB, roomy_allocator
from streamimg3.engine.receipts import Ledger, digest
from streamimg3.errors import InputError
from streamimg3.session import Session
from streamimg3.store import Observation
from streamimg3.store.backend import is_local, normalise
from streamimg3.store.documents import AssociationDocument, CalibrationDocument

if TYPE_CHECKING:
    from streamimg3.calibrated_headers import Labels
    from streamimg3.calibration import Plan
    from streamimg3.formats.association import Association, Member
    from streamimg3.formats.ingest import Found
    from streamimg3.formats.ingest_changes import Change, Prints
    from streamimg3.formats.sources import Opener, Source
    from streamimg3.pipelines import coron3, image2, image3, tso3
    from streamimg3.store import ExposureRecord

_CREATED = "_created"
_LIBRARIES = 32 * MIB  # astropy's FITS
_WCS_LIBRARIES = 64 * MIB  # gwcs, asdf and its schemas
_LABELS = 32 * MIB  # metadata trees of an exposure, as they are and as text
_MANY, _TOGETHER = 8, 4  # exposures for which workers are asked, and of one task
_INGEST_REST = 12 * MIB  # open files and their headers
_REMOTE_REST = 48 * MIB  # and the blocks that are kept of remote ones


@dataclass(frozen=True)
class Missing:
    """Pixels that are still to be brought in: the association, what its headers say, the tasks, and the digest.

    ``calibration`` is what is done to them on the way, ``means`` the tasks that come before: means of backgrounds;
    ``change`` says which exposures are in the store already.
    """

    association: Association
    found: list[Found]
    tasks: list[Task]
    mark: str
    calibration: CalibrationDocument | None = None
    means: tuple[Task, ...] = ()
    change: Change | None = None


def bring_headers(
    inputs: str | Sequence[str],
    session: Session,
    params: image2.Params | None = None,
    until: str | None = None,
    runner: Runner | None = None,
) -> tuple[Observation, Missing | None]:
    """Make the store with all that comes from headers; no pixel is read.

    Parameters
    ----------
    inputs : str or sequence of str
        One association, or FITS files, folders and patterns.
    session : Session
        Where and how.
    params : image2.Params, optional
        The exposures are calibrated on their way.
    until : str, optional
        Last step of the calibration.
    runner : Runner, optional
        Its workers start while headers are read.

    Returns
    -------
    obs : Observation
        The store.
    missing : Missing or None
        The pixels that are still to be brought in; None = everything is there, and unchanged.

    Raises
    ------
    InputError
        If an input is missing or bad, or the store holds something else.
    BudgetError
        If the memory cannot hold the tasks.
    """
    from streamimg3.formats import ingest as door
    from streamimg3.formats import ingest_changes as changes
    from streamimg3.formats.association import in_time, read_inputs
    from streamimg3.formats.sources import open_sources

    association = read_inputs([inputs] if isinstance(inputs, str) else list(inputs), session.storage_options)
    plan = None
    if params is not None:
        from streamimg3.calibration import planned

        association, plan = planned(association, params, session, until)
    else:
        association = in_time(association)
    obs = Observation.at(session.store or _default_store(session, association.product), session.storage_options)
    root = _own(obs, session.force)
    if runner is not None and not root.get("ingested"):
        runner.warm()
    for note in association.notes:
        session.progress.note(note)
    plan = plan.dated(obs) if plan else None
    members = association.members if plan else association.exposures
    prints = door.fingerprints(members, session.storage_options)
    mark = digest(1, prints, *([plan.document.digest] if plan else []))
    remote, ledger = not is_local(obs.url), Ledger(obs.backend, "ingest", mark)
    if (
        session.draft is not None and root.get("ingest") != mark and _CREATED not in ledger.done()
    ):  # a plan changes no store
        obs, root = Observation.at(session.draft), {}
        ledger = Ledger(obs.backend, "ingest", mark)
    if root.get("ingested") and root.get("ingest") == mark and not session.force:
        session.progress.note(f"ingest: {len(association.exposures)} files unchanged, kept")
        _take_up(obs, door.association_document(association), plan.document if plan else None, session)
        return obs, None
    alike = (
        plan is None and association.exposures == association.science
    )  # all of one kind, and as they are in their files
    if root.get("ingested") and not session.force:
        missing = _changes(obs, association, prints, mark, session) if alike else None
        if missing is not None:
            return obs, missing
        _require_same_members(obs, association)
    opener: Opener = _labelled(association.science, plan, runner) if plan else open_sources
    found = door.scan(association, session.storage_options, opener, mixed=plan is not None)
    for note in door.unlike(found) if alike else ():
        session.progress.note(note)
    tasks = _ingest_tasks(found, plan is not None, remote)
    means = plan.means if plan else ()
    if runner is None:  # a run looks at all its steps together
        session.runner(obs.url).require([*means, *tasks])
    session.hold(obs)
    if session.force or _CREATED not in ledger.done():
        door.clear(obs)
        door.create(obs, association, found)
        if plan:
            plan.create(obs, found[0].record.bunit)
        if alike:
            changes.note_members(obs, association, prints)
        ledger.mark(_CREATED)
    return obs, Missing(association, found, tasks, mark, plan.document if plan else None, means)


def _changes(obs: Observation, association: Association, prints: Prints, mark: str, session: Session) -> Missing | None:
    """Make room for what has joined or left, or been replaced; None where the store has none of the files as they are."""
    from streamimg3.formats import ingest_changes as changes

    if obs.document(CalibrationDocument) is not None:
        return None
    change = changes.changed(obs, association, prints, session.storage_options)
    if change is None:
        return None
    tasks = _ingest_tasks([f for f in change.found if f.member not in change.kept], False, not is_local(obs.url))
    if tasks:
        session.runner(obs.url).require(tasks)
    session.hold(obs)
    session.progress.note(changes.told(change, association))
    changes.apply(obs, association, change)
    changes.note_members(obs, association, prints)
    return Missing(association, change.found, tasks, mark, change=change)


def _labelled(members: Sequence[Member], plan: Plan, runner: Runner | None) -> Opener:
    """Return what opens members as the calibrated exposures that they become; the workers make the WCSs of many."""
    if runner is None or runner.workers == 1 or len(members) < _MANY:
        return plan.labels.opened
    work = partial(_label_work, members=tuple(members), labels=plan.labels)
    need, count = _LABELS, len(members)
    tasks = [
        Task(f"w{first:06d}", need, need, item=(first, min(first + _TOGETHER, count)), libraries=_WCS_LIBRARIES)
        for first in range(0, count, _TOGETHER)
    ]
    none: tuple[Source, ...] = ()
    made = runner.fold(work, tasks, none, "assign_wcs")
    return partial(_at_hand, {m.url: source for m, source in zip(members, made, strict=True)})


def _label_work(task: Task, *, members: tuple[Member, ...], labels: Labels) -> tuple[Source, ...]:
    """Make WCS and headers of some exposures."""
    made: list[Source] = []
    for member in members[slice(*task.item)] if isinstance(task.item, tuple) else ():
        with labels.opened(member, labels.options) as sources:
            made += sources
    return tuple(made)


@contextmanager
def _at_hand(made: Mapping[str, Source], member: Member, options: Mapping[str, str]) -> Iterator[list[Source]]:
    """Open a member of which everything is known."""
    yield [made[member.url]]


def _take_up(
    obs: Observation, association: AssociationDocument, calibration: CalibrationDocument | None, session: Session
) -> None:
    """Go on with a kept store; its documents are brought up to date: what they say besides has not changed any pixel."""
    session.hold(obs)
    obs.mend()
    if obs.document(AssociationDocument) != association:
        obs.commit(association)
    if calibration is not None and obs.document(CalibrationDocument) != calibration:
        obs.commit(calibration)


def bring_pixels(obs: Observation, missing: Missing, session: Session, runner: Runner) -> None:
    """Bring in the pixels that are still missing and finish the store.

    Parameters
    ----------
    obs, missing
        From :func:`bring_headers`.
    session : Session
        Storage options of the files.
    runner : Runner
        Who does the work.
    """
    from streamimg3.formats import ingest as door

    obs.backend.sweep()
    door.write_order(obs, missing.association, missing.found)
    options, mark = dict(session.storage_options), missing.calibration.digest if missing.calibration else ""
    if missing.means:
        from streamimg3.calibrated_means import background_work

        average = partial(background_work, obs=obs, mark=mark, options=options)
        runner.fill(average, missing.means, Ledger(obs.backend, "bkg_subtract", missing.mark))
    work = partial(_ingest_work, obs=obs, mark=missing.mark, options=options, calibration=mark)
    ledger = Ledger(obs.backend, "ingest", missing.mark)
    if missing.tasks:
        runner.fill(work, missing.tasks, ledger)
    if missing.change is not None:
        from streamimg3.formats import ingest_changes as changes

        changes.commit(obs, missing.change, missing.mark)
        return
    door.commit(obs, missing.found, missing.mark)


def _own(obs: Observation, force: bool) -> dict[str, Any]:
    """Return the root attributes; refuse a folder that holds something else."""
    root = obs.root()
    if root is None and is_local(obs.url) and os.path.isdir(obs.url) and os.listdir(obs.url) and not force:
        entries = set(os.listdir(obs.url))
        if not entries <= {
            "receipts",
            "exposures",
            "integrations",
            "documents",
            "ingest",
            "scratch",
            "backgrounds",
            "lease",
        }:
            raise InputError(f"{obs.url} is a folder with other things in it: give --store another path")
    return root or {}


def _require_same_members(obs: Observation, association: Association) -> None:
    """Refuse a store of other exposures: its results would be lost."""
    if not _same_members(obs, [m.url for m in association.exposures]):
        raise InputError(
            f"{obs.url} holds other exposures: give another --store, or --force-ingest to replace them and all results"
        )


def _same_members(obs: Observation, urls: list[str]) -> bool:
    calibrated = obs.document(CalibrationDocument)
    if calibrated is not None:
        return [e.url for e in calibrated.exposures] == urls
    document = obs.document(AssociationDocument)
    return document is not None and [m.url for m in document.exposures] == urls


def _default_store(session: Session, product: str) -> str:
    return f"{normalise(session.output_dir)}/{product}.zarr"


def _ingest_tasks(found: Sequence[Found], calibrated: bool, remote: bool) -> list[Task]:
    """Return the tasks of an ingest: one for each file with images, one for each batch of each stack of cubes.

    To a ``remote`` store shards go whole.
    """
    from streamimg3.formats.ingest_cubes import block_memory
    from streamimg3.formats.ingest_planes import image_memory
    from streamimg3.formats.names import is_remote
    from streamimg3.store.cubes import cube_stacks
    from streamimg3.store.layout import SHARD_BYTES

    rest = _REMOTE_REST if any(is_remote(f.record.url) for f in found) else _INGEST_REST
    libraries = _LIBRARIES
    if remote:
        rest += 2 * SHARD_BYTES  # one and the client's copy of it
    if calibrated:
        from streamimg3.calibrated_means import LIBRARIES, MEAN_ROW
        from streamimg3.calibrated_pixels import WORKING

        rest, libraries = rest + WORKING + MEAN_ROW * max(f.record.shape[1] for f in found), LIBRARIES
    files: dict[int, list[ExposureRecord]] = {}
    for f in found:
        if not f.record.integrations:
            files.setdefault(f.member, []).append(f.record)
    tasks = []
    for number, mine in files.items():
        need = max(image_memory(r.shape, len(r.planes)) for r in mine) + rest
        writes = tuple((f"exposures/{r.name}", (0, 0, *r.shape)) for r in mine)
        tasks.append(Task(f"m{number:06d}", need, need, writes=writes, item=number, libraries=libraries))
    for stack in cube_stacks([f.record for f in found]):
        (ny, nx), need = stack.shape, block_memory(stack) + rest
        for number, (first, last) in enumerate(stack.batches()):
            box = (first * ny, 0, last * ny, nx)  # the integrations one below the other
            key = f"c{ny}x{nx}-{number:06d}"
            writes = ((stack.path, box),)
            tasks.append(Task(key, need, need, writes=writes, item=(ny, nx, number), libraries=libraries))
    return tasks


def _ingest_work(
    task: Task, *, obs: Observation, mark: str, options: dict[str, str], calibration: str = ""
) -> dict[str, float]:
    import time

    from streamimg3.formats.ingest import read_order, store_member
    from streamimg3.formats.ingest_cubes import store_block
    from streamimg3.formats.sources import open_sources

    start = time.process_time()
    opener: Opener = open_sources
    with ExitStack() as held:
        if calibration:
            from streamimg3.calibrated_means import ROOM
            from streamimg3.calibrated_pixels import open_calibrated

            opener = partial(open_calibrated, obs=obs, mark=calibration)
            held.enter_context(roomy_allocator(ROOM))
        order = read_order(obs, mark)
        if isinstance(task.item, int):
            store_member(obs, *order[task.item], options, opener)
        else:
            ny, nx, number = task.item
            store_block(obs, order, (ny, nx, number), options, opener, cached=not calibration)
    return {"ingest": time.process_time() - start}


def opened(
    inputs: str | Sequence[str],
    session: Session,
    params: image2.Params | image3.Params | coron3.Params | tso3.Params,
    until: str | None = None,
    runner: Runner | None = None,
) -> tuple[Observation, Missing | None]:
    """Return the store that the inputs are, or the one they go into with what is still missing in it.

    Parameters
    ----------
    inputs, session, until, runner
        As for :func:`bring_headers`.
    params : Params
        Of the pipeline that wants the exposures; those of image2 calibrate them on their way.

    Raises
    ------
    InputError
        As :func:`bring_headers`, or if two stores are named.
    """
    from streamimg3.formats.names import looks_like_fits

    names = [inputs] if isinstance(inputs, str) else list(inputs)
    if len(names) == 1 and not names[0].lower().endswith((".json", ".yaml", ".yml")) and not looks_like_fits(names[0]):
        obs = Observation.at(names[0], session.storage_options)
        if obs.root() is not None:
            if session.store is not None and normalise(session.store) != obs.url:
                raise InputError(f"the input {obs.url} is a store itself: leave out --store {session.store}")
            obs.require()
            session.hold(obs)
            obs.mend()
            if params.pipeline == "image2":
                session.progress.note("the exposures stay as they are calibrated: give the _rate files to do it again")
            return obs, None
    if params.pipeline == "image2":
        return bring_headers(names, session, params, until, runner)
    kept = _calibrated_members(names, session)
    return (kept, None) if kept is not None else bring_headers(names, session, runner=runner)


def _calibrated_members(names: Sequence[str], session: Session) -> Observation | None:
    """Return the session's store if an association's members are the exposures that image2 has calibrated in it.

    The members' files need not be there then.
    """
    from streamimg3.formats.association import read_table
    from streamimg3.formats.ingest import association_document
    from streamimg3.formats.names import absolute, file_name

    if session.store is None or session.force or len(names) != 1 or not names[0].lower().endswith(".json"):
        return None
    obs = Observation.at(session.store, session.storage_options)
    root = obs.root()
    if root is None or not root.get("ingested") or obs.document(CalibrationDocument) is None:
        return None
    association = read_table(absolute(names[0]), session.storage_options)
    if [file_name(m.url) for m in association.exposures] != [r.filename for r in obs.records()]:
        return None
    for note in association.notes:
        session.progress.note(note)
    session.progress.note(f"the exposures are those that image2 has calibrated in {obs.url}")
    _take_up(obs, association_document(association), None, session)
    return obs
