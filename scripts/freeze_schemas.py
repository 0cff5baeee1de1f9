"""Write the JSON Schemas of all documents of a store into ``schemas/``, one file per kind and version.

A frozen file is never edited after a release: whoever changes the fields of a document raises its ``version``, and
this script adds the new file beside the old one.

    python scripts/freeze_schemas.py            add what is missing; fail where a frozen file would change
    python scripts/freeze_schemas.py --check    write nothing; fail where anything is missing or would change
    python scripts/freeze_schemas.py --replace  overwrite files that no release has shipped yet
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamimg3.store import coron_documents, series_documents  # noqa: F401 (their documents are frozen too)
from streamimg3.store.documents import Document
from streamimg3.store.exposure import ExposureRecord
from streamimg3.store.layout import VERSION

FOLDER = Path(__file__).resolve().parents[1] / "schemas"
DRAFT = "https://json-schema.org/draft/2020-12/schema"
SIMPLE = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}

Schema = dict[str, Any]


class FrozenError(Exception):
    """A document has changed under a version that is already frozen."""


@dataclass(frozen=True)
class Frozen:
    """A kind of document under a version, and its schema."""

    kind: str
    version: int
    schema: Schema

    @property
    def filename(self) -> str:
        """Name of its file."""
        return f"{self.kind}-v{self.version}.json"

    @property
    def text(self) -> str:
        """What the file holds."""
        return json.dumps(self.schema, indent=2) + "\n"


def kinds(base: type[Document] = Document) -> list[type[Document]]:
    """Return all kinds of documents, by name."""
    found = [*base.__subclasses__(), *(k for child in base.__subclasses__() for k in kinds(child))]
    return sorted(found, key=lambda kind: kind.kind)


def every_schema() -> list[Frozen]:
    """Return the schemas of all documents and of the exposures' records (which go with the store's version)."""
    return [*map(of_document, kinds()), of_record(ExposureRecord, "exposure", VERSION)]


def of_document(kind: type[Document]) -> Frozen:
    """Return the schema of a document, as :meth:`Document.to_json` writes it."""
    head = {"schema": {"const": f"streamimg3/{kind.kind}"}, "version": {"const": kind.version}}
    return Frozen(kind.kind, kind.version, _whole(kind, kind.kind, head))


def of_record(kind: type, name: str, version: int) -> Frozen:
    """Return the schema of a plain record, one of many in a list."""
    return Frozen(name, version, _whole(kind, name, {}))


def _whole(kind: type, title: str, head: Schema) -> Schema:
    parts: Schema = {}
    schema = {"$schema": DRAFT, "title": f"streamimg3/{title}"} | _object(kind, head, parts)
    return schema | ({"$defs": parts} if parts else {})


def _object(kind: type, head: Schema, parts: Schema) -> Schema:
    """Schema of a dataclass: every field is written, nothing else is."""
    hints = typing.get_type_hints(kind)
    properties = head | {f.name: _value(hints[f.name], parts) for f in dataclasses.fields(kind)}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _value(kind: Any, parts: Schema) -> Schema:
    """Schema of an annotated type; dataclasses inside go to ``parts``.

    Raises
    ------
    TypeError
        If a field has a type that documents do not use.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return {}
    if kind in SIMPLE:
        return {"type": SIMPLE[kind]}
    if origin in (types.UnionType, typing.Union):
        if set(args) <= set(SIMPLE):
            return {"type": [SIMPLE[a] for a in args]}
        return {"anyOf": [_value(a, parts) for a in args]}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if kind.__name__ not in parts:
            parts[kind.__name__] = _object(kind, {}, parts)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if origin is tuple and args[1:] == (Ellipsis,):
        return {"type": "array", "items": _value(args[0], parts)}
    if origin is tuple:
        inner = [_value(a, parts) for a in args]
        return {"type": "array", "prefixItems": inner, "items": False, "minItems": len(inner)}
    if origin is dict and args[0] is str:
        return {"type": "object", "additionalProperties": _value(args[1], parts)}
    raise TypeError(f"documents hold no {kind}: give the schema script a rule for it")


def differences(folder: Path, schemas: list[Frozen]) -> Iterator[tuple[Frozen, str]]:
    """Yield the schemas whose file is ``missing`` or ``changed``."""
    for frozen in schemas:
        path = folder / frozen.filename
        if not path.exists():
            yield frozen, "missing"
        elif path.read_text() != frozen.text:
            yield frozen, "changed"


def freeze(folder: Path, schemas: list[Frozen], replace: bool = False) -> list[Path]:
    """Write the files that are missing.

    Parameters
    ----------
    folder : Path
        Where the frozen files are.
    schemas : list of Frozen
        What they should hold.
    replace : bool
        Overwrite files that would change.

    Raises
    ------
    FrozenError
        If a file would change and ``replace`` is not given; nothing is written then.
    """
    found = list(differences(folder, schemas))
    changed = [frozen.filename for frozen, how in found if how == "changed"]
    if changed and not replace:
        raise FrozenError(f"{', '.join(changed)} would change: raise the version of the document")
    for frozen, _ in found:
        (folder / frozen.filename).write_text(frozen.text)
    return [folder / frozen.filename for frozen, _ in found]


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Freeze the JSON Schemas of the store's documents.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing, fail where a file is missing or would change"
    )
    parser.add_argument("--replace", action="store_true", help="overwrite files that no release has shipped yet")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files are (default: schemas)")
    given = parser.parse_args(arguments)
    if given.check:
        found = [f"{frozen.filename} {how}" for frozen, how in differences(given.folder, every_schema())]
        print("\n".join(found) or "all schemas are as frozen")
        return 1 if found else 0
    try:
        written = freeze(given.folder, every_schema(), given.replace)
    except FrozenError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(str(path) for path in written) or "all schemas are as frozen")
    return 0


if __name__ == "__main__":
    sys.exit(main())
