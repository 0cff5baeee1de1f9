"""Files beside the exposures that parameters name: they are read into the store before the steps that need them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamimg3.session import Session
from streamimg3.store import Observation
from streamimg3.store.documents import ApertureDocument, OutputWcsDocument, SkyListDocument

if TYPE_CHECKING:
    from streamimg3.pipelines import coron3, image2, image3, tso3

    Params = image2.Params | image3.Params | coron3.Params | tso3.Params


def output_wcs(params: Params, session: Session) -> OutputWcsDocument | None:
    """Read the user's output WCS, if there is one; needs no store, so that a bad file is refused before any work."""
    if not params.resample.output_wcs or "resample" in params.skip:
        return None
    from streamimg3.formats.output_wcs import read_output_wcs

    return read_output_wcs(params.resample.output_wcs, session.storage_options)


def bring(obs: Observation, params: Params, session: Session) -> None:
    """Read star lists, reference catalogue, sky levels, aperture corrections or weights of pixels into a store.

    Raises
    ------
    InputError
        If a file is missing or is not what it should be.
    """
    if params.pipeline == "tso3":
        from streamimg3 import series

        series.bring(obs, params, session)
    elif params.pipeline == "coron3":
        from streamimg3.coronagraphy import bring_psfmasks

        bring_psfmasks(obs, params, session)
    elif params.pipeline == "image3":
        _bring_image3(obs, params, session)


def _bring_image3(obs: Observation, params: image3.Params, session: Session) -> None:
    from streamimg3.pipelines import image3

    steps = [s for s in image3.applicable(obs) if s not in params.skip]
    if "tweakreg" in steps:
        _stars(obs, params, session)
    if "skymatch" in steps and params.skymatch.skymethod == "user" and params.skymatch.skylist:
        from streamimg3.formats.skylist import read_skylist

        names = [r.filename for r in obs.records()]
        _commit(obs, read_skylist(params.skymatch.skylist, session.storage_options, names))
    if "source_catalog" in steps:
        from streamimg3.formats.apcorr import read_apertures

        files = params.source_catalog.override_apcorr, params.source_catalog.override_abvegaoffset
        _commit(obs, read_apertures(obs, *files, session.storage_options))


def _stars(obs: Observation, params: image3.Params, session: Session) -> None:
    """Bring what tweakreg takes from files: the user's own star lists, and the absolute reference."""
    if params.tweakreg.use_custom_catalogs:
        from streamimg3.formats.star_catalogs import bring_custom

        count = bring_custom(obs, params.tweakreg.catfile, session.storage_options)
        session.progress.note(f"tweakreg: {count} exposures have star lists of the user's own")
    if params.tweakreg.absolute:
        from streamimg3.formats.star_catalogs import bring_reference

        count = bring_reference(obs, params.tweakreg.absolute, session.storage_options, session.offline)
        session.progress.note(f"tweakreg: {count} stars in {params.tweakreg.absolute}")


def _commit(obs: Observation, document: ApertureDocument | SkyListDocument) -> None:
    if obs.document(type(document)) != document:
        obs.commit(document)
