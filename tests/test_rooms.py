"""The house plan: which room may import what, read from every import statement, those inside functions too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "streamimg3"
NAME = "streamimg3"


@dataclass(frozen=True)
class Room:
    """What the modules of a room may import: of ours (by prefix) and of others (by prefix).

    ``errors`` and the room itself are always allowed, as is the standard library.
    """

    ours: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()
    everything: bool = False
    itself: bool = True


def room(ours: str = "", others: str = "", itself: bool = True) -> Room:
    return Room(frozenset(ours.split()), frozenset(others.split()), itself=itself)


STEPS = {
    "assign_mtwcs",
    "assign_wcs",
    "align_refs",
    "bkg_subtract",
    "flat_field",
    "hlsp",
    "klip",
    "outlier_coron",
    "stack_refs",
    "photom",
    "tweakreg",
    "skymatch",
    "outlier_detection",
    "overviews",
    "resample",
    "source_catalog",
    "tso_outlier_detection",
    "tso_photometry",
    "extract_1d",
    "white_light",
}
PIECES = " ".join(f"stages.{path.stem}" for path in (PACKAGE / "stages").glob("*.py") if path.stem not in STEPS)
HOUSE = {
    "geometry": room(),
    "kernels": room(others="numpy scipy bottleneck drizzle photutils astropy numba"),
    "engine": room(),
    "sky": room("geometry", "numpy scipy astropy gwcs asdf tweakwcs shapely spherical_geometry"),
    "store": room("geometry sky", "numpy zarr numcodecs google_crc32c fsspec obstore asdf"),
    # a step never imports another step; the pieces that steps are made of are modules that any step may use
    "stages": room(f"geometry sky kernels store engine {PIECES}", "numpy", itself=False),
    "pipelines": room("stages store engine"),
    "formats": room("geometry sky store", "numpy scipy astropy gwcs asdf fsspec obstore yaml zarr reproject"),
    "report": room("geometry sky store", "numpy matplotlib PIL"),
}
FREE = {
    "api",
    "calibrated_headers",
    "calibrated_means",
    "calibrated_pixels",
    "calibrated_products",
    "speed",
    "calibration",
    "calibration_members",
    "companions",
    "config",
    "coronagraphy",
    "coronagraphy_products",
    "cli",
    "forecast",
    "foresight",
    "ingestion",
    "kept_products",
    "looking",
    "multi",
    "parameter_table",
    "parameter_texts",
    "products",
    "progress",
    "provenance",
    "reporting",
    "series",
    "series_products",
    "session",
    "__init__",
    "__main__",
}  # the faces
LEAVES = {"errors": room()}
# The only modules of their rooms that may import these
ALONE = {"store.xarray_view": ("xarray", "matplotlib"), "engine.cluster": ("distributed",)}
TYPES = {("store.observation", "xarray.DataTree")}  # imported for annotations only


@dataclass(frozen=True)
class Violation:
    """An import that the table does not allow."""

    module: str
    line: int
    imported: str
    why: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{NAME}/{self.module.replace('.', '/')}.py:{self.line} imports {self.imported}: {self.why}"


def imports_of(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a module imports; ``from a import b`` counts as ``a.b``."""
    package = f"{NAME}.{module}".split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "import_module",
            "__import__",
        ):
            first = node.args[0] if node.args else None
            yield node.lineno, first.value if isinstance(first, ast.Constant) else "a name made at run time"


def under(name: str, prefixes: frozenset[str]) -> bool:
    """Whether a dotted name is one of the prefixes, or lies under one."""
    return any(name == p or name.startswith(f"{p}.") for p in prefixes)


def refused(module: str, imported: str, rules: Room) -> str:
    """Why a module may not import a name; empty = it may."""
    top, _, rest = imported.partition(".")
    if top in sys.stdlib_module_names:
        return ""
    if top != NAME:
        if top in ALONE.get(module, ()) or (module, imported) in TYPES:
            return ""
        return (
            ""
            if under(imported, rules.others)
            else f"the table allows {sorted(rules.others) or 'the standard library only'}"
        )
    place = module.partition(".")[0]
    allowed = rules.ours | {"errors"} | ({place} if rules.itself else set())
    if under(rest, allowed):
        return ""
    return f"the table allows {sorted(allowed)}"


def rules_for(module: str) -> Room | None:
    """The rules of a module; None = it may import everything."""
    place = module.partition(".")[0]
    if "." not in module:
        return None if module in FREE else LEAVES.get(module, room())
    return HOUSE.get(place, room())


def violations(package: Path) -> list[Violation]:
    """All imports of a package that the table does not allow."""
    found = []
    for path in sorted(package.rglob("*.py")):
        module = ".".join(path.relative_to(package).with_suffix("").parts)
        rules = rules_for(module)
        if rules is None:
            continue
        for line, imported in imports_of(ast.parse(path.read_text()), module):
            why = refused(module, imported, rules)
            if why:
                found.append(Violation(module, line, imported, why))
    return found


def test_every_import_is_allowed() -> None:
    found = violations(PACKAGE)
    assert not found, "\n" + "\n".join(map(str, found))


def test_every_folder_is_a_room_of_the_table() -> None:
    folders = {p.name for p in PACKAGE.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert folders <= set(HOUSE)
    files = {p.stem for p in PACKAGE.glob("*.py")}
    assert files <= FREE | set(LEAVES)


def test_the_package_has_been_read() -> None:
    """The reader sees the imports that are known to be there."""
    tree = ast.parse((PACKAGE / "stages" / "resample.py").read_text())
    names = {name for _, name in imports_of(tree, "stages.resample")}
    assert {"streamimg3.sky.footprint", "streamimg3.engine.Runner", "dataclasses.dataclass"} <= names


PLANTED = [
    ("geometry/box.py", "import numpy as np", "numpy"),
    ("geometry/box.py", "from streamimg3.sky import wcs", "streamimg3.sky.wcs"),
    ("kernels/blot.py", "from streamimg3.geometry import Box", "streamimg3.geometry.Box"),
    ("kernels/blot.py", "def f():\n    if True:\n        import zarr", "zarr"),
    ("kernels/blot.py", "from ..store import Observation", "streamimg3.store.Observation"),
    ("engine/task.py", "import numpy", "numpy"),
    ("engine/runner.py", "from distributed import Client", "distributed.Client"),
    ("engine/task.py", "from streamimg3.store import Observation", "streamimg3.store.Observation"),
    ("sky/wcs.py", "from streamimg3.store import Observation", "streamimg3.store.Observation"),
    ("sky/wcs.py", "from streamimg3 import store", "streamimg3.store"),
    ("sky/wcs.py", "import streamimg3", "streamimg3"),
    ("sky/wcs.py", "import zarr", "zarr"),
    ("store/layout.py", "import xarray", "xarray"),
    ("store/layout.py", "from streamimg3.engine.receipts import digest", "streamimg3.engine.receipts.digest"),
    ("stages/skymatch.py", "from streamimg3.stages.resample import Params", "streamimg3.stages.resample.Params"),
    ("stages/skymatch.py", "from streamimg3.stages import resample", "streamimg3.stages.resample"),
    ("stages/skymatch.py", "from . import resample", "streamimg3.stages.resample"),
    ("stages/skymatch.py", "import scipy.ndimage", "scipy.ndimage"),
    ("stages/skymatch.py", "from streamimg3.formats.ingest import scan", "streamimg3.formats.ingest.scan"),
    ("pipelines/image3.py", "from streamimg3.kernels import drizzle", "streamimg3.kernels.drizzle"),
    ("pipelines/image3.py", "import numpy", "numpy"),
    ("formats/blend.py", "from streamimg3.stages import resample", "streamimg3.stages.resample"),
    ("formats/blend.py", "from streamimg3.kernels import drizzle", "streamimg3.kernels.drizzle"),
    ("formats/blend.py", "from streamimg3.engine import Task", "streamimg3.engine.Task"),
    ("formats/blend.py", "import jwst.datamodels", "jwst.datamodels"),
    ("formats/blend.py", "import importlib\nimportlib.import_module('jwst')", "jwst"),
    ("report/info.py", "from streamimg3.stages import resample", "streamimg3.stages.resample"),
    ("errors.py", "import numpy", "numpy"),
    ("helpers.py", "from streamimg3.store import Observation", "streamimg3.store.Observation"),
    ("attic/old.py", "import numpy", "numpy"),
]


@pytest.mark.parametrize(("path", "code", "imported"), PLANTED)
def test_a_planted_violation_is_found(tmp_path: Path, path: str, code: str, imported: str) -> None:
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(f'"""A module."""\n\n{code}\n')
    (found,) = violations(tmp_path)
    assert found.imported == imported
    assert f"streamimg3/{path}:" in str(found) and imported in str(found)


ALLOWED = [
    (
        "geometry/grid.py",
        "from streamimg3.geometry.box import Box\nfrom streamimg3.errors import InputError\nimport math",
    ),
    ("kernels/blot.py", "import numba, numpy\nfrom scipy import ndimage\nfrom streamimg3.kernels import drizzle"),
    (
        "sky/wcs.py",
        "import asdf\nfrom astropy.wcs import WCS\nfrom streamimg3.geometry import Box\nfrom .footprint import parse",
    ),
    ("store/xarray_view.py", "import xarray"),
    ("engine/cluster.py", "def connect():\n    from distributed import Client"),
    ("store/exposure.py", "from streamimg3.sky.wcs import Wcs\nimport zarr"),
    (
        "stages/skymatch.py",
        "from streamimg3.stages.layers import Layer\nfrom streamimg3.stages.tile_drizzle import bands",
    ),
    ("stages/skymatch.py", "from streamimg3.stages import layers\nfrom streamimg3.engine import Task"),
    ("pipelines/image3.py", "from streamimg3.stages import resample\nfrom streamimg3.store import Observation"),
    ("formats/ingest.py", "from streamimg3.formats.sources import Source\nimport obstore, yaml, gwcs"),
    ("cli.py", "import typer, rich\nfrom streamimg3 import api\nfrom streamimg3.stages import resample"),
    ("api.py", "from streamimg3.formats import ingest"),
]


@pytest.mark.parametrize(("path", "code"), ALLOWED)
def test_what_the_table_allows_is_let_pass(tmp_path: Path, path: str, code: str) -> None:
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(code)
    assert violations(tmp_path) == []
