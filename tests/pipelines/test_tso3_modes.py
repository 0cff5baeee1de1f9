"""tso3 in the modes that simulated images and grism spectra do not show (spec others §2.1, §2.5-2.7)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import asdf
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable

from streamimg3 import Session, run
from streamimg3.store.series_documents import SpectraDocument
from tests.pipelines.time_series import Scene, write_series

LENGTHS = (5, 4)


def _scene(**cards: Any) -> Scene:
    return Scene(spectra=True, shape=(40, 30), count=9, dimmed=(3, 4), flux=60.0, rays=0, cards=cards)


def _extract1d(path: Path, *apertures: dict[str, Any]) -> str:
    both = {"region_type": "target", "xstart": 1, "xstop": 27}
    path.write_text(
        json.dumps({"reftype": "EXTRACT1D", "telescope": "JWST", "apertures": [both | a for a in apertures]})
    )
    return str(path)


def _session(folder: Path) -> Session:
    return Session(output_dir=str(folder / "out"), workers=1)


def _photom(path: Path) -> str:
    head = fits.PrimaryHDU()
    head.header.update({"TELESCOP": "JWST", "REFTYPE": "PHOTOM", "INSTRUME": "NIRISS", "DETECTOR": "NIS"})
    columns = [
        fits.Column("filter", "8A", array=["CLEAR"] * 2), fits.Column("pupil", "12A", array=["GR700XD"] * 2),
        fits.Column("order", "I", array=[1, 2]), fits.Column("photmj", "E", array=[2.0, 3.0]),
        fits.Column("nelem", "I", array=[2, 2]), fits.Column("wavelength", "2E", array=[[2.0, 5.0]] * 2),
        fits.Column("relresponse", "2E", array=[[1.0, 1.0], [0.5, 0.5]]),
    ]  # fmt: skip
    fits.HDUList([head, fits.BinTableHDU.from_columns(columns, name="PHOTOM")]).writeto(path)
    return str(path)


def test_orders_of_soss(tmp_path: Path) -> None:
    """Each order has its box, its response and its limits; the boxcar stands for ATOCA."""
    scene = _scene(
        EXP_TYPE="NIS_SOSS", INSTRUME="NIRISS", DETECTOR="NIS", FILTER="CLEAR", PUPIL="GR700XD", S_PHOTOM="SKIPPED"
    )
    association = write_series(tmp_path, scene, LENGTHS)
    boxes = [{"id": "ANY", "spectral_order": o, "ystart": y, "ystop": y + 6} for o, y in ((1, 16), (2, 2))]
    ranges = [[1, "CLEAR", 2.6, 3.9], [2, "CLEAR", 3.0, 3.1]]
    meta = {"reftype": "wavelengthrange", "telescope": "JWST", "instrument": {"name": "NIRISS"}}
    asdf.AsdfFile({"meta": meta, "wavelengthrange": ranges}).write_to(tmp_path / "range.asdf")
    chosen = {
        "override_extract1d": _extract1d(tmp_path / "e.json", *boxes),
        "override_apcorr": "N/A",
        "soss_atoca": True,
    }
    obs = run(
        "tso3", association, session=_session(tmp_path), extract_1d=chosen,
        photom={"override_photom": _photom(tmp_path / "photom.fits")},
        white_light={"override_wavelengthrange": str(tmp_path / "range.asdf")}, outlier_detection={"skip": True},
    )  # fmt: skip
    document = obs.document(SpectraDocument)
    assert document is not None and [(s.order, s.flux_unit) for s in document.spectra] == [(1, "MJy"), (2, "MJy")]
    with fits.open(tmp_path / "out" / "jw00042-o001_t001_nircam_series_x1dints.fits") as hdus:
        tables = [(h.header["SPORDER"], h.data, h.header) for h in hdus if h.name == "EXTRACT1D"]
        assert [order for order, _, _ in tables] == [1, 2, 1, 2]
        image = scene.image(1).astype(float)
        for (order, data, header), (y, factor) in zip(tables, ((16, 2.0), (2, 1.5)), strict=False):
            assert header["TUNIT3"] == "MJy" and order in (1, 2)
            np.testing.assert_allclose(data["FLUX"][0], factor * image[y : y + 7, 1:28].sum(axis=0), rtol=1e-6)
        assert hdus[0].header["S_PHOTOM"] == "COMPLETE"
    curves = QTable.read(tmp_path / "out" / "jw00042-o001_t001_nircam_series_whtlt.ecsv")
    line = np.linspace(2.5, 4.0, 30)[1:28]
    for order, (low, high) in ((1, (2.6, 3.9)), (2, (3.0, 3.1))):
        data = next(d for o, d, _ in tables if o == order)
        wanted = data["FLUX"][0][(line >= low) & (line <= high)].sum()
        assert curves[f"whitelight_flux_order_{order}"][0].value == pytest.approx(wanted, rel=1e-9)


def test_slit_of_nirspec(tmp_path: Path) -> None:
    """Its name chooses the box; point sources are in MJy and have no surface brightness; columns tell the detector."""
    scene = _scene(
        EXP_TYPE="NRS_BRIGHTOBJ",
        INSTRUME="NIRSPEC",
        DETECTOR="NRS1",
        FILTER="F290LP",
        SLTNAME="S1600A1",
        SRCTYPE="POINT",
    )
    association = write_series(tmp_path, scene, LENGTHS)
    boxes = [{"id": "S200A1", "ystart": 0, "ystop": 3}, {"id": "S1600A1", "ystart": 15, "ystop": 23}]
    chosen = {
        "override_extract1d": _extract1d(tmp_path / "e.json", *boxes),
        "override_apcorr": "N/A",
        "by_segment": True,
    }
    skipped = {"skip": True}
    obs = run("tso3", association, session=_session(tmp_path), extract_1d=chosen, outlier_detection=skipped)
    files = sorted((tmp_path / "out").glob("*_x1dints.fits"))
    assert [f.name.partition("-")[2][:6] for f in files] == ["seg001", "seg002"]
    with fits.open(files[1]) as hdus:
        (table,) = (h for h in hdus if h.name == "EXTRACT1D")
        assert table.header["SLTNAME"] == "S1600A1" and len(table.data) == 4
        image = scene.image(6).astype(float)
        np.testing.assert_allclose(table.data["FLUX"][0], 1e6 * image[15:24, 1:28].sum(axis=0), rtol=1e-6)
        assert not table.data["SURF_BRIGHT"].any() and not table.data["SB_VAR_RNOISE"].any()
    document = obs.document(SpectraDocument)
    assert document is not None and any("where the source is in the slit is not known" in n for n in document.notes)
    curve = QTable.read(tmp_path / "out" / "jw00042-o001_t001_nircam_series_whtlt.ecsv")
    assert curve.colnames == ["MJD_UTC_NRS1", "BJD_TDB_NRS1", "whitelight_flux_NRS1"]


def test_a_box_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    from streamimg3.errors import InputError

    association = write_series(tmp_path, _scene(), LENGTHS)
    chosen = {"override_extract1d": _extract1d(tmp_path / "e.json", {"id": "OTHER"}), "override_apcorr": "N/A"}
    with pytest.raises(InputError, match="no target aperture with id NRC_TSGRISM"):
        run("tso3", association, session=_session(tmp_path), extract_1d=chosen)


def test_images_are_rectified_on_demand(tmp_path: Path) -> None:
    """One mosaic of all integrations; by default there is none."""
    scene = Scene(count=9, dimmed=(3, 4), rays=0)
    association = write_series(tmp_path, scene, LENGTHS)
    obs = run("tso3", association, session=_session(tmp_path), resample={"skip": False, "enable_ctx": False})
    (product,) = (tmp_path / "out").glob("*_i2d.fits")
    with fits.open(product) as hdus:
        sci = hdus["SCI"].data
        y, x = np.unravel_index(np.nanargmax(sci), sci.shape)
        assert float(hdus["WHT"].data.max()) > 0
    mean = np.mean([scene.image(k) for k in range(1, 10)], axis=0)
    assert float(np.nanmax(sci)) == pytest.approx(mean.max(), rel=0.1)
    assert obs.document(SpectraDocument) is None and y > 0 and x > 0
