"""The simulator: its geometry, its sky, its files and its truth agree with each other."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import asdf
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from streamimg3.errors import InputError
from streamimg3.formats import simulated_sky as sky
from streamimg3.formats.simulate import (
    Field,
    expose,
    paint_sky,
    plan_exposures,
    presets,
    simulate,
    true_sky,
    write_exposure,
)
from streamimg3.formats.simulated_headers import sci_cards
from streamimg3.formats.simulated_wcs import sky_to_plane

SMALL = Field(shape=(96, 128), dithers=2, detectors=2, seed=5)
PLANES = ["SCI", "ERR", "DQ", "AREA", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT"]


@dataclass(frozen=True)
class Simulated:
    """A small field on disk."""

    folder: Path
    association: Path

    def files(self) -> list[Path]:
        """List the members in the order of the association."""
        members = json.loads(self.association.read_text())["products"][0]["members"]
        return [self.folder / member["expname"] for member in members]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    folder = tmp_path_factory.mktemp("simulated")
    return Simulated(folder, simulate(folder, SMALL))


def test_presets_have_their_sizes() -> None:
    sizes = {name: (len(plan_exposures(field)), field.shape) for name, field in presets.items()}
    assert sizes == {"a": (4, (512, 512)), "b": (8, (2048, 2048)), "c": (24, (2048, 2048))}


def test_detectors_share_a_group_and_do_not_overlap() -> None:
    exposures = plan_exposures(presets["c"])
    assert [exposure.group for exposure in exposures] == [group for group in range(6) for _ in range(4)]
    assert [exposure.true.detector.name for exposure in exposures[:4]] == ["NRCB1", "NRCB2", "NRCB3", "NRCB4"]
    y, x = np.mgrid[0:2047:9j, 0:2047:9j]
    for one in exposures[:4]:
        for other in exposures[:4]:
            there_y, there_x = other.true.to_pixel(*one.true.to_sky(y, x))
            inside = (np.minimum(there_y, there_x) > -0.5) & (np.maximum(there_y, there_x) < 2047.5)
            assert inside.all() if one is other else not inside.any()


def test_pointings_of_a_mosaic_overlap() -> None:
    field = Field(shape=(256, 256), dithers=1, mosaic=(2, 2), dither_arcsec=0.0)
    exposures = plan_exposures(field)
    y, x = np.mgrid[0:255:52j, 0:255:52j]
    seen = []
    for other in exposures[1:]:
        there_y, there_x = other.true.to_pixel(*exposures[0].true.to_sky(y, x))
        seen.append(((np.minimum(there_y, there_x) > -0.5) & (np.maximum(there_y, there_x) < 255.5)).mean())
    np.testing.assert_allclose(seen, [0.12, 0.12, 0.12**2], atol=0.03)


def test_only_the_first_group_is_stored_without_error() -> None:
    for exposure in plan_exposures(SMALL):
        y, x = np.array([48.0]), np.array([64.0])
        ra, dec = exposure.true.to_sky(y, x)
        eta, xi = sky_to_plane(*exposure.stored.to_sky(y, x), float(ra[0]), float(dec[0]))
        # The roll error turns the detector about the middle of the group, 2" away: 1e-4".
        assert eta[0] * 1000 == pytest.approx(exposure.error[0], abs=0.2)
        assert xi[0] * 1000 == pytest.approx(exposure.error[1], abs=0.2)
        assert any(exposure.error) == (exposure.group > 0)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (16, 512)},
        {"shape": (512,)},
        {"dithers": 0},
        {"mosaic": (0, 1)},
        {"detectors": 5},
        {"detectors": 2, "instrument": "MIRI"},
        {"instrument": "WFC3"},
        {"filter": "F770W"},
        {"dec": 91.0},
        {"seed": -1},
        {"pixel_scale": 0.0},
        {"exposure_time": float("nan")},
        {"cosmic_rays": -1.0},
        {"overlap": 1.0},
        {"bad_fraction": 1.5},
    ],
)
def test_a_bad_value_is_named(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(change))) as caught:
        replace(SMALL, **change)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_painted_flux_is_the_catalog_flux() -> None:
    field = replace(SMALL, shape=(400, 400), detectors=1, galaxy_density=0.05, extended=0)
    exposure = plan_exposures(field)[0]
    catalog = true_sky(field, [exposure])
    y, x = exposure.true.to_pixel(catalog.ra, catalog.dec)
    inside = (np.minimum(y, x) > 60) & (np.maximum(y, x) < 340)
    chosen = sky.Catalog(*(getattr(catalog, name)[inside] for name in vars(catalog)))
    assert set(chosen.kind) == {"star", "galaxy"}
    painted = paint_sky(field, exposure, chosen, 1e-13)
    assert painted.sum() == pytest.approx(chosen.flux.sum(), rel=0.01)  # the limit cuts the faintest wings


def test_cosmic_rays_are_the_truth() -> None:
    exposure = plan_exposures(SMALL)[3]
    catalog = true_sky(SMALL, plan_exposures(SMALL))
    hit = expose(replace(SMALL, cosmic_rays=3000.0), exposure, catalog)
    clean = expose(replace(SMALL, cosmic_rays=0.0), exposure, catalog)
    gain = np.nan_to_num(hit.sci - clean.sci).ravel()
    good = np.isfinite(clean.sci.flat[hit.hit])
    assert good.sum() > 30
    np.testing.assert_allclose(gain[hit.hit][good], hit.charge[good], rtol=1e-5, atol=1e-5)
    gain[hit.hit] = 0.0
    assert not gain.any()


def test_noise_is_what_the_variances_say() -> None:
    field = Field(shape=(256, 256), dithers=1, cosmic_rays=0, star_density=0, galaxy_density=0, extended=0)
    exposure = plan_exposures(field)[0]
    planes = expose(field, exposure, true_sky(field, [exposure]))
    expected = np.sqrt(planes.var_poisson + planes.var_rnoise)
    pull = (planes.sci - np.float32(exposure.background)) / expected
    assert np.nanstd(pull) == pytest.approx(1.0, abs=0.02)  # 60,000 pixels: 0.003
    assert np.nanmean(pull) == pytest.approx(0.0, abs=0.02)
    assert planes.noise == pytest.approx(np.nanmedian(expected), rel=0.02)


def test_file_has_the_layout_of_a_calibrated_exposure(simulated: Simulated) -> None:
    assert [path.name for path in simulated.files()] == [e.filename for e in plan_exposures(SMALL)]
    with fits.open(simulated.files()[0]) as hdus:
        assert [hdu.name for hdu in hdus] == ["PRIMARY", *PLANES, "ASDF"]
        for name in PLANES:
            assert hdus[name].data.shape == SMALL.shape
            assert hdus[name].data.dtype.newbyteorder("=") == (np.uint32 if name == "DQ" else np.float32)
        assert hdus["DQ"].header["BZERO"] == 2**31
        assert hdus["ASDF"].columns.names == ["ASDF_METADATA"]
        primary, science = hdus[0].header, hdus["SCI"].header
        assert (primary["DATAMODL"], primary["TARGTYPE"], primary["EXP_TYPE"]) == ("ImageModel", "FIXED", "NRC_IMAGE")
        assert science["BUNIT"] == hdus["ERR"].header["BUNIT"] == "MJy/sr"
        assert science["PIXAR_A2"] == pytest.approx(0.031**2)
        assert science["PIXAR_SR"] == pytest.approx(0.031**2 / 206264.80625**2)


def test_unusable_pixels_are_nan_and_errors_add_up(simulated: Simulated) -> None:
    with fits.open(simulated.files()[1]) as hdus:
        unusable = (hdus["DQ"].data & sky.DO_NOT_USE) != 0
        assert unusable[:4].all()
        for name in ("SCI", "ERR", "VAR_POISSON", "VAR_RNOISE", "VAR_FLAT"):
            np.testing.assert_array_equal(np.isnan(hdus[name].data), unusable)
        assert np.isfinite(hdus["AREA"].data).all()
        total = sum(hdus[f"VAR_{name}"].data for name in ("POISSON", "RNOISE", "FLAT"))
        np.testing.assert_allclose(hdus["ERR"].data ** 2, total, rtol=1e-5)


def test_group_keywords_tell_simultaneous_exposures(simulated: Simulated) -> None:
    keys = ("PROGRAM", "OBSERVTN", "VISIT", "VISITGRP", "SEQ_ID", "ACT_ID", "EXPOSURE")
    headers = [fits.getheader(path) for path in simulated.files()]
    groups = ["".join(header[key] for key in keys) for header in headers]
    assert groups[0] == groups[1] != groups[2] == groups[3]
    assert headers[0]["DETECTOR"] != headers[1]["DETECTOR"]
    assert headers[0]["EXPSTART"] == headers[1]["EXPSTART"] < headers[0]["EXPEND"] < headers[2]["EXPSTART"]
    assert headers[2]["DATE-BEG"] == "2024-03-01T02:09:35.000"
    assert headers[2]["EXPSTART"] == pytest.approx(60370.0 + (2 * 3600 + 575) / 86400)


def test_stored_wcs_opens_and_agrees_with_the_header(simulated: Simulated) -> None:
    path = simulated.files()[2]
    with fits.open(path) as hdus:
        content = hdus["ASDF"].data["ASDF_METADATA"].tobytes()
        header = hdus["SCI"].header
    with asdf.open(io.BytesIO(content)) as tree:
        wcs = tree["meta"]["wcs"]
        uris = [extension["extension_uri"] for extension in tree["history"]["extensions"]]
        corners = wcs(np.array([-0.5, -0.5, 127.5, 127.5]), np.array([-0.5, 95.5, 95.5, -0.5]))
    assert uris == sorted(uris)  # else the bytes of the file change from run to run
    region = header["S_REGION"]
    assert region.startswith("POLYGON ICRS  ")
    np.testing.assert_allclose(np.array(region.split()[2:], float), np.stack(corners, 1).ravel(), atol=6e-10)
    stored = plan_exposures(SMALL)[2].stored.aim
    assert (header["RA_REF"], header["DEC_REF"], header["ROLL_REF"]) == (stored.ra, stored.dec, stored.roll)


def test_stars_are_where_the_truth_says() -> None:
    quiet = replace(SMALL, shape=(256, 256), detectors=1, cosmic_rays=0, bad_fraction=0, galaxy_density=0, extended=0)
    exposures = plan_exposures(quiet)
    catalog = true_sky(quiet, exposures)
    offsets = []
    for exposure in exposures:
        image = expose(quiet, exposure, catalog).sci - np.float32(exposure.background)
        y, x = exposure.true.to_pixel(catalog.ra, catalog.dec)
        for i in np.flatnonzero((catalog.flux > 3e-7) & (np.minimum(y, x) > 12) & (np.maximum(y, x) < 243)):
            iy, ix = round(y[i]), round(x[i])
            window, axis = image[iy - 3 : iy + 4, ix - 3 : ix + 4], np.arange(-3, 4)
            centre = np.array([window.sum(axis=1) @ axis, window.sum(axis=0) @ axis]) / window.sum()
            offsets.append(centre - (y[i] - iy, x[i] - ix))
    assert len(offsets) >= 6
    # Noise and the window of 7 px move a first moment by up to 0.15 px; half a pixel or a swapped axis is more.
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.1
    assert np.abs(offsets).max() < 0.25


def test_truth_is_written(simulated: Simulated) -> None:
    truth = simulated.folder / "truth"
    exposures, catalog = Table.read(truth / "exposures.ecsv"), Table.read(truth / "catalog.ecsv")
    assert list(exposures["file"]) == [path.name for path in simulated.files()]
    assert exposures["background"][0] == exposures["background"][1] != exposures["background"][2]
    assert set(catalog["kind"]) == {"star", "galaxy", "extended"}
    assert np.all(catalog["flux_jy"] > 0)
    for row, path in zip(exposures, simulated.files(), strict=True):
        with np.load(truth / path.name.replace("_cal.fits", "_cr.npz")) as rays:
            assert len(rays["index"]) == len(rays["value"]) == row["cr_pixels"]


def test_same_seed_same_bytes_in_any_order(simulated: Simulated, tmp_path: Path) -> None:
    (tmp_path / "truth").mkdir()
    exposures = plan_exposures(SMALL)
    catalog = true_sky(SMALL, exposures)
    for exposure in (exposures[3], exposures[0]):
        write_exposure(tmp_path, SMALL, exposure, catalog)
        for name in (exposure.filename, f"truth/{exposure.root}_cr.npz"):
            assert (tmp_path / name).read_bytes() == (simulated.folder / name).read_bytes()
    other = plan_exposures(replace(SMALL, seed=6))
    assert other[3].error != exposures[3].error


def test_another_filter_sees_the_same_sky(tmp_path: Path) -> None:
    """Places are the same, fluxes and pointing are not; headers and the product name the filter."""
    red, blue = (replace(SMALL, shape=(64, 64), filter=name) for name in ("F200W", "F115W"))
    assert red.other == 0 and plan_exposures(red)[3].error == plan_exposures(replace(red, filter=""))[3].error
    assert plan_exposures(blue)[3].error != plan_exposures(red)[3].error
    skies = [true_sky(field, plan_exposures(field)) for field in (red, blue)]
    np.testing.assert_array_equal(skies[0].ra, skies[1].ra)
    np.testing.assert_array_equal(skies[0].dec, skies[1].dec)
    magnitudes = -2.5 * np.log10(skies[1].flux / skies[0].flux)
    assert 0.2 < np.std(magnitudes) < 1.2  # 0.6 mag of a few dozen sources
    association = simulate(tmp_path, blue)
    assert association.name == "jw01234-o001_t001_nircam_clear-f115w_asn.json"
    assert {fits.getval(path, "FILTER") for path in tmp_path.glob("*_cal.fits")} == {"F115W"}


def test_miri_leaves_columns_outside(tmp_path: Path) -> None:
    field = Field(shape=(64, 80), dithers=1, instrument="MIRI", pixel_scale=0.11, star_density=0.01)
    association = simulate(tmp_path, field, name="thermal")
    assert association.name == "thermal_asn.json"
    (file,) = tmp_path.glob("*_cal.fits")
    with fits.open(file) as hdus, asdf.open(io.BytesIO(hdus["ASDF"].data["ASDF_METADATA"].tobytes())) as tree:
        wcs, dq = tree["meta"]["wcs"], hdus["DQ"].data
        assert (hdus[0].header["DETECTOR"], hdus[0].header["FILTER"]) == ("MIRIMAGE", "F770W")
        outside = np.isnan(wcs(*np.meshgrid(np.arange(80.0), np.arange(64.0)))[0])
    expected = np.zeros((64, 80), bool)
    expected[:, :4] = expected[:, -4:] = True
    np.testing.assert_array_equal(outside, expected)
    np.testing.assert_array_equal((dq & sky.NON_SCIENCE) != 0, expected)
    assert np.all(dq[expected] & sky.DO_NOT_USE)


def test_moving_target_stays_on_the_detector_while_the_sky_moves() -> None:
    field = replace(SMALL, moving=True, detectors=1, dithers=3, star_density=0.0, galaxy_density=0.0, extended=0)
    exposures = plan_exposures(field)
    catalog = true_sky(field, exposures)
    assert list(catalog.kind) == ["target"]
    for exposure in exposures:
        image = paint_sky(field, exposure, catalog, 1e-12)
        y, x = exposure.true.to_pixel(*exposure.target)
        assert int(image.argmax()) == round(float(y)) * image.shape[1] + round(float(x))
        cards = sci_cards(field, exposure)
        assert (cards["MT_RA"], cards["MT_DEC"]) == exposure.target
    track = np.array([exposure.target for exposure in exposures])
    _, east = sky_to_plane(track[:, 0], track[:, 1], field.ra, field.dec)
    np.testing.assert_allclose(np.diff(east), 575 * 0.004, rtol=1e-6)
    assert catalog.ra[0] == pytest.approx(exposures[1].target[0])


def test_bad_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="product name"):
        simulate(tmp_path, SMALL, name="a/b")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="folder"):
        simulate(tmp_path / "file", SMALL)


def test_import_is_light() -> None:
    code = (
        "import sys, streamimg3; before = set(sys.modules); import streamimg3.formats.simulate; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before} - {'numpy', 'streamimg3'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"gwcs", "asdf", "scipy", "astropy"} & set(done.stdout.split())
