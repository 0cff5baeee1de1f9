"""The finished mosaic as source_catalog sees it: flux per pixel, coverage, background, and the smoothed image.

Spec image3 §9.2.  Every function takes any window and gives the same bits for a pixel in each.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamimg3.engine import Task
from streamimg3.errors import StoreError
from streamimg3.geometry import Box, TileGrid
from streamimg3.kernels.background import (
    BoxStatistics,
    Mesh,
    box_statistics,
    clamp_boxsize,
    solve_mesh,
    whole_mesh,
)
from streamimg3.kernels.smooth import gaussian, smooth
from streamimg3.store import Observation

F4 = NDArray[np.float32]
Bool = NDArray[np.bool_]
Array = NDArray[Any]
Table = Mapping[str, Array]
Work = Callable[..., dict[str, float]]

# Bytes that a task holds for each pixel of its window, measured
MESH_BYTES, LABEL_BYTES = 28, 28
SPARE = 12 * 2**20  # codec buffers and what does not grow with the window
_BAND_ROWS = 128


@dataclass(frozen=True)
class Scene:
    """The mosaic and what it is looked at with; small, so that it travels to the workers.

    Parameters
    ----------
    mark : str
        Digest of the stage; intermediate results are kept under it.
    path : str
        Where the mosaic's planes are.
    shape : tuple of int
        Rows and columns.
    tile : int
        Side of a tile (a shard of every plane).
    has_err : bool
        Whether there is an error plane.
    factor : float
        Turns pixels into flux; 1 = they stay as they are.
    boxsize : int
        Side of a background box.
    fwhm : float
        Width of the smoothing Gaussian in pixels.
    gain : float or None
        Electrons per unit of the image, for a mosaic without errors.
    read_noise : float or None
        Noise of a pixel without signal in the image's unit, for a mosaic without errors; None = that of the background.
    """

    mark: str
    path: str
    shape: tuple[int, int]
    tile: int
    has_err: bool
    factor: float
    boxsize: int
    fwhm: float
    gain: float | None = None
    read_noise: float | None = None

    @property
    def image(self) -> Box:
        """All pixels."""
        return Box.of_shape(self.shape)

    @property
    def grid(self) -> TileGrid:
        """The tiles."""
        return TileGrid(self.shape, self.tile)

    @property
    def boxes(self) -> tuple[int, int]:
        """Rows and columns of a background box."""
        return clamp_boxsize(self.boxsize, self.shape)

    @property
    def halo(self) -> int:
        """Pixels that smoothing needs around a window."""
        return int(gaussian(self.fwhm).shape[0] // 2)

    def key(self, name: str) -> str:
        """Return where an intermediate result is kept."""
        return f"scratch/{self.mark}/{name}"


@dataclass(frozen=True)
class View:
    """A window of the mosaic: raw flux, flux without background, the smoothed image, and pixels to leave out."""

    box: Box
    raw: F4
    data: F4
    smooth: F4
    bad: Bool


# ---------------------------------------------------------------- small tables
def write_table(obs: Observation, key: str, table: Table) -> None:
    """Keep small arrays under a name."""
    sink = io.BytesIO()
    np.savez_compressed(sink, allow_pickle=False, **table)
    obs.backend.put(key, sink.getvalue())


def read_table(obs: Observation, key: str, names: tuple[str, ...] | None = None, without: str = "\n") -> Table:
    """Return small arrays: all, those of some names, or those whose names do not start with something.

    Raises
    ------
    StoreError
        If they are not there.
    """
    data = obs.backend.get(key)
    if data is None:
        raise StoreError(f"{obs.url}/{key} is missing: run the stage again")
    with np.load(io.BytesIO(data), allow_pickle=False) as found:
        return {name: found[name] for name in names or found.files if not name.startswith(without)}


# ---------------------------------------------------------------- planes
def read_plane(obs: Observation, scene: Scene, plane: str, box: Box) -> NDArray[np.generic]:
    """Return a window of a plane, read tile by tile: all at once, the codec would hold a multiple of it."""
    array = obs.array(f"{scene.path}/{plane}")
    values: NDArray[np.generic] = np.empty(box.shape, array.dtype)
    for tile in scene.grid.touching(box):
        part = tile.box.intersect(box)
        assert part is not None  # the grid yields touching tiles only
        values[part.within(box)] = obs.window(f"{scene.path}/{plane}", (), part)
    return values


def uncovered(obs: Observation, scene: Scene, box: Box) -> Bool:
    """Return the pixels without weight or, where there are errors, without an error."""
    bad: Bool = read_plane(obs, scene, "wht", box) == 0
    if scene.has_err:
        bad |= np.isnan(read_plane(obs, scene, "err", box))
    return bad


def flux(obs: Observation, scene: Scene, plane: str, box: Box) -> F4:
    """Return a window of ``sci`` or ``err`` as flux per pixel, float32."""
    values = read_plane(obs, scene, plane, box).astype(np.float32, copy=False)
    if scene.factor != 1.0:
        with np.errstate(invalid="ignore", over="ignore"):
            values *= np.float32(scene.factor)
    return values


def view(obs: Observation, scene: Scene, mesh: Mesh, box: Box) -> View:
    """Return a window with everything that sources are found in."""
    halo = scene.halo
    outer = box.grow(halo).intersect(scene.image)
    assert outer is not None
    raw, bad = flux(obs, scene, "sci", outer), uncovered(obs, scene, outer)
    with np.errstate(invalid="ignore", over="ignore"):
        data = raw - mesh.background(*outer.as_tuple())
    frame = box.grow(halo)
    if frame == outer:
        smoothed = smooth(data, bad, gaussian(scene.fwhm))
    else:  # beyond the image's edge there are zeros, which count
        padded, flags = np.zeros(frame.shape, np.float32), np.zeros(frame.shape, np.bool_)
        padded[outer.within(frame)], flags[outer.within(frame)] = data, bad
        smoothed = smooth(padded, flags, gaussian(scene.fwhm))
        del padded, flags
    inner = box.within(outer)
    raw = np.ascontiguousarray(raw[inner])  # one after the other, so that the larger windows are let go
    data = np.ascontiguousarray(data[inner])
    bad = np.ascontiguousarray(bad[inner])
    return View(box, raw, data, smoothed, bad)


def errors(obs: Observation, scene: Scene, mesh: Mesh, seen: View) -> F4:
    """Return the standard error of every pixel of a window, float32, in units of flux.

    Without an error plane: the background's noise (or ``read_noise``), and with ``gain`` the source's own photons.
    """
    if scene.has_err:
        return flux(obs, scene, "err", seen.box)
    if scene.read_noise is None:
        noise = mesh.noise(*seen.box.as_tuple())
    else:
        noise = np.full(seen.box.shape, scene.read_noise * scene.factor, np.float32)
    if scene.gain is not None:
        with np.errstate(invalid="ignore"):
            photons = np.maximum(seen.data, np.float32(0)) * np.float32(scene.factor / scene.gain)
        noise = np.sqrt(noise * noise + np.nan_to_num(photons, nan=0.0, posinf=0.0))
    return noise


# ---------------------------------------------------------------- background mesh
def mesh_tasks(scene: Scene) -> list[Task]:
    """One task for each row of background boxes; it holds one box at a time."""
    by, bx = scene.boxes
    ny, nx = scene.shape
    need = min(by, ny) * min(bx, nx) * MESH_BYTES + SPARE
    return [
        Task(f"b{row:05d}", need, need, reads=((f"{scene.path}/sci", (y0, 0, min(y0 + by, ny), nx)),), item=row)
        for row, y0 in enumerate(range(0, ny, by))
    ]


def mesh_work(task: Task, *, obs: Observation, scene: Scene) -> dict[str, float]:
    """Keep the statistics of one row of boxes."""
    row = task.item if isinstance(task.item, int) else task.item[0]
    (by, bx), (ny, nx) = scene.boxes, scene.shape
    found = []
    for x0 in range(0, nx, bx):
        box = Box(row * by, x0, min((row + 1) * by, ny), min(x0 + bx, nx))
        found.append(box_statistics(flux(obs, scene, "sci", box), uncovered(obs, scene, box), scene.boxes))
    columns = {n: np.concatenate([getattr(f, n) for f in found], axis=1) for n in ("median", "rms", "count")}
    write_table(obs, scene.key(f"boxes/{task.key}"), columns)
    return {}


def whole_mesh_task(scene: Scene) -> Task:
    """The task that takes the whole image for one box, where all boxes are too poor."""
    need = _BAND_ROWS * scene.shape[1] * MESH_BYTES + SPARE
    return Task("whole", need, need, reads=((f"{scene.path}/sci", scene.image.as_tuple()),))


def whole_mesh_work(task: Task, *, obs: Observation, scene: Scene) -> dict[str, float]:
    """Keep the mesh of one box that is the whole image."""

    def bands() -> Iterator[tuple[F4, Bool]]:
        for y0 in range(0, scene.shape[0], _BAND_ROWS):
            box = Box(y0, 0, min(y0 + _BAND_ROWS, scene.shape[0]), scene.shape[1])
            yield flux(obs, scene, "sci", box), uncovered(obs, scene, box)

    keep_mesh(obs, scene, whole_mesh(bands, scene.shape))
    return {}


def joined_mesh(obs: Observation, scene: Scene) -> Mesh | None:
    """Return the mesh of all boxes, None if every one is too poor."""
    rows = [read_table(obs, scene.key(f"boxes/{task.key}")) for task in mesh_tasks(scene)]
    found = BoxStatistics.stack([BoxStatistics(row["median"], row["rms"], row["count"]) for row in rows])
    return solve_mesh(found, scene.boxes, scene.shape)


def keep_mesh(obs: Observation, scene: Scene, mesh: Mesh | None) -> None:
    """Write the mesh for the workers; without one, an empty table."""
    if mesh is None:
        write_table(obs, scene.key("mesh"), {})
        return
    table = {"median": mesh.median, "rms": mesh.rms, "boxsize": np.array(mesh.boxsize), "shape": np.array(mesh.shape)}
    write_table(obs, scene.key("mesh"), table)


@lru_cache(maxsize=2)
def read_mesh(obs: Observation, scene: Scene) -> Mesh | None:
    """Return the mesh (read once per process), None if the image has no good pixel."""
    table = read_table(obs, scene.key("mesh"))
    if not table:
        return None
    (by, bx), (ny, nx) = table["boxsize"].tolist(), table["shape"].tolist()
    return Mesh(table["median"], table["rms"], (by, bx), (ny, nx))


def known_mesh(obs: Observation, scene: Scene) -> Mesh:
    """Return the mesh where there must be one."""
    mesh = read_mesh(obs, scene)
    if mesh is None:
        raise StoreError(f"{obs.url}/{scene.key('mesh')} is empty: run the stage again")
    return mesh


def bound(work: Work, obs: Observation, scene: Scene, **more: object) -> partial[dict[str, float]]:
    """Return a work function with all but its task."""
    return partial(work, obs=obs, scene=scene, **more)
