"""The ASDF extension of a product: its metadata as a tree that refers to the pixels in the file's other extensions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from astropy.io import fits

from streamimg3.formats.blend import Column
from streamimg3.formats.fits_stream import Image, Unit, Whole, table
from streamimg3.sky.asdf_text import asdf_bytes

OWN_KEYWORD = "S3VER"
NDARRAY = "tag:stsci.edu:asdf/core/ndarray-1.1.0"
_NAMES = {"SCI": "data"}  # all others go by their extension's name


def put(tree: dict[str, object], path: str, value: object) -> None:
    """Set a value of a nested tree by its place, ``meta.exposure.start_time``.

    Raises
    ------
    TypeError
        If a value stands where a branch is needed.
    """
    *folders, last = path.split(".")
    for folder in folders:
        inner = tree.setdefault(folder, {})
        if not isinstance(inner, dict):
            raise TypeError(f"{path}: {folder} holds a value already")
        tree = inner
    tree[last] = value


def take(tree: dict[str, object], path: str) -> None:
    """Remove a value of a nested tree by its place, if it is there."""
    *folders, last = path.split(".")
    for folder in folders:
        inner = tree.get(folder)
        if not isinstance(inner, dict):
            return
        tree = inner
    tree.pop(last, None)


def asdf_unit(tree: dict[str, object], units: Sequence[Unit], columns: Sequence[Column] = ()) -> Whole:
    """Return the ASDF extension of a file.

    Parameters
    ----------
    tree : dict
        ``meta`` and whatever else the file carries; references to the arrays and the fingerprint of the headers are
        added to it.
    units : sequence of Image or Whole
        All other units of the file, in order.
    columns : sequence of Column
        Of HDRTAB, if there is one.
    """
    for unit in units:
        if isinstance(unit, Image):
            tree[_NAMES.get(unit.name, unit.name.lower())] = reference(unit.name, unit.dtype, unit.shape)
    if columns:
        tree["hdrtab"] = reference("HDRTAB", [_column_type(c) for c in columns], (len(columns[0].values),))
    tree["_fits_hash"] = hashlib.sha256(b"".join(u.header.tostring().encode("ascii") for u in units)).hexdigest()
    put(tree, "extra_fits.PRIMARY.header", _extra_cards(tree, units[0].header))
    text = asdf_bytes(tree)
    return table("ASDF", [("ASDF_METADATA", f"{len(text)}B")], text, 1)


def _extra_cards(tree: dict[str, object], primary: fits.Header) -> list[object]:
    """Keywords of PRIMARY that JWST's schema does not have: those known already, and our own."""
    kept: object = tree
    for name in ("extra_fits", "PRIMARY", "header"):
        kept = kept.get(name) if isinstance(kept, dict) else None
    known = [row for row in kept if row[0] != OWN_KEYWORD] if isinstance(kept, list) else []
    return known + [[c.keyword, c.value, c.comment] for c in primary.cards if c.keyword == OWN_KEYWORD]


def reference(extension: str, datatype: object, shape: tuple[int, ...], version: int = 1) -> object:
    """Return an array that lies in another extension of the same file, as JWST's data models refer to it."""
    from asdf.tagged import TaggedDict

    facts = {"source": f"fits:{extension},{version}", "datatype": datatype, "byteorder": "big", "shape": list(shape)}
    return TaggedDict(facts, NDARRAY)


def _column_type(column: Column) -> dict[str, object]:
    kinds = {"K": "int64", "D": "float64", "L": "int8"}
    width = column.values.dtype.itemsize
    return {"name": column.name, "byteorder": "big", "datatype": kinds.get(column.form) or ["ascii", width]}
