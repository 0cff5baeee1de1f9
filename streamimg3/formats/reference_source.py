"""Which reference file an exposure gets, and why: overrides first, then a folder, a lock file or the crds package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from streamimg3.errors import InputError
from streamimg3.formats.local_copy import exists
from streamimg3.formats.names import absolute, file_name, is_remote
from streamimg3.formats.reference_card import ExposureFacts, ReferenceCard, checksum, misfit, read_card
from streamimg3.formats.reference_crds import Crds, CrdsModule
from streamimg3.formats.reference_places import Entry, Folder, Found, Lock, Place

# type: keyword that names the file in a product
KEYWORDS = {
    "area": "R_AREA",
    "bkg": "R_BKG",
    "camera": "R_CAMERA",
    "collimator": "R_COLLIM",
    "disperser": "R_DISPER",
    "distortion": "R_DISTOR",
    "extract1d": "R_EXTR1D",
    "filteroffset": "R_FILOFF",
    "flat": "R_FLAT",
    "fore": "R_FORE",
    "fpa": "R_FPA",
    "gain": "R_GAIN",
    "msa": "R_MSA",
    "ote": "R_OTE",
    "photom": "R_PHOTOM",
    "psfmask": "R_PSFMAS",
    "regions": "R_REGION",
    "specwcs": "R_SPCWCS",
    "wavelengthrange": "R_WAVRAN",
}
_STEPS = {
    "area": "photom",
    "bkg": "bkg_subtract",
    "extract1d": "extract_1d",
    "flat": "flat_field",
    "gain": "tso_photometry",
    "photom": "photom",
    "psfmask": "align_refs",
}  # all others belong to assign_wcs
NONE = "N/A"
BY_CRDS = "crds"  # as the place
_SHOWN = 5  # files that were passed over and are named


@dataclass(frozen=True)
class Choice:
    """What was chosen for an exposure.

    Parameters
    ----------
    reftype : str
        ``flat``, ``photom`` ...
    exposure : ExposureFacts
        For which one.
    card : ReferenceCard or None
        The file, with its sha256; None = none is used.
    why : str
        In words.
    value : str
        What its R_ keyword says: the full path or URL, ``crds://NAME``, or ``N/A``.
    missing : bool
        There is none although nobody said that there should be none.
    """

    reftype: str
    exposure: ExposureFacts
    card: ReferenceCard | None
    why: str
    value: str
    missing: bool = False


class References:
    """Where the reference files of a run come from; remembers every choice.

    Parameters
    ----------
    overrides : mapping of str to str
        Path or URL by type, or ``N/A`` = work without; they win over everything else.
    place : str
        A folder or URL, the lock file of a run (``.json``), ``crds``, or "" = nothing but the overrides.
    options : mapping of str to str
        Storage options for remote URLs.
    offline : bool
        Never ask the crds package.
    crds : callable or None
        Imports and returns the crds package; it is called when the first file is to be chosen by it. None = not to be
        used.

    Raises
    ------
    InputError
        If the place does not exist or is forbidden by `offline`.
    """

    def __init__(
        self,
        overrides: Mapping[str, str],
        place: str = "",
        options: Mapping[str, str] | None = None,
        offline: bool = False,
        crds: Callable[[], CrdsModule] | None = None,
    ) -> None:
        self._overrides = {kind.lower(): url for kind, url in overrides.items() if url}
        self._options = dict(options or {})
        self._offline = offline
        self._crds = None if offline else crds
        self._notes: list[str] = []
        self._place_name = place
        self._place = self._open(place)
        self._choices: dict[tuple[str, ExposureFacts], Choice] = {}
        self._sums: dict[str, str] = {}

    @property
    def notes(self) -> Sequence[str]:
        """What was passed over or looks odd, to be told to the user."""
        passed = list(self._place.notes) if self._place else []
        more = len(passed) - _SHOWN
        return (*self._notes, *passed[:_SHOWN], *([f"left out: {more} more files"] if more > 0 else []))

    def choose(self, reftype: str, exposure: ExposureFacts, needed: bool = True) -> ReferenceCard | None:
        """Return the reference file of a type for an exposure, or None where the answer is "none" (``N/A``).

        Parameters
        ----------
        reftype : str
            ``distortion``, ``filteroffset``, ``flat``, ``photom``, ``area`` ...
        exposure : ExposureFacts
            For what.
        needed : bool
            False = a missing file is no error but recorded as ``N/A``.

        Returns
        -------
        ReferenceCard or None
            With its sha256.

        Raises
        ------
        InputError
            If it is needed and missing, or an override is unreadable, of another type, instrument or detector.
        """
        key = (reftype, exposure)
        if key not in self._choices:
            self._choices[key] = self._choose(reftype, exposure)
        choice = self._choices[key]
        if needed and choice.missing:
            raise InputError(_missing_line(choice))
        return choice.card

    @property
    def context(self) -> str | None:
        """The context (``jwst_1234.pmap``) by which the crds package chooses, where it does and is told which."""
        return self._place.context if isinstance(self._place, Crds) else None

    def choices(self) -> tuple[Choice, ...]:
        """Return every choice in the order in which it was made."""
        return tuple(self._choices.values())

    def keywords(self, exposure: ExposureFacts) -> dict[str, str]:
        """Return the R_ keywords of what was chosen for an exposure."""
        mine = [c for c in self._choices.values() if c.exposure == exposure and c.reftype in KEYWORDS]
        return {KEYWORDS[c.reftype]: c.value for c in mine}

    def lock(self) -> list[dict[str, object]]:
        """Return all choices as a list for a JSON file, one line for each type and kind of exposure.

        Written to a file, it can be given back as the place: then the same files are taken, if they are unchanged.
        """
        lines: dict[str, dict[str, object]] = {}
        for choice in self._choices.values():
            card = choice.card
            url, total, since = (card.url, card.sha256, card.useafter) if card else (NONE, "", "")
            line = Entry(choice.reftype, choice.exposure.optics, url, total, since, choice.why).as_dict()
            lines.setdefault(repr((choice.reftype, sorted(choice.exposure.optics.items()), url)), line)
        return list(lines.values())

    def _open(self, place: str) -> Place | None:
        if not place:
            return None
        if place.lower() == BY_CRDS:
            if self._offline:
                raise InputError("--references crds asks the network, which --offline forbids: give a folder instead")
            if self._crds is None:
                raise InputError("--references crds: the crds package is not available here; give a folder instead")
            return Crds(self._crds)
        if file_name(place).lower().endswith(".json"):
            return Lock(place, self._options)
        return self._cache(place) or Folder(place, self._options)

    def _cache(self, place: str) -> Place | None:
        """Return crds for a cache that has its mappings; None = it cannot or must not be used."""
        if is_remote(place) or not exists(f"{absolute(place)}/mappings", self._options):
            return None
        if self._crds is not None:
            package = Crds(self._crds, absolute(place))
            if package.installed():
                return package
        why = "--offline" if self._offline else "the crds package is not in use (pip install crds)"
        self._notes.append(f"{place}: its mappings are not used ({why}); files are chosen by their own headers")
        return None

    def _choose(self, reftype: str, exposure: ExposureFacts) -> Choice:
        by_crds = False
        if reftype in self._overrides:
            found = self._override(reftype, exposure)
        elif self._place is not None:
            found = self._place.find(reftype, exposure)
            by_crds = isinstance(self._place, Crds)
        else:
            found = Found(None, "no --references are given")
        card = found.card
        if card is None:
            return Choice(reftype, exposure, None, found.why, NONE, missing=not found.settled)
        if not card.sha256:
            card = replace(card, sha256=self._sum(card.url))
        value = f"crds://{file_name(card.url)}" if by_crds else card.url
        return Choice(reftype, exposure, card, found.why, value)

    def _override(self, reftype: str, exposure: ExposureFacts) -> Found:
        given = self._overrides[reftype]
        name = f"override_{reftype}"
        if given.upper() == NONE:
            return Found(None, f"{name} = N/A", settled=True)
        card = read_card(absolute(given), self._options)
        odd = misfit(card, exposure)
        wrong = odd if odd.startswith(("has INSTRUME", "has DETECTOR")) else ""
        if card.reftype != reftype:
            wrong = f"is a {card.reftype} reference file"
        if wrong:
            raise InputError(
                f"{name} = {given}: {wrong}; {exposure.name} needs a {reftype} file for "
                f"{exposure.instrument} {exposure.detector} (--references DIR picks one for each detector)"
            )
        if not odd:
            return Found(card, name)
        note = f"{name} = {given}: {odd}, which does not fit {exposure}; used all the same"
        if note not in self._notes:
            self._notes.append(note)
        return Found(card, f"{name}, although it {odd}")

    def _sum(self, url: str) -> str:
        if url not in self._sums:
            self._sums[url] = checksum(url, self._options)
        return self._sums[url]


def _missing_line(choice: Choice) -> str:
    kind, exposure = choice.reftype, choice.exposure
    article = "an" if kind[0] in "aeio" else "a"
    return (
        f"{exposure.name}: needs {article} {kind} reference for {exposure}: "
        f"give --set {_STEPS.get(kind, 'assign_wcs')}.override_{kind}=FILE or --references DIR ({choice.why})"
    )
