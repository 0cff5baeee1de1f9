"""Rings and sectors around a star, in which images are treated separately."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Regions:
    """Rings between radii, each cut in sectors of equal angle.

    Parameters
    ----------
    centre : tuple of float
        Pixel (y, x) of the star.
    edges : tuple of float
        Radii in pixels, increasing; none = everything is one region.
    sectors : int
        Sectors of each ring; the first begins at the positive x axis, and they follow each other towards positive y.
    """

    centre: tuple[float, float] = (0.0, 0.0)
    edges: tuple[float, ...] = ()
    sectors: int = 1

    @property
    def count(self) -> int:
        """Number of regions."""
        return max(1, len(self.edges) - 1) * self.sectors

    def labels(self, y0: int, y1: int, nx: int) -> NDArray[np.int32]:
        """Return the region of each pixel of rows ``y0..y1``: int32, shape ``(y1 - y0, nx)``; -1 = none.

        A pixel belongs to the ring that its centre lies in, outer edge excluded.
        """
        y, x = np.ogrid[y0:y1, :nx]
        y, x = y - self.centre[0], x - self.centre[1]
        ring: NDArray[np.int64] = np.zeros((y1 - y0, nx), np.int64)
        if self.edges:
            ring = np.searchsorted(self.edges, np.hypot(y, x), side="right") - 1
            ring[ring >= len(self.edges) - 1] = -1
        turn = np.arctan2(y, x) / (2.0 * math.pi) % 1.0
        sector = np.minimum((turn * self.sectors).astype(np.int64), self.sectors - 1)
        return np.where(ring < 0, -1, ring * self.sectors + sector).astype(np.int32)
