"""Time the whole of image3 on both sides: CPU, wall and memory of the process family, and the share of every step."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from metered import Cost, run_metered
from parity_cases import FIELDS
from peer import Peer, Steps, environment, make_field, our_image3, with_references

MIB = 2.0**20
STEPS = ("assign_mtwcs", "tweakreg", "skymatch", "outlier_detection", "resample", "source_catalog")
# Documents in our store that say what a step cost
DOCUMENTS = {
    "alignment": "tweakreg",
    "sky": "skymatch",
    "outliers": "outlier_detection",
    "resample": "resample",
    "catalog": "source_catalog",
}
SPARSE: Steps = {"outlier_detection": {"pixmap_stepsize": 10}, "resample": {"pixmap_stepsize": 10}}
GROWING = ("grow6", "grow24", "grow96")


@dataclass(frozen=True)
class Run:
    """One run: what, its cost, and CPU seconds by step; what is not in a step is start-up, reading and writing."""

    name: str
    cost: Cost
    steps: Mapping[str, float] = field(default_factory=dict)

    @property
    def rest(self) -> float:
        """CPU seconds outside the steps."""
        return self.cost.cpu_s - sum(self.steps.values())


@dataclass(frozen=True)
class Budget:
    """What this package may use."""

    memory: str
    workers: int


def bench_peer(peer: Peer, name: str, association: Path, steps: Steps) -> Run:
    """The reference with all exposures in memory, as it comes."""
    folder = _emptied(peer.work / "bench" / "peer")
    job = {"asn": str(association), "output_dir": str(folder), "steps": with_references(peer, steps)}
    command = peer.command({**job, "metrics": str(folder / "metrics.json")}, folder)
    cost = run_metered(command, folder / "log.txt", folder, environment())
    records = json.loads((folder / "metrics.json").read_text())
    shutil.rmtree(folder)
    return Run(name, cost, {step: records[step]["cpu_s"] for step in STEPS if step in records})


def bench_ours(peer: Peer, name: str, association: Path, budget: Budget) -> Run:
    """This package from files to products, from a new store."""
    folder = _emptied(peer.work / "bench" / "ours")
    store = folder / "store.zarr"
    command = our_image3(association, store, with_references(peer, {}))
    command += ["--output-dir", str(folder), "--memory", budget.memory, "--workers", str(budget.workers)]
    cost = run_metered(command, folder / "log.txt", folder, environment())
    steps = {step: seconds for step, seconds in document_costs(store) if seconds}
    shutil.rmtree(folder)
    return Run(name, cost, steps)


def document_costs(store: Path) -> Iterator[tuple[str, float]]:
    """CPU seconds of every step that has left a document in a store."""
    for kind, step in DOCUMENTS.items():
        path = store / "documents" / f"{kind}.json"
        if path.exists():
            tree = json.loads(path.read_text())
            yield tree.get("step", step) if kind == "alignment" else step, float(tree["cost"]["cpu_s"])


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def bench_preset(peer: Peer, preset: str, sides: Sequence[str], budget: Budget) -> Iterator[Run]:
    """Both sides on one field; ``sparse`` is the reference with interpolated pixel maps."""
    association = make_field(peer, FIELDS[preset])
    if "peer" in sides:
        yield bench_peer(peer, "reference", association, {})
    if "sparse" in sides:
        yield bench_peer(peer, "reference, pixmap_stepsize=10", association, SPARSE)
    if "ours" in sides:
        yield bench_ours(peer, f"ours, {budget.memory}, {budget.workers} workers", association, budget)


def print_runs(runs: Sequence[Run]) -> None:
    """Print totals, then CPU seconds by step; ratios are to the first row."""
    line = "{:<34} {:>8} {:>8} {:>9} {:>7}"
    print(line.format("what", "CPU s", "wall s", "peak MiB", "ratio"))
    for run in runs:
        ratio = f"{runs[0].cost.cpu_s / run.cost.cpu_s:.2f}x"
        cost = run.cost
        print(line.format(run.name, f"{cost.cpu_s:.1f}", f"{cost.wall_s:.1f}", f"{cost.peak_rss / MIB:.0f}", ratio))
    print()
    shares = "{:<34} " + "{:>18}" * (len(STEPS) + 1)
    print(shares.format("CPU s by step", *STEPS, "rest"))
    for run in runs:
        seconds = [run.steps.get(step) for step in STEPS] + [run.rest]
        shown = ["-" if s is None else f"{s:.1f} ({s / run.cost.cpu_s:.0%})" for s in seconds]
        print(shares.format(run.name, *shown))


def bench_scaling(peer: Peer, sides: Sequence[str], budget: Budget) -> None:
    """CPU seconds and memory for mosaics that grow with the number of exposures."""
    line = "{:<12} {:>10} {:>10} {:>14} {:>10}"
    print(line.format("side", "exposures", "CPU s", "CPU s/exposure", "peak MiB"))
    for name in GROWING:
        association = make_field(peer, FIELDS[name])
        count = len(json.loads(association.read_text())["products"][0]["members"])
        for run in bench_preset(peer, name, sides, budget):
            cost = run.cost
            shown = (f"{cost.cpu_s:.1f}", f"{cost.cpu_s / count:.2f}", f"{cost.peak_rss / MIB:.0f}")
            print(line.format(run.name.partition(",")[0], count, *shown), flush=True)
