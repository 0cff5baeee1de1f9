"""Documents of time series: what reference files say, photometry, spectra, light curves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from streamimg3.store.documents import CatalogColumn, Document, StageCost, UsedReference

NO_COST = StageCost()


@dataclass(frozen=True)
class SpectrumAperture:
    """Where an extract1d file says that a spectrum is; None = not said. Names and meaning are the file's own."""

    id: str = ""
    spectral_order: int | None = None
    xstart: float | None = None
    xstop: float | None = None
    ystart: float | None = None
    ystop: float | None = None
    extract_width: float | None = None
    src_coeff: tuple[tuple[float, ...], ...] = ()
    bkg_coeff: tuple[tuple[float, ...], ...] = ()
    independent_var: str = "pixel"
    bkg_fit: str | None = None
    bkg_order: int | None = None
    smoothing_length: int | None = None
    use_source_posn: bool | None = None


@dataclass(frozen=True)
class ApertureCorrection:
    """Factors for light outside the box: ``factor[w][s]`` at ``wavelength[w]`` (microns) and a size in pixels or arcsec.

    ``size[s]`` holds for all wavelengths, or ``size[w][s]`` flattened where ``by_wavelength``.
    """

    wavelength: tuple[float, ...]
    size: tuple[float, ...]
    factor: tuple[tuple[float, ...], ...]
    unit: str = "pixels"
    by_wavelength: bool = False


@dataclass(frozen=True)
class SpectralResponse:
    """Factor from DN/s to MJy for spectra of an order: ``photmj`` times ``relresponse`` at ``wavelength`` (microns)."""

    order: int | None
    photmj: float
    wavelength: tuple[float, ...]
    relresponse: tuple[float, ...]
    correction: float = 1.0


@dataclass(frozen=True)
class WavelengthRange:
    """Limits of the light curve of an order and filter, microns."""

    order: int
    filter: str
    low: float
    high: float


@dataclass(frozen=True)
class SeriesFacts:
    """What the headers of one segment say; None = nothing.

    ``position`` is the planned (y, x) of the star, 0-based pixels; ``integration_time`` in seconds; ``pixel_area`` in
    steradians; ``dispaxis`` 1 = along x, 2 = along y; ``source`` the (x, y) in the slit, as JWST has it; ``calibrated`` tells
    whether photom has been done.
    """

    exp_type: str = ""
    tso: bool = False
    instrument: str | None = None
    detector: str | None = None
    channel: str | None = None
    subarray: str | None = None
    filter: str | None = None
    pupil: str | None = None
    grating: str | None = None
    target: str | None = None
    bunit: str | None = None
    pixel_area: float | None = None
    integration_time: float | None = None
    position: tuple[float, float] | None = None
    dispaxis: int | None = None
    order: int | None = None
    slit: str | None = None
    source_type: str | None = None
    source: tuple[float, float] | None = None
    calibrated: bool = False
    integrations: int | None = None
    segment: int | None = None
    day: float | None = None


NO_FACTS = SeriesFacts()


@dataclass(frozen=True)
class SeriesExposure:
    """What applies to one segment; numbers are places in the lists of the document, None = there is none.

    ``gain`` is the number of the image under ``references/gain``.
    """

    facts: SeriesFacts = NO_FACTS
    gain: int | None = None
    apertures: tuple[int, ...] = ()
    has_extract1d: bool = False
    apcorr: int | None = None
    responses: tuple[int, ...] = ()
    references: tuple[UsedReference, ...] = ()


@dataclass(frozen=True)
class SeriesReferencesDocument(Document):
    """What the reference files of tso3 say, in store order of the exposures."""

    kind: ClassVar[str] = "series_references"
    digest: str = ""
    apertures: tuple[SpectrumAperture, ...] = ()
    corrections: tuple[ApertureCorrection, ...] = ()
    responses: tuple[SpectralResponse, ...] = ()
    ranges: tuple[WavelengthRange, ...] | None = None
    exposures: tuple[SeriesExposure, ...] = ()
    lock: tuple[dict[str, Any], ...] = ()
    context: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PhotometryDocument(Document):
    """The commit of tso_photometry: arrays under ``photometry``, their units and the table's metadata.

    ``centres`` are the aperture's (y, x) of each segment (None = it moves, or the whole image is summed).
    """

    kind: ClassVar[str] = "tso_photometry"
    digest: str = ""
    made: str = ""
    status: str = "COMPLETE"
    reason: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    rows: int = 0
    columns: tuple[CatalogColumn, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    centres: tuple[tuple[float, float] | None, ...] = ()
    notes: tuple[str, ...] = ()
    cost: StageCost = NO_COST


@dataclass(frozen=True)
class SpectrumSegment:
    """The rows ``first..last`` of a spectrum's arrays that belong to one segment (``index``: its place in the store).

    ``limits`` are the first and last pixel of the box (y0, x0, y1, x1), 0-based; ``position`` is the sky at its middle.
    Surface brightness is flux times ``brightness`` for each pixel of the box (0 = there is none). ``profile`` is the
    number under ``profiles``, ``corrected`` tells whether flux has an aperture correction.
    """

    index: int
    first: int
    last: int
    segment: int | None = None
    limits: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    position: tuple[float, float] | None = None
    brightness: float = 1.0
    profile: int = 0
    corrected: bool = False


@dataclass(frozen=True)
class SpectrumSeries:
    """Spectra of one exposure and order: arrays (integration, wavelength) under ``path``."""

    path: str
    name: str
    slit: str | None
    order: int
    detector: str | None
    dispaxis: int
    points: int
    segments: tuple[SpectrumSegment, ...]
    flux_unit: str = "Jy"
    brightness_unit: str = "MJy/sr"


@dataclass(frozen=True)
class SpectraDocument(Document):
    """The commit of extract_1d (and of photom, where that works on spectra)."""

    kind: ClassVar[str] = "spectra"
    digest: str = ""
    made: str = ""
    status: str = "COMPLETE"
    reason: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    spectra: tuple[SpectrumSeries, ...] = ()
    notes: tuple[str, ...] = ()
    cost: StageCost = NO_COST


@dataclass(frozen=True)
class LightCurveDocument(Document):
    """The commit of white_light: arrays under ``white_light``, their units and the table's metadata."""

    kind: ClassVar[str] = "white_light"
    digest: str = ""
    made: str = ""
    status: str = "COMPLETE"
    reason: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    rows: int = 0
    columns: tuple[CatalogColumn, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    dropped: int = 0
    notes: tuple[str, ...] = ()
    cost: StageCost = NO_COST
