"""Run image3 on both sides and judge the checklist, line by line."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from image3_checks import CHECKS, Measure, Pair
from image3_products import Products
from parity_cases import DELIBERATE, EXACT, FIELDS, IMAGE3, Image3Case
from parity_lines import LINES, Line
from peer import Peer, Steps, call, make_field, our_image3, peer_image3, with_references

HOLDS, DELIBERATELY, DIFFERS, FAILED = "holds", "deliberate difference", "DIFFERS", "FAILED"
ROW = "    {:<13} {:<21} {}"


@dataclass(frozen=True)
class Row:
    """One measured statement: line, case, verdict, what was measured (or why it differs on purpose)."""

    line: int
    case: str
    verdict: str
    text: str


def merged(first: Steps, second: Steps) -> Steps:
    """Parameters of both, by step."""
    return {step: {**first.get(step, {}), **second.get(step, {})} for step in dict.fromkeys([*first, *second])}


def run_pair(peer: Peer, case: Image3Case) -> Pair:
    """Run both sides of a case (the reference only if its products are not there yet).

    Raises
    ------
    RuntimeError
        If either side fails; the message names its log.
    """
    association = make_field(peer, FIELDS[case.field])
    theirs = peer_image3(peer, case.name, association, case.steps)
    folder = peer.work / "ours" / f"image3-{case.name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    store = folder / "store.zarr"
    command = our_image3(association, store, with_references(peer, merged(case.steps, EXACT)))
    call([*command, "--output-dir", str(folder), "--log-json", str(folder / "log.jsonl")], folder / "log.txt", folder)
    shutil.rmtree(store, ignore_errors=True)
    return Pair(Products(folder), Products(theirs), association.parent)


def judge(line: Line, case: str, pair: Pair) -> Row:
    """Measure one statement on one case; what cannot be measured is a row of its own."""
    try:
        found = CHECKS[line.number](pair)
    except (RuntimeError, KeyError, OSError, ValueError) as error:
        found = Measure(f"not measured ({type(error).__name__}: {' '.join(str(error).split())[:120]})", False)
    if found.holds:
        return Row(line.number, case, HOLDS, found.text)
    known = (d for d in DELIBERATE if d.line == line.number and case in d.cases and found.size <= d.limit)
    reason = next((d.reason for d in known), "")
    return Row(
        line.number, case, DELIBERATELY if reason else DIFFERS, f"{found.text}{' -- ' if reason else ''}{reason}"
    )


def judge_cases(peer: Peer, names: Sequence[str]) -> Iterator[Row]:
    """Run the cases and judge the lines that each decides."""
    for name in names:
        wanted = [line for line in LINES if name in line.cases]
        try:
            pair = run_pair(peer, IMAGE3[name])
        except RuntimeError as error:
            last = str(error).splitlines()[-1].strip()
            yield from (Row(line.number, name, FAILED, last[:160]) for line in wanted)
            continue
        print(f"{name}: {len(wanted)} statements", flush=True)
        yield from (judge(line, name, pair) for line in wanted)


def report(rows: Sequence[Row], lines: Sequence[Line] = LINES) -> bool:
    """Print the checklist; return whether every measured statement holds or differs on purpose."""
    for line in lines:
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
    return count[DIFFERS] == count[FAILED] == 0


def run_peers(peer: Peer, names: Sequence[str]) -> Iterator[Path]:
    """Run the reference on the cases; yields the folders of its products."""
    for name in names:
        case = IMAGE3[name]
        yield peer_image3(peer, name, make_field(peer, FIELDS[case.field]), case.steps)
