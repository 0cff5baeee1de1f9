"""What a run leaves outside the store: FITS and ECSV products and previews."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from streamimg3.engine import Runner, Task
from streamimg3.engine.budget import MIB, resident
from streamimg3.errors import InputError
from streamimg3.session import Session
from streamimg3.store import Observation
from streamimg3.store.backend import normalise
from streamimg3.store.documents import (
    AlignmentDocument,
    AssociationDocument,
    CatalogDocument,
    OutlierDocument,
    RunDocument,
)
from streamimg3.store.layout import CHUNK

# Measured while an exposure is written: bytes per pixel of a band; and gwcs, asdf and the metadata
_CRF_PIXEL, _CRF_REST = 32, 88 * MIB
_THINNEST = 32


def export(
    obs: Observation, session: Session, runner: Runner | None = None, run: RunDocument | None = None
) -> list[str]:
    """Write the products of a store: exposures (crf), mosaics (i2d), catalogue (cat) and segmentation map (segm).

    Parameters
    ----------
    obs : Observation
        The store.
    session : Session
        Output folder and memory.
    runner : Runner, optional
        Who does the work; default one of the session's own.
    run : RunDocument, optional
        The run whose products are written; default the last one, with all mosaics that the store holds.

    Returns
    -------
    list of str
        Paths or URLs of what was written.

    Raises
    ------
    InputError
        If the store holds no finished mosaic.
    """
    from streamimg3.formats.i2d import export_i2d
    from streamimg3.stages.resample import NAME

    runner = runner or session.runner(obs.url)
    last = run or obs.document(RunDocument)
    statuses = last.statuses if last else {}
    mosaics: Sequence[str] = run.mosaics if run else _mosaics(obs, NAME)
    written = _exposures(obs, session, runner, statuses) if "outlier_detection" in statuses else []
    for name in mosaics:
        written.append(
            export_i2d(
                obs, session.output_dir, session.storage_options, name=name, limit=runner.memory, statuses=statuses
            )
        )
    outliers = obs.document(OutlierDocument)
    if "outlier_detection" in statuses and outliers is not None and outliers.wcs_asdf:
        from streamimg3.formats.outlier_products import export_outlier_products

        written += export_outlier_products(
            obs, session.output_dir, session.storage_options, statuses=statuses, limit=runner.memory
        )
    if statuses.get("source_catalog", "SKIPPED") != "SKIPPED":
        written += _catalog(obs, session, runner, statuses)
    if statuses.get("tweakreg", "SKIPPED") != "SKIPPED":
        written += _stars(obs, session)
    for url in written:
        session.progress.note(f"wrote {url}")
    if not written and run is None:
        raise InputError(f"{obs.url} holds no finished mosaic: run image3 first")
    return written


def _exposures(obs: Observation, session: Session, runner: Runner, statuses: Mapping[str, str]) -> list[str]:
    """Write every exposure as the steps left it, several at a time."""
    from streamimg3.formats.step_facts import StepFacts

    if not StepFacts.of(obs, statuses).has_crf:
        return []
    work = partial(
        _exposure_work,
        obs=obs,
        destination=session.output_dir,
        options=dict(session.storage_options),
        statuses=dict(statuses),
    )
    none: tuple[str, ...] = ()
    return list(runner.fold(work, [_exposure_task(r.index, r.shape) for r in obs.records()], none, "export"))


def _exposure_task(index: int, shape: tuple[int, int]) -> Task:
    most, least = (shape[1] * rows * _CRF_PIXEL + _CRF_REST for rows in (CHUNK, _THINNEST))
    return Task(f"e{index:06d}", most, least, item=index)


def _exposure_work(
    task: Task, *, obs: Observation, destination: str, options: dict[str, str], statuses: dict[str, str]
) -> tuple[str, ...]:
    from streamimg3.formats.crf import write_crf
    from streamimg3.formats.step_facts import StepFacts

    exposure = obs.exposures()[task.item if isinstance(task.item, int) else task.item[0]]
    return (write_crf(exposure, StepFacts.of(obs, statuses), destination, options, resident() + task.limit),)


def _stars(obs: Observation, session: Session) -> list[str]:
    """Write the star lists that alignment used, where the user asks for them."""
    from streamimg3.formats.star_catalogs import export_catalogs, export_reference

    document = obs.document(AlignmentDocument)
    chosen = document.parameters if document is not None else {}
    folder, options = normalise(session.output_dir), session.storage_options
    written = export_catalogs(obs, folder, chosen["catalog_format"], options) if chosen.get("save_catalogs") else []
    if chosen.get("save_abs_catalog") and chosen.get("abs_refcat"):
        made = export_reference(obs, chosen["abs_refcat"], folder, options)
        written += [made] if made else []
    return written


def _catalog(obs: Observation, session: Session, runner: Runner, statuses: Mapping[str, str]) -> list[str]:
    """Write catalogue and segmentation map, if sources were found."""
    from streamimg3.formats.catalog import export_catalog
    from streamimg3.formats.segm import export_segm

    document = obs.document(CatalogDocument)
    if document is None or not document.sources:
        return []
    written = [export_catalog(obs, session.output_dir, session.storage_options)]
    if document.segmentation:
        written.append(
            export_segm(obs, session.output_dir, session.storage_options, limit=runner.memory, statuses=statuses)
        )
    return written


def export_preview(obs: Observation, session: Session) -> list[str]:
    """Write a PNG of every mosaic of a store.

    Returns
    -------
    list of str
        Paths or URLs of what was written.
    """
    from streamimg3.formats.publish import open_product
    from streamimg3.report.preview import preview
    from streamimg3.stages.resample import NAME

    association = obs.document(AssociationDocument)
    product = association.product if association else "mosaic"
    written = []
    for name in _mosaics(obs, NAME):
        root = product if name == NAME else name.removeprefix(f"{NAME}-")
        url = f"{normalise(session.output_dir)}/{root}_i2d.png"
        with open_product(url, session.storage_options) as sink:
            sink.write(preview(obs, name))
        session.progress.note(f"wrote {url}")
        written.append(url)
    return written


def _mosaics(obs: Observation, name: str) -> list[str]:
    """Names of the documents that commit a mosaic."""
    found = [key.removesuffix(".json") for key in obs.backend.keys("documents") if key.endswith(".json")]
    return [n for n in found if n == name or n.startswith(f"{name}-")]
