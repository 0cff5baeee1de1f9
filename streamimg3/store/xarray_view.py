"""A store in xarray: a tree of lazy arrays whose mosaic can be asked by sky position.

Right ascension and declination are coordinates that take no memory: a :class:`SkyIndex` computes them from the WCS for the
pixels that are looked at, and turns positions into pixels. They follow slices, and are left out of what is written, for the
WCS itself is in the attributes: :func:`with_sky` puts them back.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray
from numpy.typing import NDArray
from xarray.indexes import CoordinateTransform, CoordinateTransformIndex

from streamimg3.errors import InputError
from streamimg3.geometry import Box
from streamimg3.sky.positions import keyword_wcs, parse_angle, parse_size, pixel_scale, separation, shifted_keywords
from streamimg3.sky.wcs import Wcs
from streamimg3.store.documents import ResampleDocument

if TYPE_CHECKING:
    from streamimg3.store.observation import Observation

_AXES = ("y", "x")
_SKY = {
    "ra": {"units": "deg", "long_name": "right ascension (ICRS)", "standard_name": "right_ascension"},
    "dec": {"units": "deg", "long_name": "declination (ICRS)", "standard_name": "declination"},
}


@dataclass(frozen=True)
class Place:
    """A window of an image with a WCS: ``wcs`` is the whole image's, ``origin`` (y, x) the window's first pixel."""

    wcs: Wcs
    origin: tuple[int, int]


class SkyTransform(CoordinateTransform):  # type: ignore[misc]
    """Rows and columns of a window to right ascension and declination (degrees), and back."""

    def __init__(self, place: Place, shape: tuple[int, int]) -> None:
        super().__init__(("ra", "dec"), dict(zip(_AXES, shape, strict=True)))
        self.place = place

    def forward(self, dim_positions: dict[str, Any]) -> dict[Hashable, Any]:
        """Return ``ra`` and ``dec`` of positions along the two dimensions."""
        y, x = (np.asarray(dim_positions[d], float) + o for d, o in zip(self.dims, self.place.origin, strict=True))
        ra, dec = self.place.wcs.to_sky(y, x, bounded=False)
        return dict(zip(self.coord_names, (ra, dec), strict=True))

    def reverse(self, coord_labels: dict[Hashable, Any]) -> dict[str, Any]:
        """Return positions along the two dimensions."""
        ra, dec = (np.asarray(coord_labels[name], float) for name in self.coord_names)
        y, x = self.place.wcs.to_pixel(ra, dec)
        return {d: v - o for d, v, o in zip(self.dims, (y, x), self.place.origin, strict=True)}

    def equals(self, other: CoordinateTransform, **kwargs: Any) -> bool:
        """Whether two windows are the same pixels of the same sky."""
        return isinstance(other, SkyTransform) and self.place == other.place and self.dim_size == other.dim_size


class SkyIndex(CoordinateTransformIndex):  # type: ignore[misc]
    """Selection by sky position, without planes of coordinates.

    ``sel(ra=…, dec=…, method="nearest")`` takes numbers, sequences (one position each, along a dimension ``source``) or
    DataArrays; a position off the image is a KeyError.
    """

    transform: SkyTransform

    def create_variables(self, variables: Mapping[Any, Any] | None = None) -> Any:
        """Return the coordinates, with their units."""
        made = super().create_variables(variables)
        for name, attrs in zip(self.transform.coord_names, _SKY.values(), strict=True):
            made[name].attrs.update(attrs)
        return made

    def isel(self, indexers: Mapping[Any, Any]) -> SkyIndex | None:
        """Return the index of a window, or None where what is left is none."""
        window = []
        for dim, size in self.transform.dim_size.items():
            cut = indexers.get(dim, slice(None))
            if not isinstance(cut, slice) or cut.step not in (None, 1):
                return None
            start, stop, _ = cut.indices(size)
            window.append((start, max(stop, start)))
        (y0, y1), (x0, x1) = window
        place = self.transform.place
        moved = Place(place.wcs, (place.origin[0] + y0, place.origin[1] + x0))
        made = SkyTransform(moved, (y1 - y0, x1 - x0))
        made.dims, made.coord_names = self.transform.dims, self.transform.coord_names
        made.dim_size = dict(zip(made.dims, (y1 - y0, x1 - x0), strict=True))
        return SkyIndex(made)

    def sel(self, labels: dict[Any, Any], method: str | None = None, tolerance: float | None = None) -> Any:
        """Return the pixels nearest to positions."""
        if tolerance is not None:
            raise ValueError("a sky selection takes no tolerance: positions are at most half a pixel off")
        with np.errstate(invalid="ignore"):  # beyond the horizon of the projection there is no pixel
            found = super().sel({name: _labels(label) for name, label in labels.items()}, method)
        for dim, pixels in found.dim_indexers.items():
            values = np.asarray(pixels.values)
            off = (values < 0) | (values >= self.transform.dim_size[dim])
            if off.any():
                at = {n: float(np.broadcast_to(v, off.shape).ravel()[np.argmax(off)]) for n, v in labels.items()}
                others = int(off.sum()) - 1
                more = f", nor {'is' if others == 1 else 'are'} {others} more" if others else ""
                raise KeyError(f"{', '.join(f'{n} {v:g}' for n, v in at.items())} is not on the image{more}")
        return found


def _labels(label: Any) -> Any:
    """A label as xarray's own index wants it."""
    if isinstance(label, xarray.DataArray | xarray.Variable):
        return label
    values = np.asarray(label, float)
    if values.ndim > 1:
        raise TypeError("give positions with more than one dimension as DataArrays")
    return xarray.Variable(("source",) * values.ndim, values)


# ---------------------------------------------------------------- trees and datasets
def open_tree(obs: Observation, chunks: Any = None) -> xarray.DataTree:
    """Return a store as a tree; see :meth:`streamimg3.Observation.xarray`."""
    tree = xarray.open_datatree(obs.backend.zarr, engine="zarr", chunks=chunks)  # type: ignore[arg-type]
    for group, wcs in _imaged(obs, tree):
        node = tree[group]
        node.dataset = _attached(node.to_dataset(), Place(wcs, (0, 0)))
    return tree


def _imaged(obs: Observation, tree: xarray.DataTree) -> list[tuple[str, Wcs]]:
    """The groups that hold one image on the sky, and its WCS."""
    found = []
    for node in tree.subtree:
        sizes = tuple(node.sizes[d] for d in _AXES if d in node.sizes)
        if len(sizes) != 2 or "wcs" not in node.attrs:
            continue
        cards = node.attrs["wcs"]
        if cards:
            found.append((node.path, keyword_wcs(cards, sizes)))
        elif node.path == "/mosaic" and (document := obs.document(ResampleDocument)) is not None:
            found.append((node.path, Wcs("gwcs", document.wcs_asdf.encode("latin-1"), document.shape)))
    return found


def with_sky(dataset: xarray.Dataset) -> xarray.Dataset:
    """Return a dataset with the coordinates ``ra`` and ``dec`` of the WCS keywords in its attribute ``wcs``.

    Raises
    ------
    InputError
        If it has no dimensions y and x, or no keywords.

    Examples
    --------
    >>> import numpy, xarray
    >>> cards = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 1.0, "CRPIX2": 1.0}
    >>> cards |= {"CRVAL1": 10.0, "CRVAL2": 20.0, "CDELT1": -1e-4, "CDELT2": 1e-4}
    >>> image = xarray.Dataset({"sci": (("y", "x"), numpy.arange(6.0).reshape(2, 3))}, attrs={"wcs": cards})
    >>> float(with_sky(image).sel(ra=10.0, dec=20.0001, method="nearest").sci)
    3.0
    """
    cards = dataset.attrs.get("wcs")
    if not cards or not {*_AXES} <= set(dataset.sizes):
        raise InputError("this dataset has no WCS keywords in its attribute 'wcs', or no dimensions y and x")
    shape = (dataset.sizes["y"], dataset.sizes["x"])
    return _attached(dataset, Place(keyword_wcs(cards, shape), (0, 0)))


def without_sky(dataset: xarray.Dataset) -> xarray.Dataset:
    """Return a dataset as it is to be written: ``ra`` and ``dec`` dropped, the WCS keywords those of its own pixels."""
    index = dataset.xindexes.get("ra")
    if not isinstance(index, SkyIndex):
        return dataset
    bare, (y0, x0) = dataset.drop_indexes(["ra", "dec"]).drop_vars(["ra", "dec"]), index.transform.place.origin
    if bare.attrs.get("wcs"):
        shape = [bare.sizes["y"], bare.sizes["x"]]
        bare = bare.assign_attrs(wcs=shifted_keywords(bare.attrs["wcs"], y0, x0), shape=shape)
    return bare


def _attached(dataset: xarray.Dataset, place: Place) -> xarray.Dataset:
    shape = (dataset.sizes["y"], dataset.sizes["x"])
    return dataset.assign_coords(xarray.Coordinates.from_xindex(SkyIndex(SkyTransform(place, shape))))


# ---------------------------------------------------------------- accessor
@xarray.register_dataset_accessor("img3")
@xarray.register_dataarray_accessor("img3")
class Img3:
    """What an image with a sky index knows: ``dataset.img3`` and ``array.img3``.

    Examples
    --------
    >>> mosaic = streamimg3.open(store).xarray()["mosaic"].to_dataset()
    >>> ra, dec = mosaic.img3.footprint.mean(axis=0)
    >>> mosaic.img3.cutout(ra, dec, "8pix").sci.shape
    (8, 8)
    """

    def __init__(self, given: xarray.Dataset | xarray.DataArray) -> None:
        self._given = given

    @property
    def place(self) -> Place:
        """WCS of the whole image, and the first pixel of this window of it."""
        index = self._given.xindexes.get("ra")
        if not isinstance(index, SkyIndex):
            raise InputError("this is no image on the sky: its index on ra and dec is missing (see img3.with_sky)")
        return index.transform.place

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self._given.sizes["y"], self._given.sizes["x"]

    @property
    def wcs(self) -> Any:
        """The window's own WCS: `astropy.wcs.WCS` (of a mosaic in the user's own gWCS, that gWCS of the whole image)."""
        place = self.place
        if place.wcs.kind == "gwcs":
            return place.wcs.gwcs()
        y0, x0 = place.origin
        window = place.wcs.projection.wcs.deepcopy()  # type: ignore[attr-defined]
        window.wcs.crpix = window.wcs.crpix - np.array([x0, y0])
        window.array_shape = self.shape
        window.wcs.set()
        return window

    @property
    def pixel_scale(self) -> float:
        """Arcsec per pixel."""
        return pixel_scale(self.place.wcs)

    @property
    def footprint(self) -> NDArray[np.float64]:
        """Outer corners, ``(4, 2)`` right ascension and declination in degrees."""
        (ny, nx), (y0, x0) = self.shape, self.place.origin
        y = np.array([-0.5, -0.5, ny - 0.5, ny - 0.5]) + y0
        x = np.array([-0.5, nx - 0.5, nx - 0.5, -0.5]) + x0
        return np.stack(self.place.wcs.to_sky(y, x, bounded=False), axis=1)

    def box(self, ra: float, dec: float, size: str | float | tuple[str | float, str | float]) -> Any:
        """Return the window of a size (height, width, or one for both) around a position, as far as there are pixels.

        Parameters
        ----------
        ra, dec : float
            ICRS, degrees.
        size : str, float or pair of these
            Such as ``"5arcsec"``, ``"64pix"``; a number is arcsec.

        Raises
        ------
        InputError
            If no pixel of the image is in it.
        """
        height, width = size if isinstance(size, tuple) else (size, size)
        scale = self.pixel_scale
        shape = parse_size(height, scale), parse_size(width, scale)
        (y0, x0), (y, x) = self.place.origin, self.place.wcs.to_pixel(np.array([ra]), np.array([dec]))
        if not (np.isfinite(y[0]) and np.isfinite(x[0])):  # beyond the horizon of the projection
            raise InputError(f"{ra}, {dec} is not on the image")
        box = box_around(float(y[0]) - y0, float(x[0]) - x0, shape)
        return self._cut(box, f"{ra}, {dec}")

    cutout = box

    def cone(self, ra: float, dec: float, radius: str | float) -> Any:
        """Return the window around a circle; what is outside the circle is NaN (0 in planes of flags and counts).

        Parameters
        ----------
        ra, dec : float
            ICRS, degrees.
        radius : str or float
            Such as ``"5arcsec"``; a number is arcsec.
        """
        reach = parse_angle(radius)
        window = self.box(ra, dec, 2.0 * reach + 2.0 * self.pixel_scale)
        inside = separation(np.asarray(window.ra), np.asarray(window.dec), ra, dec) <= reach
        mask = xarray.DataArray(inside, dims=_AXES)
        if isinstance(window, xarray.DataArray):
            return _masked(window, mask)
        return window.map(lambda plane: _masked(plane, mask), keep_attrs=True)

    def _cut(self, box: Box, where: str) -> Any:
        inside = box.intersect(Box.of_shape(self.shape))
        if inside is None:
            raise InputError(f"{where} is not on the image")
        rows, columns = inside.slices
        return self._given.isel(y=rows, x=columns)

    def drop_sky(self) -> xarray.Dataset:
        """Return the dataset without ``ra`` and ``dec``, as it is to be written; the WCS stays in the attributes."""
        return without_sky(self._dataset)

    def with_sky(self) -> xarray.Dataset:
        """Return the dataset with ``ra`` and ``dec`` again, after it was read."""
        return with_sky(self._dataset)

    def to_zarr(self, store: Any, **options: Any) -> None:
        """Write the dataset with its WCS, but without planes of ``ra`` and ``dec``; ``open_dataset`` reads it."""
        self.drop_sky().to_zarr(store, **{"consolidated": False} | options)

    @property
    def _dataset(self) -> xarray.Dataset:
        given = self._given
        return given if isinstance(given, xarray.Dataset) else given.to_dataset(name=given.name or "image")

    def plot(self, plane: str = "sci", ax: Any = None, size: int = 1000, **options: Any) -> Any:
        """Draw the image with an asinh stretch and right ascension and declination along its sides.

        Parameters
        ----------
        plane : str
            Of a dataset.
        ax : matplotlib axes, optional
            Where; default new axes with the window's WCS.
        size : int
            Pixels are left out so that the longest side has at most about so many.
        **options
            For ``imshow``.

        Returns
        -------
        matplotlib.image.AxesImage
        """
        from matplotlib import pyplot
        from matplotlib.colors import AsinhNorm

        array = self._given if isinstance(self._given, xarray.DataArray) else self._given[plane]
        step = max(1, math.ceil(max(self.shape) / size))
        values = np.asarray(array[..., ::step, ::step], float)
        low, middle, high = np.nanpercentile(values, [1.0, 50.0, 99.7])
        norm = AsinhNorm(max(middle - low, 1e-12), low, max(high, low + 1e-12))
        axes = ax if ax is not None else pyplot.subplot(projection=self.wcs)
        ny, nx = self.shape
        shown = axes.imshow(
            values, **{"origin": "lower", "norm": norm, "extent": (-0.5, nx - 0.5, -0.5, ny - 0.5)} | options
        )
        pyplot.colorbar(shown, ax=axes, label=array.attrs.get("units", ""))
        return shown


def box_around(y: float, x: float, shape: tuple[int, int]) -> Box:
    """Return the box of a shape whose middle is nearest to a position in pixels.

    Examples
    --------
    >>> box_around(10.2, 20.0, (3, 4))
    Box(y0=9, x0=19, y1=12, x1=23)
    """
    y0, x0 = (math.floor(v - (n - 1) / 2 + 0.5) for v, n in zip((y, x), shape, strict=True))
    return Box(y0, x0, y0 + shape[0], x0 + shape[1])


def _masked(plane: xarray.DataArray, mask: xarray.DataArray) -> xarray.DataArray:
    if not {*_AXES} <= set(plane.dims):
        return plane
    return plane.where(mask.variable, 0 if plane.dtype.kind in "iub" else np.nan).astype(plane.dtype)


def stamp_dataset(
    pixels: Mapping[str, NDArray[np.generic]], units: Mapping[str, str], ra: Any, dec: Any, corner: NDArray[np.int64]
) -> xarray.Dataset:
    """Return stamps ``(source, y, x)`` by plane, their positions (degrees) and first pixels (n, 2) as a dataset."""
    planes = {name: (("source", *_AXES), values, {"units": units[name]}) for name, values in pixels.items()}
    places = {"ra": ("source", ra, _SKY["ra"]), "dec": ("source", dec, _SKY["dec"])}
    firsts = {"y0": ("source", corner[:, 0]), "x0": ("source", corner[:, 1])}
    return xarray.Dataset(planes, coords=places | firsts)


def open_dataset(url: str, chunks: Any = None, **options: Any) -> xarray.Dataset:
    """Open a dataset that ``.img3.to_zarr`` has written, with its sky index.

    Parameters
    ----------
    url : str
        Where it is.
    chunks : int, dict, 'auto' or None
        Dask chunks; None = lazy arrays without dask.
    **options
        For :func:`xarray.open_zarr`.

    Examples
    --------
    >>> mosaic = streamimg3.open(store).xarray()["mosaic"].to_dataset()
    >>> mosaic.isel(y=slice(0, 10)).img3.to_zarr(f"{folder}/strip.zarr")
    >>> streamimg3.open_dataset(f"{folder}/strip.zarr").sizes["y"]
    10
    """
    return with_sky(xarray.open_zarr(url, chunks=chunks, **{"consolidated": False} | options))
