"""Run image3 on both sides and judge the checklist, line by line."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from image3_checks import CHECKS, Pair
from image3_products import Products
from judging import FAILED, Checklist, Row
from parity_cases import DELIBERATE, EXACT, FIELDS, IMAGE3, Image3Case
from parity_lines import LINES
from peer import Peer, Steps, call, make_field, our_image3, peer_image3, with_references

CHECKLIST = Checklist(LINES, CHECKS, DELIBERATE)


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


def judge_cases(peer: Peer, names: Sequence[str]) -> Iterator[Row]:
    """Run the cases and judge the lines that each decides."""
    for name in names:
        wanted = CHECKLIST.of(name)
        try:
            pair = run_pair(peer, IMAGE3[name])
        except RuntimeError as error:
            last = str(error).splitlines()[-1].strip()
            yield from (Row(line.number, name, FAILED, last[:160]) for line in wanted)
            continue
        print(f"{name}: {len(wanted)} statements", flush=True)
        yield from (CHECKLIST.judge(line, name, pair) for line in wanted)


def run_peers(peer: Peer, names: Sequence[str]) -> Iterator[Path]:
    """Run the reference on the cases; yields the folders of its products."""
    for name in names:
        case = IMAGE3[name]
        yield peer_image3(peer, name, make_field(peer, FIELDS[case.field]), case.steps)
