"""What an exposure source is: one detector image with its planes, cards and facts, and how files turn into sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import InputError

if TYPE_CHECKING:
    from streamimg3.formats.association import Member

Fact = str | int | float | bool | None

PLANES = ("sci", "err", "dq", "var_poisson", "var_rnoise", "var_flat", "area", "weight", "wavelength")

RECORD_FIELDS = (
    "exposure_time",
    "measurement_time",
    "duration",
    "start_mjd",
    "end_mjd",
    "bunit",
    "bkglevel",
    "bkgsub",
    "bkgmeth",
    "s_region",
    "pixar_sr",
    "pixar_a2",
    "ra_ref",
    "dec_ref",
    "roll_ref",
    "v3yangle",
    "vparity",
    "targtype",
    "mt_ra",
    "mt_dec",
    "telescop",
    "instrume",
    "detector",
    "filter",
    "pupil",
    "exp_type",
    "group_id",
    "datamodl",
)


@dataclass(frozen=True)
class Plane:
    """One image plane, read in bands of rows.

    Parameters
    ----------
    name : str
        One of ``sci err dq var_poisson var_rnoise var_flat area weight``.
    dtype : {"float32", "uint32"}
        uint32 for ``dq``, float32 for all others.
    read : callable
        ``read(y0, y1)`` returns rows ``y0..y1`` (half-open, 0-based) as an array of shape ``(y1 - y0, nx)`` in this
        dtype, native byte order, C-contiguous. Not for use from several threads at once.
    """

    name: str
    dtype: Literal["float32", "uint32"]
    read: Callable[[int, int], NDArray[np.float32] | NDArray[np.uint32]] = field(repr=False)


@dataclass(frozen=True)
class CubePlane:
    """One plane of a cube of integrations, read in blocks.

    Parameters
    ----------
    name : str
        One of ``sci err dq var_poisson var_rnoise var_flat``.
    dtype : {"float32", "uint32"}
        As for `Plane`.
    read : callable
        ``read(first, last, y0, y1)`` returns rows ``y0..y1`` of integrations ``first..last`` (half-open, 0-based) as an
        array of shape ``(last - first, y1 - y0, nx)`` in this dtype, native byte order, C-contiguous.
    """

    name: str
    dtype: Literal["float32", "uint32"]
    read: Callable[[int, int, int, int], NDArray[np.float32] | NDArray[np.uint32]] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Cube:
    """What a cube has for each integration.

    Parameters
    ----------
    planes : tuple of CubePlane
        ``sci`` first; absent planes are not listed.
    numbers : ndarray of int32, shape (count,)
        Number of each integration in its exposure, from 1.
    times : ndarray of float64, shape (count, 6)
        Start, middle and end in MJD (UTC), then the same in barycentric MJD (TDB), days; NaN where unknown.
    """

    planes: tuple[CubePlane, ...]
    numbers: NDArray[np.int32]
    times: NDArray[np.float64]

    @property
    def count(self) -> int:
        """Number of integrations."""
        return len(self.numbers)


@dataclass(frozen=True)
class Source:
    """One exposure of one detector, with its file open.

    Parameters
    ----------
    name : str
        Root of the file name; several chips of a file have ``_sci1``, ``_sci2`` ... or their extension's name added.
    filename, url : str
        File name without folder, and where it came from.
    shape : tuple of int
        ``(ny, nx)`` of every plane.
    planes : tuple of Plane
        ``sci`` first; absent planes are not listed.
    primary_cards, sci_cards : str
        The 80-character FITS cards of the two headers, joined, without END.
    asdf : bytes or None
        The ASDF extension's content (JWST files whose gWCS is there), unparsed.
    wcs_cards : str or None
        Where `asdf` is None: cards from which astropy rebuilds the WCS.
    wcs_tables : bytes or None
        Where the WCS uses look-up tables (HST): a FITS file with just those, to pass to astropy with `wcs_cards`.
    record : dict
        Facts from the headers; the keys are `RECORD_FIELDS`, None where unknown.
    notes : tuple of str
        What was missing and what is assumed instead.
    is_jwst : bool
        Whether keywords and DQ bits are JWST's.
    cube : Cube or None
        The integrations, where the exposure is a cube; ``planes`` are then those that all integrations share.
    """

    name: str
    filename: str
    url: str
    shape: tuple[int, int]
    planes: tuple[Plane, ...]
    primary_cards: str
    sci_cards: str
    asdf: bytes | None
    wcs_cards: str | None
    wcs_tables: bytes | None
    record: dict[str, Fact]
    notes: tuple[str, ...]
    is_jwst: bool
    cube: Cube | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all planes, those of the integrations first."""
        deep = [plane.name for plane in self.cube.planes] if self.cube else []
        return (*deep, *(plane.name for plane in self.planes))

    def plane(self, name: str) -> Plane | None:
        """Return the plane of this name, or None."""
        return next((plane for plane in self.planes if plane.name == name), None)


Opener = Callable[["Member", Mapping[str, str]], AbstractContextManager[list[Source]]]  # of a member's exposures


@contextmanager
def open_sources(member: Member, options: Mapping[str, str], bare: bool = False) -> Iterator[list[Source]]:
    """Open a member's file and list the exposures in it; pixels are read only through the planes.

    Parameters
    ----------
    member : Member
        What to open; its `group_id`, `weight` and `dq` win over what the file says.
    options : mapping of str to str
        Storage options for remote URLs.
    bare : bool
        Only JWST's own files are taken, and they need not have a WCS (see `jwst_source`).

    Yields
    ------
    list of Source
        One for a JWST file; one per chip for others. Their planes can be read until the context ends.

    Raises
    ------
    InputError
        If the file is not FITS, is truncated, holds no 2-D image nor a cube of integrations, has no celestial or no finite
        WCS, or its planes differ in shape.
    """
    from streamimg3.formats.fits_file import open_fits, readable_cards
    from streamimg3.formats.generic_fits import generic_sources, with_companions
    from streamimg3.formats.jwst_fits import is_jwst, jwst_source

    with open_fits(member.url, options) as file:
        with readable_cards(member.url):
            jwst = is_jwst(file, unnamed=bare)
            if bare and not jwst:
                raise InputError(
                    f"{member.url}: is no JWST exposure with a SCI extension; give _rate or _rateints files"
                )
            sources = [jwst_source(file, bare)] if jwst else generic_sources(file)
        if any(source.cube for source in sources) and (member.weight or member.dq):
            raise InputError(
                f"{member.url}: is a cube of integrations, which takes no weight or DQ map; take it out of the association"
            )
        with with_companions(sources, member, options) as completed:
            yield [_grouped(source, member.group_id) for source in completed]


def _grouped(source: Source, group_id: str | None) -> Source:
    return source if group_id is None else replace(source, record={**source.record, "group_id": group_id})
