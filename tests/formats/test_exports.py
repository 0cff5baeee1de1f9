"""The mosaic in other forms: compressed FITS, regions for ds9, HiPS, pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from streamimg3 import InputError, Observation, Session, run
from streamimg3.api import export_as
from streamimg3.formats.fits_packed import write_packed
from streamimg3.formats.fits_stream import Image, primary


@pytest.fixture(scope="module")
def store(field: Path, tmp_path_factory: pytest.TempPathFactory) -> Observation:
    """A finished store of the small field."""
    folder = tmp_path_factory.mktemp("exports")
    return run("image3", str(field), session=Session(output_dir=str(folder), workers=1, report=False))


def _export(store: Observation, folder: Path, kind: str) -> list[Path]:
    return [Path(p) for p in export_as(store, Session(output_dir=str(folder)), kind)]


def test_packed_without_loss(store: Observation, tmp_path: Path) -> None:
    """Every plane, header card and table of the packed file is that of the plain one; its parts can be read by themselves."""
    (packed,) = _export(store, tmp_path, "packed")
    plain = next(Path(store.url).parent.glob("*_i2d.fits"))
    assert packed.name == plain.name + ".fz"
    with fits.open(plain) as one, fits.open(packed) as other:
        assert [h.name for h in one] == [h.name for h in other]
        for a, b in zip(one, other, strict=True):
            if a.name == "ASDF":
                continue
            assert {k: str(a.header[k]) for k in a.header if k != "DATE"} == {
                k: str(b.header[k]) for k in a.header if k != "DATE"
            }
            if a.is_image and a.data is not None:
                assert type(b).__name__ == "CompImageHDU"
                np.testing.assert_array_equal(a.data, b.data)
        np.testing.assert_array_equal(other["SCI"].section[50:53, 40:60], one["SCI"].data[50:53, 40:60])


def test_packed_with_rounding(store: Observation, tmp_path: Path) -> None:
    (packed,) = _export(store, tmp_path, "packed:16")
    assert packed.name.endswith("_i2d_q16.fits.fz")
    with fits.open(packed) as hdus:
        sci, con = hdus["SCI"].data, hdus["CON"].data
    pixels = store.array("mosaic/sci")[...]
    noise = np.nanmedian(store.array("mosaic/err")[...])
    np.testing.assert_array_equal(np.isnan(sci), np.isnan(pixels))
    np.testing.assert_array_equal(con, store.array("mosaic/con")[...])
    assert 0 < np.nanmax(np.abs(sci - pixels)) < noise / 4
    with pytest.raises(InputError, match=r"packed:16"):
        _export(store, tmp_path, "packed:fine")


def test_bands_of_any_height(tmp_path: Path) -> None:
    """Flags, cubes and narrow last bands come through, whatever the bands."""
    rng = np.random.default_rng(2)
    flags = rng.integers(0, 2**32, (70, 37), np.uint32)
    cube = rng.integers(-9, 9, (2, 70, 37)).astype(np.int32)
    for rows in (64, 24, 7):
        units = [
            primary([]),
            Image("DQ", flags.shape, "uint32", lambda lead, y0, y1: flags[y0:y1].copy(), rows),
            Image("CON", cube.shape, "int32", lambda lead, y0, y1: cube[lead][y0:y1].copy(), rows),
        ]
        with open(tmp_path / "x.fits", "wb") as sink:
            assert write_packed(sink, units) == sink.tell() and sink.tell() % 2880 == 0
        with fits.open(tmp_path / "x.fits") as hdus:
            hdus.verify("exception")
            np.testing.assert_array_equal(hdus["DQ"].data, flags)
            np.testing.assert_array_equal(hdus["CON"].data, cube)


def test_regions(store: Observation, tmp_path: Path) -> None:
    """Outlines and sources lie where they belong; outlier boxes cover the flagged pixels and no other."""
    files = {p.name.rpartition("_")[2]: p for p in _export(store, tmp_path, "regions")}
    assert {"footprints.reg", "tiles.reg", "sources.reg", "outliers.reg"} == set(files)
    footprints = files["footprints.reg"].read_text().splitlines()[3:]
    assert len(footprints) == 4 and all(line.startswith("polygon(150.") for line in footprints)
    sources = files["sources.reg"].read_text().splitlines()[3:]
    assert len(sources) == store.array("catalog/label").shape[0]
    ra, dec = (float(v) for v in sources[0][8:].split(",")[:2])
    assert ra == pytest.approx(float(store.array("catalog/sky_centroid.ra")[0]), abs=1e-8)
    assert dec == pytest.approx(float(store.array("catalog/sky_centroid.dec")[0]), abs=1e-8)
    exposure = store.exposures()[0]
    drawn = np.zeros((192, 192), np.uint8)
    for line in (tmp_path / f"{exposure.record.name}_outliers.reg").read_text().splitlines()[3:]:
        x, y, width, _, _ = (float(v) for v in line[4:-1].split(","))
        start = round(x - width / 2 - 0.5)
        drawn[int(y) - 1, start : start + int(width)] = 1
    np.testing.assert_array_equal(drawn, store.array("exposures/192x192/outlier")[0])
    assert drawn.sum() > 3


def test_hips(store: Observation, tmp_path: Path) -> None:
    (folder,) = _export(store, tmp_path, "hips")
    properties = (folder / "properties").read_text()
    assert "hips_frame" in properties and (folder / "index.html").exists()
    deepest = max(folder.glob("Norder*"), key=lambda p: int(p.name[6:]))
    pixels = np.concatenate([fits.getdata(p).ravel() for p in deepest.rglob("*.fits")])
    median = np.nanmedian(store.array("mosaic/sci")[...])
    assert np.nanmedian(pixels) == pytest.approx(median, rel=0.05)
    with pytest.raises(InputError, match="does not exist yet"):
        _export(store, tmp_path, "hips")


def test_pictures(store: Observation, tmp_path: Path) -> None:
    (jpg,), (png,) = _export(store, tmp_path, "jpg"), _export(store, tmp_path, "png")
    assert jpg.read_bytes().startswith(b"\xff\xd8") and png.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="the forms are"):
        _export(store, tmp_path, "gif")
