"""Star finders: the same lists as photutils, for any bands, and the stars that are there."""

from __future__ import annotations

import tracemalloc
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.kernels.background import background_mesh
from streamimg3.kernels.moments import Candidates, Column, DensityKernel, measure_dao, measure_iraf
from streamimg3.kernels.stars import (
    FinderOptions,
    StarFinder,
    StarList,
    find_stars,
    median_threshold,
    select_brightest,
)

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
Bool = NDArray[np.bool_]
SIGMA = 2.5 / 2.3548  # pixels: the default kernel's


def field(shape: tuple[int, int], stars: int, seed: int = 1, noise: float = 0.3) -> tuple[F4, Bool, F8]:
    """Gaussian stars, some at the very edge, on a background; some pixels are NaN, some flagged.

    Returns
    -------
    sci, bad
        Pixels and flags.
    truth : ndarray of float64, shape (n, 3)
        y, x and flux.
    """
    rng = np.random.default_rng(seed)
    truth = np.column_stack([rng.uniform(-0.5, n - 0.5, stars) for n in shape] + [rng.uniform(30, 900, stars)])
    y, x = np.indices(shape, np.float64)
    image = rng.normal(2, noise, shape)
    for at_y, at_x, flux in truth:
        image += flux / (2 * np.pi * SIGMA**2) * np.exp(-((y - at_y) ** 2 + (x - at_x) ** 2) / (2 * SIGMA**2))
    sci = image.astype(np.float32)
    sci[rng.random(shape) < 0.002] = np.nan
    return sci, rng.random(shape) < 0.004, truth


def photutils_stars(sci: F4, bad: Bool, options: FinderOptions) -> dict[str, F8] | None:
    """The list of the reference, made with photutils as the reference uses it."""
    stats = pytest.importorskip("astropy.stats")
    background = pytest.importorskip("photutils.background")
    detection = pytest.importorskip("photutils.detection")
    utils = pytest.importorskip("photutils")
    common = {
        "filter_size": (3, 3),
        "coverage_mask": bad,
        "sigma_clip": stats.SigmaClip(sigma=3.0),
        "bkg_estimator": background.MedianBackground(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = background.Background2D(sci, options.bkg_boxsize, **common)
        except ValueError:
            found = background.Background2D(sci, sci.shape, exclude_percentile=100.0, **common)
        threshold = np.median(options.snr_threshold * found.background_rms)
        kind = detection.IRAFStarFinder if options.starfinder == "iraf" else detection.DAOStarFinder
        finder = kind(
            threshold,
            options.kernel_fwhm,
            sigma_radius=options.sigma_radius,
            min_separation=options.separation,
            sharpness_range=(options.sharplo, options.sharphi),
            roundness_range=(options.roundlo, options.roundhi),
            n_brightest=options.brightest,
            peak_max=options.peakmax,
        )
        with utils.use_future_column_names():
            table = finder(sci - found.background, mask=bad)
    return None if table is None else {name: np.asarray(table[name]) for name in table.colnames}


def assert_equal_lists(ours: StarList, theirs: dict[str, F8] | None) -> None:
    """Fluxes to the last bit; what comes from other sums in double, to 1e-9 pixel or degree."""
    if theirs is None:
        assert len(ours) == 0
        return
    np.testing.assert_array_equal(ours.id, theirs.pop("id"))
    np.testing.assert_array_equal(ours.flux, theirs.pop("flux"))
    np.testing.assert_allclose(ours.x, theirs.pop("x_centroid"), rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.y, theirs.pop("y_centroid"), rtol=0, atol=1e-9)
    assert list(ours.columns) == list(theirs)
    for name, column in ours.columns.items():
        if name == "orientation":  # of an axis: 90 and 270 degrees are the same
            assert (np.abs((column - theirs[name] + 90) % 180 - 90) < 1e-9).all()
        else:
            np.testing.assert_allclose(column, theirs[name], rtol=1e-9, atol=1e-9, err_msg=name)


IRAF = FinderOptions(bkg_boxsize=50)
DAO = FinderOptions(starfinder="dao", bkg_boxsize=50, snr_threshold=5)


def wide(options: FinderOptions) -> FinderOptions:
    """The same options with limits that hardly reject anything."""
    return replace(options, roundlo=-1.0, roundhi=1.0, sharplo=0.0, sharphi=3.0)


OPTIONS = {
    "iraf": IRAF,
    "iraf, all": replace(IRAF, brightest=None, snr_threshold=3),
    "iraf, few": replace(IRAF, brightest=7, peakmax=60.0),
    "iraf, wide kernel": replace(IRAF, kernel_fwhm=4.0, sigma_radius=2.0, minsep_fwhm=1.5, bkg_boxsize=400),
    "iraf, narrow kernel": wide(replace(IRAF, kernel_fwhm=1.2)),
    "dao": DAO,
    "dao, all": wide(replace(DAO, brightest=None, snr_threshold=1)),
    "dao, few": wide(replace(DAO, brightest=5, peakmax=60.0)),
    "dao, wide kernel": wide(replace(DAO, kernel_fwhm=4.0, sigma_radius=2.0, minsep_fwhm=1.5, bkg_boxsize=400)),
    "dao, threshold 0": wide(replace(DAO, snr_threshold=0.0)),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_lists_equal_photutils(name: str) -> None:
    sci, bad, _ = field((150, 170), 60)
    ours = find_stars(sci, bad, OPTIONS[name])
    assert len(ours) >= 3
    assert_equal_lists(ours, photutils_stars(sci, bad, OPTIONS[name]))


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    finder=st.sampled_from(["iraf", "dao"]),
    holes=st.floats(0, 0.3),
    seed=st.integers(0, 999),
)
def test_small_images_with_holes_equal_photutils(shape: tuple[int, int], finder: str, holes: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sci, bad, _ = field(shape, 4, seed)
    sci[rng.random(shape) < holes / 5] = np.nan
    bad |= rng.random(shape) < holes
    options = wide(FinderOptions(finder, snr_threshold=2, bkg_boxsize=13))
    if (np.isnan(sci) | bad).all():
        assert len(find_stars(sci, bad, options)) == 0
    else:
        assert_equal_lists(find_stars(sci, bad, options), photutils_stars(sci, bad, options))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["iraf", "dao"]), st.integers(1, 90), st.sampled_from([0.0, 3.0]))
def test_bands_of_any_height_give_the_same_stars(finder: str, rows: int, minsep: float) -> None:
    sci, bad, _ = field((83, 60), 25)
    options = wide(FinderOptions(finder, snr_threshold=3, bkg_boxsize=30, minsep_fwhm=minsep))
    whole = find_stars(sci, bad, options)
    mesh = background_mesh(sci, bad, 30)
    assert mesh is not None and len(whole) > 10
    ends = [(y, min(y + rows, 83)) for y in range(0, 83, rows)]
    noise = median_threshold(mesh, lambda: (bad[y0:y1] for y0, y1 in ends), 3)
    search = StarFinder(options, mesh, noise)
    parts = []
    for y0, y1 in ends:
        needed = slice(*search.rows(y0, y1))
        parts.append(search.find(sci[needed], bad[needed], y0, y1))
    joined = select_brightest(parts, options.brightest)
    for name in ("id", "x", "y", "flux"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
    for name, column in whole.columns.items():
        np.testing.assert_array_equal(joined.columns[name], column)


@pytest.mark.parametrize("finder", ["iraf", "dao"])
def test_stars_are_found_where_they_are(finder: str) -> None:
    """Isolated bright stars: the kernel cuts the wings off, which draws positions to the brightest pixel by 0.15."""
    y, x = (axis.ravel() for axis in np.meshgrid(np.arange(15, 185, 20.0), np.arange(15, 185, 20.0), indexing="ij"))
    rng = np.random.default_rng(4)
    y, x = y + rng.uniform(-0.5, 0.5, y.size), x + rng.uniform(-0.5, 0.5, x.size)
    grid = np.indices((200, 200))
    sci = rng.normal(1, 0.01, (200, 200))
    for at_y, at_x in zip(y, x, strict=True):
        sci += 50 * np.exp(-((grid[0] - at_y) ** 2 + (grid[1] - at_x) ** 2) / (2 * SIGMA**2))
    options = wide(FinderOptions(finder))
    stars = find_stars(sci.astype(np.float32), np.zeros((200, 200), np.bool_), options)
    assert len(stars) == y.size
    nearest = np.hypot(stars.y[:, None] - y, stars.x[:, None] - x).min(axis=0)
    assert nearest.max() < 0.2
    assert np.all(np.diff(stars.flux) <= 0) and stars.id.tolist() == list(range(1, y.size + 1))


def quiet(shape: tuple[int, int] = (60, 60)) -> tuple[F4, Bool]:
    rng = np.random.default_rng(8)
    return rng.normal(0, 0.1, shape).astype(np.float32), np.zeros(shape, np.bool_)


def add_star(sci: F4, y: float, x: float, peak: float = 100.0) -> None:
    grid = np.indices(sci.shape)
    sci += (peak * np.exp(-((grid[0] - y) ** 2 + (grid[1] - x) ** 2) / (2 * SIGMA**2))).astype(np.float32)


def test_a_nan_pixel_hides_the_star_under_it() -> None:
    sci, bad = quiet()
    add_star(sci, 20, 20)
    add_star(sci, 40, 40)
    assert len(find_stars(sci, bad, FinderOptions())) == 2
    sci[20, 21] = np.nan
    (left,) = find_stars(sci, bad, FinderOptions()).x
    assert left == pytest.approx(40, abs=0.05)


def test_flagged_pixels_are_no_peaks_but_are_measured() -> None:
    sci, bad = quiet()
    add_star(sci, 20, 20)
    bad[20, 20] = True
    assert len(find_stars(sci, bad, FinderOptions())) == 0
    bad[20, 20], bad[20, 21] = False, True
    (flux,) = find_stars(sci, bad, FinderOptions()).flux
    sci[20, 21] += 10
    assert find_stars(sci, bad, FinderOptions()).flux[0] == pytest.approx(flux + 10, rel=1e-3)


def test_zeros_of_flagged_pixels_count_for_the_threshold() -> None:
    sci, bad = quiet()
    mesh = background_mesh(sci, bad, 400)
    assert mesh is not None
    assert median_threshold(mesh, lambda: [bad], 10) == pytest.approx(1.0, rel=0.1)  # noise 0.1, ten times
    bad[:31] = True
    assert median_threshold(mesh, lambda: [bad], 10) == 0.0


def test_the_halo_of_a_star_at_the_edge_is_zero() -> None:
    sci, bad = quiet()
    add_star(sci, 0, 59)
    options = wide(FinderOptions("dao", snr_threshold=3))
    assert_equal_lists(find_stars(sci, bad, options), photutils_stars(sci, bad, options))


@pytest.mark.parametrize("finder", ["iraf", "dao"])
@pytest.mark.parametrize("content", ["nan", "flagged", "flat", "one pixel", "four equal pixels"])
def test_images_without_stars_give_an_empty_list(finder: str, content: str) -> None:
    shape = {"one pixel": (1, 1), "four equal pixels": (2, 2)}.get(content, (40, 40))
    sci = np.full(shape, np.nan if content == "nan" else 5, np.float32)
    stars = find_stars(sci, np.full(shape, content == "flagged"), FinderOptions(finder))
    assert len(stars) == 0 and stars.x.dtype == stars.flux.dtype == np.float64


def test_infinities_do_no_harm() -> None:
    sci, bad = quiet()
    add_star(sci, 20, 20)
    sci[50, 50] = np.inf
    (x,) = find_stars(sci, bad, FinderOptions()).x
    assert x == pytest.approx(20, abs=0.05)


def test_measurements_do_not_depend_on_the_group() -> None:
    rng = np.random.default_rng(2)
    kernel = DensityKernel.make(2.5, 1.5)
    y, x = rng.integers(0, 99, (2, 70))
    data, convolved = rng.normal(1, 1, (2, 70, 5, 5)).astype(np.float32)
    whole = Candidates(y, x, data, convolved)
    measures: list[Callable[[Candidates], tuple[dict[str, Column], Bool]]] = [
        lambda c: measure_iraf(c, kernel),
        lambda c: measure_dao(c, kernel, 0.1),
    ]
    for measure in measures:
        columns, valid = measure(whole)
        for n in (0, 33, 69):
            one, fine = measure(Candidates(y[n : n + 1], x[n : n + 1], data[n : n + 1], convolved[n : n + 1]))
            assert fine[0] == valid[n]
            for name, column in columns.items():
                np.testing.assert_array_equal(one[name][0], column[n])


@pytest.mark.parametrize(
    ("fwhm", "sigma_radius", "radius", "pixels"), [(2.5, 1.5, 2, 13), (2.0, 1.5, 2, 13), (5, 2, 4, 61)]
)
def test_the_kernel(fwhm: float, sigma_radius: float, radius: int, pixels: int) -> None:
    kernel = DensityKernel.make(fwhm, sigma_radius)
    assert kernel.radius == radius and int(np.count_nonzero(kernel.inside)) == pixels
    assert kernel.weights.sum() == pytest.approx(0, abs=1e-14)
    assert (kernel.weights * kernel.gaussian).sum() == pytest.approx(1)  # a star's height comes out as it is
    assert np.sqrt((kernel.weights**2).sum()) == pytest.approx(kernel.relative_error)
    np.testing.assert_array_equal(kernel.weights, kernel.weights[::-1, ::-1])


@pytest.mark.parametrize(
    ("field_name", "value"),
    [
        ("starfinder", "sex"),
        ("snr_threshold", -1),
        ("kernel_fwhm", 0),
        ("sigma_radius", float("nan")),
        ("brightest", 0),
    ],
)
def test_bad_options_are_refused(field_name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"{field_name} = "):
        FinderOptions(**{field_name: value})  # type: ignore[arg-type]


def test_little_is_held_beyond_the_image() -> None:
    """Boxes and bands only: less than the image itself (4 MiB of pixels) for a 1024² frame."""
    sci, bad = quiet((1024, 1024))
    add_star(sci[:64, :64], 20, 20)
    find_stars(sci[:64], bad[:64], FinderOptions())  # loads what is loaded on first use
    tracemalloc.start()
    try:
        assert len(find_stars(sci, bad, FinderOptions())) == 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < sci.nbytes
