"""Importing this module compiles the loops that count rates are calibrated by, or loads them: see `ready`."""

from __future__ import annotations

import numpy as np

from streamimg3.kernels.background_mean import Clip, clip_integrations, mean_background
from streamimg3.kernels.dq_match import Planes
from streamimg3.kernels.flat import apply_flat, prepare_flat
from streamimg3.kernels.photometry import conversion, convert


def _exercise() -> None:
    noise = np.random.default_rng(1).normal(0.0, 1.0, (8, 6, 10)).astype(np.float32)
    flags = np.zeros(noise.shape, np.uint32)
    averaged = clip_integrations(noise, noise, flags, Clip(10.0))
    mean_background(noise, noise, flags, Clip(10.0))
    stacked = np.stack([averaged.sci] * 8)
    mean_background(stacked, stacked, flags, Clip(10.0))
    planes = Planes(noise[:1], flags[:1], *(noise[k : k + 1].copy() for k in (1, 2, 3)))
    apply_flat(planes, prepare_flat(noise[5], None, None))
    for correction in (1.0, 1.5):
        convert(planes, conversion(2.0, correction))


_exercise()
