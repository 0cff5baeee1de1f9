"""Reference files chosen by the ``crds`` package, where it is installed and may be used."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from streamimg3.errors import InputError
from streamimg3.formats.local_copy import one_line
from streamimg3.formats.reference_card import ExposureFacts, read_card
from streamimg3.formats.reference_places import Found

# what crds calls the facts that decide
_NAMES = {
    "detector": "META.INSTRUMENT.DETECTOR",
    "channel": "META.INSTRUMENT.CHANNEL",
    "module": "META.INSTRUMENT.MODULE",
    "filter": "META.INSTRUMENT.FILTER",
    "pupil": "META.INSTRUMENT.PUPIL",
    "band": "META.INSTRUMENT.BAND",
    "coronmsk": "META.INSTRUMENT.CORONAGRAPH",
    "exp_type": "META.EXPOSURE.TYPE",
    "readpatt": "META.EXPOSURE.READPATT",
    "subarray": "META.SUBARRAY.NAME",
}


class CrdsModule(Protocol):
    """What is used of the package."""

    def getreferences(
        self,
        parameters: Mapping[str, str],
        reftypes: Sequence[str] | None = None,
        context: str | None = None,
        ignore_cache: bool = False,
        observatory: str = "jwst",
    ) -> Mapping[str, str]:
        """Return local paths by type; files that are not there yet are fetched."""


class Crds:
    """The ``crds`` package as a place of reference files.

    Parameters
    ----------
    load : callable
        Imports the package and returns it; called at the first question, never before.
    cache : str
        Folder of a CRDS cache with ``mappings``; its newest context is used. "" = what the environment says
        (CRDS_PATH, CRDS_CONTEXT, CRDS_SERVER_URL).
    """

    def __init__(self, load: Callable[[], CrdsModule], cache: str = "") -> None:
        self.notes: list[str] = []
        self._load = load
        self._cache = cache
        self.context = os.environ.get("CRDS_CONTEXT") or newest_context(cache)

    def installed(self) -> bool:
        """Return whether the package can be imported."""
        try:
            with _environment(self._cache):
                self._load()
        except ImportError:
            return False
        return True

    def find(self, reftype: str, exposure: ExposureFacts) -> Found:
        """Return what crds recommends.

        Raises
        ------
        InputError
            If the package is not installed, or fails.
        """
        name = self.context or "the latest context"
        answer = self._ask(reftype, exposure)
        if answer.upper().startswith("NOT FOUND") and not answer.upper().endswith("N/A"):
            return Found(None, f"crds ({name}) says: {one_line(answer)}")
        if answer.upper().endswith("N/A"):
            return Found(None, f"crds ({name}) says N/A", settled=True)
        return Found(read_card(answer, {}), f"chosen by crds ({name})")

    def _ask(self, reftype: str, exposure: ExposureFacts) -> str:
        try:
            with _environment(self._cache):
                crds = self._load()
                found = crds.getreferences(parameters(exposure), [reftype], self.context, False, "jwst")
        except ImportError as exc:
            raise InputError(
                f"the crds package is not installed ({one_line(exc)}): pip install crds, or give --references DIR"
            ) from exc
        except Exception as exc:  # it has no common error; that there is no such file is a plain LookupError
            if isinstance(exc, LookupError) and not isinstance(exc, KeyError | IndexError):
                return f"NOT FOUND {one_line(exc)}"
            raise InputError(
                f"{exposure.name}: crds cannot tell the {reftype} reference for {exposure} ({one_line(exc)}); "
                f"give --references DIR or override_{reftype}"
            ) from exc
        return str(found.get(reftype, "NOT FOUND nothing was returned"))


def parameters(exposure: ExposureFacts) -> dict[str, str]:
    """Return the facts of an exposure under the names that crds has for them."""
    date, _, time = exposure.date.partition("T")
    if not date:
        raise InputError(f"{exposure.name}: has no DATE-OBS; crds cannot choose reference files for it")
    facts = {name: str(getattr(exposure, field)) for field, name in _NAMES.items()}
    given = {name: value for name, value in facts.items() if value}
    when = {"META.OBSERVATION.DATE": date, "META.OBSERVATION.TIME": time}
    return {"META.INSTRUMENT.NAME": exposure.instrument, **given, **when}


def newest_context(cache: str) -> str | None:
    """Return the context of the highest number in a local CRDS cache, or None if there is none."""
    folders = [os.path.join(cache, "mappings", "jwst"), os.path.join(cache, "mappings")]
    names = [name for folder in folders if cache and os.path.isdir(folder) for name in os.listdir(folder)]
    numbered = {int(m[1]): name for name in names if (m := re.fullmatch(r"jwst_(\d+)\.pmap", name))}
    return numbered[max(numbered)] if numbered else None


@contextmanager
def _environment(cache: str) -> Iterator[None]:
    """Let crds, which is told so by environment variables only, use a cache for the time of a question."""
    before = os.environ.get("CRDS_PATH")
    if cache:
        os.environ["CRDS_PATH"] = cache
    try:
        yield
    finally:
        if cache and before is None:
            del os.environ["CRDS_PATH"]
        elif cache and before is not None:
            os.environ["CRDS_PATH"] = before
