"""A mosaic with sources where tiles are hard on them, in a store, without any pipeline step before it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamimg3.geometry import Box, TileGrid
from streamimg3.store import Observation
from streamimg3.store.columns import read_column
from streamimg3.store.documents import ApertureDocument, ApertureRow, CatalogDocument, ResampleDocument
from tests.formats.mosaics import frame_text, jwst_cards, jwst_record, write_exposures

F4 = NDArray[np.float32]
SHAPE = (205, 230)  # of no tile a multiple
EDGE = 64  # side of a tile that the sources are laid out for
APCORR = tuple(
    ApertureRow(ee, radius, correction, 6.0, 9.0)
    for ee, radius, correction in ((30, 0.9, 3.4), (50, 1.5, 2.1), (70, 2.5, 1.4))
)


@dataclass(frozen=True)
class Scene:
    """Planes of a mosaic."""

    sci: F4
    err: F4
    wht: F4
    planes: dict[str, F4] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "planes", {"sci": self.sci, "err": self.err, "wht": self.wht})


def blob(y: float, x: float, flux: float, sigma: float, stretch: float = 1.0, shape: tuple[int, int] = SHAPE) -> Any:
    """A Gaussian of some flux, stretched along the diagonal."""
    v, u = np.mgrid[: shape[0], : shape[1]]
    a, b = (u - x + v - y) / np.sqrt(2) / stretch, (u - x - v + y) / np.sqrt(2)
    return flux / (2 * np.pi * sigma**2 * stretch) * np.exp(-0.5 * (a**2 + b**2) / sigma**2)


def crowded(shape: tuple[int, int] = SHAPE, seed: int = 5) -> Scene:
    """Sources on tile corners, blends across seams, a galaxy over several tiles, a hole, and a rim without coverage."""
    rng = np.random.default_rng(seed)
    image = np.zeros(shape)
    for y, x, flux, sigma, stretch in [
        (64, 64, 800, 1.6, 1), (63.5, 127.5, 500, 1.4, 1), (128, 191, 400, 1.5, 1), (0.5, 100, 300, 1.5, 1),
        (30, 60, 900, 1.5, 1), (30.5, 67, 700, 1.5, 1), (125, 30, 900, 1.5, 1), (132, 31, 900, 1.5, 1),
        (150, 140, 30000, 9, 3), (150, 128, 900, 1.5, 1), (140, 160, 700, 1.5, 1), (170, 162, 500, 1.6, 1),
        (96, 200, 600, 1.5, 1), (99, 206, 550, 1.5, 1), (190, 60, 250, 3, 2), (40, 160, 350, 1.5, 1), (20, 200, 90, 1.5, 1),
    ]:  # fmt: skip
        image += blob(y, x, flux, sigma, stretch, shape)
    for _ in range(25):
        image += blob(rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(60, 300), 1.5, 1, shape)
    err = np.sqrt(0.5 + np.maximum(image, 0) / 50)
    sci = (image + 3.0 + 0.002 * np.arange(shape[1]) + rng.normal(0, 1, shape) * err * 0.7).astype(np.float32)
    wht = np.ones(shape, np.float32)
    gone = np.zeros(shape, np.bool_)
    v, u = np.mgrid[: shape[0], : shape[1]]
    gone |= (u + v < 25) | (u - v > 200)
    gone[62:66, 20:24] = True
    wht[gone], sci[gone] = 0, np.nan
    sci[41, 161] = np.nan  # covered all the same
    noise = err.astype(np.float32)
    noise[gone] = np.nan
    return Scene(sci, noise, wht)


def stored(url: str, scene: Scene, tile: int, **more: Any) -> Observation:
    """Put a scene into a store; ``bunit`` and ``planes`` may be given."""
    obs = Observation.at(url)
    bunit = more.pop("bunit", "MJy/sr")
    record, cards = jwst_record(0, bunit=bunit), jwst_cards(0, PUPIL="CLEAR", SUBARRAY="FULL")
    write_exposures(obs, [record], [cards])
    planes = more.pop("planes", ("sci", "err", "wht"))
    shape = scene.sci.shape
    for plane in planes:
        obs.create_image(f"mosaic/{plane}", shape, tile, bunit)
        for part in TileGrid(shape, tile):  # type: ignore[arg-type]
            obs.write(f"mosaic/{plane}", (), part.box, scene.planes[plane][part.box.slices])
    facts: dict[str, Any] = {
        "digest": "made by hand", "planes": tuple(planes), "shape": shape, "tile": tile, "pixel_scale": 0.036,
        "wcs_asdf": frame_text(shape).decode("latin-1"), "pixel_scale_ratio": 1.25,  # type: ignore[arg-type]
    }  # fmt: skip
    obs.commit(ResampleDocument(**facts | more))
    return obs


def with_references(obs: Observation, **changes: Any) -> dict[str, Any]:
    """Commit what reference files would say; returns the parameters that name them."""
    facts: dict[str, Any] = {"apcorr": "apcorr.fits", "abvegaoffset": "abvega.asdf", "rows": APCORR, "offset": 1.5}
    obs.commit(ApertureDocument(**facts | changes))
    return {"override_apcorr": "apcorr.fits", "override_abvegaoffset": "abvega.asdf"}


def segmentation(obs: Observation) -> NDArray[np.uint32]:
    """The finished map."""
    array = obs.array("mosaic/segmentation")
    return np.asarray(obs.window("mosaic/segmentation", (), Box(0, 0, *array.shape)))


def table(obs: Observation) -> dict[str, NDArray[Any]]:
    """All columns of the catalogue."""
    document = obs.document(CatalogDocument)
    assert document is not None
    return {c.name: read_column(obs, "catalog", c.name) for c in document.columns}
