"""Show image3 on the geometry of a real survey (CEERS, JWST programme 1345, observation 1).

    python scripts/ceers.py --data DIR --work DIR [--size PIXELS] [--only align|grid|files ...]

``align``: exposures are painted from the survey's HST catalogue where the survey's own alignment puts them, written with
the pointing that the telescope reported, aligned by image3, and compared with the survey, exposure by exposure.
``grid``: the survey's output grids are made from its parameter files and compared; the exposures are drizzled onto them.
``files``: the survey's associations and parameter files are read as they are, and what is not used of them is told.
Exit code 0: everything as it should be.  1: something is not.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ceers_exposures import (
    Exposure,
    Sky,
    grid,
    made_rigid,
    offsets,
    read_catalog,
    read_exposure,
    survey_members,
    write_exposure,
)

from streamimg3 import Observation, Session, api, config
from streamimg3.engine.runner import Progress
from streamimg3.errors import InputError
from streamimg3.sky.mosaic_frame import linear_terms
from streamimg3.store.documents import AlignmentDocument

CATALOG = "CEERS_EGS_HST_v1.9_cat_radecmag.ecsv"
ASSOCIATION = "nircam1_f277w"
PARAMETERS = "jwst_generic_pars-tweakreg_0001.asdf"
FULL, PART = "image3_fullceers.asdf", "image3_nircam1.asdf"
POSITION, ROLL = 5.0, 5.0  # mas and arcsec that an alignment may differ from the survey's
MEMORY = "1GiB"


@dataclass(frozen=True)
class Survey:
    """Where the survey's files are, where work is done, and the side of the cut-outs."""

    data: Path
    work: Path
    size: int

    @property
    def association(self) -> Path:
        """The association whose exposures are painted."""
        return self.data / "asn" / f"{ASSOCIATION}.json"

    @property
    def catalog(self) -> Path:
        """The reference catalogue."""
        return self.data / CATALOG

    def pars(self, name: str) -> Path:
        """One of the parameter files."""
        return self.data / "pars" / name

    def exposures(self) -> list[Exposure]:
        """The exposures of the association, in its order."""
        return [read_exposure(self.data / "wcs", name, self.size) for name in survey_members(self.association)]


# ---------------------------------------------------------------- alignment
def motion(exposure: Exposure, found: Any) -> tuple[np.ndarray, float]:
    """How an alignment moves an exposure: the middle to north and east (mas), and its roll (arcsec, N through E).

    Parameters
    ----------
    exposure : Exposure
        Whose reported WCS is the start.
    found : callable
        Rows and columns to ICRS degrees after the alignment.
    """
    size = exposure.reported.shape[0]
    y, x = (np.append((size - 1) / 2.0, v) for v in grid(size))
    before = exposure.reported.to_sky(y, x, bounded=False)
    centre = (float(before[0][0]), float(before[1][0]))
    old, new = offsets(*before, centre), offsets(*found(y, x), centre)
    u, v = (o[0, 1:] + 1j * o[1, 1:] for o in (old, new))
    turned = np.angle(np.sum(np.conj(u - u.mean()) * (v - v.mean())))
    return 1000.0 * (new[:, 0] - old[:, 0]), float(np.rad2deg(turned)) * 3600.0


def paint_all(folder: Path, exposures: Sequence[Exposure], sky: Sky) -> None:
    """Write the exposures under the names that the survey's associations have for them."""
    for number, exposure in enumerate(exposures):
        path = folder / "calibrated" / f"{exposure.name}_tweakreg.fits"
        write_exposure(path, exposure, sky, number)


def chosen_members(association: Path, target: Path, detector: str) -> Path:
    """Write an association of one detector's members only."""
    tree = json.loads(association.read_text())
    product = tree["products"][0]
    product["members"] = [m for m in product["members"] if f"_{detector}_" in m["expname"]]
    product["name"] += f"_{detector}"
    path = target / f"{association.stem}_{detector}.json"
    path.write_text(json.dumps(tree, indent=1))
    return path


def align(survey: Survey, table: Path, geometry: str) -> Observation:
    """Run image3 on an association as far as the alignment, with the parameters of the parameter file."""
    own = {"abs_refcat": str(survey.catalog), "abs_fitgeometry": geometry}
    settings = config.merge(config.read_file(str(survey.pars(PARAMETERS))), {"tweakreg": own})
    session = Session(output_dir=str(table.parent), memory=MEMORY, progress=Told())
    return api.run_settings("image3", str(table), settings, session, until="tweakreg")


class Told(Progress):
    """Passes the notes of a run on."""

    def note(self, text: str) -> None:
        """See :class:`Progress`."""
        print(f"    {text}", flush=True)


def compare(obs: Observation, exposures: Sequence[Exposure]) -> bool:
    """Print one row per exposure; return whether all alignments are the survey's within tolerance."""
    document = obs.document(AlignmentDocument)
    if document is None:
        raise RuntimeError(f"{obs.url} holds no alignment")
    row = "{:<37} {:>7} {:>7} {:>8}  {:>7} {:>7} {:>8}  {:>6} {:>6}  {:>5} {:>7}  {}"
    head = ("north", "east", "roll")
    print(row.format("exposure (mas, mas, arcsec)", *head, *head, "mas", "arcsec", "stars", "matched", ""))
    good = True
    for exposure, seen, entry in zip(exposures, obs.exposures(), document.exposures, strict=True):
        moved, roll = motion(exposure, exposure.true.to_sky)
        ours, turned = motion(exposure, lambda y, x, wcs=seen.wcs: wcs.to_sky(y, x, bounded=False))
        away, rolled = float(np.hypot(*(ours - moved))), turned - roll
        within = entry.status == "SUCCESS" and away <= POSITION and abs(rolled) <= ROLL
        good &= within
        numbers = [f"{v:.1f}" for v in (*moved, roll, *ours, turned)] + [f"{away:.2f}", f"{rolled:+.2f}"]
        print(row.format(exposure.name, *numbers, entry.stars, entry.matched, "" if within else f"NO ({entry.status})"))
    return good


def check_alignment(survey: Survey) -> bool:
    """Align each detector by itself, as the survey did, and both detectors together."""
    sky, exposures = read_catalog(survey.catalog), survey.exposures()
    good = True
    for detector in sorted({e.name.rpartition("_")[2] for e in exposures}):
        folder = fresh(survey.work / detector)
        mine = [e for e in exposures if e.name.endswith(detector)]
        print(f"\n{detector} by itself: the survey's alignment (left) and the one that is found (right)")
        paint_all(folder, mine, sky)
        good &= compare(align(survey, chosen_members(survey.association, folder, detector), "rscale"), mine)
    print("\nboth detectors in groups: the survey's alignment made rigid for each group, and the one that is found")
    folder, rigid = fresh(survey.work / "groups"), made_rigid(exposures)
    paint_all(folder, rigid, sky)
    table = Path(shutil.copy(survey.association, folder))
    return compare(align(survey, table, "rshift"), rigid) and good


def fresh(folder: Path) -> Path:
    """Return an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


CHECKS: dict[str, Callable[[Survey], bool]] = {"align": check_alignment}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with asn, pars, wcs and the catalogue")
    parser.add_argument("--work", type=Path, default=Path("ceers-work"), help="folder for exposures and stores")
    parser.add_argument("--size", type=int, default=1024, help="side of the cut-outs in pixels")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS), help="what to show")
    return parser.parse_args()


def main() -> int:
    """Run the checks asked for; return the exit code."""
    options = arguments()
    survey = Survey(options.data.absolute(), options.work.absolute(), options.size)
    results = {name: CHECKS[name](survey) for name in options.only}
    print(
        "\n"
        + ", ".join(f"{name}: {'as it should be' if good else 'NOT as it should be'}" for name, good in results.items())
    )
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
