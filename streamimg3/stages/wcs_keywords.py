"""Outlines and FITS-SIP keywords of exposures whose WCS was corrected (spec image3 §4.6)."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from functools import partial

from streamimg3.engine import Outcome, Runner, Task
from streamimg3.sky import footprint
from streamimg3.sky.sip import NoApproximation, SipOptions, sip_keywords
from streamimg3.stages.star_lists import number_card
from streamimg3.store import Exposure, Observation
from streamimg3.store.documents import AlignedExposure, AlignmentDocument, revive

_MEMORY = 32 * 2**20  # a gWCS and its polynomial fits
_LIBRARIES = 64 * 2**20  # gwcs and asdf


@dataclass(frozen=True)
class Fresh:
    """What follows from the corrected WCS of an exposure."""

    index: int
    s_region: str
    sip: dict[str, str | int | float]
    notes: tuple[str, ...]


def refreshed(
    obs: Observation, document: AlignmentDocument, sip: SipOptions | None, mark: str, runner: Runner, cost: Outcome
) -> AlignmentDocument:
    """Return a document with the outlines and keywords of its corrected exposures; they are worked out in tasks.

    Parameters
    ----------
    obs : Observation
        The store.
    document : AlignmentDocument
        With corrections.
    sip : SipOptions or None
        How well FITS-SIP keywords must fit; None = they are not refreshed.
    mark : str
        Digest of the stage.
    runner : Runner
        Carries out the tasks and is told what went wrong.
    cost : Outcome
        What it takes is added here.
    """
    chosen = [i for i, e in enumerate(document.exposures) if e.correction is not None]
    if not chosen:
        return document
    names = [r.name for r in obs.records()]
    tasks = [Task(f"wcs-{names[i]}", _MEMORY, _MEMORY, item=i, libraries=_LIBRARIES) for i in chosen]
    draft = f"scratch/tweakreg-{mark}.json"
    obs.backend.put(draft, json.dumps([dataclasses.asdict(e) for e in document.exposures]).encode())
    zero: tuple[Fresh, ...] = ()
    found = runner.fold(partial(refresh, obs=obs, draft=draft, sip=sip), tasks, zero, "tweakreg-wcs", cost)
    obs.backend.remove([draft])
    entries, notes = list(document.exposures), list(document.notes)
    for fresh in found:
        entries[fresh.index] = dataclasses.replace(entries[fresh.index], s_region=fresh.s_region, sip=fresh.sip)
        for note in fresh.notes:
            notes.append(f"{names[fresh.index]}: {note}")
            runner.progress.note(f"tweakreg: {notes[-1]}")
    return dataclasses.replace(document, exposures=tuple(entries), notes=tuple(notes))


def refresh(task: Task, *, obs: Observation, draft: str, sip: SipOptions | None) -> tuple[Fresh, ...]:
    """Work out the outline and the FITS-SIP keywords of one corrected exposure.

    Parameters
    ----------
    task : Task
        Its ``item`` is the exposure's index.
    obs : Observation
        The store.
    draft : str
        Where the corrections of all exposures are noted.
    sip : SipOptions or None
        How well the keywords must fit; None = none are made.
    """
    index = task.item if isinstance(task.item, int) else task.item[0]
    exposure = dataclasses.replace(_exposures(obs, draft)[index], aligned=_drafted(obs, draft)[index])
    region = footprint.outline(exposure.wcs)
    if sip is None or exposure.record.wcs_kind != "gwcs":  # a FITS header carries its correction itself
        return (Fresh(index, region, {}, ()),)
    cards = exposure.cards("sci")
    x, y = number_card(cards, "CRPIX1"), number_card(cards, "CRPIX2")
    try:
        keywords, told = sip_keywords(exposure.wcs, None if x is None or y is None else (x, y), sip)
    except NoApproximation as error:
        return (Fresh(index, region, {}, (f"FITS-SIP keywords are not refreshed: {error}",)),)
    return (Fresh(index, region, keywords, told),)


@functools.lru_cache(maxsize=2)
def _exposures(obs: Observation, draft: str) -> tuple[Exposure, ...]:
    return obs.exposures(aligned=False)


@functools.lru_cache(maxsize=2)
def _drafted(obs: Observation, draft: str) -> tuple[AlignedExposure, ...]:
    found: tuple[AlignedExposure, ...] = revive(
        tuple[AlignedExposure, ...], json.loads(obs.backend.get(draft) or b"[]")
    )
    return found
