"""Star lists in and out: the user's own ones, reference catalogues, and those that were detected (spec image3 §4.1, §4.5)."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.formats.local_copy import one_line, open_seekable, read_text
from streamimg3.formats.names import absolute, file_name, is_remote, relative_to
from streamimg3.formats.publish import open_product
from streamimg3.store import Exposure, Observation
from streamimg3.store.documents import AssociationDocument
from streamimg3.store.stars import (
    StarTable,
    current_lists,
    read_list,
    read_reference,
    write_custom,
    write_reference,
)

if TYPE_CHECKING:
    from astropy.table import Table

F8 = NDArray[np.float64]
FORMATS = ("ecsv", "fits")
_PLACES = {"x": ("x", "xcentroid", "x_centroid"), "y": ("y", "ycentroid", "y_centroid")}
_KEYWORD = "TCATFILE"  # by which an exposure names its own list


def bring_custom(obs: Observation, catfile: str, options: Mapping[str, str]) -> int:
    """Bring the user's own star lists into the store, in place of those of an earlier run.

    Parameters
    ----------
    obs : Observation
        A store with its exposures.
    catfile : str
        File of two columns, exposure file and catalogue (relative to the file itself); empty = the association's
        ``tweakreg_catalog`` entries. What neither names is looked up in the exposures' own keyword TCATFILE.
    options : mapping of str to str
        Storage options of URLs.

    Returns
    -------
    int
        How many exposures have a list of their own; stars of the others will be detected.

    Raises
    ------
    InputError
        If a file is missing, or a catalogue holds no positions.
    """
    exposures = obs.exposures(aligned=False)
    tables = {}
    for exposure, url in zip(exposures, _urls(obs, exposures, catfile, options), strict=True):
        if url:
            tables[exposure.record.index] = read_stars(url, options)
    write_custom(obs, tables)
    return len(tables)


def _urls(
    obs: Observation, exposures: Sequence[Exposure], catfile: str, options: Mapping[str, str]
) -> list[str | None]:
    """The catalogue of each exposure; None = detect."""
    named = read_catfile(catfile, options) if catfile.strip() else _of_association(obs)
    if catfile.strip() and not any(named.values()):
        return [None] * len(exposures)  # the reference's rule: a list without catalogues turns them all off
    found: list[str | None] = []
    for exposure in exposures:
        record = exposure.record
        names = (record.filename, file_name(record.url))
        key = next((n for n in names if n in named), None)
        found.append(named[key] if key is not None else _own(exposure))
        if found[-1] and sum(file_name(e.record.url) == names[1] for e in exposures) > 1:
            raise InputError(
                f"{record.url}: holds several images, and a star list ({found[-1]}) can belong to one only: split the file"
            )
    return found


def _of_association(obs: Observation) -> dict[str, str | None]:
    document = obs.document(AssociationDocument)
    members = document.members if document is not None else ()
    return {file_name(m.url): m.catalog for m in members if m.catalog}


def _own(exposure: Exposure) -> str | None:
    """The catalogue that an exposure's header names: as it stands if there is such a file, else beside the exposure."""
    from astropy.io import fits

    cards = exposure.cards("primary")
    at = next((i for i in range(0, len(cards), 80) if cards.startswith(f"{_KEYWORD:<8}=", i)), None)
    if at is None:
        return None
    value = str(fits.Card.fromstring(cards[at : at + 80]).value or "").strip()
    if not value:
        return None
    return (
        absolute(value)
        if is_remote(value) or os.path.exists(absolute(value))
        else relative_to(exposure.record.url, value)
    )


def read_catfile(url: str, options: Mapping[str, str]) -> dict[str, str | None]:
    """Read which exposure has which catalogue.

    Parameters
    ----------
    url : str
        Text file: exposure file name, then its catalogue or nothing; lines that begin with # are comments.
    options : mapping of str to str
        Storage options of the URL.

    Returns
    -------
    dict
        Catalogue (URL) or None by exposure file name.

    Raises
    ------
    InputError
        If a line has more than two columns.
    """
    found: dict[str, str | None] = {}
    for number, line in enumerate(read_text(url, options).splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2:
            raise InputError(
                f"{url}: line {number} has {len(words)} columns: write the exposure's file and its catalogue"
            )
        found[words[0]] = relative_to(url, words[1]) if len(words) == 2 else None
    return found


def read_stars(url: str, options: Mapping[str, str]) -> StarTable:
    """Read a list of stars in pixels.

    Parameters
    ----------
    url : str
        ECSV, FITS, CSV or another table that astropy recognises; columns ``x`` and ``y`` (or ``xcentroid``,
        ``x_centroid`` ...), 0-based; ``id``, ``flux`` and ``weight`` if there.
    options : mapping of str to str
        Storage options of the URL.

    Raises
    ------
    InputError
        If it is no table, or has no positions.
    """
    table = read_table(url, options)
    columns = {}
    for axis, names in _PLACES.items():
        name = next((n for n in names if n in table.colnames), None)
        if name is None:
            raise InputError(f"{url}: a star list needs a column {' or '.join(names)}; it has {_names(table)}")
        columns[axis] = _numbers(table, name, url)
    columns["flux"] = _numbers(table, "flux", url) if "flux" in table.colnames else np.full(len(table), np.nan)
    if "weight" in table.colnames:
        columns["weight"] = _numbers(table, "weight", url)
    good = np.isfinite(columns["x"]) & np.isfinite(columns["y"]) & _weighted(columns)
    ids = np.arange(1, len(table) + 1)
    return StarTable({"id": ids[good], **{k: v[good] for k, v in columns.items()}}, {"source": url})


def bring_reference(obs: Observation, name: str, options: Mapping[str, str], offline: bool = False) -> int:
    """Bring a reference catalogue into the store.

    Parameters
    ----------
    obs : Observation
        A store with its exposures.
    name : str
        ``abs_refcat``: path or URL of a table with RA and DEC in degrees (or ``sky_centroid``), or a service's name.
    options : mapping of str to str
        Storage options of the URL.
    offline : bool
        Ask no service; a catalogue that an earlier run has brought is used.

    Returns
    -------
    int
        Number of stars.

    Raises
    ------
    InputError
        If there is no such catalogue, it holds no positions, or the service cannot be asked.
    """
    from streamimg3.formats.astrometry import SERVICES, ask

    if name.strip().upper() in SERVICES:
        table = ask(obs, name.strip().upper(), offline, read_reference(obs, name.strip()))
    else:
        table = read_positions(name.strip(), options)
    write_reference(obs, name.strip(), table)
    return len(table)


def read_positions(url: str, options: Mapping[str, str]) -> StarTable:
    """Read a reference catalogue: RA and DEC in any case, or ``sky_centroid``; ``weight`` if there.

    Raises
    ------
    InputError
        If it is no table, or has no positions.
    """
    table = read_table(url, options)
    found = {key: [n for n in table.colnames if n.lower() == key] for key in ("ra", "dec", "sky_centroid")}
    if len(found["ra"]) > 1 or len(found["dec"]) > 1:
        raise InputError(f"{url}: has several columns RA or DEC ({_names(table)}): keep one of each")
    if found["ra"] and found["dec"]:
        columns = {"ra": _degrees(table, found["ra"][0], url), "dec": _degrees(table, found["dec"][0], url)}
    elif len(found["sky_centroid"]) == 1:
        sky = table[found["sky_centroid"][0]].icrs
        columns = {"ra": np.asarray(sky.ra.deg), "dec": np.asarray(sky.dec.deg)}
    else:
        raise InputError(
            f"{url}: a reference catalogue needs columns RA and DEC, or sky_centroid; it has {_names(table)}"
        )
    if "weight" in table.colnames:
        columns["weight"] = _numbers(table, "weight", url)
    good = np.isfinite(columns["ra"]) & np.isfinite(columns["dec"]) & _weighted(columns)
    return StarTable({k: v[good] for k, v in columns.items()}, {"source": url})


def read_table(url: str, options: Mapping[str, str]) -> Table:
    """Read a table of any form that astropy recognises by its first bytes: FITS, ECSV, VOTable, CSV or plain text.

    Raises
    ------
    InputError
        If the file is missing or is no table.
    """
    import warnings

    from astropy.table import Table

    with open_seekable(url, options) as stream:
        data = stream.read()
    kinds = {b"SIMPLE  =": "fits", b"# %ECSV": "ascii.ecsv", b"<?xml": "votable", b"<VOTABLE": "votable"}
    kind = next((k for start, k in kinds.items() if data.lstrip().startswith(start)), None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # units that are not quite standard, masked values
            if kind in ("fits", "votable"):
                return Table.read(io.BytesIO(data), format=kind)
            guess = "csv" if kind is None and url.lower().endswith(".csv") else "ascii"
            return Table.read(data.decode("utf-8-sig"), format=kind or guess)
    except Exception as error:  # each reader has errors of its own
        raise InputError(f"{url}: is no table that can be read ({one_line(error)}): give ECSV, FITS or CSV") from error


def _numbers(table: Table, name: str, url: str) -> F8:
    try:
        return np.ma.filled(np.ma.asarray(table[name], dtype=np.float64), np.nan)
    except (TypeError, ValueError) as error:
        raise InputError(f"{url}: column {name} holds no numbers ({one_line(error)})") from error


def _degrees(table: Table, name: str, url: str) -> F8:
    from astropy import units as u

    unit = table[name].unit
    values = _numbers(table, name, url)
    if unit is None or unit == u.deg:
        return values
    try:
        return np.asarray(u.Quantity(values, unit).to_value(u.deg))
    except u.UnitConversionError as error:
        raise InputError(f"{url}: column {name} is in {unit}, which is no angle: give degrees") from error


def _weighted(columns: Mapping[str, F8]) -> NDArray[np.bool_]:
    weight = columns.get("weight")
    return (
        np.ones(len(next(iter(columns.values()))), np.bool_) if weight is None else np.isfinite(weight) & (weight >= 0)
    )


def _names(table: Table) -> str:
    return ", ".join(table.colnames[:12]) + (" ..." if len(table.colnames) > 12 else "")


def export_catalogs(obs: Observation, folder: str, catalog_format: str, options: Mapping[str, str]) -> list[str]:
    """Write the detected stars of every exposure as ``<exposure file without .fits>_cat.<format>``.

    Parameters
    ----------
    obs : Observation
        A store in which tweakreg has run.
    folder : str
        Folder or URL.
    catalog_format : str
        ecsv or fits.
    options : mapping of str to str
        Storage options of the URL.

    Returns
    -------
    list of str
        What was written; exposures with star lists of the user's own have none.

    Raises
    ------
    InputError
        If the format is unknown.
    StoreError
        If the place cannot be written to.
    """
    if catalog_format not in FORMATS:
        raise InputError(f"tweakreg.catalog_format = {catalog_format!r}: it must be one of {', '.join(FORMATS)}")
    from astropy.table import Table

    written = []
    for exposure, key in zip(obs.exposures(aligned=False), current_lists(obs), strict=False):
        if key is None:
            continue
        found = read_list(obs, key)
        stem = exposure.record.filename.replace(".fits", "")
        table = Table({n: found.columns[n] for n in ("id", "x", "y", "flux")}, meta={"name": stem.strip("_- ")})
        written.append(_publish(table, f"{folder.rstrip('/')}/{stem}_cat.{catalog_format}", catalog_format, options))
    return written


def export_reference(obs: Observation, name: str, folder: str, options: Mapping[str, str]) -> str | None:
    """Write the reference catalogue that a service has given as ``fit_<name>_ref.ecsv``; None for the user's own table."""
    from streamimg3.formats.astrometry import SERVICES

    found = read_reference(obs, name.strip())
    if found is None or name.strip().upper() not in SERVICES:
        return None
    from astropy.table import Table

    table = Table({{"ra": "RA", "dec": "DEC"}.get(n, n): v for n, v in found.columns.items()}, meta=dict(found.meta))
    return _publish(table, f"{folder.rstrip('/')}/fit_{name.strip().lower()}_ref.ecsv", "ecsv", options)


def _publish(table: Table, url: str, kind: str, options: Mapping[str, str]) -> str:
    if kind == "ecsv":
        text = io.StringIO()
        table.write(text, format="ascii.ecsv")
        data = text.getvalue().encode()
    else:
        raw = io.BytesIO()
        table.write(raw, format="fits")
        data = raw.getvalue()
    with open_product(url, options) as product:
        product.write(data)
    return url
