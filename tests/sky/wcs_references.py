"""Exposures and reference files of which WCSs are made: invented ones with exact inverses, and the names of real ones.

Only astropy is needed, so that the recipe that records the reference's numbers can use the same files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from astropy import units as u
from astropy.modeling.models import (
    AffineTransformation2D,
    Identity,
    Mapping,
    Polynomial1D,
    Polynomial2D,
    Shift,
)

Tree = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """An exposure: its keywords, its array and its reference files.

    Attributes
    ----------
    keywords : dict
        INSTRUME … VA_SCALE; those that are left out are missing.
    shape : tuple of int
        Rows and columns.
    trees : dict
        Reference files by type, as ASDF trees.
    files : dict
        Reference files by type, as paths in the folder of real data.
    """

    keywords: dict[str, Any]
    shape: tuple[int, int]
    trees: dict[str, Tree] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def pixels(self, box: tuple[tuple[float, float], tuple[float, float]]) -> tuple[Any, Any]:
        """25 pixels (y, x) of a bounding box ((y0, y1), (x0, x1)), its corners among them."""
        y, x = np.meshgrid(np.linspace(*box[0], 5), np.linspace(*box[1], 5), indexing="ij")
        return y.ravel(), x.ravel()


def bent(k: float, m: float) -> Any:
    """(x, y) -> (x + k y², y + m (x + k y²)²), with its exact inverse."""
    first = Mapping((0, 1, 1)) | Polynomial2D(2, c1_0=1.0, c0_2=k) & Identity(1)
    second = Mapping((0, 0, 1)) | Identity(1) & Polynomial2D(2, c0_1=1.0, c2_0=m)
    back_second = Mapping((0, 0, 1)) | Identity(1) & Polynomial2D(2, c0_1=1.0, c2_0=-m)
    back_first = Mapping((0, 1, 1)) | Polynomial2D(2, c1_0=1.0, c0_2=-k) & Identity(1)
    model = first | second
    model.inverse = back_second | back_first
    return model


def affine(scale: float, angle: float, offset: tuple[float, float] = (0.0, 0.0), flip: int = 1) -> Any:
    """A turn by ``angle`` degrees with a scale and an offset."""
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return AffineTransformation2D(scale * np.array([[flip * c, -s], [flip * s, c]]), list(offset))


def meta(instrument: str, reftype: str, **more: Any) -> Tree:
    """What every reference file says of itself."""
    return {
        "author": "tests", "pedigree": "DUMMY", "description": "invented", "useafter": "2020-01-01T00:00:00",
        "telescope": "JWST", "reftype": reftype, "instrument": {"name": instrument, **more},
    }  # fmt: skip


def distortion(instrument: str, detector: str, scale: float, centre: float, v2v3: tuple[float, float]) -> Tree:
    """A distortion: pixels to V2, V3 in arcsec."""
    model = (
        Shift(-centre) & Shift(-0.9 * centre)
        | bent(2.1e-6, -1.3e-6)
        | affine(scale, 4.5, v2v3, flip=-1 if instrument != "MIRI" else 1)
    )
    facts = meta(instrument, "distortion", detector=detector, channel="SHORT", module="A", p_pupil="ANY|")
    return {"meta": facts | {"input_units": u.pix, "output_units": u.arcsec}, "model": model}


def boxed(tree: Tree, box: tuple[tuple[float, float], tuple[float, float]]) -> Tree:
    """The same with a bounding box ((y0, y1), (x0, x1)) of its own."""
    tree["model"].bounding_box = box
    return tree


def offsets(instrument: str, *rows: tuple[str, str, float, float]) -> Tree:
    """Filter offsets: filter, pupil, column and row offset in pixels."""
    names = ("filter", "pupil", "column_offset", "row_offset")
    facts = meta(instrument, "filteroffset", detector="MIRIMAGE", channel="SHORT", module="A")
    return {"meta": facts, "filters": [dict(zip(names, row, strict=True)) for row in rows]}


def optics(tilt_y: float = 0.0, filters: tuple[str, ...] = ("CLEAR_MIRROR",)) -> dict[str, Tree]:
    """All the reference files of NIRSpec imaging; the fore optics depend on the wavelength."""
    pixel, focus = 1.8e-5, 0.18  # metres
    fpa = {
        f"{d}_model": Shift(-1024.0) & Shift(-1024.0) | affine(pixel, a, o)
        for d, a, o in (("nrs1", 0.1, (-0.019, 0.0)), ("nrs2", 180.2, (0.0193, 0.0001)))
    }
    camera = bent(0.11, -0.23) | affine(1 / focus, 0.3, (1.2e-3, -7.0e-4))
    collimator = bent(-0.07, 0.12) | affine(0.42, -0.2, (2.0e-4, 1.0e-4))
    ote = bent(0.02, 0.04) | affine(3600.0, 41.5, (378.5, -428.4))
    relation = Polynomial1D(2, c0=1.5, c1=410.0, c2=3.1)
    tilt = {"temperatures": [38.3], "tilt_model": relation, "unit": "arcsec", "zeroreadings": [0.31]}
    disperser = {
        "groovedensity": 0, "angle": 0.0, "theta_x": 0.0277, "theta_y": -0.041, "theta_z": 0.1335, "tilt_x": 0.0,
        "tilt_y": tilt_y, "gwa_tiltx": tilt, "gwa_tilty": tilt | {"zeroreadings": [0.12]},
    }  # fmt: skip
    ranges = {
        "waverange_selector": [*filters, "F110W_MIRROR"],
        "wavelengthrange": [[6.0e-7, 5.3e-6]] * len(filters) + [[1.0e-6, 1.3e-6]],
        "order": [0] * len(filters) + [-1],
    }
    trees: dict[str, Tree] = {
        "fpa": fpa, "camera": {"model": camera}, "collimator": {"model": collimator}, "fore": {"model": fore()},
        "ote": {"model": ote}, "disperser": disperser, "wavelengthrange": ranges,
    }  # fmt: skip
    return {name: {"meta": meta("NIRSPEC", name, grating="MIRROR")} | tree for name, tree in trees.items()}


def fore() -> Any:
    """(x, y, wavelength in m) -> (x, y): a bend whose strength changes with the wavelength, then degrees."""

    def first(k: float, slope: float) -> Any:
        plane = Mapping((0, 1), n_inputs=3)
        along = (plane | Polynomial2D(2, c1_0=1.0, c0_2=k)) + (plane | Polynomial2D(2, c0_2=slope)) * Mapping(
            (2,), n_inputs=3
        )
        return along & Identity(1)

    turn = affine(2.6, -0.8, (1.0e-3, -2.0e-3))
    second = Mapping((0, 0, 1)) | Identity(1) & Polynomial2D(2, c0_1=1.0, c2_0=0.21)
    back_second = Mapping((0, 0, 1)) | Identity(1) & Polynomial2D(2, c0_1=1.0, c2_0=-0.21)
    model = Mapping((0, 1, 2, 1)) | first(0.13, 4.0e3) | second | turn
    model.inverse = (
        (turn.inverse & Identity(1)) | (back_second & Identity(1)) | Mapping((0, 1, 2, 1)) | first(-0.13, -4.0e3)
    )
    return model


def keywords(instrument: str, detector: str, exp_type: str, optics: tuple[str, str], **more: Any) -> dict[str, Any]:
    """Keywords of an exposure; ``optics`` = filter and pupil."""
    return {
        "INSTRUME": instrument, "DETECTOR": detector, "EXP_TYPE": exp_type, "FILTER": optics[0], "PUPIL": optics[1],
        "V2_REF": 118.7, "V3_REF": -489.3, "RA_REF": 10.684, "DEC_REF": -20.269, "ROLL_REF": 211.4,
        "V3I_YANG": -0.5, "VPARITY": -1, "VA_SCALE": 1.00008571, "SUBSTRT1": 1, "SUBSTRT2": 1,
    } | more  # fmt: skip


def _with(size: tuple[int, int], **more: Any) -> dict[str, Any]:
    return {"SUBSIZE1": size[1], "SUBSIZE2": size[0]} | more


_MIRI = {"V2_REF": -453.363, "V3_REF": -374.069, "ROLL_REF": 4.8, "VPARITY": 1}
_SPEC = {"V2_REF": 321.87, "V3_REF": -473.68, "ROLL_REF": 33.0, "GRATING": "MIRROR", "LAMP": "NONE"}
_NEAR = {"RA_REF": 359.9999, "DEC_REF": 68.2}
_ROWS = (("F200W", "CLEAR", 0.75, -1.5), ("F200W", "F164N", 3.0, 2.0), ("F150W", "CLEAR", 9.0, 9.0))
_REAL = "jwst_reffiles"


def _nircam() -> Tree:
    return distortion("NIRCAM", "NRCA2", 0.0311, 1020.0, (118.7, -489.3))


def cases() -> dict[str, Case]:
    """All exposures, by name; ``real_…`` need the folder of real data."""
    full, small, miri = (2048, 2048), (48, 64), (1024, 1032)
    nrc = keywords("NIRCAM", "NRCA2", "NRC_IMAGE", ("F200W", "CLEAR"))
    coron = keywords("NIRCAM", "NRCA2", "NRC_CORON", ("F150W", "CLEAR"))
    nis = keywords("NIRISS", "NIS", "NIS_IMAGE", ("F200W", "CLEAR"), **_NEAR)
    mir = keywords("MIRI", "MIRIMAGE", "MIR_IMAGE", ("F1130W", ""), **_MIRI)
    fgs = keywords("FGS", "GUIDER2", "FGS_IMAGE", ("", ""), V2_REF=22.8, V3_REF=-699.8)
    nrs1 = keywords("NIRSPEC", "NRS1", "NRS_IMAGE", ("CLEAR", ""), **_SPEC)
    nrs2 = keywords("NIRSPEC", "NRS2", "NRS_TACONFIRM", ("F110W", ""), **_SPEC)
    lamp = keywords("NIRSPEC", "NRS1", "NRS_IMAGE", ("OPAQUE", ""), **_SPEC | {"LAMP": "TEST"})
    tilts = {"GWA_XTIL": 0.3367, "GWA_YTIL": 0.1322}
    tail = f"{_REAL}/miri_distortion/jwst_miri"
    return {
        "nircam": Case(nrc | _with(full), full, {"distortion": _nircam(), "filteroffset": offsets("NIRCAM", *_ROWS)}),
        "nircam_subarray": Case(
            coron | _with(small, SUBSTRT1=31, SUBSTRT2=21),
            small,
            {"distortion": boxed(_nircam(), ((3.5, 2043.5), (4.5, 2040.5))), "filteroffset": offsets("NIRCAM", *_ROWS)},
        ),
        "nircam_rows_only": Case(
            nrc | _with(small, SUBSTRT2=1001, EXP_TYPE="NRC_TSIMAGE"), small, {"distortion": _nircam()}
        ),
        "niriss": Case(
            nis | _with(full),
            full,
            {
                "distortion": boxed(
                    distortion("NIRISS", "NIS", 0.0656, 1024.0, (118.7, -489.3)), ((3.5, 2043.5), (4.5, 2040.5))
                ),
                "filteroffset": offsets("NIRISS", *_ROWS),
            },
        ),
        "miri": Case(
            {k: v for k, v in mir.items() if k != "VA_SCALE"} | _with(miri),
            miri,
            {
                "distortion": distortion("MIRI", "MIRIMAGE", 0.11, 516.0, (-453.4, -374.0)),
                "filteroffset": offsets("MIRI", ("F1130W", "N/A", 0.15, -0.59), ("F1130W", "N/A", 5.0, 5.0)),
            },
        ),
        "fgs": Case(
            fgs | _with(full), full, {"distortion": distortion("FGS", "GUIDER2", 0.068, 1024.0, (22.8, -699.8))}
        ),
        "nirspec_nrs1": Case(nrs1 | _with(full) | tilts, full, optics(-8.8)),
        "nirspec_nrs2": Case(nrs2 | _with(small, SUBSTRT1=1201, SUBSTRT2=901) | {"GWA_XTIL": 0.3367}, small, optics()),
        "nirspec_opaque": Case(lamp | _with(full), full, optics(filters=("TEST_MIRROR",))),
        "real_miri_flt9": Case(
            mir | _with((256, 256), SUBSTRT1=413, SUBSTRT2=51),
            (256, 256),
            files={
                "distortion": f"{tail}_imager_distortion_flt9.asdf",
                "filteroffset": f"{tail}_filteroffset_full_flt9.asdf",
            },
        ),
        "real_miri_0028": Case(
            mir | _with(miri),
            miri,
            files={"distortion": f"{tail}_distortion_0028.asdf", "filteroffset": f"{tail}_filteroffset_flt1.asdf"},
        ),
        "real_miri_0023": Case(
            mir | _with(miri) | {"FILTER": "OPAQUE"},
            miri,
            files={"distortion": f"{tail}_distortion_0023.asdf", "filteroffset": f"{tail}_filteroffset_flt1.asdf"},
        ),
        "real_niriss": Case(
            nis | _with(full), full, files={"distortion": f"{_REAL}/crds_tests/niriss_ref_distortion.asdf"}
        ),
        "real_fgs": Case(
            fgs | _with(full),
            full,
            files={"distortion": f"{_REAL}/crds_tests/jwst_fgs_distortion_bad_asdf_version.asdf"},
        ),
    }
