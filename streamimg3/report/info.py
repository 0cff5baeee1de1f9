"""What a store holds, in words."""

from __future__ import annotations

import textwrap

from streamimg3.store import Observation
from streamimg3.store.coron_documents import AlignRefsDocument, KlipDocument
from streamimg3.store.cubes import CubeStack, cube_stacks
from streamimg3.store.documents import AssociationDocument, CalibrationDocument, ResampleDocument
from streamimg3.store.layout import COLUMNS, FLAGS
from streamimg3.store.series_documents import LightCurveDocument, PhotometryDocument, SpectraDocument


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
        size = f"{r.shape[0]} x {r.shape[1]} (y, x)"
        if r.integrations:
            size = f"{r.integrations} x {r.shape[0]} x {r.shape[1]} (integration, y, x)"
        lines.append(
            f"  {r.index:3d} {r.name}  {size}  {time}  {r.bunit or 'no unit'}  {' '.join(r.planes)}  wcs {r.wcs_kind}"
        )
        lines += [f"      {note}" for note in r.notes]
    for stack in cube_stacks(records):
        lines += _cubes(obs, stack)
    for name in [k.removesuffix(".json") for k in obs.backend.keys("documents")]:
        if name == "resample" or name.startswith(("resample-", "rectified-")):
            lines += _mosaic(obs, name)
    return "\n".join([*lines, *_calibration(obs), *_coronagraphy(obs), *_series(obs)])


def _coronagraphy(obs: Observation) -> list[str]:
    """Lines about the alignment of reference stars and the subtraction of the star."""
    alignment, subtraction = obs.document(AlignRefsDocument), obs.document(KlipDocument)
    lines = []
    if alignment is not None:
        lines.append(f"align_refs {alignment.status}" + (f": {alignment.reason}" if alignment.reason else ""))
        lines += [f"  {note}" for note in alignment.notes]
    if subtraction is not None:
        lines.append(f"klip: {subtraction.references} references, truncate {', '.join(map(str, subtraction.truncate))}")
        lines += [f"  {note}" for note in subtraction.notes]
    return lines


def _series(obs: Observation) -> list[str]:
    """Lines about photometry, spectra and light curves of time series."""
    photometry, spectra = obs.document(PhotometryDocument), obs.document(SpectraDocument)
    curves, lines = obs.document(LightCurveDocument), []
    if photometry is not None:
        lines.append(f"photometry: {photometry.rows} integrations, {len(photometry.columns)} columns")
        lines += [f"  {note}" for note in photometry.notes]
    if spectra is not None:
        for one in spectra.spectra:
            count = sum(s.last - s.first for s in one.segments)
            lines.append(
                f"{one.path}: {count} x {one.points} (integration, wavelength), order {one.order}, {one.flux_unit}"
            )
        lines += [f"  {note}" for note in spectra.notes]
    if curves is not None and curves.rows:
        lines.append(f"white_light: {curves.rows} integrations, {', '.join(c.name for c in curves.columns)}")
    return lines


def _calibration(obs: Observation) -> list[str]:
    """Lines about what image2 calibrated the exposures by."""
    document = obs.document(CalibrationDocument)
    if document is None:
        return []
    used = dict.fromkeys((r.reftype, r.value) for e in document.exposures for r in e.references)
    lines = [f"calibrated up to {document.last}, {len(document.backgrounds)} means of backgrounds"]
    lines += [f"  {kind:15s} {value}" for kind, value in used]
    for entry in document.exposures:
        steps = ", ".join(f"{step} {status}" for step, status in entry.statuses.items())
        lines.append(f"  {entry.name}: {steps}" + "".join(f"; {step}: {why}" for step, why in entry.reasons.items()))
    return lines


def _cubes(obs: Observation, stack: CubeStack) -> list[str]:
    """Lines about the planes of a stack of cubes, what is known of each integration, and its flags."""
    ny, nx = stack.shape
    lines = [f"{stack.path}: {stack.count} x {ny} x {nx} (integration, y, x) of {len(stack.records)} exposures"]
    names = dict.fromkeys(p for r in stack.records for p in r.planes)
    for name in (*names, "nan", *COLUMNS):
        lines.append(_line(obs, f"{stack.path}/{name}"))
    if names.keys() & {"dq", "pixeldq"}:
        flags = "flags: " + ", ".join(f"{value}={name}" for name, value in FLAGS.items())
        lines += textwrap.wrap(flags, 120, initial_indent="  ", subsequent_indent="    ")
    return lines


def _line(obs: Observation, path: str) -> str:
    """Return name, dimensions, type, unit and meaning of an array."""
    array = obs.array(path)
    attrs = dict(array.attrs)
    dims = ", ".join(str(d) for d in array.metadata.dimension_names)
    name = path.rsplit("/", 1)[1]
    return f"  {name:12s} ({dims})  {array.dtype}  {attrs.get('units', '1')}  {attrs['long_name']}"


def _mosaic(obs: Observation, name: str) -> list[str]:
    document = obs.document(ResampleDocument, name)
    if document is None:
        return []
    ny, nx = document.shape
    lines = [f"{document.path}: {ny} x {nx} (y, x), {document.pixel_scale:.5g} arcsec/pixel, tiles of {document.tile}"]
    for plane in document.planes:
        lines.append(_line(obs, f"{document.path}/{plane}"))
    errors = [e for e in document.map_errors if e is not None]
    if errors:
        lines.append(f"  pixel maps: largest measured error {max(errors):.1e} pixel")
    cost = document.cost
    lines.append(
        f"  made in {cost.wall_s:.1f} s, {cost.cpu_s:.1f} s of processor time, peak memory {cost.peak_rss / 2**20:.0f} MiB"
    )
    return lines + [f"  {note}" for note in document.notes]
