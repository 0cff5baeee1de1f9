"""Several filters on one grid: the grid is the same by construction, sources are detected on all of them, fluxes are sums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

import streamimg3
from streamimg3 import InputError, Observation, Session, run
from streamimg3.formats.simulate import Field, simulate
from streamimg3.store.documents import CatalogDocument
from tests.conftest import SKIP, command_line


@pytest.fixture(scope="module")
def stores(field: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Observation]:
    """The field, and the same sky with other noise, put on the first one's grid."""
    folder = tmp_path_factory.mktemp("multi")
    other = simulate(folder / "other", Field(shape=(192, 192), dithers=3, seed=99))
    made = {}
    for name, association in (("f200w", field), ("f150w", other)):
        session = Session(output_dir=str(folder / name), workers=1, report=False)
        grid = {"output_wcs": made["f200w"].url} if made else {}
        made[name] = run("image3", str(association), session=session, **SKIP, resample=grid)
    return made


def test_one_grid(stores: dict[str, Observation]) -> None:
    """Another field of other exposures lies on the same pixels."""
    one, other = (o.xarray()["mosaic"].to_dataset() for o in stores.values())
    assert one.sizes["y"] == other.sizes["y"] and one.sizes["x"] == other.sizes["x"]
    np.testing.assert_allclose(one.img3.footprint, other.img3.footprint, rtol=0, atol=1e-12)
    assert one.attrs["wcs"] == other.attrs["wcs"]


def test_catalogue(stores: dict[str, Observation], tmp_path: Path) -> None:
    """Detection image and fluxes are what plain arithmetic gives."""
    session = Session(output_dir=str(tmp_path), workers=1)
    obs = streamimg3.catalog_multi(stores, session, radii=(0.12,))
    planes = {n: [o.array(f"mosaic/{p}")[...].astype(float) for p in ("sci", "err")] for n, o in stores.items()}
    notes = obs.array("mosaic/sci").attrs  # the array is there
    assert notes["units"] == "MJy/sr"
    document = obs.document(CatalogDocument)
    assert document is not None and document.sources > 5
    sky = {text.split(":")[0]: float(text.split()[2]) for text in document.notes if "taken off" in text}
    above = {n: v[0] - sky[n] for n, v in planes.items()}
    weights = {n: np.where(np.isfinite(above[n]) & (v[1] > 0), v[1], np.inf) ** -2 for n, v in planes.items()}
    total = sum(weights.values())
    mean = sum(np.where(w > 0, above[n], 0) * w for n, w in weights.items()) / np.where(total > 0, total, np.nan)
    np.testing.assert_allclose(obs.array("mosaic/sci")[...], mean, rtol=2e-5, atol=1e-6)
    labels, label = obs.array("mosaic/segmentation")[...], obs.array("catalog/label")[...]
    factor = 1e6 * float(np.deg2rad(stores["f200w"].xarray()["mosaic"].to_dataset().img3.pixel_scale / 3600)) ** 2
    for name in stores:
        flux, error = (obs.array(f"catalog/{name}_isophotal_flux{suffix}")[...] for suffix in ("", "_err"))
        for k in range(0, len(label), 3):
            inside = (labels == label[k]) & np.isfinite(above[name])
            assert flux[k] == pytest.approx(above[name][inside].sum() * factor, rel=1e-4)
            assert error[k] == pytest.approx(np.sqrt((planes[name][1][inside] ** 2).sum()) * factor, rel=1e-4)
        circle = obs.array(f"catalog/{name}_aper0.12_flux")[...]
        assert np.isfinite(circle).sum() > 5
    table, document = Table.read(tmp_path / "multi_cat.ecsv"), obs.document(CatalogDocument)
    assert document is not None
    stored = {c.name.removesuffix(".ra").removesuffix(".dec") for c in document.columns}
    assert set(table.colnames) == stored and {"f200w_aper0.12_flux", "f200w_aper0.12_flux_err"} <= stored
    np.testing.assert_array_equal(table["f200w_aper0.12_flux"], obs.array("catalog/f200w_aper0.12_flux")[...])


def test_same_again_and_chi2(stores: dict[str, Observation], tmp_path: Path) -> None:
    session = Session(output_dir=str(tmp_path), workers=1)
    first = streamimg3.catalog_multi(stores, session).array("catalog/f150w_isophotal_flux")[...]
    np.testing.assert_array_equal(
        streamimg3.catalog_multi(stores, session).array("catalog/f150w_isophotal_flux")[...], first
    )
    chi = streamimg3.catalog_multi(stores, session, method="chi2")
    values = chi.array("mosaic/sci")[...]
    assert np.nanmedian(chi.array("mosaic/err")[...]) == 1.0 and 0.3 < np.nanmedian(np.abs(values)) < 3


def test_colours(stores: dict[str, Observation], tmp_path: Path) -> None:
    from PIL import Image

    one, other = (o.url for o in stores.values())
    done = command_line("rgb", one, other, one, "-o", tmp_path / "c.png", "--size", 150)
    assert done.returncode == 0, done.stderr
    pixels = np.asarray(Image.open(tmp_path / "c.png"))
    assert pixels.ndim == 3 and pixels.std() > 5 and max(pixels.shape) <= 150


def test_other_grids_are_refused(stores: dict[str, Observation], field: Path, tmp_path: Path) -> None:
    session = Session(output_dir=str(tmp_path), workers=1, report=False)
    turned = run("image3", str(field), session=session, **SKIP, resample={"rotation": 11.0})
    with pytest.raises(InputError, match="--grid-from"):
        streamimg3.catalog_multi({"a": stores["f200w"], "b": turned}, Session(output_dir=str(tmp_path), workers=1))
    with pytest.raises(InputError, match="three stores"):
        streamimg3.rgb([turned, turned], str(tmp_path / "x.png"))
