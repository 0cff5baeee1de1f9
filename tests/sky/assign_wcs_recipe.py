"""Make tests/sky/assign_wcs.json with an interpreter that has jwst; the kit's offline_crds must be on the path.

    PYTHONPATH=KIT:. python tests/sky/assign_wcs_recipe.py DATA > tests/sky/assign_wcs.json

For every exposure of ``wcs_references``: the bounding box ((y0, y1), (x0, x1)), the sky and V2, V3 at 25 of its pixels,
what the inverse makes of that sky, S_REGION and the keywords of the FITS-SIP approximation.
"""

import importlib
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import asdf
import numpy as np

from tests.sky.wcs_references import Case, cases

PLACES = {
    "INSTRUME": "instrument.name", "DETECTOR": "instrument.detector", "FILTER": "instrument.filter",
    "PUPIL": "instrument.pupil", "GRATING": "instrument.grating", "LAMP": "instrument.lamp_state",
    "GWA_XTIL": "instrument.gwa_xtilt", "GWA_YTIL": "instrument.gwa_ytilt", "EXP_TYPE": "exposure.type",
    "V2_REF": "wcsinfo.v2_ref", "V3_REF": "wcsinfo.v3_ref", "RA_REF": "wcsinfo.ra_ref", "DEC_REF": "wcsinfo.dec_ref",
    "ROLL_REF": "wcsinfo.roll_ref", "V3I_YANG": "wcsinfo.v3yangle", "VPARITY": "wcsinfo.vparity",
    "VA_SCALE": "velocity_aberration.scale_factor", "SUBSTRT1": "subarray.xstart", "SUBSTRT2": "subarray.ystart",
    "SUBSIZE1": "subarray.xsize", "SUBSIZE2": "subarray.ysize", "CRPIX1": "wcsinfo.crpix1", "CRPIX2": "wcsinfo.crpix2",
}  # fmt: skip
SIP = ("crpix", "crval", "cd", "ctype", "a_", "b_", "ap_", "bp_", "a_order", "sipmxerr", "sipiverr")


def exposure(case: Case) -> Any:
    """Return the exposure as a data model."""
    models = importlib.import_module("stdatamodels.jwst.datamodels")
    model = models.ImageModel(case.shape)
    for keyword, value in case.keywords.items():
        if value != "":
            model[f"meta.{PLACES[keyword]}"] = value
    model.meta.observation.date, model.meta.observation.time = "2022-12-01", "00:00:00"
    return model


def numbers(case: Case, data: Path, folder: Path) -> dict[str, Any]:
    """Return what the reference says of a case."""
    step = importlib.import_module("jwst.assign_wcs").AssignWcsStep()
    for kind, tree in case.trees.items():
        asdf.AsdfFile(tree).write_to(folder / f"{kind}.asdf")
        setattr(step, f"override_{kind}", str(folder / f"{kind}.asdf"))
    for kind, path in case.files.items():
        setattr(step, f"override_{kind}", str(data / path))
    done = step.run(exposure(case))
    if done.meta.cal_step.assign_wcs != "COMPLETE":
        raise RuntimeError("assign_wcs was skipped")
    wcs, info = done.meta.wcs, done.meta.wcsinfo.instance
    (x0, x1), (y0, y1) = wcs.bounding_box.bounding_box(order="F") if wcs.bounding_box else ((0, 2047), (0, 2047))
    y, x = case.pixels(((y0, y1), (x0, x1)))
    sky = wcs(x, y, with_bounding_box=False)
    found: dict[str, Any] = {
        "frames": [str(f) for f in wcs.available_frames],
        "box": [[float(y0), float(y1)], [float(x0), float(x1)]] if wcs.bounding_box else None,
        "sky": np.array(sky).tolist(),
        "s_region": info.get("s_region"),
        "sip": {k.upper(): v for k, v in info.items() if k.startswith(SIP) and v is not None},
    }
    if "v2v3" in wcs.available_frames and case.keywords["INSTRUME"] != "NIRSPEC":
        try:
            found["pixels"] = np.array(wcs.backward_transform(*sky))[::-1].tolist()
        except Exception as error:
            print("inverse", error, file=sys.stderr)
    for name in ("waverange_start", "waverange_end", "spectral_order"):
        if info.get(name) is not None:
            found[name] = info[name]
    return found


def main(data: Path) -> None:
    """Print the numbers of all cases."""
    importlib.import_module("offline_crds")
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}
    for name, case in cases().items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                found[name] = numbers(case, data, Path(folder))
            except Exception as error:
                found[name] = {"error": f"{type(error).__name__}: {error}"}
    print("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in found.items()) + "\n}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
