"""Names, shapes and attributes of what is in a store (DESIGN: the store)."""

from __future__ import annotations

import math
from dataclasses import dataclass

SCHEMA = "streamimg3/store"
VERSION = 1

CHUNK = 256
SHARD_BYTES = 16 * 2**20
TILE = 1024

# Inner chunks of cubes: pixels in one, integrations, fewest rows, most columns
CUBE_CHUNK = 2**17
CUBE_DEPTH = 32
CUBE_ROWS = 16
CUBE_WIDTH = 2048
# Strips of a stack of integrations: pixels, fewest integrations
STRIP_PIXELS = 2**22
STRIP_DEPTH = 64

# JWST's flags; exposures of other observatories keep their own numbers and say so in their record
FLAGS = {
    "DO_NOT_USE": 1, "SATURATED": 2, "JUMP_DET": 4, "DROPOUT": 8, "OUTLIER": 16, "PERSISTENCE": 32, "AD_FLOOR": 64,
    "CHARGELOSS": 128, "UNRELIABLE_ERROR": 256, "NON_SCIENCE": 512, "DEAD": 1024, "HOT": 2048, "WARM": 4096,
    "LOW_QE": 8192, "RC": 16384, "TELEGRAPH": 32768, "NONLINEAR": 65536, "BAD_REF_PIXEL": 131072, "NO_FLAT_FIELD": 262144,
    "NO_GAIN_VALUE": 524288, "NO_LIN_CORR": 1048576, "NO_SAT_CHECK": 2097152, "UNRELIABLE_BIAS": 4194304,
    "UNRELIABLE_DARK": 8388608, "UNRELIABLE_SLOPE": 16777216, "UNRELIABLE_FLAT": 33554432, "OPEN": 67108864,
    "ADJ_OPEN": 134217728, "FLUX_ESTIMATED": 268435456, "MSA_FAILED_OPEN": 536870912, "OTHER_BAD_PIXEL": 1073741824,
    "REFERENCE_PIXEL": 2147483648,
}  # fmt: skip


@dataclass(frozen=True)
class PlaneKind:
    """What a plane of pixels is: data type, empty value, meaning and the power of the image's unit it has."""

    dtype: str
    fill: float
    long_name: str
    power: int = 0


PLANES = {
    "sci": PlaneKind("float32", math.nan, "science image", 1),
    "err": PlaneKind("float32", math.nan, "standard error of sci", 1),
    "dq": PlaneKind("uint32", 0, "data quality flags"),
    "var_poisson": PlaneKind("float32", math.nan, "variance due to Poisson noise", 2),
    "var_rnoise": PlaneKind("float32", math.nan, "variance due to read noise", 2),
    "var_flat": PlaneKind("float32", math.nan, "variance due to the flat field", 2),
    "area": PlaneKind("float32", 1, "pixel area relative to the nominal one"),
    "weight": PlaneKind("float32", 0, "weight map supplied with the image"),
    "pixeldq": PlaneKind("uint32", 0, "data quality flags, the same for all integrations"),
    "wavelength": PlaneKind("float32", math.nan, "wavelength in microns"),
    "nan": PlaneKind("uint8", 0, "1 where any of sci, err and the variances is NaN"),
    "outlier": PlaneKind("uint8", 0, "1 where the pixel was found to be an outlier"),
    "median": PlaneKind("float32", math.nan, "median of the exposure groups", 1),
    "median_err": PlaneKind("float32", math.nan, "median error of the exposure groups", 1),
    "weights": PlaneKind("float32", 0, "weight of the pixels in the alignment of reference stars"),
    "blot": PlaneKind("float32", math.nan, "median of the exposure groups in the exposure's pixels", 1),
    "wht": PlaneKind("float32", 0, "sum of the weights of the contributing pixels"),
    "con": PlaneKind("int32", 0, "context: bit k of plane p is set where exposure 32 p + k contributes"),
    "segmentation": PlaneKind("uint32", 0, "label of the source that a pixel belongs to, 0 = none"),
    "ncontrib": PlaneKind("uint16", 0, "number of contributing exposures"),
}

VARIANCES = ("var_rnoise", "var_flat", "var_poisson")  # in the order in which they are summed
NAN_PLANES = ("sci", "err", *VARIANCES)  # what the plane "nan" speaks of
FLAT_PLANES = ("area", "pixeldq", "wavelength")  # one image for all integrations of a cube

# Columns of the integrations of a cube: JWST's own times, in days
TIMES = {
    f"int_{moment}_{scale}": f"{word} of the integration, {text}"
    for scale, text in (("mjd_utc", "MJD, UTC"), ("bjd_tdb", "barycentric MJD, TDB"))
    for moment, word in (("start", "start"), ("mid", "middle"), ("end", "end"))
}
COLUMNS = {
    "exposure_index": "place of the exposure among all exposures of the store",
    "integration_number": "number of the integration in its exposure, from 1, over all segments",
    **TIMES,
}


def unit_of(plane: str, bunit: str | None) -> str:
    """Return the CF unit of a plane of an image in ``bunit``."""
    power = PLANES[plane].power
    unit = bunit or "1"
    return "1" if not power else unit if power == 1 else f"({unit})^{power}"


def flag_attrs() -> dict[str, list[int] | list[str]]:
    """Return the CF attributes that name the flags."""
    return {"flag_masks": list(FLAGS.values()), "flag_meanings": list(FLAGS)}


def inner_chunk(tile: int) -> int:
    """Return the side of the chunks inside a tile: its largest divisor up to 512, for shards hold whole chunks.

    Examples
    --------
    >>> inner_chunk(1024)
    512
    """
    return max(d for d in range(1, min(tile, 512) + 1) if tile % d == 0)


def chunking(shape: tuple[int, int], itemsize: int = 4) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return inner chunk and shard of one plane of an exposure: full-width shards of at most 16 MiB where possible.

    Examples
    --------
    >>> chunking((2048, 2048))
    ((256, 256), (2048, 2048))
    """
    ny, nx = shape
    cy, cx = min(CHUNK, ny), min(CHUNK, nx)
    width = -(-nx // cx) * cx
    rows = max(1, min(-(-ny // cy), SHARD_BYTES // (width * cy * itemsize)))
    return (cy, cx), (rows * cy, width)


Cut = tuple[tuple[int, int, int], tuple[int, int, int]]  # chunk and shard, (integrations, rows, columns)


def strip_chunking(shape: tuple[int, int], count: int) -> Cut:
    """Return inner chunk and shard of planes that are made in strips: few rows through many integrations.

    Rows and columns are those of the chunks of `cube_chunking`, so that a strip is read without waste; a shard has about
    four million pixels.

    Examples
    --------
    >>> strip_chunking((64, 256), 2000)
    ((32, 16, 256), (1024, 16, 256))
    """
    (depth, cy, cx), (_, _, width) = cube_chunking(shape, count)
    wanted = max(STRIP_DEPTH, STRIP_PIXELS // (cy * width))
    times = max(1, min(-(-wanted // depth), -(-count // depth)))
    return (depth, cy, cx), (times * depth, cy, width)


def cube_chunking(shape: tuple[int, int], count: int) -> Cut:
    """Return inner chunk and shard of a plane of a stack of ``count`` integrations, ``(integrations, rows, columns)``.

    A shard is as many whole integrations as fit into 16 MiB of float32, or a band of rows of one where not even one
    fits. A chunk is a band of whole rows (up to 2048 pixels) through 32 integrations or fewer, about half a MiB: whole
    integrations and shards are then read as fast as with any other chunk, and a band of rows through all integrations, which
    is how time series are worked through, several times faster than with square or one-integration chunks.

    Examples
    --------
    >>> cube_chunking((64, 256), 2000)
    ((32, 16, 256), (256, 64, 256))
    >>> cube_chunking((2048, 2048), 20)
    ((1, 64, 2048), (1, 2048, 2048))
    """
    ny, nx = shape
    deepest = max(CUBE_DEPTH, CUBE_CHUNK // (ny * nx))  # small images go deeper
    depth = max(1, min(deepest, count, SHARD_BYTES // (4 * ny * nx)))
    cx = _even(nx, CUBE_WIDTH)
    cy = _even(ny, max(CUBE_ROWS, CUBE_CHUNK // (depth * cx)))
    width, high = -(-nx // cx) * cx, -(-ny // cy)
    rows = cy * max(1, min(high, SHARD_BYTES // (4 * width * cy)))
    most = max(1, SHARD_BYTES // (4 * width * rows))
    depth = min(depth, most)
    whole = min(most // depth, -(-count // depth)) if rows >= ny else 1
    return (depth, cy, cx), (whole * depth, rows, width)


def _even(length: int, most: int) -> int:
    """Return the side of the fewest equal pieces that are no longer than ``most``."""
    return -(-length // -(-length // most))
