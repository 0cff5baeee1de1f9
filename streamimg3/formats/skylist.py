"""The user's own sky levels: a text file with a file name and a number on each line (spec image3 §5.1, §5.5)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from streamimg3.errors import InputError
from streamimg3.formats.local_copy import open_seekable
from streamimg3.formats.names import root_name
from streamimg3.store.documents import SkyListDocument


def read_skylist(url: str, options: Mapping[str, str], filenames: Sequence[str]) -> SkyListDocument:
    """Read the sky level of every exposure.

    Parameters
    ----------
    url : str
        Path or URL of the list: ``filename value`` on each line, blanks between; ``#`` starts a comment.
    options : mapping
        Storage options of the URL.
    filenames : sequence of str
        File names of the exposures in store order.

    Returns
    -------
    SkyListDocument
        Levels in the image's unit, rounded to float32 as the reference reads them.

    Raises
    ------
    InputError
        If a line cannot be understood, or exposures and list do not fit each other one to one (names are compared
        without folder, extension and product suffix).
    """
    with open_seekable(url, options) as stream:
        text = stream.read().decode("utf-8", "replace")
    rows = [(k, line.split("#")[0].split()) for k, line in enumerate(text.splitlines(), 1)]
    listed = [(root_name(words[0]), _value(url, k, words)) for k, words in rows if words]
    if len(listed) != len(filenames):
        raise InputError(f"{url}: {len(listed)} entries for {len(filenames)} exposures: list every exposure once")
    levels = []
    for name in filenames:
        found = [value for root, value in listed if root == root_name(name)]
        if len(found) != 1:
            raise InputError(f"{url}: {name} is there {len(found)} times: list every exposure once")
        levels.append(found[0])
    return SkyListDocument(url, tuple(filenames), tuple(levels))


def _value(url: str, line: int, words: list[str]) -> float:
    try:
        (text,) = words[1:]
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise InputError(f"{url} line {line}: '{' '.join(words)}' is not a file name and a number")
    return float(np.float32(value))
