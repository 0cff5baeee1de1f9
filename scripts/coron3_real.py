"""Show coron3 on real data: AU Mic with JWST's NIRCam (programme 1184), beta Pictoris with VLT's NaCo.

    python scripts/coron3_real.py aumic|betapic --data DIR --work DIR [--pyklip-python PATH]

``aumic``: noise against separation before and after the subtraction, beside pyKLIP with the same references and numbers of
components; companions of known flux are put in at three separations and found again, after a correction for what the
subtraction takes of them, which is known from the run without them.  ``betapic``: every frame becomes a science exposure
with a WCS of its own roll, all frames are references; the mosaic shows the planet.
Exit code 0: everything as it should be.  1: something is not.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from coron3_betapic import check_betapic
from coron3_companions import Companion, curve, measure, noise
from numpy.typing import NDArray

from streamimg3 import Session, run
from streamimg3.kernels.bad_fill import Filling, fill_bad

F8 = NDArray[np.float64]
SCIENCE, PSF = ("001", "002"), ("003", "004", "005", "006", "013", "014")
NAME = "jw01184{}001_03107_00001_nrcalong_calints.fits"
PRODUCT = "aumic_f356w"
NUMBERS = (1, 3, 6)
STAR = (174.0, 150.0)  # CRPIX of all exposures, from 0 (y, x)
EDGES = np.array([4, 8, 12, 16, 20, 30, 40, 50, 60, 80, 100, 120])
REGION = (20.0, 60.0)
# Separations in pixels of 0.063 arcsec; angles off the edge-on disk; fluxes in units of the noise there
RADII, ANGLES, OTHER_ANGLES, STRENGTH = (15.0, 25.0, 45.0), (200.0, 20.0, 110.0), (80.0, 250.0, 300.0), 150.0
LIKE_PYKLIP, SAME_PIXEL, POSITION, FLUX = 0.05, 1e-6, 0.1, 0.10

_PYKLIP = """
import sys, warnings
import numpy as np
warnings.simplefilter("ignore")
from pyklip.klip import klip_math
given = np.load(sys.argv[1])
refs, numbers = given["refs"].reshape(len(given["refs"]), -1).astype(float), np.array(given["numbers"])
made = [klip_math(t.astype(float).ravel(), refs.copy(), numbers).T.reshape(len(numbers), *t.shape) for t in given["science"]]
np.save(sys.argv[2], np.array(made))
"""


def run_aumic(data: Path, folder: Path, companions: Sequence[Companion] = ()) -> Path:
    """Run coron3 on AU Mic with companions put into the science exposures; returns the folder of the products."""
    folder.mkdir(parents=True, exist_ok=True)
    members = [{"expname": str(data / NAME.format(n)), "exptype": "psf"} for n in PSF]
    for number in SCIENCE:
        path = folder / NAME.format(number)
        with fits.open(data / NAME.format(number)) as hdus:
            for companion in companions:
                hdus["SCI"].data[0] += companion.image(hdus["SCI"].data.shape[-2:], STAR).astype(np.float32)
            hdus.writeto(path, overwrite=True)
        members.insert(0, {"expname": str(path), "exptype": "science"})
    association = folder / "asn.json"
    tree = {"asn_type": "coron3", "asn_rule": "Asn_Lv3Coron", "asn_id": "a3001", "asn_pool": "none",
            "products": [{"name": PRODUCT, "members": members}]}  # fmt: skip
    association.write_text(json.dumps(tree))
    mask = str(data / NAME.format("001").replace(".fits", "_psfmask.fits"))
    session = Session(output_dir=str(folder), workers=1)
    run("coron3", str(association), session=session, align_refs={"override_psfmask": mask}, klip={"truncate": NUMBERS})
    return folder


def product(folder: Path, number: str, kind: str) -> F8:
    """First integration of a product of one science exposure."""
    name = NAME.format(number).replace("calints", f"a3001_{kind}")
    return np.asarray(fits.getdata(folder / name, "SCI")[0], float)


def filled(folder: Path, number: str) -> F8:
    """The science exposure as KLIP is given it."""
    name = NAME.format(number).replace("calints", "a3001_crfints")
    with fits.open(folder / name) as hdus:
        sci, dq = (np.array(hdus[e].data) for e in ("SCI", "DQ"))
    made = sci.astype(np.float32)
    fill_bad(made, dq.astype(np.uint32), Filling())
    return np.asarray(made[0], float)


def by_pyklip(python: Path, folder: Path, number: str) -> F8:
    """What pyKLIP leaves of a science exposure, given the references as we aligned them: (number, y, x)."""
    refs = fits.getdata(folder / NAME.format(number).replace("calints", "a3001_psfalign"), "SCI")
    given, made = folder / "pyklip.npz", folder / "pyklip.npy"
    np.savez(given, refs=refs, science=filled(folder, number)[None], numbers=NUMBERS)
    script = folder / "pyklip_run.py"
    script.write_text(_PYKLIP)
    subprocess.run([str(python), str(script), str(given), str(made)], check=True, capture_output=True, text=True)
    found: F8 = np.load(made)[0]
    return found


def compare(folder: Path, python: Path | None) -> bool:
    """Print noise against separation, and how much less it is; returns whether pyKLIP does as well."""
    good = True
    for number in SCIENCE:
        before = filled(folder, number)
        after = [product(folder, number, f"kl{k}_psfsub") for k in NUMBERS]
        print(f"\nobservation {number}: noise in rings, MJy/sr (radius in pixels of 0.063 arcsec)")
        print("  radius    before " + " ".join(f"{k:>3} modes" for k in NUMBERS))
        rows = [curve(image, STAR, EDGES) for image in (before, *after)]
        for k, (a, b) in enumerate(itertools.pairwise(EDGES)):
            print(f"  {a:3d}-{b:<4d} {rows[0][k]:9.2f} " + " ".join(f"{row[k]:9.3f}" for row in rows[1:]))
        ours = [noise(before, STAR, *REGION) / noise(image, STAR, *REGION) for image in after]
        print(f"  {REGION[0]:g}-{REGION[1]:g} px: less by " + ", ".join(f"{f:.2f}" for f in ours))
        if python is not None:
            images = by_pyklip(python, folder, number)
            theirs = [noise(before, STAR, *REGION) / noise(i, STAR, *REGION) for i in images]
            pixel = max(float(np.abs(a - b).max()) for a, b in zip(after, images, strict=True)) / np.abs(before).max()
            worst = max(abs(a / b - 1) for a, b in zip(ours, theirs, strict=True))
            print(
                f"  pyKLIP {', '.join(f'{f:.2f}' for f in theirs)}: {worst:.1e} apart; pixels {pixel:.1e} of the peak apart"
            )
            good &= worst <= LIKE_PYKLIP and pixel <= SAME_PIXEL
    return good


def injected(data: Path, work: Path, plain: Path) -> bool:
    """Put companions in and find them again; returns whether place and flux come out."""
    kind, good = f"kl{NUMBERS[-1]}_psfsub", True
    levels = [noise(product(plain, SCIENCE[0], kind), STAR, r - 3, r + 3) for r in RADII]
    near, far = ([Companion(r, a, STRENGTH * s) for r, a, s in zip(RADII, angles, levels, strict=True)]
                 for angles in (ANGLES, OTHER_ANGLES))  # fmt: skip
    tested, gauge = run_aumic(data, work / "injected", near), run_aumic(data, work / "gauge", far)
    print(
        "\ncompanions: separation, flux put in; away by, throughput there, flux after it; throughput at another angle"
    )
    for number in SCIENCE:
        before, after, elsewhere = (product(folder, number, kind) for folder in (plain, tested, gauge))
        for companion, other in zip(near, far, strict=True):
            seen = measure(after, companion.at(STAR))
            share, there = (
                measure(image - before, c.at(STAR)).flux / c.flux
                for image, c in ((after, companion), (elsewhere, other))
            )
            away = float(np.hypot(*(np.array(seen.at) - companion.at(STAR))))
            ratio = seen.flux / share / companion.flux
            put = f"{number}: {companion.radius:3.0f} px {companion.flux:7.0f}"
            print(f"  {put}: {away:.3f} px, {share:.3f}, {ratio:.3f}; {there:.3f}")
            good &= away <= POSITION and abs(ratio - 1) <= FLUX
    return good


def check_aumic(data: Path, work: Path, python: Path | None) -> bool:
    """Run AU Mic, print what comes out, draw it."""
    folder = run_aumic(data, work / "plain")
    verdicts = {"as pyKLIP": compare(folder, python), "companions": injected(data, work, folder)}
    draw(folder, work / "aumic.png")
    for name, good in verdicts.items():
        print(f"{name}: {'good' if good else 'NOT GOOD'}")
    return all(verdicts.values())


def draw(folder: Path, path: Path) -> None:
    """Draw both rolls before and after."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    for row, number in enumerate(SCIENCE):
        images = [filled(folder, number), *(product(folder, number, f"kl{k}_psfsub") for k in NUMBERS)]
        for column, image in enumerate(images):
            axes: Any = figure.add_subplot(2, 4, 4 * row + column + 1)
            limit = 60.0 if column == 0 else 12.0
            axes.imshow(image[94:254, 70:230], origin="lower", vmin=-limit, vmax=limit, cmap="RdBu_r")
            axes.set_title(
                f"{number}: {'as it came' if not column else f'{NUMBERS[column - 1]} components'}", fontsize=9
            )
            axes.set_xticks([])
            axes.set_yticks([])
    figure.savefig(path, dpi=110)


def main() -> int:
    """Run what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("aumic", "betapic"))
    parser.add_argument("--data", type=Path, required=True, help="folder with the exposures")
    parser.add_argument("--work", type=Path, default=Path("coron3-work"))
    parser.add_argument("--pyklip-python", type=Path, help="interpreter that has pyKLIP")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.what == "betapic":
        return 0 if check_betapic(options.data, options.work) else 1
    return 0 if check_aumic(options.data, options.work, options.pyklip_python) else 1


if __name__ == "__main__":
    sys.exit(main())
