"""Sections of the report on coron3 and tso3: their numbers against arithmetic of our own, and what they warn of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from streamimg3 import Observation, Session, run
from streamimg3.report.build import report
from streamimg3.report.qa import Section
from streamimg3.report.sections.coronagraphy import contrast, references, subtraction
from streamimg3.report.sections.outliers import outliers
from streamimg3.report.sections.series import photometry, spectra, white_light
from streamimg3.report.series_data import binned_medians, step_scatter
from streamimg3.store.coron_documents import AlignRefsDocument
from streamimg3.store.documents import OutlierDocument
from streamimg3.store.rows import read_rows, write_rows
from tests.pipelines.coronagraphs import Files, make
from tests.pipelines.coronagraphs import Scene as Stars
from tests.pipelines.time_series import Scene, write_series

STAR = Scene(shape=(24, 28), count=120, dimmed=(50, 80))
SPECTRUM = Scene(spectra=True, shape=(24, 40), flux=60.0, count=60, dimmed=(25, 40))


@pytest.fixture(scope="module")
def coron(tmp_path_factory: pytest.TempPathFactory) -> tuple[Observation, Path]:
    """Two rolls, two numbers of components; weights at once, no outliers looked for."""
    folder = tmp_path_factory.mktemp("coron")
    files: Files = make(folder, Stars(bad=0.0))
    session = Session(store=str(folder / "x.zarr"), output_dir=str(folder), workers=1)
    steps = files.steps(klip={"truncate": (1, 4)}, outlier_detection={"skip": True})
    return run("coron3", files.association, session=session, **steps), folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Observation:
    folder = tmp_path_factory.mktemp("images")
    session = Session(output_dir=str(folder), workers=1, report=False)
    table = {"radius": 4.0, "radius_inner": 7.0, "radius_outer": 10.0, "search_box_width": 15}
    return run("tso3", write_series(folder, STAR, (70, 50)), session=session, tso_photometry=table)


@pytest.fixture(scope="module")
def spectral(tmp_path_factory: pytest.TempPathFactory) -> Observation:
    folder = tmp_path_factory.mktemp("spectra")
    association = write_series(folder, SPECTRUM, (40, 20))
    chosen = {"override_extract1d": str(folder / "extract1d.json"), "override_apcorr": "N/A"}
    return run("tso3", association, session=Session(output_dir=str(folder), workers=1, report=False), extract_1d=chosen)


def value(section: Section | None, name: str) -> float:
    """The number of a judgement."""
    assert section is not None
    (found,) = [c.value for c in section.checks if c.name == name]
    assert found is not None
    return found


def status(section: Section | None, name: str) -> str:
    assert section is not None
    (found,) = [c.status for c in section.checks if c.name == name]
    return found


def test_noise_before_and_after(coron: tuple[Observation, Path]) -> None:
    """The gain is that of rings measured in the products with a loop over rings."""
    obs, folder = coron
    y, x = np.indices(Stars().shape)
    radius = np.hypot(y - Stars().centre[0], x - Stars().centre[1])
    edges = np.arange(0.0, radius.max() + 2, 2.0)
    rings = [(a + 1, r) for a in edges if (r := (radius >= a) & (radius < a + 2)).sum() >= 8]
    third = max(middle for middle, _ in rings) / 3
    gains = []
    for path in sorted(folder.glob("jw*calints.fits"))[:2]:
        before = fits.getdata(path, "SCI").mean(axis=0)
        factors = []
        for number in (1, 4):
            after = fits.getdata(str(path).replace("calints", f"a3001_kl{number}_psfsub"), "SCI").mean(axis=0)
            factors.append(np.median([before[r].std() / after[r].std() for m, r in rings if 4 < m < third]))
        gains.append(max(factors))
    found = subtraction(obs)
    assert found is not None and len(gains) == 2
    name = "noise before over noise after, lowest of the exposures"
    assert value(found, name) == pytest.approx(min(gains), rel=1e-4)  # products are float32
    assert status(found, name) == "pass"
    assert [row[1] for row in found.tables[0].rows] == ["1", "4", "1", "4"]
    assert [f.title.split(":")[0] for f in found.figures] == ["Before", "After", "Noise"] * 2
    assert all(f.html.count("<polyline") == 3 for f in found.figures if f.title.startswith("Noise"))


def test_references_that_do_not_fit_are_found(coron: tuple[Observation, Path]) -> None:
    obs, _ = coron
    document = obs.document(AlignRefsDocument)
    assert document is not None
    largest = max(np.hypot(y, x) for e in document.exposures for y, x in zip(e.y, e.x, strict=True))
    found = references(obs)
    assert value(found, "largest shift of a reference") == pytest.approx(largest) and largest < 1
    assert {c.status for c in found.checks} == {"pass"}  # type: ignore[union-attr]
    first = document.exposures[0]
    lost = replace(first, y=(7.0, *first.y[1:]), converged=(False, *first.converged[1:]))
    obs.commit(replace(document, exposures=(lost, *document.exposures[1:])))
    try:
        assert [c.status for c in references(obs).checks] == ["warn", "fail"]  # type: ignore[union-attr]
    finally:
        obs.commit(document)


def test_contrast_and_page(coron: tuple[Observation, Path]) -> None:
    """The curves are those of the products; the page shows the last of several mosaics."""
    obs, folder = coron
    found = contrast(obs)
    assert found is not None and found.figures[0].html.count("<polyline") == 2
    page, qa = report(obs)
    for section in ("references", "subtraction", "mosaic", "contrast", "cost", "parameters"):
        assert f'<section id="{section}">' in page
    assert 'id="view" tabindex' in page and qa.pipeline == "coron3"
    assert len(list(folder.glob("*_report.html"))) == 1
    assert {c.name for c in qa.checks if c.section == "steps"} >= {"align_refs", "klip", "hlsp"}


def test_flagged_fraction_counts_integrations(images: Observation) -> None:
    document = obs_outliers(images)
    pixels = [r.integrations * r.shape[0] * r.shape[1] for r in images.records()]
    wanted = max(n / p for n, p in zip(document.flagged, pixels, strict=True))
    assert value(outliers(images), "largest fraction flagged") == pytest.approx(wanted) and 0 < wanted < 0.05


def obs_outliers(obs: Observation) -> OutlierDocument:
    found = obs.document(OutlierDocument)
    assert found is not None
    return found


def test_light_curve(images: Observation) -> None:
    """Scatter against a plain computation; the transit does not count."""
    found = photometry(images)
    flux = read_rows(images, "photometry/net_aperture_sum")
    out = np.r_[flux[: STAR.dimmed[0] - 1], flux[STAR.dimmed[1] :]]
    ppm = 1e6 * out.std(ddof=1) / np.median(flux)
    # 90 values: the robust scatter of 119 steps is good to about 15 %
    assert value(found, "scatter from one integration to the next") == pytest.approx(ppm, rel=0.3)
    assert found is not None and [f.title for f in found.figures] == [
        "Light curve", "Scatter of means", "Background", "Position of the star", "Width of the star",
    ]  # fmt: skip
    place = read_rows(images, "photometry/centroid_x")
    assert value(found, "jitter in x") == pytest.approx(place.std(ddof=1), rel=0.3)
    assert STAR.jitter < value(found, "jitter in x") < 2 * STAR.jitter  # what the star does, and the noise of the fit
    assert status(found, "drift of the star") == "pass" and status(found, "integrations without a flux") == "pass"


def test_a_star_that_drifts_out_of_its_aperture(images: Observation) -> None:
    """Centroids that move by three pixels fail where the aperture stays."""
    before = read_rows(images, "photometry/centroid_x")
    write_rows(images, "photometry/centroid_x", 0, before + np.linspace(0, 3, len(before)))
    try:
        assert status(photometry(images), "drift of the star") == "fail"
    finally:
        write_rows(images, "photometry/centroid_x", 0, before)
    lost = before.copy()
    lost[:] = np.nan
    write_rows(images, "photometry/centroid_x", 0, lost)
    write_rows(images, "photometry/centroid_y", 0, lost)
    assert status(photometry(images), "centroid") == "fail"


def test_spectra_in_time(spectral: Observation) -> None:
    curve, found = white_light(spectral), spectra(spectral)
    flux = read_rows(spectral, "white_light/whitelight_flux")
    inside = slice(SPECTRUM.dimmed[0] - 1, SPECTRUM.dimmed[1])
    level = np.median(flux[inside]) / np.median(np.delete(flux, inside))
    assert level == pytest.approx(1 - SPECTRUM.depth, abs=0.004)  # the transit is in what is drawn
    assert value(curve, "scatter, whitelight_flux") == pytest.approx(1e6 * step_scatter(flux) / np.median(flux))
    assert curve is not None and found is not None
    assert [f.title.split(":")[0] for f in found.figures] == ["In time", "Median"]
    assert "data:image/png" in found.figures[0].html and found.tables[0].rows[0][3] == "60"
    page, qa = report(spectral)
    assert '<section id="white_light">' in page and '<section id="spectra">' in page and qa.status in ("pass", "warn")


def test_scatter_and_medians() -> None:
    """A step and a stray value do not count; missing values are left out."""
    rng = np.random.default_rng(5)
    values = rng.normal(0.0, 2.0, 4000) + np.repeat([0.0, 500.0], 2000)
    values[::100] = np.nan
    assert step_scatter(values) == pytest.approx(2.0, rel=0.05)
    x, y = binned_medians(np.arange(4000.0), values, 40)
    assert (
        len(x) == 40 and np.isfinite(y).all() and y[0] == pytest.approx(0, abs=1) and y[-1] == pytest.approx(500, abs=1)
    )
    assert binned_medians(np.zeros(1), np.zeros(1))[0].size == 0
