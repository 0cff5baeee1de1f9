"""The gWCS of an imaging exposure from its reference files, and what headers say of it (spec others §1.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from streamimg3.errors import InputError
from streamimg3.sky import footprint
from streamimg3.sky.asdf_text import asdf_bytes
from streamimg3.sky.detector_frame import Number, Pointing, pixel_frame, sky_steps
from streamimg3.sky.distortion_file import FilterOffset
from streamimg3.sky.sip import NoApproximation, SipOptions, sip_keywords
from streamimg3.sky.wcs import Bounds, GwcsProjection, Projection, Wcs

if TYPE_CHECKING:
    import gwcs
    from astropy.modeling import Model

_MODES = {
    "NRC": ("IMAGE", "TACQ", "TACONFIRM", "CORON", "FOCUS", "TSIMAGE"),
    "NIS": ("IMAGE", "AMI", "TACQ", "TACONFIRM", "FOCUS"),
    "MIR": ("IMAGE", "TACQ", "TACONFIRM", "LYOT", "4QPM", "CORONCAL"),
    "FGS": ("IMAGE", "FOCUS"),
    "NRS": ("IMAGE", "TACQ", "TACONFIRM", "TASLIT", "WATA", "MSATA", "CONFIRM", "VERIFY", "FOCUS", "MIMF"),
}
# EXP_TYPE of the imaging modes; of these outline and FITS-SIP keywords are written
IMAGING = frozenset(f"{instrument}_{mode}" for instrument, modes in _MODES.items() for mode in modes)


def chain_of(instrument: str, exp_type: str, grating: str | None) -> Literal["imaging", "nirspec"] | None:
    """Return which way leads from an exposure's pixels to the sky.

    Parameters
    ----------
    instrument, exp_type, grating
        INSTRUME, EXP_TYPE, GRATING.

    Returns
    -------
    str or None
        ``imaging``: `imaging_wcs`; ``nirspec``: `streamimg3.sky.nirspec_imaging`; None: no exposure of an imaging mode.
    """
    known = exp_type.upper() in IMAGING
    if instrument.upper() == "NIRSPEC":
        return "nirspec" if known or (grating or "").upper() == "MIRROR" else None
    return "imaging" if known else None


@dataclass(frozen=True)
class Subarray:
    """Which part of the detector was read out.

    Parameters
    ----------
    corner : tuple of 2 ints
        Row and column of its first pixel in the full frame, 0-based.
    size : tuple of 2 ints or None
        Rows and columns; None = those of the array.
    """

    corner: tuple[int, int] = (0, 0)
    size: tuple[int, int] | None = None

    KEYWORDS: ClassVar[tuple[str, ...]] = ("SUBSTRT1", "SUBSTRT2", "SUBSIZE1", "SUBSIZE2")

    @classmethod
    def of(cls, numbers: Mapping[str, Number], name: str) -> Subarray:
        """Return what a header states; without SUBSTRT1 or SUBSTRT2 the array starts with the detector.

        Parameters
        ----------
        numbers : mapping of str to float or None
            The keywords `KEYWORDS` (1-based), as far as they are there.
        name : str
            The exposure, for messages.

        Raises
        ------
        InputError
            If a value is no whole number from 1.
        """
        x, y, nx, ny = (_whole(keyword, numbers.get(keyword), name) for keyword in cls.KEYWORDS)
        return cls(((y or 1) - 1, (x or 1) - 1), None if nx is None or ny is None else (ny, nx))

    @property
    def is_cut(self) -> bool:
        """Whether it starts elsewhere than the detector."""
        return self.corner != (0, 0)


def _whole(keyword: str, value: Number, name: str) -> int | None:
    if value is not None and not (value >= 1 and value == int(value)):
        raise InputError(f"{name}: {keyword} = {value}: it must be a whole number from 1")
    return None if value is None else int(value)


def imaging_wcs(
    distortion: Model, offset: FilterOffset | None, subarray: Subarray, pointing: Pointing, shape: tuple[int, int]
) -> gwcs.WCS:
    """Return the gWCS of an exposure of NIRCam, NIRISS, MIRI or FGS.

    Its frames are detector (pixels, 0-based), v2v3 and v2v3vacorr (arcsec) and world (ICRS, degrees).

    Parameters
    ----------
    distortion : Model
        Of `distortion_model`; stays as it is.
    offset : FilterOffset or None
        Of `filter_offset`.
    subarray : Subarray
        Where the array lies in the full frame.
    pointing : Pointing
        Where the telescope looks.
    shape : tuple of int
        Rows and columns of the array.

    Returns
    -------
    gwcs.WCS
        Its bounding box is that of the sub-array, else of the distortion file, else of the array.
    """
    from gwcs import WCS

    model = distortion.deepcopy()
    box = _box(model, subarray, shape)
    if offset is not None:
        model = _shift(offset.y, offset.x) | model
    if subarray.is_cut:
        model = _shift(*subarray.corner) | model
    wcs = WCS([(pixel_frame("detector"), model), *sky_steps(pointing)])
    wcs.bounding_box = box[::-1]
    return wcs


def _shift(y: float, x: float) -> Model:
    from astropy.modeling.models import Shift

    return Shift(float(x)) & Shift(float(y))


def _box(distortion: Model, subarray: Subarray, shape: tuple[int, int]) -> Bounds:
    """Bounding box in rows and columns."""
    if subarray.is_cut:
        return box_of(subarray.size or shape)
    try:
        (y0, y1), (x0, x1) = distortion.bounding_box.bounding_box(order="C")
    except NotImplementedError:
        return box_of(shape)
    return (float(y0), float(y1)), (float(x0), float(x1))


def box_of(shape: tuple[int, int]) -> Bounds:
    """Return the bounding box ((y0, y1), (x0, x1)) of a whole array: its pixels' outer edges."""
    ny, nx = shape
    return (-0.5, ny - 0.5), (-0.5, nx - 0.5)


def as_wcs(wcs: gwcs.WCS, shape: tuple[int, int]) -> Wcs:
    """Return a gWCS as the value that is stored: ASDF text that is the same in every process."""
    return Wcs("gwcs", asdf_bytes({"wcs": wcs}), shape)


@dataclass(frozen=True, eq=False)
class FreshWcs(Wcs):
    """A gWCS that has just been made, to be asked before it is written down: that takes longer than the answers.

    Parameters
    ----------
    made : gwcs.WCS
        It; ``text`` stays empty.
    """

    made: Any = None

    @classmethod
    def of(cls, wcs: gwcs.WCS, shape: tuple[int, int]) -> FreshWcs:
        """Return a gWCS of an array of rows and columns."""
        return cls("gwcs", b"", shape, made=wcs)

    @property
    def projection(self) -> Projection:
        """The object that computes."""
        return GwcsProjection(self.made)

    def gwcs(self) -> gwcs.WCS:
        """Return the gWCS itself."""
        return self.made


@dataclass(frozen=True)
class Description:
    """What a header says of a gWCS.

    Attributes
    ----------
    s_region : str or None
        S_REGION; None if the outline is not finite or the WCS does not end on the sky.
    sip : dict
        FITS-SIP keywords in the order of the header, empty if there are none. They take the place of CDELT, PC and of any
        earlier approximation.
    notes : tuple of str
        What could not be made, and why.
    """

    s_region: str | None
    sip: dict[str, str | int | float]
    notes: tuple[str, ...]


def described(wcs: Wcs, crpix: tuple[Number, Number], options: SipOptions | None) -> Description:
    """Return outline and FITS-SIP approximation of a gWCS.

    Parameters
    ----------
    wcs : Wcs
        A gWCS.
    crpix : tuple of 2 floats or None
        CRPIX1 and CRPIX2 of the header; the approximation keeps them if both are there.
    options : SipOptions or None
        How close it must be; None = it is not wanted.
    """
    if not _on_sky(wcs.gwcs()):
        return Description(None, {}, ("the WCS does not end on the sky: no S_REGION, no FITS-SIP keywords",))
    region, notes = footprint.outline(wcs), []
    if "nan" in region:
        notes.append("the corners of the bounding box have no sky: S_REGION is not written")
    sip: dict[str, str | int | float] = {}
    if options is not None:
        x, y = crpix
        try:
            sip, told = sip_keywords(wcs, None if x is None or y is None else (x, y), options)
            notes += told
        except NoApproximation as error:
            notes.append(f"no FITS-SIP keywords: {error}")
    return Description(None if "nan" in region else region, sip, tuple(notes))


def _on_sky(wcs: gwcs.WCS) -> bool:
    from gwcs.coordinate_frames import CelestialFrame

    return isinstance(wcs.output_frame, CelestialFrame)
