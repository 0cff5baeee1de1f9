"""What a run of image3 leaves in a folder, whichever side made it, and differences between two such folders."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import Table
from compare_products import read_wcs, ulp_distance
from numpy.typing import NDArray

Array = NDArray[Any]
ULP = 2
SMALL = 1e-6


@dataclass(frozen=True)
class Products:
    """The products of one run; a file that is not there is None."""

    folder: Path

    def names(self, end: str) -> list[str]:
        """Names of all files with this end, sorted."""
        return sorted(path.name for path in self.folder.glob(f"*{end}"))

    def one(self, end: str) -> Path | None:
        """The one file with this end.

        Raises
        ------
        RuntimeError
            If there are several.
        """
        found = self.names(end)
        if len(found) > 1:
            raise RuntimeError(f"{self.folder}: {len(found)} files end in {end}")
        return self.folder / found[0] if found else None

    @property
    def i2d(self) -> Path | None:
        """The mosaic (not those of single groups)."""
        found = [name for name in self.names("_i2d.fits") if not name.endswith("_outlier_i2d.fits")]
        return self.folder / found[0] if len(found) == 1 else None

    @property
    def crf(self) -> list[Path]:
        """The exposures, in order of their names."""
        return [self.folder / name for name in self.names("_crf.fits")]

    @property
    def catalog(self) -> Path | None:
        """The catalogue of the mosaic (exposures have catalogues of their own)."""
        found = [name for name in self.names("_cat.ecsv") if not name.endswith("_cal_cat.ecsv")]
        return self.folder / found[0] if len(found) == 1 else None


def cards(path: Path, extension: str = "PRIMARY") -> fits.Header:
    """Header of one extension."""
    with fits.open(path) as hdus:
        return hdus[extension].header.copy()


def layout(path: Path) -> list[tuple[Any, ...]]:
    """Name, version, type and unit of every extension."""
    with fits.open(path) as hdus:
        return [(h.name, h.ver, h.header["BITPIX"], h.header.get("BZERO"), h.header.get("BUNIT")) for h in hdus]


def wcs_of(path: Path) -> Any:
    """The gWCS in a product's metadata tree."""
    with fits.open(path) as hdus:
        return read_wcs(hdus["ASDF"])


def grid(header: fits.Header) -> tuple[Array, Array]:
    """9 x 9 positions over an image (x, y)."""
    nx, ny = header["NAXIS1"], header["NAXIS2"]
    x, y = np.meshgrid(np.linspace(0, nx - 1, 9), np.linspace(0, ny - 1, 9))
    return x, y


def separation(a: tuple[Array, Array], b: tuple[Array, Array]) -> float:
    """Largest distance on the sky between pairs of positions in degrees, in arcsec; nan if any position is."""
    east = (a[0] - b[0] + 180) % 360 - 180
    return float(np.hypot(east * np.cos(np.deg2rad(b[1])), a[1] - b[1]).max()) * 3600


def wcs_distance(ours: Path, theirs: Path) -> float:
    """Largest distance in arcsec between the positions that two exposures' gWCS give."""
    x, y = grid(cards(theirs, "SCI"))
    a, b = (wcs_of(path)(x, y, with_bounding_box=False) for path in (ours, theirs))
    return separation(a, b)


def sip_error(path: Path) -> float:
    """Largest distance in pixels between an exposure's FITS keywords and its gWCS."""
    from astropy.wcs import WCS

    header = cards(path, "SCI")
    x, y = grid(header)
    sky = wcs_of(path)(x, y, with_bounding_box=False)
    back = WCS(header).all_world2pix(*sky, 0, tolerance=1e-8)
    return float(np.hypot(back[0] - x, back[1] - y).max())


@dataclass(frozen=True)
class ImageDifference:
    """How two image planes differ.

    Attributes
    ----------
    differ, pixels : int
        Pixels that differ, and all.
    ulp : int
        Largest difference in units of the last place (of integers: the largest difference).
    nan_equal : bool
        Whether NaN is at the same pixels.
    size : float
        Largest difference relative to the pixel and to the plane's typical absolute value; infinite for integers.
    """

    differ: int
    pixels: int
    ulp: int
    nan_equal: bool
    size: float = 0.0

    @property
    def small(self) -> bool:
        """Whether floats differ by no more than another order of operations makes them."""
        return self.size <= SMALL or (self.ulp <= ULP and self.size < math.inf)

    def text(self) -> str:
        """In words."""
        if not self.differ:
            return f"identical ({self.pixels} px)"
        nan = "" if self.nan_equal else ", NaN at other pixels"
        return f"{self.differ} of {self.pixels} px differ, at most {self.ulp} ulp, {self.size:.1e} relative{nan}"


def image_difference(a: Array, b: Array) -> ImageDifference:
    """Compare two planes; NaN equals NaN."""
    if a.shape != b.shape:
        return ImageDifference(max(a.size, b.size), max(a.size, b.size), 0, False, math.inf)
    a, b = (np.ascontiguousarray(p.astype(p.dtype.newbyteorder("="))) for p in (a, b))
    if a.dtype.kind != "f":
        other = a != b
        worst = int(np.abs(a[other].astype(np.int64) - b[other].astype(np.int64)).max(initial=0))
        return ImageDifference(int(other.sum()), a.size, worst, True, math.inf if other.any() else 0.0)
    nan = np.isnan(a), np.isnan(b)
    other = ~((a == b) | (nan[0] & nan[1]))
    both = other & ~nan[0] & ~nan[1]
    worst = int(ulp_distance(a[both], b[both]).max(initial=0))
    finite = np.abs(b[~nan[1] & (b != 0)])
    scale = float(np.median(finite)) if finite.size else 1.0
    gap = np.abs(a[both].astype(np.float64) - b[both]) / np.maximum(np.abs(b[both]), scale)
    alike = bool(np.array_equal(*nan))
    return ImageDifference(int(other.sum()), a.size, worst, alike, float(gap.max(initial=0.0)))


def plane(path: Path, extension: str) -> Array:
    """Pixels of one extension."""
    with fits.open(path) as hdus:
        return np.array(hdus[extension].data)


def plane_differences(ours: Path, theirs: Path, names: tuple[str, ...]) -> Iterator[tuple[str, ImageDifference]]:
    """Compare the planes that the reference has."""
    with fits.open(ours) as left, fits.open(theirs) as right:
        for name in names:
            if name in right and name in left:
                yield name, image_difference(left[name].data, right[name].data)
            elif name in right:
                size = right[name].data.size
                yield name, ImageDifference(size, size, 0, False, math.inf)


# ---------------------------------------------------------------- tables
@dataclass(frozen=True)
class ColumnDifference:
    """How one column differs: in kind (dtype, unit), in which rows are NaN, and by how much relative to its values."""

    name: str
    kind: str
    nan_equal: bool
    relative: float

    @property
    def equal(self) -> bool:
        """Whether the column is as the reference's to 1e-6."""
        return not self.kind and self.nan_equal and self.relative <= 1e-6


def read_table(path: Path) -> Table:
    """An ECSV table; positions as two columns ``<name>.ra`` and ``<name>.dec``."""
    from astropy.table import represent_mixins_as_columns

    table = Table.read(path)
    flat = represent_mixins_as_columns(table)
    flat.meta.clear()
    return flat


def column_differences(ours: Table, theirs: Table) -> list[ColumnDifference]:
    """Compare the columns that the reference has, row by row."""
    return [_column(name, ours, theirs) for name in theirs.colnames]


def _column(name: str, ours: Table, theirs: Table) -> ColumnDifference:
    if name not in ours.colnames:
        return ColumnDifference(name, "absent", False, math.inf)
    a, b = ours[name], theirs[name]
    units = [str(c.unit or "") for c in (a, b)]  # no unit and a dimensionless one mean the same
    kind = "" if (a.dtype, units[0]) == (b.dtype, units[1]) else f"{a.dtype} {units[0]} / {b.dtype} {units[1]}"
    if len(a) != len(b):
        return ColumnDifference(name, kind or "rows", False, math.inf)
    left, right = (np.ma.filled(np.ma.asarray(c.data, dtype=np.float64), np.nan) for c in (a, b))
    nan = np.isnan(left), np.isnan(right)
    both = ~nan[0] & ~nan[1]
    # Differences count relative to the value, and for values that cross zero relative to a typical one.
    scale = np.maximum(np.abs(right[both]), np.median(np.abs(right[both])) if both.any() else 1.0)
    gap = np.abs(left[both] - right[both])
    relative = float(np.max(np.where(gap == 0, 0.0, gap / np.where(scale == 0, 1.0, scale)), initial=0.0))
    return ColumnDifference(name, kind, bool(np.array_equal(*nan)), relative)
