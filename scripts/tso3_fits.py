"""How well fitted stars of tso3 describe the images: sums of squares, with SciPy's error function."""

from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.io import fits
from astropy.table import QTable
from scipy.special import erf

if TYPE_CHECKING:
    from tso3_checks import Run

DEFAULTS = {"radius_inner": 4.0, "search_box_width": 41, "fit_box_width": 11}


def sums_of_squares(run: "Run", table: QTable) -> np.ndarray:
    """Return what is left of each integration about its star when the table's Gaussian is taken away, squared."""
    from streamimg3.kernels.centroid import Boxes, find_centres, rough_levels, typical

    chosen: dict[str, Any] = DEFAULTS | run.facts["steps"].get("tso_photometry", {})
    found, row = [], 0
    for _, theirs in run.segments("crfints.fits"):
        sci, bad, start = _pixels(run, theirs)
        guess = typical(find_centres(sci, bad, start, Boxes(chosen["search_box_width"], chosen["radius_inner"])))
        levels = rough_levels(sci, guess, chosen["radius_inner"])
        box = tuple(_box(at, chosen["fit_box_width"], size) for at, size in zip(guess, sci.shape[1:], strict=True))
        for k, image in enumerate(sci):
            values = {
                n: float(table[n][row + k].value)
                for n in ("centroid_x", "centroid_y", "psf_width_x", "psf_width_y", "psf_flux")
            }
            along = [_share(box[a], values[f"centroid_{n}"], values[f"psf_width_{n}"]) for a, n in enumerate("yx")]
            rest = image[box] - levels[k] - values["psf_flux"] * np.outer(*along)
            found.append(float(np.sum(np.where(bad[k][box], 0.0, rest) ** 2)))
        row += len(sci)
    return np.array(found)


def _pixels(run: "Run", path: Any) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Pixels in the unit of the photometry, which are bad, and the planned position."""
    with fits.open(path) as hdus:
        sci, dq, head, first = hdus["SCI"].data.astype(np.float32), hdus["DQ"].data, hdus["SCI"].header, hdus[0].header
        if head["BUNIT"] == "MJy/sr":
            sci *= 1e6 * head["PIXAR_SR"]
        else:
            sci *= first["EFFINTTM"] * fits.getdata(run.inputs / "gain.fits", "SCI").astype(np.float32)
        return sci, ((dq & 1) != 0) | np.isnan(sci), (head["YREF_SCI"] - 1, head["XREF_SCI"] - 1)


def _box(at: float, width: int, size: int) -> slice:
    low = int(np.ceil(at - 0.5 * width))
    return slice(max(low, 0), min(low + width, size))


def _share(span: slice, centre: float, width: float) -> np.ndarray:
    """Part of the light in each pixel of a line."""
    edges = (np.arange(span.start, span.stop + 1) - 0.5 - centre) / (np.sqrt(2) * width)
    return 0.5 * np.diff(erf(edges))
