"""Importing this module compiles the loops of time series, or loads them from numba's cache: see `ready`."""

from __future__ import annotations

import numpy as np

from streamimg3.kernels.box_profile import Box, background_profile, source_profile
from streamimg3.kernels.boxcar import Background, Extraction, Variances
from streamimg3.kernels.centroid import Boxes, fit_stars
from streamimg3.kernels.outliers import nan_median
from streamimg3.kernels.rolling_median import Window, outliers, rolling_median
from streamimg3.kernels.time_aperture import Apertures, aperture_series


def _exercise() -> None:
    cube = np.ones((5, 16, 16), np.float32)
    good = np.zeros(cube.shape, np.bool_)
    window = Window(3, 5)
    median = rolling_median(cube, good, window, (0, 5)).median
    outliers(cube, cube, median, 5.0)
    outliers(cube, cube, nan_median(cube), 5.0)
    cube[:, 7:9, 7:9] = 5.0
    fit_stars(cube, good, (7.5, 7.5), Boxes(9, 5.0))
    apertures = Apertures((2.0,), (3.0, 5.0))
    for centres in ((7.5, 7.5), np.full((5, 2), 7.5)):
        aperture_series(cube, cube, centres, apertures)
    wavelength = np.broadcast_to(np.arange(1.0, 17.0), (16, 16)).copy()
    box = Box(1, (6.0, 0.0), (9.0, 15.0), background=((1.0,), (4.0,)))
    background = Background(background_profile(box, wavelength), "poly", 1)
    Extraction(source_profile(box, wavelength), 1, background)(cube, Variances(cube, cube, cube))


_exercise()
