"""The catalogue as an ECSV file and the segmentation map as a FITS file."""

from __future__ import annotations

from pathlib import Path

import asdf
import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import QTable
from astropy.wcs import WCS

from streamimg3 import Observation
from streamimg3.engine import Runner
from streamimg3.errors import InputError
from streamimg3.formats.catalog import catalog_table, export_catalog
from streamimg3.formats.segm import export_segm
from streamimg3.stages import source_catalog
from streamimg3.stages.source_catalog import Params
from tests.stages.catalog_scenes import crowded, segmentation, stored, table, with_references


@pytest.fixture(scope="module")
def obs(tmp_path_factory: pytest.TempPathFactory) -> Observation:
    """A store with a finished catalogue."""
    made = stored(str(tmp_path_factory.mktemp("products") / "field.zarr"), crowded(), 64)
    params = Params(npixels=9, bkg_boxsize=50, **with_references(made))
    source_catalog.run(made, params, Runner(None, 1))
    return made


def test_the_table_as_it_was_written(obs: Observation, tmp_path: Path) -> None:
    path = export_catalog(obs, str(tmp_path), {})
    assert Path(path).name == "field_cat.ecsv"
    found = QTable.read(path, format="ascii.ecsv")
    kept = table(obs)
    assert found.colnames[:4] == ["label", "xcentroid", "ycentroid", "sky_centroid"]
    for name in ("label", "aper50_flux", "isophotal_flux_err", "is_extended", "roundness", "ra_err"):
        values = found[name].value if isinstance(found[name], u.Quantity) else np.asarray(found[name])
        np.testing.assert_array_equal(values, kept[name])
        assert values.dtype == kept[name].dtype
    assert isinstance(found["sky_bbox_ur"], SkyCoord)
    np.testing.assert_array_equal(found["sky_centroid"].ra.deg, kept["sky_centroid.ra"])
    assert found["aper_total_flux"].unit == u.Jy and found["isophotal_area"].unit == u.pix**2
    assert found["nn_dist"].info.description and found["aper30_flux"].info.format == ".6e"
    assert found.meta["kron_params"] == [2.5, 1.4, 0.0] and found.meta["aperture_params"]["aperture_ee"] == [30, 50, 70]


def test_no_reader_needs_python(obs: Observation, tmp_path: Path) -> None:
    """Plain lists and numbers in the header: no tag of a programming language."""
    header = [line for line in Path(export_catalog(obs, str(tmp_path), {})).read_text().splitlines() if line[0] == "#"]
    assert not any("!!python" in line or "!numpy" in line for line in header)


def test_a_unit_that_astropy_does_not_know(tmp_path: Path) -> None:
    made = stored(str(tmp_path / "field.zarr"), crowded(), 64, bunit="frogs/fortnight")
    source_catalog.run(made, Params(npixels=9, bkg_boxsize=50), Runner(None, 1))
    assert str(catalog_table(made)["isophotal_flux"].unit) == "frogs/fortnight"
    assert "frogs/fortnight" in Path(export_catalog(made, str(tmp_path / "mine.ecsv"), {})).read_text()


@pytest.mark.parametrize("limit", [None, 1])
def test_the_map(obs: Observation, tmp_path: Path, limit: int | None) -> None:
    path = export_segm(obs, str(tmp_path), {}, limit=limit)
    assert Path(path).name == "field_segm.fits"
    with fits.open(path) as hdus:
        hdus.verify("exception")
        assert [h.name for h in hdus] == ["PRIMARY", "SCI", "ASDF"]
        np.testing.assert_array_equal(hdus["SCI"].data, segmentation(obs))
        assert hdus["SCI"].data.dtype == np.uint32 and hdus["SCI"].header["BZERO"] == 2**31
        primary = hdus[0].header
        assert primary["DATAMODL"] == "SegmentationMapModel" and primary["SCATFILE"] == "field_cat.ecsv"
        assert primary["FILENAME"] == "field_segm.fits" and primary["FILTER"] == "F200W"
        assert "BUNIT" not in hdus["SCI"].header and "PHOTMJSR" not in hdus["SCI"].header
        sky = WCS(hdus["SCI"].header).pixel_to_world(10, 20)
        with asdf.open(_tree(hdus["ASDF"])) as tree:
            here = tree["meta"]["wcs"].pixel_to_world(10, 20)
            assert tree["meta"]["source_catalog"] == "field_cat.ecsv"
            assert tree["data"]["source"] == "fits:SCI,1" if isinstance(tree["data"], dict) else True
    assert sky.separation(here).arcsec < 1e-8


def _tree(hdu: fits.BinTableHDU):  # type: ignore[no-untyped-def]
    import io

    return io.BytesIO(hdu.data["ASDF_METADATA"][0].tobytes())


def test_nothing_to_write(tmp_path: Path) -> None:
    made = stored(str(tmp_path / "field.zarr"), crowded(), 64)
    for export in (export_catalog, export_segm):
        with pytest.raises(InputError, match="no finished catalogue"):
            export(made, str(tmp_path), {})
    source_catalog.run(made, Params(snr_threshold=1e9), Runner(None, 1))
    with pytest.raises(InputError, match=r"FAILED \(no source was found\)"):
        export_catalog(made, str(tmp_path), {})
    settings = {"starfinder": "iraf", "sharplo": 0.2, "roundlo": -1.0, "roundhi": 1.0, "snr_threshold": 20.0}
    source_catalog.run(made, Params(bkg_boxsize=50, **settings), Runner(None, 1))  # type: ignore[arg-type]
    export_catalog(made, str(tmp_path), {})
    with pytest.raises(InputError, match="no segmentation map"):
        export_segm(made, str(tmp_path), {})
