"""Images of reference files: where a science sub-array lies in them, and their planes read in bands of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.formats.fits_file import FitsFile, Hdu, names_of, number, open_fits
from streamimg3.geometry import Box

_FULL_FRAME = {"MIRI": (1024, 1032)}
_KEYWORDS = ("SUBSTRT2", "SUBSTRT1", "SUBSIZE2", "SUBSIZE1")


@dataclass(frozen=True)
class Subarray:
    """Where on the detector an image lies.

    Parameters
    ----------
    corner : tuple of int
        ``(y, x)`` of its first pixel on the detector, 0-based: SUBSTRT2 - 1, SUBSTRT1 - 1.
    shape : tuple of int
        ``(ny, nx)`` of the image.
    """

    corner: tuple[int, int]
    shape: tuple[int, int]

    @property
    def box(self) -> Box:
        """Its pixels on the detector."""
        return Box.of_shape(self.shape).shift(*self.corner)

    def __str__(self) -> str:
        (y, x), (ny, nx) = self.corner, self.shape
        return f"SUBSTRT1 {x + 1}, SUBSTRT2 {y + 1}, size {nx} x {ny}"


def subarray_of(header: fits.Header, shape: tuple[int, int], label: str) -> Subarray:
    """Return where an image lies on its detector (spec others §0.5).

    Parameters
    ----------
    header : astropy.io.fits.Header
        Primary header with SUBSTRT1/2, SUBSIZE1/2 and INSTRUME; a size that is not the image's is ignored.
    shape : tuple of int
        ``(ny, nx)`` of the image itself.
    label : str
        The file, for messages.

    Raises
    ------
    InputError
        If one of the four keywords is missing and the image is no full frame, or a start is below 1.
    """
    start_y, start_x, *sizes = (number(header, keyword, label) for keyword in _KEYWORDS)
    if start_y is None or start_x is None or None in sizes:
        full = _FULL_FRAME.get(str(header.get("INSTRUME", "")).strip().upper(), (2048, 2048))
        if shape != full:
            raise InputError(
                f"{label}: has no {'/'.join(_KEYWORDS)} and is {shape[1]} x {shape[0]}, no full frame: "
                "where it lies on the detector is unknown; add the keywords"
            )
        return Subarray((0, 0), shape)
    if start_x < 1 or start_y < 1:
        raise InputError(f"{label}: SUBSTRT1 {start_x:g}, SUBSTRT2 {start_y:g} are below 1; correct the header")
    return Subarray((int(start_y) - 1, int(start_x) - 1), shape)


def cut(reference: Subarray, science: Subarray, label: str) -> Box:
    """Return the pixels of a reference image that belong to a science image (spec others §0.5).

    Raises
    ------
    InputError
        If part of the science image lies outside the reference image.
    """
    box = science.box.shift(-reference.corner[0], -reference.corner[1])
    if box.intersect(Box.of_shape(reference.shape)) != box:
        raise InputError(
            f"{label}: does not cover the exposure's pixels (reference {reference}; exposure {science}); "
            "give a reference file of this sub-array or of the full frame"
        )
    return box


@dataclass(frozen=True)
class PlaneReader:
    """One plane of an open reference file, as the science image sees it.

    Parameters
    ----------
    file : FitsFile
        Open.
    hdu : Hdu or None
        The image; None = the file has none, every pixel is `fill`.
    box : Box
        Its part that belongs to the science image.
    fill : float
        Value of an absent plane.
    """

    file: FitsFile
    hdu: Hdu | None
    box: Box
    fill: float = 0.0

    def floats(self, y0: int, y1: int) -> NDArray[np.float32]:
        """Return rows ``y0..y1`` of the science image, float32 ``(y1 - y0, nx)``."""
        if self.hdu is None:
            return np.full((y1 - y0, self.box.shape[1]), self.fill, np.float32)
        rows = self.file.plane(self.hdu, "sci").read(self.box.y0 + y0, self.box.y0 + y1)
        return np.ascontiguousarray(rows[:, self.box.x0 : self.box.x1], np.float32)

    def flags(self, y0: int, y1: int) -> NDArray[np.uint32]:
        """Return rows ``y0..y1`` of the science image, uint32 ``(y1 - y0, nx)``."""
        if self.hdu is None:
            return np.zeros((y1 - y0, self.box.shape[1]), np.uint32)
        rows = self.file.plane(self.hdu, "dq").read(self.box.y0 + y0, self.box.y0 + y1)
        return np.ascontiguousarray(rows[:, self.box.x0 : self.box.x1], np.uint32)


@contextmanager
def open_reference(url: str, options: Mapping[str, str], reftype: str, strict: bool = True) -> Iterator[FitsFile]:
    """Open a FITS reference file; a file of another type is refused.

    Raises
    ------
    InputError
        If it is not FITS, is damaged, or its REFTYPE is missing (unless not `strict`) or another one.
    """
    with open_fits(url, options) as file:
        found = str(file.hdus[0].header.get("REFTYPE", "")).strip().lower()
        if found != reftype and (found or strict):
            what = f"a {found} reference file" if found else "no reference file (it has no REFTYPE)"
            article = "an" if reftype[0] in "aeio" else "a"
            raise InputError(f"{url}: is {what}; {article} {reftype} file is needed")
        yield file


def image_hdu(file: FitsFile, name: str, shape: tuple[int, int] | None = None) -> Hdu | None:
    """Return a 2-D image of a reference file, or None if there is none of this name.

    Raises
    ------
    InputError
        If it is no 2-D image, or not of the shape of the SCI image.
    """
    hdu = file.find(name)
    if hdu is None:
        return None
    if len(hdu.shape) != 2:
        raise InputError(f"{file.url}: {name} is no 2-D image (it has {names_of(file.hdus)}); give another file")
    if shape is not None and hdu.shape != shape:
        raise InputError(f"{file.url}: {name} is {hdu.shape} and SCI is {shape}; the file is damaged, give another one")
    return hdu


def science_hdu(file: FitsFile) -> tuple[Hdu, tuple[int, int]]:
    """Return the SCI image of a reference file and its ``(ny, nx)``.

    Raises
    ------
    InputError
        If there is none, or it is not 2-D.
    """
    hdu = image_hdu(file, "SCI")
    if hdu is None:
        raise InputError(f"{file.url}: has no image SCI (it has {names_of(file.hdus)}); give another reference file")
    return hdu, (hdu.shape[0], hdu.shape[1])
