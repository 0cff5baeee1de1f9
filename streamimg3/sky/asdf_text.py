"""ASDF trees as bytes that are the same in every process."""

from __future__ import annotations

import io
from collections.abc import Mapping


def asdf_bytes(tree: Mapping[str, object]) -> bytes:
    """Return a tree as an ASDF file with its arrays inline.

    The library lists the extensions it used in the order of a set, which changes from process to process, but keeps the
    order of a list that it finds; hence the tree is written twice.
    """
    from asdf.util import load_yaml

    draft = load_yaml(io.BytesIO(_written(tree)))
    extensions = sorted(draft.get("history", {}).get("extensions", []), key=lambda e: str(e.get("extension_uri", "")))
    return _written({**tree, "history": {"extensions": extensions}}) if extensions else _written(tree)


def _written(tree: Mapping[str, object]) -> bytes:
    import asdf

    stream = io.BytesIO()
    asdf.AsdfFile(dict(tree)).write_to(stream, all_array_storage="inline")
    return stream.getvalue()
