"""FITS written front to back: what another reader gets, how much is held, what happens on failure."""

from __future__ import annotations

import io
import threading
from functools import partial

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamimg3.formats.fits_stream import BLOCK, Image, Unit, Whole, primary, table, write_units

DTYPES = ("uint8", "int16", "int32", "uint32", "int64", "float32", "float64")


def _image(name: str, pixels: NDArray[np.generic], rows: int, cards: tuple[fits.Card, ...] = ()) -> Image:
    def read(lead: tuple[int, ...], y0: int, y1: int) -> NDArray[np.generic]:
        plane: NDArray[np.generic] = pixels[lead]
        return plane[y0:y1].copy()

    return Image(name, pixels.shape, pixels.dtype.name, read, rows, cards)


def _whole(pixels: NDArray[np.generic], lead: tuple[int, ...], y0: int, y1: int) -> NDArray[np.generic]:
    return pixels


def _written(units: list[Unit]) -> bytes:
    sink = io.BytesIO()
    assert write_units(sink, units) == len(sink.getvalue())
    return sink.getvalue()


def _noise(shape: tuple[int, ...], dtype: str, seed: int = 0) -> NDArray[np.generic]:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        values = rng.normal(size=shape).astype(dtype)
        values.flat[:: max(1, values.size // 3)] = np.nan
        return values
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 60)) | st.tuples(*[st.integers(1, 9)] * 3),
    rows=st.integers(1, 50),
)
@settings(max_examples=60, deadline=None)
def test_pixels_come_back_bit_for_bit(dtype: str, shape: tuple[int, ...], rows: int) -> None:
    """Any shape, type and height of bands reads back equal with astropy, in whole blocks."""
    pixels = _noise(shape, dtype)
    data = _written([primary([]), _image("SCI", pixels, rows)])
    assert len(data) % BLOCK == 0
    with fits.open(io.BytesIO(data)) as opened:
        opened.verify("exception")
        found = opened["SCI"].data
        assert found.dtype.name == dtype
        assert found.astype(dtype).tobytes() == pixels.tobytes()


def test_units_follow_each_other() -> None:
    """Several images, a cube plane by plane and a table between them, with their own cards in order."""
    sci, con, dq = _noise((50, 30), "float32"), _noise((3, 50, 30), "int32", 1), _noise((50, 30), "uint32", 2)
    packed = np.array([(1, b"ab"), (2, b"c")], [("n", ">i8"), ("s", "S2")])
    data = _written(
        [
            primary([fits.Card("TELESCOP", "JWST", "which one")]),
            _image("SCI", sci, 16, (fits.Card("BUNIT", "MJy/sr"), fits.Card("EXPTIME", 12.5))),
            _image("CON", con, 16),
            table("HDRTAB", [("N", "K"), ("S", "2A")], packed.tobytes(), 2),
            _image("DQ", dq, 16),
        ]
    )
    with fits.open(io.BytesIO(data)) as opened:
        opened.verify("exception")
        assert [hdu.name for hdu in opened] == ["PRIMARY", "SCI", "CON", "HDRTAB", "DQ"]
        assert list(opened["SCI"].header)[-4:] == ["EXTNAME", "BUNIT", "EXPTIME", "EXTVER"]
        np.testing.assert_array_equal(opened["SCI"].data, sci)
        np.testing.assert_array_equal(opened["CON"].data, con)
        np.testing.assert_array_equal(opened["DQ"].data, dq)
        assert list(opened["HDRTAB"].data["N"]) == [1, 2]
        assert list(opened["HDRTAB"].data["S"]) == ["ab", "c"]


def test_structure_is_astropys_own() -> None:
    """The structural cards, with their comments, are those that astropy writes."""
    dq = _noise((4, 5), "uint32")
    theirs = fits.ImageHDU(dq, name="DQ", ver=1)
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), theirs]).writeto(stream)
    stream.seek(0)
    with fits.open(stream) as a, fits.open(io.BytesIO(_written([primary([]), _image("DQ", dq, 9)]))) as b:
        for ours, expected in zip(b, a, strict=True):
            assert sorted(map(str, ours.header.cards)) == sorted(map(str, expected.header.cards))


def test_at_most_two_bands_are_held() -> None:
    """A band is read only when the one before the last has been written, across images too."""
    reads: list[int] = []
    most = 0

    class Slow(io.BytesIO):
        written = 0

        def write(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]
            nonlocal most
            if len(data) == 7 * 30 * 4:
                threading.Event().wait(0.005)  # time for the reader to run ahead, if it could
                most = max(most, len(reads) - self.written)
                self.written += 1
            return super().write(data)

    def read(lead: tuple[int, ...], y0: int, y1: int) -> NDArray[np.generic]:
        reads.append(y0)
        return np.zeros((y1 - y0, 30), np.float32)

    write_units(Slow(), [Image(name, (28, 30), "float32", read, 7) for name in ("SCI", "ERR")])
    assert len(reads) == 8
    assert most == 2


def test_failure_while_reading_is_passed_on() -> None:
    """What the background thread raises ends the writing."""

    def read(lead: tuple[int, ...], y0: int, y1: int) -> NDArray[np.generic]:
        if y0 > 0:
            raise OSError("shard is damaged")
        return np.zeros((y1 - y0, 5), np.float32)

    with pytest.raises(OSError, match="shard is damaged"):
        write_units(io.BytesIO(), [Image("SCI", (30, 5), "float32", read, 10)])


def test_failure_while_writing_is_passed_on() -> None:
    """A sink that refuses ends the writing; the reader does not hang."""

    class Full(io.BytesIO):
        def write(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_units(Full(), [_image("SCI", _noise((30, 5), "float32"), 10)])


@pytest.mark.parametrize("pixels", [np.zeros((10, 4), np.float32), np.zeros((10, 5), np.float64)])
def test_wrong_band_is_refused(pixels: NDArray[np.generic]) -> None:
    """A band of another width or type would shift everything after it."""
    image = Image("SCI", (10, 5), "float32", lambda lead, y0, y1: pixels[y0:y1], 10)
    with pytest.raises(ValueError, match="SCI rows 0-10"):
        write_units(io.BytesIO(), [image])


def test_bands_that_cannot_be_overwritten_are_copied() -> None:
    """Read-only and strided arrays may be handed over, and stay as they are."""
    pixels = _noise((6, 8), "uint32")
    for view in (np.broadcast_to(pixels[0], (6, 8)), np.asfortranarray(pixels)):
        before = view.copy()
        view.flags.writeable = False
        data = _written([primary([]), Image("DQ", (6, 8), "uint32", partial(_whole, view), 6)])
        with fits.open(io.BytesIO(data)) as opened:
            np.testing.assert_array_equal(opened["DQ"].data, before)
        np.testing.assert_array_equal(view, before)


def test_empty_table() -> None:
    """A table without rows is a valid unit."""
    data = _written([primary([]), table("T", [("A", "K")], b"", 0), Whole(fits.ImageHDU().header)])
    with fits.open(io.BytesIO(data)) as opened:
        assert len(opened["T"].data) == 0
