"""The public calls that look at a store: datasets, cut-outs, the report, pictures; the command line is a thin face of these."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from streamimg3.api import open
from streamimg3.engine.budget import MIB, SLACK, parse_size, resident, steady_allocator
from streamimg3.errors import InputError
from streamimg3.formats.names import absolute
from streamimg3.reporting import LARGEST, Report, write_report
from streamimg3.store import Observation

if TYPE_CHECKING:
    from xarray import Dataset

_BESIDE = 256 * MIB  # for stamps that are written, where nobody says how much


def open_dataset(url: str, chunks: Any = None, **options: Any) -> Dataset:
    """Open a dataset that ``.img3.to_zarr`` has written, with its sky index.

    Parameters
    ----------
    url : str
        Where it is.
    chunks : int, dict, "auto" or None
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
    from streamimg3.store import xarray_view

    return xarray_view.open_dataset(url, chunks, **options)


def cutouts(
    store: str | Observation,
    positions: Any,
    size: str | float | tuple[int, int],
    output: str | None = None,
    planes: Sequence[str] = ("sci",),
    memory: str | int | None = None,
    **storage_options: str,
) -> Any:
    """Cut stamps out of a mosaic, sorted by chunk and in bounded memory.

    Parameters
    ----------
    store : str or Observation
        The store.
    positions : str or pair of sequences
        A table (path or URL) with RA and DEC or ``sky_centroid``; or right ascensions and declinations in degrees.
    size : str, float or pair of int
        Side: ``"5arcsec"`` (a number is arcsec), ``"64pix"``; or rows and columns in pixels.
    output : str, optional
        ``X.zarr`` (one array ``(source, y, x)`` for each plane), ``X.fits`` (one file) or a folder of FITS files; without it
        the stamps are returned.
    planes : sequence of str
        Planes of the mosaic.
    memory : str or int, optional
        For this process, with all that it holds already; None = 256 MiB beside that, however much it is.
    **storage_options : str
        Credentials and endpoint.

    Returns
    -------
    int or xarray.Dataset
        How many stamps were written; without ``output`` the stamps themselves, ``(source, y, x)`` by plane, with the
        coordinates ``ra``, ``dec`` (degrees), ``y0`` and ``x0`` (their first pixel in the mosaic).

    Raises
    ------
    InputError
        If the store holds no mosaic, or no position is on it.

    Examples
    --------
    >>> mosaic = streamimg3.open(store).xarray()["mosaic"].to_dataset()
    >>> ra, dec = mosaic.img3.footprint.mean(axis=0)
    >>> streamimg3.cutouts(store, ([ra], [dec]), "32pix").sci.shape
    (1, 32, 32)
    """
    from streamimg3.formats import cutouts as door

    obs = store if isinstance(store, Observation) else open(store, **storage_options)
    named = isinstance(positions, str | os.PathLike)
    wanted = door.read_catalog(str(positions), storage_options) if named else door.Positions.of(*positions)
    stamps = door.plan_stamps(obs, wanted, size, planes)
    if output is not None:
        from streamimg3.formats.cutout_files import write_stamps

        steady_allocator()
        free = _BESIDE if memory is None else parse_size(memory) - resident() - 2 * SLACK
        return write_stamps(stamps, str(output), storage_options, free)
    from streamimg3.store.xarray_view import stamp_dataset

    pixels = door.read(stamps, slice(0, len(stamps)))
    return stamp_dataset(
        pixels, dict(zip(stamps.planes, stamps.units, strict=True)), wanted.ra, wanted.dec, stamps.corner
    )


def make_report(
    store: str | Observation, output: str | None = None, size: int = LARGEST, **storage_options: str
) -> Report:
    """Write the report of a store: one self-contained page, and the same in numbers (``qa.json``).

    Parameters
    ----------
    store : str or Observation
        The store.
    output : str, optional
        Folder, or path or URL ending in ``.html``; default the folder of the store.
    size : int
        Pixels along the longest side of the mosaic in it.
    **storage_options : str
        Credentials and endpoint.

    Returns
    -------
    Report
        ``page``, ``numbers`` (paths or URLs) and ``status`` (pass, warn or fail).

    Raises
    ------
    InputError
        If no pipeline has run on the store.

    Examples
    --------
    >>> streamimg3.make_report(store, f"{folder}/report.html").status in ("pass", "warn", "fail")
    True
    """
    obs = store if isinstance(store, Observation) else open(store, **storage_options)
    return write_report(obs, output or obs.url.rpartition("/")[0], dict(obs.options) | storage_options, size)


def rgb(stores: Sequence[str | Observation], output: str, size: int = 2000, **storage_options: str) -> str:
    """Write a picture in colours of three stores on one grid: red, green and blue (Lupton et al. 2004).

    Parameters
    ----------
    stores : sequence of three str or Observation
        The reddest first.
    output : str
        Path or URL ending in ``.png`` or ``.jpg``.
    size : int
        Pixels along the longest side.
    **storage_options : str
        Credentials and endpoint.

    Returns
    -------
    str
        What was written.

    Raises
    ------
    InputError
        If there are not three, their grids differ, or the name has another ending.

    Examples
    --------
    >>> streamimg3.rgb([store, store, store], f"{folder}/colours.png").rpartition("/")[2]
    'colours.png'
    """
    from streamimg3.formats.publish import open_product
    from streamimg3.report.rgb import rgb as drawn

    kind = output.lower().rpartition(".")[2].replace("jpeg", "jpg")
    if kind not in ("png", "jpg"):
        raise InputError(f"{output}: a picture's name ends in .png or .jpg")
    found = [s if isinstance(s, Observation) else open(s, **storage_options) for s in stores]
    data = drawn(found, size, kind)
    with open_product(absolute(output), storage_options) as sink:
        sink.write(data)
    return absolute(output)


def filter_name(store: str, options: Mapping[str, str]) -> str:
    """Return the filter of a store's first exposure: FILTER and PUPIL of its header, without CLEAR."""
    from streamimg3.formats.fits_file import parse_cards

    header = parse_cards(open(store, **options).exposures(aligned=False)[0].cards("primary"))
    words = [str(header.get(key, "")).strip() for key in ("FILTER", "PUPIL")]
    name = "_".join(w.lower() for w in words if w and w.upper() not in ("CLEAR", "N/A", "CLEARP"))
    if not name:
        raise InputError(f"{store}: its exposures name no filter: give it as NAME={store}")
    return name
