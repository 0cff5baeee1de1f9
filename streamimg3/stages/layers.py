"""What a drizzle stage knows of its exposures: small facts, written once to the store and read by every worker."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from streamimg3.errors import InputError, StoreError
from streamimg3.sky.correction import Correction
from streamimg3.sky.mosaic_frame import Reference
from streamimg3.sky.wcs import Wcs
from streamimg3.stages.pixel_maps import map_name
from streamimg3.store import Exposure, Observation
from streamimg3.store.documents import OutlierDocument, SkyDocument, revive
from streamimg3.store.flags import bad_bits
from streamimg3.store.layout import FLAT_PLANES, VARIANCES


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
    correction : Correction or None
        What alignment adds to the WCS.
    level : float
        Sky to be subtracted, 0 = none, in the image's unit.
    weight : str
        ``var_rnoise`` (inverse), ``weight`` (map) or ``constant``.
    constant : float
        Weight of a good pixel where ``weight`` is ``constant`` (1, or seconds).
    bad : int
        Flags that exclude a pixel.
    map : str
        Name of its pixel map.
    elsewhere : tuple of (str, str, int)
        Planes that do not lie under ``path`` at ``row``: name, array, and place in it.
    """

    exposure: int
    bit: int
    path: str
    row: int
    shape: tuple[int, int]
    planes: tuple[str, ...]
    wcs_kind: str
    correction: Correction | None
    level: float
    weight: str
    constant: float
    bad: int
    map: str
    elsewhere: tuple[tuple[str, str, int], ...] = ()

    def source(self, plane: str) -> tuple[str, int]:
        """Return the array that holds a plane, and the place in it."""
        own = f"{self.path}/{plane}", self.row
        return next(((array, at) for name, array, at in self.elsewhere if name == plane), own)


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


def layer_names(setup: Setup) -> list[str]:
    """Return what tasks call the layers that they read."""
    return [f"{layer.path}[{layer.row}]" for layer in setup.layers]


def setup_key(digest: str) -> str:
    """Return where a set-up is kept."""
    return f"scratch/{digest}/setup.json"


@lru_cache(maxsize=4)
def read_setup(obs: Observation, digest: str) -> Setup:
    """Return the set-up of a stage (read once per process)."""
    data = obs.backend.get(setup_key(digest))
    if data is None:
        raise StoreError(f"{obs.url}/{setup_key(digest)} is missing: run the stage again")
    setup: Setup = revive(Setup, json.loads(data))
    return setup


def sky_levels(obs: Observation, exposures: Sequence[Exposure], matched: bool = True) -> list[float]:
    """Return what is to be subtracted from the stored pixels of each exposure: the matched level, else BKGLEVEL.

    What the exposure came without already (BKGSUB) is not taken off twice.
    """
    document = obs.document(SkyDocument) if matched else None
    levels = []
    for record in (e.record for e in exposures):
        before = record.bkglevel or 0.0
        found = document.levels[record.index] if document is not None else None
        level = before if found is None else found
        levels.append(level - before if record.bkgsub else level)
    return levels


def flagged(obs: Observation) -> OutlierDocument | None:
    """Return the document of the outliers if exposures have flags of their own in the store."""
    found = obs.document(OutlierDocument)
    return found if found is not None and found.status == "COMPLETE" else None


@dataclass(frozen=True)
class Selection:
    """Which pixels take part with what weight: ``weight_type``, ``good_bits`` (None = ``usual`` for JWST, no flag for
    others), whether pixels flagged as outliers are left out, and whether the matched sky is taken off."""

    weight_type: str
    good_bits: str | None
    usual: str = "~DO_NOT_USE+NON_SCIENCE"
    outliers: bool = False
    sky: bool = True


def make_layers(obs: Observation, exposures: Sequence[Exposure], select: Selection) -> tuple[Layer, ...]:
    """Return the layers of a mosaic in order.

    Raises
    ------
    InputError
        If exposure times are needed and missing or zero.
    """
    levels = sky_levels(obs, exposures, select.sky)
    layers = []
    for bit, (exposure, level) in enumerate(zip(exposures, levels, strict=True)):
        record = exposure.record
        weight, constant = _weighting(exposure, select.weight_type)
        usual = select.usual if record.is_jwst else "0"
        good = select.good_bits if select.good_bits is not None else usual
        layers.append(
            Layer(
                record.index,
                bit,
                exposure.group,
                record.row,
                record.shape,
                (*record.planes, "outlier") if select.outliers else record.planes,
                record.wcs_kind,
                exposure.correction,
                level,
                weight,
                constant,
                bad_bits(good) if exposure.has("dq") else 0,
                map_name(exposure),
            )
        )
    return tuple(layers)


def integration_layers(
    layers: Sequence[Layer], exposures: Sequence[Exposure], folder: Callable[[Exposure], tuple[str, int]]
) -> tuple[Layer, ...]:
    """Return a layer for each integration of cubes, given those of the exposures.

    Parameters
    ----------
    layers : sequence of Layer
        One for each exposure.
    exposures : sequence of Exposure
        Cubes.
    folder : callable
        Gives the stack that holds ``sci`` of an exposure's integrations, and the place of the first one in it.
    """
    made: list[Layer] = []
    for layer, exposure in zip(layers, exposures, strict=True):
        shared = "pixeldq" in layer.planes  # one image of flags for all integrations
        planes = (*layer.planes, "dq") if shared else layer.planes
        deep = [p for p in (*layer.planes, "nan") if p != "sci" and p not in FLAT_PLANES]
        for t in range(exposure.depth):
            found = [(p, f"{layer.path}/{p}", exposure.record.first + t) for p in deep]
            found += [("dq", f"{layer.path}/pixeldq", layer.row)] if shared else []
            stack, first = folder(exposure)
            elsewhere = (("sci", f"{stack}/sci", first + t), *found)
            made.append(dataclasses.replace(layer, bit=len(made), planes=planes, elsewhere=elsewhere))
    return tuple(made)


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


def reference(exposure: Exposure) -> Reference:
    """Return an exposure as the one that lends scale and orientation."""
    r = exposure.record
    if r.ra_ref is None or r.dec_ref is None or r.roll_ref is None or r.v3yangle is None or r.vparity is None:
        return Reference.measured(exposure.wcs)
    return Reference(exposure.wcs, r.ra_ref, r.dec_ref, r.roll_ref, r.v3yangle, r.vparity)
