"""What a store holds, in words."""

from __future__ import annotations

from streamimg3.store import Observation
from streamimg3.store.documents import AssociationDocument, ResampleDocument


def describe(obs: Observation) -> str:
    """Return a text that lists exposures, mosaic planes, documents and what was noted.

    Parameters
    ----------
    obs : Observation
        A finished store.
    """
    lines = [f"store    {obs.url}"]
    association = obs.document(AssociationDocument)
    if association is not None:
        lines.append(f"product  {association.product}" + (f" (from {association.table})" if association.table else ""))
    records = obs.records()
    lines.append(f"exposures: {len(records)}")
    for r in records:
        time = f"{r.exposure_time:g} s" if r.exposure_time else "time unknown"
        size = f"{r.shape[0]} x {r.shape[1]}"
        lines.append(
            f"  {r.index:3d} {r.name}  {size} (y, x)  {time}  {r.bunit or 'no unit'}  {' '.join(r.planes)}  wcs {r.wcs_kind}"
        )
        lines += [f"      {note}" for note in r.notes]
    for name in [k.removesuffix(".json") for k in obs.backend.keys("documents")]:
        if name == "resample" or name.startswith("resample-"):
            lines += _mosaic(obs, name)
    return "\n".join(lines)


def _mosaic(obs: Observation, name: str) -> list[str]:
    document = obs.document(ResampleDocument, name)
    if document is None:
        return []
    ny, nx = document.shape
    lines = [f"{document.path}: {ny} x {nx} (y, x), {document.pixel_scale:.5g} arcsec/pixel, tiles of {document.tile}"]
    for plane in document.planes:
        array = obs.array(f"{document.path}/{plane}")
        attrs = dict(array.attrs)
        dims = ", ".join(str(d) for d in array.metadata.dimension_names)
        lines.append(f"  {plane:12s} ({dims})  {array.dtype}  {attrs['units']}  {attrs['long_name']}")
    errors = [e for e in document.map_errors if e is not None]
    if errors:
        lines.append(f"  pixel maps: largest measured error {max(errors):.1e} pixel")
    cost = document.cost
    lines.append(
        f"  made in {cost.wall_s:.1f} s, {cost.cpu_s:.1f} s of processor time, peak memory {cost.peak_rss / 2**20:.0f} MiB"
    )
    return lines + [f"  {note}" for note in document.notes]
