"""ASDF trees as bytes that are the same in every process."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping

# What the library notes down of itself, in YAML's block style: a list of extensions, each an indented block.
_EXTENSIONS = re.compile(rb"(?<=^  extensions:\n)(?:  - .*\n(?:    .*\n)*)+", re.MULTILINE)
_EXTENSION = re.compile(rb"  - .*\n(?:    .*\n)*")
_URI = re.compile(rb"extension_uri:\s+(\S+)")


def asdf_bytes(tree: Mapping[str, object]) -> bytes:
    """Return a tree as an ASDF file with its arrays inline.

    The library lists the extensions it used in the order of a set, which changes from process to process: here they are
    put into the order of their names.
    """
    import asdf

    stream = io.BytesIO()
    asdf.AsdfFile(dict(tree)).write_to(stream, all_array_storage="inline")
    return _EXTENSIONS.sub(_sorted, stream.getvalue(), count=1)


def _sorted(extensions: re.Match[bytes]) -> bytes:
    blocks: list[bytes] = sorted(_EXTENSION.findall(extensions[0]), key=_name)
    return b"".join(blocks)


def _name(extension: bytes) -> bytes:
    found = _URI.search(extension)
    return found[1] if found else b""
