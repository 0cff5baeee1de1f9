"""From the telescope's V2V3 plane to the sky: velocity aberration and attitude of an exposure (spec others §1.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from streamimg3.errors import InputError

if TYPE_CHECKING:
    from astropy.modeling import Model
    from gwcs.coordinate_frames import CelestialFrame, Frame2D

Number = float | None
Step = tuple["Frame2D | CelestialFrame", "Model | None"]
_ARCSEC = 1.0 / 3600.0  # degrees


@dataclass(frozen=True)
class Pointing:
    """Where a reference point of the telescope's focal plane looks.

    Parameters
    ----------
    v2_ref, v3_ref : float
        The reference point in the V2V3 plane, arcsec.
    ra_ref, dec_ref : float
        The sky there, ICRS degrees.
    roll_ref : float
        Position angle of the V3 axis there, degrees.
    va_scale : float or None
        Velocity aberration: true over apparent plate scale; None = 1.
    v3i_yang : float or None
        Angle from V3 to the detector's ideal y axis, degrees; the WCS itself does not need it.
    vparity : int or None
        1 or -1: sense of the ideal axes in the V2V3 plane; the WCS itself does not need it.

    Raises
    ------
    InputError
        If a number is not finite, or ``va_scale`` not positive.
    """

    v2_ref: float
    v3_ref: float
    ra_ref: float
    dec_ref: float
    roll_ref: float
    va_scale: Number = None
    v3i_yang: Number = None
    vparity: int | None = None

    NEEDED: ClassVar[tuple[str, ...]] = ("V2_REF", "V3_REF", "RA_REF", "DEC_REF", "ROLL_REF")
    KEYWORDS: ClassVar[tuple[str, ...]] = (*NEEDED, "VA_SCALE", "V3I_YANG", "VPARITY")

    def __post_init__(self) -> None:
        for keyword in self.KEYWORDS:
            value = getattr(self, keyword.lower())
            if value is not None and not math.isfinite(value):
                raise InputError(f"{keyword} = {value}: it must be a finite number")
        if self.va_scale is not None and self.va_scale <= 0.0:
            raise InputError(f"VA_SCALE = {self.va_scale}: it must be positive")

    @classmethod
    def of(cls, numbers: Mapping[str, Number], name: str) -> Pointing:
        """Return the pointing that a header states.

        Parameters
        ----------
        numbers : mapping of str to float or None
            The keywords `KEYWORDS`, as far as they are there.
        name : str
            The exposure, for messages.

        Raises
        ------
        InputError
            If one of `NEEDED` is missing or a value makes no sense; the line names the exposure.
        """
        missing = [k for k in cls.NEEDED if numbers.get(k) is None]
        if missing:
            raise InputError(
                f"{name}: {', '.join(missing)} missing, so its WCS cannot be made: "
                "add the pointing keywords, or give an exposure that has them"
            )
        found = {k.lower(): numbers.get(k) for k in cls.KEYWORDS if k != "VPARITY"}
        parity = numbers.get("VPARITY")
        try:
            return cls(**found, vparity=None if parity is None else round(parity))  # type: ignore[arg-type]
        except (InputError, ValueError) as error:
            raise InputError(f"{name}: {error}") from None


def aberration(pointing: Pointing) -> Model:
    """Return the model v2v3 -> v2v3vacorr (arcsec): a scaling about the reference point.

    Per axis v' = s v + (1 - s) v_ref; the identity for a scale of 1 or none.
    """
    from astropy.modeling.models import Identity, Scale, Shift

    scale = pointing.va_scale
    if scale is None or scale == 1.0:
        return Identity(2)
    stretch = Scale(scale, name="dva_scale_v2") & Scale(scale, name="dva_scale_v3")
    back = (1.0 - scale) * pointing.v2_ref, (1.0 - scale) * pointing.v3_ref
    model = stretch | Shift(back[0], name="dva_v2_shift") & Shift(back[1], name="dva_v3_shift")
    model.name = "DVA_Correction"
    return model


def attitude(pointing: Pointing) -> Model:
    """Return the model v2v3vacorr (arcsec) -> right ascension [0, 360) and declination (degrees).

    A rotation of unit vectors: Rz(-RA) Ry(DEC) Rx(ROLL) Ry(-V3) Rz(V2), angles of the reference point.
    """
    from astropy.modeling.models import RotationSequence3D, Scale
    from gwcs.geometry import CartesianToSpherical, SphericalToCartesian

    p = pointing
    # Divided, not multiplied by the reciprocal: the last digit of the angles is that of the reference.
    angles = [p.v2_ref / 3600.0, -(p.v3_ref / 3600.0), p.roll_ref, p.dec_ref, -p.ra_ref]
    vectors = Scale(_ARCSEC) & Scale(_ARCSEC) | SphericalToCartesian(wrap_lon_at=180)
    model = vectors | RotationSequence3D(angles, axes_order="zyxyz") | CartesianToSpherical(wrap_lon_at=360)
    model.name = "v23tosky"
    return model


def sky_steps(pointing: Pointing) -> list[Step]:
    """Return the steps of a gWCS from ``v2v3`` to ``world``."""
    return [
        (v2v3_frame("v2v3"), aberration(pointing)),
        (v2v3_frame("v2v3vacorr"), attitude(pointing)),
        (world_frame(), None),
    ]


def pixel_frame(name: str) -> Frame2D:
    """Return a frame of pixels, 0-based, x first as gwcs wants it."""
    from astropy import units
    from gwcs.coordinate_frames import Frame2D

    return Frame2D(name=name, axes_order=(0, 1), unit=(units.pix, units.pix))


def v2v3_frame(name: str) -> Frame2D:
    """Return a frame of the telescope's V2V3 plane in arcsec."""
    from astropy import units
    from gwcs.coordinate_frames import Frame2D

    unit = (units.arcsec, units.arcsec)
    return Frame2D(name=name, axes_order=(0, 1), axes_names=("v2", "v3"), unit=unit)


def world_frame() -> CelestialFrame:
    """Return the frame of the sky: ICRS, degrees."""
    from astropy.coordinates import ICRS
    from gwcs.coordinate_frames import CelestialFrame

    return CelestialFrame(name="world", axes_order=(0, 1), reference_frame=ICRS())
