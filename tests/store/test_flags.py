"""Flag selections mean what astropy.nddata.bitmask makes of them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from astropy.nddata.bitmask import BitFlagNameMap, bitfield_to_boolean_mask, extend_bit_flag_map
from hypothesis import given, settings
from hypothesis import strategies as st

from streamimg3.errors import InputError
from streamimg3.store.flags import bad_bits
from streamimg3.store.layout import FLAGS

MAP = extend_bit_flag_map("JWST", BitFlagNameMap, **FLAGS)
EVERY_BIT = np.uint32(1) << np.arange(32, dtype=np.uint32)


def astropy_bad(good: str | int | None) -> int:
    """Bits that astropy takes as bad when ``good`` are to be ignored."""
    bad = bitfield_to_boolean_mask(EVERY_BIT, ignore_flags=good, flag_name_map=MAP)
    return int(EVERY_BIT[bad].sum(dtype=np.uint64))


flags = st.lists(st.sampled_from(sorted(FLAGS)), min_size=1, max_size=5, unique=True)


@settings(max_examples=60, deadline=None)
@given(
    names=flags,
    joint=st.sampled_from(["+", ",", "|"]),
    invert=st.booleans(),
    brackets=st.booleans(),
    number=st.booleans(),
)
def test_selections_equal_astropy(names: list[str], joint: str, invert: bool, brackets: bool, number: bool) -> None:
    text = joint.join(str(FLAGS[n]) if number else n for n in names)
    text = f"~({text})" if invert and brackets else f"~{text}" if invert else text
    assert bad_bits(text) == astropy_bad(text)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.booleans())
def test_integers_equal_astropy(value: int, invert: bool) -> None:
    value = ~value if invert else value
    assert bad_bits(value) == astropy_bad(value)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (None, 0),
        (0, 2**32 - 1),
        ("0", 2**32 - 1),
        ("", 2**32 - 1),
        ("~0", 0),
        ("~DO_NOT_USE+NON_SCIENCE", 513),
        ("~ do_not_use , non_science", 513),
        ("REFERENCE_PIXEL", 2**31 - 1),
    ],
)
def test_known_selections(good: str | int | None, bad: int) -> None:
    assert bad_bits(good) == bad


@pytest.mark.parametrize("good", ["DO_NOT_USER", "~HOT+COLD", "1.5", "-4"])
def test_unknown_names_are_refused(good: str) -> None:
    name = re.split(r"[~+]", good)[-1]
    with pytest.raises(InputError, match=f"good_bits names '{re.escape(name)}'"):
        bad_bits(good)


def test_flags_are_single_bits() -> None:
    assert sorted(FLAGS.values()) == [2**k for k in range(32)]
