"""What a drizzle stage knows of its exposures: small facts, written once to the store and read by every worker."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from streamimg3.errors import InputError, StoreError
from streamimg3.sky.mosaic_frame import MosaicFrame
from streamimg3.sky.pixmap import PixelMap, Sampling, pixel_map
from streamimg3.sky.wcs import Wcs
from streamimg3.store import Exposure, Observation
from streamimg3.store.documents import SkyDocument
from streamimg3.store.flags import bad_bits
from streamimg3.store.layout import VARIANCES


@dataclass(frozen=True)
class Layer:
    """One exposure as a layer of a mosaic.

    Parameters
    ----------
    exposure : int
        Index of the exposure in the store.
    bit : int
        Index in the context of this mosaic.
    path : str
        Stack of its planes.
    row : int
        Its place in the stack.
    shape : tuple of int
        Rows and columns.
    planes : tuple of str
        Stored planes.
    wcs_kind : str
        ``gwcs`` or ``fits``.
    level : float
        Sky to be subtracted, 0 = none, in the image's unit.
    weight : str
        ``var_rnoise`` (inverse), ``weight`` (map) or ``constant``.
    constant : float
        Weight of a good pixel where ``weight`` is ``constant`` (1, or seconds).
    bad : int
        Flags that exclude a pixel.
    """

    exposure: int
    bit: int
    path: str
    row: int
    shape: tuple[int, int]
    planes: tuple[str, ...]
    wcs_kind: str
    level: float
    weight: str
    constant: float
    bad: int


@dataclass(frozen=True)
class Setup:
    """Everything a worker needs beside its task: written as JSON under the stage's digest.

    ``noise`` names the error planes that are drizzled per exposure, ``planes`` the mosaic planes that are written under
    ``path``; ``ratio`` is the pixel scale ratio, ``measured`` whether it is carried in double precision.
    """

    digest: str
    path: str
    shape: tuple[int, int]
    tile: int
    planes: tuple[str, ...]
    noise: tuple[str, ...]
    kernel: str
    pixfrac: float
    ratio: float
    measured: bool
    fill: float | None
    drizzle_err: bool
    maps: str
    wcs_asdf: str
    layers: tuple[Layer, ...]

    def write(self, obs: Observation) -> None:
        """Store the set-up for the workers."""
        obs.backend.put(setup_key(self.digest), json.dumps(dataclasses.asdict(self), allow_nan=False).encode())

    @property
    def target(self) -> Wcs:
        """WCS of the mosaic."""
        return Wcs("gwcs", self.wcs_asdf.encode("latin-1"), self.shape)


def setup_key(digest: str) -> str:
    """Return where a set-up is kept."""
    return f"scratch/{digest}/setup.json"


@lru_cache(maxsize=4)
def read_setup(obs: Observation, digest: str) -> Setup:
    """Return the set-up of a stage (read once per process)."""
    data = obs.backend.get(setup_key(digest))
    if data is None:
        raise StoreError(f"{obs.url}/{setup_key(digest)} is missing: run the stage again")
    tree = json.loads(data)
    layers = tuple(
        Layer(**(item | {"shape": tuple(item["shape"]), "planes": tuple(item["planes"])}))
        for item in tree.pop("layers")
    )
    for name in ("shape", "planes", "noise"):
        tree[name] = tuple(tree[name])
    return Setup(layers=layers, **tree)


def sky_levels(obs: Observation, exposures: Sequence[Exposure]) -> list[float]:
    """Return the level to be subtracted from each exposure: the sky document's, else BKGLEVEL unless already done."""
    document = obs.document(SkyDocument)
    levels = []
    for exposure in exposures:
        record = exposure.record
        level = record.bkglevel if not record.bkgsub else None
        if document is not None and document.levels[record.index] is not None:
            level = document.levels[record.index]
        levels.append(level or 0.0)
    return levels


def make_layers(
    obs: Observation, exposures: Sequence[Exposure], weight_type: str, good_bits: str | None
) -> tuple[Layer, ...]:
    """Return the layers of a mosaic in order.

    Raises
    ------
    InputError
        If exposure times are needed and missing or zero.
    """
    levels = sky_levels(obs, exposures)
    layers = []
    for bit, (exposure, level) in enumerate(zip(exposures, levels, strict=True)):
        record = exposure.record
        weight, constant = _weighting(exposure, weight_type)
        default = "~DO_NOT_USE+NON_SCIENCE" if record.is_jwst else "0"
        bad = bad_bits(good_bits if good_bits is not None else default) if exposure.has("dq") else 0
        layers.append(
            Layer(
                record.index,
                bit,
                exposure.group,
                record.row,
                record.shape,
                record.planes,
                record.wcs_kind,
                level,
                weight,
                constant,
                bad,
            )
        )
    return tuple(layers)


def _weighting(exposure: Exposure, weight_type: str) -> tuple[str, float]:
    """Where the weights of an exposure come from (spec §7.4); without read-noise variance a weight map, else 1."""
    record = exposure.record
    if weight_type == "exptime":
        time = record.measurement_time or record.exposure_time
        if not time or time <= 0 or not math.isfinite(time):
            raise InputError(
                f"{record.url}: exposure time is {time}, so weight_type 'exptime' has no weight:"
                " use weight_type ivm or mend the header"
            )
        return "constant", float(time)
    if weight_type == "ivm" and exposure.has("var_rnoise"):
        return "var_rnoise", 1.0
    if weight_type in ("ivm", "weight_map") and exposure.has("weight"):
        return "weight", 1.0
    if weight_type == "weight_map":
        raise InputError(
            f"{record.url}: no weight map came with it, so weight_type 'weight_map' has no weight: use ivm or none"
        )
    return "constant", 1.0


def noise_planes(exposures: Sequence[Exposure]) -> tuple[str, ...]:
    """Return the error planes of a set of exposures: variances where any has them, else ERR squared, else none."""
    if any(e.has(v) for e in exposures for v in VARIANCES):
        return VARIANCES
    return ("err",) if any(e.has("err") for e in exposures) else ()


def map_key(prefix: str, exposure: int) -> str:
    """Return where a pixel map is kept."""
    return f"{prefix}/{exposure:06d}.npz"


def make_map(obs: Observation, prefix: str, exposure: Exposure, frame: MosaicFrame, sampling: Sampling) -> PixelMap:
    """Return the map of an exposure into a mosaic; it is made once and kept in the store."""
    key = map_key(prefix, exposure.record.index)
    kept = obs.backend.get(key)
    if kept is not None:
        return PixelMap.from_bytes(kept)
    try:
        made = pixel_map(exposure.wcs, frame.wcs, sampling)
    except InputError as error:
        raise InputError(f"{exposure.record.url}: {error}") from error
    obs.backend.put(key, made.to_bytes())
    return made


def read_map(obs: Observation, prefix: str, exposure: int) -> PixelMap:
    """Return a kept pixel map."""
    data = obs.backend.get(map_key(prefix, exposure))
    if data is None:
        raise StoreError(f"{obs.url}/{map_key(prefix, exposure)} is missing: run the stage again")
    return PixelMap.from_bytes(data)
