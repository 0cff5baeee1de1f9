"""AREA reference files: relative pixel areas, always cut at the exposure's place on the detector (spec others §1.5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from streamimg3.formats.fits_file import number
from streamimg3.formats.reference_image import PlaneReader, Subarray, cut, open_reference, science_hdu
from streamimg3.geometry import Box


@dataclass(frozen=True)
class Area:
    """What is known of an area map for one sub-array before a pixel of it is read.

    Parameters
    ----------
    url : str
        The file.
    box : Box
        Its pixels that belong to the exposure.
    pixar_sr, pixar_a2 : float or None
        Nominal pixel area in steradian and square arcsec, as its header says.
    notes : tuple of str
        What the header lacks.
    """

    url: str
    box: Box
    pixar_sr: float | None
    pixar_a2: float | None
    notes: tuple[str, ...] = ()


def inspect_area(url: str, science: Subarray, options: Mapping[str, str]) -> Area:
    """Look at an area map without reading its pixels.

    Parameters
    ----------
    url : str
        Path or URL.
    science : Subarray
        Where the exposure lies; the map is taken for one of the full detector, whatever its own sub-array keywords say.
    options : mapping of str to str
        Storage options for remote URLs.

    Raises
    ------
    InputError
        If it is no area reference file, does not reach over the exposure, or a pixel area is no finite number.
    """
    with open_reference(url, options, "area") as file:
        _, shape = science_hdu(file)
        box = cut(Subarray((0, 0), shape), science, url)
        header = file.hdus[0].header
        values = {keyword: number(header, keyword, url) for keyword in ("PIXAR_SR", "PIXAR_A2")}
    notes = tuple(f"{url}: has no {keyword}" for keyword, value in values.items() if value is None)
    return Area(url, box, values["PIXAR_SR"], values["PIXAR_A2"], notes)


@contextmanager
def open_area(area: Area, options: Mapping[str, str]) -> Iterator[PlaneReader]:
    """Open an inspected area map; `PlaneReader.floats` gives its rows, float32.

    Raises
    ------
    InputError
        If the file has gone or is no area map any more.
    """
    with open_reference(area.url, options, "area") as file:
        hdu, _ = science_hdu(file)
        yield PlaneReader(file, hdu, area.box)
