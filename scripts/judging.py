"""Judge statements by what was measured, and print the checklist."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from image3_checks import Measure
from parity_cases import Deliberate
from parity_lines import Line

HOLDS, DELIBERATELY, DIFFERS, FAILED = "holds", "deliberate difference", "DIFFERS", "FAILED"
ROW = "    {:<13} {:<21} {}"
S = TypeVar("S")


@dataclass(frozen=True)
class Row:
    """One measured statement: line, case, verdict, what was measured (or why it differs on purpose)."""

    line: int
    case: str
    verdict: str
    text: str


@dataclass(frozen=True)
class Checklist(Generic[S]):
    """The statements a pipeline is judged by.

    Attributes
    ----------
    lines : sequence of Line
        The statements.
    checks : mapping of int to callable
        What measures each on both sides of a case.
    deliberate : iterable of Deliberate
        Differences that are there on purpose.
    """

    lines: Sequence[Line]
    checks: Mapping[int, Callable[[S], Measure]]
    deliberate: Iterable[Deliberate]

    def of(self, case: str) -> list[Line]:
        """The statements that a case decides."""
        return [line for line in self.lines if case in line.cases]

    def judge(self, line: Line, case: str, sides: S) -> Row:
        """Measure one statement on one case; what cannot be measured is a row of its own."""
        try:
            found = self.checks[line.number](sides)
        except (RuntimeError, KeyError, OSError, ValueError, StopIteration) as error:
            found = Measure(f"not measured ({type(error).__name__}: {' '.join(str(error).split())[:160]})", False)
        if found.holds:
            return Row(line.number, case, HOLDS, found.text)
        known = (d for d in self.deliberate if d.line == line.number and case in d.cases and found.size <= d.limit)
        reason = next((d.reason for d in known), "")
        text = f"{found.text}{' -- ' if reason else ''}{reason}"
        return Row(line.number, case, DELIBERATELY if reason else DIFFERS, text)

    def report(self, rows: Sequence[Row]) -> bool:
        """Print the checklist; return whether every measured statement holds or differs on purpose."""
        for line in self.lines:
            mine = [row for row in rows if row.line == line.number]
            print(f"{line.number:>3} {line.text}")
            for row in mine:
                print(ROW.format(row.case, row.verdict, row.text))
            if line.tests:
                print(ROW.format("unit tests", "", " ".join(line.tests)))
            elif not mine:
                print(ROW.format("not run", "", "cases: " + " ".join(line.cases)))
        count = {v: sum(row.verdict == v for row in rows) for v in (HOLDS, DELIBERATELY, DIFFERS, FAILED)}
        print("\n" + ", ".join(f"{n} {v}" for v, n in count.items()))
        return not (count[DIFFERS] or count[FAILED])
