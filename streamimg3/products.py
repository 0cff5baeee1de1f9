"""What a run leaves outside the store: FITS and ECSV products and previews."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from streamimg3.engine import Runner, Task
from streamimg3.engine.budget import MIB, parse_size, resident
from streamimg3.errors import InputError
from streamimg3.kept_products import Made, Written, write_products
from streamimg3.session import Session
from streamimg3.store import Observation
from streamimg3.store.backend import is_local, normalise
from streamimg3.store.documents import (
    AlignmentDocument,
    AssociationDocument,
    CatalogDocument,
    MemberEntry,
    OutlierDocument,
    ResampleDocument,
    RunDocument,
)
from streamimg3.store.layout import CHUNK
from streamimg3.store.series_documents import SeriesReferencesDocument

MOSAIC = "resample"  # name of the document of the mosaic of all exposures
# Measured while a product is written: bytes per pixel of an exposure's band, the metadata, and gwcs and asdf
_CRF_PIXEL, _METADATA, _LIBRARIES = 32, 24 * MIB, 64 * MIB
_GATHERED = 40 * MIB  # what a process has loaded and not given back by the end of a run
_THINNEST = 32
_KINDS = ("crf", "i2d", "outliers", "segm")  # products that hold pixels, in the order in which they are told


def export(
    obs: Observation, session: Session, runner: Runner | None = None, run: RunDocument | None = None
) -> list[str]:
    """Write the products of a store: exposures (crf), mosaics (i2d), catalogue (cat) and segmentation map (segm).

    After image2, calibrated exposures (cal, calints), a rectified image of each (i2d), and what its steps are asked to save.

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

    Examples
    --------
    >>> written = streamimg3.export(streamimg3.open(store), streamimg3.Session(output_dir=folder, workers=1))
    >>> sorted({url.rpartition("_")[2] for url in written})
    ['cat.ecsv', 'crf.fits', 'i2d.fits', 'segm.fits']
    """
    runner = runner or session.runner(obs.url)
    last = run or obs.document(RunDocument)
    if last is not None and last.pipeline == "image2":
        from streamimg3.calibrated_products import export_calibrated

        return export_calibrated(obs, session, runner, last)
    if last is not None and last.pipeline == "tso3":
        from streamimg3.series_products import export_tso3

        return export_tso3(obs, session, runner, last)
    if last is not None and last.pipeline == "coron3":
        from streamimg3.coronagraphy_products import export_coron3

        return export_coron3(obs, session, runner, last)
    statuses = last.statuses if last else {}
    mosaics = run.mosaics if run else _mosaics(obs)
    if run is None and mosaics and statuses.get("resample") == "SKIPPED":
        session.progress.note("the mosaic is that of an earlier run: the last one made none")
    products = _streamed(obs, session, runner, statuses, mosaics)
    written = products.urls(_KINDS)
    if statuses.get("source_catalog", "SKIPPED") != "SKIPPED":
        written += _catalog(obs, session)
    if statuses.get("tweakreg", "SKIPPED") != "SKIPPED":
        written += _stars(obs, session)
    products.tell(session, written)
    if not written and run is None:
        raise InputError(f"{obs.url} holds no finished mosaic: run image3 first")
    return written


def _streamed(
    obs: Observation, session: Session, runner: Runner, statuses: Mapping[str, str], mosaics: Sequence[str]
) -> Written:
    """Write the products that hold pixels, several at a time."""
    tasks = _product_tasks(obs, statuses, mosaics, rest_of(session))
    work = partial(
        _product_work, obs=obs, destination=session.output_dir, options=dict(session.storage_options),
        statuses=dict(statuses),
    )  # fmt: skip
    return write_products(obs, session, runner, work, tasks, statuses)


def foreseen(obs: Observation, tiles: Sequence[Task], session: Session) -> list[Task]:
    """Return the tasks that writing the products will be, as far as their memory goes: of one exposure, and a mosaic.

    Parameters
    ----------
    obs : Observation
        A store with the exposures' records.
    tiles : sequence of Task
        Those that will make the mosaic, if any.
    session : Session
        Where the products go.
    """
    if not tiles and all(r.integrations for r in obs.records()) and obs.document(SeriesReferencesDocument) is not None:
        from streamimg3 import series_products

        return series_products.foreseen_products(obs, session)
    if any(m.exptype.strip().lower() == "psf" for m in _members(obs)):
        from streamimg3.coronagraphy_products import foreseen_products

        return foreseen_products(obs, session)
    rest = rest_of(session) + _GATHERED
    shapes = {r.shape for r in obs.records()}
    tasks = [exposure_task(0, max(shapes, key=lambda shape: shape[1]), rest)]
    corners = [box[2:] for task in tiles for _, box in task.writes]
    if corners:
        side = max(box[2] - box[0] for task in tiles for _, box in task.writes)
        tasks.append(mosaic_task("i2d", (max(y for y, _ in corners), max(x for _, x in corners)), side, rest))
    return tasks


def _members(obs: Observation) -> Sequence[MemberEntry]:
    """Return the members of the association whose exposures are in a store."""
    found = obs.document(AssociationDocument)
    return found.exposures if found is not None else ()


def rest_of(session: Session) -> int:
    """What a task holds beside pixels."""
    from streamimg3.formats.publish import UPLOAD_MEMORY

    return _METADATA + (0 if is_local(normalise(session.output_dir)) else UPLOAD_MEMORY)


def _product_tasks(obs: Observation, statuses: Mapping[str, str], mosaics: Sequence[str], rest: int) -> list[Task]:
    """One task for each file, large ones first, so that none is left over at the end."""
    from streamimg3.formats.step_facts import StepFacts

    tasks = []
    for name in mosaics:
        mosaic = obs.document(ResampleDocument, name)
        if mosaic is None:
            raise InputError(f"{obs.url} holds no finished mosaic '{name}': run image3 first")
        tasks.append(mosaic_task(f"i2d-{name}", mosaic.shape, mosaic.tile, rest))
    catalog = obs.document(CatalogDocument) if statuses.get("source_catalog", "SKIPPED") != "SKIPPED" else None
    mosaic = obs.document(ResampleDocument)
    if mosaic is not None and catalog is not None and catalog.sources and catalog.segmentation:
        tasks.append(mosaic_task("segm", mosaic.shape, mosaic.tile, rest))
    if "outlier_detection" not in statuses:
        return tasks
    outliers = obs.document(OutlierDocument)
    if outliers is not None and outliers.wcs_asdf:
        tasks.append(Task("outliers", rest + 3 * _METADATA, rest + _METADATA, libraries=_LIBRARIES))
    if StepFacts.of(obs, statuses).has_crf:
        tasks += [exposure_task(r.index, r.shape, rest) for r in obs.records()]
    return tasks


def mosaic_task(key: str, shape: tuple[int, int], tile: int, rest: int) -> Task:
    """Return the task of writing a mosaic; ``rest`` is what it holds beside pixels."""
    from streamimg3.formats.i2d import band_memory

    most, least = (band_memory(shape, tile, rows) + rest for rows in (tile, _THINNEST))
    return Task(key, max(most, least), least, libraries=_LIBRARIES)


def exposure_task(index: int, shape: tuple[int, int], rest: int) -> Task:
    """Return the task of writing an exposure; ``rest`` is what it holds beside pixels."""
    most, least = (shape[1] * rows * _CRF_PIXEL + rest for rows in (CHUNK, _THINNEST))
    return Task(f"crf-{index:06d}", most, least, item=index, libraries=_LIBRARIES)


def _product_work(
    task: Task, *, obs: Observation, destination: str, options: dict[str, str], statuses: dict[str, str]
) -> Made:
    """Write one file (of outlier_detection's intermediate results, all)."""
    import gwcs  # noqa: F401 (before the memory is measured)

    from streamimg3.formats import crf, i2d, outlier_products, segm
    from streamimg3.formats.step_facts import StepFacts

    kind, _, name = task.key.partition("-")
    limit = resident() + task.limit
    if kind == "crf":
        exposure = obs.exposures()[task.item if isinstance(task.item, int) else task.item[0]]
        urls = [crf.write_crf(exposure, StepFacts.of(obs, statuses), destination, options, limit)]
    elif kind == "i2d":
        urls = [i2d.export_i2d(obs, destination, options, name=name, limit=limit, statuses=statuses)]
    elif kind == "segm":
        urls = [segm.export_segm(obs, destination, options, limit=limit, statuses=statuses)]
    else:
        urls = outlier_products.export_outlier_products(obs, destination, options, statuses=statuses, limit=limit)
    return tuple((kind, url) for url in urls)


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


def _catalog(obs: Observation, session: Session) -> list[str]:
    """Write the catalogue, if sources were found."""
    from streamimg3.formats.catalog import export_catalog

    document = obs.document(CatalogDocument)
    if document is None or not document.sources:
        return []
    return [export_catalog(obs, session.output_dir, session.storage_options)]


def export_preview(obs: Observation, session: Session, kind: str = "png") -> list[str]:
    """Write a picture of every mosaic of a store, ``png`` or ``jpg``; after tso3, PNGs of light curves, centroids and spectra.

    Returns
    -------
    list of str
        Paths or URLs of what was written.
    """
    from streamimg3.formats.publish import open_product
    from streamimg3.report.preview import preview
    from streamimg3.report.series import series_pictures

    association = obs.document(AssociationDocument)
    product = association.product if association else "mosaic"
    last = obs.document(RunDocument)
    if last is not None and last.pipeline == "tso3":
        pictures = {f"{product}_{what}.png": data for what, data in series_pictures(obs).items()}
    else:
        roots = {n: product if n == MOSAIC else n.removeprefix(f"{MOSAIC}-") for n in _mosaics(obs)}
        pictures = {f"{root}_i2d.{kind}": preview(obs, name, kind=kind) for name, root in roots.items()}
    written = []
    for file, data in pictures.items():
        url = f"{normalise(session.output_dir)}/{file}"
        with open_product(url, session.storage_options) as sink:
            sink.write(data)
        session.progress.note(f"wrote {url}")
        written.append(url)
    return written


def export_as(obs: Observation, session: Session, kind: str) -> list[str]:
    """Write what a store holds in another form.

    Parameters
    ----------
    obs : Observation
        The store.
    session : Session
        Output folder and storage options.
    kind : str
        ``products`` (FITS and ECSV), ``png``, ``jpg``, ``regions`` (ds9), ``hips``, ``packed`` (tile-compressed FITS without
        loss), or ``packed:Q`` (floating-point planes rounded to their noise over Q).

    Returns
    -------
    list of str
        Paths or URLs of what was written.

    Raises
    ------
    InputError
        If the store does not hold what is needed, or the form is unknown.
    """
    from streamimg3.formats.catalog import product_url
    from streamimg3.formats.hips import export_hips
    from streamimg3.formats.i2d import Packing, export_i2d
    from streamimg3.formats.regions import export_regions

    destination, options = session.output_dir, session.storage_options
    name, _, value = kind.partition(":")
    if name == "products":
        return export(obs, session)
    if name in ("png", "jpg"):
        return export_preview(obs, session, name)
    if name == "regions":
        written = export_regions(obs, destination, options)
    elif name == "hips":
        written = [export_hips(obs, product_url(obs, destination, "hips.d").removesuffix(".d"))]
    elif name == "packed":
        rest = parse_size(session.memory) if session.memory is not None else None
        last = obs.document(RunDocument)
        statuses = last.statuses if last else {}
        packing = Packing(_quantum(value))
        written = [export_i2d(obs, destination, options, limit=rest, statuses=statuses, packing=packing)]
    else:
        raise InputError(f"--as {kind}: the forms are {', '.join(FORMS)}")
    for url in written:
        session.progress.note(f"wrote {url}")
    return written


FORMS = ("products", "png", "jpg", "regions", "hips", "packed", "packed:16")


def _quantum(text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise InputError(f"--as packed:{text}: write for example packed:16, noise over 16")
    return value


def _mosaics(obs: Observation) -> list[str]:
    """Names of the documents that commit a mosaic."""
    found = [key.removesuffix(".json") for key in obs.backend.keys("documents") if key.endswith(".json")]
    return [n for n in found if n == MOSAIC or n.startswith(f"{MOSAIC}-")]
