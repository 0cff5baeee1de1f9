"""Measure how faint a companion could be seen in the combined images (spec others §3.7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from streamimg3.engine import Outcome, Runner, Task
from streamimg3.engine.receipts import digest
from streamimg3.errors import InputError
from streamimg3.geometry import Box
from streamimg3.kernels.contrast import contrast_curve
from streamimg3.store import Observation
from streamimg3.store.coron_documents import Contrast, ContrastDocument
from streamimg3.store.documents import (
    ResampleDocument,
    StageCost,
    plain,
    utc_now,
)

NAME = "hlsp"
_CODE = 1  # raised when the numbers a given input leads to change
_PIXEL = 48  # bytes per pixel of a mosaic: image, distances, rings, values
_REST = 8 * 2**20
Curves = tuple[Contrast, ...]


@dataclass(frozen=True)
class Params:
    """Parameters of the hlsp step: names, meaning and defaults of jwst 3.0.0.

    Parameters
    ----------
    annuli_width : int
        Width of a ring in pixels.

    Raises
    ------
    InputError
        If it is not positive.
    """

    annuli_width: int = 2

    def __post_init__(self) -> None:
        if self.annuli_width < 1:
            raise InputError(f"{NAME}.annuli_width = {self.annuli_width}: it must be 1 or more")


def tasks(shapes: Sequence[tuple[int, int]]) -> list[Task]:
    """Return one task for each mosaic of a shape."""
    made = []
    for number, (ny, nx) in enumerate(shapes):
        need = ny * nx * _PIXEL + _REST
        made.append(Task(f"c{number:04d}", need, need, (("sci", (0, 0, ny, nx)),), item=number))
    return made


def work(task: Task, *, obs: Observation, names: tuple[str, ...], width: int) -> Curves:
    """Return the contrast curve of one mosaic."""
    name = names[task.item if isinstance(task.item, int) else task.item[0]]
    document = obs.document(ResampleDocument, name)
    if document is None:
        raise InputError(f"{obs.url} holds no finished mosaic '{name}': run resample first")
    image = obs.window(f"{document.path}/sci", (), Box(0, 0, *document.shape))
    curve = contrast_curve(image, width)  # type: ignore[arg-type]
    sigma = tuple(None if math.isnan(s) else s for s in map(float, curve.sigma))
    return (Contrast(name, tuple(map(float, curve.radius)), sigma),)


def run(obs: Observation, params: Params, runner: Runner, names: Sequence[str]) -> ContrastDocument:
    """Measure the noise in rings of some mosaics unless the store holds the same curves already.

    Parameters
    ----------
    obs : Observation
        A store with finished mosaics.
    params : Params
        The step's parameters.
    runner : Runner
        Who does the work.
    names : sequence of str
        Documents of the mosaics.
    """
    mosaics = [obs.document(ResampleDocument, name) for name in names]
    mark = digest(_CODE, params.annuli_width, [(m.path, m.digest) for m in mosaics if m is not None])
    kept = obs.document(ContrastDocument)
    if kept is not None and kept.digest == mark:
        runner.progress.note(f"{NAME}: unchanged, kept")
        return kept
    cost, none = Outcome(), ()
    wanted = tasks([m.shape for m in mosaics if m is not None])
    measure = partial(work, obs=obs, names=tuple(names), width=params.annuli_width)
    curves: Curves = runner.fold(measure, wanted, none, NAME, cost)
    document = ContrastDocument(
        digest=mark, made=utc_now(), parameters=plain(params), curves=curves, cost=StageCost.of(cost)
    )
    obs.commit(document)
    return document
