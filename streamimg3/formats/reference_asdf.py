"""ASDF reference files (distortion, filteroffset, the NIRSpec models): the whole tree, from a path or URL."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence

from streamimg3.errors import InputError
from streamimg3.formats.local_copy import one_line, open_seekable
from streamimg3.formats.reference_card import card_of
from streamimg3.formats.reference_header import read_head

# What the tree of a type must have to be of use; other types are taken as they are.
NEEDED = {"distortion": ("model",), "filteroffset": ("filters",)}


def read_tree(
    url: str, options: Mapping[str, str], reftype: str, needed: Sequence[str] | None = None
) -> dict[str, object]:
    """Return the tree of an ASDF reference file, its arrays and models loaded.

    Parameters
    ----------
    url : str
        Local path or fsspec URL.
    options : mapping of str to str
        Storage options for remote URLs.
    reftype : str
        ``distortion``, ``filteroffset``, ``camera`` ...
    needed : sequence of str or None
        Names the tree must have; None = those of `NEEDED`.

    Returns
    -------
    dict
        What lies at the top of the tree: ``meta``, ``model``, ``filters`` ... The file is closed; nothing refers to it.

    Raises
    ------
    InputError
        If the file is no ASDF reference file of this type, is damaged, or lacks a name in `needed`.
    """
    head = read_head(url, options)
    if head.kind != "ASDF":
        raise InputError(f"{url}: is a {head.kind} file; a {reftype} reference file is an ASDF file")
    card = card_of(head)
    if card.reftype != reftype:
        raise InputError(f"{url}: is a {card.reftype} reference file; give a {reftype} reference file")
    tree = _load(url, options)
    for name in NEEDED.get(reftype, ()) if needed is None else needed:
        if name not in tree:
            raise InputError(
                f"{url}: has no '{name}' (it has {', '.join(sorted(tree))}); give a {reftype} reference file for images"
            )
    return tree


def _load(url: str, options: Mapping[str, str]) -> dict[str, object]:
    import asdf

    with open_seekable(url, options) as stream:
        data = stream.read()
    try:
        # Old files carry old versions of tags and libraries; what matters is whether the models can be built.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with asdf.open(io.BytesIO(data), lazy_load=False, memmap=False) as opened:
                return {str(name): value for name, value in opened.tree.items()}
    except MemoryError:
        raise
    except Exception as exc:  # asdf and the model converters have no common error
        raise InputError(f"{url}: cannot be read as ASDF ({one_line(exc)}); fetch it again") from exc
