"""The command line."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import signal
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from streamimg3 import __version__, api, config, looking
from streamimg3.engine.budget import seldom_collect, show_size
from streamimg3.errors import InputError, Interrupted, StreamImgError
from streamimg3.multi import RADII
from streamimg3.parameter_table import COMMAND_LINE, FILE, as_toml, origins_of
from streamimg3.progress import Reporter

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help=__doc__ and "Combine dithered images in bounded memory; results open in xarray.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"streamimg3 {__version__}")
        raise typer.Exit


@app.callback()
def _general(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="say it and end")
    ] = False,
) -> None:
    """Options of no command in particular."""


Inputs = Annotated[list[str], typer.Argument(help="association JSON, FITS files, folders or patterns; paths or URLs")]
Store = Annotated[
    str | None, typer.Option(help="where the store is kept (path or URL) [default: OUTPUT_DIR/<product>.zarr]")
]
OutputDir = Annotated[str, typer.Option(help="folder or URL of the products")]
Memory = Annotated[str, typer.Option(help="memory for driver and workers together, e.g. 512MiB, 2GiB")]
Workers = Annotated[
    int | None, typer.Option(help="worker processes; 1 = all in this process [default: one per processor]")
]
Cluster = Annotated[
    str | None, typer.Option(help="Dask cluster that does the work: tcp://host:port, or its scheduler file")
]
TaskLimit = Annotated[float, typer.Option(help="seconds after which a task's worker counts as hanging")]
Config = Annotated[str | None, typer.Option(help="parameter file: TOML, YAML, JSON, or a pars-*.asdf of jwst")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="step.parameter=value; may be repeated (also --steps.step.parameter=value)"),
]
StorageOption = Annotated[
    list[str] | None,
    typer.Option(help="KEY=VALUE for URLs (key, secret, token, endpoint_url, region, anon, retries, timeout)"),
]
LogJson = Annotated[str | None, typer.Option(help="write one JSON line per event to this file")]
Offline = Annotated[bool, typer.Option("--offline", help="ask no service in the network")]
References = Annotated[
    str,
    typer.Option(
        help="where image2, coron3 and tso3 find reference files: folder or URL, an earlier run's _references.json, or crds"
    ),
]
GridFrom = Annotated[
    str | None, typer.Option(help="put the mosaic on the grid of this one: a store, or a FITS or ASDF file")
]
Force = Annotated[bool, typer.Option("--force-ingest", help="replace what the store holds")]


def _layers(
    path: str | None, assignments: list[str] | None, grid: str | None = None
) -> list[tuple[str, config.Settings]]:
    """What is set, and by whom; later layers win."""
    given: config.Settings = {"resample": {"output_wcs": grid}} if grid else {}
    for text in assignments or []:
        step, name, value = config.parse_assignment(text)
        given.setdefault(step, {})[name] = value
    return [(FILE, config.read_file(path) if path else {}), (COMMAND_LINE, given)]


def _settings(path: str | None, assignments: list[str] | None, grid: str | None = None) -> config.Settings:
    return config.merge(*(settings for _, settings in _layers(path, assignments, grid)))


def _options(pairs: list[str] | None) -> dict[str, str]:
    wrong = [p for p in pairs or [] if "=" not in p]
    if wrong:
        raise InputError(f"--storage-option {wrong[0]}: write it as KEY=VALUE")
    return dict(p.split("=", 1) for p in pairs or [])


@app.command()
def run(
    pipeline: Annotated[str, typer.Argument(help="image2, image3, coron3 or tso3 (or calwebb_image2 ...)")],
    inputs: Inputs,
    store: Store = None,
    output_dir: OutputDir = ".",
    memory: Memory = api.DEFAULT_MEMORY,
    workers: Workers = None,
    config_file: Annotated[
        str | None, typer.Option("--config", help="parameter file: TOML, YAML, JSON, or a pars-*.asdf of jwst")
    ] = None,
    set_: Set = None,
    until: Annotated[str | None, typer.Option(help="last step to run")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan; resample nothing")] = False,
    storage_option: StorageOption = None,
    log_json: LogJson = None,
    force_ingest: Force = False,
    offline: Offline = False,
    references: References = "",
    grid_from: GridFrom = None,
    report_: Annotated[
        bool, typer.Option("--report/--no-report", help="end with a report and the run's record")
    ] = True,
    cluster: Cluster = None,
    task_limit: TaskLimit = api.TASK_LIMIT,
) -> None:
    """Run a pipeline from files to products; run it again to resume."""
    settings = _settings(config_file, set_, grid_from)
    with Reporter(log_json) as reporter:
        session = api.Session(
            store, output_dir, memory, workers, _options(storage_option), reporter, force_ingest, offline, references,
            report_, cluster, task_limit,
        )  # fmt: skip
        if dry_run:
            _print_plan(api.plan(pipeline, inputs, settings, session), session, as_json=False)
        else:
            told = origins_of(_layers(config_file, set_, grid_from))
            obs = api.run_settings(pipeline, inputs, settings, session, until, told)
            plain = f"xarray.open_datatree({obs.url!r}, engine='zarr')"
            reporter.note(
                f"store {obs.url}; open it with {f'streamimg3.open({obs.url!r}).xarray()' if '://' in obs.url else plain}"
            )


@app.command()
def plan(
    pipeline: Annotated[str, typer.Argument(help="image2, image3, coron3 or tso3 (or calwebb_image2 ...)")],
    inputs: Inputs,
    store: Store = None,
    output_dir: OutputDir = ".",
    memory: Memory = api.DEFAULT_MEMORY,
    workers: Workers = None,
    config_file: Annotated[str | None, typer.Option("--config", help="parameter file")] = None,
    set_: Set = None,
    storage_option: StorageOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
    offline: Offline = False,
    references: References = "",
    cluster: Cluster = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="time this machine first, on a small field")] = False,
) -> None:
    """Print what a run takes: tasks of all its steps, done or not, memory, bytes, the smallest budget that works."""
    with Reporter(None, quiet=as_json) as reporter:
        session = api.Session(
            store,
            output_dir,
            memory,
            workers,
            _options(storage_option),
            reporter,
            offline=offline,
            references=references,
            cluster=cluster,
        )
        _print_plan(api.plan(pipeline, inputs, _settings(config_file, set_), session), session, as_json, calibrate)


def _print_plan(plans: api.Plan, session: api.Session, as_json: bool, calibrate: bool = False) -> None:
    from streamimg3.speed import Speed, measure

    speed = measure() if calibrate else Speed.kept()
    rows = [api.summary(step, tasks, session, speed) for step, tasks in plans.items() if tasks]
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        typer.echo(f"{row['step']}: {row['tasks']} tasks, {row['workers']} workers")
        typer.echo(
            f"  memory   {show_size(row['projected'])} projected, {show_size(row['per_worker'])} for each task,"
            f" smallest budget {show_size(row['smallest'])}"
        )
        typer.echo(
            f"  pixels   {row['pixels_read'] / 1e6:.1f} Mpix read, {row['pixels_written'] / 1e6:.1f} Mpix written"
        )
        typer.echo(
            f"  bytes    about {show_size(row['bytes_read'])} read, {show_size(row['bytes_written'])} written,"
            f" {row['requests']} requests"
        )
        if row["seconds"] is not None:
            typer.echo(f"  time     about {row['seconds']:.0f} s")
    timed = [row["seconds"] for row in rows]
    whole = "" if None in timed else f", about {sum(timed):.0f} s"
    typer.echo(f"in all, with the products: smallest budget {show_size(plans.smallest)}{whole}")
    if speed is None:
        typer.echo("plan --calibrate times this machine once (a minute), and plans then tell seconds")


@app.command()
def ingest(
    inputs: Inputs,
    store: Store = None,
    output_dir: OutputDir = ".",
    memory: Memory = api.DEFAULT_MEMORY,
    workers: Workers = None,
    storage_option: StorageOption = None,
    log_json: LogJson = None,
    force_ingest: Force = False,
) -> None:
    """Bring exposures into a store."""
    with Reporter(log_json) as reporter:
        session = api.Session(store, output_dir, memory, workers, _options(storage_option), reporter, force_ingest)
        obs = api.ingest(inputs, session)
        reporter.note(f"store {obs.url}: {len(obs.records())} exposures")


@app.command()
def export(
    store: Annotated[str, typer.Argument(help="path or URL of a store")],
    output_dir: OutputDir = ".",
    memory: Memory = api.DEFAULT_MEMORY,
    preview: Annotated[bool, typer.Option("--preview", help="also write a PNG of the mosaic")] = False,
    preview_only: Annotated[bool, typer.Option("--preview-only", help="write nothing but the PNG")] = False,
    as_: Annotated[
        list[str] | None,
        typer.Option("--as", help="products, png, jpg, regions (ds9), hips, packed (tile-compressed FITS), packed:16"),
    ] = None,
    storage_option: StorageOption = None,
    log_json: LogJson = None,
) -> None:
    """Write the FITS products of a store, and a preview if wanted."""
    options = _options(storage_option)
    with Reporter(log_json) as reporter:
        obs, session = api.open(store, **options), api.Session(store, output_dir, memory, 1, options, reporter)
        for form in as_ or []:
            api.export_as(obs, session, form)
        if not (preview_only or as_):
            api.export(obs, session)
        if preview or preview_only:
            api.export_preview(obs, session)


@app.command()
def info(
    store: Annotated[str, typer.Argument(help="path or URL of a store")],
    storage_option: StorageOption = None,
) -> None:
    """Say what a store holds."""
    from streamimg3.report.info import describe

    typer.echo(describe(api.open(store, **_options(storage_option))))


@app.command()
def cutout(
    store: Annotated[str, typer.Argument(help="path or URL of a store with a mosaic")],
    size: Annotated[str, typer.Option(help="side of a stamp: 5arcsec, 64pix")],
    output: Annotated[str, typer.Option("-o", "--output", help="X.zarr, X.fits, or a folder for one FITS file each")],
    position: Annotated[list[str] | None, typer.Option(help="'RA DEC' in degrees or 18:20:48 -16:10:48")] = None,
    catalog: Annotated[str | None, typer.Option(help="table with RA and DEC, or sky_centroid (path or URL)")] = None,
    plane: Annotated[list[str] | None, typer.Option(help="planes of the mosaic [default: sci]")] = None,
    memory: Annotated[str, typer.Option(help="memory for this process")] = "512MiB",
    storage_option: StorageOption = None,
) -> None:
    """Cut stamps out of the mosaic, few or hundreds of thousands."""
    from streamimg3.sky.positions import parse_position

    if bool(position) == (catalog is not None):
        raise InputError("give positions either by --position 'RA DEC' or by --catalog FILE")
    places: Any = catalog
    if position:
        pairs = [parse_position(text) for text in position]
        places = [p[0] for p in pairs], [p[1] for p in pairs]
    written = looking.cutouts(store, places, size, output, plane or ["sci"], memory, **_options(storage_option))
    typer.echo(f"{written} cut-outs in {output}")


@app.command()
def report(
    store: Annotated[str, typer.Argument(help="path or URL of a store that a pipeline has run on")],
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="X.html or a folder [default: beside the store]")
    ] = None,
    size: Annotated[int, typer.Option(help="pixels along the longest side of the mosaic in it")] = 2400,
    storage_option: StorageOption = None,
) -> None:
    """Write the report of a store: one page without a server, and qa.json."""
    made = looking.make_report(store, output, size, **_options(storage_option))
    typer.echo(f"{made.status}: {made.page}, {made.numbers}")


@app.command()
def describe(
    pipeline: Annotated[str, typer.Argument(help="image2 or image3 (or calwebb_image2 ...)")],
    step: Annotated[str | None, typer.Argument(help="only this step")] = None,
    config_file: Annotated[str | None, typer.Option("--config", help="parameter file")] = None,
    set_: Set = None,
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """List every parameter: type, default, unit, meaning, the value it would have and where that comes from."""
    layers = _layers(config_file, set_)
    rows = api.describe(pipeline, config.merge(*(s for _, s in layers)), origins_of(layers))
    known = list(dict.fromkeys(r.step for r in rows))
    if step is not None and step not in known:
        raise InputError(f"unknown step '{step}': the steps are {', '.join(known)}")
    chosen = [r for r in rows if step in (None, r.step)]
    if as_json:
        typer.echo(json.dumps([asdict(r) for r in chosen], indent=1))
        return
    for row in chosen:
        default = "" if row.origin == "default" else f" (default {row.default})"
        unit = f" {row.unit}" if row.unit else ""
        typer.echo(f"{row.step}.{row.name} = {row.value}{unit}  [{row.type}, {row.origin}{default}]\n    {row.meaning}")


@app.command()
def print_config(
    pipeline: Annotated[str, typer.Argument(help="image2 or image3 (or calwebb_image2 ...)")],
    config_file: Annotated[str | None, typer.Option("--config", help="parameter file")] = None,
    set_: Set = None,
) -> None:
    """Write the effective parameters as TOML, which --config reads."""
    layers = _layers(config_file, set_)
    typer.echo(as_toml(api.describe(pipeline, config.merge(*(s for _, s in layers)), origins_of(layers))), nl=False)


@app.command()
def replay(
    record: Annotated[str, typer.Argument(help="<product>_run.json of a run (path or URL)")],
    output_dir: Annotated[str, typer.Option(help="folder or URL of the new run")],
    store: Store = None,
    memory: Memory = api.DEFAULT_MEMORY,
    workers: Workers = None,
    storage_option: StorageOption = None,
    log_json: LogJson = None,
) -> None:
    """Run again what a record says, and compare the results byte for byte; ends with 1 if anything differs."""
    with Reporter(log_json) as reporter:
        session = api.Session(store, output_dir, memory, workers, _options(storage_option), reporter)
        found = api.replay(record, session)
    for line in found:
        typer.echo(line)
    if found:
        raise typer.Exit(1)
    typer.echo("the same: every array of the results is equal byte for byte")


def _named_stores(texts: list[str], options: dict[str, str]) -> dict[str, str]:
    """Filters by name: given as NAME=STORE, else by the header of the first exposure."""
    named: dict[str, str] = {}
    for text in texts:
        name, equals, store = text.partition("=")
        if not equals:
            name, store = looking.filter_name(text, options), text
        if name in named:
            raise InputError(f"two stores are of filter {name}: name them as NAME=STORE")
        named[name] = store
    return named


@app.command()
def catalog_multi(
    stores: Annotated[list[str], typer.Argument(help="stores of single filters on one grid, or NAME=STORE")],
    output_dir: OutputDir = ".",
    store: Annotated[str | None, typer.Option(help="of the result [default: OUTPUT_DIR/multi.zarr]")] = None,
    detection: Annotated[str, typer.Option(help="ivar (inverse-variance mean) or chi2")] = "ivar",
    radius: Annotated[
        list[float] | None, typer.Option(help="of circular apertures, arcsec [default: 0.1, 0.25]")
    ] = None,
    memory: Memory = api.DEFAULT_MEMORY,
    workers: Workers = None,
    config_file: Annotated[str | None, typer.Option("--config", help="parameter file")] = None,
    set_: Set = None,
    storage_option: StorageOption = None,
    log_json: LogJson = None,
) -> None:
    """One catalogue over several filters, from a detection image of all of them."""
    settings, options = _settings(config_file, set_), _options(storage_option)
    wrong = sorted(set(settings) - {"source_catalog"})
    if wrong:
        raise InputError(f"catalog-multi takes parameters of source_catalog only, not of {wrong[0]}")
    with Reporter(log_json) as reporter:
        session = api.Session(store, output_dir, memory, workers, options, reporter)
        named = _named_stores(stores, options)
        obs = api.catalog_multi(named, session, detection, radius or RADII, settings.get("source_catalog"))
        reporter.note(f"store {obs.url}")


@app.command()
def rgb(
    red: Annotated[str, typer.Argument(help="store of the reddest filter")],
    green: Annotated[str, typer.Argument(help="store on the same grid")],
    blue: Annotated[str, typer.Argument(help="store on the same grid")],
    output: Annotated[str, typer.Option("-o", "--output", help="X.png or X.jpg")],
    size: Annotated[int, typer.Option(help="pixels along the longest side")] = 2000,
    storage_option: StorageOption = None,
) -> None:
    """Write a picture in colours of three filters (Lupton et al. 2004)."""
    typer.echo(looking.rgb([red, green, blue], output, size, **_options(storage_option)))


@app.command()
def simulate(
    outdir: Annotated[str, typer.Argument(help="folder for exposures, association and truth")],
    preset: Annotated[str, typer.Option(help="a (4 x 512²), b (8 x 2048²) or c (24 x 2048²)")] = "a",
    size: Annotated[int | None, typer.Option(help="side of an exposure in pixels")] = None,
    dithers: Annotated[int | None, typer.Option(help="dithers per pointing")] = None,
    pointings: Annotated[tuple[int, int] | None, typer.Option(help="rows and columns of pointings")] = None,
    detectors: Annotated[int | None, typer.Option(help="detectors side by side")] = None,
    instrument: Annotated[str | None, typer.Option(help="NIRCAM, MIRI or NIRISS")] = None,
    filter_: Annotated[
        str | None, typer.Option("--filter", help="F070W … F200W [NIRCAM]: the same sky through another filter")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="random seed")] = None,
) -> None:
    """Simulate a dithered JWST field: exposures with gWCS, cosmic rays, backgrounds; an association; the truth."""
    from dataclasses import replace

    from streamimg3.formats.simulate import presets
    from streamimg3.formats.simulate import simulate as make

    if preset not in presets:
        raise InputError(f"--preset {preset}: the presets are {', '.join(presets)}")
    chosen: dict[str, Any] = {
        "shape": (size, size) if size else None, "dithers": dithers, "mosaic": pointings, "detectors": detectors,
        "instrument": instrument, "seed": seed, "filter": filter_ and filter_.upper(),
    }  # fmt: skip
    field = replace(presets[preset], **{k: v for k, v in chosen.items() if v is not None})
    typer.echo(str(make(outdir, field)))


def _strun_style(arguments: list[str]) -> list[str]:
    """Accept ``--steps.resample.pixel_scale=0.03`` as another way of writing ``--set resample.pixel_scale=0.03``."""
    translated: list[str] = []
    for text in arguments:
        match = re.fullmatch(r"--steps\.([\w.]+=.*)", text, re.DOTALL)
        translated += ["--set", match[1]] if match else [text]
    return translated


def _interrupted(number: int, frame: object) -> None:
    raise Interrupted("interrupted; run the same command again to go on")


def main() -> None:
    """Entry point; ends with 0, 1 (failure), 2 (bad input or usage) or 3 (budget impossible)."""
    logging.getLogger().addHandler(logging.NullHandler())
    before = signal.signal(signal.SIGINT, _interrupted)
    try:
        app(args=_strun_style(sys.argv[1:]))
    except (StreamImgError, Interrupted) as error:
        print(f"streamimg3: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"streamimg3: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    finally:
        signal.signal(signal.SIGINT, before)


def entry() -> None:
    """Run :func:`main` as a process of its own.

    Metadata trees are many small objects, of which few are garbage: looking for it less often saves a tenth of a short run,
    and not looking for it when Python tears itself down most of a second.
    Once an object store was used the process leaves without Python's own tear-down: native threads that are still handing
    over results would abort it after all is done.
    """
    code: object = 0
    seldom_collect()
    try:
        main()
    except SystemExit as end:
        code = end.code
    gc.freeze()
    if "obstore" not in sys.modules or not isinstance(code, int | None):
        sys.exit(code)  # type: ignore[arg-type]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)
