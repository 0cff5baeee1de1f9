"""Headers, HDRTAB and metadata tree beside the reference's own products.

``STREAMIMG3_PARITY_WORK`` names the folder in which ``scripts/parity.py`` has left them; pixels and frame are taken from
the product itself, headers from the exposures it was made of, so that only the door out is compared.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import re
import subprocess
import warnings
from pathlib import Path
from typing import Any

import asdf
import numpy as np
import pytest
from asdf.exceptions import AsdfConversionWarning
from astropy.io import fits

from streamimg3 import Session, ingest
from streamimg3.formats.i2d import export_i2d
from streamimg3.sky.mosaic_frame import as_asdf
from streamimg3.stages.resample import Params
from streamimg3.store import Observation
from streamimg3.store.documents import ResampleDocument

from .allowed_header_differences import ALLOWED_DIFFERENCES

pytestmark = pytest.mark.parity

CASES = ("default", "one", "detectors", "miri-cut", "niriss", "n34", "no-ctx", "no-err", "no-var", "propagate-dq",
         "output-wcs", "scale-0.04", "exptime", "gaussian", "window-corner")  # fmt: skip
STATUSES = dict.fromkeys(("tweakreg", "skymatch", "outlier_detection", "source_catalog"), "SKIPPED")
PLANES = {"SCI": "sci", "ERR": "err", "DQ": "dq", "CON": "con", "WHT": "wht"}
PLANES |= {name: name.lower() for name in ("VAR_POISSON", "VAR_RNOISE", "VAR_FLAT")}
OPEN = """
import json, sys
from stdatamodels.jwst import datamodels
with datamodels.open(sys.argv[1]) as m:
    print(json.dumps([type(m).__name__, m.meta.resample.instance, m.meta.wcs(10.0, 20.0), m.meta.exposure.exposure_time,
                      str(m.data.sum(where=m.data == m.data)), list(m.con.shape), len(m.hdrtab)]))
"""


def _reference(case: str) -> Path:
    folder = Path(os.environ.get("STREAMIMG3_PARITY_WORK", "")) / "peer" / case
    found = sorted(folder.glob("*_i2d.fits")) if os.environ.get("STREAMIMG3_PARITY_WORK") else []
    if not found:
        pytest.skip("STREAMIMG3_PARITY_WORK holds no product of this case: run scripts/parity.py")
    return found[0]


def _tree(hdus: fits.HDUList) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AsdfConversionWarning)
        with asdf.open(io.BytesIO(hdus["ASDF"].data["ASDF_METADATA"].tobytes()), lazy_load=False) as tree:
            return dict(tree.tree)


def _store(theirs: Path, url: str) -> Observation:
    """Exposures ingested, planes and frame as the reference made them."""
    job = json.loads((theirs.parent / "job.json").read_text())
    obs = ingest(job["asn"], Session(store=url, workers=1))
    with fits.open(theirs) as hdus:
        planes = [hdu.name for hdu in hdus if hdu.name in PLANES]
        for name in planes:
            data = hdus[name].data
            obs.create_image(f"mosaic/{PLANES[name]}", data.shape, 256, "MJy/sr")
            obs.array(f"mosaic/{PLANES[name]}")[...] = data.astype(data.dtype.newbyteorder("="))
        meta = _tree(hdus)["meta"]
        document = ResampleDocument(
            parameters=dataclasses.asdict(Params()) | job["steps"]["resample"],
            planes=tuple(PLANES[name] for name in planes),
            shape=hdus["SCI"].data.shape,
            tile=256,
            wcs_asdf=as_asdf(meta["wcs"]).decode("latin-1"),
            pixel_scale=math.sqrt(meta["photometry"]["pixelarea_arcsecsq"]),
            pixel_scale_ratio=meta["resample"]["pixel_scale_ratio"],
            s_region=hdus["SCI"].header.get("S_REGION"),
        )
    obs.commit(document)
    return obs


def _allowed(keyword: str) -> bool:
    return keyword in ALLOWED_DIFFERENCES or re.sub(r"\d+$", "", keyword) in ALLOWED_DIFFERENCES


def _cards(header: fits.Header) -> list[tuple[str, Any]]:
    return [(card.keyword, card.value) for card in header.cards if not _allowed(card.keyword)]


@pytest.mark.parametrize("case", CASES)
def test_product_beside_the_reference(case: str, tmp_path: Path) -> None:
    """Same extensions, same cards in the same order with equal values, same table, same tree where both have a value."""
    theirs = _reference(case)
    path = export_i2d(_store(theirs, str(tmp_path / "store")), str(tmp_path), {}, statuses=STATUSES)
    assert Path(path).name == theirs.name
    with fits.open(path) as a, fits.open(theirs) as b:
        assert [hdu.name for hdu in a] == [hdu.name for hdu in b]
        for ours, other in zip(a, b, strict=True):
            # The area of a pixel is squared from a scale that was itself a root here: the last digit may differ
            pairs = zip(_cards(ours.header), _cards(other.header), strict=True)
            assert [p for p in pairs if p[0] != p[1] and not _close(*p)] == []
            if ours.name in PLANES:
                assert ours.data.tobytes() == other.data.tobytes()
        _compare_tables(a["HDRTAB"], b["HDRTAB"])
        _compare_trees(_tree(a)["meta"], _tree(b)["meta"], "meta")


def _close(a: tuple[str, Any], b: tuple[str, Any]) -> bool:
    return a[0] == b[0] and a[0] in ("PIXAR_SR", "PIXAR_A2") and math.isclose(a[1], b[1], rel_tol=1e-15)


def _compare_tables(ours: fits.BinTableHDU, theirs: fits.BinTableHDU) -> None:
    wanted = [c for c in theirs.columns if c.name not in ALLOWED_DIFFERENCES or c.name in ours.columns.names]
    assert [(c.name, c.format) for c in ours.columns] == [(c.name, c.format) for c in wanted]
    for name in ours.columns.names:
        assert ours.data[name].tolist() == theirs.data[name].tolist()


def _compare_trees(ours: dict[str, Any], theirs: dict[str, Any], path: str) -> None:
    """Every value of ours that is not an object is theirs."""
    for key, value in ours.items():
        if isinstance(value, dict):
            _compare_trees(value, theirs[key], f"{path}.{key}")
        elif f"{path}.{key}" not in ("meta.date", "meta.wcs"):
            same = math.isclose(value, theirs[key], rel_tol=1e-15) if isinstance(value, float) else value == theirs[key]
            assert same, (f"{path}.{key}", value, theirs[key])


@pytest.mark.parametrize("case", ["default", "propagate-dq"])
def test_the_references_data_model_opens_ours(case: str, tmp_path: Path) -> None:
    """Opened by the reference's own library, our product says what the reference's own product says."""
    python = os.environ.get("STREAMIMG3_PEER_PYTHON")
    if not python:
        pytest.skip("STREAMIMG3_PEER_PYTHON does not name the reference's interpreter")
    theirs = _reference(case)
    path = export_i2d(_store(theirs, str(tmp_path / "store")), str(tmp_path), {}, statuses=STATUSES)
    said = []
    for product in (path, str(theirs)):
        done = subprocess.run([python, "-W", "error::UserWarning", "-c", OPEN, product], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(json.loads(done.stdout.splitlines()[-1]))
    assert said[0] == said[1]
    assert np.isfinite(said[0][2]).all()
