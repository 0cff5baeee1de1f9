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
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ceers_exposures import Exposure, Sky, Survey, grid, made_rigid, offsets, read_catalog, write_exposure
from ceers_files import GROUPS, MEMORY, PART, check_command, check_files, check_grids

from streamimg3 import Observation, Session, api, config
from streamimg3.engine.runner import Progress
from streamimg3.store.documents import AlignmentDocument

POSITION, ROLL = 5.0, 5.0  # mas and arcsec that an alignment may differ from the survey's


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
    """Run image3 on an association as far as the alignment, with the survey's parameters.

    Its parameter file turns the step off (``skip``, a million matches wanted), because its exposures were aligned before,
    and it is older than the parameters of an absolute alignment: these four are given here.
    """
    own = {"skip": False, "minobj": 15, "abs_refcat": str(survey.catalog), "abs_fitgeometry": geometry}
    settings = {"tweakreg": {**config.read_file(str(survey.pars(PART)))["tweakreg"], **own}}
    session = Session(output_dir=str(table.parent), memory=MEMORY, progress=Told())
    return api.run_settings("image3", str(table), settings, session, until="tweakreg")


class Told(Progress):
    """Passes the notes of a run on."""

    def note(self, text: str) -> None:
        """See :class:`Progress`."""
        if text.startswith("tweakreg: "):
            print(f"    {text}", flush=True)


def compare(obs: Observation, exposures: Sequence[Exposure]) -> bool:
    """Print one row per exposure; return whether all alignments are the survey's within tolerance."""
    document = obs.document(AlignmentDocument)
    if document is None:
        raise RuntimeError(f"{obs.url} holds no alignment")
    row = "{:<37} {:>7} {:>7} {:>8}  {:>7} {:>7} {:>8}  {:>6} {:>6}  {:>5} {:>7}  {}"
    head = ("north", "east", "roll")
    print(row.format("exposure (mas, mas, arcsec)", *head, *head, "mas", "arcsec", "stars", "matched", ""))
    good, differences = True, []
    for exposure, seen, entry in zip(exposures, obs.exposures(), document.exposures, strict=True):
        moved, roll = motion(exposure, exposure.true.to_sky)
        ours, turned = motion(exposure, lambda y, x, wcs=seen.wcs: wcs.to_sky(y, x, bounded=False))
        away, rolled = float(np.hypot(*(ours - moved))), turned - roll
        within = entry.status == "SUCCESS" and away <= POSITION and abs(rolled) <= ROLL
        good &= within
        differences.append((*(ours - moved), rolled))
        numbers = [f"{v:.1f}" for v in (*moved, roll, *ours, turned)] + [f"{away:.2f}", f"{rolled:+.2f}"]
        print(row.format(exposure.name, *numbers, entry.stars, entry.matched, "" if within else f"NO ({entry.status})"))
    north, east, roll = np.mean(differences, axis=0)
    print(f"  mean difference {north:+.2f} north, {east:+.2f} east, roll {roll:+.2f}")
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
    rigid = made_rigid(exposures)
    return compare(aligned_groups(survey, rigid, sky), rigid) and good


def aligned_groups(survey: Survey, rigid: Sequence[Exposure], sky: Sky) -> Observation:
    """Paint all exposures of the survey's association, and align them as it lists them."""
    folder = fresh(survey.work / GROUPS)
    paint_all(folder, rigid, sky)
    return align(survey, Path(shutil.copy(survey.association, folder)), "rshift")


def groups(survey: Survey) -> Observation:
    """What was aligned in groups, or is now if that was not done yet."""
    store = next((survey.work / GROUPS).glob("*.zarr"), None)
    if store is not None and (obs := api.open(str(store))).document(AlignmentDocument) is not None:
        return obs
    return aligned_groups(survey, made_rigid(survey.exposures()), read_catalog(survey.catalog))


def check_grid(survey: Survey) -> bool:
    """Make the survey's grids and drizzle onto them what was aligned in groups."""
    return check_grids(survey, groups(survey), read_catalog(survey.catalog))


def check_reading(survey: Survey) -> bool:
    """Read the survey's files, and give them to the command line."""
    good = check_files(survey)
    return check_command(survey, groups(survey)) and good


def fresh(folder: Path) -> Path:
    """Return an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


CHECKS: dict[str, Callable[[Survey], bool]] = {"align": check_alignment, "grid": check_grid, "files": check_reading}


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
