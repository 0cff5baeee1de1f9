"""Parameters of the resample step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from streamimg3.errors import InputError
from streamimg3.sky.mosaic_frame import FrameOptions
from streamimg3.sky.pixmap import Sampling
from streamimg3.store.flags import bad_bits
from streamimg3.store.layout import TILE, inner_chunk

KERNELS = ("square", "gaussian", "point", "turbo", "lanczos2", "lanczos3")
WEIGHTS = ("ivm", "exptime", "weight_map", "none")


@dataclass(frozen=True)
class Params:
    """Parameters of the resample step: names, meaning and defaults of jwst 3.0.0 (spec §7.1) unless said otherwise.

    Parameters
    ----------
    pixfrac : float
        Drop size in input pixels, 0..1; at most 0.001 means the point kernel.
    kernel : str
        square, gaussian, point, turbo, lanczos2 or lanczos3; gaussian and lanczos do not conserve flux.
    fillval : str
        Value of pixels without weight: a number, NAN or INDEF (= NaN).
    weight_type : str
        ivm (inverse VAR_RNOISE; without it the weight map that came with the image, else 1), exptime, weight_map, none (or None).
    output_shape, crpix, crval : pair
        Shape and reference pixel (0-based) in x, y order; reference position in degrees.
    rotation : float
        Position angle of +Y, degrees east of north; None = as exposure 0.
    pixel_scale_ratio, pixel_scale : float
        Output over input scale; scale in arcsec overrides it.
    output_wcs : str
        File with the output WCS: ASDF with a gWCS, or a FITS file or header text; overrides all of the above.
    single : bool
        One mosaic per exposure group instead of one of all.
    blendheaders : bool
        Merge the headers of all exposures and write HDRTAB.
    enable_ctx, enable_err, report_var, propagate_dq : bool
        Which planes are made: CON; ERR and variances; VAR planes in the product; DQ.
    pixmap_stepsize : float or None
        None (ours): coarse grid, bicubic, error measured and at most 1e-5 pixel; 1: exact; above 1: that spacing.
    pixmap_order : int
        1 or 3, degree of the spline for a stepsize above 1.
    good_bits : str or None
        Flags that do not exclude a pixel; None = all but DO_NOT_USE and NON_SCIENCE for JWST, no flag for others.
    tile : int
        Side of a mosaic tile (a store shard) in pixels.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    pixfrac: float = 1.0
    kernel: str = "square"
    fillval: str = "NAN"
    weight_type: str | None = "ivm"
    output_shape: tuple[int, int] | None = None
    crpix: tuple[float, float] | None = None
    crval: tuple[float, float] | None = None
    rotation: float | None = None
    pixel_scale_ratio: float = 1.0
    pixel_scale: float | None = None
    output_wcs: str = ""
    single: bool = False
    blendheaders: bool = True
    enable_ctx: bool = True
    enable_err: bool = True
    report_var: bool = True
    propagate_dq: bool = False
    pixmap_stepsize: float | None = None
    pixmap_order: int = 1
    good_bits: str | None = None
    tile: int = TILE

    def __post_init__(self) -> None:
        checks = [
            *(
                (_finite(getattr(self, name)), name, "finite")
                for name in ("crpix", "crval", "rotation", "pixmap_stepsize")
            ),
            (0.0 <= self.pixfrac <= 1.0, "pixfrac", "a number from 0 to 1"),
            (self.kernel in KERNELS, "kernel", "one of " + ", ".join(KERNELS)),
            ((self.weight_type or "none") in WEIGHTS, "weight_type", "one of " + ", ".join(WEIGHTS)),
            (self.pixmap_order in (1, 3), "pixmap_order", "1 or 3"),
            (self.pixmap_stepsize is None or self.pixmap_stepsize >= 1, "pixmap_stepsize", "at least 1"),
            (0 < self.pixel_scale_ratio < math.inf, "pixel_scale_ratio", "positive and finite"),
            (self.pixel_scale is None or 0 < self.pixel_scale < math.inf, "pixel_scale", "positive, in arcsec"),
            (
                self.output_shape is None or min(self.output_shape) >= 1,
                "output_shape",
                "two positive integers, x then y",
            ),
            (
                self.crval is None or -90.0 <= self.crval[1] <= 90.0,
                "crval",
                "right ascension and declination in degrees",
            ),
            (
                16 <= self.tile <= 8192 and inner_chunk(self.tile) >= min(self.tile, 64),
                "tile",
                "16 to 8192, best a multiple of 64",
            ),
            (self.fill is not None, "fillval", "a number, NAN or INDEF"),
        ]
        for good, name, wanted in checks:
            if not good:
                raise InputError(f"resample.{name} = {getattr(self, name)!r}: it must be {wanted}")
        bad_bits(self.good_bits)

    @property
    def fill(self) -> float | None:
        """The fill value as a number; None if the text is no number."""
        text = self.fillval.strip().upper()
        if text in ("NAN", "INDEF", ""):
            return math.nan
        try:
            return float(text) if math.isfinite(float(text)) else None
        except ValueError:
            return None

    @property
    def sampling(self) -> Sampling:
        """How pixel maps are made."""
        return Sampling(self.pixmap_stepsize, self.pixmap_order)

    @property
    def frame_options(self) -> FrameOptions:
        """What is asked of the output frame."""
        return FrameOptions(
            self.output_shape, self.crpix, self.crval, self.rotation, self.pixel_scale, self.pixel_scale_ratio
        )


def _finite(value: float | tuple[float, float] | None) -> bool:
    return value is None or all(map(math.isfinite, value if isinstance(value, tuple) else (value,)))
