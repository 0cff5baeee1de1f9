"""Small exposures with a smooth, turned and distorted pixel map, and the drizzle library that judges ours."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
from drizzle.resample import Drizzle
from numpy.typing import NDArray

from streamimg3.geometry import Box
from streamimg3.kernels.drizzle import Canvas, Kernel, Patch, drizzle

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I4 = NDArray[np.int32]


@dataclass(frozen=True)
class Scene:
    """An exposure: its map (``y``, ``x``; output pixels), image, weights, two variances, flags and row limits."""

    y: F8
    x: F8
    data: F4
    weight: F4
    noise: F4
    dq: NDArray[np.uint32]
    limits: I4

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.data.shape  # type: ignore[return-value]

    def patch(self, box: Box | None = None) -> Patch:
        """The pixels of a box, with the map one pixel further where the exposure goes on."""
        whole = Box.of_shape(self.shape)
        box = box or whole
        grown = box.grow(1).intersect(whole) or box
        rows, cols = box.slices
        return Patch(
            (box.y0, box.x0), self.shape,
            np.ascontiguousarray(self.y[grown.slices]), np.ascontiguousarray(self.x[grown.slices]),
            np.ascontiguousarray(self.data[None, rows, cols]), np.ascontiguousarray(self.noise[:, rows, cols]),
            np.ascontiguousarray(self.weight[rows, cols]), np.ascontiguousarray(self.limits[rows]),
            np.ascontiguousarray(self.dq[rows, cols]),
        )  # fmt: skip


def everything(shape: tuple[int, int]) -> I4:
    """Row limits that let every pixel take part."""
    return np.tile(np.array([0, shape[1] - 1], np.int32), (shape[0], 1))


def turned_map(
    shape: tuple[int, int], angle: float, ratio: float, centre: tuple[float, float], bend: float = 2e-4
) -> tuple[F8, F8]:
    """A map turned by ``angle`` (degrees) and shrunk by ``ratio`` about the image centre, with a quadratic term."""
    ny, nx = shape
    v, u = np.mgrid[0:ny, 0:nx].astype(float)
    v, u = v - (ny - 1) / 2, u - (nx - 1) / 2
    v, u = v + bend * u * v, u + bend * (u * u - v * v)
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    return centre[0] + (s * u + c * v) / ratio, centre[1] + (c * u - s * v) / ratio


def make_scene(seed: int, shape: tuple[int, int], maps: tuple[F8, F8]) -> Scene:
    """An exposure of noise around 1 with weights of a factor of two and a tenth of its pixels without any."""
    rng = np.random.default_rng(seed)
    weight = rng.uniform(0.5, 1.0, shape).astype(np.float32)
    weight[rng.random(shape) < 0.1] = 0.0
    return Scene(
        maps[0],
        maps[1],
        rng.normal(1.0, 0.3, shape).astype(np.float32),
        weight,
        rng.uniform(0.1, 2.0, (2, *shape)).astype(np.float32),
        (np.uint32(1) << rng.integers(0, 32, shape).astype(np.uint32)).astype(np.uint32),
        everything(shape),
    )


def masked(scene: Scene, used: NDArray[np.bool_]) -> Scene:
    """The same exposure, with weight in some pixels only."""
    return replace(scene, weight=np.where(used, scene.weight, np.float32(0.0)))


def blank(shape: tuple[int, int], origin: tuple[int, int] = (0, 0)) -> Canvas:
    """An empty canvas for one image, two errors and flags."""
    return Canvas.blank(origin, shape, (1, 2), dq=True)


def ours(scenes: list[Scene], kernel: Kernel, shape: tuple[int, int]) -> tuple[Canvas, list[F4]]:
    """Drizzle exposures onto one canvas; also the error planes of each (weight first), which are emptied between."""
    canvas, noise = blank(shape), []
    for bit, scene in enumerate(scenes):
        drizzle(canvas, scene.patch(), kernel, bit)
        noise.append(canvas.noise.copy())
        canvas.noise[...] = 0.0
    return canvas, noise


def library(scenes: list[Scene], kernel: Kernel, shape: tuple[int, int]) -> tuple[Drizzle, list[list[Drizzle]]]:
    """The same through the drizzle library: image with context and flags, and each error plane by itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not .*flux")  # gaussian and lanczos: as documented
        warnings.filterwarnings("ignore", message=".*pixel_fraction is ignored")  # lanczos
        warnings.filterwarnings("ignore", message="Kernel reset to .point.")  # a drop of size 0
        image = Drizzle(kernel=kernel.name, fillval="0", out_shape=shape, out_dq=np.zeros(shape, np.uint32))
        noise = []
        for scene in scenes:
            options = {
                "exptime": 1.0, "pixmap": np.dstack([scene.x, scene.y]), "weight_map": scene.weight,
                "pixfrac": kernel.pixfrac, "pixel_scale_ratio": kernel.ratio, "iscale": 1.0, "in_units": "cps",
            }  # fmt: skip
            image.add_image(scene.data, dq=scene.dq, **options)
            planes = [Drizzle(kernel=kernel.name, fillval="0", out_shape=shape, disable_ctx=True) for _ in scene.noise]
            for plane, variance in zip(planes, scene.noise, strict=True):
                plane.add_image(np.sqrt(variance), **options)
            noise.append(planes)
    return image, noise
