"""Run image2, coron3 and tso3 on both sides and judge their checklists, line by line."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coron3_checks
import image2_checks
import peer_coron3
import peer_image2_cases
import peer_tso3
import tso3_checks
from judging import FAILED, Checklist, Row
from peer import Peer, call, environment, set_options
from sides import Sides

HERE = Path(__file__).resolve().parent
SECONDS = 300
EXACT = ("--set", "resample.pixmap_stepsize=1")  # the exact pixel map that the reference uses


def _as_the_reference(case: str) -> tuple[str, ...]:
    """At the low edges, too, align_refs does as the reference."""
    return (*EXACT, "--set", "align_refs.compat=jwst-3.0.0")


def _windows_of_two(case: str) -> tuple[str, ...]:
    """The reference's way with windows of 2, in the case that asks for it."""
    return ("--set", "outlier_detection.compat=true") if case == "images-two" else ()


def _peer_fails(case: str, sides: Sides) -> bool:
    return bool(sides.facts["peer_error"])


def _nothing_to_do(case: str, sides: Sides) -> bool:
    asked = peer_coron3.CASES[case]
    return _peer_fails(case, sides) or not (asked.psf and asked.science)


def _no_series(case: str, sides: Sides) -> bool:
    return 19 in {line.number for line in tso3_checks.CHECKLIST.of(case)}


@dataclass(frozen=True)
class Pipeline:
    """How a pipeline is run and judged.

    Attributes
    ----------
    name : str
        As on the command line.
    checklist : Checklist
        What it is judged by.
    cases, small : tuple of str
        All cases, and the few minutes' subset.
    sides : type
        What the checks look at.
    options : callable
        Takes a case, returns what our command line gets besides the case's parameters.
    may_fail : callable
        Takes a case and its sides; whether our run may end with an error that the checks judge.
    """

    name: str
    checklist: Checklist[Any]
    cases: tuple[str, ...]
    small: tuple[str, ...]
    sides: type[Sides]
    options: Callable[[str], tuple[str, ...]]
    may_fail: Callable[[str, Any], bool]

    @property
    def runner(self) -> Path:
        """The script that makes the cases and runs the reference on them."""
        return HERE / f"peer_{self.name}.py"

    def make(self, peer: Peer, names: Sequence[str]) -> Path:
        """Make the cases that are not there yet, with the reference's products; returns their folder.

        Raises
        ------
        RuntimeError
            If the reference fails where it should not.
        """
        folder = (peer.work / self.name).resolve()  # the reference names its files by their real paths
        missing = [name for name in names if not (folder / name / "case.json").exists()]
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            print(f"running the reference on {len(missing)} cases", flush=True)
            call([str(peer.python), str(self.runner), str(folder), *missing], folder / "log.txt", folder)
        return folder

    def run_ours(self, peer: Peer, inputs: Path) -> Sides:
        """Run this package on a case, from a new store, which is left beside the products."""
        folder = peer.work / "ours" / f"{self.name}-{inputs.name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        facts = self.sides(inputs, folder).facts
        command = [sys.executable, "-m", "streamimg3", "run", self.name, str(inputs / facts["association"])]
        command += ["--output-dir", str(folder), "--store", str(folder / "store.zarr"), "--workers", "1"]
        for step, parameters in facts["steps"].items():
            files = {
                k: str(inputs / v) if k.startswith("override_") and v != "N/A" else v for k, v in parameters.items()
            }
            command += set_options(step, files)
        command += self.options(inputs.name)
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment(), cwd=folder, timeout=SECONDS, check=False
        )
        (folder / "log.txt").write_text(done.stdout + done.stderr)
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        return self.sides(inputs, folder, last if done.returncode else "")

    def judged(self, peer: Peer, names: Sequence[str]) -> Iterator[Row]:
        """Run the cases and judge the lines that each decides."""
        folder = self.make(peer, names)
        for name in names:
            wanted = self.checklist.of(name)
            sides = self.run_ours(peer, folder / name)
            if sides.error and not self.may_fail(name, sides):
                yield from (Row(line.number, name, FAILED, sides.error[-160:]) for line in wanted)
                continue
            print(f"{name}: {len(wanted)} statements", flush=True)
            yield from (self.checklist.judge(line, name, sides) for line in wanted)
            shutil.rmtree(sides.ours / "store.zarr", ignore_errors=True)


IMAGE2 = Pipeline(
    "image2", image2_checks.CHECKLIST, tuple(peer_image2_cases.CASES), ("nircam", "cube"),
    image2_checks.Run, lambda case: EXACT, _peer_fails,
)  # fmt: skip
CORON3 = Pipeline(
    "coron3", coron3_checks.CHECKLIST, tuple(peer_coron3.CASES), ("patched", "known", "no-mask-nan"),
    coron3_checks.Run, _as_the_reference, _nothing_to_do,
)  # fmt: skip
TSO3 = Pipeline(
    "tso3", tso3_checks.CHECKLIST, tuple(peer_tso3.CASES), ("images-even", "spectra-holes", "spectra-line", "spectra-apcorr"),
    tso3_checks.Run, _windows_of_two, _no_series,
)  # fmt: skip
PIPELINES = {p.name: p for p in (IMAGE2, CORON3, TSO3)}
