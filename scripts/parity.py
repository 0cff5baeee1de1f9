"""Lay this package's products beside those of the reference pipeline, pixel by pixel and keyword by keyword.

    python scripts/parity.py resample|image2|image3|coron3|tso3|scores [--peer-python PATH] [--work DIR]
                             [--cases NAME ...] [--small]

``resample`` compares mosaics made with many parameters; ``image2``, ``image3``, ``coron3`` and ``tso3`` run the
whole pipeline and judge the checklist of its specification line by line; ``scores`` measures both sides against the
truth of simulated fields.
The reference's products are cached in the work directory, so a second run repeats only this package's side.
Exit code 0: everything within tolerance.  1: something is not.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from compare_products import Finding, PlaneResult, compare_headers, compare_planes
from parity_cases import CASES, FIELDS, IMAGE3, IMAGE3_SMALL, SMALL, Case
from parity_image3 import CHECKLIST, judge_cases, run_peers
from parity_pipelines import PIPELINES
from peer import Peer, call, find_peer, make_field, our_command, peer_product, the_product
from scores import score_fields

NAMES = {
    "resample": tuple(CASES),
    "image3": tuple(IMAGE3),
    "scores": ("a", "b"),
    **{name: pipeline.cases for name, pipeline in PIPELINES.items()},
}
FEW = {
    "resample": SMALL,
    "image3": IMAGE3_SMALL,
    "scores": ("a",),
    **{name: pipeline.small for name, pipeline in PIPELINES.items()},
}
MOST_FINDINGS = 25
COLUMNS = "{:<22} {:<12} {:>10} {:>8} {:>8} {:>9}  {}"


def prepare(peer: Peer, case: Case) -> tuple[Case, Path, Path]:
    """Simulate the case's field and run the reference on it.

    Returns
    -------
    case : Case
        The case with its custom WCS, if it has one, resolved to a file.
    association, product : Path
        Input of both sides and the reference's ``_i2d.fits``.
    """
    association = make_field(peer, FIELDS[case.field])
    if case.wcs_of:
        _, _, other = prepare(peer, CASES[case.wcs_of])
        case = replace(case, resample={**case.resample, "output_wcs": str(other.parent / "wcs.asdf")})
    return case, association, peer_product(peer, case.name, association, case.resample)


def run_ours(peer: Peer, case: Case, association: Path) -> Path:
    """Run this package on the case, from a new store, with the exact pixel map that the reference uses."""
    folder = peer.work / "ours" / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    store = folder / "store.zarr"
    command = our_command(association, store, {**case.resample, "pixmap_stepsize": 1})
    call([*command, "--output-dir", str(folder), "--log-json", str(folder / "log.jsonl")], folder / "log.txt", folder)
    shutil.rmtree(store, ignore_errors=True)
    return the_product(folder)


def report_case(case: Case, planes: Sequence[PlaneResult], findings: Sequence[Finding]) -> bool:
    """Print the rows of one case; return whether all of it is within tolerance."""
    for plane in planes:
        nan = "-" if plane.nan_equal is None else ("yes" if plane.nan_equal else "NO")
        row = (case.name, plane.name, plane.pixels, plane.differ, plane.max_ulp, nan, plane.verdict)
        print(COLUMNS.format(*row), flush=True)
        if plane.where:
            print(f"    {plane.where}")
    bad = [finding for finding in findings if not finding.reason]
    verdict = "equal" if not findings else f"{len(findings) - len(bad)} allowed differences, {len(bad)} others"
    print(COLUMNS.format(case.name, "headers", "-", len(bad), "-", "-", "DIFFERS" if bad else verdict), flush=True)
    for finding in bad[:MOST_FINDINGS]:
        print(f"    {finding.text()}")
    if len(bad) > MOST_FINDINGS:
        print(f"    and {len(bad) - MOST_FINDINGS} more")
    return not bad and all(plane.within for plane in planes)


def check(peer: Peer, case: Case) -> tuple[bool, list[Finding]]:
    """Run both sides of one case and print its rows; a side that fails is a row of its own."""
    try:
        case, association, theirs = prepare(peer, case)
        ours = run_ours(peer, case, association)
        findings = compare_headers(ours, theirs)
        return report_case(case, compare_planes(ours, theirs, case.relative), findings), findings
    except RuntimeError as error:
        print(COLUMNS.format(case.name, "-", "-", "-", "-", "-", "FAILED"), flush=True)
        print("    " + "\n    ".join(str(error).splitlines()))
        return False, []


def print_allowed(findings: Sequence[Finding]) -> None:
    """Print each kind of allowed header difference once, with its reason."""
    allowed: dict[tuple[str, str], Finding] = {}
    for finding in filter(lambda f: f.reason, findings):
        allowed.setdefault((finding.hdu, finding.keyword), finding)
    if allowed:
        print("\nallowed differences in the headers (first case that shows them):")
    for finding in allowed.values():
        print(f"    {finding.text()}  -- {finding.reason}")


def check_resample(peer: Peer, names: Sequence[str]) -> bool:
    """Compare the mosaics of the cases; return whether all are within tolerance."""
    print(COLUMNS.format("case", "plane", "pixels", "differ", "max ulp", "NaN equal", "verdict"), flush=True)
    results = [check(peer, CASES[name]) for name in names]
    print_allowed([finding for _, findings in results for finding in findings])
    failed = [name for name, (good, _) in zip(names, results, strict=True) if not good]
    print(f"\n{len(names) - len(failed)} of {len(names)} cases within tolerance")
    if failed:
        print("not within tolerance: " + " ".join(failed))
    return not failed


def peer_only(peer: Peer, what: str, names: Sequence[str]) -> None:
    """Run the reference alone and say where its products are."""
    folders = run_peers(peer, names) if what == "image3" else (prepare(peer, CASES[name])[2] for name in names)
    for folder in folders:
        print(folder, flush=True)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=list(NAMES), help="what to compare")
    parser.add_argument("--peer-python", type=Path, help="interpreter that has the reference; default: make one")
    parser.add_argument("--work", type=Path, default=Path("parity-work"), help="folder for fields and products")
    parser.add_argument(
        "--cases", nargs="+", metavar="NAME", help="; ".join(f"{k}: {', '.join(v)}" for k, v in NAMES.items())
    )
    parser.add_argument("--small", action="store_true", help="the few minutes' subset")
    parser.add_argument("--peer-only", action="store_true", help="only run the reference and keep its products")
    return parser.parse_args()


def main() -> int:
    """Run the cases asked for; return the exit code."""
    options = arguments()
    names = options.cases or (FEW[options.what] if options.small else NAMES[options.what])
    if unknown := [name for name in names if name not in NAMES[options.what]]:
        print(f"unknown cases: {' '.join(unknown)}; known are {' '.join(NAMES[options.what])}")
        return 2
    peer = find_peer(options.work.absolute(), options.peer_python)
    if pipeline := PIPELINES.get(options.what):
        if options.peer_only:
            print(pipeline.make(peer, names))
            return 0
        return 0 if pipeline.checklist.report(list(pipeline.judged(peer, names))) else 1
    if options.peer_only and options.what != "scores":
        peer_only(peer, options.what, names)
        return 0
    if options.what == "image3":
        return 0 if CHECKLIST.report(list(judge_cases(peer, names))) else 1
    if options.what == "scores":
        return 0 if score_fields(peer, names) else 1
    return 0 if check_resample(peer, names) else 1


if __name__ == "__main__":
    sys.exit(main())
