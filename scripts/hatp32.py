"""The transit of HAT-P-32 b in 48 real frames whose field drifts: photometry by tso3 with apertures that follow the stars.

    python scripts/hatp32.py FRAMES [--work DIR] [--radius PIXELS]

FRAMES is a folder of the MicroObservatory's FITS images of 2017-12-20 (500 x 650 pixels of 5.2", no WCS, no errors). They are
put into one cube with estimated errors and their times; tso3 then measures the target and two comparison stars, each in
a run of its own, following them from frame to frame. The depth is that of a trapezoid with the published times, beside
a straight line for the changing air mass.
"""

import argparse
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import QTable
from astropy.time import Time
from peer import environment

# (y, x) in the first frame; the fainter star (183, 465) is lost to the first one here when the field jumps by 15 pixels
STARS = {"target": (286, 424), "comparison 1": (178, 484), "comparison 2": (263, 512)}
GAIN, READ_NOISE = 2.0, 5.0  # electrons per count and counts: assumed; they scale the errors only
# Published ephemeris and times (Hartman et al. 2011): mid-transit, period, whole duration, ingress, days; depth
EPOCH, PERIOD, DURATION, INGRESS = 2454420.44637, 2.15000825, 0.12950, 0.0172
PUBLISHED = (0.0237, 0.0010)


def write_cube(frames: Path, folder: Path, place: tuple[int, int], name: str) -> Path:
    """Write all frames as one cube of integrations whose star of interest is at `place` in the first one."""
    paths = sorted(p for p in frames.iterdir() if p.suffix.upper() == ".FITS")
    if not paths:
        raise SystemExit(f"{frames}: no FITS files")
    sci = np.stack([fits.getdata(p).astype(np.float32) for p in paths])
    heads = [fits.getheader(p) for p in paths]
    err = np.sqrt(np.maximum(sci - np.median(sci), 0.0) / GAIN + np.median(sci) / GAIN + READ_NOISE**2).astype(
        np.float32
    )
    begin = np.array([Time(h["UT-OBS"].removesuffix("-0000"), scale="utc").mjd for h in heads])
    length = float(heads[0]["EXPTIME"]) / 86400
    head = fits.PrimaryHDU()
    head.header.update({
        "DATAMODL": "CubeModel", "INSTRUME": "MAIN", "DETECTOR": "CCD", "EXP_TYPE": "NRC_TSIMAGE", "TSOVISIT": True,
        "FILTER": str(heads[0]["FILTER"]).strip(), "TARGNAME": "HAT-P-32", "NINTS": len(paths), "INTSTART": 1,
        "INTEND": len(paths), "EFFINTTM": 60.0,
    })  # fmt: skip
    image = fits.ImageHDU(sci, name="SCI")
    scale = float(heads[0]["IM_SCALE"]) / 3600
    image.header.update({
        "BUNIT": "DN", "XREF_SCI": place[1] + 1.0, "YREF_SCI": place[0] + 1.0, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN",
        "CRVAL1": float(heads[0]["RA"]), "CRVAL2": float(heads[0]["DEC"]), "CRPIX1": place[1] + 1.0, "CRPIX2": place[0] + 1.0,
        "CD1_1": -scale, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": scale,
    })  # fmt: skip
    columns = [fits.Column("integration_number", "J", array=np.arange(1, len(paths) + 1))]
    columns += [
        fits.Column(f"int_{when}_{kind}", "D", array=begin + shift)
        for kind in ("MJD_UTC", "BJD_TDB")
        for when, shift in (("start", 0.0), ("mid", length / 2), ("end", length))
    ]
    path = folder / f"{name}_calints.fits"
    times = fits.BinTableHDU.from_columns(columns, name="INT_TIMES")
    fits.HDUList([head, image, fits.ImageHDU(err, name="ERR"), times]).writeto(path, overwrite=True)
    return path


def measure(frames: Path, folder: Path, star: str, radius: float) -> QTable:
    """Run tso3 on one star; returns its table."""
    name = star.replace(" ", "")
    cube = write_cube(frames, folder, STARS[star], name)
    command = [sys.executable, "-m", "streamimg3", "run", "tso3", str(cube), "--output-dir", str(folder)]
    command += ["--store", str(folder / f"{name}.zarr"), "--workers", "1"]
    chosen = {
        "outlier_detection.skip": "true", "tso_photometry.track": "true", "tso_photometry.search_box_width": "21",
        "tso_photometry.radius": radius, "tso_photometry.radius_inner": radius + 4, "tso_photometry.radius_outer": radius + 12,
    }  # fmt: skip
    command += [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    shutil.copy(next(folder.glob("*_phot.ecsv")), folder / f"{name}.ecsv")
    next(folder.glob("*_phot.ecsv")).unlink()
    return QTable.read(folder / f"{name}.ecsv")


def trapezoid(days: np.ndarray) -> np.ndarray:
    """How much of the full depth there is at times (JD): 0 outside, 1 inside, straight lines between."""
    middle = EPOCH + PERIOD * round((float(np.median(days)) - EPOCH) / PERIOD)
    return np.clip((DURATION / 2 - np.abs(days - middle)) / INGRESS, 0.0, 1.0)


def depth_of(days: np.ndarray, flux: np.ndarray) -> tuple[float, float, float]:
    """Depth, its error, and the scatter of the residuals: least squares of trapezoid and line, twice, without far points."""
    used = np.isfinite(flux)
    time = (days - days.mean()) / np.ptp(days)
    design = np.stack([np.ones(len(days)), time, -trapezoid(days)], axis=1)
    scatter = math.inf
    for _ in range(3):
        solution, *_ = np.linalg.lstsq(design[used], flux[used], rcond=None)
        rest = flux - design @ solution
        scatter = float(1.4826 * np.median(np.abs(rest[used])))
        used &= np.abs(rest) < 4 * scatter
    covariance = np.linalg.inv(design[used].T @ design[used]) * rest[used].var(ddof=design.shape[1])
    level = solution[0]
    return float(solution[2] / level), float(math.sqrt(covariance[2, 2]) / level), scatter / float(level)


def main() -> int:
    """Measure the stars and compare the depth with the published one; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("frames", type=Path, help="folder of the FITS frames")
    parser.add_argument("--work", type=Path, default=Path("hatp32-work"), help="folder for cubes and tables")
    parser.add_argument("--radius", type=float, default=5.0, help="of the aperture, pixels")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    tables = {star: measure(options.frames, options.work, star, options.radius) for star in STARS}
    flux = {star: np.asarray(table["net_aperture_sum"].value) for star, table in tables.items()}
    days = np.asarray(tables["target"]["MJD"]) + 2400000.5
    for star, table in tables.items():
        drift = [float(np.ptp(table[f"centroid_{axis}"].value)) for axis in "yx"]
        lost = int(np.isnan(flux[star]).sum())
        level = float(np.nanmedian(flux[star]))
        print(f"{star:<13} {level:9.0f} counts, drifts by {drift[0]:.0f} x {drift[1]:.0f} pixels (y, x), {lost} lost")
    relative = flux["target"] / (flux["comparison 1"] + flux["comparison 2"])
    depth, error, scatter = depth_of(days, relative)
    print(f"{len(days)} frames, scatter {100 * scatter:.2f} %")
    print(
        f"depth {100 * depth:.2f} +- {100 * error:.2f} %, published {100 * PUBLISHED[0]:.2f} +- {100 * PUBLISHED[1]:.2f} %"
    )
    return 0 if abs(depth - PUBLISHED[0]) <= 2 * math.hypot(error, PUBLISHED[1]) else 1


if __name__ == "__main__":
    sys.exit(main())
