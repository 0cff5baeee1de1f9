"""The record of a run: what went in, with what parameters, where, and what came out; and doing it again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from streamimg3.engine import Runner, Task
from streamimg3.errors import InputError
from streamimg3.geometry import Box, TileGrid
from streamimg3.parameter_table import Origins
from streamimg3.session import Session
from streamimg3.store import Observation
from streamimg3.store.backend import normalise
from streamimg3.store.documents import (
    AssociationDocument,
    CatalogDocument,
    OutlierDocument,
    ProvenanceDocument,
    ResampleDocument,
    RunDocument,
    RunInput,
    utc_now,
)

_PACKAGES = ("numpy", "scipy", "numba", "astropy", "gwcs", "asdf", "zarr", "xarray", "drizzle")
_SIDE = 1024  # pixels of a block that is hashed by itself
_Sums = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Order:
    """What a run was asked to do: pipeline, inputs, parameters as given and where they came from, the last step."""

    pipeline: str
    inputs: tuple[str, ...]
    settings: Mapping[str, Mapping[str, Any]]
    origins: Origins
    until: str | None
    started: str


def record(
    obs: Observation, order: Order, parameters: Mapping[str, Mapping[str, Any]], session: Session, runner: Runner,
    products: Sequence[str],
) -> str:  # fmt: skip
    """Keep the record of a run in the store and beside its products.

    Parameters
    ----------
    obs : Observation
        The store after the run.
    order : Order
        What was asked.
    parameters : mapping
        The effective parameters by step.
    session : Session
        How it was carried out.
    runner : Runner
        Computes the checksums of the results.
    products : sequence of str
        What was written.

    Returns
    -------
    str
        Path or URL of ``<product>_run.json``.
    """
    from streamimg3.formats.catalog import product_url
    from streamimg3.formats.publish import open_product

    memory = None if session.memory is None else str(session.memory)
    document = ProvenanceDocument(
        pipeline=order.pipeline, arguments=order.inputs, until=order.until, started=order.started, finished=utc_now(),
        store=obs.url, output_dir=normalise(session.output_dir), memory=memory, workers=session.workers,
        offline=session.offline, references=session.references, host=host(), versions=versions(), inputs=_inputs(obs),
        settings=_plain(order.settings), parameters=_plain(parameters), origins=_plain(order.origins),
        results=results(obs, runner), products=tuple(products),
    )  # fmt: skip
    before = obs.document(ProvenanceDocument)
    if before is None or replace(before, started="", finished="") != replace(document, started="", finished=""):
        obs.commit(document)
    url = product_url(obs, session.output_dir, "run.json")
    with open_product(url, session.storage_options) as sink:
        sink.write(document.to_json())
    return url


def _plain(tree: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The values as JSON gives them back."""
    plain: dict[str, Any] = json.loads(json.dumps({k: dict(v) for k, v in tree.items()}, default=str))
    return plain


def host() -> dict[str, str]:
    """Return what is worth knowing of this machine.

    Module ``platform`` starts a program to find out, which for a moment counts as a second process of this one's size.
    """
    system, node, release, _, machine = os.uname()
    return {
        "machine": node, "system": f"{system}-{release}", "processor": machine, "processors": str(os.cpu_count() or 1),
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and what its numbers depend on."""
    from streamimg3 import __version__

    found = {"streamimg3": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _inputs(obs: Observation) -> tuple[RunInput, ...]:
    """The exposures with the SHA-256 of their pixels and WCS as they came in, and the other members."""
    found = [RunInput(r.url, "science", dict(r.checksums)) for r in obs.records()]
    association = obs.document(AssociationDocument)
    others = [m for m in association.members if m.exptype.lower() != "science"] if association else []
    return (*found, *(RunInput(m.url, m.exptype) for m in others))


# ---------------------------------------------------------------- results
def results(obs: Observation, runner: Runner) -> dict[str, str]:
    """Return the SHA-256 of every array of the last run's results, by path; those that are unchanged are not read again.

    An array's is that of the digests of its blocks of 1024 x 1024 pixels (little-endian, in order), so that it needs little
    memory; a table's columns are one block each.
    """
    wanted = _marks(obs)
    before = obs.document(ProvenanceDocument)
    kept = before.results if before is not None else {}
    made = {path: kept[key] for path, mark in wanted.items() if (key := f"{path}@{mark}") in kept}
    missing = [path for path in wanted if path not in made]
    if missing:
        need = 4 * _SIDE * _SIDE * 8
        tasks = [Task(path, need, need) for path in missing]
        none: _Sums = ()
        made |= dict(runner.fold(partial(_sum_work, obs=obs), tasks, none, "checksums"))
    return {f"{path}@{mark}": made[path] for path, mark in wanted.items()}


def _marks(obs: Observation) -> dict[str, str]:
    """The arrays of the results, and the digest under which each was made."""
    run = obs.document(RunDocument)
    found: dict[str, str] = {}
    for name in run.mosaics if run else ():
        mosaic = obs.document(ResampleDocument, name)
        if mosaic is not None:
            found |= {f"{mosaic.path}/{plane}": mosaic.digest[:12] for plane in mosaic.planes}
    outliers = obs.document(OutlierDocument)
    if outliers is not None and outliers.status == "COMPLETE":
        found |= dict.fromkeys(sorted({f"{e.group}/outlier" for e in obs.exposures(False)}), outliers.digest[:12])
    catalog = obs.document(CatalogDocument)
    if catalog is not None and catalog.sources:
        found |= {f"catalog/{c.name}": catalog.digest[:12] for c in catalog.columns}
        mosaic = obs.document(ResampleDocument)
        if catalog.segmentation and mosaic is not None:
            found[f"{mosaic.path}/segmentation"] = catalog.digest[:12]
    return {path: mark for path, mark in found.items() if obs.backend.get(f"{path}/zarr.json") is not None}


def _sum_work(task: Task, *, obs: Observation) -> _Sums:
    """Hash one array."""
    return ((task.key, array_sum(obs, task.key)),)


def array_sum(obs: Observation, path: str) -> str:
    """Return the SHA-256 of an array of a store; see :func:`results`."""
    array = obs.array(path)
    whole = hashlib.sha256()
    if array.ndim == 1:
        return hashlib.sha256(np.ascontiguousarray(array[...]).tobytes()).hexdigest()
    for lead in np.ndindex(array.shape[:-2]):
        for tile in TileGrid(array.shape[-2:], _SIDE):
            pixels = np.ascontiguousarray(obs.window(path, tuple(int(n) for n in lead), Box(*tile.box.as_tuple())))
            whole.update(hashlib.sha256(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).data).digest())
    return whole.hexdigest()


# ---------------------------------------------------------------- again
def read_record(url: str, options: Mapping[str, str]) -> ProvenanceDocument:
    """Read a run's record.

    Raises
    ------
    InputError
        If there is no such file, or it is no record.
    StoreError
        If it is damaged, or newer than this software.
    """
    from streamimg3.formats.local_copy import read_text

    text = read_text(url, options)
    try:
        known = json.loads(text)["schema"].startswith("streamimg3/")
    except (ValueError, KeyError, TypeError, AttributeError):
        known = False
    if not known:
        raise InputError(f"{url} is not the record of a run: give the <product>_run.json that one has left")
    return ProvenanceDocument.from_json(text.encode(), url)


def differences(before: ProvenanceDocument, after: ProvenanceDocument) -> list[str]:
    """Return what is different between two runs: inputs first, for other inputs explain other results.

    Examples
    --------
    >>> one, two = ({"mosaic/sci@1": "a"}, {"mosaic/sci@1": "b"})
    >>> differences(ProvenanceDocument(results=one), ProvenanceDocument(results=two))
    ['mosaic/sci differs']
    """
    told = []
    known = {i.url: i.checksums for i in after.inputs}
    for given in before.inputs:
        if given.url not in known:
            told.append(f"{given.url} is missing")
        elif given.checksums != known[given.url]:
            told.append(f"{given.url} has changed: {', '.join(_changed(given.checksums, known[given.url]))}")
    return told + [f"{path} differs" for path in _changed(_by_path(before.results), _by_path(after.results))]


def _by_path(sums: Mapping[str, str]) -> dict[str, str]:
    return {key.partition("@")[0]: value for key, value in sums.items()}


def _changed(one: Mapping[str, str], other: Mapping[str, str]) -> Iterable[str]:
    return [key for key in dict.fromkeys((*one, *other)) if one.get(key) != other.get(key)]


def version_notes(before: ProvenanceDocument) -> list[str]:
    """Return which packages have another version now than they had then."""
    now = versions()
    return [
        f"{name} was {old}, is {now.get(name, 'not installed')}"
        for name, old in before.versions.items()
        if now.get(name) != old
    ]


def command_of(document: ProvenanceDocument) -> str:
    """Return a command line that does the same.

    Examples
    --------
    >>> command_of(ProvenanceDocument(pipeline="image3", arguments=("asn.json",), settings={"resample": {"pixfrac": 0.8}}))
    'streamimg3 run image3 asn.json --set resample.pixfrac=0.8'
    """
    parts = ["streamimg3", "run", document.pipeline, *document.arguments]
    for step, values in document.settings.items():
        parts += [text for name, value in values.items() for text in ("--set", f"{step}.{name}={_argument(value)}")]
    return shlex.join(parts)


def _argument(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def check_same_place(document: ProvenanceDocument, store: str) -> None:
    """Refuse to do a run again in the store that it is compared with."""
    if normalise(store) == document.store:
        raise InputError(f"{store} is the store of the run itself: give another --output-dir or --store")
