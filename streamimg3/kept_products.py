"""Products that a run wrote are kept by the next one if nothing they are made from, nor the file itself, has changed.

So a run that is stopped while it writes goes on where it was, and one that changes the catalogue alone writes no exposure again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from streamimg3.engine import Runner, Task
from streamimg3.engine.receipts import digest
from streamimg3.formats.local_copy import exists, file_mark
from streamimg3.provenance import versions
from streamimg3.session import Session
from streamimg3.store import Observation
from streamimg3.store.backend import normalise

Made = tuple[tuple[str, str], ...]  # kind and URL
Work = Callable[[Task], Made]

_CODE = 2  # raised when products of the same results become others
_FOLDER = "receipts/export"
_ABOUT_RUNS = ("run", "provenance", "qa", "overviews")  # documents that no product depends on
_CATALOG = "catalog"  # one on which these products alone depend
_OF_CATALOG = ("segm",)
_ASKED = 16  # files at a time: those in an object store answer slowly


@dataclass(frozen=True)
class Written:
    """Products of a run: those made, and which of them lay there already."""

    made: Made
    kept: frozenset[str]

    def urls(self, kinds: Sequence[str]) -> list[str]:
        """Return them in the order of their kinds."""
        return [url for kind in kinds for k, url in self.made if k == kind]

    def tell(self, session: Session, urls: Sequence[str]) -> None:
        """Say what was written."""
        if self.kept:
            count = len(self.kept)
            session.progress.note(f"export: {count} file{'s' * (count > 1)} unchanged, kept")
        for url in urls:
            if url not in self.kept:
                session.progress.note(f"wrote {url}")


def write_products(
    obs: Observation, session: Session, runner: Runner, work: Work, tasks: Sequence[Task], statuses: Mapping[str, str]
) -> Written:
    """Write products, one or more for each task, several at a time.

    Parameters
    ----------
    obs : Observation
        The store. While a run holds it, it is noted there what was written from what; an export by itself writes all.
    session : Session
        Where they go.
    runner : Runner
        Who does the work.
    work : callable
        Writes the products of a task; travels to workers.
    tasks : sequence of Task
        Their keys begin with the kind of the product.
    statuses : mapping
        How the steps ended, as headers tell it.
    """
    none: Made = ()
    if not session.holds(obs):
        return Written(runner.fold(work, tasks, none, "export") if tasks else none, frozenset())
    options = dict(session.storage_options)
    marks = _marks(obs, session.output_dir, statuses)
    for name in obs.backend.keys(_FOLDER):
        if name not in marks.values():
            obs.backend.remove_tree(f"{_FOLDER}/{name}")
    receipts = {task.key: f"{_FOLDER}/{marks[_is_of_catalog(task)]}/{task.key}" for task in tasks}
    done = {f"{_FOLDER}/{mark}/{key}" for mark in set(marks.values()) for key in obs.backend.keys(f"{_FOLDER}/{mark}")}
    known = {key: path for key, path in receipts.items() if path in done}
    with ThreadPoolExecutor(max_workers=_ASKED) as pool:
        before = dict(zip(known, pool.map(lambda path: _unchanged(obs, path, options), known.values()), strict=True))
    todo = [task for task in tasks if not before.get(task.key)]
    noted = partial(_noted, work=work, obs=obs, receipts=receipts, options=options)
    fresh = runner.fold(noted, todo, none, "export") if todo else none
    kept = tuple(product for made in before.values() for product in made)
    return Written(kept + fresh, frozenset(url for _, url in kept))


def _marks(obs: Observation, destination: str, statuses: Mapping[str, str]) -> dict[bool, str]:
    """What products are made from: without the catalogue, and with it."""
    names = sorted(key for key in obs.backend.keys("documents") if key.removesuffix(".json") not in _ABOUT_RUNS)
    texts = {name: hashlib.sha256(obs.backend.get(f"documents/{name}") or b"").hexdigest() for name in names}
    catalog = texts.pop(f"{_CATALOG}.json", "")
    files = obs.require()["ingest"]  # which came in, and when they were changed: their headers go into products too
    mark = digest(_CODE, versions(), normalise(destination), dict(statuses), texts, files)
    return {False: mark, True: digest(mark, catalog)}


def _is_of_catalog(task: Task) -> bool:
    return task.key.startswith(_OF_CATALOG)


def _unchanged(obs: Observation, path: str, options: Mapping[str, str]) -> Made:
    """Products of a receipt, if all lie there as they were written."""
    data = obs.backend.get(path)
    try:
        rows = [(str(kind), str(url), str(mark)) for kind, url, mark in json.loads(data or b"[]")]
    except (ValueError, TypeError):
        return ()
    there = all(exists(url, options) and file_mark(url, options) == mark for _, url, mark in rows)
    return tuple((kind, url) for kind, url, _ in rows) if there else ()


def _noted(
    task: Task, *, work: Work, obs: Observation, receipts: Mapping[str, str], options: Mapping[str, str]
) -> Made:
    """Write the products of a task and what tells them from other files."""
    made = work(task)
    rows = [(kind, url, file_mark(url, options)) for kind, url in made]
    obs.backend.put(receipts[task.key], json.dumps(rows).encode())
    return made
