"""What it costs to add one exposure to a mosaic, against making it from scratch; and whether the bytes are the same.

    python scripts/bench_incremental.py ASSOCIATION [--work FOLDER] [--all-steps] [--memory 1GiB] [--workers 2]

The association without its last exposure is run on a fixed grid, then with it into the same store, then afresh into another
one; processor seconds are those of each command with all its processes (``all``), and of the stages among them. Without
--all-steps the exposures are taken as they are: alignment, sky, outliers and catalogue, which depend on all exposures
together, are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from metered import run_metered

from streamimg3 import Observation
from streamimg3.store.documents import ResampleDocument

SKIPPED = ("tweakreg", "skymatch", "outlier_detection", "source_catalog")


def with_members(association: Path, count: int, folder: Path) -> Path:
    """Write the association with its first members only."""
    tree = json.loads(association.read_text())
    members = tree["products"][0]["members"][:count]
    for member in members:
        member["expname"] = str(association.parent / member["expname"])
    tree["products"][0]["members"] = members
    folder.mkdir(parents=True, exist_ok=True)
    (folder / association.name).write_text(json.dumps(tree))
    return folder / association.name


def run(association: Path, output: Path, options: list[str]) -> dict[str, float]:
    """Run image3 and return the processor seconds of each stage, and of the command with all its processes (``all``)."""
    log = output.with_suffix(".jsonl")
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "streamimg3", "run", "image3", str(association), "--output-dir", str(output)]
    command += ["--log-json", str(log), *options]
    cost = run_metered(command, output.with_suffix(".txt"), Path.cwd(), os.environ)
    events = (json.loads(line) for line in log.read_text().splitlines())
    spent: dict[str, float] = {}
    for event in events:
        if event["event"] == "stage":
            name = event["stage"].split("-")[0]
            spent[name] = round(spent.get(name, 0.0) + float(event["cpu_s"]), 2)
    return spent | {"all": round(cost.cpu_s, 2)}


def sums(output: Path) -> dict[str, str]:
    """SHA-256 of every plane of the mosaic, in bands."""
    (store,) = output.glob("*.zarr")
    obs = Observation.at(str(store))
    document = obs.document(ResampleDocument)
    assert document is not None
    found = {}
    for plane in document.planes:
        array, total = obs.array(f"mosaic/{plane}"), hashlib.sha256()
        for y0 in range(0, array.shape[-2], 1024):
            total.update(np.ascontiguousarray(array[..., y0 : y0 + 1024, :]).tobytes())
        found[plane] = total.hexdigest()
    return found


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("association", type=Path)
    parser.add_argument("--work", type=Path, default=Path("bench-incremental"))
    parser.add_argument("--all-steps", action="store_true")
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    shutil.rmtree(given.work, ignore_errors=True)
    count = len(json.loads(given.association.read_text())["products"][0]["members"])
    whole = with_members(given.association, count, given.work / "whole")
    part = with_members(given.association, count - 1, given.work / "part")
    common = ["--memory", given.memory, "--workers", str(given.workers), "--no-report"]
    skipped = [] if given.all_steps else [a for s in SKIPPED for a in ("--set", f"{s}.skip=true")]
    only = [a for s in SKIPPED for a in ("--set", f"{s}.skip=true")]
    run(whole, given.work / "grid", [*common, *only])  # its grid is that of all exposures
    (grid,) = (given.work / "grid").glob("*.zarr")
    options = [*common, *skipped, "--grid-from", str(grid)]
    run(part, given.work / "kept", options)
    added = run(whole, given.work / "kept", options)
    fresh = run(whole, given.work / "fresh", options)
    same = sums(given.work / "kept") == sums(given.work / "fresh")
    ratio = added["all"] / fresh["all"]
    print(json.dumps({"added_cpu_s": added, "fresh_cpu_s": fresh, "ratio": ratio, "same_bytes": same}))


if __name__ == "__main__":
    main()
