"""Reference stars from an astrometric catalogue service (spec image3 §4.5)."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np

from streamimg3.errors import InputError
from streamimg3.formats.local_copy import one_line
from streamimg3.sky import footprint
from streamimg3.sky.tangent import sky_angles, unit_vectors
from streamimg3.store import Observation
from streamimg3.store.stars import StarTable

if TYPE_CHECKING:
    from astropy.table import Table

SERVICES = ("GAIAREFCAT", "GAIADR3", "GAIADR2", "GAIADR1", "GAIADR3_S3")
_PLACE = "https://gsss.stsci.edu/webservices"
_VARIABLE = "ASTROMETRIC_CATALOG_URL"  # another place of the same service, as in the reference software
_PATIENCE = 30.0  # seconds
_COLUMNS = ("ra", "dec", "mag", "objID", "epoch")
_MARGIN = 10.0 / 3600.0  # degrees: exposures are not aligned yet when the service is asked


def ask(obs: Observation, name: str, offline: bool, kept: StarTable | None) -> StarTable:
    """Return the stars of a service's catalogue in the field of all exposures, at the epoch of the first.

    Parameters
    ----------
    obs : Observation
        A store with its exposures.
    name : str
        One of `SERVICES`.
    offline : bool
        Do not use the network.
    kept : StarTable or None
        What the store has of this catalogue; it is taken if it was asked for the same field and epoch.

    Returns
    -------
    StarTable
        Columns ra, dec (degrees, at the epoch), mag and, where the service has them, objID and epoch; faint to bright.

    Raises
    ------
    InputError
        If the service cannot be asked, or answers something else.
    """
    asked = {"catalog": name, **_field(obs)}
    if kept is not None and {k: kept.meta.get(k) for k in asked} == asked:
        return kept
    hint = "give a local table with RA and DEC as tweakreg.abs_refcat"
    if name == "GAIADR3_S3":
        raise InputError(f"tweakreg.abs_refcat = {name}: this catalogue cannot be read here: use GAIADR3, or {hint}")
    if offline:
        raise InputError(f"tweakreg.abs_refcat = {name}: this catalogue needs the network (--offline is set): {hint}")
    query = {"RA": asked["ra"], "DEC": asked["dec"]}
    query |= {} if asked["epoch"] is None else {"EPOCH": asked["epoch"]}
    query |= {"SR": asked["radius"], "FORMAT": "CSV", "CAT": name}
    url = f"{os.environ.get(_VARIABLE, _PLACE)}/vo/CatalogSearch.aspx?{urlencode(query)}"
    try:
        with urlopen(Request(url, headers={"Content-Type": "text/csv"}), timeout=_PATIENCE) as answer:
            text = answer.read().decode()
    except (URLError, OSError, ValueError) as error:
        raise InputError(f"tweakreg.abs_refcat = {name}: {url} does not answer ({one_line(error)}): {hint}") from error
    return read_answer(text, asked)


def read_answer(text: str, asked: dict[str, str | float | None]) -> StarTable:
    """Read the service's answer, comma-separated values; stars without proper motion are left out if there is an epoch.

    Raises
    ------
    InputError
        If it is something else.
    """
    from astropy.table import Table

    if text.startswith("No data records"):
        return StarTable({"ra": np.zeros(0), "dec": np.zeros(0), "mag": np.zeros(0)}, dict(asked))
    try:
        table = Table.read(text, format="csv", comment="#")
    except Exception as error:  # the reader's errors have no common base
        raise InputError(f"tweakreg.abs_refcat = {asked['catalog']}: the service's answer is no table") from error
    missing = [n for n in ("ra", "dec", "mag") if n not in table.colnames]
    if missing:
        raise InputError(f"tweakreg.abs_refcat = {asked['catalog']}: the service's answer has no column {missing[0]}")
    good = np.ones(len(table), bool)
    if asked["epoch"] is not None:
        for name in set(table.colnames) & {"pmra", "pmdec"}:
            good &= ~np.ma.getmaskarray(table[name])
    columns = {n: _plain(table[good], n) for n in _COLUMNS if n in table.colnames}
    order = np.argsort(columns["mag"], kind="stable")[::-1]
    return StarTable({n: v[order] for n, v in columns.items()}, dict(asked))


def _plain(table: Table, name: str):  # type: ignore[no-untyped-def]
    column = np.ma.asarray(table[name])
    return (
        column.filled(np.nan if column.dtype.kind == "f" else 0) if column.dtype.kind in "fiu" else np.asarray(column)
    )


def _field(obs: Observation) -> dict[str, float | None]:
    """Centre and radius (degrees) of the circle around all exposures, and the epoch of the first (decimal year)."""
    exposures = obs.exposures(aligned=False)
    corners = np.vstack([p for e in exposures for p in footprint.parse(e.record.s_region)])
    vectors = unit_vectors(*corners.T)
    middle = (vectors.max(axis=1) + vectors.min(axis=1)) / 2.0
    middle /= np.linalg.norm(middle)
    ra, dec = sky_angles(middle)
    radius = math.degrees(math.acos(max(-1.0, min(1.0, float((middle @ vectors).min()))))) + _MARGIN
    return {"ra": float(ra), "dec": float(dec), "radius": radius, "epoch": _epoch(exposures[0].record.start_mjd)}


def _epoch(mjd: float | None) -> float | None:
    from astropy.time import Time

    return None if mjd is None else float(Time(math.floor(mjd), format="mjd").decimalyear)
