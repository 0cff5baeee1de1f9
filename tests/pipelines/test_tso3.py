"""tso3 from files to products, judged by the truth of simulated transits (spec others §2)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable

from streamimg3 import Observation, Session, run
from streamimg3.engine.runner import Progress
from streamimg3.errors import InputError
from streamimg3.store.series import series_name, time_series
from streamimg3.store.series_documents import PhotometryDocument, SpectraDocument
from tests.pipelines.time_series import AREA, DAY, STEP, Scene, write_series

IMAGES = Scene()
SPECTRA = Scene(spectra=True, shape=(32, 60), flux=60.0)
LENGTHS = (130, 100, 70)
VARIABLE = {"variability": True}  # the star jitters by more than the errors of its pixels say


class Notes(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Observation, Path]:
    folder = tmp_path_factory.mktemp("images")
    association = write_series(folder, IMAGES, LENGTHS)
    session = Session(output_dir=str(folder), workers=1)
    photometry = {"radius": 4.0, "radius_inner": 7.0, "radius_outer": 10.0, "radii": [3.0, 5.0], "save_catalog": True}
    return run("tso3", association, session=session, tso_photometry=photometry, outlier_detection=VARIABLE), folder


@pytest.fixture(scope="module")
def spectra(tmp_path_factory: pytest.TempPathFactory) -> tuple[Observation, Path]:
    folder = tmp_path_factory.mktemp("spectra")
    association = write_series(folder, SPECTRA, LENGTHS)
    session = Session(output_dir=str(folder), workers=1)
    chosen = {"override_extract1d": str(folder / "extract1d.json"), "override_apcorr": "N/A"}
    white = {"errors": True}
    obs = run(
        "calwebb_tso3", association, session=session, extract_1d=chosen, white_light=white, outlier_detection=VARIABLE
    )
    return obs, folder


def transit(scene: Scene, flux: np.ndarray) -> tuple[float, float]:
    """Depth and its error from medians in and out of the transit."""
    number = np.arange(1, scene.count + 1)
    inside = (number >= scene.dimmed[0]) & (number <= scene.dimmed[1])
    low, high = np.median(flux[inside]), np.median(flux[~inside])
    spread = 1.4826 * np.median(np.abs(flux[~inside] - high))
    return 1 - low / high, 1.2533 * spread / high * np.sqrt(1 / inside.sum() + 1 / (~inside).sum())


def lost_inside(scene: Scene, obs: Observation, rows: slice, columns: slice) -> tuple[float, float]:
    """Share of good pixels (not hit by a cosmic ray) flagged in and out of transit in a part of the image."""
    flags = np.concatenate([e.read_block("outlier", 0, e.depth, _all(e)) for e in obs.exposures()]) != 0
    hit = np.zeros(flags.shape, bool)
    for k in range(scene.count):
        hit[k][scene.hits(k + 1)] = True
    number = np.arange(1, scene.count + 1)
    inside = (number >= scene.dimmed[0]) & (number <= scene.dimmed[1])
    assert flags[hit].mean() > 0.99  # rays are found
    good = (flags & ~hit)[:, rows, columns]
    return float(good[inside].mean()), float(good[~inside].mean())


def _hit_nearby(scene: Scene, number: int, reach: float) -> bool:
    """Whether a cosmic ray is near the star in an integration."""
    y, x = scene.hits(number)
    return bool((np.hypot(y - scene.place[0], x - scene.place[1]) < reach).any())


def _all(exposure):  # type: ignore[no-untyped-def]
    from streamimg3.geometry import Box

    return Box.of_shape(exposure.record.shape)


def test_transit_in_images(images: tuple[Observation, Path]) -> None:
    """Depth within its error; no good pixel of the star lost."""
    obs, folder = images
    table = QTable.read(folder / "jw00042-o001_t001_nircam_series_phot.ecsv")
    depth, error = transit(IMAGES, table["net_aperture_sum"].value)
    assert error < 0.001 and abs(depth - IMAGES.depth) < 3 * error
    y, x = (int(p) for p in IMAGES.place)
    inside, outside = lost_inside(IMAGES, obs, slice(y - 4, y + 5), slice(x - 4, x + 5))
    assert inside <= 5e-4 and outside <= 5e-4  # a pixel in two integrations: 25 values tell the scatter to 15 %
    flux = table["net_aperture_sum"].value
    quiet = [k for k in range(*IMAGES.dimmed) if not _hit_nearby(IMAGES, k, 11.0)]
    chosen = flux[np.array(quiet) - 1]
    spread = 1.4826 * np.median(np.abs(chosen - np.median(chosen)))
    assert len(quiet) > 10 and (np.abs(chosen - np.median(chosen)) < 5 * spread).all()  # no integration is lost


def test_transit_in_spectra(spectra: tuple[Observation, Path]) -> None:
    """Depth within its error; no good pixel of the spectrum lost; errors are what the noise says."""
    obs, folder = spectra
    curve = QTable.read(folder / "jw00042-o001_t001_nircam_series_whtlt.ecsv")
    flux = curve["whitelight_flux"].value
    depth, error = transit(SPECTRA, flux)
    assert error < 0.001 and abs(depth - SPECTRA.depth) < 3 * error
    middle = int(SPECTRA.place[0])
    inside, outside = lost_inside(SPECTRA, obs, slice(middle - 3, middle + 5), slice(None))
    assert inside <= 5e-4 and outside <= 5e-4
    reach = [abs(SPECTRA.hits(k)[0] - SPECTRA.place[0]) for k in range(1, SPECTRA.count + 1)]
    whole = np.array([r.min() > 5.0 for r in reach])  # no cosmic ray has taken a pixel of the box away
    whole[SPECTRA.dimmed[0] - 1 : SPECTRA.dimmed[1]] = False
    error = np.median(curve["whitelight_flux_error"].value)
    spread = 1.4826 * np.median(np.abs(flux[whole] - np.median(flux[whole])))
    assert whole.sum() > 20 and spread == pytest.approx(error, rel=0.3)


def test_table_of_photometry(images: tuple[Observation, Path]) -> None:
    """Columns, times, several radii, tables of segments; what astropy writes it reads again."""
    obs, folder = images
    table = QTable.read(folder / "jw00042-o001_t001_nircam_series_phot.ecsv")
    document = obs.document(PhotometryDocument)
    assert document is not None and len(table) == document.rows == IMAGES.count
    assert table.colnames == [c.name for c in document.columns]
    np.testing.assert_allclose(table["MJD"], DAY + STEP * (np.arange(IMAGES.count) + 0.5), rtol=0, atol=1e-9)
    assert table["net_aperture_sum_r5"].unit == "Jy" and table.meta["number_of_integrations"] == IMAGES.count
    light = np.median(table["aperture_sum_r5"].value / 5**2 - table["aperture_sum_r3"].value / 3**2)
    assert light < 0  # the star is denser than its surroundings
    wanted = 2 * np.pi * 1.3 * 1.2 * IMAGES.flux * AREA * 1e6
    assert np.median(table["net_aperture_sum_r5"].value) == pytest.approx(wanted, rel=0.02)
    assert np.median(table["psf_flux"].value) == pytest.approx(wanted, rel=0.02)
    assert np.median(table["psf_width_y"].value) == pytest.approx(np.sqrt(1.3**2 - 1 / 12), rel=0.01)
    second = QTable.read(folder / "jw00042001001_03101_00001-seg002_nrca1_phot.ecsv")
    np.testing.assert_array_equal(second["net_aperture_sum"], table["net_aperture_sum"][130:230])
    assert second.meta["number_of_integrations"] == 100


def test_spectra_on_disk_are_those_of_the_store(spectra: tuple[Observation, Path]) -> None:
    """x1dints: a table for each segment; surface brightness follows from flux."""
    obs, folder = spectra
    document = obs.document(SpectraDocument)
    assert document is not None
    (one,) = document.spectra
    flux = np.asarray(obs.array(f"{one.path}/flux")[:])
    with fits.open(folder / "jw00042-o001_t001_nircam_series_x1dints.fits") as hdus:
        assert [h.name for h in hdus] == ["PRIMARY", "INT_TIMES", *["EXTRACT1D"] * 3, "HDRTAB", "ASDF"]
        tables = [h.data for h in hdus if h.name == "EXTRACT1D"]
        assert [len(t) for t in tables] == list(LENGTHS)
        np.testing.assert_array_equal(np.concatenate([t["FLUX"] for t in tables]), flux)
        t = tables[1]
        np.testing.assert_allclose(t["SURF_BRIGHT"] * t["NPIXELS"] * AREA * 1e6, t["FLUX"], rtol=1e-12)
        np.testing.assert_array_equal(t["INT_NUM"], np.arange(131, 231))
        assert hdus[0].header["S_EXTR1D"] == "COMPLETE" and hdus[0].header["INTEND"] == SPECTRA.count
        assert len(hdus["INT_TIMES"].data) == SPECTRA.count
    assert len(list((folder).glob("*_crfints.fits"))) == 3


def test_results_open_in_xarray(images: tuple[Observation, Path], spectra: tuple[Observation, Path]) -> None:
    """Ready for work on light curves: times and wavelengths are coordinates, units are told."""
    import xarray

    document = spectra[0].document(SpectraDocument)
    assert document is not None
    found = xarray.open_datatree(spectra[0].url, engine="zarr")[document.spectra[0].path].to_dataset()
    assert found.flux.dims == ("integration", "wavelength") and found.flux.attrs["units"] == "Jy"
    assert {"int_mid_mjd_utc", "int_mid_bjd_tdb", "wavelength"} <= set(found.coords)
    curve = found.flux.sel(wavelength=slice(2.6, 3.4)).sum("wavelength")
    assert curve.sizes == {"integration": SPECTRA.count} and "int_mid_bjd_tdb" in curve.coords
    table = xarray.open_datatree(images[0].url, engine="zarr")["photometry"].to_dataset()
    assert table.net_aperture_sum.attrs["units"] == "Jy" and {"MJD", "BJD_TDB"} <= set(table.coords)
    assert float(table.MJD[0]) == pytest.approx(DAY + STEP / 2)


def test_pictures(images: tuple[Observation, Path], spectra: tuple[Observation, Path], tmp_path: Path) -> None:
    """Light curve, centroids, white-light curve and dynamic spectrum, as PNG."""
    from streamimg3.api import export_preview

    made = [export_preview(obs, Session(output_dir=str(tmp_path))) for obs, _ in (images, spectra)]
    ends = [sorted(url.rpartition("_")[2] for url in urls) for urls in made]
    assert ends == [["centroid.png", "phot.png"], ["whtlt.png", "x1dints.png"]]
    assert all(Path(url).read_bytes().startswith(b"\x89PNG") for urls in made for url in urls)


def test_again_nothing_is_redone_and_other_parameters_are(images: tuple[Observation, Path], tmp_path: Path) -> None:
    """Steps whose parameters changed run again, those before them are kept."""
    obs, _ = images
    notes = Notes()
    chosen = {"radius": 4.0, "radius_inner": 7.0, "radius_outer": 10.0}
    steps = {"tso_photometry": chosen, "outlier_detection": VARIABLE}
    run("tso3", obs.url, session=Session(output_dir=str(tmp_path), workers=1, progress=notes), **steps)
    assert "outlier_detection: unchanged, kept" in notes.lines
    assert "tso_photometry: unchanged, kept" not in notes.lines
    before = obs.document(PhotometryDocument)
    run("tso3", obs.url, session=Session(output_dir=str(tmp_path), workers=1, progress=notes), **steps)
    assert "tso_photometry: unchanged, kept" in notes.lines and obs.document(PhotometryDocument) == before


def test_bytes_do_not_depend_on_workers(tmp_path: Path) -> None:
    """One process or two: the same products."""
    scene = Scene(spectra=True, count=60, dimmed=(20, 30))
    association = write_series(tmp_path, scene, (40, 20))
    sums = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        session = Session(output_dir=str(folder), workers=workers, memory="2GiB")
        chosen = {"override_extract1d": str(tmp_path / "extract1d.json"), "override_apcorr": "N/A", "bkg_order": 1}
        obs = run("tso3", association, session=session, extract_1d=chosen)
        document = obs.document(SpectraDocument)
        assert document is not None
        arrays = [obs.array(f"{document.spectra[0].path}/{n}")[:] for n in ("flux", "flux_error", "background")]
        arrays.append(obs.array("integrations/32x40/outlier")[:])
        sums.append([hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest() for a in arrays])
    assert sums[0] == sums[1]


def test_what_is_no_time_series_is_refused(tmp_path: Path) -> None:
    scene = Scene(count=4, dimmed=(2, 2), cards={"TSOVISIT": False, "EXP_TYPE": "NRC_IMAGE"})
    association = write_series(tmp_path, scene, (4,))
    with pytest.raises(InputError, match="is no time series"):
        run("tso3", association, session=Session(output_dir=str(tmp_path), workers=1))
    assert not list(tmp_path.glob("*_crfints.fits"))


def test_count_rates_need_a_gain(tmp_path: Path) -> None:
    """DN/s become electrons by gain and integration time; without a gain file the run is refused."""
    scene = Scene(count=6, dimmed=(2, 2), cards={"BUNIT": "DN/s"})
    association = write_series(tmp_path, scene, (6,))
    session = Session(output_dir=str(tmp_path), workers=1)
    with pytest.raises(InputError, match="override_gain"):
        run("tso3", association, session=session)
    head = fits.PrimaryHDU()
    head.header.update(
        {"TELESCOP": "JWST", "REFTYPE": "GAIN", "INSTRUME": "NIRCAM", "DETECTOR": "NRCA1"}
        | {"SUBSTRT1": 1, "SUBSTRT2": 1, "SUBSIZE1": scene.shape[1], "SUBSIZE2": scene.shape[0]}
    )
    gain = np.full(scene.shape, 1.5, np.float32)
    fits.HDUList([head, fits.ImageHDU(gain, name="SCI")]).writeto(tmp_path / "gain.fits")
    chosen = {"override_gain": str(tmp_path / "gain.fits"), "radius": 6.0, "radius_inner": 8.0, "radius_outer": 10.0}
    run("tso3", association, session=session, tso_photometry=chosen, outlier_detection={"skip": True})
    table = QTable.read(tmp_path / "jw00042-o001_t001_nircam_series_phot.ecsv")
    assert table["net_aperture_sum"].unit == "electron"
    wanted = 2 * np.pi * 1.3 * 1.2 * scene.flux * 40.0 * 1.5
    assert np.median(table["net_aperture_sum"].value) == pytest.approx(wanted, rel=0.02)


def test_segments_are_put_in_order(tmp_path: Path) -> None:
    """The association may list them in any order."""
    scene = Scene(count=12, dimmed=(2, 2))
    path = Path(write_series(tmp_path, scene, (5, 7)))
    tree = json.loads(path.read_text())
    tree["products"][0]["members"].reverse()
    path.write_text(json.dumps(tree))
    obs = run("tso3", str(path), until="outlier_detection", session=Session(output_dir=str(tmp_path), workers=1))
    assert [r.integrations for r in obs.records()] == [5, 7]
    (series,) = time_series(obs.records())
    assert series.count == 12 and series.name == series_name(obs.records()[0].name)


def test_steps_that_are_not_here(tmp_path: Path) -> None:
    """Those that jwst skips may be skipped; they cannot be wanted."""
    scene = Scene(count=6, dimmed=(2, 2))
    association = write_series(tmp_path, scene, (6,))
    session = Session(output_dir=str(tmp_path), workers=1)
    with pytest.raises(InputError, match="pixel_replace is not available"):
        run("tso3", association, session=session, pixel_replace={"skip": False})
    run("tso3", association, session=session, pixel_replace={"skip": True}, until="outlier_detection")
    with pytest.raises(InputError, match="the steps for these exposures"):
        run("tso3", association, session=session, until="white_light")
