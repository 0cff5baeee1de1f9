"""A cube of integrations as outlier_detection left it: outliers flagged, invalid pixels NaN in every plane (spec others §0.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.geometry import Box
from streamimg3.store.exposure import Exposure
from streamimg3.store.layout import FLAGS, NAN_PLANES

_OUTLIER = FLAGS["OUTLIER"] | FLAGS["DO_NOT_USE"]


@dataclass(frozen=True)
class SeenCube:
    """The integrations of an exposure seen through the flags of outlier_detection.

    A pixel is invalid if any of SCI, ERR and the variances is NaN, its flags say DO_NOT_USE, or it is an outlier: it is then
    NaN in all of these planes and DO_NOT_USE in the flags.  Without outlier detection everything is as it came.

    Parameters
    ----------
    exposure : Exposure
        A cube.
    judged : bool
        Whether outlier_detection has run.
    """

    exposure: Exposure
    judged: bool = True

    def flags(self, first: int, last: int, box: Box) -> NDArray[np.uint32]:
        """Return the flags of some integrations: uint32, shape ``(last - first, rows, columns)``."""
        dq = self._stored(first, last, box)
        if self.judged:
            dq[self._outliers(first, last, box)] |= np.uint32(_OUTLIER)
            dq[self._nan(first, last, box)] |= np.uint32(FLAGS["DO_NOT_USE"])
        return dq

    def invalid(self, first: int, last: int, box: Box) -> NDArray[np.bool_]:
        """Return where pixels are invalid: bool, shape ``(last - first, rows, columns)``."""
        bad: NDArray[np.bool_] = (self._stored(first, last, box) & np.uint32(FLAGS["DO_NOT_USE"])) != 0
        bad |= self._nan(first, last, box)
        if self.judged:
            bad |= self._outliers(first, last, box)
        return bad

    def floats(
        self, plane: str, first: int, last: int, box: Box, invalid: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Return a plane of some integrations: float32, shape ``(last - first, rows, columns)``; it may be written to.

        ``invalid`` saves finding out again where pixels are invalid; they are then NaN whether or not outliers are judged.
        """
        block = np.array(self.exposure.read_block(plane, first, last, box), np.float32)
        if plane in NAN_PLANES and (self.judged or invalid is not None):
            block[self.invalid(first, last, box) if invalid is None else invalid] = np.nan
        return block

    def _stored(self, first: int, last: int, box: Box) -> NDArray[np.uint32]:
        if not self.exposure.has("dq"):
            return np.zeros((last - first, *box.shape), np.uint32)
        return np.array(self.exposure.read_block("dq", first, last, box), np.uint32)

    def _nan(self, first: int, last: int, box: Box) -> NDArray[np.bool_]:
        return np.asarray(self.exposure.read_block("nan", first, last, box) != 0)

    def _outliers(self, first: int, last: int, box: Box) -> NDArray[np.bool_]:
        return np.asarray(self.exposure.read_block("outlier", first, last, box) != 0)
