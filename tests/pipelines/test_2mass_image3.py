"""All of image3 on the eight frames of M17: aligned, matched to each other, outliers flagged, sources listed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from astropy.modeling import fitting, models
from astropy.table import Table
from numpy.typing import NDArray

from streamimg3 import Observation, Session, run
from streamimg3.geometry import Box
from streamimg3.store.documents import AlignmentDocument, CatalogDocument, OutlierDocument, RunDocument, SkyDocument
from tests.conftest import M17

# Frames of 2MASS share narrow rims: any frame may be the reference, and few stars are enough for a shift
ALIGN = {"expand_refcat": True, "brightest": 1000, "minobj": 6, "fitgeometry": "shift"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the products are."""
    return tmp_path_factory.mktemp("m17")


@pytest.fixture(scope="module")
def m17(folder: Path) -> Observation:
    """The store after the run."""
    return run(
        "image3", str(M17), session=Session(output_dir=str(folder), workers=1),
        tweakreg=ALIGN, skymatch={"skystat": "median"}, source_catalog={"bkg_boxsize": 64},
    )  # fmt: skip


def test_every_step_ran(m17: Observation, folder: Path) -> None:
    """Nothing is skipped for want of JWST keywords, and all products are there."""
    document = m17.document(RunDocument)
    assert document is not None
    assert set(document.statuses.values()) == {"COMPLETE"}
    names = sorted(p.name for p in folder.iterdir() if p.suffix in (".fits", ".ecsv"))
    assert [n.rsplit("_", 1)[1] for n in names] == ["crf.fits"] * 8 + ["cat.ecsv", "i2d.fits", "segm.fits"]


def test_frames_are_aligned_within_their_own_accuracy(m17: Observation) -> None:
    """2MASS positions are good to 0.1 arcsec; no frame is moved by more than a few hundredths."""
    document = m17.document(AlignmentDocument)
    assert document is not None
    assert sorted(e.status for e in document.exposures) == ["REFERENCE"] + ["SUCCESS"] * 7
    moved = [math.hypot(*e.offset) for e in document.exposures if e.offset]
    assert 0 < max(moved) < 0.1


def test_overlaps_are_matched(m17: Observation) -> None:
    """Levels of several DN between scans shrink to a fraction of that."""
    document = m17.document(SkyDocument)
    assert document is not None and len(document.components) == 1
    levels = np.array(document.levels, float)
    before = np.array([o.values[0] - o.values[1] for o in document.overlaps])
    shift = np.array([levels[o.items[0]] - levels[o.items[1]] for o in document.overlaps])
    assert len(before) >= 13
    assert np.sqrt(np.mean(before**2)) > 3.0
    assert (
        np.sqrt(np.mean((before - shift) ** 2)) < 1.2
    )  # the nebula keeps same-scan neighbours from closing their loops
    assert min(levels) == 0.0


def test_outliers_are_rare_in_reviewed_frames(m17: Observation) -> None:
    """Atlas images have been cleaned: what disagrees is a handful of pixels; noise is modelled, and that is said."""
    document = m17.document(OutlierDocument)
    assert document is not None
    assert 0 < sum(document.flagged) < 100
    assert any("no ERR" in note for note in document.notes)


def _fitted(m17: Observation, ra: float, dec: float) -> list[float]:
    """Distances (pixel) of a star's place from a Gaussian fitted to it on every frame that has it."""
    found = []
    for exposure in m17.exposures():
        (y,), (x,) = exposure.wcs.to_pixel(np.array([ra]), np.array([dec]))
        ny, nx = exposure.record.shape
        if not (8 < y < ny - 8 and 8 < x < nx - 8):
            continue
        box = Box(round(y) - 4, round(x) - 4, round(y) + 5, round(x) + 5)
        cut: NDArray[np.float64] = np.asarray(exposure.read("sci", box), float)
        v, u = np.mgrid[box.y0 : box.y1, box.x0 : box.x1].astype(float)
        start = models.Gaussian2D(cut.max() - np.median(cut), x, y, 1.2, 1.2) + models.Const2D(np.median(cut))
        fit = fitting.TRFLSQFitter()(start, u, v, cut, maxiter=500)
        found.append(math.hypot(fit[0].x_mean.value - x, fit[0].y_mean.value - y))
    return found


def test_stars_of_the_catalogue_are_where_the_frames_have_them(m17: Observation, folder: Path) -> None:
    """The 50 brightest: the mean over frames is within 0.3 pixel."""
    table = Table.read(folder / "aK_asky_cat.ecsv")
    size = np.sqrt(table["semimajor_sigma"] * table["semiminor_sigma"])
    stars = table[(table["ellipticity"] < 0.3) & (size < 2.0)]
    stars = stars[np.argsort(stars["isophotal_flux"])[::-1][:50]]
    off = [np.mean(d) for s in stars if (d := _fitted(m17, s["sky_centroid"].ra.deg, s["sky_centroid"].dec.deg))]
    assert len(off) >= 48
    assert max(off) < 0.3


def test_what_is_not_known_is_said(m17: Observation) -> None:
    """No photometric keywords, no ERR, no aperture corrections: the catalogue leaves out what needs them."""
    document = m17.document(CatalogDocument)
    assert document is not None
    assert len(document.notes) == 3
    assert not [c for c in document.columns if "abmag" in c.name or "aper" in c.name]
