"""The report as one page: no server, no network, nothing outside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from streamimg3.report.qa import Section, Table
from streamimg3.report.svg import brief
from streamimg3.store.documents import QaCheck, QaDocument

_NUMBER = re.compile(r"[-+−]?\d[\d.,]*(e[-+]?\d+)?")


@dataclass(frozen=True)
class Page:
    """What a page says: the judgement, the sections in order, the viewer's HTML."""

    qa: QaDocument
    sections: tuple[Section, ...]
    viewer: str = ""


def html(page: Page) -> str:
    """Return the whole page."""
    qa = page.qa
    style = (Path(__file__).parent / "style.css").read_text()
    title = escape(qa.product or qa.store)
    counts = {status: sum(c.status == status for c in qa.checks) for status in ("pass", "warn", "fail", "info")}
    summary = "".join(f'<span><b class="badge {s}">{n}</b> {s}</span>' for s, n in counts.items() if n)
    viewer = f'<section id="image"><h2>Mosaic</h2>{page.viewer}</section>' if page.viewer else ""
    links = [
        ("summary", "Summary"),
        *([("image", "Mosaic")] if viewer else []),
        *((s.key, s.title) for s in page.sections),
    ]
    nav = "".join(f'<a href="#{key}">{escape(name)}</a>' for key, name in links)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title}: report</title><link rel="icon" href="data:,"><style>{style}</style></head><body>'
        f'<header><div class="wrap"><h1>{title}</h1><p>{escape(qa.pipeline)} · {escape(qa.made)} UTC · {escape(qa.store)}</p>'
        f'<div class="summary"><span>all in all <b class="badge {qa.status}" id="overall">{qa.status}</b></span>{summary}</div>'
        f'</div></header><nav><div class="wrap">{nav}</div></nav><main class="wrap">{_summary(qa)}{viewer}'
        f"{''.join(_section(s) for s in page.sections)}</main>"
        f'<footer class="wrap">The same in numbers: {title}_qa.json. Made by streamimg3.</footer></body></html>\n'
    )


def _summary(qa: QaDocument) -> str:
    """What needs a look, and otherwise that nothing does."""
    found = [c for status in ("fail", "warn") for c in qa.checks if c.status == status]
    text = "" if found else "<p>Nothing needs attention.</p>"
    return f'<section id="summary"><h2>Summary</h2>{text}{checks_html(found, where=True)}</section>'


def _section(section: Section) -> str:
    text = f"<p>{escape(section.text)}</p>" if section.text else ""
    figures = "".join(
        f"<figure><h3>{escape(f.title)}</h3>{f.html}{f'<figcaption>{escape(f.caption)}</figcaption>' if f.caption else ''}</figure>"
        for f in section.figures
    )
    grid = f'<div class="grid">{figures}</div>' if figures else ""
    tables = "".join(table_html(t) for t in section.tables)
    return (
        f'<section id="{section.key}"><h2>{escape(section.title)}</h2>{text}{checks_html(section.checks)}{grid}{tables}'
        f"{section.html}</section>"
    )


def checks_html(checks: Sequence[QaCheck], where: bool = False) -> str:
    """Return judgements as a table."""
    if not checks:
        return ""
    rows = []
    for check in checks:
        value = "" if check.value is None else f"{brief(check.value)} {escape(check.unit)}"
        name = f"{escape(check.section)}: {escape(check.name)}" if where else escape(check.name)
        rule = f'<div class="rule">{escape(check.rule)}</div>' if check.rule else ""
        rows.append(
            f'<tr><td><b class="badge {check.status}">{check.status}</b></td><td>{name}{rule}</td>'
            f'<td class="number">{value}</td><td>{escape(check.why)}</td></tr>'
        )
    return f'<div class="scroll"><table class="checks">{"".join(rows)}</table></div>'


def table_html(table: Table) -> str:
    """Return a table; columns of numbers, with their titles, are set to the right."""
    kinds = [' class="number"' if _numeric(row[k] for row in table.rows) else "" for k in range(len(table.header))]
    head = "".join(f"<th{kind}>{escape(h)}</th>" for kind, h in zip(kinds, table.header, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(text)}</td>" for kind, text in zip(kinds, row, strict=True)) + "</tr>"
        for row in table.rows
    )
    caption = f"<h3>{escape(table.caption)}</h3>" if table.caption else ""
    return f'{caption}<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _numeric(column: Iterable[str]) -> bool:
    """Whether a column holds numbers, at least one, and nothing else."""
    told = [text for text in column if text.strip(" -–—")]
    return bool(told) and all(_NUMBER.fullmatch(text) for text in told)
