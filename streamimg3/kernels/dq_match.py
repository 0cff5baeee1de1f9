"""The same invalid pixels in every plane of an exposure (spec others §0.2).

The rule looks at one pixel at a time, so how an exposure is cut makes no difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    alike = [plane for plane in planes.numbers if plane.shape == planes.sci.shape]
    flagged = planes.dq.shape == planes.sci.shape
    invalid: Bool = (planes.dq & np.uint32(DO_NOT_USE)) != 0 if flagged else np.zeros(planes.sci.shape, np.bool_)
    for plane in alike:
        invalid |= np.isnan(plane)
    if flagged:
        np.bitwise_or(planes.dq, np.uint32(DO_NOT_USE), out=planes.dq, where=invalid)
    for plane in alike:
        np.copyto(plane, np.float32(np.nan), where=invalid)
    return invalid
