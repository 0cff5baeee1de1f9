"""The arithmetic of image2 pixel by pixel, all planes in one pass; every operation rounds as in single precision.

Planes are of shape (n, ny, nx); one that is not there is of shape (0, 0, 0). Flat fields are of shape (ny, nx).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.compiled import loop

F4 = NDArray[np.float32]
U4 = NDArray[np.uint32]
_NONE = np.empty((0, 0, 0), np.float32)
_NO_FLAGS = np.empty((0, 0, 0), np.uint32)
_NAN = np.float32(np.nan)


def layered(plane: F4 | None, shape: tuple[int, ...]) -> F4:
    """Return a plane of an exposure as the loops want it: an image is a cube of one.

    Raises
    ------
    ValueError
        If it is not of the exposure's shape: the loops would read beside it.
    """
    if plane is None:
        return _NONE
    if plane.shape != shape:
        raise ValueError(f"a plane of shape {plane.shape} beside pixels of shape {shape}")
    return plane if plane.ndim == 3 else plane[None]


def layered_flags(flags: U4 | None) -> U4:
    """Return flags as the loops want them."""
    return _NO_FLAGS if flags is None else flags if flags.ndim == 3 else flags[None]


@loop
def settle(sci, a, b, c, d, dq, invalid):  # type: ignore[no-untyped-def]
    """Blank a pixel in all planes where one is NaN or the flags say 1, and let the flags say it; mark it in `invalid`."""
    count, ny, nx = sci.shape
    for k in range(count):
        for y in range(ny):
            for x in range(nx):
                bad = np.isnan(sci[k, y, x])
                if dq.shape[0] and dq[k, y, x] & np.uint32(1):
                    bad = True
                if a.shape[0] and np.isnan(a[k, y, x]):
                    bad = True
                if b.shape[0] and np.isnan(b[k, y, x]):
                    bad = True
                if c.shape[0] and np.isnan(c[k, y, x]):
                    bad = True
                if d.shape[0] and np.isnan(d[k, y, x]):
                    bad = True
                invalid[k, y, x] = bad
                if bad:
                    sci[k, y, x] = _NAN
                    if dq.shape[0]:
                        dq[k, y, x] |= np.uint32(1)
                    if a.shape[0]:
                        a[k, y, x] = _NAN
                    if b.shape[0]:
                        b[k, y, x] = _NAN
                    if c.shape[0]:
                        c[k, y, x] = _NAN
                    if d.shape[0]:
                        d[k, y, x] = _NAN


@loop
def prepare(flat, flags, bad, no_flat):  # type: ignore[no-untyped-def]
    """Flag with `bad` and `no_flat` where a flat field is NaN or 0, with `bad` where it is `no_flat`; `bad` divides by 1."""
    ny, nx = flat.shape
    for y in range(ny):
        for x in range(nx):
            if np.isnan(flat[y, x]) or flat[y, x] == np.float32(0.0):
                flags[y, x] |= bad | no_flat
            if flags[y, x] & no_flat:
                flags[y, x] |= bad
            if flags[y, x] & bad:
                flat[y, x] = np.float32(1.0)


@loop
def divide(sci, poisson, rnoise, var_flat, err, flat, error):  # type: ignore[no-untyped-def]
    """Divide by a flat field; `var_flat` and `err` are written, whatever they were."""
    count, ny, nx = sci.shape
    for k in range(count):
        for y in range(ny):
            for x in range(nx):
                response = flat[y, x]
                square = response * response
                sci[k, y, x] = sci[k, y, x] / response
                total = np.float32(0.0)
                if poisson.shape[0]:
                    poisson[k, y, x] = poisson[k, y, x] / square
                    total = total + poisson[k, y, x]
                if rnoise.shape[0]:
                    rnoise[k, y, x] = rnoise[k, y, x] / square
                    total = total + rnoise[k, y, x]
                made = sci[k, y, x] * sci[k, y, x] / square * (error[y, x] * error[y, x])
                var_flat[k, y, x] = made
                err[k, y, x] = np.sqrt(total + made)


@loop
def scale(sci, err, poisson, rnoise, var_flat, factor):  # type: ignore[no-untyped-def]
    """Multiply by a factor, variances by its square, in the factor's own precision."""
    square = factor * factor
    count, ny, nx = sci.shape
    for k in range(count):
        for y in range(ny):
            for x in range(nx):
                sci[k, y, x] = np.float32(sci[k, y, x] * factor)
                if err.shape[0]:
                    err[k, y, x] = np.float32(err[k, y, x] * factor)
                if poisson.shape[0]:
                    poisson[k, y, x] = np.float32(poisson[k, y, x] * square)
                if rnoise.shape[0]:
                    rnoise[k, y, x] = np.float32(rnoise[k, y, x] * square)
                if var_flat.shape[0]:
                    var_flat[k, y, x] = np.float32(var_flat[k, y, x] * square)
