"""Align the exposures to each other and to a reference catalogue, by the stars in them (spec image3 §4)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from streamimg3.engine import Outcome, Runner, Task
from streamimg3.engine.receipts import digest
from streamimg3.errors import InputError
from streamimg3.kernels.segment_stars import SegmentOptions
from streamimg3.kernels.stars import FinderOptions
from streamimg3.sky.alignment import (
    FAILED,
    SUCCESS,
    Member,
    Order,
    Place,
    ReferenceStars,
    Refused,
    align_absolute,
    align_relative,
    offset_on_sky,
)
from streamimg3.sky.correction import Correction
from streamimg3.sky.fitting import GEOMETRIES, FitOptions
from streamimg3.sky.matching import Search
from streamimg3.sky.sip import SipOptions
from streamimg3.stages.star_lists import Finder, Listed, Listing, ledger, read_listed
from streamimg3.stages.star_lists import work as list_work
from streamimg3.stages.wcs_keywords import refreshed
from streamimg3.store import Exposure, Observation
from streamimg3.store.documents import AlignedExposure, AlignmentDocument, StageCost
from streamimg3.store.stars import StarTable, custom_digests, read_reference, write_current

NAME = "tweakreg"
_CODE = 1  # raised when the numbers a given input leads to change
_WORDS = {
    "starfinder": ("iraf", "dao", "segmentation"),
    "catalog_format": ("ecsv", "fits"),
    "multithresh_mode": ("exponential", "linear", "sinh"),
    "apermask_method": ("correct", "mask", "none"),
    "fitgeometry": tuple(GEOMETRIES),
    "abs_fitgeometry": tuple(GEOMETRIES),
}
_POSITIVE = ("kernel_fwhm", "sigma_radius", "searchrad", "separation", "tolerance", "abs_searchrad", "abs_separation")
_POSITIVE_TOO = ("abs_tolerance", "sip_max_pix_error", "sip_max_inv_pix_error")
_NOT_NEGATIVE = ("snr_threshold", "minsep_fwhm", "sigma", "abs_sigma", "nclip", "abs_nclip", "localbkg_width")
_AT_LEAST_ONE = ("bkg_boxsize", "brightest", "npixels", "nlevels", "minobj", "abs_minobj")
_ONLY_PRODUCTS = ("save_catalogs", "catalog_format", "save_abs_catalog", "catfile")


@dataclass(frozen=True)
class Params:
    """Parameters of the tweakreg step: names, meaning and defaults of jwst 3.0.0 (spec §4.1).

    Parameters
    ----------
    save_catalogs, catalog_format, save_abs_catalog
        Which catalogues become products, and whether as ecsv or fits.
    use_custom_catalogs, catfile
        Star lists of the user's own instead of detection: from a file of two columns (exposure, catalogue), else from the
        association's ``tweakreg_catalog`` or the exposure's own keyword.
    starfinder : str
        iraf, dao or segmentation; the parameters down to ``deblend`` say how it works.
    enforce_user_order, expand_refcat : bool
        Order of the groups, and whether the reference grows; a reference catalogue makes it grow.
    minobj, fitgeometry, nclip, sigma
        Fewest matches, geometry (shift, rshift, rscale, general) and clipping of the relative fit.
    searchrad, use2dhist, separation, tolerance, xoffset, yoffset
        Matching, in arcsec.
    abs_refcat : str
        Table with RA and DEC, or GAIAREFCAT, GAIADR3, GAIADR2, GAIADR1; empty = no absolute alignment.
    abs_...
        The same for the absolute fit.
    sip_...
        FITS-SIP keywords of corrected exposures: whether they are refreshed, and how well.

    Raises
    ------
    InputError
        If a value is out of range.
    """

    save_catalogs: bool = False
    use_custom_catalogs: bool = False
    catalog_format: str = "ecsv"
    catfile: str = ""
    starfinder: str = "iraf"
    snr_threshold: float = 10.0
    kernel_fwhm: float = 2.5
    bkg_boxsize: int = 400
    minsep_fwhm: float = 0.0
    sigma_radius: float = 1.5
    sharplo: float = 0.5
    sharphi: float = 2.0
    roundlo: float = 0.0
    roundhi: float = 0.2
    brightest: int = 200
    peakmax: float | None = None
    npixels: int = 10
    connectivity: int = 8
    nlevels: int = 32
    contrast: float = 0.001
    multithresh_mode: str = "exponential"
    localbkg_width: int = 0
    apermask_method: str = "correct"
    kron_params: tuple[float, ...] | None = None
    deblend: bool = True
    enforce_user_order: bool = False
    expand_refcat: bool = False
    minobj: int = 15
    fitgeometry: str = "rshift"
    nclip: int = 3
    sigma: float = 3.0
    searchrad: float = 2.0
    use2dhist: bool = True
    separation: float = 1.0
    tolerance: float = 0.7
    xoffset: float = 0.0
    yoffset: float = 0.0
    abs_refcat: str | None = ""
    save_abs_catalog: bool = False
    abs_minobj: int = 15
    abs_fitgeometry: str = "rshift"
    abs_nclip: int = 3
    abs_sigma: float = 3.0
    abs_searchrad: float = 6.0
    abs_use2dhist: bool = True
    abs_separation: float = 1.0
    abs_tolerance: float = 0.7
    sip_approx: bool = True
    sip_max_pix_error: float = 0.01
    sip_degree: int | None = None
    sip_max_inv_pix_error: float = 0.01
    sip_inv_degree: int | None = None
    sip_npoints: int = 12

    def __post_init__(self) -> None:
        numbers = {f.name: v for f in dataclasses.fields(self) if isinstance(v := getattr(self, f.name), float)}
        checks = [(math.isfinite(value), name, "finite") for name, value in numbers.items()]
        checks += [(getattr(self, n) in words, n, "one of " + ", ".join(words)) for n, words in _WORDS.items()]
        checks += [(getattr(self, n) > 0, n, "positive") for n in (*_POSITIVE, *_POSITIVE_TOO)]
        checks += [(getattr(self, n) >= 0, n, "0 or more") for n in _NOT_NEGATIVE]
        checks += [(getattr(self, n) >= 1, n, "at least 1") for n in _AT_LEAST_ONE]
        checks += [
            (self.connectivity in (4, 8), "connectivity", "4 or 8"),
            (0.0 <= self.contrast <= 1.0, "contrast", "0 to 1"),
            (self.kron_params is None or len(self.kron_params) in (2, 3), "kron_params", "two or three numbers"),
            (self.sip_npoints >= 3, "sip_npoints", "at least 3"),
        ]
        checks += [
            (getattr(self, n) is None or 1 <= getattr(self, n) <= 6, n, "1 to 6")
            for n in ("sip_degree", "sip_inv_degree")
        ]
        for good, name, wanted in checks:
            if not good:
                raise InputError(f"{NAME}.{name} = {getattr(self, name)!r}: it must be {wanted}")

    @property
    def absolute(self) -> str:
        """The reference catalogue's name, empty = none."""
        return (self.abs_refcat or "").strip()

    @property
    def finder(self) -> Finder:
        """How stars are found."""
        kind: type[Finder] = SegmentOptions if self.starfinder == "segmentation" else FinderOptions
        return kind(**{f.name: getattr(self, f.name) for f in dataclasses.fields(kind) if hasattr(self, f.name)})

    @property
    def relative_fit(self) -> tuple[Search, FitOptions, Order]:
        """Matching, fit and order of the relative alignment."""
        search = Search(self.searchrad, self.separation, self.tolerance, self.use2dhist, self.xoffset, self.yoffset)
        order = Order(self.enforce_user_order, self.expand_refcat or bool(self.absolute))
        return search, FitOptions(self.fitgeometry, self.minobj, self.nclip, self.sigma), order

    @property
    def absolute_fit(self) -> tuple[Search, FitOptions]:
        """Matching and fit of the absolute alignment."""
        search = Search(self.abs_searchrad, self.abs_separation, self.abs_tolerance, self.abs_use2dhist)
        return search, FitOptions(self.abs_fitgeometry, self.abs_minobj, self.abs_nclip, self.abs_sigma)

    @property
    def sip(self) -> SipOptions:
        """How well FITS-SIP keywords must fit."""
        return SipOptions(
            self.sip_max_pix_error, self.sip_degree, self.sip_max_inv_pix_error, self.sip_inv_degree, self.sip_npoints
        )


def plan(obs: Observation, params: Params) -> list[Task]:
    """Return the tasks, one per exposure: its stars are found (or the user's own taken over); reads no pixel."""
    exposures = obs.exposures(aligned=False)
    if _too_few(exposures, params):
        return []
    return Listing(params.finder, custom_digests(obs) or {} if params.use_custom_catalogs else {}).tasks(exposures)


work = list_work


def run(obs: Observation, params: Params, runner: Runner) -> AlignmentDocument:
    """Find the stars of all exposures, align, and commit what was found; nothing is done twice.

    Parameters
    ----------
    obs : Observation
        The store; the user's own star lists and the reference catalogue have been brought into it.
    params : Params
        The step's parameters.
    runner : Runner
        Carries out the work.

    Returns
    -------
    AlignmentDocument
        Status COMPLETE although some groups could not be aligned (their exposures say why), FAILED if nothing was.

    Raises
    ------
    InputError
        If a catalogue was not brought into the store.
    """
    exposures = obs.exposures(aligned=False)
    custom = _custom(obs, params)
    reference = _reference(obs, params)
    listing = Listing(params.finder, custom)
    keys = [listing.key(e) for e in exposures]
    told = {k: v for k, v in dataclasses.asdict(params).items() if k not in _ONLY_PRODUCTS}
    mark = digest(
        _CODE, NAME, told, keys, [e.record.group_id for e in exposures], reference.digest if reference else None,
        params.save_catalogs and _one_group(exposures),
    )  # fmt: skip
    kept = obs.document(AlignmentDocument)
    if kept is not None and kept.digest == mark:
        runner.progress.note(f"{NAME}: unchanged, kept")
        return kept
    outcome = Outcome()
    if reason := _too_few(exposures, params):
        document = _failed(len(exposures), reason)
    else:
        outcome = runner.fill(partial(work, obs=obs, listing=listing, mark=mark), listing.tasks(exposures), ledger(obs))
        listed = [read_listed(obs, e, key) for e, key in zip(exposures, keys, strict=True)]
        document = _aligned(exposures, listed, params, reference, runner)
        document = refreshed(obs, document, params.sip if params.sip_approx else None, mark, runner, outcome)
        write_current(
            obs, tuple(None if e.record.index in custom else key for e, key in zip(exposures, keys, strict=True))
        )
    document = dataclasses.replace(
        document, digest=mark, step=NAME, parameters=dataclasses.asdict(params), cost=StageCost.of(outcome)
    )
    runner.progress.note(_summary(document))
    obs.commit(document)
    return document


def _custom(obs: Observation, params: Params) -> dict[int, str]:
    if not params.use_custom_catalogs:
        return {}
    found = custom_digests(obs)
    if found is None:
        raise InputError(
            f"{NAME}.use_custom_catalogs: no star lists were read into the store: run from the command line"
        )
    return found


def _reference(obs: Observation, params: Params) -> StarTable | None:
    if not params.absolute:
        return None
    found = read_reference(obs, params.absolute)
    if found is None:
        raise InputError(f"{NAME}.abs_refcat = {params.absolute}: the catalogue was not read into the store")
    return found


def _one_group(exposures: Sequence[Exposure]) -> bool:
    return len({e.record.group_id for e in exposures}) < 2


def _too_few(exposures: Sequence[Exposure], params: Params) -> str:
    """Why nothing is to be done, before any star is looked for."""
    if params.absolute or params.save_catalogs or not _one_group(exposures):
        return ""
    return "at least two exposures (or groups of them) are required to align, or tweakreg.abs_refcat"


def _failed(count: int, reason: str) -> AlignmentDocument:
    return AlignmentDocument(
        status="FAILED", reason=reason, exposures=tuple(AlignedExposure(FAILED, reason) for _ in range(count))
    )


def _aligned(
    exposures: Sequence[Exposure], listed: Sequence[Listed], params: Params, reference: StarTable | None, runner: Runner
) -> AlignmentDocument:
    """Solve; what comes back lacks outlines and keywords."""
    members = [one.member for one in listed]
    groups = _members_of_groups(exposures)
    places = [Place() for _ in members]
    notes: list[str] = []

    def tell(group: str, place: Place) -> None:
        chosen = groups[group]
        name = exposures[chosen[0]].record.name if len(chosen) == 1 else f"{group} ({len(chosen)} exposures)"
        runner.progress.note(_line(name, place, members[chosen[0]]))

    if _one_group(exposures):
        refused = "at least two exposures (or groups of them) are required to align them to each other"
    else:
        refused = ""
        try:
            places = align_relative(members, *params.relative_fit, tell)
        except Refused as error:
            refused = str(error)
            notes.append(f"no relative alignment: {refused}")
            runner.progress.note(f"{NAME}: no relative alignment: {refused}")
    if reference is None and refused:
        return _failed(len(members), refused)
    if reference is not None:
        stars = ReferenceStars.of(reference.columns["ra"], reference.columns["dec"], reference.columns.get("weight"))
        try:
            places = align_absolute(members, [p.linear for p in places], stars, *params.absolute_fit)
        except Refused as error:
            return _failed(len(members), f"no absolute alignment: {error}")
        runner.progress.note(_line(f"all exposures to {params.absolute}", places[0], members[0]))
    name = f"FIT-LVL3-{params.absolute}" if reference is not None else ""
    done = tuple(_entry(one, place, name) for one, place in zip(listed, places, strict=True))
    lost = None if any(e.status == SUCCESS for e in done) else "no group could be aligned: see the exposures' reasons"
    if lost and reference is not None and not refused:
        lost += (
            f"; without {params.absolute} what was fitted between exposures is not applied either, as in the reference"
        )
    return AlignmentDocument(reason=lost, exposures=done, notes=tuple(notes))


def _members_of_groups(exposures: Sequence[Exposure]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for i, exposure in enumerate(exposures):
        groups.setdefault(exposure.record.group_id, []).append(i)
    return groups


def _entry(one: Listed, place: Place, name: str) -> AlignedExposure:
    if place.status != SUCCESS:
        return AlignedExposure(place.status, place.reason, stars=one.stars, matched=place.matched)
    correction = Correction("tangent", place.linear.matrix, place.linear.shift, one.origin, name)
    offset = offset_on_sky(one.member, place.linear)
    return AlignedExposure(SUCCESS, None, correction, None, {}, one.stars, place.matched, place.rms, offset)


def _line(name: str, place: Place, member: Member) -> str:
    """One line of the log about a group."""
    if place.status != SUCCESS:
        return f"{NAME}: {name}: {place.status}{': ' + place.reason if place.reason else ''}"
    north, east = offset_on_sky(member, place.linear)
    return (
        f"{NAME}: {name}: {place.matched} matched, rms {1000 * (place.rms or 0.0):.1f} mas,"
        f" moved {north:+.4f} north {east:+.4f} east (arcsec)"
    )


def _summary(document: AlignmentDocument) -> str:
    counts = {s: sum(e.status == s for e in document.exposures) for s in (SUCCESS, "REFERENCE", FAILED)}
    said = f"{counts[SUCCESS]} exposures aligned, {counts['REFERENCE']} are the reference, {counts[FAILED]} failed"
    hint = "; a lower minobj, expand_refcat=true or more stars (brightest, snr_threshold) may help" * bool(
        counts[FAILED]
    )
    return f"{NAME}: {document.status}: {document.reason or said}{hint}"
