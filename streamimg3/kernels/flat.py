"""Dividing an exposure by its flat field (spec others §1.4): everything in single precision, pixel by pixel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.calibration_loops import divide, layered, prepare
from streamimg3.kernels.dq_match import DO_NOT_USE, Planes, match

F4 = NDArray[np.float32]
U4 = NDArray[np.uint32]

NO_FLAT_FIELD = 1 << 18


class Flat(NamedTuple):
    """A flat field that is ready to be divided by: float32 values (1 where bad) and errors, uint32 flags; (ny, nx)."""

    sci: F4
    err: F4
    dq: U4


def prepare_flat(flat: F4, error: F4 | None, flags: U4 | None) -> Flat:
    """Flag the pixels of a flat field that cannot be divided by, and let those divide by 1.

    Parameters
    ----------
    flat : ndarray of float32, shape (ny, nx)
        Relative response; NaN and 0 are flagged NO_FLAT_FIELD and DO_NOT_USE.
    error : ndarray of float32, shape (ny, nx), optional
        Its error; None = the reference file has none, 0.
    flags : ndarray of uint32, shape (ny, nx), optional
        Its flags; those that say NO_FLAT_FIELD come to say DO_NOT_USE too.  None = no flags.

    Returns
    -------
    Flat
        Copies; the input is left alone.
    """
    sci = np.array(flat, np.float32)
    err = np.zeros(sci.shape, np.float32) if error is None else np.array(error, np.float32)
    dq = np.zeros(sci.shape, np.uint32) if flags is None else np.array(flags, np.uint32)
    prepare(sci, dq, np.uint32(DO_NOT_USE), np.uint32(NO_FLAT_FIELD))
    return Flat(sci, err, dq)


def apply_flat(planes: Planes, flat: Flat, inverse: bool = False) -> tuple[str, ...]:
    """Divide an exposure by its flat field, or multiply it back, and make invalid pixels the same in every plane.

    VAR_FLAT becomes ``sci² / flat² · error²`` with the divided image (0 for the inverse), the other variances are
    divided by ``flat²``, and ERR becomes the root of the sum of all three, whatever it was before.

    Parameters
    ----------
    planes : Planes
        Changed in place; `err` and `var_flat` are new arrays.  Cubes are divided integration by integration.
    flat : Flat
        From `prepare_flat`, cut to the exposure's pixels.
    inverse : bool
        Multiply instead of divide.

    Returns
    -------
    tuple of str
        Variances that the exposure does not have (``var_poisson``, ``var_rnoise``); ERR is without them.

    Raises
    ------
    ValueError
        If the flat field is not of the exposure's shape.
    """
    if flat.sci.shape != planes.sci.shape[-2:]:
        raise ValueError(f"flat field of shape {flat.sci.shape} for pixels of shape {planes.sci.shape}")
    if inverse:
        _multiply(planes, flat)
    else:
        shape = planes.sci.shape
        var_flat, err = np.empty(shape, np.float32), np.empty(shape, np.float32)
        numbers = (planes.sci, planes.var_poisson, planes.var_rnoise, var_flat, err)
        divide(*(layered(plane, shape) for plane in numbers), flat.sci, flat.err)
        planes.var_flat, planes.err = var_flat, err
    planes.dq |= flat.dq
    match(planes)
    given = {"var_poisson": planes.var_poisson, "var_rnoise": planes.var_rnoise}
    return tuple(name for name, plane in given.items() if plane is None)


def _multiply(planes: Planes, flat: Flat) -> None:
    square = flat.sci * flat.sci
    total = np.zeros(planes.sci.shape, np.float32)
    with np.errstate(all="ignore"):
        planes.sci *= flat.sci
        for variance in (planes.var_poisson, planes.var_rnoise):
            if variance is not None:
                variance *= square
                total += variance
        planes.var_flat, planes.err = np.zeros(planes.sci.shape, np.float32), np.sqrt(total)
