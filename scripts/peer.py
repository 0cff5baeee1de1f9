"""The reference pipeline as a neighbour: its environment, its fields and its cached runs.

The reference pins ``drizzle<2.3`` while this package needs ``drizzle>=3.0``, so it lives in an environment of its own
and is only ever started as a program (``peer_runner.py``).
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PEER_REQUIREMENTS = ("jwst==3.0.0", "pysiaf")
KIT_VARIABLE = "STREAMIMG3_PEER_KIT"
ROOT = Path(__file__).resolve().parents[1]
RUNNER = Path(__file__).resolve().with_name("peer_runner.py")
BLOCK = (slice(200, 240), slice(260, 300))
SKIPPED_STEPS = ("tweakreg", "skymatch", "outlier_detection", "source_catalog")

Value = bool | int | float | str | list[int] | list[float]
Steps = Mapping[str, Mapping[str, Value]]  # step -> parameter -> value
MOVING = """import dataclasses, sys
from streamimg3.formats.simulate import presets, simulate
simulate(sys.argv[1], dataclasses.replace(presets["a"], moving=True))"""


@dataclass(frozen=True)
class Field:
    """One simulated association: how each of the two simulators is asked for it.

    Attributes
    ----------
    name : str
        Folder name in the work directory.
    kit : tuple of str
        Arguments of ``simjwst.py`` (used when the environment variable ``STREAMIMG3_PEER_KIT`` names its folder).
    ours : tuple of str
        Arguments of ``python -m streamimg3 simulate``; none = preset a with a target that moves.
    border : int
        Columns to take out of the WCS bounding box left and right of what ``simjwst.py`` wrote.
    members : int
        Keep the first so many exposures in the association; 0 keeps all.
    flag : int
        Flag to set in a block of 40 x 40 pixels of every exposure; 0 sets none.
    """

    name: str
    kit: tuple[str, ...]
    ours: tuple[str, ...]
    border: int = 0
    members: int = 0
    flag: int = 0


@dataclass(frozen=True)
class Peer:
    """A usable reference environment and the folder its results are kept in."""

    python: Path
    work: Path

    def run(self, job: Mapping[str, object], folder: Path) -> None:
        """Run one job of ``peer_runner.py`` in `folder`; its log goes to ``log.txt`` there.

        Raises
        ------
        RuntimeError
            If the reference fails; the message names the log.
        """
        call(self.command(job, folder), folder / "log.txt", folder)

    def command(self, job: Mapping[str, object], folder: Path) -> list[str]:
        """Write a job of ``peer_runner.py`` into `folder`, and return the command line that does it."""
        folder.mkdir(parents=True, exist_ok=True)
        job_file = folder / "job.json"
        job_file.write_text(json.dumps({**job, "crds_cache": str(self.work / "crds")}, indent=1))
        return [str(self.python), str(RUNNER), str(job_file)]


def call(command: Sequence[str], log: Path, folder: Path) -> None:
    """Run `command` in `folder` with output to `log`, one thread per numeric library.

    Raises
    ------
    RuntimeError
        If the exit code is not 0; the message names command, code and log.
    """
    with log.open("w") as sink:
        done = subprocess.run(
            command, stdout=sink, stderr=subprocess.STDOUT, cwd=folder, env=environment(), check=False
        )
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}, see {log}\n{tail}")


def environment() -> dict[str, str]:
    """Environment of every program started here: single-threaded, this package importable."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **single, "PYTHONPATH": os.pathsep.join(paths)}


def find_peer(work: Path, python: Path | None) -> Peer:
    """The reference environment: the interpreter given, or one made under `work` on first use (needs a network)."""
    work.mkdir(parents=True, exist_ok=True)
    if python is not None:
        return Peer(python.absolute(), work)
    folder = work / "peer-venv"
    if not (folder / "ready").exists():
        print(f"making the reference environment in {folder}", flush=True)
        call([sys.executable, "-m", "venv", "--clear", str(folder)], work / "peer-venv.log", work)
        install = [str(folder / "bin" / "python"), "-m", "pip", "install", *PEER_REQUIREMENTS]
        call(install, work / "peer-venv.log", work)
        (folder / "ready").write_text("\n".join(PEER_REQUIREMENTS))
    return Peer(folder / "bin" / "python", work)


def make_field(peer: Peer, field: Field) -> Path:
    """Simulate `field` once and return its association file; a later call with the same recipe finds it again."""
    kit = os.environ.get(KIT_VARIABLE)
    folder = peer.work / "fields" / (field.name + ("-kit" if kit else ""))
    arguments = field.kit if kit else field.ours
    marks = [field.flag] if field.flag else []
    recipe = json.dumps([bool(kit), arguments, field.border if kit else 0, field.members, *marks])
    stamp = folder / "recipe.json"
    if not (stamp.exists() and stamp.read_text() == recipe):
        print(f"simulating field {field.name}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if kit:
            _simulate_with_kit(peer, field, Path(kit), folder)
        else:
            command = [sys.executable, "-m", "streamimg3", "simulate", str(folder), *arguments]
            if not arguments:
                command = [sys.executable, "-c", MOVING, str(folder)]
            call(command, folder / "log.txt", folder)
        if field.members:
            _keep_first_members(_association(folder), field.members)
        if field.flag:
            _set_flag(folder, field.flag)
        stamp.write_text(recipe)
    return _association(folder)


def _simulate_with_kit(peer: Peer, field: Field, kit: Path, folder: Path) -> None:
    command = [str(peer.python), str(kit / "simjwst.py"), str(folder), *field.kit]
    call(command, folder / "log.txt", folder)
    if field.border:
        exposures = [str(path) for path in sorted(folder.glob("*_cal.fits"))]
        peer.run({"shrink": exposures, "border": field.border}, folder / "border")


def _association(folder: Path) -> Path:
    found = sorted(folder.glob("*_asn.json"))
    if len(found) != 1:
        raise RuntimeError(f"{folder}: expected one association, found {len(found)}")
    return found[0]


def _keep_first_members(association: Path, count: int) -> None:
    tree = json.loads(association.read_text())
    tree["products"][0]["members"] = tree["products"][0]["members"][:count]
    association.write_text(json.dumps(tree, indent=1))


def _set_flag(folder: Path, flag: int) -> None:
    from astropy.io import fits

    for path in sorted(folder.glob("*_cal.fits")):
        with fits.open(path, mode="update") as hdus:
            hdus["DQ"].data[*BLOCK] |= flag


def peer_product(peer: Peer, name: str, association: Path, resample: Mapping[str, Value]) -> Path:
    """Run the reference on one case, or find its cached product.

    Parameters
    ----------
    peer : Peer
        Environment and work folder; the product is kept in ``WORK/peer/NAME``.
    name : str
        Name of the case.
    association : Path
        Level-3 association.
    resample : mapping
        Parameters of the resample step; every other step is skipped.

    Returns
    -------
    Path
        The ``_i2d.fits`` file.  Next to it lie ``metrics.json`` (cost of the resample step) and ``wcs.asdf`` (its
        output WCS as a custom ``output_wcs`` file).
    """
    folder = peer.work / "peer" / name
    key = _case_key(association, dict(resample))
    stamp = folder / "key"
    if not (stamp.exists() and stamp.read_text() == key):
        run_peer(peer, folder, association, resample)
        stamp.write_text(key)
    return the_product(folder)


def run_peer(peer: Peer, folder: Path, association: Path, resample: Mapping[str, Value]) -> None:
    """Run the reference into an emptied `folder` with only the resample step switched on.

    ``metrics.json`` (cost of the step in seconds and bytes) and ``wcs.asdf`` are written next to the product.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    steps: dict[str, dict[str, Value]] = {step: {"skip": True} for step in SKIPPED_STEPS}
    steps["resample"] = dict(resample)
    job: dict[str, object] = {"asn": str(association), "output_dir": str(folder), "steps": steps}
    job |= {"metrics": str(folder / "metrics.json"), "wcs_file": str(folder / "wcs.asdf")}
    peer.run(job, folder)


def peer_image3(peer: Peer, name: str, association: Path, steps: Steps) -> Path:
    """Run the whole reference pipeline on one case, or find its cached products.

    Returns
    -------
    Path
        The folder ``WORK/peer/image3-NAME`` with all products, ``metrics.json`` (cost of every step) and ``log.txt``.
    """
    folder = peer.work / "peer" / f"image3-{name}"
    key = _case_key(association, steps)
    stamp = folder / "key"
    if not (stamp.exists() and stamp.read_text() == key):
        run_peer_image3(peer, folder, association, steps)
        stamp.write_text(key)
    return folder


def run_peer_image3(peer: Peer, folder: Path, association: Path, steps: Steps) -> None:
    """Run the whole reference pipeline into an emptied `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    given = with_references(peer, steps)
    job: dict[str, object] = {"asn": str(association), "output_dir": str(folder), "steps": given}
    peer.run({**job, "metrics": str(folder / "metrics.json")}, folder)


def with_references(peer: Peer, steps: Steps) -> dict[str, dict[str, Value]]:
    """The parameters with the catalogue step's reference files, which are made on first use."""
    folder = peer.work / "references"
    if not (folder / "abvegaoffset.asdf").exists():
        peer.run({"references": str(folder)}, folder)
    files: dict[str, Value] = {
        "override_apcorr": str(folder / "apcorr.fits"),
        "override_abvegaoffset": str(folder / "abvegaoffset.asdf"),
    }
    given = {step: dict(values) for step, values in steps.items()}
    return {**given, "source_catalog": {**files, **given.get("source_catalog", {})}}


def _case_key(association: Path, parameters: object) -> str:
    recipe = (association.parent / "recipe.json").read_text()
    text = json.dumps([PEER_REQUIREMENTS, str(association), recipe, parameters], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def the_product(folder: Path) -> Path:
    """The one ``_i2d.fits`` in `folder`; RuntimeError if there is none or more than one."""
    found = sorted(folder.glob("*_i2d.fits"))
    if len(found) != 1:
        raise RuntimeError(f"{folder}: expected one _i2d.fits, found {len(found)}")
    return found[0]


def set_options(step: str, parameters: Mapping[str, Value]) -> list[str]:
    """Parameters of one step as ``--set`` options of this package's command line (values in JSON notation)."""
    options: list[str] = []
    for name, value in parameters.items():
        text = value if isinstance(value, str) else json.dumps(value)
        options += ["--set", f"{step}.{name}={text}"]
    return options


def our_command(association: Path, store: Path, resample: Mapping[str, Value]) -> list[str]:
    """Command line that runs this package's image3 on `association` with only the resample step switched on."""
    command = [sys.executable, "-m", "streamimg3", "run", "image3", str(association), "--store", str(store)]
    command.append("--no-report")
    for step in SKIPPED_STEPS:
        command += ["--set", f"{step}.skip=true"]
    return command + set_options("resample", resample)


def our_image3(association: Path, store: Path, steps: Steps) -> list[str]:
    """Command line that runs all of this package's image3 on `association`."""
    command = [sys.executable, "-m", "streamimg3", "run", "image3", str(association), "--store", str(store)]
    command.append("--no-report")
    for step, parameters in steps.items():
        command += set_options(step, parameters)
    return command
