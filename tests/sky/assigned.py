"""WCSs made from the exposures of ``wcs_references``, and what the reference made of the same files."""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import asdf
import gwcs
import numpy as np
import pytest

from streamimg3.sky.detector_frame import Pointing
from streamimg3.sky.distortion_file import distortion_model, filter_offset
from streamimg3.sky.imaging_wcs import Subarray, as_wcs, imaging_wcs
from streamimg3.sky.nirspec_imaging import Optics, Setting, nirspec_imaging_wcs
from streamimg3.sky.wcs import Wcs
from tests.sky.wcs_references import Case, Tree, cases


@dataclass(frozen=True)
class Recorded:
    """Numbers of the reference; positions at the 25 pixels of the case, shapes (2, 25)."""

    frames: tuple[str, ...]
    box: tuple[tuple[float, float], tuple[float, float]]
    sky: np.ndarray
    pixels: np.ndarray | None
    s_region: str | None
    sip: dict[str, float | str]
    facts: dict[str, Any]


@cache
def _numbers() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("assign_wcs.json").read_text())


def recorded(name: str) -> Recorded:
    """What the reference says of a case."""
    facts = _numbers()[name]
    box = tuple(tuple(pair) for pair in facts["box"])
    pixels = np.array(facts["pixels"]) if "pixels" in facts else None
    return Recorded(tuple(facts["frames"]), box, np.array(facts["sky"]), pixels, facts["s_region"], facts["sip"], facts)


def case_of(name: str) -> Case:
    """A case; the test is skipped where its real files are not at hand."""
    case = cases()[name]
    if case.files and not data().is_dir():
        pytest.skip("set STREAMIMG3_DATA to the folder that holds jwst_reffiles")
    return case


def data() -> Path:
    """Where the real reference files are, or something that is no folder."""
    return Path(os.environ.get("STREAMIMG3_DATA", __file__))


def opened(source: Tree | Path) -> Tree:
    """An ASDF tree as it comes out of a file."""
    if isinstance(source, Path):
        raw = source.read_bytes()
    else:
        stream = io.BytesIO()
        asdf.AsdfFile(source).write_to(stream)
        raw = stream.getvalue()
    with asdf.open(io.BytesIO(raw), lazy_load=False, memmap=False, ignore_unrecognized_tag=True) as file:
        return dict(file.tree)


def trees_of(case: Case) -> dict[str, Tree]:
    """All reference files of a case."""
    real = {kind: opened(data() / path) for kind, path in case.files.items()}
    return real | {kind: opened(tree) for kind, tree in case.trees.items()}


def setting_of(case: Case) -> Setting:
    """How NIRSpec was set."""
    k = case.keywords
    names = ("DETECTOR", "FILTER", "GRATING", "LAMP", "EXP_TYPE")
    return Setting(*(k[n] for n in names), tilts=(k.get("GWA_XTIL"), k.get("GWA_YTIL")))


def made(case: Case) -> gwcs.WCS:
    """Its gWCS."""
    k, trees = case.keywords, trees_of(case)
    place = Subarray.of(k, "e.fits"), Pointing.of(k, "e.fits"), case.shape
    if k["INSTRUME"] == "NIRSPEC":
        setting = setting_of(case)
        return nirspec_imaging_wcs(Optics.of(trees, {}, setting), setting, *place)
    offset = None
    if "filteroffset" in trees:
        offset = filter_offset(trees["filteroffset"], "offset.asdf", k["INSTRUME"], (k["FILTER"], k["PUPIL"]))
    return imaging_wcs(distortion_model(trees["distortion"], "distortion.asdf"), offset, *place)


@cache
def stored(name: str) -> Wcs:
    """The gWCS of a case as it is stored."""
    case = case_of(name)
    return as_wcs(made(case), case.shape)
