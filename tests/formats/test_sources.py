"""Exposure sources: JWST files, other telescopes' files, their WCS, and what is refused."""

from __future__ import annotations

import functools
import gzip
import io
import tempfile
import threading
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.formats.association import Member
from streamimg3.formats.generic_fits import fits_wcs_text
from streamimg3.formats.sources import RECORD_FIELDS, Source, open_sources

M17 = Path(__file__).parents[1] / "data" / "2mass_m17"
NY, NX = 12, 9
ASDF = b"#ASDF 1.0.0\n%YAML 1.1\n--- !core/asdf-1.1.0\nmeta:\n  wcs: !<tag:stsci.edu:gwcs/wcs-1.3.0> {}\n...\n"
GROUP = {
    "PROGRAM": "01234",
    "OBSERVTN": "001",
    "VISIT": "002",
    "VISITGRP": "03",
    "SEQ_ID": "1",
    "ACT_ID": "05",
    "EXPOSURE": "00007",
}
TAN: dict[str, Any] = {
    "CTYPE1": "RA---TAN",
    "CTYPE2": "DEC--TAN",
    "CRVAL1": 150.0,
    "CRVAL2": 2.0,
    "CRPIX1": 5.0,
    "CRPIX2": 6.0,
    "CD1_1": -1e-4,
    "CD1_2": 2e-5,
    "CD2_1": 2e-5,
    "CD2_2": 1e-4,
}


def _pixels(shape: tuple[int, ...] = (NY, NX), seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _image(data: NDArray[np.generic] | None, name: str | None = None, version: int = 1, **cards: Any) -> fits.ImageHDU:
    hdu = fits.ImageHDU(data, name=name, ver=version)
    hdu.header.update(cards)
    return hdu


def _asdf_hdu(content: bytes = ASDF) -> fits.BinTableHDU:
    row = np.frombuffer(content, dtype=np.uint8)
    column = fits.Column("ASDF_METADATA", f"{row.size}B", array=row[None])
    return fits.BinTableHDU.from_columns([column], name="ASDF")


def _jwst_hdus(**sci_cards: Any) -> list[fits.hdu.base.ExtensionHDU]:
    primary = fits.PrimaryHDU()
    primary.header.update(
        {"TELESCOP": "JWST", "INSTRUME": "NIRCAM", "DETECTOR": "NRCB1", "FILTER": "F200W", "PUPIL": "CLEAR"}
        | {"EXP_TYPE": "NRC_IMAGE", "DATAMODL": "ImageModel", "TARGTYPE": "FIXED", "EFFEXPTM": 515.0, "TMEASURE": 514.0}
        | {"DURATION": 520.5, "EXPSTART": 60370.1, "EXPEND": 60370.2, "BKGLEVEL": 0.5, "BKGSUB": False}
        | GROUP
    )
    sci: dict[str, Any] = {
        "BUNIT": "MJy/sr",
        "RA_REF": 150.1,
        "DEC_REF": 2.2,
        "ROLL_REF": 32.0,
        "V3I_YANG": 0.3,
        "VPARITY": -1,
    }
    region = "POLYGON ICRS  150.116879758 2.200179108 150.117465637 2.201104285 150.116543939 2.201689152 150.1 2.2"
    sci |= {"PIXAR_SR": 2.2e-14, "PIXAR_A2": 9.4e-4, "S_REGION": region}
    dq = np.arange(NY * NX, dtype=np.uint32).reshape(NY, NX)
    dq[0, 0] = 2**31 + 5
    return [
        primary,
        _image(_pixels(seed=1), "SCI", **(sci | sci_cards)),
        _image(_pixels(seed=2), "ERR"),
        _image(dq, "DQ"),
        _image(_pixels(seed=3), "AREA"),
        _image(_pixels(seed=4), "VAR_POISSON"),
        _image(_pixels(seed=5), "VAR_RNOISE"),
        _image(_pixels(seed=6), "VAR_FLAT"),
        _asdf_hdu(),
    ]


def _write(path: Path, hdus: list[fits.hdu.base.ExtensionHDU]) -> str:
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return str(path)


def _frame(path: Path, data: NDArray[np.generic] | None = None, **cards: Any) -> str:
    hdu = fits.PrimaryHDU(_pixels() if data is None else data)
    hdu.header.update(TAN | cards)
    return _write(path, [hdu])


def _read(source: Source, name: str = "sci", band: int = 5) -> NDArray[np.generic]:
    plane = source.plane(name)
    assert plane is not None
    ny = source.shape[0]
    rows = [plane.read(y, min(y + band, ny)) for y in range(0, ny, band)]
    assert all(row.dtype == plane.dtype and row.dtype.isnative and row.flags.c_contiguous for row in rows)
    return np.vstack(rows)


def _one(url: str, **member: str) -> Source:
    """Return a file's only source, closed: its planes no longer read, all the rest stays."""
    with open_sources(Member(url, "science", **member), {}) as (source,):
        return source


def _refused(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught, open_sources(Member(url, "science"), {}):
        pass
    assert "\n" not in str(caught.value)
    assert url.rsplit("/", 1)[-1] in str(caught.value)


def _rebuilt(source: Source) -> WCS:
    assert source.wcs_cards is not None
    header = fits.Header.fromstring(source.wcs_cards)
    if source.wcs_tables is None:
        return WCS(header)
    with fits.open(io.BytesIO(source.wcs_tables), memmap=False) as tables:
        return WCS(header, tables)


def _corners(source: Source) -> NDArray[np.float64]:
    text = source.record["s_region"]
    assert isinstance(text, str) and text.startswith("POLYGON ICRS  ")
    return np.array(text.split()[2:], dtype=float).reshape(4, 2)


# JWST files


def test_jwst_planes_are_read_in_bands(tmp_path: Path) -> None:
    url = _write(tmp_path / "jw01_nrcb1_cal.fits", _jwst_hdus())
    with open_sources(Member(url, "science"), {}) as (source,), fits.open(url) as whole:
        names = [plane.name for plane in source.planes]
        assert names == ["sci", "err", "dq", "var_poisson", "var_rnoise", "var_flat", "area"]
        for plane in names:
            assert np.array_equal(_read(source, plane), whole[plane.upper()].data)
        assert (source.name, source.filename, source.url) == ("jw01_nrcb1", "jw01_nrcb1_cal.fits", url)
        assert source.shape == (NY, NX)
        assert source.is_jwst and source.notes == ()


def test_jwst_asdf_and_cards_are_verbatim(tmp_path: Path) -> None:
    url = _write(tmp_path / "a_cal.fits", _jwst_hdus())
    source = _one(url)
    assert source.asdf == ASDF
    assert source.wcs_cards is None and source.wcs_tables is None
    raw = Path(url).read_bytes()
    assert raw.startswith(source.primary_cards.encode() + b"END   ")
    assert source.sci_cards.encode() + b"END   " in raw
    assert len(source.sci_cards) % 80 == 0 and source.sci_cards.startswith("XTENSION")


def test_jwst_record(tmp_path: Path) -> None:
    record = _one(_write(tmp_path / "a_cal.fits", _jwst_hdus())).record
    assert tuple(record) == RECORD_FIELDS
    assert record["exposure_time"] == 515.0 and record["measurement_time"] == 514.0 and record["duration"] == 520.5
    assert (record["start_mjd"], record["end_mjd"]) == (60370.1, 60370.2)
    assert (record["bunit"], record["bkglevel"], record["bkgsub"], record["bkgmeth"]) == ("MJy/sr", 0.5, False, None)
    assert (record["ra_ref"], record["roll_ref"], record["v3yangle"], record["vparity"]) == (150.1, 32.0, 0.3, -1)
    assert record["group_id"] == "jw01234001002_03105_00007"
    assert record["detector"] == "NRCB1" and record["mt_ra"] is None
    assert isinstance(record["s_region"], str) and record["s_region"].endswith("150.1 2.2")  # from CONTINUE cards


def test_group_id_of_the_member_wins_and_missing_keywords_give_none(tmp_path: Path) -> None:
    hdus = _jwst_hdus()
    assert _one(_write(tmp_path / "a_cal.fits", hdus), group_id="mine").record["group_id"] == "mine"
    del hdus[0].header["ACT_ID"]
    assert _one(_write(tmp_path / "b_cal.fits", hdus)).record["group_id"] is None


def test_jwst_missing_and_empty_planes_are_noted(tmp_path: Path) -> None:
    hdus = [hdu for hdu in _jwst_hdus() if hdu.name not in ("ERR", "DQ", "VAR_FLAT")]
    source = _one(_write(tmp_path / "a_cal.fits", [*hdus, _image(None, "VAR_FLAT")]))
    assert [plane.name for plane in source.planes] == ["sci", "var_poisson", "var_rnoise", "area"]
    assert source.notes == ("no ERR", "no DQ: NaN pixels are bad", "no VAR_FLAT (the extension is empty)")


@pytest.mark.parametrize("kind", ["absent", "without wcs", "damaged"])
def test_jwst_without_gwcs_uses_the_fits_wcs(tmp_path: Path, kind: str) -> None:
    hdus = _jwst_hdus(**TAN)[:-1]
    if kind != "absent":
        hdus.append(_asdf_hdu(b"#ASDF 1.0.0\nmeta: {}\n" if kind == "without wcs" else b"junk"))
    source = _one(_write(tmp_path / "a_rate.fits", hdus))
    assert source.asdf is None and source.is_jwst
    assert any("the FITS WCS is used" in note for note in source.notes)
    assert np.allclose(_rebuilt(source).wcs.crval, (150.0, 2.0))


def test_old_asdf_image_extension(tmp_path: Path) -> None:
    hdus = [*_jwst_hdus()[:-1], _image(np.frombuffer(ASDF, dtype=np.uint8), "ASDF")]
    assert _one(_write(tmp_path / "a_cal.fits", hdus)).asdf == ASDF


def test_bad_jwst_files(tmp_path: Path) -> None:
    def variant(change: Callable[[list[fits.hdu.base.ExtensionHDU]], object]) -> str:
        hdus = _jwst_hdus()
        change(hdus)
        return _write(tmp_path / "bad_cal.fits", hdus)

    def put(position: int, hdu: fits.ImageHDU) -> Callable[[list[fits.hdu.base.ExtensionHDU]], object]:
        return lambda hdus: hdus.__setitem__(position, hdu)

    _refused(variant(lambda hdus: hdus.pop()), "neither a gWCS nor a FITS WCS; run assign_wcs")
    _refused(variant(put(3, _image(np.zeros((4, 4), np.uint32), "DQ"))), r"DQ has shape \(4, 4\), SCI \(12, 9\)")
    _refused(variant(put(1, _image(_pixels((3, NY, NX)), "SCI"))), r"ERR has shape \(12, 9\), SCI \(3, 12, 9\)")
    _refused(variant(put(1, _image(_pixels((1, 2, NY, NX)), "SCI"))), "uncalibrated ramp .* calwebb_detector1")
    _refused(variant(put(1, _image(None, "SCI"))), "SCI holds no pixels")
    _refused(variant(lambda hdus: hdus.append(_image(_pixels(), "SCI", 2))), "2 SCI extensions")
    _refused(variant(lambda hdus: hdus[1].header.update(S_REGION="POLYGON ICRS  nan nan")), "WCS is not finite")
    _refused(variant(lambda hdus: hdus[1].header.update(RA_REF="unknown")), "RA_REF is 'unknown', not a number")


# Other telescopes


def test_2mass_frame_from_gzip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = M17 / "aK_asky_990502s1350080.fits.gz"
    with open_sources(Member(str(path), "science"), {}) as (source,), fits.open(path) as whole:
        assert (source.name, source.shape) == ("aK_asky_990502s1350080", (1024, 512))
        assert np.array_equal(_read(source, band=300), whole[0].data, equal_nan=True)
        assert list(tmp_path.iterdir()) == []  # the copy has no name, so nothing can be left behind
        header = whole[0].header
        expected = WCS(header).calc_footprint(center=False)
    assert "MAGZP   =              19.9355" in source.sci_cards
    assert source.notes == ("no ERR", "no DQ: NaN pixels are bad")
    # Nine decimals are printed.
    assert np.allclose(_corners(source), expected, atol=1e-9)
    assert source.record["exposure_time"] is None and source.record["group_id"] is None


def _hst(path: Path) -> str:
    primary = fits.PrimaryHDU()
    primary.header.update(TELESCOP="HST", EXPTIME=400.0, EXPSTART=53436.3, FILTER1="CLEAR1L", FILTER2="F606W")
    hdus = [primary]
    for version in (1, 2):
        dq = np.zeros((NY, NX), np.int16)
        dq[version, 0], dq[0, 1] = 4096, -32768
        sci = _image(_pixels(seed=version), "SCI", version, **(TAN | {"CRVAL1": 150.0 + version}))
        hdus += [sci, _image(_pixels(seed=8), "ERR", version), _image(dq, "DQ", version)]
    return _write(path, hdus)


def test_every_hst_chip_is_a_source(tmp_path: Path) -> None:
    with open_sources(Member(_hst(tmp_path / "j9_flc.fits"), "science"), {}) as sources:
        assert [source.name for source in sources] == ["j9_flc_sci1", "j9_flc_sci2"]
        for version, source in enumerate(sources, start=1):
            assert np.array_equal(_read(source), _pixels(seed=version))
            assert [plane.name for plane in source.planes] == ["sci", "err", "dq"]
            # Foreign bits mean nothing here: any of them becomes DO_NOT_USE.
            bad = np.argwhere(_read(source, "dq") == 1).tolist()
            assert bad == [[0, 1], [version, 0]]
            assert source.record["group_id"] == "j9_flc" and not source.is_jwst
            assert (source.record["exposure_time"], source.record["filter"]) == (400.0, "F606W")
    assert sources[0].record["s_region"] != sources[1].record["s_region"]


def test_member_group_id_applies_to_all_chips(tmp_path: Path) -> None:
    with open_sources(Member(_hst(tmp_path / "j9_flc.fits"), "science", "g"), {}) as sources:
        assert {source.record["group_id"] for source in sources} == {"g"}


def test_empty_hst_planes_are_noted(tmp_path: Path) -> None:
    sci = _image(_pixels(), "SCI", **TAN)
    source = _one(_write(tmp_path / "j_flt.fits", [fits.PrimaryHDU(), sci, _image(None, "ERR"), _image(None, "DQ")]))
    assert [plane.name for plane in source.planes] == ["sci"]
    assert source.notes[:2] == ("ERR is empty", "DQ is empty")


def _mosaic(path: Path, values: Callable[[int], NDArray[np.generic]]) -> str:
    hdus = [fits.PrimaryHDU()]
    for i, name in enumerate(("S4", "N4")):
        hdu = fits.CompImageHDU(values(i), name=name, compression_type="GZIP_2", quantize_level=0)
        hdu.header.update(TAN | {"CRVAL2": float(i)})
        hdus.append(hdu)
    return _write(path, hdus)


def test_fpacked_mosaic_with_companions_by_name(tmp_path: Path) -> None:
    url = _mosaic(tmp_path / "c4d_1_ooi_r.fits.fz", lambda i: _pixels(seed=i))
    _mosaic(tmp_path / "c4d_1_oow_r.fits.fz", lambda i: np.full((NY, NX), i + 0.5, np.float32))
    _mosaic(tmp_path / "c4d_1_ood_r.fits.fz", lambda i: np.full((NY, NX), 3 * i, np.int32))
    with open_sources(Member(url, "science"), {}) as sources:
        assert [source.name for source in sources] == ["c4d_1_ooi_r_s4", "c4d_1_ooi_r_n4"]
        for i, source in enumerate(sources):
            assert np.array_equal(_read(source), _pixels(seed=i))
            assert np.all(_read(source, "weight") == i + 0.5)
            assert np.all(_read(source, "dq") == i)
            assert "weight map c4d_1_oow_r.fits.fz used" in source.notes
            assert source.sci_cards.startswith("XTENSION= 'IMAGE") and "ZIMAGE" not in source.sci_cards


def test_companions_named_by_the_member(tmp_path: Path) -> None:
    url = _frame(tmp_path / "a.fits")
    weight = _write(tmp_path / "w.fits", [fits.PrimaryHDU(np.full((NY, NX), 2.0, np.float32))])
    mask = _write(tmp_path / "m.fits", [fits.PrimaryHDU(np.ones((NY, NX), np.uint8))])
    with open_sources(Member(url, "science", weight=weight, dq=mask), {}) as (source,):
        assert np.all(_read(source, "weight") == 2.0) and np.all(_read(source, "dq") == 1)
    small = _write(tmp_path / "s.fits", [fits.PrimaryHDU(np.zeros((2, 2), np.float32))])
    with pytest.raises(InputError, match=r"s\.fits: its weight map has shape \(2, 2\), the image in a\.fits"):
        _one(url, weight=small)
    two = _write(tmp_path / "t.fits", [fits.PrimaryHDU(), _image(_pixels(), "A"), _image(_pixels(), "B")])
    with pytest.raises(InputError, match=r"t\.fits: holds 2 2-D images, but a\.fits has 1"):
        _one(url, dq=two)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("kind", ["scaled", "blank", "unsigned with blank", "float64"])
def test_scaled_and_integer_images(tmp_path: Path, kind: str, compress: bool) -> None:
    raw = np.arange(NY * NX, dtype=np.float64 if kind == "float64" else np.int16).reshape(NY, NX)
    kinds: dict[str, dict[str, Any]] = {
        "scaled": {"BSCALE": 0.5, "BZERO": 10.0},
        "blank": {"BLANK": 7},
        "unsigned with blank": {"BZERO": 32768, "BLANK": 7},
        "float64": {},
    }
    cards = kinds[kind]
    expected = (raw * cards.get("BSCALE", 1.0) + cards.get("BZERO", 0.0)).astype(np.float32)
    if "BLANK" in cards:
        expected[raw == 7] = np.nan
    path = tmp_path / "a.fits"
    hdu = fits.CompImageHDU(raw, compression_type="GZIP_1") if compress else fits.ImageHDU(raw)
    hdu.header.update(TAN)
    _write(path, [fits.PrimaryHDU(), hdu])
    _add_cards(path, cards)
    with open_sources(Member(str(path), "science"), {}) as (source,):
        assert np.array_equal(_read(source), expected, equal_nan=True)


def _add_cards(path: Path, cards: dict[str, Any]) -> None:
    """Write cards into the last header's padding as they are: astropy would convert the pixels to suit them."""
    text = b"".join(fits.Card(key, value).image.encode() for key, value in cards.items()) + b"END".ljust(80)
    raw = path.read_bytes()
    end = raw.index(b"END".ljust(80), 2880)
    assert raw[end + 80 : end + len(text)].strip() == b""
    path.write_bytes(raw[:end] + text + raw[end + len(text) :])


def test_names_stay_different_when_versions_repeat(tmp_path: Path) -> None:
    hdus = [fits.PrimaryHDU(), _image(_pixels(), None, **TAN), _image(_pixels(), None, **TAN)]
    with open_sources(Member(_write(tmp_path / "g.fits", hdus), "science"), {}) as sources:
        assert [source.name for source in sources] == ["g_hdu1", "g_hdu2"]


def test_image_inherits_the_primary_wcs(tmp_path: Path) -> None:
    primary = fits.PrimaryHDU()
    primary.header.update(TAN)
    source = _one(_write(tmp_path / "a.fits", [primary, _image(_pixels(), "SCI")]))
    assert np.allclose(_rebuilt(source).wcs.crval, (150.0, 2.0))
    primary = fits.PrimaryHDU()
    primary.header["EQUINOX"] = 1950.0
    source = _one(_write(tmp_path / "b.fits", [primary, _image(_pixels(), "SCI", INHERIT=True, **TAN)]))
    assert _rebuilt(source).wcs.radesys == "FK4"


def test_unreadable_exposure_time_is_noted(tmp_path: Path) -> None:
    source = _one(_frame(tmp_path / "a.fits", EXPTIME="30 s", XPOSURE=29.5))
    assert source.record["exposure_time"] == 29.5
    assert "EXPTIME is not a number: ignored" in source.notes


# WCS


def test_outline_order_and_frames(tmp_path: Path) -> None:
    x = np.array([-0.5, -0.5, NX - 0.5, NX - 0.5])
    y = np.array([-0.5, NY - 0.5, NY - 0.5, -0.5])
    frames: tuple[dict[str, Any], ...] = (
        {},
        {"RADESYS": "FK5", "EQUINOX": 1975.0},
        {"RADESYS": "FK4", "EQUINOX": 1950.0},
        {"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"},
        {"CRVAL1": 0.0},
    )
    for i, cards in enumerate(frames):
        source = _one(_frame(tmp_path / f"f{i}.fits", **cards))
        sky = _rebuilt(source).pixel_to_world(x, y).icrs
        # Half of the last printed decimal, and a little for the text's rounding.
        assert np.max(np.abs(_corners(source) - np.transpose([sky.ra.deg, sky.dec.deg]))) < 6e-10
        assert np.all((_corners(source)[:, 0] >= 0) & (_corners(source)[:, 0] < 360))


def test_wcs_cards_rebuild_the_same_wcs(tmp_path: Path) -> None:
    sip = {
        "A_ORDER": 2,
        "B_ORDER": 2,
        "A_2_0": 1e-5,
        "B_0_2": -2e-5,
        "CTYPE1": "RA---TAN-SIP",
        "CTYPE2": "DEC--TAN-SIP",
    }
    tpv = {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV", "PV1_1": 1.0, "PV2_1": 1.0, "PV1_7": 0.02, "PV2_7": 0.01}
    old = {"RADECSYS": "FK5", "DATE-OBS": "2001-01-01T00:00:00", "HISTORY": "long ago"}
    pixels = np.array([[0.0, 0.0], [3.0, 8.0], [100.0, 100.0]])
    dialects: tuple[dict[str, Any], ...] = (sip, tpv, old)
    for i, cards in enumerate(dialects):
        url = _frame(tmp_path / f"w{i}.fits", **cards)
        source = _one(url)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reference = WCS(fits.getheader(url))
        assert np.array_equal(_rebuilt(source).all_pix2world(pixels, 0), reference.all_pix2world(pixels, 0))
        assert fits_wcs_text(source) == source.wcs_cards


def test_old_scamp_polynomial_is_read_as_tpv(tmp_path: Path) -> None:
    pv: dict[str, Any] = {"PV1_1": 1.0, "PV2_1": 1.0, "PV1_7": 0.02, "PV2_7": 0.01}
    tpv = _one(_frame(tmp_path / "new.fits", CTYPE1="RA---TPV", CTYPE2="DEC--TPV", **pv))
    tan = _one(_frame(tmp_path / "old.fits", **pv, A_ORDER=2, B_ORDER=2, A_2_0=1.0))
    assert tan.record["s_region"] == tpv.record["s_region"]
    assert _rebuilt(tan).sip is None
    assert tan.notes[0] == "WCS: -TAN with a PV polynomial is read as -TPV"


def test_sip_without_its_name_is_applied_and_noted(tmp_path: Path) -> None:
    sip: dict[str, Any] = {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-4, "B_0_2": 1e-4}
    named = _one(_frame(tmp_path / "a.fits", **sip | {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"}))
    plain = _one(_frame(tmp_path / "b.fits", **sip))
    assert plain.record["s_region"] == named.record["s_region"]
    assert plain.notes[0] == "WCS: SIP coefficients are applied although CTYPE lacks -SIP"
    assert plain.wcs_cards is not None
    assert len(plain.wcs_cards) % 80 == 0


def test_damaged_headers_end_in_one_line(tmp_path: Path) -> None:
    """Change random characters of header cards: whatever happens, nothing but InputError comes out."""
    files = [
        _write(tmp_path / "a_cal.fits", _jwst_hdus()),
        _lookup_file(tmp_path / "b.fits"),
        _hst(tmp_path / "c.fits"),
    ]
    files.append(_mosaic(tmp_path / "d.fits.fz", lambda i: _pixels(seed=i)))
    rng = np.random.default_rng(5)
    refused = 0
    for i in range(160):
        raw = bytearray(Path(files[i % 4]).read_bytes())
        cards = [at for at in range(0, len(raw), 80) if raw[at + 8 : at + 10] == b"= "]
        for at in rng.choice(cards, 2):
            raw[at + rng.integers(30)] = rng.choice(list(b"0-9.ET '\x07A"))
        path = tmp_path / "x.fits"
        path.write_bytes(raw)
        try:
            with open_sources(Member(str(path), "science"), {}) as sources:
                for source in sources:
                    for plane in source.planes:
                        plane.read(0, source.shape[0])
        except InputError as exc:
            refused += 1
            assert "x.fits" in str(exc) and "\n" not in str(exc)
    assert 0 < refused < 160


def _lookup_file(path: Path, *, with_tables: bool = True) -> str:
    table = np.linspace(-1.0, 1.0, 16, dtype=np.float32).reshape(4, 4)
    sci = _image(_pixels(), "SCI", **TAN)
    hdus = [fits.PrimaryHDU(), sci]
    for axis in (1, 2):
        sci.header[f"CPDIS{axis}"] = "LOOKUP"
        for key, value in (("EXTVER", axis), ("NAXES", 2), ("AXIS.1", 1), ("AXIS.2", 2)):
            sci.header.append(fits.Card.fromstring(f"DP{axis}     = '{key}: {float(value)}'"), end=True)
        place = {"CRPIX1": 1.0, "CRPIX2": 1.0, "CRVAL1": 1.0, "CRVAL2": 1.0, "CDELT1": 4.0, "CDELT2": 4.0}
        hdus += [_image(table * axis, "WCSDVARR", axis, **place)] if with_tables else []
    return _write(path, hdus)


def test_lookup_table_distortion_travels_with_the_cards(tmp_path: Path) -> None:
    url = _lookup_file(tmp_path / "j_flc.fits")
    source = _one(url)
    pixels = np.array([[0.0, 0.0], [3.0, 8.0], [6.0, 2.0]])
    with fits.open(url) as whole:
        reference = WCS(whole["SCI"].header, whole)
        assert reference.cpdis1 is not None
        assert np.array_equal(_rebuilt(source).all_pix2world(pixels, 0), reference.all_pix2world(pixels, 0))
    assert "WCS uses look-up tables" in source.notes
    assert [plane.name for plane in source.planes] == ["sci"]
    _refused(_lookup_file(tmp_path / "k_flc.fits", with_tables=False), "look-up table WCSDVARR.* is not in the file")


@pytest.mark.parametrize("value", ["NaN", "nan", "Inf", "1E999", "'NaN     '", "'abc     '"])
def test_wcs_keywords_that_are_no_numbers(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.fits"
    _frame(path)
    good = b"CRVAL1  =                150.0"
    raw = path.read_bytes()
    assert good in raw
    path.write_bytes(raw.replace(good, b"CRVAL1  = " + value.encode().rjust(20)))
    _refused(str(path), "CRVAL1 (is|has no)")


@pytest.mark.parametrize(
    ("cards", "message"),
    [
        ({"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}, "no celestial WCS"),
        ({"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"}, r"SIP distortion is incomplete \(A_ORDER"),
        ({"A_ORDER": 2, "A_2_0": 1e-6}, r"SIP distortion is incomplete \(B_ORDER"),
        ({"CD1_1": 0.0, "CD1_2": 0.0}, "WCS is not usable"),
        ({"CTYPE1": "RA---XYZ", "CTYPE2": "DEC--XYZ"}, "WCS is not usable"),
        ({"CTYPE2": "GLAT-TAN"}, "WCS is not usable"),
        ({"WCSAXES": 3, "CTYPE3": "FREQ"}, "WCS has 3 axes"),
        (
            {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 5.0, "CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"},
            "(cannot be inverted|does not work at the image corners)",
        ),
    ],
)
def test_wcs_that_cannot_work_is_refused(tmp_path: Path, cards: dict[str, Any], message: str) -> None:
    _refused(_frame(tmp_path / "a.fits", **cards), message)


# Files


def test_not_fits_empty_and_packed(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    for content, message in (
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "is not a FITS file"),
        (b"PK\x03\x04rest", "packed with zip"),
        (b"SIMPLE  =                    T".ljust(2880), "truncated inside the header of HDU 0"),
    ):
        path.write_bytes(content)
        _refused(str(path), message)
    _refused(str(tmp_path / "none.fits"), "does not exist")
    _refused(str(tmp_path), "is a folder")


@pytest.mark.parametrize("cut", [1, 100, 2879, 2880, 2881, 4000, 6000, 10000, 12000])
def test_truncated_files_are_found_before_any_pixel_is_read(tmp_path: Path, cut: int) -> None:
    hdus = [fits.PrimaryHDU(), _image(_pixels((40, 50)), "SCI", **TAN), _image(_pixels((40, 50)), "ERR")]
    path = tmp_path / "a.fits"
    _write(path, hdus)
    raw = path.read_bytes()
    padding = -(40 * 50 * 4) % 2880
    path.write_bytes(raw[: len(raw) - padding - cut])
    _refused(str(path), "is truncated")


def test_missing_padding_is_no_harm_and_junk_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    _frame(path)
    raw = path.read_bytes()
    path.write_bytes(raw[: -(-NY * NX * 4 % 2880)])
    with open_sources(Member(str(path), "science"), {}) as (source,):
        assert np.array_equal(_read(source), _pixels())
    path.write_bytes(raw + b"\0" * 1000)
    assert _one(str(path)).notes[0] == "1000 bytes after the last HDU are ignored"


def test_damaged_gzip(tmp_path: Path) -> None:
    packed = gzip.compress(Path(_frame(tmp_path / "a.fits")).read_bytes())
    path = tmp_path / "b.fits.gz"
    path.write_bytes(packed[:-20])
    _refused(str(path), "truncated or damaged gzip")
    path.write_bytes(packed[:40] + bytes(20) + packed[60:])
    _refused(str(path), "truncated or damaged gzip")
    plain_name = tmp_path / "c.fits"
    plain_name.write_bytes(packed)  # recognised by content, not by name
    assert _one(str(plain_name)).shape == (NY, NX)


@pytest.mark.parametrize(
    ("hdus", "message"),
    [
        ([fits.PrimaryHDU()], "holds no image"),
        ([fits.PrimaryHDU(_pixels((2, NY, NX)))], "needs a 2-D image"),
        ([fits.PrimaryHDU(_pixels())], "no celestial WCS"),
        ([fits.PrimaryHDU(), _image(_pixels(), "SCI", **TAN), _image(_pixels((3, 3)), "ERR")], "ERR has shape"),
    ],
)
def test_files_without_a_usable_image(tmp_path: Path, hdus: list[fits.hdu.base.ExtensionHDU], message: str) -> None:
    _refused(_write(tmp_path / "a.fits", hdus), message)


def test_rows_outside_the_image_are_an_error(tmp_path: Path) -> None:
    with open_sources(Member(_frame(tmp_path / "a.fits"), "science"), {}) as (source,):
        for y0, y1 in ((0, NY + 1), (-1, 2), (3, 3)):
            with pytest.raises(ValueError, match="are not inside"):
                source.planes[0].read(y0, y1)


def test_a_band_is_all_that_is_held(tmp_path: Path) -> None:
    url = _frame(tmp_path / "a.fits", np.zeros((1024, 1024), np.int16), BSCALE=1.0)
    with open_sources(Member(url, "science"), {}) as (source,):
        plane = source.planes[0]
        plane.read(0, 16)
        tracemalloc.start()
        for y in range(0, 1024, 16):
            plane.read(y, y + 16)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # A band is 64 KiB as float32; its copies while it is converted make a few of these, the whole image would be 4 MiB.
    assert peak < 400_000


@pytest.fixture
def memory_folder() -> Iterator[str]:
    fs = fsspec.filesystem("memory")
    yield "memory://sources"
    fs.rm("/sources", recursive=True)


def test_remote_files_read_the_same(tmp_path: Path, memory_folder: str) -> None:
    fs = fsspec.filesystem("memory")
    content = Path(_write(tmp_path / "a_cal.fits", _jwst_hdus())).read_bytes()
    fs.pipe("/sources/a_cal.fits", content)
    fs.pipe("/sources/b_cal.fits.gz", gzip.compress(content))
    for name in ("a_cal.fits", "b_cal.fits.gz"):
        with open_sources(Member(f"{memory_folder}/{name}", "science"), {}) as (source,):
            assert np.array_equal(_read(source), _pixels(seed=1))
            assert source.asdf == ASDF
    _refused(f"{memory_folder}/c_cal.fits", "does not exist")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A plain web server, which cannot send parts of a file."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_web_server_without_ranges(tmp_path: Path, web: str) -> None:
    _frame(tmp_path / "a.fits")
    with open_sources(Member(f"{web}/a.fits", "science"), {}) as (source,):
        assert np.array_equal(_read(source), _pixels())
    _refused(f"{web}/none.fits", "does not exist")
