"""What coron3 takes from files beside the exposures: the weights of pixels for the alignment of reference stars."""

from __future__ import annotations

from streamimg3.calibration import crds_package
from streamimg3.formats.fits_file import open_fits, parse_cards
from streamimg3.formats.names import absolute
from streamimg3.formats.reference_card import ExposureFacts, checksum
from streamimg3.formats.reference_image import subarray_of
from streamimg3.formats.reference_psfmask import read_psfmask
from streamimg3.formats.reference_source import NONE, References
from streamimg3.geometry import Box
from streamimg3.pipelines import coron3
from streamimg3.session import Session
from streamimg3.stages.psf_stack import cast_of
from streamimg3.store import Exposure, Observation
from streamimg3.store.coron_documents import PsfmaskDocument
from streamimg3.store.documents import UsedReference

_ROOT = "psfmask"


def bring_psfmasks(obs: Observation, params: coron3.Params, session: Session) -> None:
    """Read the weights of all science exposures into a store, unless they are there.

    Raises
    ------
    InputError
        If none is given, or one is missing or does not fit.
    """
    if coron3.why_skipped("align_refs", params) is not None:
        return
    given = params.align_refs.override_psfmask
    files = References(
        {"psfmask": given} if given else {}, session.references, session.storage_options, session.offline, crds_package
    )
    science = cast_of(obs).science
    own = _own(given, session)
    used = [own or _chosen(files, exposure) for exposure in science]
    kept = obs.document(PsfmaskDocument)
    if kept is not None and kept.references == tuple(used):
        return
    obs.retract(PsfmaskDocument.kind)
    paths: dict[str, str] = {}
    for reference, exposure in zip(used, science, strict=True):
        if reference.sha256 and reference.url not in paths:
            paths[reference.url] = f"{_ROOT}/{len(paths)}/weights"
            _store(obs, paths[reference.url], reference.url, exposure, session)
    found = tuple(paths.get(r.url, "") for r in used)
    obs.commit(PsfmaskDocument(tuple(used), found, tuple(files.lock()), tuple(files.notes)))
    for note in files.notes:
        session.progress.note(note)


def _own(given: str | None, session: Session) -> UsedReference | None:
    """Return the user's image of weights, where what is given is no reference file but has SCI."""
    if not given or given.upper() == NONE:
        return None
    url = absolute(given)
    with open_fits(url, session.storage_options) as file:
        if file.hdus[0].header.get("REFTYPE") or file.find("SCI") is None:
            return None
    total = checksum(url, session.storage_options)
    return UsedReference("psfmask", url, total, url, "override_psfmask, an image of weights without REFTYPE")


def _chosen(files: References, exposure: Exposure) -> UsedReference:
    """Choose the file of one exposure."""
    facts = ExposureFacts.of_header(parse_cards(exposure.cards("primary")), exposure.record.url)
    card = files.choose("psfmask", facts)
    choice = next(c for c in files.choices() if c.exposure == facts and c.reftype == "psfmask")
    if card is None:
        return UsedReference("psfmask", "", "", NONE, choice.why)
    return UsedReference("psfmask", card.url, card.sha256, choice.value, choice.why)


def _store(obs: Observation, path: str, url: str, exposure: Exposure, session: Session) -> None:
    """Copy the weights into the store."""
    record = exposure.record
    place = subarray_of(parse_cards(exposure.cards("primary")), record.shape, record.url)
    weights = read_psfmask(url, place, session.storage_options)
    obs.create_series(path.rpartition("/")[0], "one", (1, *record.shape), {"weights": None}, rows=record.shape[0])
    obs.write(path, (slice(0, 1),), Box(0, 0, *record.shape), weights[None])
