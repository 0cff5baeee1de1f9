"""The survey's output grids made again, and its parameter files and associations read as they are."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ceers_exposures import Sky, Survey
from numpy.typing import NDArray

from streamimg3 import Observation, Session, api, config
from streamimg3.engine.budget import parse_size, show_size
from streamimg3.engine.runner import Progress
from streamimg3.errors import InputError
from streamimg3.formats.association import read_table
from streamimg3.geometry import TileGrid
from streamimg3.pipelines.image3 import Params
from streamimg3.sky.footprint import parse
from streamimg3.sky.mosaic_frame import linear_terms
from streamimg3.sky.wcs import Wcs
from streamimg3.stages import resample
from streamimg3.store.documents import ResampleDocument

F8 = NDArray[np.float64]
FULL, PART = "image3_fullceers.asdf", "image3_nircam1.asdf"
GROUPS = "groups"  # folder of what was aligned together
MEMORY = "1GiB"
SAME_PIXEL, SAME_ANGLE = 1e-8, 1e-12  # pixels (the last bit of 215 degrees is 3e-9 pixels), degrees
OFF_CATALOG = 6.0  # mas between sources of the mosaic and the catalogue: the alignment's own 5, and centring
SAME_VALUE = 2e-6  # relative to a source's peak: float32 sums whose weights differ in the last bit


class Notes(Progress):
    """Collects the notes of a run."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        """See :class:`Progress`."""
        self.lines.append(text)


# ---------------------------------------------------------------- grids
def parameters(survey: Survey, name: str) -> Params:
    """The parameters in one of the survey's files, all notes dropped."""
    return api.parameters("image3", config.read_file(str(survey.pars(name))), Progress())


def wanted_terms(asked: resample.Params) -> dict[str, F8]:
    """FITS terms of the grid that parameters ask for: CRPIX (1-based), CRVAL, CD."""
    if asked.crpix is None or asked.crval is None or asked.rotation is None or asked.pixel_scale is None:
        raise RuntimeError("the parameter file does not fix the grid")
    angle = np.deg2rad(asked.rotation)  # of +Y, east of north; x grows to the west of y
    turn = np.array([[-np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return {
        "CRPIX": np.array(asked.crpix) + 1.0,
        "CRVAL": np.array(asked.crval),
        "CD": turn * asked.pixel_scale / 3600.0,
    }


def made_terms(wcs: Wcs) -> dict[str, F8]:
    """The same terms of a grid that was made."""
    cards = linear_terms(wcs)
    if cards is None:
        raise RuntimeError("the grid is no tangent-plane image")
    crpix, crval, cdelt = (np.array([cards[f"{key}{n}"] for n in (1, 2)]) for key in ("CRPIX", "CRVAL", "CDELT"))
    pc = np.array([[cards[f"PC{n}_{k}"] for k in (1, 2)] for n in (1, 2)])
    return {"CRPIX": crpix, "CRVAL": crval, "CD": cdelt[:, None] * pc}


def same_grid(obs: Observation, name: str, asked: resample.Params) -> bool:
    """Print and judge the frame that a parameter file leads to."""
    frame = resample.output_frame(obs, asked, obs.exposures())
    wanted, made = wanted_terms(asked), made_terms(frame.wcs)
    apart = {key: float(np.abs(wanted[key] - made[key]).max()) for key in wanted}
    shape = asked.output_shape is not None and frame.shape == asked.output_shape[::-1]
    good = shape and apart["CRPIX"] <= SAME_PIXEL and max(apart["CRVAL"], apart["CD"]) <= SAME_ANGLE
    print(f"  {name}: {frame.shape[1]} x {frame.shape[0]} pixels, CRPIX {made['CRPIX']}, CRVAL {made['CRVAL']},")
    print(f"    CD {made['CD'].ravel()}; differences: " + ", ".join(f"{k} {v:.1e}" for k, v in apart.items()))
    return good


def inside(survey: Survey, wcs: Wcs) -> bool:
    """Whether all outlines that the survey publishes for this pointing lie in a grid."""
    rows = [line.split(",") for line in (survey.data / "footprints.csv").read_text().splitlines()[1:]]
    corners = np.array([[float(v) for v in row[3:11]] for row in rows]).reshape(-1, 2)
    y, x = wcs.to_pixel(corners[:, 0], corners[:, 1])
    ny, nx = wcs.shape
    margins = (y.min(), x.min(), ny - 1 - y.max(), nx - 1 - x.max())
    below, left, above, right = (round(float(m)) for m in margins)
    print(f"  the survey's {len(rows)} outlines keep {below}, {above} rows and {left}, {right} columns from the edges")
    return min(margins) > 0


@dataclass(frozen=True, eq=False)
class Window:
    """A piece of a mosaic: its first pixel in it and its values."""

    y0: int
    x0: int
    sci: NDArray[np.float32]


def drizzle(obs: Observation, asked: resample.Params) -> list[Window]:
    """Make a mosaic in bounded memory, say what it cost, and return it around each detector of the first group."""
    with Session(memory=MEMORY).runner(obs.url) as runner:
        (document,) = resample.run(obs, asked, runner)
    cost, cells = document.cost, TileGrid(document.shape, document.tile)
    stored = sum(f.stat().st_size for f in Path(obs.url, document.path).rglob("*") if f.is_file())
    tiles = len(cells)
    print(
        f"  {document.shape[1]} x {document.shape[0]}: {cost.tasks_done} of {tiles} tiles, {cost.wall_s:.0f} s wall,"
        f" {cost.cpu_s:.0f} s CPU, peak {show_size(cost.peak_rss)} of {MEMORY}, {show_size(stored)} on disk;"
        f" one float32 plane is {show_size(4 * document.shape[0] * document.shape[1])}"
    )
    if cost.peak_rss > parse_size(MEMORY):
        raise RuntimeError(f"the memory budget of {MEMORY} was not kept")
    return [_window(obs, document, e.s_region) for e in obs.exposures()[:2]]


def _window(obs: Observation, document: ResampleDocument, region: str) -> Window:
    wcs = Wcs("gwcs", document.wcs_asdf.encode("latin-1"), document.shape)
    y, x = wcs.to_pixel(*parse(region)[0].T)
    y0, y1, x0, x1 = (round(float(v)) for v in (y.min(), y.max(), x.min(), x.max()))
    return Window(y0, x0, obs.array(f"{document.path}/sci")[y0:y1, x0:x1])


def same_values(part: Sequence[Window], full: Sequence[Window], shift: tuple[int, int]) -> bool:
    """Compare windows of both mosaics: the grids differ by whole pixels, so values must be the same."""
    worst, pixels, equal = 0.0, 0, True
    for a, b in zip(part, full, strict=True):
        equal &= (b.y0 - a.y0, b.x0 - a.x0) == shift and a.sci.shape == b.sci.shape
        equal = equal and np.array_equal(np.isnan(a.sci), np.isnan(b.sci))
        if equal:
            worst = max(worst, float(np.nanmax(np.abs(a.sci - b.sci) / np.maximum(np.abs(b.sci), 1.0))))
            pixels += int(np.isfinite(b.sci).sum())
    print(f"  both mosaics around two detectors: {pixels} pixels, largest relative difference {worst:.1e}")
    return equal and pixels > 0 and worst <= SAME_VALUE


def on_catalog(windows: Sequence[Window], wcs: Wcs, sky: Sky) -> bool:
    """Whether bright, lonely sources stand in the mosaic where the catalogue has them."""
    y, x = wcs.to_pixel(sky.ra, sky.dec)
    bright = sky.flux > 3631.0 * 10.0 ** (-0.4 * 24.0)
    away = []
    for window in windows:
        ny, nx = window.sci.shape
        row, column = y - window.y0, x - window.x0
        seen = (row > 40) & (row < ny - 40) & (column > 40) & (column < nx - 40)
        for i in np.flatnonzero(seen & bright):
            near = np.hypot(row[seen] - row[i], column[seen] - column[i]) < 40
            around = window.sci[round(row[i]) - 12 : round(row[i]) + 13, round(column[i]) - 12 : round(column[i]) + 13]
            if sky.flux[seen][near].sum() < 1.02 * sky.flux[i] and np.isfinite(around).all():
                there = centroid(window.sci, float(row[i]), float(column[i]))
                away.append((there[0] - row[i], there[1] - column[i]))
    if len(away) < 5:
        raise RuntimeError(f"only {len(away)} sources to compare: take larger cut-outs")
    dy, dx = 30.0 * np.median(away, axis=0)
    print(
        f"  {len(away)} lonely sources in the mosaic: median offset {dy:+.1f}, {dx:+.1f} mas (y, x) from the catalogue"
    )
    return float(np.hypot(dy, dx)) <= OFF_CATALOG


def centroid(image: NDArray[np.float32], y: float, x: float, half: int = 12) -> tuple[float, float]:
    """Centre of a source near (y, x): the point about which its light, weighted by a Gaussian, is balanced."""
    rows, columns = np.mgrid[-half : half + 1, -half : half + 1]
    iy, ix = round(y), round(x)
    window = image[iy - half : iy + half + 1, ix - half : ix + half + 1].astype(np.float64)
    window -= np.median(window)
    y, x = y - iy, x - ix
    for _ in range(40):
        weight = window * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 18.0)
        y, x = float((weight * rows).sum() / weight.sum()), float((weight * columns).sum() / weight.sum())
    return y + iy, x + ix


def check_grids(survey: Survey, obs: Observation, sky: Sky) -> bool:
    """Make both grids of the survey, drizzle onto them, and compare with parameters, each other and the catalogue."""
    print("\ngrids of the survey's parameter files")
    full, part = (parameters(survey, name).resample for name in (FULL, PART))
    good = same_grid(obs, PART, part)
    good &= same_grid(obs, FULL, full)
    frames = [resample.output_frame(obs, asked, obs.exposures()) for asked in (part, full)]
    good &= inside(survey, frames[0].wcs)
    dx, dy = np.subtract(full.crpix or (), part.crpix or ())
    part_windows, full_windows = drizzle(obs, part), drizzle(obs, full)
    good &= same_values(part_windows, full_windows, (int(dy), int(dx)))
    return on_catalog(full_windows, frames[1].wcs, sky) and good


# ---------------------------------------------------------------- files
def check_files(survey: Survey) -> bool:
    """Read every association and parameter file of the survey; say what of it is not used."""
    print("\nassociations")
    good = True
    for path in sorted((survey.data / "asn").glob("*.json")):
        found = read_table(str(path), {})
        print(
            f"  {path.name}: {found.product}, {len(found.science)} exposures" + "".join(f"; {n}" for n in found.notes)
        )
        good &= len(found.science) == path.read_text().count('"expname"')
    print("\nparameter files")
    for path in sorted((survey.data / "pars").glob("*.asdf")):
        good &= _readable(path)
    return good


def _readable(path: Path) -> bool:
    """Print what a parameter file leads to; a file of another pipeline is refused in one line that says so."""
    settings, notes = config.read_file(str(path)), Notes()
    try:
        made = api.parameters("image3", settings, notes)
    except InputError as error:
        print(f"  {path.name}: refused: {error}")
        return "image2" in path.name and "\n" not in str(error)
    print(f"  {path.name}: {', '.join(settings)}; skipped: {', '.join(sorted(made.skip)) or 'nothing'}")
    for line in [*config.pipeline_notes(settings), *notes.lines]:
        print(f"    {line}")
    return "image2" not in path.name


def check_command(survey: Survey, obs: Observation) -> bool:
    """Give the survey's files to the command line: one is planned, the one of another pipeline is refused."""
    print("\ncommand line")
    good = True
    for name, code in ((FULL, 0), ("image2_1.7.2.asdf", 2)):
        command = [sys.executable, "-m", "streamimg3", "plan", "image3", obs.url, "--config", str(survey.pars(name))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(f"  plan image3 --config {name}: exit code {done.returncode}")
        told = done.stderr.splitlines()
        print("".join(f"    {line}\n" for line in done.stdout.splitlines() or told), end="")
        if code == 0:
            print(f"    and {len(told)} lines about what is not used")
        good &= done.returncode == code and "Traceback" not in done.stderr
    return good
