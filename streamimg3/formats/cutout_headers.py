"""FITS headers of stamps: made once, with only the numbers that differ filled in, so that a file takes microseconds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from streamimg3.formats.cutouts import Stamps
from streamimg3.store.layout import PLANES

_KINDS = {"float32": -32, "int32": 32, "uint16": 16, "uint32": 32, "uint8": 8}


class Heads:
    """FITS headers of stamps: made once, with only the numbers that differ filled in."""

    def __init__(self, stamps: Stamps) -> None:
        self.stamps = stamps
        self.single = len(stamps.planes) == 1
        self._templates = {p: self._template(p, extension=False) for p in stamps.planes[:1]} if self.single else {}
        self._extensions = {p: self._template(p, extension=True) for p in stamps.planes}

    def empty_primary(self) -> bytes:
        """Return a primary unit without data."""
        from astropy.io import fits

        cards = [("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0), ("EXTEND", True)]
        return bytes(fits.Header(cards).tostring().encode("ascii"))

    def file(self, i: int, pixels: Mapping[str, NDArray[np.generic]]) -> bytes:
        """Return the bytes of a file with one stamp: one plane is the primary image, several are extensions."""
        if self.single:
            plane = self.stamps.planes[0]
            return self._filled(self._templates[plane], i, 1) + _data(pixels[plane])
        return self.empty_primary() + b"".join(self.unit(i, p, pixels[p], 1) for p in self.stamps.planes)

    def unit(self, i: int, plane: str, pixels: NDArray[np.generic], version: int) -> bytes:
        """Return the bytes of an extension with one plane of a stamp."""
        return self._filled(self._extensions[plane], i, version) + _data(pixels)

    def _template(self, plane: str, extension: bool) -> tuple[bytes, dict[str, int]]:
        """A header, and where the cards that differ begin."""
        from astropy.io import fits

        stamps = self.stamps
        dtype = PLANES[plane].dtype
        first = ("XTENSION", "IMAGE") if extension else ("SIMPLE", True)
        cards: list[tuple[str, object]] = [first, ("BITPIX", _KINDS[dtype]), ("NAXIS", 2)]
        cards += [("NAXIS1", stamps.shape[1]), ("NAXIS2", stamps.shape[0])]
        cards += [("PCOUNT", 0), ("GCOUNT", 1)] if extension else []
        if dtype in ("uint16", "uint32"):
            cards += [("BSCALE", 1), ("BZERO", 2**15 if dtype == "uint16" else 2**31)]
        cards += [("EXTNAME", plane.upper())] if extension else []
        cards += [("BUNIT", stamps.units[stamps.planes.index(plane)]), ("WCSAXES", 2)]
        cards += [(k, v) for k, v in (stamps.cards or {}).items() if not k.startswith("CRPIX")]
        cards += [("RADESYS", "ICRS"), ("CRPIX1", 0.0), ("CRPIX2", 0.0), ("OBJECT", "")]
        cards += [("RA_SRC", 0.0), ("DEC_SRC", 0.0), ("LTV1", 0), ("LTV2", 0)]
        cards += [("EXTVER", 1)] if extension else []
        text = fits.Header([fits.Card(k, v) for k, v in cards]).tostring()  # type: ignore[arg-type]
        places = {text[n : n + 8].rstrip(): n for n in range(0, len(text), 80)}
        return text.encode("ascii"), places

    def _filled(self, template: tuple[bytes, dict[str, int]], i: int, version: int) -> bytes:
        text, places = template
        stamps, cards = self.stamps, self.stamps.cards or {}
        y0, x0 = stamps.corner[i].tolist()
        name = stamps.positions.names[i].encode("ascii", "replace").decode().replace("'", "''")[:66]
        values = {
            "CRPIX1": _number(float(cards["CRPIX1"]) - x0), "CRPIX2": _number(float(cards["CRPIX2"]) - y0),
            "OBJECT": f"'{name:8s}'", "RA_SRC": _number(float(stamps.positions.ra[i])),
            "DEC_SRC": _number(float(stamps.positions.dec[i])), "LTV1": f"{-x0:>20d}", "LTV2": f"{-y0:>20d}",
            "EXTVER": f"{version:>20d}",
        }  # fmt: skip
        made = bytearray(text)
        for key, value in values.items():
            at = places.get(key)
            if at is not None:
                made[at : at + 80] = f"{key:8s}= {value:<70s}".encode("ascii")
        return bytes(made)


def _number(value: float) -> str:
    """A number as FITS writes it, without loss."""
    text = repr(value).upper()
    return f"{text if '.' in text or 'E' in text else text + '.0':>20s}"


def _data(pixels: NDArray[np.generic]) -> bytes:
    """Big-endian pixels, filled up to a block."""
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize > 1:
        signed = np.dtype(f">i{pixels.dtype.itemsize}")
        shifted = pixels.astype(np.int64) - 2 ** (8 * pixels.dtype.itemsize - 1)
        data: bytes = shifted.astype(signed).tobytes()
    else:
        data = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    return data + bytes(-len(data) % 2880)
