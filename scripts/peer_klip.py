"""Time the reference's klip step on references and integrations at hand.  Started with the reference's interpreter.

    PEER_PYTHON scripts/peer_klip.py FOLDER

FOLDER holds ``given.npz`` (``refs``, ``science``, ``truncate``); ``made.npz`` with what is left and ``cost.json`` with the
CPU seconds are written there.
"""

import json
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
from peer_kit import load_kit


def main() -> None:
    """Run the step once."""
    folder = Path(sys.argv[1])
    kit = load_kit(folder / ".kit")
    klip = import_module("jwst.coron.klip")
    given = np.load(folder / "given.npz")
    models = []
    for name in ("science", "refs"):
        model = kit.datamodels.CubeModel(given[name].shape)
        model.data = given[name]
        models.append(model)
    started = time.process_time()
    made = klip.klip(*models, int(given["truncate"]), return_psf=False)
    seconds = time.process_time() - started
    np.savez(folder / "made.npz", sci=np.asarray(made.data), err=np.asarray(made.err[0]))
    (folder / "cost.json").write_text(json.dumps({"cpu_s": seconds}))


if __name__ == "__main__":
    main()
