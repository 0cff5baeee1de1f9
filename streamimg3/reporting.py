"""The report of a store, written beside the products: by itself, or at the end of a run within its memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from streamimg3.engine import Runner, Task
from streamimg3.engine.budget import MIB
from streamimg3.errors import BudgetError, TaskError
from streamimg3.session import Session
from streamimg3.store import Observation
from streamimg3.store.coron_documents import KlipDocument
from streamimg3.store.documents import ResampleDocument

_PIXEL = 48  # bytes per pixel of the picture while it is stretched and packed, measured
_REST = 72 * MIB  # star lists, catalogue, pages as text
_RINGS = 8  # images of float64 that measuring rings takes beside those that are measured
_LIBRARIES = 64 * MIB  # gwcs and asdf
SMALLEST, LARGEST = 600, 2400  # pixels along the longest side of the picture


@dataclass(frozen=True)
class Report:
    """What was written: the page, the numbers, and the worst judgement."""

    page: str
    numbers: str
    status: str


def write_report(obs: Observation, destination: str, options: Mapping[str, str], size: int = LARGEST) -> Report:
    """Write the report of a store and ``qa.json`` beside it.

    Parameters
    ----------
    obs : Observation
        The store.
    destination : str
        Folder, or path or URL ending in ``.html``.
    options : mapping of str to str
        Storage options.
    size : int
        Pixels along the longest side of the mosaic in it.

    Raises
    ------
    InputError
        If no pipeline has run on the store.
    """
    from streamimg3.formats.catalog import product_url
    from streamimg3.formats.publish import open_product
    from streamimg3.report.build import report

    page, qa = report(obs, size)
    url = product_url(obs, destination, "report.html")
    numbers = f"{url.removesuffix('.html').removesuffix('_report')}_qa.json"
    for target, data in ((url, page.encode("utf-8")), (numbers, qa.to_json())):
        with open_product(target, options) as sink:
            sink.write(data)
    return Report(url, numbers, qa.status)


def report_of_run(obs: Observation, session: Session, runner: Runner) -> Report | None:
    """Write the report at the end of a run as one of its tasks; where the memory is too small, say how to get it later."""
    from streamimg3.report.picture import shown_mosaic

    mosaic = shown_mosaic(obs)
    rest = _REST + _averages(obs)
    task = Task("report", rest + _need(LARGEST, mosaic), rest + _need(SMALLEST, mosaic), libraries=_LIBRARIES)
    work = partial(
        _work, obs=obs, destination=session.output_dir, options=dict(session.storage_options),
        mosaic=mosaic.shape if mosaic else (0, 0), rest=rest,
    )  # fmt: skip
    none: tuple[Report, ...] = ()
    try:
        (made,) = runner.fold(work, [task], none, "report")
    except BudgetError:
        session.progress.note(f"no report within this memory: streamimg3 report {obs.url} writes it")
        return None
    except TaskError as error:  # the results are there and named; a picture of them that fails must not hide that
        session.progress.note(f"no report: {error}; streamimg3 report {obs.url} tries again")
        return None
    session.progress.note(f"report {made.page} ({made.status})")
    return made


def _need(size: int, mosaic: ResampleDocument | None) -> int:
    """Bytes of the picture of a mosaic."""
    if mosaic is None:
        return 0
    ny, nx = mosaic.shape
    factor = max(1, math.ceil(max(ny, nx) / size))
    return ny * nx // factor**2 * _PIXEL


def _averages(obs: Observation) -> int:
    """Bytes of the images of a star before and after its subtraction, averaged, and of their rings."""
    document = obs.document(KlipDocument)
    if document is None:
        return 0
    return max(math.prod(r.shape) for r in obs.records()) * 8 * (_RINGS + len(document.truncate))


def _work(
    task: Task, *, obs: Observation, destination: str, options: dict[str, str], mosaic: tuple[int, int], rest: int
) -> tuple[Report, ...]:
    """Write the report with a picture as large as the memory allows."""
    import gwcs  # noqa: F401 (before memory is counted)

    pixels = max(1, (task.limit - rest) // _PIXEL)
    longest = max(mosaic)
    area = mosaic[0] * mosaic[1]
    fits = int(longest * math.sqrt(pixels / area)) if area else SMALLEST
    return (write_report(obs, destination, options, max(SMALLEST, min(LARGEST, fits))),)
