"""Run image2 on both sides and judge the checklist, line by line."""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from image2_checks import CHECKS, DELIBERATE, LINES, Run
from image3_checks import Measure
from parity_image3 import DELIBERATELY, DIFFERS, FAILED, HOLDS, Row, report
from parity_lines import Line
from peer import Peer, call, environment, set_options
from peer_image2_cases import CASES

SMALL = ("nircam", "cube")
RUNNER = Path(__file__).resolve().with_name("peer_image2.py")
SECONDS = 300


def make_cases(peer: Peer, names: Sequence[str]) -> Path:
    """Make the cases that are not there yet, with the reference's products; returns their folder.

    Raises
    ------
    RuntimeError
        If the reference fails where it should not.
    """
    folder = (peer.work / "image2").resolve()  # the reference names its files by their real paths
    missing = [name for name in names if not (folder / name / "case.json").exists()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        print(f"running the reference on {len(missing)} cases", flush=True)
        call([str(peer.python), str(RUNNER), str(folder), *missing], folder / "log.txt", folder)
    return folder


def run_ours(peer: Peer, inputs: Path) -> Run:
    """Run this package on a case, from a new store, with the exact pixel map that the reference uses."""
    folder = peer.work / "ours" / f"image2-{inputs.name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run = Run(inputs, folder)
    command = [sys.executable, "-m", "streamimg3", "run", "image2", str(inputs / run.facts["association"])]
    command += ["--output-dir", str(folder), "--store", str(folder / "store.zarr"), "--workers", "1"]
    for step, parameters in run.facts["steps"].items():
        files = {k: str(inputs / v) if k.startswith("override_") and v != "N/A" else v for k, v in parameters.items()}
        command += set_options(step, files)
    command += ["--set", "resample.pixmap_stepsize=1"]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), cwd=folder, timeout=SECONDS, check=False
    )
    (folder / "log.txt").write_text(done.stdout + done.stderr)
    shutil.rmtree(folder / "store.zarr", ignore_errors=True)
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
    return Run(inputs, folder, last if done.returncode else "")


def judge(line: Line, name: str, run: Run) -> Row:
    """Measure one statement on one case; what cannot be measured is a row of its own."""
    try:
        found = CHECKS[line.number](run)
    except (RuntimeError, KeyError, OSError, ValueError) as error:
        found = Measure(f"not measured ({type(error).__name__}: {' '.join(str(error).split())[:160]})", False)
    if found.holds:
        return Row(line.number, name, HOLDS, found.text)
    known = (d for d in DELIBERATE if d.line == line.number and name in d.cases and found.size <= d.limit)
    reason = next((d.reason for d in known), "")
    text = f"{found.text}{' -- ' if reason else ''}{reason}"
    return Row(line.number, name, DELIBERATELY if reason else DIFFERS, text)


def judge_image2(peer: Peer, names: Sequence[str]) -> Iterator[Row]:
    """Run the cases and judge the lines that each decides."""
    folder = make_cases(peer, names)
    for name in names:
        wanted = [line for line in LINES if name in line.cases]
        run = run_ours(peer, folder / name)
        if run.error and not run.facts["peer_error"]:
            yield from (Row(line.number, name, FAILED, run.error[-160:]) for line in wanted)
            continue
        print(f"{name}: {len(wanted)} statements", flush=True)
        yield from (judge(line, name, run) for line in wanted)


def report_image2(rows: Sequence[Row]) -> bool:
    """Print the checklist; return whether every measured statement holds or differs on purpose."""
    return report(rows, LINES)


NAMES = tuple(CASES)
