"""Give an exposure its gWCS (spec others §1.3): parameters, and the WCS from the content of reference files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamimg3.errors import InputError
from streamimg3.sky.detector_frame import Number, Pointing
from streamimg3.sky.distortion_file import distortion_model, filter_offset
from streamimg3.sky.imaging_wcs import IMAGING, FreshWcs, Subarray, chain_of, described, imaging_wcs
from streamimg3.sky.nirspec_imaging import TYPES, Optics, Setting, nirspec_imaging_wcs
from streamimg3.sky.sip import SipOptions

NAME = "assign_wcs"
KEYWORDS = (*Pointing.KEYWORDS, *Subarray.KEYWORDS, "CRPIX1", "CRPIX2")  # numbers that are needed of the headers
# All that the reference asks for; which of them are used depends on the instrument
REFTYPES = (
    "distortion", "filteroffset", "specwcs", "regions", "wavelengthrange", "camera", "chromcorr", "collimator", "disperser",
    "fore", "fpa", "msa", "ote", "ifupost", "ifufore", "ifuslicer",
)  # fmt: skip
_HIGHEST = 6
_WITHOUT_FORE = ("fore", "ote")


@dataclass(frozen=True)
class Params:
    """Parameters of the assign_wcs step: names, meaning and defaults of jwst 3.0.0.

    Parameters
    ----------
    sip_approx : bool
        Write FITS keywords that approximate the gWCS.
    sip_max_pix_error, sip_max_inv_pix_error : float
        Largest error of the approximation and of its inverse, pixels.
    sip_degree, sip_inv_degree : int or None
        Degree of the polynomials, at most 6; None = the lowest that suffices.
    sip_npoints : int
        Points along each axis for the fit.
    slit_y_low, slit_y_high, nrs_ifu_slice_wcs
        Spectroscopy only; they have no effect on images.
    override_distortion, override_filteroffset, ... : str or None
        Reference files, or ``N/A``.
    save_results : bool
        Write the exposures as this step leaves them.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    sip_approx: bool = True
    sip_max_pix_error: float = 0.01
    sip_degree: int | None = None
    sip_max_inv_pix_error: float = 0.01
    sip_inv_degree: int | None = None
    sip_npoints: int = 12
    slit_y_low: float = -0.55
    slit_y_high: float = 0.55
    nrs_ifu_slice_wcs: bool = False
    override_distortion: str | None = None
    override_filteroffset: str | None = None
    override_specwcs: str | None = None
    override_regions: str | None = None
    override_wavelengthrange: str | None = None
    override_camera: str | None = None
    override_chromcorr: str | None = None
    override_collimator: str | None = None
    override_disperser: str | None = None
    override_fore: str | None = None
    override_fpa: str | None = None
    override_msa: str | None = None
    override_ote: str | None = None
    override_ifupost: str | None = None
    override_ifufore: str | None = None
    override_ifuslicer: str | None = None
    save_results: bool = False

    def __post_init__(self) -> None:
        checks = [
            *((getattr(self, n) > 0, n, "positive") for n in ("sip_max_pix_error", "sip_max_inv_pix_error")),
            *(
                ((d := getattr(self, n)) is None or 1 <= d <= _HIGHEST, n, f"1 to {_HIGHEST}, or None")
                for n in ("sip_degree", "sip_inv_degree")
            ),
            (self.sip_npoints >= 2, "sip_npoints", "at least 2"),
        ]
        for good, name, wanted in checks:
            if not good:
                raise InputError(f"{NAME}.{name} = {getattr(self, name)!r}: it must be {wanted}")

    @property
    def sip(self) -> SipOptions | None:
        """How close the FITS keywords must be; None = there are to be none."""
        if not self.sip_approx:
            return None
        return SipOptions(
            self.sip_max_pix_error, self.sip_degree, self.sip_max_inv_pix_error, self.sip_inv_degree, self.sip_npoints
        )


@dataclass(frozen=True)
class Facts:
    """What the header of an exposure says of its instrument.

    Parameters
    ----------
    name : str
        The exposure, for messages.
    instrument, detector, filter, pupil, exp_type, grating, lamp : str
        Values of INSTRUME, DETECTOR ...; "" = unknown.
    tilts : tuple of float or None
        GWA_XTIL and GWA_YTIL.
    """

    name: str
    instrument: str
    detector: str
    exp_type: str
    filter: str = ""
    pupil: str = ""
    grating: str = ""
    lamp: str = ""
    tilts: tuple[Number, Number] = (None, None)

    @property
    def setting(self) -> Setting:
        """The same for NIRSpec."""
        return Setting(self.detector, self.filter, self.grating, self.lamp, self.exp_type, self.tilts)


def needed(optics: Facts) -> tuple[tuple[str, bool], ...]:
    """Return the types of reference files that an exposure's WCS is made of, and whether it cannot be without.

    Empty for exposures of modes that are not imaging: the step is skipped.
    """
    chain = chain_of(optics.instrument, optics.exp_type, optics.grating or None)
    if chain is None:
        return ()
    if chain == "nirspec":
        closed = optics.setting.stops_at_msa
        return tuple((kind, True) for kind in TYPES if not (closed and kind in _WITHOUT_FORE))
    offsets = () if optics.instrument == "FGS" else (("filteroffset", False),)
    return (("distortion", True), *offsets)


@dataclass(frozen=True)
class Assigned:
    """A gWCS and the keywords of SCI that describe it; ``notes`` tell what could not be made."""

    wcs: Any  # a gwcs.WCS
    keywords: dict[str, str | int | float]
    notes: tuple[str, ...]


def assign(
    optics: Facts,
    numbers: Mapping[str, Number],
    shape: tuple[int, int],
    files: Mapping[str, tuple[str, Mapping[str, Any]]],
    params: Params,
) -> Assigned:
    """Make the WCS of an exposure.

    Parameters
    ----------
    optics : Facts
        Of its header.
    numbers : mapping of str to float or None
        The keywords `KEYWORDS`.
    shape : tuple of int
        Rows and columns.
    files : mapping
        Name and ASDF tree of each reference file by type.
    params : Params
        How well FITS keywords must agree.

    Raises
    ------
    InputError
        If a reference file or the header cannot be used.
    """
    pointing, subarray = Pointing.of(numbers, optics.name), Subarray.of(numbers, optics.name)
    more: dict[str, str | int | float] = {}
    notes: list[str] = []
    if "distortion" in files:
        name, tree = files["distortion"]
        offset = None
        if "filteroffset" in files:
            label, rows = files["filteroffset"]
            chosen = (optics.filter or None, optics.pupil or None)
            offset = filter_offset(rows, label, optics.instrument, chosen)
        found = imaging_wcs(distortion_model(tree, name), offset, subarray, pointing, shape)
    else:
        trees, names = {k: t for k, (_, t) in files.items()}, {k: n for k, (n, _) in files.items()}
        bench = Optics.of(trees, names, optics.setting)
        found = nirspec_imaging_wcs(bench, optics.setting, subarray, pointing, shape)
        band = bench.passband
        more = {"SPORDER": band.order, "WAVSTART": band.limits[0], "WAVEND": band.limits[1]}
        notes += [band.note] if band.note else []
    if optics.exp_type.upper() not in IMAGING:
        return Assigned(found, more, tuple(notes))
    text = described(FreshWcs.of(found, shape), (numbers.get("CRPIX1"), numbers.get("CRPIX2")), params.sip)
    region = {} if text.s_region is None else {"S_REGION": text.s_region}
    return Assigned(found, {**text.sip, **region, **more}, (*notes, *text.notes))
