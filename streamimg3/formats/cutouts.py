"""Stamps of the mosaic around positions: read chunk by chunk, written one FITS file each, as one FITS file, or as one array.

Positions are worked through in blocks of the mosaic, each of which is read once, in batches that fit into the memory; the
result is in the order of the positions. What a stamp has outside the mosaic is NaN (0 in planes of flags and counts).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamimg3.errors import BudgetError, InputError
from streamimg3.geometry import Box
from streamimg3.sky.wcs import Wcs
from streamimg3.store import Observation
from streamimg3.store.documents import ResampleDocument
from streamimg3.store.layout import PLANES

F8 = NDArray[np.float64]
Ints = NDArray[np.int64]
BLOCK = 2048  # pixels of the mosaic that are read at a time along each side, at least


@dataclass(frozen=True, eq=False)
class Positions:
    """Positions on the sky (degrees, ICRS) and their names."""

    ra: F8
    dec: F8
    names: tuple[str, ...]

    @classmethod
    def of(cls, ra: Sequence[float] | F8, dec: Sequence[float] | F8, names: Sequence[object] = ()) -> Positions:
        """Return positions named by ``names``, or by their number from 1.

        Examples
        --------
        >>> Positions.of([10.0, 11.0], [0.0, 1.0]).names
        ('1', '2')
        """
        lon, lat = (np.atleast_1d(np.asarray(v, float)) for v in (ra, dec))
        if lon.shape != lat.shape or lon.ndim != 1 or not (np.isfinite(lon) & np.isfinite(lat)).all():
            raise InputError("give as many right ascensions as declinations, all of them finite numbers")
        told = tuple(str(n) for n in names) if len(names) else tuple(str(i + 1) for i in range(len(lon)))
        return cls(lon, lat, told)


@dataclass(frozen=True, eq=False)
class Stamps:
    """What is to be cut out of a mosaic.

    ``corner`` (n, 2) holds the first row and column of each stamp, which may lie outside; ``planes`` names, ``dtypes`` and
    ``units`` belong together; ``cards`` are the mosaic's WCS keywords, None where FITS keywords cannot say it.
    """

    observation: Observation
    path: str
    mosaic: tuple[int, int]
    shape: tuple[int, int]
    positions: Positions
    corner: Ints
    planes: tuple[str, ...]
    units: tuple[str, ...]
    cards: Mapping[str, float | str] | None

    def __len__(self) -> int:
        return len(self.corner)

    @property
    def inside(self) -> NDArray[np.bool_]:
        """Which stamps have a pixel of the mosaic."""
        return _reaching(self.corner, self.shape, self.mosaic)

    @property
    def nbytes(self) -> int:
        """Bytes of one stamp with all its planes."""
        return int(np.prod(self.shape)) * sum(np.dtype(PLANES[p].dtype).itemsize for p in self.planes)


def plan_stamps(
    obs: Observation, positions: Positions, size: str | float | tuple[int, int], planes: Sequence[str] = ("sci",)
) -> Stamps:
    """Work out which pixels stamps are made of; reads metadata only.

    Parameters
    ----------
    obs : Observation
        A store with a finished mosaic.
    positions : Positions
        Their middles: the pixel whose centre is nearest (of even sizes, the corner between the middle pixels).
    size : str, float or pair of int
        Side on the sky (``5arcsec``; a number is arcsec) or in pixels (``64pix``), or rows and columns.
    planes : sequence of str
        Planes of the mosaic.

    Raises
    ------
    InputError
        If there is no mosaic or no such plane, or no position is on it.
    """
    from streamimg3.sky.positions import parse_size

    document = obs.document(ResampleDocument)
    if document is None:
        raise InputError(f"{obs.url} holds no finished mosaic: run image3 first")
    known = (*document.planes, "segmentation") if _has(obs, f"{document.path}/segmentation") else document.planes
    wrong = [p for p in planes if p not in known or p == "con"]
    if wrong or not planes:
        raise InputError(f"no plane {', '.join(wrong) or 'given'}: the mosaic has {', '.join(known)}")
    side = size if isinstance(size, tuple) else (parse_size(size, document.pixel_scale),) * 2
    wcs = Wcs("gwcs", document.wcs_asdf.encode("latin-1"), document.shape)
    y, x = wcs.to_pixel(positions.ra, positions.dec)
    corner = np.floor(np.stack([y - (side[0] - 1) / 2, x - (side[1] - 1) / 2], axis=1) + 0.5)
    far = ~np.isfinite(corner).all(axis=1)
    corner[far] = -10.0 * max(*side, *document.shape)
    units = tuple(str(obs.array(f"{document.path}/{p}").attrs["units"]) for p in planes)
    made = Stamps(
        obs, document.path, document.shape, side, positions, corner.astype(np.int64), tuple(planes), units,
        obs.attributes(document.path).get("wcs"),
    )  # fmt: skip
    if not made.inside.any():
        raise InputError(f"none of the {len(made)} positions is on the mosaic of {obs.url}")
    return made


def _has(obs: Observation, path: str) -> bool:
    return obs.backend.get(f"{path}/zarr.json") is not None


# ---------------------------------------------------------------- reading
def batches(stamps: Stamps, memory: int, multiple: int = 1) -> Iterator[slice]:
    """Yield the positions that are worked on together, so many that their stamps take half of the memory."""
    count = (memory - 3 * _block(stamps) ** 2 * 4) // (2 * stamps.nbytes) // multiple * multiple
    if count < multiple:
        need = 3 * _block(stamps) ** 2 * 4 + 2 * multiple * stamps.nbytes - memory
        raise BudgetError(
            f"the memory cannot hold the cut-outs: give at least {-(-need // 2**20)} MiB more by --memory"
        )
    for start in range(0, len(stamps), count):
        yield slice(start, min(start + count, len(stamps)))


def _block(stamps: Stamps) -> int:
    return max(BLOCK, 4 * max(stamps.shape))


def read(stamps: Stamps, which: slice) -> dict[str, NDArray[np.generic]]:
    """Return the stamps of some positions, ``(positions, rows, columns)`` by plane, in the planes' own types."""
    corner = stamps.corner[which]
    made: dict[str, NDArray[np.generic]] = {}
    groups = list(_grouped(corner, stamps))
    for plane in stamps.planes:
        kind = PLANES[plane]
        out = np.full((len(corner), *stamps.shape), kind.fill, kind.dtype)
        for members, window in groups:
            pixels = stamps.observation.window(f"{stamps.path}/{plane}", (), window)
            _copy(pixels, window, corner, members, out)
        made[plane] = out
    return made


def _reaching(corner: Ints, shape: tuple[int, int], mosaic: tuple[int, int]) -> NDArray[np.bool_]:
    """Which stamps have a pixel of the mosaic."""
    found: NDArray[np.bool_] = ((corner + np.array(shape) > 0) & (corner < np.array(mosaic))).all(axis=1)
    return found


def _grouped(corner: Ints, stamps: Stamps) -> Iterator[tuple[Ints, Box]]:
    """Stamps that begin in the same block of the mosaic, and the window that holds them; sparse ones by themselves."""
    side = _block(stamps)
    whole = Box.of_shape(stamps.mosaic)
    block = np.clip(corner, 0, None) // side
    reach = _reaching(corner, stamps.shape, stamps.mosaic)
    order = np.lexsort((corner[:, 1], corner[:, 0], block[:, 1], block[:, 0]))
    order = order[reach[order]]
    edges = np.flatnonzero(np.any(np.diff(block[order], axis=0) != 0, axis=1)) + 1
    for members in np.split(order, edges):
        if not len(members):
            continue
        (y0, x0), (y1, x1) = corner[members].min(axis=0), corner[members].max(axis=0) + stamps.shape
        together = Box(int(y0), int(x0), int(y1), int(x1)).intersect(whole)
        alone = sum((n + 512) for n in stamps.shape) ** 2 // 4  # with the chunks that its rim cuts
        if together is not None and together.size <= len(members) * alone:
            yield members, together
            continue
        for i in members:
            box = Box(*map(int, corner[i]), *map(int, corner[i] + stamps.shape)).intersect(whole)
            if box is not None:
                yield np.array([i]), box


def _copy(pixels: NDArray[np.generic], window: Box, corner: Ints, members: Ints, out: NDArray[np.generic]) -> None:
    """Copy the stamps ``members`` out of the pixels of a window."""
    ny, nx = out.shape[1:]
    height, width = window.shape
    for i in members.tolist():
        y, x = int(corner[i, 0]) - window.y0, int(corner[i, 1]) - window.x0
        if y >= 0 and x >= 0 and y + ny <= height and x + nx <= width:
            out[i] = pixels[y : y + ny, x : x + nx]
            continue
        ys, xs = max(y, 0), max(x, 0)
        ye, xe = min(y + ny, height), min(x + nx, width)
        out[i, ys - y : ye - y, xs - x : xe - x] = pixels[ys:ye, xs:xe]


# ---------------------------------------------------------------- positions from files
def read_catalog(url: str, options: Mapping[str, str]) -> Positions:
    """Read positions from a table: RA and DEC in any case (degrees), or ``sky_centroid``; names from label, id or name.

    Raises
    ------
    InputError
        If it is no table, or has no positions.
    """
    from streamimg3.formats.star_catalogs import read_positions, read_table

    table = read_table(url, options)
    stars = read_positions(url, options)
    named = next((n for n in table.colnames if n.lower() in ("label", "id", "name", "source_id")), None)
    names = [str(v) for v in table[named]] if named and len(table) == len(stars) else []
    return Positions.of(stars.columns["ra"], stars.columns["dec"], names)
