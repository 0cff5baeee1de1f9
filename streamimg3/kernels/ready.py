"""Importing this module compiles the loops, or loads them from numba's cache: a fork server does it once for all workers."""

from __future__ import annotations

import numpy as np

import streamimg3.kernels.ready_rates  # noqa: F401 (those that calibrate are loaded too)
from streamimg3.kernels.aperture import DaoKernel, circle_sums, ring_background, sharpness_roundness
from streamimg3.kernels.bad_fill import Filling, fill_bad
from streamimg3.kernels.blot import blot
from streamimg3.kernels.clip import clip_image, clip_stream
from streamimg3.kernels.drizzle import Canvas, Kernel, Patch, drizzle
from streamimg3.kernels.outliers import Thresholds, resampled_outliers
from streamimg3.kernels.pixels import add_variances
from streamimg3.kernels.scanline import everywhere, gather
from streamimg3.kernels.segment_stars import SegmentOptions, find_segments
from streamimg3.kernels.sky_level import STATISTICS, Clipping, exercise, sky_level
from streamimg3.kernels.spline import basis, evaluate
from streamimg3.kernels.stars import FinderOptions, find_stars


def _exercise() -> None:
    n = 4
    y, x = np.mgrid[:n, :n].astype(np.float64)
    ones = np.ones((n, n), np.float32)
    limits = np.tile(np.array([0, n - 1], np.int32), (n, 1))
    patch = Patch((0, 0), (n, n), y, x, ones[None], ones[None], ones, limits, np.zeros((0, 0), np.uint32))
    for name in ("square", "point"):
        canvas = Canvas.blank((0, 0), (n, n), (1, 1))
        drizzle(canvas, patch, Kernel(name), 0)
    add_variances(canvas.noise, ones[None] * np.float32(np.nan), np.zeros((1, n, n), np.float32), 0, 1.0)
    rows = basis(np.array([0.0, 0.0, 3.0, 3.0]), 1, 0, n)
    evaluate(np.zeros((2, 2)), rows, rows)
    resampled_outliers(ones, ones, blot(ones, (0, 0), (n, n), y, x), 0.0, Thresholds())
    unflagged = [(ones, np.zeros(ones.shape, np.bool_))]
    clip_image(lambda: unflagged, ones.size)
    clip_stream(lambda: unflagged)
    values = np.array([1.0, 2.0] * 25, np.float32)
    for statistic in STATISTICS:
        sky_level(lambda: [values], Clipping(statistic))
    exercise(values)
    gather(values.reshape(5, 10), (0, 0), everywhere((5, 10)), np.empty(50, np.float32))
    noise = np.random.default_rng(1).normal(0.0, 1.0, (60, 60)).astype(np.float32)
    noise[28:33, 20:24] = noise[28:33, 26:30] = 50.0  # a blend, so that it is divided
    find_segments(noise, np.zeros(noise.shape, np.bool_), SegmentOptions(bkg_boxsize=20, localbkg_width=3))
    centres = np.array([[30.0, 30.0]])
    circle_sums(noise, noise, (0, 0), centres, 3.0)
    ring_background(noise, (0, 0), centres, (5.0, 8.0))
    sharpness_roundness(noise, (0, 0), centres, DaoKernel.of_fwhm(2.0))
    find_stars(noise, np.zeros(noise.shape, np.bool_), FinderOptions(bkg_boxsize=20))
    deep = noise[:8].reshape(8, 6, 10)
    flags = np.zeros(deep.shape, np.uint32)
    holes = np.where(deep > 1.0, np.float32(np.nan), deep)
    fill_bad(holes, flags, Filling())


_exercise()
