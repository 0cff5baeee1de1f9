"""Which input pixels count, with what weight, and what a tile's error planes become.

Spec image3 §1 (NaN and flag matching), §7.4 (weights) and §7.6 (variances and ERR).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.compiled import loop

F4 = NDArray[np.float32]
U4 = NDArray[np.uint32]

DO_NOT_USE = 1


def inverse_variance(variance: F4) -> F4:
    """Return ``1 / variance`` with 0 where that is not finite (float32 in, float32 out)."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        weight = np.float32(1.0) / variance
    weight[~np.isfinite(weight)] = 0.0
    return weight


def usable(dq: U4, nan: NDArray[np.uint8], bad_bits: int) -> NDArray[np.bool_]:
    """Return the pixels that take part: no bad flag, not flagged DO_NOT_USE and finite in every plane.

    Parameters
    ----------
    dq : ndarray of uint32
        Flags.
    nan : ndarray of uint8
        1 where any of SCI, ERR and the variances is NaN.
    bad_bits : int
        Flags that exclude a pixel.
    """
    good: NDArray[np.bool_] = (dq & np.uint32(bad_bits | DO_NOT_USE)) == 0
    good &= nan == 0
    return good


def add_variances(noise: F4, sums: F4, weights: F4, read: int, constant: float) -> None:
    """Add one exposure's drizzled errors to the running variance sums of a tile and clear them.

    With v the square of the drizzled error and u the exposure's weight at an output pixel, ``sums += v u²`` and
    ``weights += u`` (double arithmetic, float32 storage; spec §7.6).

    Parameters
    ----------
    noise : ndarray of float32, shape (ny, nx, 1 + m)
        Weight and drizzled errors of this exposure; set to zero on return.
    sums, weights : ndarray of float32, shape (m, ny, nx)
        Running sums, changed in place; ``sums`` is NaN where nothing has contributed.
    read : int
        Index of the read-noise variance, whose inverse is u; -1 = use ``constant``; -2 = the drizzled weight is u.
    constant : float
        u where there is no read-noise variance (1) or weights are exposure times (seconds).
    """
    _add_variances(noise, sums, weights, read, constant)


@loop
def _add_variances(noise, sums, weights, read, constant):  # type: ignore[no-untyped-def]
    for j in range(noise.shape[0]):
        for i in range(noise.shape[1]):
            if noise[j, i, 0] == np.float32(0.0):
                continue
            u = np.float64(noise[j, i, 0]) if read == -2 else constant
            if read >= 0:
                v = noise[j, i, 1 + read] * noise[j, i, 1 + read]
                u = np.float64(np.float32(1.0) / v) if v > 0.0 and not math.isinf(v) else 0.0
            for k in range(sums.shape[0]):
                v = noise[j, i, 1 + k] * noise[j, i, 1 + k]
                noise[j, i, 1 + k] = np.float32(0.0)
                if not (v >= 0.0 and not math.isinf(v) and u > 0.0):
                    continue
                s = sums[k, j, i]
                s = np.float32(0.0) if math.isnan(s) else s
                sums[k, j, i] = np.float32(np.float64(s) + np.float64(v) * u * u)
                weights[k, j, i] = np.float32(np.float64(weights[k, j, i]) + u)
            noise[j, i, 0] = np.float32(0.0)


def final_variances(sums: F4, weights: F4, ratio: float | np.float64) -> F4:
    """Return the variances of the mosaic, ``sums / ratio² / weights²`` (float32, NaN where nothing contributed).

    A ``ratio`` that is a NumPy scalar makes the division double, as in the reference, where a pixel scale in arcsec
    gives such a ratio and a plain ratio does not.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scaled = sums * (1.0 / ratio**2)
        result: F4 = (scaled / weights / weights).astype(np.float32)
    return result


def total_error(variances: F4) -> F4:
    """Return the square root of the sum of the finite variances (axis 0), NaN where all are NaN; float32."""
    total = np.zeros(variances.shape[1:], np.float32)
    for plane in variances:
        total += np.where(np.isnan(plane), np.float32(0.0), plane)
    error: F4 = np.sqrt(total)
    error[np.isnan(variances).all(axis=0)] = np.nan
    return error
