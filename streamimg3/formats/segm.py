"""The segmentation map out of the store: ``<product>_segm.fits``, streamed (spec image3 §10)."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping

from astropy.io import fits

from streamimg3.errors import InputError
from streamimg3.formats.asdf_tree import asdf_unit, put
from streamimg3.formats.blend import keyword_at
from streamimg3.formats.catalog import finished, product_url
from streamimg3.formats.fits_stream import Unit, primary, write_units
from streamimg3.formats.i2d import described, image, mosaic_tree
from streamimg3.formats.i2d_header import Headers, Mosaic, make_card, section_of, wcs_keywords
from streamimg3.formats.names import is_remote
from streamimg3.formats.publish import UPLOAD_MEMORY, open_product
from streamimg3.formats.step_facts import StepFacts
from streamimg3.store import Observation
from streamimg3.store.documents import ResampleDocument

_CATALOG = ("meta.source_catalog", "SCATFILE")
_PLANE = "segmentation"


def export_segm(
    obs: Observation,
    destination: str,
    options: Mapping[str, str],
    *,
    limit: int | None = None,
    statuses: Mapping[str, str] | None = None,
) -> str:
    """Write the segmentation map of a store as a FITS file.

    Parameters
    ----------
    obs : Observation
        A store that holds a finished catalogue with segments.
    destination : str
        Folder, or path or URL ending in ``.fits``, local or remote.
    options : mapping of str to str
        Storage options of the destination.
    limit : int, optional
        Bytes that this process may hold altogether; bands are made lower to keep to it.
    statuses : mapping of str to str, optional
        Status of the pipeline's steps for the ``S_xxxxxx`` keywords.

    Returns
    -------
    str
        Path or URL of the product.

    Raises
    ------
    InputError
        If the store holds no segmentation map.
    StoreError
        If pixels cannot be read or the product cannot be written; nothing is left under its name.
    """
    catalog, document = finished(obs), obs.document(ResampleDocument)
    if not catalog.segmentation or document is None:
        raise InputError(f"{obs.url} holds no segmentation map: run source_catalog with starfinder=segmentation")
    url = product_url(obs, destination, "segm.fits")
    if limit is not None and is_remote(url):
        limit -= UPLOAD_MEMORY
    everything = obs.exposures()
    chosen = tuple(everything[i] for i in document.exposures) if document.exposures else everything
    mosaic = Mosaic(document, chosen, _file_name(url), StepFacts.of(obs, statuses or {}))
    catalog_name = _file_name(product_url(obs, os.path.dirname(url), "cat.ecsv"))
    with open_product(url, options) as product:
        write_units(product, _units(obs, mosaic, catalog_name, catalog.made, limit))
    return url


def _file_name(url: str) -> str:
    return posixpath.basename(url) if is_remote(url) else os.path.basename(url)


def _units(obs: Observation, mosaic: Mosaic, catalog: str, made: str, limit: int | None) -> list[Unit]:
    """All header-data units; of the pixels, only where to read them."""
    headers, _ = described(mosaic)
    ours = {"DATE": made, "DATAMODL": "SegmentationMapModel"}
    cards = [_changed(card, ours) for card in headers.primary]
    steps = [i for i, card in enumerate(cards) if card.keyword.startswith("S_")]
    cards.insert(
        steps[-1] + 1 if steps else len(cards),
        make_card(_CATALOG[1], catalog, {_CATALOG[1]: "source catalogue of this map"}),
    )
    path = f"{mosaic.document.path}/{_PLANE}"
    units: list[Unit] = [primary(cards), image(obs, path, "SCI", limit, _wcs_cards(mosaic, headers))]
    return [*units, asdf_unit(_tree(mosaic, headers, ours | {_CATALOG[1]: catalog}), units)]


def _changed(card: fits.Card, ours: Mapping[str, str]) -> fits.Card:
    if card.keyword not in ours:
        return card
    return make_card(card.keyword, ours[card.keyword], {card.keyword: card.comment})


def _wcs_cards(mosaic: Mosaic, headers: Headers) -> list[fits.Card]:
    """The cards that say where on the sky the pixels are."""
    target = ("MT_RA", "MT_DEC", "MT_AVRA", "MT_AVDEC")
    wanted = {*wcs_keywords(mosaic.wcs), "S_REGION", "VELOSYS", "EQUINOX", *target}
    chosen: list[fits.Card] = []
    heading: list[fits.Card] = []
    for card in headers.sci:
        if card.keyword == "":
            heading = [*heading, card]
            continue
        if card.keyword in wanted:
            chosen += [*heading, card]
        heading = []
    return chosen


def _tree(mosaic: Mosaic, headers: Headers, ours: Mapping[str, str]) -> dict[str, object]:
    """Metadata of PRIMARY and of the WCS, and the gWCS; what describes the mosaic's pixels is left out."""
    kept = {
        path: value
        for path, value in headers.metadata.items()
        if (k := keyword_at(path)) is None or k.hdu == "PRIMARY" or section_of(path) == "meta.wcsinfo"
    }
    places = {"DATE": "meta.date", "DATAMODL": "meta.model_type", _CATALOG[1]: _CATALOG[0]}
    tree = mosaic_tree(mosaic, Headers(headers.primary, headers.sci, headers.err, kept))
    for name, value in ours.items():
        put(tree, places[name], value)
    return tree
