"""Time the whole of image2 on both sides, from files to products: CPU, wall and memory of the process family."""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench_image3 import Budget, Run
from metered import run_metered
from parity_pipelines import IMAGE2
from peer import Peer, call, environment, set_options
from peer_image2_cases import LARGE

MIB = 2.0**20
STEPS = ("bkg_subtract", "assign_wcs", "flat_field", "photom", "resample")


def bench_image2(peer: Peer, sides: Sequence[str], budget: Budget) -> Iterator[tuple[str, Run]]:
    """Run the large cases on both sides; yields the name of the case and the run."""
    folder = (peer.work / "bench" / "image2").resolve()
    for name in LARGE:
        if not (folder / name / "case.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            call([str(peer.python), str(IMAGE2.runner), str(folder), name], folder / "log.txt", folder)
        facts = json.loads((folder / name / "case.json").read_text())
        steps = {
            step: {
                k: str(folder / name / v) if k.startswith("override_") and v != "N/A" else v for k, v in mine.items()
            }
            for step, mine in facts["steps"].items()
        }
        association = folder / name / facts["association"]
        if "peer" in sides:
            yield name, _peer(peer, association, steps)
        if "ours" in sides:
            yield name, _ours(peer, association, steps, budget)


def _peer(peer: Peer, association: Path, steps: dict[str, dict[str, str]]) -> Run:
    folder = _emptied(peer.work / "bench" / "peer")
    job = {"pipeline": "Image2Pipeline", "asn": str(association), "output_dir": str(folder), "steps": steps}
    command = peer.command({**job, "metrics": str(folder / "metrics.json")}, folder)
    cost = run_metered(command, folder / "log.txt", association.parent, environment())  # members are looked for here
    records = json.loads((folder / "metrics.json").read_text())
    shutil.rmtree(folder)
    return Run("reference", cost, {step: records[step]["cpu_s"] for step in STEPS if step in records})


def _ours(peer: Peer, association: Path, steps: dict[str, dict[str, str]], budget: Budget) -> Run:
    folder = _emptied(peer.work / "bench" / "ours")
    command = [sys.executable, "-m", "streamimg3", "run", "image2", str(association), "--output-dir", str(folder)]
    command += ["--store", str(folder / "store.zarr"), "--memory", budget.memory, "--workers", str(budget.workers)]
    command += ["--log-json", str(folder / "log.jsonl")]
    for step, parameters in steps.items():
        command += set_options(step, parameters)
    cost = run_metered(command, folder / "log.txt", folder, environment())
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    shutil.rmtree(folder)
    name = f"ours, {budget.memory}, {budget.workers} worker{'s' if budget.workers > 1 else ''}"
    return Run(name, cost, {e["stage"]: float(e["cpu_s"]) for e in events if e["event"] == "stage"})


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def print_image2(runs: Iterator[tuple[str, Run]]) -> None:
    """Print a row for each run; ratios are to the first row of the case."""
    line = "{:<26} {:<26} {:>8} {:>8} {:>9} {:>7}  {}"
    print(line.format("case", "side", "CPU s", "wall s", "peak MiB", "ratio", "CPU s by step"))
    first: dict[str, float] = {}
    for case, run in runs:
        cost = run.cost
        ratio = f"{first.setdefault(case, cost.cpu_s) / cost.cpu_s:.2f}x"
        figures = f"{cost.cpu_s:.1f}", f"{cost.wall_s:.1f}", f"{cost.peak_rss / MIB:.0f}"
        shares = ", ".join(f"{step} {seconds:.1f}" for step, seconds in run.steps.items())
        print(line.format(case, run.name, *figures, ratio, f"{shares}, rest {run.rest:.1f}"), flush=True)
