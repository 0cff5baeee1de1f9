"""Measure a run of image3 against the truth of a simulated field: alignment, sky, cosmic rays, catalogue."""

import shutil
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from image3_products import Products, cards, plane, wcs_of
from numpy.typing import NDArray
from parity_cases import FIELDS
from peer import Peer, call, make_field, our_image3, peer_image3, with_references

Array = NDArray[Any]
MAS = 3.6e6  # per degree
BRIGHT_JY = 3e-7  # stars from here on count for the catalogue
MATCH_MAS = 50.0
STRONG, WEAK = 8.0, 1.0  # noise units: a cosmic ray that should be found, a pixel that is not one
DO_NOT_USE, OUTLIER = 1, 16


@dataclass(frozen=True)
class Score:
    """Figures of one run, in the order in which they are printed.

    Attributes
    ----------
    alignment_mas : float
        Rms over exposures of the mean error of positions, the common part taken off.
    sky_rms, sky_before : float
        Scatter of the true backgrounds (image unit) after the levels found are taken off, and before.
    recall : float
        Part of the good pixels with a strong cosmic ray that are flagged.
    false_per_mpix : float
        Flagged pixels without a cosmic ray in a million good ones.
    sources, bright, matched : int
        Sources in the catalogue; true bright stars on the mosaic; those found within 50 mas.
    east_mas, north_mas, scatter_mas : float
        Median offset of the matched, and the scatter about it (normalised median absolute deviation).
    """

    alignment_mas: float
    sky_rms: float
    sky_before: float
    recall: float
    false_per_mpix: float
    sources: int
    bright: int
    matched: int
    east_mas: float
    north_mas: float
    scatter_mas: float


def rotation(ra: float, dec: float, roll: float) -> Array:
    """Matrix that turns the telescope's axes at a reference point to the sky (degrees)."""
    a, d, r = np.deg2rad([ra, dec, roll])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_y = np.array([[np.cos(d), 0, -np.sin(d)], [0, 1, 0], [np.sin(d), 0, np.cos(d)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(r), np.sin(r)], [0, -np.sin(r), np.cos(r)]])
    return np.asarray(about_z @ about_y @ about_x)


def true_positions(ra: Array, dec: Array, row: Any) -> tuple[Array, Array]:
    """Where positions that an exposure's file gives really are: the stored pointing is replaced by the true one."""
    stored, true = (rotation(*(float(row[f"{k}_{kind}"]) for k in ("ra", "dec", "roll"))) for kind in ("ref", "true"))
    a, d = np.deg2rad(ra), np.deg2rad(dec)
    unit = np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)])
    x, y, z = np.tensordot(true @ stored.T, unit, 1)
    return np.rad2deg(np.arctan2(y, x)) % 360, np.rad2deg(np.arcsin(np.clip(z, -1, 1)))


def offset_mas(field: Path, product: Path, row: Any) -> tuple[float, float]:
    """Mean error (east, north) of the positions in an exposure's product, in mas."""
    header = cards(product, "SCI")
    x, y = np.meshgrid(np.linspace(0, header["NAXIS1"] - 1, 9), np.linspace(0, header["NAXIS2"] - 1, 9))
    stored = wcs_of(field / row["file"])(x, y, with_bounding_box=False)
    ra, dec = true_positions(stored[0], stored[1], row)
    found = wcs_of(product)(x, y, with_bounding_box=False)
    east = (found[0] - ra) * np.cos(np.deg2rad(dec))
    return float(east.mean()) * MAS, float((found[1] - dec).mean()) * MAS


def cosmic_rays(field: Path, product: Path, row: Any) -> tuple[int, int, int, int]:
    """Strong cosmic-ray pixels found and all of them; pixels flagged for nothing, good pixels."""
    flags = plane(product, "DQ")
    with np.load(field / "truth" / f"{row['file'].removesuffix('_cal.fits')}_cr.npz") as truth:
        charge = np.zeros(flags.shape, np.float32)
        charge.flat[truth["index"]] = truth["value"]
    noise = float(row["noise" if "noise" in row.colnames else "sigma"])
    good = (plane(field / row["file"], "DQ") & DO_NOT_USE) == 0
    flagged, strong = ((flags & OUTLIER) != 0) & good, (charge > STRONG * noise) & good
    false = flagged & (charge < WEAK * noise)
    return int((flagged & strong).sum()), int(strong.sum()), int(false.sum()), int(good.sum())


def catalogue(field: Path, products: Products) -> tuple[int, int, int, float, float, float]:
    """Sources, bright true stars on the mosaic, those matched; median offset east and north and scatter in mas."""
    if products.i2d is None or products.catalog is None:
        raise RuntimeError(f"{products.folder}: no mosaic or no catalogue")
    truth = Table.read(field / "truth" / "catalog.ecsv")
    truth = truth[(truth["kind"] == "star") & (truth["flux_jy"] > BRIGHT_JY)]
    with fits.open(products.i2d) as hdus:
        weight, header = hdus["WHT"].data, hdus["SCI"].header
        x, y = (np.rint(p).astype(int) for p in WCS(header).all_world2pix(truth["ra"], truth["dec"], 0))
        inside = (x >= 0) & (y >= 0) & (x < weight.shape[1]) & (y < weight.shape[0])
        inside[inside] = weight[y[inside], x[inside]] > 0
    truth = truth[inside]
    found = Table.read(products.catalog)
    stars = SkyCoord(truth["ra"], truth["dec"], unit="deg")
    nearest, distance, _ = stars.match_to_catalog_sky(found["sky_centroid"])
    close = distance.mas < MATCH_MAS
    place = found["sky_centroid"][nearest[close]]
    east, north = stars[close].spherical_offsets_to(place)
    middle = float(np.median(east.mas)), float(np.median(north.mas))
    scatter = 1.4826 * float(np.median(np.hypot(east.mas - middle[0], north.mas - middle[1])))
    return len(found), len(truth), int(close.sum()), *middle, scatter


def score(field: Path, products: Products) -> Score:
    """Measure the products of one run.

    Parameters
    ----------
    field : Path
        Folder of the simulation: exposures, and ``truth`` with ``exposures.ecsv``, ``catalog.ecsv`` and cosmic rays.
    products : Products
        What a run of image3 on it left.

    Raises
    ------
    RuntimeError
        If a product is missing.
    """
    rows = Table.read(field / "truth" / "exposures.ecsv")
    by_root = {path.name.removesuffix("_crf.fits").rpartition("_")[0]: path for path in products.crf}
    roots = [row["file"].removesuffix("_cal.fits") for row in rows]
    if missing := [root for root in roots if root not in by_root]:
        raise RuntimeError(f"{products.folder}: no product of {missing[0]}")
    paths = [by_root[root] for root in roots]
    offsets = np.array([offset_mas(field, path, row) for path, row in zip(paths, rows, strict=True)])
    offsets -= offsets.mean(axis=0)
    levels = np.array([cards(path).get("BKGLEVEL", np.nan) for path in paths], dtype=float)
    backgrounds = np.array(rows["background" if "background" in rows.colnames else "bkg"])
    hit, strong, false, good = np.sum([cosmic_rays(field, p, r) for p, r in zip(paths, rows, strict=True)], axis=0)
    return Score(
        float(np.sqrt((offsets**2).sum(axis=1).mean())),
        float(np.std(backgrounds - levels)),
        float(np.std(backgrounds)),
        float(hit / max(strong, 1)),
        float(false / good * 1e6),
        *catalogue(field, products),
    )


# ---------------------------------------------------------------- both sides
HEADINGS = (
    "align mas",
    "sky rms",
    "before",
    "recall",
    "false/Mpx",
    "sources",
    "bright",
    "matched",
    "east",
    "north",
    "scatter",
)
ROW = "{:<5} {:<10} {:>10} {:>9} {:>9} {:>7} {:>10} {:>8} {:>7} {:>8} {:>7} {:>7} {:>8}"


def _numbers(found: Score) -> list[str]:
    digits = (3, 5, 5, 4, 1, 0, 0, 0, 2, 2, 2)
    return [f"{value:.{n}f}" for value, n in zip(astuple(found), digits, strict=True)]


def run_ours(peer: Peer, name: str, association: Path) -> Products:
    """Run this package at its default settings, from a new store."""
    folder = peer.work / "ours" / f"scores-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    store = folder / "store.zarr"
    command = our_image3(association, store, with_references(peer, {}))
    call([*command, "--output-dir", str(folder)], folder / "log.txt", folder)
    shutil.rmtree(store)
    return Products(folder)


def score_fields(peer: Peer, names: Sequence[str]) -> bool:
    """Print the figures of both sides on the same exposures, at default settings; return whether all were measured."""
    print(ROW.format("field", "side", *HEADINGS), flush=True)
    complete = True
    for name in names:
        association = make_field(peer, FIELDS[name])
        for side in ("reference", "ours"):
            try:
                if side == "ours":
                    products = run_ours(peer, name, association)
                else:
                    products = Products(peer_image3(peer, f"{name}-default", association, {}))
                print(ROW.format(name, side, *_numbers(score(association.parent, products))), flush=True)
            except RuntimeError as error:
                complete = False
                print(f"{name:<5} {side:<10} FAILED: {' '.join(str(error).split())[-160:]}", flush=True)
    return complete
