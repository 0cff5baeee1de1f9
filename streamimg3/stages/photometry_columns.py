"""The table of photometry of time series: columns, units and what it says of itself (spec others §2.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamimg3.kernels.time_aperture import Apertures, TimeSums
from streamimg3.stages.photometry_passes import Aim, How
from streamimg3.stages.series_blocks import Setting, times_of
from streamimg3.store import Exposure
from streamimg3.store.documents import CatalogColumn
from streamimg3.store.rows import Column
from streamimg3.store.series_documents import SeriesFacts

F8 = NDArray[np.float64]

_SUMS = {
    "aperture_sum": "sum in the aperture",
    "aperture_sum_err": "error of aperture_sum",
    "annulus_sum": "sum in the ring of the background",
    "annulus_sum_err": "error of annulus_sum",
    "annulus_mean": "mean of the ring, per pixel",
    "annulus_mean_err": "error of annulus_mean",
    "aperture_bkg": "background in the aperture",
    "aperture_bkg_err": "error of aperture_bkg",
    "net_aperture_sum": "aperture_sum less aperture_bkg",
    "net_aperture_sum_err": "error of net_aperture_sum",
}
_AROUND = ("annulus_sum", "annulus_sum_err", "annulus_mean", "annulus_mean_err", "aperture_bkg", "aperture_bkg_err")
_OF_RADIUS = (
    "aperture_sum", "aperture_sum_err", "aperture_bkg", "aperture_bkg_err", "net_aperture_sum", "net_aperture_sum_err"
)  # fmt: skip


def unit_of(facts: SeriesFacts) -> str:
    """Return the unit of the photometry of a segment."""
    return {"MJy/sr": "Jy", "DN/s": "electron"}.get(facts.bunit or "", facts.bunit or "1")


def photometry_columns(
    setting: Setting, how: How, aims: Mapping[int, Aim], fits: Sequence[F8] | None, sums: Sequence[F8]
) -> tuple[list[Column], list[str]]:
    """Return the columns of the table, and what a user should know.

    Parameters
    ----------
    setting : Setting
        The store.
    how, aims
        Boxes and apertures, and where they were.
    fits, sums : sequence of ndarray
        Rows of the passes for each series.
    """
    facts = [setting.entry(r).facts for one in setting.series for r in one.records]
    unit, notes = unit_of(facts[0]), []
    if unit not in ("Jy", "electron"):
        notes.append(f"the unit {unit} is kept as it is: only MJy/sr and DN/s are converted")
    times = [times_of(setting.obs, one) for one in setting.series]
    mjd, bjd = (np.concatenate([t[f"int_mid_{kind}"] for t in times]).astype(float) for kind in ("mjd_utc", "bjd_tdb"))
    if np.isnan(mjd).any():
        notes.append(f"the times of {int(np.isnan(mjd).sum())} integrations are unknown")
    columns: list[Column] = [
        (CatalogColumn("MJD", "float64", description="middle of the integration, MJD, UTC"), mjd),
        (CatalogColumn("BJD_TDB", "float64", description="middle of the integration, barycentric MJD, TDB"), bjd),
    ]
    found = _sums(np.concatenate(sums), len(how.apertures.radii))
    whole = np.concatenate(
        [np.full(r.integrations, aims[r.index].whole) for one in setting.series for r in one.records]
    )
    main = _main(found, whole)
    bare = _AROUND if whole.all() else ()  # what is not measured has no unit, as in the reference
    columns += [
        (CatalogColumn(name, "float64", None if name in bare else unit, text), main[name])
        for name, text in _SUMS.items()
    ]
    columns += _places(setting, aims, fits)
    if fits is not None:
        columns += _fitted(np.concatenate(fits), unit)
    for place, radius in enumerate(how.apertures.radii[1:], 1):
        extra = _of_circle(found, place)
        columns += [
            (CatalogColumn(f"{n}_r{radius:g}", "float64", unit, f"{_SUMS[n]}, radius {radius:g} pixels"), extra[n])
            for n in _OF_RADIUS
        ]
    return columns, notes


def _sums(rows: F8, circles: int) -> TimeSums:
    parts = rows[:, : 3 * circles].reshape(len(rows), circles, 3)
    ring = rows[:, 3 * circles :]
    return TimeSums(parts[..., 0], parts[..., 1], parts[..., 2], ring[:, 0], ring[:, 1], ring[:, 2])


def _of_circle(found: TimeSums, place: int) -> dict[str, F8]:
    return {
        "aperture_sum": found.total[:, place], "aperture_sum_err": found.error[:, place],
        "aperture_bkg": found.background[:, place], "aperture_bkg_err": found.background_error[:, place],
        "net_aperture_sum": found.net[:, place], "net_aperture_sum_err": found.net_error[:, place],
    }  # fmt: skip


def _main(found: TimeSums, whole: NDArray[np.bool_]) -> dict[str, F8]:
    main = _of_circle(found, 0) | {
        "annulus_sum": found.ring_total, "annulus_sum_err": found.ring_error,
        "annulus_mean": found.ring_mean, "annulus_mean_err": found.ring_mean_error,
    }  # fmt: skip
    main["net_aperture_sum"] = np.where(whole, main["aperture_sum"], main["net_aperture_sum"])
    main["net_aperture_sum_err"] = np.where(whole, main["aperture_sum_err"], main["net_aperture_sum_err"])
    return main


def _places(setting: Setting, aims: Mapping[int, Aim], fits: Sequence[F8] | None) -> list[Column]:
    """Where the apertures were, in pixels and on the sky."""
    found = []
    for number, one in enumerate(setting.series):
        for record in one.records:
            centre, start = aims[record.index].centre, one.start(record)
            if centre is not None:
                yx = np.broadcast_to(np.array(centre), (record.integrations, 2))
            else:
                assert fits is not None  # apertures follow what was fitted
                yx = fits[number][start : start + record.integrations, :2]
            ra, dec = Exposure(setting.obs, record).wcs.to_sky(yx[:, 0].copy(), yx[:, 1].copy())
            found.append(np.column_stack([yx[:, 1], yx[:, 0], ra, dec]))
    x, y, ra, dec = np.concatenate(found).T.copy()
    return [
        (CatalogColumn("aperture_x", "float64", "pix", "column of the aperture's centre, from 0"), x),
        (CatalogColumn("aperture_y", "float64", "pix", "row of the aperture's centre, from 0"), y),
        (CatalogColumn("aperture_ra_icrs", "float64", "deg", "right ascension of the aperture's centre"), ra),
        (CatalogColumn("aperture_dec_icrs", "float64", "deg", "declination of the aperture's centre"), dec),
    ]


def _fitted(rows: F8, unit: str) -> list[Column]:
    y, x, wide_y, wide_x, flux = rows.T.copy()
    return [
        (CatalogColumn("centroid_x", "float64", "pix", "column of the star, from 0"), x),
        (CatalogColumn("centroid_y", "float64", "pix", "row of the star, from 0"), y),
        (CatalogColumn("psf_width_x", "float64", "pix", "width of the star in x, standard deviation"), wide_x),
        (CatalogColumn("psf_width_y", "float64", "pix", "width of the star in y, standard deviation"), wide_y),
        (CatalogColumn("psf_flux", "float64", unit, "flux of the fitted Gaussian"), flux),
    ]


def table_meta(facts: SeriesFacts, apertures: Apertures, whole: bool, rows: int) -> dict[str, Any]:
    """Return what a table says of itself, under the reference's names."""
    radii = ", ".join(f"{r:g}" for r in apertures.radii)
    text = f"circle of radius {radii} pixels; background: mean of the ring from {apertures.ring[0]:g} to {apertures.ring[1]:g}"
    names = ("instrument", "detector", "channel", "subarray", "filter", "pupil")
    meta: dict[str, Any] = {name: getattr(facts, name) for name in names}
    described = "sum of all pixels of the sub-array; no background is subtracted" if whole else text
    return meta | {"target_name": facts.target, "apertures": described, "number_of_integrations": rows}
