"""FLAT reference files: the part that belongs to an exposure, read in bands, with JWST's own flags (spec others §1.4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.formats.fits_file import FitsFile, quietly
from streamimg3.formats.local_copy import one_line
from streamimg3.formats.reference_image import (
    PlaneReader,
    Subarray,
    cut,
    image_hdu,
    open_reference,
    science_hdu,
    subarray_of,
)
from streamimg3.geometry import Box
from streamimg3.store.layout import FLAGS

_BAND = 256  # rows looked at together


@dataclass(frozen=True)
class Flat:
    """What is known of a flat for one sub-array before a pixel of it is read; small enough to send to a worker.

    Parameters
    ----------
    url : str
        The file.
    box : Box or None
        Its pixels that belong to the exposure; None = the step is skipped.
    reason : str
        Why it is skipped; "" = it is not.
    flags : tuple of (int, int) or None
        From DQ_DEF: a bit in the file and JWST's flag of that name; None = the file's bits are JWST's.
    notes : tuple of str
        What is missing in the file and what is assumed instead.
    own : bool
        It is the user's own, which need not be a reference file.
    """

    url: str
    box: Box | None
    reason: str = ""
    flags: tuple[tuple[int, int], ...] | None = None
    notes: tuple[str, ...] = ()
    own: bool = False


@dataclass(frozen=True)
class FlatBand:
    """Some rows of a flat.

    Parameters
    ----------
    sci, err : ndarray
        float32 ``(rows, nx)``; NaN where the file has NaN.
    dq : ndarray
        uint32 ``(rows, nx)``, JWST's flags.
    """

    sci: NDArray[np.float32]
    err: NDArray[np.float32]
    dq: NDArray[np.uint32]


@dataclass(frozen=True)
class FlatReader:
    """An open flat, cut to an exposure's sub-array."""

    sci: PlaneReader
    err: PlaneReader
    dq: PlaneReader
    flags: tuple[tuple[int, int], ...] | None

    def read(self, y0: int, y1: int) -> FlatBand:
        """Return the flat of rows ``y0..y1`` of the exposure."""
        dq = self.dq.flags(y0, y1)
        if self.flags is not None:
            dq = translate(dq, self.flags)
        return FlatBand(self.sci.floats(y0, y1), self.err.floats(y0, y1), dq)


def inspect_flat(url: str, science: Subarray, options: Mapping[str, str], own: bool = False) -> Flat:
    """Look at a flat without reading its pixels.

    Parameters
    ----------
    url : str
        Path or URL.
    science : Subarray
        Where the exposure lies on its detector.
    options : mapping of str to str
        Storage options for remote URLs.
    own : bool
        It is the user's own, which need not be a reference file.

    Returns
    -------
    Flat
        With a `reason` if the flat is smaller than the exposure: then the step is skipped.

    Raises
    ------
    InputError
        If it is no flat reference file, or does not cover the exposure although it is large enough.
    """
    with open_reference(url, options, "flat", strict=not own) as file:
        _, shape = science_hdu(file)
        if shape[0] < science.shape[0] or shape[1] < science.shape[1]:
            sizes = f"{shape[1]} x {shape[0]}", f"{science.shape[1]} x {science.shape[0]}"
            return Flat(url, None, f"{url}: the flat ({sizes[0]}) is smaller than the exposure ({sizes[1]})", own=own)
        box = cut(subarray_of(file.hdus[0].header, shape, url), science, url)
        absent = [name for name in ("ERR", "DQ") if image_hdu(file, name, shape) is None]
        notes = [f"{url}: has no {name}, taken as 0" for name in absent]
        flags, unknown = definitions(file)
        if unknown:
            notes.append(f"{url}: left out what DQ_DEF names otherwise than JWST's flags ({', '.join(unknown)})")
        return Flat(url, box, flags=flags, notes=tuple(notes), own=own)


@contextmanager
def open_flat(flat: Flat, options: Mapping[str, str]) -> Iterator[FlatReader]:
    """Open an inspected flat for reading in bands.

    Raises
    ------
    ValueError
        If the flat is one for which the step is skipped.
    InputError
        If the file has gone or changed its shape.
    """
    if flat.box is None:
        raise ValueError(flat.reason)
    with open_reference(flat.url, options, "flat", strict=not flat.own) as file:
        sci, shape = science_hdu(file)
        err, dq = image_hdu(file, "ERR", shape), image_hdu(file, "DQ", shape)
        planes = [PlaneReader(file, hdu, flat.box) for hdu in (sci, err, dq)]
        yield FlatReader(planes[0], planes[1], planes[2], flat.flags)


def check_flat(flat: Flat, options: Mapping[str, str]) -> None:
    """Read a flat once, in bands, and refuse it if no pixel of it can be used.

    Raises
    ------
    InputError
        If every pixel in the exposure's sub-array is NaN or 0.
    """
    if flat.box is None:
        return
    ny, nx = flat.box.shape
    with open_flat(flat, options) as reader:
        for y0 in range(0, ny, _BAND):
            rows = reader.sci.floats(y0, min(ny, y0 + _BAND))
            if (np.isfinite(rows) & (rows != 0)).any():
                return
    raise InputError(
        f"{flat.url}: every flat value is NaN or 0 in the exposure's {nx} x {ny} pixels; give another flat"
    )


def translate(dq: NDArray[np.uint32], flags: Sequence[tuple[int, int]]) -> NDArray[np.uint32]:
    """Return flags in JWST's bits.

    Parameters
    ----------
    dq : ndarray
        uint32, bits as the file defines them.
    flags : sequence of (int, int)
        A bit in the file and what it becomes; bits that are not listed disappear.
    """
    out = np.zeros_like(dq)
    for bit, standard in flags:
        out |= np.where(dq & np.uint32(bit), np.uint32(standard), np.uint32(0))
    return out


def definitions(file: FitsFile) -> tuple[tuple[tuple[int, int], ...] | None, list[str]]:
    """Return what DQ_DEF says as (bit, JWST flag), and names that are no JWST flags; None if there is no DQ_DEF.

    Raises
    ------
    InputError
        If the table cannot be read or lacks a column.
    """
    hdu = file.find("DQ_DEF")
    if hdu is None:
        return None, []
    try:
        with quietly():
            table = file.opened[hdu.index].data
            rows = [] if table is None else list(zip(table["VALUE"], table["NAME"], strict=True))
    except (KeyError, ValueError, TypeError, OSError) as exc:
        raise InputError(f"{file.url}: DQ_DEF cannot be read ({one_line(exc)}); give another reference file") from exc
    pairs = [(int(value) & 0xFFFFFFFF, str(name).strip().upper()) for value, name in rows]
    known = tuple((value, FLAGS[name]) for value, name in pairs if name in FLAGS)
    return known if pairs else None, [name for _, name in pairs if name and name not in FLAGS]
