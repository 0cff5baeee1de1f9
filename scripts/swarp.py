"""SWarp as a yardstick: the same exposures, as plain TAN frames with weight maps, co-added with LANCZOS3."""

import json
import shutil
from pathlib import Path

from metered import Cost, run_metered
from peer import environment

OPTIONS = {
    "RESAMPLING_TYPE": "LANCZOS3",
    "COMBINE_TYPE": "WEIGHTED",
    "WEIGHT_TYPE": "MAP_WEIGHT",
    "WEIGHT_SUFFIX": ".weight.fits",
    "SUBTRACT_BACK": "N",
    "NTHREADS": "1",
    "WRITE_XML": "N",
    "VERBOSE_TYPE": "QUIET",
}


def find_swarp() -> str | None:
    """Path of the program under either of its names, or None."""
    return shutil.which("SWarp") or shutil.which("swarp")


def run_swarp(program: str, association: Path, folder: Path) -> Cost:
    """Co-add the association with SWarp and return what that cost; writing its input frames is not counted."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    members = json.loads(association.read_text())["products"][0]["members"]
    frames = [_write_frame(association.parent / member["expname"], folder) for member in members]
    command = [program, *map(str, frames), "-IMAGEOUT_NAME", "coadd.fits", "-WEIGHTOUT_NAME", "coadd.weight.fits"]
    for name, value in OPTIONS.items():
        command += [f"-{name}", value]
    cost = run_metered(command, folder / "log.txt", folder, environment())
    shutil.rmtree(folder)
    return cost


def _write_frame(exposure: Path, folder: Path) -> Path:
    """Write one exposure with its linear WCS: SWarp knows no SIP, and the distortion does not change the cost."""
    import numpy as np
    from astropy.io import fits
    from astropy.wcs import WCS

    frame = folder / exposure.name
    with fits.open(exposure) as hdus:
        wcs = WCS(hdus["SCI"].header)
        wcs.sip = None
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        science, variance = hdus["SCI"].data, hdus["VAR_RNOISE"].data
        good = ((hdus["DQ"].data & 1) == 0) & np.isfinite(science) & (variance > 0)
        weight = np.where(good, 1.0 / np.where(good, variance, 1.0), 0.0).astype("f4")
        fits.writeto(frame, np.where(good, science, 0.0).astype("f4"), wcs.to_header())
        fits.writeto(frame.with_suffix(".weight.fits"), weight)
    return frame
