"""What a report is made of: sections with checks, figures and tables; thresholds that judge; the same as a document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from streamimg3.store.documents import QaCheck

ORDER = ("info", "pass", "warn", "fail")


@dataclass(frozen=True)
class Figure:
    """A picture (HTML: an ``<svg>`` or ``<img>``), what it shows and how to read it."""

    title: str
    html: str
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """A table of text; columns whose texts are numbers are set to the right."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the report; ``html`` is put first as it is."""

    key: str
    title: str
    text: str = ""
    checks: tuple[QaCheck, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    html: str = ""


@dataclass
class Judge:
    """Gathers the checks of one section.

    Examples
    --------
    >>> judge = Judge("alignment")
    >>> judge.at_most("rms", 0.2, 0.15, 0.5, "pixel")
    >>> judge.checks[0].status
    'warn'
    """

    section: str
    checks: list[QaCheck] = field(default_factory=list)

    def at_most(self, name: str, value: float, warn: float, fail: float, unit: str = "", why: str = "") -> None:
        """Pass up to ``warn``, fail above ``fail``; a value that is no number only informs."""
        if not math.isfinite(value):
            self.told(name, None, unit, why or "cannot be measured here")
            return
        status = "pass" if value <= warn else "warn" if value <= fail else "fail"
        self._add(name, status, value, unit, f"pass ≤ {warn:g}, fail > {fail:g}", why)

    def at_least(self, name: str, value: float, warn: float, fail: float, unit: str = "", why: str = "") -> None:
        """Pass from ``warn`` up, fail below ``fail``."""
        if not math.isfinite(value):
            self.told(name, None, unit, why or "cannot be measured here")
            return
        status = "pass" if value >= warn else "warn" if value >= fail else "fail"
        self._add(name, status, value, unit, f"pass ≥ {warn:g}, fail < {fail:g}", why)

    def within(
        self,
        name: str,
        value: float,
        good: tuple[float, float],
        possible: tuple[float, float],
        unit: str = "",
        why: str = "",
    ) -> None:
        """Pass inside ``good``, warn inside ``possible``, else fail."""
        if not math.isfinite(value):
            self.told(name, None, unit, why or "cannot be measured here")
            return
        status = "pass" if good[0] <= value <= good[1] else "warn" if possible[0] <= value <= possible[1] else "fail"
        rule = f"pass {good[0]:g} to {good[1]:g}, fail outside {possible[0]:g} to {possible[1]:g}"
        self._add(name, status, value, unit, rule, why)

    def status(self, name: str, status: str, why: str = "", rule: str = "") -> None:
        """Add a judgement that has no number."""
        self._add(name, status, None, "", rule, why)

    def told(self, name: str, value: float | None, unit: str = "", why: str = "") -> None:
        """Add a number that is not judged."""
        self._add(name, "info", value, unit, "", why)

    def _add(self, name: str, status: str, value: float | None, unit: str, rule: str, why: str) -> None:
        kept = None if value is None or not math.isfinite(value) else float(value)
        self.checks.append(QaCheck(self.section, name, status, kept, unit, rule, why))


def worst(checks: Sequence[QaCheck]) -> str:
    """Return the worst status of some checks.

    Examples
    --------
    >>> worst([QaCheck("a", "b", "warn"), QaCheck("a", "c", "info")])
    'warn'
    """
    return max((c.status for c in checks), key=ORDER.index, default="info")
