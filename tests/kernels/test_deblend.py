"""Division of blends, against the rules of the specification written with scipy and a plain priority queue."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from streamimg3.kernels.deblend import Levels, deblend, thresholds
from streamimg3.kernels.segments import label, outlines

F4 = NDArray[np.float32]
Labels = NDArray[Any]


def field(seed: int, count: int = 14, width: float = 2.5, shape: tuple[int, int] = (90, 80)) -> F4:
    """Blends of peaks of all heights in noise."""
    rng = np.random.default_rng(seed)
    image = np.zeros(shape)
    for y, x in zip(rng.integers(0, shape[0], count), rng.integers(0, shape[1], count), strict=True):
        image[y, x] += rng.lognormal(1, 1.5) * 30
    image = ndimage.gaussian_filter(image, width) + ndimage.gaussian_filter(rng.normal(0, 0.05, shape), 1)
    return np.asarray(image, np.float32)


def sources(image: F4, cut: float, eight: bool) -> list[tuple[F4, NDArray[np.bool_]]]:
    labels, count = label(image > cut, eight)
    return [
        (image[y0:y1, x0:x1], labels[y0:y1, x0:x1] == k + 1)
        for k, (y0, x0, y1, x1) in enumerate(outlines(labels, count).box.tolist())
    ]


# ---------------------------------------------------------------- the rules, slowly
def large_sets(image: F4, source: NDArray[np.bool_], cut: np.float32, levels: Levels) -> Labels:
    """Connected sets above a threshold that are large enough."""
    found, n = ndimage.label((image > cut) & source, np.ones((3, 3)) if levels.eight else None)
    area = np.bincount(found.ravel(), minlength=n + 1)
    return np.where(area[found] >= levels.npixels, found, 0)


def slow_markers(image: F4, source: NDArray[np.bool_], levels: Levels, mode: str) -> Labels | None:
    markers: Labels | None = None
    for cut in thresholds(image[source].min(), image[source].max(), levels.nlevels, mode):
        upper = large_sets(image, source, cut, levels)
        if len(np.unique(upper[upper > 0])) < 2:
            continue
        if markers is None:
            markers = upper
            continue
        merged, changed = markers > 0, False
        for k in np.unique(markers[markers > 0]):
            inside = markers == k
            if len(np.unique(upper[inside & (upper > 0)])) >= 2:
                merged[inside], changed = upper[inside] > 0, True
        if changed:
            markers, _ = ndimage.label(merged, np.ones((3, 3)) if levels.eight else None)
    return markers


def slow_flood(image: F4, source: NDArray[np.bool_], labels: Labels, eight: bool) -> Labels:
    labels, age = labels.copy(), 0
    steps = [(-1, 0), (0, -1), (0, 1), (1, 0)] + ([(-1, -1), (-1, 1), (1, -1), (1, 1)] if eight else [])
    queue = [(-float(image[y, x]), 0, int(y), int(x)) for y, x in np.argwhere(labels > 0)]
    heapq.heapify(queue)
    while queue:
        _, _, y, x = heapq.heappop(queue)
        for dy, dx in steps:
            v, u = y + dy, x + dx
            if 0 <= v < image.shape[0] and 0 <= u < image.shape[1] and source[v, u] and labels[v, u] == 0:
                labels[v, u] = labels[y, x]
                age += 1
                heapq.heappush(queue, (-float(image[v, u]), age, v, u))
    return labels


def slow(image: F4, source: NDArray[np.bool_], levels: Levels) -> Labels | None:
    mode = levels.mode
    if source.sum() < 2 * levels.npixels or np.ptp(image[source]) == 0:
        return None
    if mode == "exponential" and image[source].min() <= 0:
        mode = "linear"
    labels = slow_markers(image, source, levels, mode)
    if labels is not None and mode != "linear" and len(np.unique(labels)) - 1 > 200:
        labels = slow_markers(image, source, levels, "linear")
    if labels is None:
        return None
    while True:
        labels = slow_flood(image, source, labels, levels.eight)
        present = np.unique(labels[labels > 0])
        if len(present) < 2:
            return None
        flux = ndimage.sum_labels(image, labels, present) / np.sum(image[source])
        if not (flux < levels.contrast).any():
            return np.searchsorted(present, labels) * (labels > 0) + (labels > 0)
        labels[labels == present[np.argmin(flux)]] = 0


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 5])
@pytest.mark.parametrize(
    "levels",
    [
        Levels(5), Levels(9, 12, 0.02), Levels(5, mode="linear", eight=False), Levels(7, mode="sinh", contrast=0.0),
        Levels(5, contrast=0.1, eight=False),
    ],
)  # fmt: skip
def test_equal_to_the_rules(seed: int, levels: Levels) -> None:
    image = field(seed)
    divided = 0
    for data, source in sources(image, -0.02 if seed == 0 else 0.05, levels.eight):
        expected, found = slow(data, source, levels), deblend(data, source, levels)
        assert (expected is None) == (found is None)
        if expected is not None and found is not None:
            np.testing.assert_array_equal(found[0], expected)
            assert found[1] == expected.max()
            divided += 1
    assert divided > 0


def test_more_than_two_hundred_markers_are_looked_for_again() -> None:
    y, x = np.mgrid[:130, :130]
    image = (2.0 + np.cos(y * 0.9) * np.cos(x * 0.9) + 1e-4 * y + 1e-5 * x).astype(np.float32)
    source = np.ones(image.shape, np.bool_)
    levels = Levels(3, contrast=0.0)
    expected, found = slow(image, source, levels), deblend(image, source, levels)
    assert expected is not None and found is not None and found[1] > 200
    np.testing.assert_array_equal(found[0], expected)


def test_what_stays_whole() -> None:
    image = field(1)
    everywhere = np.ones((40, 40), np.bool_)
    assert deblend(np.ones((40, 40), np.float32), everywhere, Levels(5)) is None
    assert deblend(image[:40, :40], everywhere, Levels(5, contrast=1.0)) is None
    assert deblend(image[:3, :3], np.ones((3, 3), np.bool_), Levels(5)) is None
    y, x = np.mgrid[:21, :21]
    peak = np.exp(-((y - 10) ** 2 + (x - 9) ** 2) / 20.0).astype(np.float32)
    assert deblend(peak, peak > 0.01, Levels(5)) is None


@pytest.mark.parametrize("mode", ["exponential", "linear", "sinh"])
def test_thresholds_lie_between_the_ends(mode: str) -> None:
    found = thresholds(np.float32(0.5), np.float32(7.5), 32, mode)
    assert found.shape == (32,) and (np.diff(found) > 0).all() and 0.5 < found[0] < found[-1] < 7.5
    assert found.dtype == (np.float64 if mode == "sinh" else np.float32)  # as in the library whose labels are matched
