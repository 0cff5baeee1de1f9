"""A band of an exposure that the steps of image2 change in place, and what they need beside it (spec others §1)."""

from __future__ import annotations

from dataclasses import dataclass

from streamimg3.kernels.background_mean import MeanBackground
from streamimg3.kernels.dq_match import F4, U4, Bool, Planes, match
from streamimg3.kernels.flat import Flat

__all__ = ["Flat", "FlatPixels", "Given", "MeanBackground", "Planes", "invalid"]

# Bytes for each pixel of a band while its planes are worked out: as read and converted, flat field, background, masks
PIXEL = 112
BAND = 2**18  # pixels of a band


@dataclass(frozen=True)
class FlatPixels:
    """A flat field as its file has it, cut to a band: float32 values and errors, uint32 flags; (rows, nx)."""

    sci: F4
    err: F4
    dq: U4


@dataclass(frozen=True)
class Given:
    """What belongs to the same rows as a band; None = the step is not done.

    ``flat`` is what flat_field made ready, ``photmjsr`` and ``correction`` are those of `streamimg3.stages.photom`;
    ``matched`` says that invalid pixels are made the same in all planes at the end.
    """

    background: MeanBackground | None = None
    flat: Flat | None = None
    photmjsr: float | None = None
    correction: float = 1.0
    matched: bool = False


def invalid(planes: Planes) -> Bool:
    """Make invalid pixels the same in all planes, as resample does before it looks at an exposure (spec others §0.2)."""
    return match(planes)
