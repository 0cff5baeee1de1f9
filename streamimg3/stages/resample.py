"""Drizzle the exposures onto the mosaic, tile by tile (spec image3 §7)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

from streamimg3.engine import Runner, Task
from streamimg3.engine.receipts import Ledger, digest
from streamimg3.errors import InputError
from streamimg3.geometry import Box, TileGrid
from streamimg3.sky import footprint
from streamimg3.sky.mosaic_frame import MosaicFrame, given_frame, linear_terms, mosaic_frame
from streamimg3.sky.wcs import Wcs
from streamimg3.stages import tile_marks
from streamimg3.stages.layers import (
    Selection,
    Setup,
    flagged,
    integration_layers,
    layer_names,
    make_layers,
    noise_planes,
    read_setup,
    reference,
)
from streamimg3.stages.pixel_maps import forget_maps, make_map, map_folder, map_name, rough_maps
from streamimg3.stages.placement import Placed, by_tile, placed
from streamimg3.stages.resample_params import Params as Params
from streamimg3.stages.tile_drizzle import drizzle_tile, task_memory
from streamimg3.store import Exposure, Observation
from streamimg3.store.documents import OutputWcsDocument, ResampleDocument, StageCost, plain, utc_now
from streamimg3.store.layout import VARIANCES

NAME = "resample"
ALONE = "rectified"  # folder of the mosaics of single exposures
_CREATED = "_created"
_OUTLINES = 64  # of integrations of one exposure, which are all the same
_CODE = 1  # raised when the numbers a given input leads to change


def output_frame(obs: Observation, params: Params, exposures: Sequence[Exposure]) -> MosaicFrame:
    """Return the frame of the mosaic: the user's own WCS if given, else from the exposures (spec §7.2)."""
    first = exposures[0]
    if params.output_wcs:
        given = obs.document(OutputWcsDocument)
        if given is None:
            raise InputError(
                f"{params.output_wcs}: the output WCS was not read into the store: give it on the command line"
            )
        shape = (params.output_shape[1], params.output_shape[0]) if params.output_shape else given.shape
        wcs = Wcs("gwcs", given.text.encode("latin-1"), shape)
        return given_frame(wcs, given.pixel_scale, first.record.pixar_sr, first.wcs)
    regions = [e.s_region for e in exposures]
    return mosaic_frame(regions, reference(first), params.frame_options)


@dataclass(frozen=True)
class Subtracted:
    """Where the integrations of cubes lie without their star (``folder``, then the exposure's name), and their digest."""

    folder: str
    digest: str

    def of(self, exposure: Exposure) -> tuple[str, int]:
        """Return the stack of one exposure, and the place of its first integration in it."""
        return f"{self.folder}/{exposure.record.name}", 0


@dataclass(frozen=True)
class AsTheyCame(Subtracted):
    """The integrations of cubes as they came: from them nothing has been subtracted."""

    folder: str = ""
    digest: str = ""

    def of(self, exposure: Exposure) -> tuple[str, int]:
        """Return the stack of one exposure, and the place of its first integration in it."""
        return exposure.group, exposure.record.first


@dataclass(frozen=True)
class Target:
    """One mosaic to be made: the group of its planes, the exposures that go into it, and its frame.

    ``alone`` = a single exposure as it came, without what other steps found out about it. ``subtracted`` = every integration
    of the exposures, which are cubes, after a star has been subtracted.
    """

    path: str
    exposures: tuple[Exposure, ...]
    frame: MosaicFrame
    alone: bool = False
    subtracted: Subtracted | None = None


def targets(obs: Observation, params: Params) -> list[Target]:
    """Return the mosaics that a run makes: one of all exposures, or with ``single`` one per group, all in one frame."""
    exposures = obs.exposures()
    frame = output_frame(obs, params, exposures)
    if not params.single:
        return [Target("mosaic", exposures, frame)]
    groups: dict[str, list[Exposure]] = {}
    for exposure in exposures:
        groups.setdefault(exposure.record.group_id, []).append(exposure)
    return [Target(f"single/{members[0].record.name}", tuple(members), frame) for members in groups.values()]


def targets_each(obs: Observation, params: Params, exposures: Sequence[Exposure]) -> list[Target]:
    """Return a target for each exposure, in its own frame."""
    return [Target(f"{ALONE}/{e.record.name}", (e,), output_frame(obs, params, [e]), alone=True) for e in exposures]


def targets_subtracted(
    obs: Observation, params: Params, exposures: Sequence[Exposure], stacks: Mapping[str, Subtracted]
) -> list[Target]:
    """Return a target for each way in which a star was subtracted (path of the mosaic: where that lies), in one frame."""
    frame = output_frame(obs, params, exposures)
    return [Target(path, tuple(exposures), frame, subtracted=stack) for path, stack in stacks.items()]


def prepare(obs: Observation, params: Params, target: Target) -> Setup:
    """Work out layers and planes of a mosaic; reads metadata only."""
    chosen, frame = target.exposures, target.frame
    text = frame.wcs.text.decode("latin-1")
    outliers = None if target.alone else flagged(obs)
    select = Selection(
        params.weight_type or "none",
        params.good_bits,
        outliers=outliers is not None,
        sky=not target.alone and target.subtracted is None,
    )
    layers = make_layers(obs, chosen, select)
    if target.subtracted is not None:
        layers = integration_layers(layers, chosen, target.subtracted.of)
    noise = noise_planes(chosen) if params.enable_err and not params.single else ()
    drizzle_err = params.single and params.enable_err and all(e.has("err") for e in chosen)
    planes = ["sci", "wht", "ncontrib"] + ["con"] * params.enable_ctx + ["dq"] * params.propagate_dq
    planes += ["err"] * bool(noise or drizzle_err) + list(noise if params.report_var and noise != ("err",) else ())
    fill = params.fill
    setup = Setup(
        "", target.path, frame.shape, params.tile, tuple(planes), noise, params.kernel, params.pixfrac, frame.ratio,
        frame.measured, None if fill is None or math.isnan(fill) else fill, drizzle_err,
        map_folder(frame, params.sampling), text, layers,
    )  # fmt: skip
    return dataclasses.replace(
        setup,
        digest=digest(
            _CODE,
            dataclasses.asdict(setup),
            [e.record.checksums for e in chosen],
            outliers and outliers.digest,
            *([target.subtracted.digest] if target.subtracted else []),
        ),
    )


def plan(obs: Observation, params: Params, rough: bool = False) -> list[Task]:
    """Return the tasks, one per mosaic tile that any exposure touches.

    Parameters
    ----------
    obs : Observation
        A store whose ingest has finished.
    params : Params
        The step's parameters.
    rough : bool
        Go by the exposures' outlines; if not, pixel maps are made where they are not kept yet.
    """
    return _planned(obs, params, targets(obs, params), rough)


def plan_each(obs: Observation, params: Params, exposures: Sequence[Exposure], rough: bool = False) -> list[Task]:
    """Return the tasks for a mosaic of each exposure by itself; see :func:`plan`."""
    return _planned(obs, params, targets_each(obs, params, exposures), rough)


def plan_subtracted(
    obs: Observation,
    params: Params,
    exposures: Sequence[Exposure],
    stacks: Mapping[str, Subtracted],
    rough: bool = False,
) -> list[Task]:
    """Return the tasks for mosaics of the integrations of cubes without their star; see :func:`targets_subtracted`."""
    return _planned(obs, params, targets_subtracted(obs, params, exposures, stacks), rough)


def _planned(obs: Observation, params: Params, wanted: Sequence[Target], rough: bool) -> list[Task]:
    tasks = []
    for target in wanted:
        setup = prepare(obs, params, target)
        tasks += _tasks(setup, _places(obs, setup, target, params, rough))
    return tasks


def _places(obs: Observation, setup: Setup, target: Target, params: Params, rough: bool = False) -> list[Placed]:
    """Where the layers lie; one map is held at a time."""
    if rough:
        maps = rough_maps(target.exposures, target.frame)
    else:
        maps = (make_map(obs, setup.maps, e, target.frame, params.sampling) for e in target.exposures)
    found = {e.record.index: placed(made, setup) for e, made in zip(target.exposures, maps, strict=True)}
    return [found[layer.exposure] for layer in setup.layers]  # the integrations of a cube share one


def _tasks(setup: Setup, places: Sequence[Placed]) -> list[Task]:
    """Tasks in row-major order of tiles."""
    grid, names = TileGrid(setup.shape, setup.tile), layer_names(setup)
    planes = [f"{setup.path}/{plane}" for plane in setup.planes]
    largest = max(place.nbytes for place in places)
    tasks = []
    for key, windows in by_tile(zip((layer.bit for layer in setup.layers), places, strict=True)):
        tile = grid.tile(*key)
        most, least = (n + 2 * largest for n in task_memory(setup, list(windows.values())))  # read, then unpacked
        reads = tuple((names[bit], box.as_tuple()) for bit, box in windows.items())
        writes = tuple(product(planes, (tile.box.as_tuple(),)))
        tasks.append(Task(tile.key, most, least, reads, writes, (*key, *windows)))
    if not tasks:
        raise InputError("no exposure touches the output image: check crval, crpix, output_shape or output_wcs")
    return tasks


def _in_part(task: Task, part: Sequence[int] | None) -> Task:
    """Return the task of a tile for a box of it only, if one is given."""
    if part is None:
        return task
    y0, x0, y1, x1 = part
    return dataclasses.replace(task, writes=tuple((plane, (y0, x0, y1, x1)) for plane, _ in task.writes))


def work(task: Task, *, obs: Observation, mark: str) -> dict[str, float]:
    """Make one tile and write all its planes.

    Parameters
    ----------
    task : Task
        Its ``item`` is the tile's row and column and the layers that touch it; ``writes`` says which part is made.
    obs : Observation
        The store.
    mark : str
        Digest under which the set-up is kept.

    Returns
    -------
    dict
        Processor seconds by kind of work.
    """
    setup = read_setup(obs, mark)
    row, col, *bits = task.item if isinstance(task.item, tuple) else (task.item, 0)
    tile = TileGrid(setup.shape, setup.tile).tile(row, col)
    part = Box(*task.writes[0][1])
    return drizzle_tile(obs, setup, [setup.layers[b] for b in bits], (tile.box, part), task.limit)


def run(obs: Observation, params: Params, runner: Runner) -> tuple[ResampleDocument, ...]:
    """Make the mosaic (or one per group with ``single``) unless the store already holds it.

    Returns
    -------
    tuple of ResampleDocument
        One per mosaic.

    Raises
    ------
    InputError
        If parameters and exposures do not fit each other.
    BudgetError
        If the memory cannot hold the work; nothing has been read by then.
    """
    return _run(obs, params, runner, targets(obs, params))


def run_each(
    obs: Observation, params: Params, runner: Runner, exposures: Sequence[Exposure]
) -> tuple[ResampleDocument, ...]:
    """Make a mosaic of each exposure by itself, in its own frame; see :func:`run`."""
    return _run(obs, params, runner, targets_each(obs, params, exposures))


def run_subtracted(
    obs: Observation, params: Params, runner: Runner, exposures: Sequence[Exposure], stacks: Mapping[str, Subtracted]
) -> tuple[ResampleDocument, ...]:
    """Make mosaics of the integrations of cubes without their star; see :func:`targets_subtracted` and :func:`run`."""
    return _run(obs, params, runner, targets_subtracted(obs, params, exposures, stacks))


def _run(obs: Observation, params: Params, runner: Runner, wanted: Sequence[Target]) -> tuple[ResampleDocument, ...]:
    made = {t.path: _make(obs, params, runner, t) for t in wanted}
    fresh = [document for document, new in made.values() if new]
    if fresh:
        obs.consolidate()  # before the commit: who sees the document must see the arrays
    for document in fresh:
        obs.commit(document, document_name(document.path))
    if fresh:
        obs.backend.remove_tree("scratch")
        _tidy_maps(obs, params, wanted)
    return tuple(document for document, _ in made.values())


def _tidy_maps(obs: Observation, params: Params, made: Sequence[Target]) -> None:
    """Keep the maps of the mosaic of all exposures: when one is added, those of the others are there."""
    for target in made:
        if target.path == "mosaic":
            names = {map_name(exposure) for exposure in target.exposures}
            return forget_maps(obs, map_folder(target.frame, params.sampling), names)
    return forget_maps(obs)


def document_name(path: str) -> str:
    """Return the name of the document that commits the mosaic under a path.

    Examples
    --------
    >>> document_name("mosaic"), document_name("single/jw01_nrcb1"), document_name("rectified/jw01_nrcb1")
    ('resample', 'resample-jw01_nrcb1', 'rectified-jw01_nrcb1')
    """
    if path.startswith(f"{ALONE}/"):
        return path.replace("/", "-", 1)
    return NAME if path == "mosaic" else f"{NAME}-{path.rsplit('/', 1)[1]}"


def _make(obs: Observation, params: Params, runner: Runner, target: Target) -> tuple[ResampleDocument, bool]:
    """Make the planes of one mosaic; returns its document, and whether that is new."""
    setup = prepare(obs, params, target)
    name = document_name(target.path)
    kept = obs.document(ResampleDocument, name)
    if kept is not None and kept.digest == setup.digest:
        runner.progress.note(f"{name}: unchanged, kept")
        same = kept.parameters == plain(params)
        return (kept, False) if same else (dataclasses.replace(kept, parameters=plain(params)), True)
    places = _places(obs, setup, target, params)
    tasks = _tasks(setup, places)
    runner.check(tasks)
    ledger = Ledger(obs.backend, name, setup.digest)
    reach, bunit = [place.reach for place in places], target.exposures[0].record.bunit
    marks = tile_marks.marks_of(setup, target.exposures, tasks, params.sampling, bunit, reach)
    if _CREATED not in ledger.done():
        _begin(obs, setup, target, ledger, marks)
    parts = tile_marks.read_marks(obs, name).parts
    tasks = [_in_part(task, parts.get(task.key)) for task in tasks]
    obs.backend.sweep()
    setup.write(obs)
    outcome = runner.fill(partial(work, obs=obs, mark=setup.digest), tasks, ledger)
    tile_marks.write_marks(obs, name, marks)
    obs.write_group(target.path, {"wcs": linear_terms(target.frame.wcs), "shape": list(setup.shape)})
    known = {layer.exposure: place.error for layer, place in zip(setup.layers, places, strict=True)}
    errors = [None if math.isnan(error) else error for error in known.values()]
    return _document(setup, target, params, errors, StageCost.of(outcome)), True


def _begin(obs: Observation, setup: Setup, target: Target, ledger: Ledger, marks: tile_marks.TileMarks) -> None:
    """Make room for a mosaic; the tiles of the one before that would come out the same are kept."""
    name = ledger.stage
    before = tile_marks.read_marks(obs, name)
    kept = tile_marks.unchanged(before, marks)
    parts = tile_marks.changed_parts(before, marks, TileGrid(setup.shape, setup.tile))
    obs.retract(name)
    ledger.forget_others(tile_marks.receipts_besides(obs, name))
    if kept or parts:
        still = {key: marks.tiles[key] for key in kept}
        boxes = {key: list(box.as_tuple()) for key, box in parts.items()}
        tile_marks.write_marks(obs, name, tile_marks.TileMarks(marks.canvas, still, marks.reach, boxes))
        obs.backend.remove_tree(f"{setup.path}/segmentation")
        tile_marks.clear_tiles(obs, setup, kept | parts.keys())
        for key in sorted(kept):
            ledger.mark(key)
    else:
        tile_marks.write_marks(obs, name, tile_marks.TileMarks())
        _create(obs, setup, target.exposures[0].record.bunit)
    ledger.mark(_CREATED)


def _create(obs: Observation, setup: Setup, bunit: str | None) -> None:
    """Create the empty planes and the set-up that the workers read."""
    obs.backend.remove_tree(setup.path)  # planes of an earlier mosaic must not stay beside this one's
    for parent in {setup.path.split("/")[0], setup.path}:
        obs.write_group(parent, {})
    for plane in setup.planes:
        lead = (-(-len(setup.layers) // 32),) if plane == "con" else ()
        fill = setup.fill if plane == "sci" else None
        obs.create_image(f"{setup.path}/{plane}", (*lead, *setup.shape), setup.tile, bunit, fill)


def _document(
    setup: Setup, target: Target, params: Params, errors: list[float | None], cost: StageCost
) -> ResampleDocument:
    frame = target.frame
    return ResampleDocument(
        digest=setup.digest, made=utc_now(), parameters=plain(params), path=setup.path, planes=setup.planes,
        shape=setup.shape, tile=setup.tile, wcs_asdf=setup.wcs_asdf, pixel_scale=frame.pixel_scale,
        pixel_scale_ratio=frame.ratio, s_region=footprint.union(_outlines(target), frame.wcs),
        exposures=tuple(dict.fromkeys(la.exposure for la in setup.layers)), map_errors=tuple(errors),
        notes=_notes(setup, target, params), cost=cost,
    )  # fmt: skip


def _outlines(target: Target) -> list[str]:
    """Return the outlines of what is combined, integrations one by one: where their union begins depends on it."""
    most = _OUTLINES if target.subtracted is not None else 1
    return [e.s_region for e in target.exposures for _ in range(min(most, e.depth))]


def _notes(setup: Setup, target: Target, params: Params) -> tuple[str, ...]:
    """What a user should know about the error planes."""
    if not params.enable_err or setup.drizzle_err:
        return ()
    if not setup.noise:
        return ("no exposure has ERR or variances: the mosaic has no ERR",)
    bare = [e.record.name for e in target.exposures if not any(e.has(v) for v in VARIANCES)]
    if setup.noise == VARIANCES and bare:
        return tuple(f"{n} has no variances: ERR squared, if it has ERR, counts as VAR_POISSON" for n in bare)
    return ()
