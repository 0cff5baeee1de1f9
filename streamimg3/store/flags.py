"""Bit-flag selections such as ``~DO_NOT_USE+NON_SCIENCE`` (spec image3 §1)."""

from __future__ import annotations

import re

from streamimg3.errors import InputError
from streamimg3.store.layout import FLAGS

_ALL = 0xFFFFFFFF


def bad_bits(good: str | int | None) -> int:
    """Return the flags that exclude a pixel, given those that do not.

    Parameters
    ----------
    good : str, int or None
        Flags to be ignored: names or numbers joined by ``+``, ``,`` or ``|``; a leading ``~`` means all but these;
        None = ignore all flags.

    Raises
    ------
    InputError
        If a name is no JWST flag.

    Examples
    --------
    >>> bad_bits("~DO_NOT_USE+NON_SCIENCE")
    513
    """
    if good is None:
        return 0
    if isinstance(good, int):
        return _ALL & ~good
    text = good.strip()
    invert = text.startswith("~")
    total = 0
    for name in filter(None, re.split(r"[+,|]\s*", text.lstrip("~ ").strip("()"))):
        word = name.strip().upper()
        if not word.isdigit() and word not in FLAGS:
            raise InputError(
                f"good_bits names '{name}', which is no flag: use numbers or names such as {', '.join(list(FLAGS)[:5])}"
            )
        total |= int(word) if word.isdigit() else FLAGS[word]
    return total if invert else _ALL & ~total
