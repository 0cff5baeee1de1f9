"""The source catalogue out of the store: ``<product>_cat.ecsv`` with the reference's columns (spec image3 §9.6)."""

from __future__ import annotations

import io
import os
import posixpath
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from streamimg3.errors import InputError
from streamimg3.formats.names import absolute, common_root, is_remote
from streamimg3.formats.publish import open_product
from streamimg3.store import Observation
from streamimg3.store.columns import read_column
from streamimg3.store.documents import AssociationDocument, CatalogColumn, CatalogDocument

if TYPE_CHECKING:
    from astropy.table import QTable

_PATH = "catalog"


def export_catalog(obs: Observation, destination: str, options: Mapping[str, str]) -> str:
    """Write the catalogue of a store as an ECSV file.

    Parameters
    ----------
    obs : Observation
        A store that holds a finished catalogue.
    destination : str
        Folder, or path or URL ending in ``.ecsv``, local or remote.
    options : mapping of str to str
        Storage options of the destination.

    Returns
    -------
    str
        Path or URL of the product.

    Raises
    ------
    InputError
        If the store holds no catalogue.
    StoreError
        If columns cannot be read or the product cannot be written; nothing is left under its name.
    """
    table = catalog_table(obs)
    url = product_url(obs, destination, "cat.ecsv")
    text = io.StringIO()
    table.write(text, format="ascii.ecsv")
    with open_product(url, options) as product:
        product.write(text.getvalue().encode("utf-8"))
    return url


def catalog_table(obs: Observation) -> QTable:
    """Return the catalogue of a store as an astropy table: quantities with units, positions as sky coordinates.

    Raises
    ------
    InputError
        If the store holds no catalogue.
    """
    from astropy.table import QTable

    document = finished(obs)
    table = QTable(meta=dict(document.meta))
    for name, parts in _grouped(document.columns).items():
        _add(table, name, parts, [read_column(obs, _PATH, c.name) for c in parts])
    return table


def finished(obs: Observation) -> CatalogDocument:
    """Return the document of a catalogue with sources.

    Raises
    ------
    InputError
        If there is none, or the step found nothing.
    """
    document = obs.document(CatalogDocument)
    if document is None:
        raise InputError(f"{obs.url} holds no finished catalogue: run image3 with source_catalog first")
    if document.status != "COMPLETE":
        raise InputError(f"{obs.url} holds no catalogue: source_catalog ended as {document.status} ({document.reason})")
    return document


def product_url(obs: Observation, destination: str, kind: str) -> str:
    """Return where a product of the mosaic belongs: ``<product>_<kind>`` in a folder, or the destination itself."""
    if destination.lower().endswith("." + kind.rsplit(".", 1)[1]):
        return absolute(destination)
    association = obs.document(AssociationDocument)
    root = association.product if association is not None else ""
    name = f"{root or common_root([r.filename for r in obs.records()])}_{kind}"
    folder = absolute(destination)
    return posixpath.join(folder, name) if is_remote(folder) else os.path.join(folder, name)


def _grouped(columns: Sequence[CatalogColumn]) -> dict[str, list[CatalogColumn]]:
    """Columns by the name they have in the table; the two axes of a position go together."""
    found: dict[str, list[CatalogColumn]] = {}
    for column in columns:
        name, _, axis = column.name.rpartition(".")
        found.setdefault(name if axis in ("ra", "dec") else column.name, []).append(column)
    return found


def _add(table: QTable, name: str, parts: list[CatalogColumn], values: list) -> None:  # type: ignore[type-arg]
    """Add one column, or the two of a position as one."""
    from astropy import units as u
    from astropy.coordinates import SkyCoord
    from astropy.table import Column
    from astropy.units import UnitsWarning

    if len(parts) == 2:
        table[name] = SkyCoord(values[0] * u.deg, values[1] * u.deg, frame="icrs")
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnitsWarning)  # the image's own unit may be one that astropy does not know
            table[name] = Column(values[0], unit=parts[0].unit)
    table[name].info.description = parts[0].description
    if parts[0].format:
        table[name].info.format = parts[0].format
