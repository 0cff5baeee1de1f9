"""What a reference file says about itself, read from its header alone: FITS primary header, ASDF meta, or JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Literal

from streamimg3.errors import InputError
from streamimg3.formats.fits_file import card_value, quietly
from streamimg3.formats.local_copy import one_line, open_seekable

Facts = dict[str, str]
Kind = Literal["FITS", "ASDF", "JSON"]

_BLOCK = 2880
_CARD = 80
_PIECE = 1 << 16
_LONGEST = 64 << 20  # no header and no tree is longer; what is, is not read on
_ASDF_END = b"\n..."

# FITS keyword: where JWST's data models keep the same fact in a tree, the usual place first
_PLACES: dict[str, tuple[str, ...]] = {
    "TELESCOP": ("meta.telescope", "telescope"),
    "REFTYPE": ("meta.reftype", "reftype"),
    "INSTRUME": ("meta.instrument.name", "instrument"),
    "DETECTOR": ("meta.instrument.detector", "detector"),
    "CHANNEL": ("meta.instrument.channel", "channel"),
    "MODULE": ("meta.instrument.module", "module"),
    "FILTER": ("meta.instrument.filter", "filter"),
    "PUPIL": ("meta.instrument.pupil", "pupil"),
    "BAND": ("meta.instrument.band", "band"),
    "CORONMSK": ("meta.instrument.coronagraph",),
    "EXP_TYPE": ("meta.exposure.type", "exp_type"),
    "READPATT": ("meta.exposure.readpatt", "readpatt"),
    "SUBARRAY": ("meta.subarray.name", "meta.instrument.subarray", "subarray"),
    "P_DETECT": ("meta.instrument.p_detector",),
    "P_CHANNE": ("meta.instrument.p_channel",),
    "P_MODULE": ("meta.instrument.p_module",),
    "P_FILTER": ("meta.instrument.p_filter",),
    "P_PUPIL": ("meta.instrument.p_pupil",),
    "P_BAND": ("meta.instrument.p_band",),
    "P_EXP_TY": ("meta.exposure.p_exptype",),
    "P_READPA": ("meta.exposure.p_readpatt",),
    "P_SUBARR": ("meta.subarray.p_subarray",),
    "USEAFTER": ("meta.useafter", "useafter"),
    "PEDIGREE": ("meta.pedigree", "pedigree"),
    "AUTHOR": ("meta.author", "author"),
    "DATAMODL": ("meta.model_type",),
}
KEYWORDS = tuple(_PLACES)
PATTERNS = tuple(keyword for keyword in KEYWORDS if keyword.startswith("P_"))


@dataclass(frozen=True)
class Head:
    """The beginning of a file, up to where its header ends.

    Parameters
    ----------
    url : str
        Where it came from.
    kind : {"FITS", "ASDF", "JSON"}
        By content, not by name.
    data : bytes
        Primary header with END, ASDF tree as YAML text, or the whole JSON text.
    """

    url: str
    kind: Kind
    data: bytes


def read_head(url: str, options: Mapping[str, str]) -> Head:
    """Read the header of a file and nothing behind it.

    Parameters
    ----------
    url : str
        Local path or fsspec URL; gzip files are unpacked first.
    options : mapping of str to str
        Storage options for remote URLs.

    Raises
    ------
    InputError
        If the file cannot be read, is none of FITS, ASDF and JSON, or ends inside its header.
    """
    with open_seekable(url, options) as stream:
        start = stream.read(9)
        stream.seek(0)
        if start.startswith(b"SIMPLE  ="):
            return Head(url, "FITS", _fits_head(stream, url))
        if start.startswith(b"#ASDF"):
            return Head(url, "ASDF", _until(stream, url, _ASDF_END))
        if start.lstrip().startswith((b"{", b"[")):
            return Head(url, "JSON", _until(stream, url, b""))
    raise InputError(f"{url}: is not a reference file (neither FITS, ASDF nor JSON; it begins with {start!r})")


def _fits_head(stream: IO[bytes], url: str) -> bytes:
    text = bytearray()
    while len(text) < _LONGEST:
        block = stream.read(_BLOCK)
        text += block
        if any(block[at : at + _CARD].rstrip() == b"END" for at in range(0, len(block), _CARD)):
            return bytes(text)
        if len(block) < _BLOCK:
            break
    raise InputError(f"{url}: is truncated inside its primary header; fetch it again")


def _until(stream: IO[bytes], url: str, end: bytes) -> bytes:
    """Return everything before `end`; without it, everything."""
    text = bytearray()
    while piece := stream.read(_PIECE):
        seen = max(0, len(text) - len(end))
        text += piece
        stop = text.find(end, seen) if end else -1
        if stop >= 0:
            return bytes(text[:stop])
        if len(text) > _LONGEST:
            raise InputError(f"{url}: its header does not end within {_LONGEST >> 20} MiB; it is not a reference file")
    return bytes(text)


def facts_of(head: Head) -> Facts:
    """Return the facts of a header by FITS keyword, as text, upper case where JWST's values are; absent = not listed.

    Parameters
    ----------
    head : Head
        What was read. A tree without ``meta`` (the oldest files) is asked for the same names at its top.

    Raises
    ------
    InputError
        If the header cannot be parsed.
    """
    found = _fits_facts(head) if head.kind == "FITS" else _tree_facts(head)
    as_written = ("AUTHOR", "USEAFTER", "PEDIGREE", "DATAMODL")
    stripped = {k: " ".join(v.split()) for k, v in found.items()}
    return {k: v if k in as_written else v.upper() for k, v in stripped.items() if v}


def _fits_facts(head: Head) -> Facts:
    from astropy.io import fits

    try:
        with quietly():
            header = fits.Header.fromfile(io.BytesIO(head.data), padding=False)
            mine = [k for k in header if k in _PLACES or k.startswith("P_")]
    except (OSError, ValueError, fits.VerifyError) as exc:
        raise InputError(f"{head.url}: its primary header cannot be read ({one_line(exc)})") from exc
    values = {keyword: card_value(header, keyword, head.url) for keyword in mine}
    return {keyword: str(value) for keyword, value in values.items() if value is not None}


def _tree_facts(head: Head) -> Facts:
    tree = _json_tree(head) if head.kind == "JSON" else _yaml_tree(head)
    found: Facts = {}
    for keyword, places in _PLACES.items():
        values = (_at(tree, place) for place in places)
        first = next((value for value in values if value), None)
        if first:
            found[keyword] = first
    return found


def _at(tree: object, place: str) -> str | None:
    """Return the text at a dotted place of a tree, or None where there is none."""
    for name in place.split("."):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return str(tree) if isinstance(tree, str | int | float) and not isinstance(tree, bool) else None


def _json_tree(head: Head) -> object:
    try:
        tree: object = json.loads(head.data)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{head.url}: is not valid JSON ({one_line(exc)})") from exc
    return tree


def _yaml_tree(head: Head) -> object:
    """Return an ASDF tree with every value as text: nothing is built from tags, no array is loaded."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        root = yaml.compose(head.data.decode("utf-8"), Loader=loader)
        top = {key.value: node for key, node in root.value} if isinstance(root, yaml.MappingNode) else {}
        return {name: _plain(node) for name, node in top.items() if name == "meta" or node.id == "scalar"}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as exc:
        raise InputError(f"{head.url}: its ASDF tree cannot be read ({one_line(exc)})") from exc


def _plain(node: object) -> object:
    import yaml

    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _plain(value) for key, value in node.value}
    if isinstance(node, yaml.ScalarNode):
        return "" if node.tag == "tag:yaml.org,2002:null" else str(node.value)
    return None
