"""Time this package beside the reference in one run, and its resample beside SWarp where that is installed.

    python scripts/bench.py resample|image2|image3|coron3|tso3|scaling|s3|scale [--preset c] [--peer-python PATH]
                            [--work DIR] [--sides peer ours ...]

``resample`` times the step alone; ``image3`` the whole pipeline from files to products with the share of every step;
``image2`` likewise on full detectors; ``coron3`` its klip step; ``tso3`` two long time series, step by step; ``scaling``
image3 on 6, 24 and 96 exposures of a growing mosaic; ``s3`` this package from and to a local S3 server beside a local
run, with requests and bytes; ``scale`` this package on up to 216 exposures. CPU seconds are user + system, children
included; wall time depends on what else the machine does. Both sides make products only: ours without the report and
the run's record (``--no-report``), which the reference has none of; what those cost is in the README.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_cloud import bench_s3, bench_scale
from bench_coron3 import bench_coron3
from bench_image2 import bench_image2, print_image2
from bench_image3 import Budget, bench_preset, bench_scaling, print_runs
from bench_tso3 import bench_tso3
from metered import Cost, run_metered
from parity_cases import FIELDS
from peer import Peer, Value, environment, find_peer, make_field, our_command, run_peer, the_product
from swarp import find_swarp, run_swarp

MIB = 2.0**20


@dataclass(frozen=True)
class Row:
    """One line of the table: what ran, what it cost, a remark, and whether it resampled (else it has no rate)."""

    name: str
    cost: Cost
    remark: str = ""
    resampled: bool = True


@dataclass(frozen=True)
class Setting:
    """What is measured: the association, the folder to work in, and how much this package may use."""

    association: Path
    folder: Path
    memory: str
    workers: int


@dataclass(frozen=True)
class StageEvent:
    """What this package's log says of one stage: CPU and wall seconds, and CPU seconds of its parts."""

    cpu_s: float
    wall_s: float
    split: dict[str, float]


def bench_peer(peer: Peer, setting: Setting) -> Iterator[Row]:
    """The reference's resample step: as it comes, and with its interpolated pixel map."""
    variants: tuple[tuple[str, dict[str, Value]], ...] = (
        ("reference", {}),
        ("reference, pixmap_stepsize=10", {"pixmap_stepsize": 10}),
    )
    for name, resample in variants:
        folder = setting.folder / "peer"
        run_peer(peer, folder, setting.association, resample)
        record = json.loads((folder / "metrics.json").read_text())["resample"]
        yield Row(name, Cost(**record))
        shutil.rmtree(folder)


def bench_ours(setting: Setting) -> Iterator[Row]:
    """This package from store to store with all planes and with SCI and WHT only, then the FITS export."""
    store = setting.folder / "store.zarr"
    for left_over in (store, setting.folder / "run"):
        shutil.rmtree(left_over, ignore_errors=True)
    command = [sys.executable, "-m", "streamimg3", "ingest", str(setting.association), "--store", str(store)]
    _measure(setting, "ingest", command)
    yield _our_resample(setting, store, "ours, all planes", {})
    yield _export(setting, store)
    yield _our_resample(setting, store, "ours, SCI and WHT only", {"enable_err": False, "enable_ctx": False})
    shutil.rmtree(store)


def _our_resample(setting: Setting, store: Path, name: str, resample: dict[str, Value]) -> Row:
    log = setting.folder / "events.jsonl"
    log.unlink(missing_ok=True)
    command = our_command(setting.association, store, resample)
    products = setting.folder / "run"
    products.mkdir()
    command += ["--memory", setting.memory, "--workers", str(setting.workers), "--log-json", str(log)]
    whole = _measure(setting, "run", [*command, "--output-dir", str(products)])
    shutil.rmtree(products)
    stage = stage_event(log, "resample")
    split = ", ".join(f"{part} {seconds:.1f}" for part, seconds in stage.split.items())
    cost = Cost(stage.cpu_s, stage.wall_s, whole.peak_rss)
    return Row(name, cost, f"{split}; whole command, FITS products too: {whole.cpu_s:.1f} s CPU")


def _export(setting: Setting, store: Path) -> Row:
    output = setting.folder / "export"
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "streamimg3", "export", str(store), "--output-dir", str(output)]
    cost = _measure(setting, "export", command)
    size = the_product(output).stat().st_size / 1e6
    shutil.rmtree(output)
    return Row(
        "ours, FITS export", cost, f"{size:.0f} MB, {size / cost.wall_s:.0f} MB/s (start-up included)", resampled=False
    )


def _measure(setting: Setting, name: str, command: Sequence[str]) -> Cost:
    return run_metered(command, setting.folder / f"{name}.log", setting.folder, environment())


def stage_event(log: Path, stage: str) -> StageEvent:
    """The last ``stage`` event of `stage` in a ``--log-json`` file.

    Raises
    ------
    RuntimeError
        If there is none: the stage did not run.
    """
    events = [json.loads(line) for line in log.read_text().splitlines() if line.strip()]
    found = [e for e in events if e.get("event") == "stage" and e.get("stage") == stage]
    if not found:
        raise RuntimeError(f"{log}: no event of stage {stage}; it did not run")
    last = found[-1]
    return StageEvent(float(last["cpu_s"]), float(last["wall_s"]), dict(last.get("split") or {}))


def input_megapixels(association: Path) -> float:
    """Input pixels of the association in millions, from the SCI headers."""
    from astropy.io import fits

    members = json.loads(association.read_text())["products"][0]["members"]
    headers = (fits.getheader(association.parent / member["expname"], "SCI") for member in members)
    return float(sum(header["NAXIS1"] * header["NAXIS2"] for header in headers)) / 1e6


def print_table(rows: Sequence[Row], megapixels: float) -> None:
    """Print the rows; ratios are CPU relative to the first resampling row."""
    line = "{:<32} {:>8} {:>8} {:>10} {:>11} {:>7}  {}"
    print(line.format("what", "CPU s", "wall s", "peak MiB", "Mpix/CPU s", "ratio", ""))
    base = rows[0].cost.cpu_s
    for row in rows:
        cost = row.cost
        figures = (f"{cost.cpu_s:.1f}", f"{cost.wall_s:.1f}", f"{cost.peak_rss / MIB:.0f}")
        rate, ratio = f"{megapixels / cost.cpu_s:.2f}", f"{base / cost.cpu_s:.2f}x"
        rate, ratio = (rate, ratio) if row.resampled else ("-", "-")
        print(line.format(row.name, *figures, rate, ratio, row.remark))
    print(f"\n{megapixels:.1f} million input pixels; ratio: CPU of '{rows[0].name}' over CPU of this row")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=list(SIDES), help="what to time")
    parser.add_argument("--preset", default="c", choices=sorted(FIELDS), help="field to time it on")
    parser.add_argument("--peer-python", type=Path, help="interpreter that has the reference; default: make one")
    parser.add_argument("--work", type=Path, default=Path("parity-work"), help="folder for fields and products")
    parser.add_argument(
        "--sides", nargs="+", choices=["peer", "sparse", "ours", "swarp"], help="default: all that apply"
    )
    parser.add_argument("--memory", default="1GiB", help="budget of this package")
    parser.add_argument("--workers", type=int, help="workers of this package; default 1 for resample, else 2")
    return parser.parse_args()


SIDES = {
    "resample": ("peer", "ours", "swarp"),
    "image2": ("peer", "ours"),
    "image3": ("peer", "sparse", "ours"),
    "coron3": ("peer", "ours"),
    "tso3": ("peer", "ours"),
    "scaling": ("ours",),
    "s3": ("ours",),
    "scale": ("ours",),
}


def bench_resample(peer: Peer, setting: Setting, sides: Sequence[str]) -> None:
    """Time the resample step and print its table."""
    rows: list[Row] = []
    if "peer" in sides:
        rows += bench_peer(peer, setting)
    if "ours" in sides:
        rows += bench_ours(setting)
    program = find_swarp()
    if "swarp" in sides and program:
        cost = run_swarp(program, setting.association, setting.folder / "swarp")
        rows.append(Row("SWarp LANCZOS3, SCI and WHT only", cost))
    elif "swarp" in sides:
        print("SWarp is not installed: its row is left out")
    print_table(rows, input_megapixels(setting.association))


def main() -> int:
    """Time what is asked for and print the table; return the exit code."""
    options = arguments()
    if options.what in ("s3", "scale"):  # nothing of the reference is needed
        peer = Peer(options.peer_python or Path(sys.executable), options.work.absolute())
    else:
        peer = find_peer(options.work.absolute(), options.peer_python)
    folder = peer.work / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    sides = options.sides or SIDES[options.what]
    if options.what == "resample":
        association = make_field(peer, FIELDS[options.preset])
        bench_resample(peer, Setting(association, folder, options.memory, options.workers or 1), sides)
        return 0
    if options.what == "coron3":
        return 0 if bench_coron3(peer, options.memory, options.workers or 1) else 1
    if options.what == "tso3":
        return 0 if bench_tso3(peer, options.memory, options.workers or 1) else 1
    budget = Budget(options.memory, options.workers or 2)
    if options.what == "s3":
        bench_s3(peer, options.preset, budget)
    elif options.what == "scale":
        bench_scale(peer, budget)
    elif options.what == "scaling":
        bench_scaling(peer, sides, budget)
    elif options.what == "image2":
        print_image2(bench_image2(peer, sides, budget))
    else:
        print_runs(list(bench_preset(peer, options.preset, sides, budget)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
