"""Parameters of the source_catalog step (spec image3 §9.1)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from streamimg3.errors import InputError
from streamimg3.kernels.deblend import MODES, Levels
from streamimg3.kernels.stars import FINDERS, FinderOptions
from streamimg3.stages.catalog_segments import Rules

NAME = "source_catalog"
SEGMENTATION = "segmentation"
_MASKS = ("correct", "mask", "none")


@dataclass(frozen=True)
class Params:
    """Parameters of the source_catalog step: names, meaning and defaults of jwst 3.0.0 (spec §9.1) unless said otherwise.

    Parameters
    ----------
    aperture_ee1, aperture_ee2, aperture_ee3 : int
        Encircled energies of the apertures in per cent, increasing; the APCORR file must have them.
    ci1_star_threshold, ci2_star_threshold : float
        Concentration indices above which a source is extended.
    starfinder : str
        segmentation, iraf or dao.
    snr_threshold : float
        Detection threshold in units of the background's noise.
    bkg_boxsize : int
        Side of a background box in pixels.
    kernel_fwhm : float
        Width of the Gaussian that the image is smoothed with, in pixels.
    minsep_fwhm, sigma_radius, sharplo, sharphi, roundlo, roundhi, brightest, peakmax
        Of iraf and dao only; see :class:`streamimg3.kernels.stars.FinderOptions`.
    npixels : int
        Fewest pixels of a source.
    connectivity : int
        4 or 8: whether corners connect.
    nlevels, contrast, multithresh_mode
        How blends are divided.
    localbkg_width : int
        Width of the frame that a local background for the isophotal flux comes from; 0 = none.
    apermask_method, kron_params
        Without influence on any column, as in the reference.
    deblend : bool
        Divide blends.
    override_apcorr, override_abvegaoffset : str
        Reference files; without them the columns that need them are left out.
    gain : float or None
        Ours, for a mosaic without errors: electrons per unit of the image; None = the sources' photons add no noise.
    read_noise : float or None
        Ours, for a mosaic without errors: noise of a pixel without signal, in the image's unit; None = as measured.
    largest_blend : int
        Ours: pixels of the largest bounding box that is divided; larger sources stay whole, and are named in the notes.
    subtract_background : bool
        Ours: apertures are measured on the image without its background; the reference leaves it in.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    aperture_ee1: int = 30
    aperture_ee2: int = 50
    aperture_ee3: int = 70
    ci1_star_threshold: float = 2.0
    ci2_star_threshold: float = 1.8
    starfinder: str = SEGMENTATION
    snr_threshold: float = 3.0
    bkg_boxsize: int = 1000
    kernel_fwhm: float = 2.0
    minsep_fwhm: float = 0.0
    sigma_radius: float = 1.5
    sharplo: float = 0.5
    sharphi: float = 2.0
    roundlo: float = 0.0
    roundhi: float = 0.2
    brightest: int | None = 200
    peakmax: float | None = None
    npixels: int = 25
    connectivity: int = 8
    nlevels: int = 32
    contrast: float = 0.001
    multithresh_mode: str = "exponential"
    localbkg_width: int = 0
    apermask_method: str = "correct"
    kron_params: tuple[float, ...] | None = None
    deblend: bool = True
    override_apcorr: str = ""
    override_abvegaoffset: str = ""
    gain: float | None = None
    read_noise: float | None = None
    largest_blend: int = 2048 * 2048
    subtract_background: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.connectivity, str) and self.connectivity in ("4", "8"):
            object.__setattr__(self, "connectivity", int(self.connectivity))
        energies, kron = self.energies, self.kron_params
        checks = [
            (0 < energies[0] < energies[1] < energies[2] < 100, "aperture_ee1", "less than ee2, this less than ee3, from 1 to 99"),
            (self.starfinder in (SEGMENTATION, *FINDERS), "starfinder", "one of " + ", ".join((SEGMENTATION, *FINDERS))),
            (0 <= self.snr_threshold < math.inf, "snr_threshold", "a number that is not negative"),
            (self.bkg_boxsize >= 1, "bkg_boxsize", "at least 1"),
            (0 < self.kernel_fwhm <= 100, "kernel_fwhm", "positive, at most 100"),
            (self.npixels >= 1, "npixels", "at least 1"),
            (self.connectivity in (4, 8), "connectivity", "4 or 8"),
            (self.nlevels >= 1, "nlevels", "at least 1"),
            (0 <= self.contrast <= 1, "contrast", "a number from 0 to 1"),
            (self.multithresh_mode in MODES, "multithresh_mode", "one of " + ", ".join(MODES)),
            (self.localbkg_width >= 0, "localbkg_width", "0 or more"),
            (self.apermask_method in _MASKS, "apermask_method", "one of " + ", ".join(_MASKS)),
            (kron is None or len(kron) in (2, 3), "kron_params", "two or three numbers"),
            (self.brightest is None or self.brightest >= 1, "brightest", "at least 1"),
            (self.gain is None or 0 < self.gain < math.inf, "gain", "positive and finite"),
            (self.read_noise is None or 0 <= self.read_noise < math.inf, "read_noise", "0 or more, and finite"),
            (self.largest_blend >= 0, "largest_blend", "0 or more"),
        ]  # fmt: skip
        for good, name, wanted in checks:
            if not good:
                raise InputError(f"{NAME}.{name} = {getattr(self, name)!r}: it must be {wanted}")
        if self.starfinder != SEGMENTATION:
            try:
                _ = self.finder
            except InputError as error:
                raise InputError(f"{NAME}.{error}") from error

    @property
    def energies(self) -> tuple[int, int, int]:
        """Encircled energies of the apertures, per cent."""
        return self.aperture_ee1, self.aperture_ee2, self.aperture_ee3

    @property
    def finder(self) -> FinderOptions:
        """Parameters of iraf and dao."""
        names = [f.name for f in dataclasses.fields(FinderOptions)]
        return FinderOptions(**{name: getattr(self, name) for name in names})

    @property
    def rules(self) -> Rules:
        """What a segment is."""
        return Rules(self.snr_threshold, self.npixels, self.connectivity == 8)

    @property
    def levels(self) -> Levels | None:
        """How blends are divided."""
        if not self.deblend:
            return None
        return Levels(self.npixels, self.nlevels, self.contrast, self.multithresh_mode, self.connectivity == 8)
