"""Before a run: what its processes will load, and whether the memory holds all that is to come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from streamimg3.engine import Runner, Task
from streamimg3.engine.budget import MIB, smallest
from streamimg3.errors import BudgetError
from streamimg3.ingestion import Missing
from streamimg3.pipelines import module_of
from streamimg3.products import foreseen
from streamimg3.session import Session, load, load_ingest, load_rates, load_series
from streamimg3.store import Observation

_LOOPS = 64 * MIB  # compiled loops of time series, measured
_ALL_LOOPS = 90 * MIB  # those of all steps
_GROWN = 24 * MIB  # by which a process that does all steps grows from the first to the last

if TYPE_CHECKING:
    from streamimg3.pipelines import coron3, image2, image3, tso3

    Params = image2.Params | image3.Params | coron3.Params | tso3.Params


def loading(session: Session, params: Params) -> Session:
    """Return a session whose processes load no more than the pipeline needs."""
    if params.pipeline == "tso3" and "resample" in params.skip:
        return replace(session, load=load_series)
    return replace(session, load=partial(load, params.pipeline))


def first(runner: Runner, params: Params) -> Callable[[], None]:
    """Return what loads as much as it takes to bring pixels in: calibrating needs few of the loops.

    Those of time series may wait, too, where this process works alone.
    """
    if params.pipeline == "image2":
        return load_rates
    return load_ingest if runner.load is load_series and runner.workers == 1 else runner.load


def _after_loading(tasks: Sequence[Task], runner: Runner, full: Callable[[], None]) -> list[Task]:
    """Return tasks with what the loops take that this process, if it works alone, has not loaded yet."""
    name = "streamimg3.kernels.ready_series" if full is load_series else "streamimg3.kernels.ready"
    more = _LOOPS if runner.workers == 1 and runner.load is not full and name not in sys.modules else 0
    return _with(tasks, more)


def require(
    obs: Observation,
    params: Params,
    missing: Missing | None,
    session: Session,
    runner: Runner,
    full: Callable[[], None],
) -> tuple[Callable[[], None], int]:
    """Refuse a budget that cannot hold what is to come, before a pixel is read.

    Returns what is to be loaded for it, and the smallest budget that works.
    """
    planned = module_of(params.pipeline).plan(obs, params, rough=True)
    products = foreseen(obs, planned.get("resample", []), session)  # for these, growth is foreseen already
    coming = [*missing.means, *missing.tasks] if missing is not None else []
    if params.pipeline == "image2" and not any(planned.values()):
        full = runner.load  # nothing is rectified
    steps = list(chain(*planned.values()))
    grown = [*_with(steps, _GROWN), *products]
    if runner.workers == 1:  # this process does it all
        runner.load()
        # tried: the other pipelines work with the smallest budget that is named without it
        alone = _after_loading(grown if params.pipeline == "image3" else [*steps, *products], runner, full)
        runner.require([*coming, *alone])
        return full, smallest([*coming, *alone])
    try:
        if runner.require([*coming, *steps, *products]).workers == 1:
            runner.require([*coming, *_with(grown, _ALL_LOOPS)])
    except BudgetError:
        full()  # not by estimate, then
        runner.require([*coming, *grown])
    loaded = "streamimg3.kernels.ready" in sys.modules
    return full, smallest([*coming, *(grown if loaded else _with(grown, _ALL_LOOPS))])


def _with(tasks: Sequence[Task], more: int) -> list[Task]:
    """Return tasks that hold so many bytes more."""
    return [replace(t, nbytes=t.nbytes + more, least=t.least + more) for t in tasks]
