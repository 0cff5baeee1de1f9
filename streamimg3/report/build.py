"""The report of a store: which sections a pipeline has, and all of them put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from streamimg3.errors import InputError
from streamimg3.report.page import Page, html
from streamimg3.report.qa import Section, worst
from streamimg3.report.sections import run, series
from streamimg3.report.sections.alignment import alignment
from streamimg3.report.sections.background import background
from streamimg3.report.sections.catalog import catalog
from streamimg3.report.sections.coronagraphy import contrast, references, subtraction
from streamimg3.report.sections.mosaic import mosaic
from streamimg3.report.sections.outliers import outliers
from streamimg3.report.viewer import SIZE, viewer_html
from streamimg3.store import Observation
from streamimg3.store.documents import AssociationDocument, QaDocument, RunDocument, utc_now

Part = Callable[[Observation], Section | None]

# What the report of each pipeline shows, in this order, between the steps and the parameters; a pipeline that is not
# listed gets the sections of whatever its store holds
SECTIONS: Mapping[str, Sequence[Part]] = {
    "image3": (alignment, background, outliers, mosaic, catalog),
    "image2": (),
    "coron3": (outliers, references, subtraction, mosaic, contrast),
    "tso3": (outliers, series.photometry, series.white_light, series.spectra, mosaic),
}


def report(obs: Observation, size: int = SIZE) -> tuple[str, QaDocument]:
    """Return the report of a store as one self-contained page, and the same in numbers.

    Parameters
    ----------
    obs : Observation
        A finished store.
    size : int
        Pixels along the longest side of the mosaic in it.

    Returns
    -------
    html : str
        The page.
    qa : QaDocument
        Every judgement with its value and rule.

    Raises
    ------
    InputError
        If no pipeline has run on the store.
    """
    last = obs.document(RunDocument)
    if last is None:
        raise InputError(f"{obs.url}: no pipeline has run on it, so there is nothing to report: run image3 first")
    parts: Sequence[Part] = (run.steps, *SECTIONS.get(last.pipeline, SECTIONS["image3"]), run.costs, run.parameters)
    sections = tuple(s for part in parts if (s := part(obs)) is not None)
    checks = tuple(c for s in sections for c in s.checks)
    association = obs.document(AssociationDocument)
    qa = QaDocument(
        product=association.product if association else "", store=obs.url, made=utc_now(), pipeline=last.pipeline,
        status=worst(checks), steps=last.statuses, reasons=last.reasons, checks=checks,
    )  # fmt: skip
    return html(Page(qa, sections, viewer_html(obs, size))), qa
