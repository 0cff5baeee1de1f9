"""A world coordinate system as a value: its text travels, the object behind it is built where it is needed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError
from streamimg3.sky import corrected_fits, corrected_gwcs
from streamimg3.sky.correction import Correction

if TYPE_CHECKING:
    import gwcs

F8 = NDArray[np.float64]
Bounds = tuple[tuple[float, float], tuple[float, float]]


class Projection(Protocol):
    """What the object behind a WCS can do; positions are 0-based pixels and ICRS degrees."""

    bounds: Bounds | None

    def to_sky(self, y: F8, x: F8, bounded: bool) -> tuple[F8, F8]:
        """Right ascension and declination in degrees; NaN outside the bounding box if ``bounded``."""

    def to_pixel(self, ra: F8, dec: F8) -> tuple[F8, F8]:
        """Rows and columns."""


@dataclass(frozen=True)
class Wcs:
    """A gWCS (ASDF bytes) or a FITS WCS (header cards) for an array of ``shape`` (ny, nx).

    Parameters
    ----------
    kind : {"gwcs", "fits"}
        What ``text`` holds.
    text : bytes
        An ASDF file with the gWCS under ``meta.wcs`` or ``wcs``; or 80-character FITS cards, followed by the mark
        ``TABLES`` and a FITS file with look-up tables where the WCS has those.
    shape : tuple of int
        Rows and columns of the image.
    correction : Correction or None
        What a later step has added to it; everything here gives the corrected positions.
    """

    kind: Literal["gwcs", "fits"]
    text: bytes
    shape: tuple[int, int]
    correction: Correction | None = None

    TABLES: ClassVar[bytes] = b"\0TABLES\0"

    @property
    def projection(self) -> Projection:
        """The object that computes; built once per process and text."""
        return _build(self)

    @property
    def uncorrected(self) -> Wcs:
        """The WCS as it was before any correction."""
        return self if self.correction is None else replace(self, correction=None)

    @property
    def bounds(self) -> Bounds | None:
        """Bounding box ``((y_low, y_high), (x_low, x_high))`` in pixels, or None."""
        return self.projection.bounds

    def to_sky(self, y: F8, x: F8, bounded: bool = True) -> tuple[F8, F8]:
        """Map pixels to the sky.

        Parameters
        ----------
        y, x : ndarray of float64
            0-based positions.
        bounded : bool
            Give NaN outside the bounding box.

        Returns
        -------
        ra, dec : ndarray of float64
            ICRS, degrees.
        """
        return self.projection.to_sky(y, x, bounded)

    def to_pixel(self, ra: F8, dec: F8) -> tuple[F8, F8]:
        """Map ICRS positions (degrees) to 0-based rows and columns, regardless of any bounding box."""
        return self.projection.to_pixel(ra, dec)

    @property
    def model(self) -> gwcs.WCS:
        """The gWCS that computes, for those who only read it: it is made once per process (see :meth:`gwcs`)."""
        projection = self.projection
        return projection.wcs if isinstance(projection, GwcsProjection) else self.gwcs()

    def gwcs(self) -> gwcs.WCS:
        """Return a copy of the gWCS itself, with the correction as one of its steps.

        Raises
        ------
        InputError
            If this is a FITS WCS.
        """
        if self.kind != "gwcs":
            raise InputError("this exposure has a FITS WCS, not a gWCS")
        found = _load_gwcs(self.text)
        if self.correction is None:
            return found
        needed = self.correction.origin is None and self.correction.kind != "moving"
        return corrected_gwcs.corrected(found, self.correction, self._centre if needed else (0.0, 0.0))

    def cards(self) -> bytes:
        """Return the FITS form of ``text`` with the correction worked into its keywords.

        Raises
        ------
        InputError
            If this is a gWCS, or a header cannot carry the correction.
        """
        if self.kind != "fits":
            raise InputError("this exposure has a gWCS, not a FITS WCS")
        if self.correction is None:
            return self.text
        return corrected_fits.corrected(self.text, self.shape, self.correction, self._centre)

    @property
    def _centre(self) -> tuple[float, float]:
        """Right ascension and declination (degrees) of the image's centre before the correction."""
        y, x = ((n - 1) / 2 for n in self.shape)
        ra, dec = self.uncorrected.to_sky(np.array([y]), np.array([x]), bounded=False)
        return float(ra[0]), float(dec[0])


@lru_cache(maxsize=32)
def _build(wcs: Wcs) -> Projection:
    return GwcsProjection(wcs.gwcs()) if wcs.kind == "gwcs" else FitsProjection(wcs.cards())


def _load_gwcs(text: bytes) -> gwcs.WCS:
    """Read the gWCS out of ASDF bytes, whatever arrays the rest of the tree refers to."""
    import asdf

    known = asdf.get_config()
    known.extensions, known.resource_manager  # noqa: B018 (looked up once here, otherwise anew in every context below)
    try:
        with asdf.config_context() as config:
            config.validate_on_read = False  # takes longer than reading; what does not fit fails below
            with asdf.open(io.BytesIO(text), lazy_load=True, ignore_unrecognized_tag=True) as tree:
                found = tree["wcs"] if "wcs" in tree else tree["meta"]["wcs"]
    except Exception as error:  # asdf, its YAML and its converters have errors of their own
        line = " ".join(str(error).split())[:200]
        raise InputError(f"its gWCS cannot be read ({type(error).__name__}: {line})") from error
    if not hasattr(found, "forward_transform"):
        raise InputError("the ASDF text holds no gWCS that this installation can read")
    return found


class GwcsProjection:
    """A gWCS with rows before columns."""

    def __init__(self, wcs: gwcs.WCS) -> None:
        self.wcs = wcs
        box = getattr(wcs, "bounding_box", None)
        if box is None:
            self.bounds: Bounds | None = None
        else:
            intervals = box.bounding_box(order="C")
            (y0, y1), (x0, x1) = ((float(a), float(b)) for a, b in intervals)
            self.bounds = ((y0, y1), (x0, x1))

    def to_sky(self, y: F8, x: F8, bounded: bool) -> tuple[F8, F8]:
        """See :class:`Projection`."""
        ra, dec = self.wcs(x, y, with_bounding_box=bounded)
        return ra, dec

    def to_pixel(self, ra: F8, dec: F8) -> tuple[F8, F8]:
        """See :class:`Projection`."""
        x, y = self.wcs.invert(ra, dec, with_bounding_box=False)
        return y, x


class FitsProjection:
    """A FITS WCS through astropy (distortions included), in ICRS whatever its own frame."""

    bounds: Bounds | None = None

    def __init__(self, text: bytes) -> None:
        import warnings

        from astropy.io import fits
        from astropy.wcs import WCS, FITSFixedWarning
        from astropy.wcs.utils import wcs_to_celestial_frame

        cards, _, tables = text.partition(Wcs.TABLES)
        header = fits.Header.fromstring(cards.decode("ascii"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FITSFixedWarning)
            if tables:
                with fits.open(io.BytesIO(tables)) as hdus:
                    self.wcs = WCS(header, fobj=hdus)
            else:
                self.wcs = WCS(header)
        self.axes = tuple(
            sorted((self.wcs.wcs.lng + 1, self.wcs.wcs.lat + 1))
        )  # numbers in the header; there may be others
        if self.wcs.naxis > 2:
            self.wcs = self.wcs.celestial
        self._lon, self._lat = self.wcs.wcs.lng, self.wcs.wcs.lat  # the axes may be in either order
        if not self.wcs.has_celestial:
            raise InputError("the header has no celestial WCS")
        frame = wcs_to_celestial_frame(self.wcs)
        self._frame = None if frame.name == "icrs" else frame

    def to_sky(self, y: F8, x: F8, bounded: bool) -> tuple[F8, F8]:
        """See :class:`Projection`; a FITS WCS has no bounding box."""
        return self.as_icrs(self.wcs.all_pix2world(x, y, 0))

    def to_pixel(self, ra: F8, dec: F8) -> tuple[F8, F8]:
        """See :class:`Projection`."""
        x, y = self.wcs.all_world2pix(*self.as_native(ra, dec), 0, tolerance=1e-9, maxiter=60, quiet=True)
        return y, x

    def as_icrs(self, world: Sequence[F8]) -> tuple[F8, F8]:
        """Turn world coordinates in the header's own frame and order of axes into ICRS right ascension, declination."""
        lon, lat = world[self._lon], world[self._lat]
        if self._frame is None:
            return lon, lat
        from astropy import units as u
        from astropy.coordinates import SkyCoord

        sky = SkyCoord(lon * u.deg, lat * u.deg, frame=self._frame).icrs
        return sky.ra.deg, sky.dec.deg

    def as_native(self, ra: F8, dec: F8) -> tuple[F8, F8]:
        """Turn ICRS positions into world coordinates in the header's own frame and order of axes."""
        if self._frame is not None:
            from astropy import units as u
            from astropy.coordinates import SkyCoord

            sky = SkyCoord(ra * u.deg, dec * u.deg, frame="icrs").transform_to(self._frame)
            ra, dec = sky.spherical.lon.deg, sky.spherical.lat.deg
        return (ra, dec) if self._lon == 0 else (dec, ra)
