"""The members of image2: which exposures it takes, what it asks of each, and which backgrounds fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from streamimg3.errors import InputError
from streamimg3.formats.association import Association, Member, Product
from streamimg3.formats.fits_file import card_value, number, parse_cards
from streamimg3.formats.names import absolute, root_name
from streamimg3.formats.reference_card import ExposureFacts
from streamimg3.formats.reference_image import Subarray, subarray_of
from streamimg3.formats.sources import Source
from streamimg3.stages import assign_wcs

_OPTICS = ("instrument", "detector", "exp_type", "filter", "pupil")
_TILT = 1e-8  # degrees by which a background's grating wheel may be elsewhere
_DONE = "COMPLETE"


def products_of(association: Association, backgrounds: Sequence[str] = ()) -> Association:
    """Return an association with the members that image2 takes: of each product the first science exposure.

    Parameters
    ----------
    association : Association
        Of level 2, or of bare files: each is then a product by itself.
    backgrounds : sequence of str
        For the products that have none.

    Raises
    ------
    InputError
        If a product has no science exposure, or two have one name or one exposure.
    """
    products = association.products or tuple(Product(root_name(m.url), (m,)) for m in association.science)
    more = tuple(Member(absolute(url), "background") for url in backgrounds)
    products = tuple(p if p.urls("background") else replace(p, members=(*p.members, *more)) for p in products)
    notes = list(association.notes)
    kept: list[Member] = []
    for product in products:
        science = [m for m in product.members if m.exptype.strip().lower() == "science"]
        if not science:
            raise InputError(f"{association.table}: product {product.name} has no member of exptype science")
        if len(science) > 1:
            notes.append(f"{product.name}: has {len(science)} science exposures; only {science[0].url} is used")
        kept.append(science[0])
    for what in ([p.name for p in products], [m.url for m in kept]):
        twice = next((w for w in what if what.count(w) > 1), None)
        if twice is not None:
            raise InputError(f"{association.table or 'the given files'}: {twice} is there more than once; list it once")
    shared = dict.fromkeys(u for p in products for u in p.urls("background"))
    members = (*kept, *(Member(url, "background") for url in shared))
    name = products[0].name if len(products) == 1 else association.product
    return replace(association, product=name, members=members, products=tuple(products), notes=tuple(notes))


@dataclass(frozen=True)
class Exposure:
    """Facts of one science exposure.

    Parameters
    ----------
    facts : ExposureFacts
        What reference files are chosen by.
    optics : assign_wcs.Facts
        What its WCS depends on beside numbers.
    subarray : Subarray
        Its place on the detector.
    count : int
        Integrations; 0 = an image.
    middle : float or None
        Time of its middle (MJD).
    extracted : bool
        Whether extract_2d has been done.
    variances : bool
        Whether it has VAR_POISSON or VAR_RNOISE.
    """

    facts: ExposureFacts
    optics: assign_wcs.Facts
    subarray: Subarray
    count: int
    middle: float | None
    extracted: bool
    variances: bool

    @classmethod
    def of(cls, source: Source) -> Exposure:
        """Return the facts of an open exposure.

        Raises
        ------
        InputError
            If it has been calibrated already.
        """
        header, url = parse_cards(source.primary_cards), source.url
        if card_value(header, "S_PHOTOM", url) == _DONE:
            raise InputError(
                f"{url}: is calibrated already (S_PHOTOM is COMPLETE): image2 takes _rate files, image3 this one"
            )
        facts = ExposureFacts.of_header(header, url)
        return cls(
            facts, optics_of(source, facts), subarray_of(header, source.shape, url), source.cube.count if source.cube else 0,
            number(header, "EXPMID", url), card_value(header, "S_EXTR2D", url) == _DONE,
            any(v in source.names for v in ("var_poisson", "var_rnoise")),
        )  # fmt: skip


def optics_of(source: Source, facts: ExposureFacts) -> assign_wcs.Facts:
    """Return what the WCS of an open exposure depends on beside numbers."""
    header = parse_cards(source.primary_cards)
    values = {name: getattr(facts, name) for name in _OPTICS}
    grating, lamp = (str(card_value(header, k, source.url) or "").upper() for k in ("GRATING", "LAMP"))
    tilts = number(header, "GWA_XTIL", source.url), number(header, "GWA_YTIL", source.url)
    return assign_wcs.Facts(source.url, grating=grating, lamp=lamp, tilts=tilts, **values)


@dataclass(frozen=True)
class Background:
    """Facts of one background.

    Parameters
    ----------
    url : str
        Its file.
    count : int
        Integrations; 0 = an image.
    detector : str
        Upper case.
    subarray : Subarray
        Its place on the detector.
    tilts : tuple of (float or None)
        Of NIRSpec's grating wheel (GWA_XTIL, GWA_YTIL) in degrees.
    has_err : bool
        Whether it has ERR.
    """

    url: str
    count: int
    detector: str
    subarray: Subarray
    tilts: tuple[float | None, float | None]
    has_err: bool

    @classmethod
    def of(cls, source: Source) -> Background:
        """Return the facts of an open background."""
        header, url = parse_cards(source.primary_cards), source.url
        detector = str(card_value(header, "DETECTOR", url) or "").upper()
        tilts = number(header, "GWA_XTIL", url), number(header, "GWA_YTIL", url)
        count = source.cube.count if source.cube else 0
        return cls(url, count, detector, subarray_of(header, source.shape, url), tilts, "err" in source.names)


def check_background(other: Background, exposure: Exposure) -> None:
    """Refuse a background that cannot be subtracted from an exposure.

    Raises
    ------
    InputError
        If one is a cube and the other is not, the detectors differ, or the background has no ERR.
    """
    kinds = {True: "a cube of integrations", False: "an image"}
    if bool(other.count) != bool(exposure.count):
        raise InputError(
            f"{other.url}: is {kinds[bool(other.count)]}, but {exposure.facts.name} is {kinds[bool(exposure.count)]}:"
            " give backgrounds of the same kind (_rateints for _rateints)"
        )
    if not other.has_err:
        raise InputError(f"{other.url}: has no ERR, which a background needs; make the file again")
    if other.detector != exposure.facts.detector:
        raise InputError(
            f"{other.url}: is a background of detector {other.detector or 'unknown'}, but {exposure.facts.name} is of"
            f" {exposure.facts.detector}: give backgrounds of the same detector"
        )


def same_tilt(a: tuple[float | None, float | None], b: tuple[float | None, float | None]) -> bool:
    """Return whether the grating wheel is at one place (degrees, to 1e-8) in two files."""
    return all(p is not None and q is not None and abs(p - q) <= _TILT for p, q in zip(a, b, strict=True))
