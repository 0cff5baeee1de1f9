"""Time KLIP on both sides: the reference's step, and ours out of a whole run of coron3, on the same aligned references."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
from astropy.io import fits
from metered import run_metered
from peer import Peer, call, environment

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.pipelines.coronagraphs import Scene, make  # noqa: E402

MIB = 2.0**20
TRUNCATE = 50
SCENE = Scene(shape=(320, 320), science=(10,), psf=(20,) * 10, bad=0.0, speckles=0.2)
DOCUMENTS = {"outliers": "outlier_detection", "align_refs": "align_refs", "klip": "klip", "resample": "resample"}


def bench_coron3(peer: Peer, memory: str, workers: int) -> bool:
    """Run both sides and print what they took; returns whether they agree."""
    folder = peer.work / "bench" / "coron3"
    shutil.rmtree(folder, ignore_errors=True)
    files = make(folder / "in", SCENE)
    store = folder / "store.zarr"
    command = [sys.executable, "-m", "streamimg3", "run", "coron3", files.association, "--store", str(store)]
    command += ["--output-dir", str(folder / "out"), "--memory", memory, "--workers", str(workers)]
    command += ["--set", f"align_refs.override_psfmask={files.weights}", "--set", f"klip.truncate={TRUNCATE}"]
    command += ["--steps.outlier_detection.skip=true"]
    whole = run_metered(command, folder / "ours.txt", folder, environment())
    costs = {
        step: _cost(store, kind) for kind, step in DOCUMENTS.items() if (store / f"documents/{kind}.json").exists()
    }
    theirs = _peer(peer, folder)
    ours = costs["klip"]
    count, depth = sum(SCENE.psf), sum(SCENE.science)
    print(f"{count} references x {depth} integrations of {SCENE.shape[0]} x {SCENE.shape[1]}, truncate {TRUNCATE}")
    print(
        f"klip, CPU s: reference {theirs:.2f}, ours {ours:.2f} (reading and writing included): {theirs / ours:.1f} times less"
    )
    shown = ", ".join(f"{step} {seconds:.2f}" for step, seconds in costs.items())
    print(f"ours, all of coron3: {whole.cpu_s:.1f} s CPU, {whole.peak_rss / MIB:.0f} MiB at most, --memory {memory},"
          f" {workers} workers; {shown}")  # fmt: skip
    return _agree(folder)


def _cost(store: Path, kind: str) -> float:
    return float(json.loads((store / f"documents/{kind}.json").read_text())["cost"]["cpu_s"])


def _peer(peer: Peer, folder: Path) -> float:
    """CPU seconds of the reference's step on what ours subtracted."""
    refs = fits.getdata(next((folder / "out").glob("*_psfalign.fits")), "SCI").astype(np.float32)
    science = SCENE.pixels(0, SCENE.science[0], (0.0, 0.0), 0)["SCI"]
    np.savez(folder / "given.npz", refs=refs, science=science, truncate=TRUNCATE)
    script = Path(__file__).with_name("peer_klip.py")
    call([str(peer.python), str(script), str(folder)], folder / "peer.txt", folder)
    return float(json.loads((folder / "cost.json").read_text())["cpu_s"])


def _agree(folder: Path) -> bool:
    made, path = np.load(folder / "made.npz"), next((folder / "out").glob("*_psfsub.fits"))
    peak = float(np.abs(np.load(folder / "given.npz")["science"]).max())
    apart = [float(np.abs(fits.getdata(path, name) - made[name.lower()]).max()) / peak for name in ("SCI", "ERR")]
    print(f"largest differences in units of the star's peak: SCI {apart[0]:.1e}, ERR {apart[1]:.1e}")
    return max(apart) <= 1e-6
