"""How the steps ended and why, what they were told, and what they took."""

from __future__ import annotations

import json
from typing import Any

from streamimg3.report.picture import shown_mosaic
from streamimg3.report.qa import Figure, Judge, Section, Table
from streamimg3.report.svg import Axis, Plot
from streamimg3.store import Observation
from streamimg3.store.coron_documents import AlignRefsDocument, ContrastDocument, KlipDocument
from streamimg3.store.documents import (
    AlignmentDocument,
    CatalogDocument,
    Document,
    OutlierDocument,
    ProvenanceDocument,
    ResampleDocument,
    RunDocument,
    SkyDocument,
    StageCost,
)
from streamimg3.store.series_documents import LightCurveDocument, PhotometryDocument, SpectraDocument

_DOCUMENTS: dict[str, type[Document]] = {
    "assign_mtwcs": AlignmentDocument,
    "tweakreg": AlignmentDocument,
    "skymatch": SkyDocument,
    "outlier_detection": OutlierDocument,
    "resample": ResampleDocument,
    "source_catalog": CatalogDocument,
    "align_refs": AlignRefsDocument,
    "klip": KlipDocument,
    "hlsp": ContrastDocument,
    "tso_photometry": PhotometryDocument,
    "extract_1d": SpectraDocument,
    "white_light": LightCurveDocument,
}
MIB = 2**20


def steps(obs: Observation) -> Section:
    """Return how each step ended."""
    run = obs.document(RunDocument)
    judge = Judge("steps")
    for step, status in (run.statuses if run else {}).items():
        reason = run.reasons.get(step, "") if run else ""
        by_user = reason == "by the user" or reason.startswith("unless asked for")
        level = {"COMPLETE": "pass", "SKIPPED": "info" if by_user else "warn", "FAILED": "fail"}.get(status, "warn")
        judge.status(
            step, level, f"{status}{': ' + reason if reason else ''}", "pass COMPLETE, warn SKIPPED, fail FAILED"
        )
    if run is None:
        judge.status("run", "warn", "no pipeline has run on this store")
    notes = _of_exposures(obs)
    for step in _DOCUMENTS:
        document: Any = _document(obs, step)
        if document is not None and step in (run.statuses if run else {}):
            notes += [(step, note) for note in getattr(document, "notes", ())]
    tables = (Table(("of", "note"), tuple(notes[:200]), "What was noted"),) if notes else ()
    return Section("steps", "Steps", "", tuple(judge.checks), (), tables)


def _document(obs: Observation, step: str) -> Document | None:
    """Return what a step left; of several mosaics, the one that the report shows."""
    if step == "resample":
        return shown_mosaic(obs)
    return obs.document(_DOCUMENTS[step]) if step in _DOCUMENTS else None


def _of_exposures(obs: Observation) -> list[tuple[str, str]]:
    """What was noted of exposures when they came in; of many the same only once."""
    names: dict[str, list[str]] = {}
    for record in obs.records():
        for note in record.notes:
            names.setdefault(note, []).append(record.name)
    return [(of[0] if len(of) == 1 else f"{len(of)} exposures", note) for note, of in names.items()]


def costs(obs: Observation) -> Section | None:
    """Return memory and time of each stage."""
    run = obs.document(RunDocument)
    found: list[tuple[str, StageCost]] = []
    for step in run.statuses if run else ():
        document: Any = _document(obs, step)
        if document is not None and document.cost.wall_s > 0:
            found.append((step, document.cost))
    if not found:
        return None
    rows = tuple(
        (
            step, f"{c.wall_s:.1f}", f"{c.cpu_s:.1f}", f"{c.peak_rss / MIB:.0f}", str(c.tasks_done), str(c.tasks_kept),
            ", ".join(f"{k} {v:.1f}" for k, v in c.split.items()),
        )
        for step, c in found
    )  # fmt: skip
    provenance = obs.document(ProvenanceDocument)
    judge = Judge("cost")
    peak = max(c.peak_rss for _, c in found) / MIB
    budget = _mib(provenance.memory) if provenance and provenance.memory else None
    if budget:
        judge.at_most("peak memory of all stages", peak, budget, budget * 1.001, "MiB", f"declared {budget:.0f} MiB")
    else:
        judge.told("peak memory of all stages", peak, "MiB")
    judge.told("processor time", sum(c.cpu_s for _, c in found), "s", "when the steps last did something")
    head = ("step", "wall s", "processor s", "peak MiB", "tasks", "kept", "of these, seconds")
    plot = Plot(Axis("step", whole=True), Axis("seconds"))
    order = list(range(1, len(found) + 1))
    plot.bars([n - 0.2 for n in order], [c.wall_s for _, c in found], "wall", "#94a3b8", [s for s, _ in found], 0.38)
    plot.bars(
        [n + 0.2 for n in order], [c.cpu_s for _, c in found], "processor", titles=[s for s, _ in found], width=0.38
    )
    memory = Plot(Axis("step", whole=True), Axis("peak memory, MiB"))
    memory.bars(order, [c.peak_rss / MIB for _, c in found], titles=[s for s, _ in found], width=0.6)
    if budget:
        memory.line([0.5, len(found) + 0.5], [budget, budget], "declared", "#db2777", "5 4")
    told = ", ".join(f"{n} {step}" for n, (step, _) in zip(order, found, strict=True))
    figures = (Figure("Time", plot.svg(), told), Figure("Memory", memory.svg(), told))
    return Section("cost", "Memory and time", "", tuple(judge.checks), figures, (Table(head, rows),))


def _mib(text: str) -> float | None:
    """MiB of an amount such as ``1GiB`` or a number of bytes."""
    units = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}
    word = text.strip().lower().rstrip("b") + ("b" if text.strip().lower().endswith("b") else "")
    for unit, size in units.items():
        if word.endswith(unit):
            return float(word.removesuffix(unit)) * size / MIB
    return float(word) / MIB if word.replace(".", "").isdigit() else None


def parameters(obs: Observation) -> Section | None:
    """Return the parameters of the last run and where each came from."""
    provenance = obs.document(ProvenanceDocument)
    if provenance is None:
        return None
    changed: list[tuple[str, ...]] = []
    rest: list[tuple[str, ...]] = []
    for step, values in provenance.parameters.items():
        for name, value in values.items():
            origin = provenance.origins.get(step, {}).get(name, "default")
            row = (step, name, _text(value), origin)
            (rest if origin == "default" else changed).append(row)
    head = ("step", "parameter", "value", "origin")
    tables = (Table(head, tuple(changed), "Set by the user"),) if changed else ()
    from streamimg3.report.page import table_html

    folded = f"<details><summary>{len(rest)} defaults</summary>{table_html(Table(head, tuple(rest)))}</details>"
    facts = [("pipeline", provenance.pipeline), ("started", provenance.started), ("finished", provenance.finished)]
    facts += [*provenance.host.items(), *provenance.versions.items()]
    facts += [("inputs", f"{len(provenance.inputs)} files, with SHA-256 in the run's record")]
    about = Table(("what", "value"), tuple((k, str(v)) for k, v in facts), "The run")
    return Section("parameters", "Parameters and provenance", "", (), (), (*tables, about), folded)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
