"""The same invalid pixels in every plane of an exposure (spec others §0.2).

The rule looks at one pixel at a time, so how an exposure is cut makes no difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.calibration_loops import layered, layered_flags, settle

F4 = NDArray[np.float32]
U4 = NDArray[np.uint32]
Bool = NDArray[np.bool_]

DO_NOT_USE = 1


@dataclass
class Planes:
    """The pixels of an exposure or of a part of one, which the steps of image2 change in place.

    Parameters
    ----------
    sci : ndarray of float32, shape (ny, nx) or (nint, ny, nx)
        Science pixels, in the unit of the exposure.
    dq : ndarray of uint32, shape as `sci`
        Flags.
    err : ndarray of float32, optional
        Standard errors; None = the exposure has none.
    var_poisson, var_rnoise, var_flat : ndarray of float32, optional
        Variances; None = the exposure has none.
    """

    sci: F4
    dq: U4
    err: F4 | None = None
    var_poisson: F4 | None = None
    var_rnoise: F4 | None = None
    var_flat: F4 | None = None

    @property
    def variances(self) -> list[F4]:
        """The variances that there are."""
        return [plane for plane in (self.var_poisson, self.var_rnoise, self.var_flat) if plane is not None]

    @property
    def numbers(self) -> list[F4]:
        """All planes that there are except the flags; `sci` is the first."""
        return [self.sci, *([] if self.err is None else [self.err]), *self.variances]


def match(planes: Planes) -> Bool:
    """Make what is invalid in one plane invalid in all.

    A pixel is invalid where a plane is NaN or its flags say DO_NOT_USE; there all planes become NaN and the flags
    say DO_NOT_USE.  Planes of another shape than `sci` take no part.

    Parameters
    ----------
    planes : Planes
        Changed in place.

    Returns
    -------
    ndarray of bool, shape as ``planes.sci``
        The invalid pixels.
    """
    given = (planes.sci, planes.err, planes.var_poisson, planes.var_rnoise, planes.var_flat)
    shape = planes.sci.shape
    numbers = [layered(p if p is not None and p.shape == shape else None, shape) for p in given]
    flags = planes.dq if planes.dq.shape == shape else None
    invalid: Bool = np.empty(shape, np.bool_)
    settle(*numbers, layered_flags(flags), invalid if invalid.ndim == 3 else invalid[None])
    return invalid
