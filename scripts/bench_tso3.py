"""Time tso3 on both sides, step by step, and check that the results agree."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from metered import Cost, run_metered
from parity_pipelines import TSO3
from peer import Peer, environment, set_options
from peer_tso3 import LONG
from tso3_checks import CHECKS, Run

MIB = 2.0**20
DOCUMENTS = {
    "outliers": "outlier_detection", "tso_photometry": "tso_photometry", "spectra": "extract_1d", "white_light": "white_light",
}  # fmt: skip
# A rim of an aperture may be left of a star whose middle was flagged; the reference then has no background for it
KNOWN = {("long-images", 27): "areas without a pixel's middle count here"}
WANTED = {"outlier_detection": 5.0, "tso_photometry": 3.0, "extract_1d": 20.0}  # times less CPU than the reference


@dataclass(frozen=True)
class Side:
    """What one side took for a case: the whole run, and CPU seconds by step."""

    cost: Cost
    steps: Mapping[str, float]


def bench_peer(peer: Peer, name: str) -> Side:
    """Make a case and run the reference on it (the cost of making it is in the whole)."""
    folder = (peer.work / "bench-tso3").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    command = [str(peer.python), str(TSO3.runner), str(folder), name]
    cost = run_metered(command, folder / f"{name}.log", folder, environment())
    facts = json.loads((folder / name / "case.json").read_text())
    return Side(Cost(facts["cpu_seconds"], cost.wall_s, cost.peak_rss), facts["cpu_by_step"])


def bench_ours(peer: Peer, name: str, memory: str, workers: int) -> tuple[Side, Run]:
    """Run this package on a case from files to products, from a new store."""
    inputs = (peer.work / "bench-tso3" / name).resolve()
    folder = peer.work / "bench-tso3" / f"ours-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run = Run(inputs, folder)
    store = folder / "store.zarr"
    command = [sys.executable, "-m", "streamimg3", "run", "tso3", str(inputs / run.facts["association"])]
    command += ["--output-dir", str(folder), "--store", str(store), "--memory", memory, "--workers", str(workers)]
    for step, parameters in run.facts["steps"].items():
        files = {k: str(inputs / v) if k.startswith("override_") and v != "N/A" else v for k, v in parameters.items()}
        command += set_options(step, files)
    cost = run_metered(command, folder / "log.txt", folder, environment())
    return Side(cost, dict(document_costs(store))), run


def document_costs(store: Path) -> Iterator[tuple[str, float]]:
    """CPU seconds of every step that has left a document in a store."""
    for kind, step in DOCUMENTS.items():
        path = store / "documents" / f"{kind}.json"
        if path.exists():
            yield step, float(json.loads(path.read_text())["cost"]["cpu_s"])


def bench_tso3(peer: Peer, memory: str, workers: int) -> bool:
    """Time both sides of the long cases and print tables; return whether all is as fast as wanted, and equal."""
    line = "{:<14} {:<18} {:>12} {:>10} {:>8} {:>8}"
    good = True
    for name, case in LONG.items():
        theirs = bench_peer(peer, name)
        ours, run = bench_ours(peer, name, memory, workers)
        print(line.format("case", "step", "reference", "ours", "ratio", "wanted"))
        for step, seconds in ours.steps.items():
            ratio = theirs.steps[step] / seconds
            wanted = WANTED.get(step)
            good &= wanted is None or ratio >= wanted
            shown = (f"{theirs.steps[step]:.2f}", f"{seconds:.2f}", f"{ratio:.1f}x", f"{wanted:.0f}x" if wanted else "")
            print(line.format(name, step, *shown))
        total = (
            f"{theirs.cost.cpu_s:.1f}",
            f"{ours.cost.cpu_s:.1f}",
            f"{theirs.cost.cpu_s / ours.cost.cpu_s:.1f}x",
            "",
        )
        print(line.format(name, "whole run, CPU s", *total))
        peaks = (f"{theirs.cost.peak_rss / MIB:.0f}", f"{ours.cost.peak_rss / MIB:.0f}")
        print(line.format(name, "peak MiB", *peaks, f"{theirs.cost.peak_rss / ours.cost.peak_rss:.1f}x", ""))
        for number in case.lines:
            found, known = CHECKS[number](run), KNOWN.get((name, number), "")
            good &= found.holds or bool(known)
            verdict = "equal" if found.holds else f"differs on purpose ({known})" if known else "DIFFERS"
            print(f"    line {number}: {verdict}: {found.text}")
        print(flush=True)
    return good
