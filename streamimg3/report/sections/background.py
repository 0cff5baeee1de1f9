"""Sky levels: by how much overlapping exposures differ before and after."""

from __future__ import annotations

import math

import numpy as np

from streamimg3.report.qa import Figure, Judge, Section, Table
from streamimg3.report.svg import Axis, Plot, show
from streamimg3.store import Observation
from streamimg3.store.documents import SkyDocument


def background(obs: Observation) -> Section | None:
    """Return the section, or None where no levels were looked for."""
    document = obs.document(SkyDocument)
    if document is None:
        return None
    names = [e.record.name for e in obs.exposures(aligned=False)]
    unit = obs.records()[0].bunit or "image unit"
    judge = Judge("sky")
    known = [v for v in document.levels if v is not None]
    missing = len(document.levels) - len(known)
    judge.at_most("exposures without a level", float(missing), 0, len(document.levels) // 2)
    if len(document.components) > 1:
        judge.status(
            "connected by overlaps", "warn", f"{len(document.components)} sets float freely against each other"
        )
    elif document.overlaps:
        judge.status("connected by overlaps", "pass", "all items are")
    level = {k: document.levels[members[0]] for k, members in enumerate(document.items)}
    pairs, before, after = [], [], []
    for overlap in document.overlaps:
        a, b = (level[i] for i in overlap.items)
        if a is not None and b is not None:
            pairs.append(overlap.items)
            before.append(overlap.values[0] - overlap.values[1])
            after.append(before[-1] - (a - b))
    figures = []
    if before:
        rms = [math.sqrt(sum(d * d for d in part) / len(part)) for part in (before, after)]
        why = f"{rms[0]:.4g} before, {rms[1]:.4g} {unit} after"
        judge.at_most("differences after over before (rms)", rms[1] / rms[0] if rms[0] else 0.0, 0.5, 1.0, "", why)
        number = np.arange(1.0, len(before) + 1)
        titles = [f"{names[document.items[i][0]]} − {names[document.items[j][0]]}" for i, j in pairs]
        plot = Plot(Axis("overlap"), Axis(f"difference, {unit}"))
        plot.points(number, before, "before", "#94a3b8", titles, 3.5)
        plot.points(number, after, "after", "#2563eb", titles, 3.5)
        plot.line([0.5, len(before) + 0.5], [0, 0], colour="#64748b")
        figures.append(Figure("Overlaps", plot.svg(), "Sky of one item minus that of the other where they overlap."))
    if known:
        levels = Plot(Axis("exposure", whole=True), Axis(f"level, {unit}"))
        at = [i for i, v in enumerate(document.levels) if v is not None]
        levels.bars(at, known, titles=[f"{names[i]}: {show(v)}" for i, v in zip(at, known, strict=True)])
        figures.append(Figure("Levels", levels.svg(), "What is taken off each exposure."))
    rows = tuple((n, "" if v is None else show(v)) for n, v in zip(names, document.levels, strict=True))
    table = Table(("exposure", f"level, {unit}"), rows)
    said = f"Method {document.method}; {document.reason or ''}".rstrip("; ")
    return Section("sky", "Sky matching", said, tuple(judge.checks), tuple(figures), (table,))
