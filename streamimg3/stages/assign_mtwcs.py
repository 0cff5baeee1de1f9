"""Follow a moving target: shift every exposure's WCS so that the target stands still (spec image3 §3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from streamimg3.engine import Runner, Task
from streamimg3.engine.receipts import digest
from streamimg3.sky import footprint
from streamimg3.sky.correction import Correction
from streamimg3.store import Observation
from streamimg3.store.documents import AlignedExposure, AlignmentDocument

NAME = "assign_mtwcs"
_CODE = 1
_MEMORY = 24 * 2**20  # a gWCS
_LIBRARIES = 64 * 2**20  # gwcs and asdf


@dataclass(frozen=True)
class Params:
    """The step has no parameters."""


def plan(obs: Observation, params: Params) -> list[Task]:
    """Return one task per exposure: its outline on the sky is worked out again."""
    exposures = obs.exposures(aligned=False)
    return [Task(e.record.name, _MEMORY, _MEMORY, item=e.record.index, libraries=_LIBRARIES) for e in exposures]


def work(task: Task, *, obs: Observation, target: tuple[float, float]) -> tuple[AlignedExposure, ...]:
    """Return the correction and new outline of one exposure.

    Parameters
    ----------
    task : Task
        Its ``item`` is the exposure's index.
    obs : Observation
        The store.
    target : tuple of 2 floats
        Mean position of the target, degrees.
    """
    exposure = obs.exposures(aligned=False)[task.item if isinstance(task.item, int) else task.item[0]]
    ra, dec = exposure.record.mt_ra or 0.0, exposure.record.mt_dec or 0.0
    correction = Correction("moving", shift=(_wrapped(target[0] - ra), target[1] - dec))
    return (
        AlignedExposure("SUCCESS", None, correction, footprint.outline(replace(exposure.wcs, correction=correction))),
    )


def run(obs: Observation, params: Params, runner: Runner) -> AlignmentDocument:
    """Shift all exposures to the mean position of the target, unless that is done already.

    Without MT_RA and MT_DEC in every exposure the step ends as FAILED and no WCS changes.

    Returns
    -------
    AlignmentDocument
        Committed to the store.
    """
    records = obs.records()
    mark = digest(_CODE, NAME, [[r.mt_ra, r.mt_dec, r.checksums.get("wcs")] for r in records])
    kept = obs.document(AlignmentDocument)
    if kept is not None and kept.digest == mark:
        runner.progress.note(f"{NAME}: unchanged, kept")
        return kept
    missing = [r.filename for r in records if r.mt_ra is None or r.mt_dec is None]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        reason = f"{missing[0]}{more}: no MT_RA, MT_DEC, so the moving target is not followed and will be smeared"
        lost = tuple(AlignedExposure("FAILED", reason) for _ in records)
        document = AlignmentDocument(mark, NAME, "FAILED", reason, exposures=lost)
    else:
        target = mean_position([(r.mt_ra or 0.0, r.mt_dec or 0.0) for r in records])
        zero: tuple[AlignedExposure, ...] = ()
        moved = runner.fold(partial(work, obs=obs, target=target), plan(obs, params), zero, stage=NAME)
        document = AlignmentDocument(mark, NAME, exposures=moved, target=target)
    runner.progress.note(f"{NAME}: {_summary(document)}")
    obs.commit(document)
    return document


def mean_position(places: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the plain mean of right ascensions and declinations (degrees); 359 and 1 degree are 2 degrees apart.

    Examples
    --------
    >>> mean_position([(359.0, 1.0), (2.0, 3.0)])
    (0.5, 2.0)
    """
    first = places[0][0]
    ra = float(np.mean([a - 360.0 * round((a - first) / 360.0) for a, _ in places]))
    return ra if 0.0 <= ra < 360.0 else ra % 360.0, float(np.mean([dec for _, dec in places]))


def _wrapped(angle: float) -> float:
    """The same difference of angles between -180 and 180 degrees; unchanged to the last bit if it lies there."""
    return angle if -180.0 <= angle <= 180.0 else (angle + 180.0) % 360.0 - 180.0


def _summary(document: AlignmentDocument) -> str:
    if document.target is None:
        return f"{document.status}: {document.reason}"
    largest = max(
        (math.hypot(e.correction.shift[0] * math.cos(math.radians(document.target[1])), e.correction.shift[1])
         for e in document.exposures if e.correction), default=0.0,
    )  # fmt: skip
    ra, dec = document.target
    return f"{len(document.exposures)} exposures follow the target to {ra:.6f} {dec:+.6f}, by up to {3600 * largest:.3f} arcsec"
