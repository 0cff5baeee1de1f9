"""Where reference files are found: a folder whose files are chosen by their own headers, or the lock file of a run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

from streamimg3.errors import InputError
from streamimg3.formats.local_copy import exists, files_in, matching, one_line, read_text
from streamimg3.formats.names import absolute, file_name, is_remote, relative_to
from streamimg3.formats.reference_card import (
    SELECTORS,
    ExposureFacts,
    ReferenceCard,
    card_of,
    checksum,
    deciding,
    misfit,
    rank,
    read_card,
)
from streamimg3.formats.reference_header import Head, read_head

_NAME = re.compile(r"\.(fits|fit|asdf|json)(\.gz)?$", re.IGNORECASE)
_OF_INSTRUMENT = re.compile(r"/references/jwst/(nircam|niriss|nirspec|miri|fgs)/")
_AT_ONCE = 16  # files read together from a remote place


@dataclass(frozen=True)
class Found:
    """What a place has for an exposure.

    Parameters
    ----------
    card : ReferenceCard or None
        The file; None = there is none.
    why : str
        Why this one was taken, or why there is none.
    settled : bool
        There is none, and that is the answer ("N/A"); False = none was found.
    """

    card: ReferenceCard | None
    why: str
    settled: bool = False


class Place(Protocol):
    """Anything that reference files can come from."""

    @property
    def notes(self) -> Sequence[str]:
        """What was left out so far, and why."""

    def find(self, reftype: str, exposure: ExposureFacts) -> Found:
        """Return the file of a type for an exposure."""


class Folder:
    """A folder or URL with reference files, searched through with all its sub-folders; only headers are read.

    In a folder of the layout ``references/jwst/<instrument>/`` only the exposure's instrument is looked at.

    Parameters
    ----------
    url : str
        Local path or fsspec URL.
    options : mapping of str to str
        Storage options for remote URLs.

    Raises
    ------
    InputError
        If there is no such folder, or it holds no file that could be a reference file.
    """

    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        self.url = url
        self.notes: list[str] = []
        self._options = options
        self._cards: dict[str, dict[str, list[ReferenceCard]]] = {}
        self._files: dict[str, list[str]] = {}
        for name in _files(url, options):
            inside = _OF_INSTRUMENT.search(name)
            self._files.setdefault(inside[1].upper() if inside else "", []).append(name)
        if not self._files:
            raise InputError(f"{url}: holds no FITS, ASDF or JSON files; give a folder with reference files")

    def cards(self, instrument: str, reftype: str) -> list[ReferenceCard]:
        """Return the cards of all files of a type that may be for an instrument."""
        return [card for group in ("", instrument) for card in self._group(group).get(reftype, [])]

    def find(self, reftype: str, exposure: ExposureFacts) -> Found:
        """Return the best file: exact matches beat patterns beat ANY; then the latest USEAFTER and file name."""
        cards = self.cards(exposure.instrument, reftype)
        fit = [card for card in cards if not misfit(card, exposure)]
        if not fit:
            return Found(None, f"{self.url} {_nearest(cards, reftype, exposure)}")
        best = max(fit, key=lambda card: rank(card, exposure))
        return Found(best, f"{_why(best, exposure)}; best of {len(fit)} that fit in {self.url}")

    def _group(self, name: str) -> dict[str, list[ReferenceCard]]:
        """Return the cards in an instrument's folder by type; "" = those that lie elsewhere."""
        if name not in self._cards:
            found: dict[str, list[ReferenceCard]] = {}
            for card in self._read(self._files.get(name, [])):
                found.setdefault(card.reftype, []).append(card)
            self._cards[name] = found
        return self._cards[name]

    def _read(self, urls: Sequence[str]) -> Iterator[ReferenceCard]:
        workers = _AT_ONCE if is_remote(self.url) else 1
        with ThreadPoolExecutor(max_workers=workers) as pool:
            for head in pool.map(self._head, urls):
                try:
                    if isinstance(head, InputError):
                        raise head
                    yield card_of(head)
                except InputError as error:
                    self.notes.append(f"left out: {error}")

    def _head(self, url: str) -> Head | InputError:
        try:
            return read_head(url, self._options)
        except InputError as error:
            return error


def _files(url: str, options: Mapping[str, str]) -> list[str]:
    if is_remote(url):
        if files_in(url, options) is None:
            raise InputError(f"{url}: is no folder; give a folder or URL with reference files, or a lock file (.json)")
        return sorted(name for name in set(matching(url.rstrip("/") + "/**", options)) if _NAME.search(file_name(name)))
    root = absolute(url)
    if not os.path.isdir(root):
        what = "is a file" if os.path.exists(root) else "does not exist"
        raise InputError(f"{url}: {what}; give a folder or URL with reference files, or a lock file (.json)")
    try:
        return sorted(os.path.join(folder, name) for folder, name in _walk(root, set()) if _NAME.search(name))
    except OSError as exc:
        raise InputError(f"{url}: cannot be searched ({one_line(exc)}); check its permissions") from exc


def _walk(folder: str, seen: set[str]) -> Iterator[tuple[str, str]]:
    """Yield folder and name of every file; links are followed, but no folder is entered twice."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.is_dir():
                yield from _walk(entry.path, seen)
            elif entry.is_file():
                yield folder, entry.name


def _why(card: ReferenceCard, exposure: ExposureFacts) -> str:
    """Say by what a card was chosen: the facts it names, then its date."""
    told = [f for f in deciding(card.reftype, exposure.instrument) if card.allowed(f)]
    shown = ", ".join(f"{SELECTORS[f][0]} {'|'.join(card.allowed(f))}" for f in told) or "any exposure"
    return f"is for {shown}" + (f", USEAFTER {card.useafter[:19]}" if card.useafter else ", no USEAFTER")


def _nearest(cards: Sequence[ReferenceCard], reftype: str, exposure: ExposureFacts) -> str:
    """Say what is there of a type of which nothing fits."""
    mine = [card for card in cards if card.instrument in ("", exposure.instrument)]
    if not mine:
        return f"has no {reftype} file" + (f" of {exposure.instrument}" if cards else "")
    words = [(misfit(card, exposure), file_name(card.url)) for card in mine]
    order = [f"has {SELECTORS[f][0]}" for f in deciding(reftype, exposure.instrument)] + ["has USEAFTER"]
    reason, name = max(words, key=lambda w: (order.index(w[0].rsplit(" ", 1)[0]), w[1]))
    return f"has {len(mine)} {reftype} file{'s' * (len(mine) > 1)}, none fits: {name} {reason}"


@dataclass(frozen=True)
class Entry:
    """One line of a lock file."""

    reftype: str
    optics: Mapping[str, str]
    url: str
    sha256: str
    useafter: str
    why: str

    def as_dict(self) -> dict[str, object]:
        """Return it as it is written."""
        return {
            "type": self.reftype,
            "exposure": dict(self.optics),
            "url": self.url,
            "sha256": self.sha256,
            "useafter": self.useafter,
            "why": self.why,
        }


class Lock:
    """The reference files of an earlier run: the same are taken again, and they must not have changed.

    Parameters
    ----------
    url : str
        Path or URL of the lock file; relative names in it start from its folder.
    options : mapping of str to str
        Storage options for remote URLs.

    Raises
    ------
    InputError
        If it is missing or is no lock file.
    """

    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        self.url = url
        self.notes: list[str] = []
        self._options = options
        self._entries = _entries(url, options)
        self._checked: dict[str, ReferenceCard] = {}

    def find(self, reftype: str, exposure: ExposureFacts) -> Found:
        """Return the file that was taken for such an exposure.

        Raises
        ------
        InputError
            If the file has gone, or is not the one it was.
        """
        same = [e for e in self._entries if e.reftype == reftype and dict(e.optics) == exposure.optics]
        if not same:
            return Found(None, f"{self.url} has none for such an exposure")
        # several: the date decided; a single one may have been the user's own wish against its date
        in_time = [e for e in same if not exposure.date or e.useafter <= exposure.date]
        entry = max(in_time or same, key=lambda e: e.useafter)
        if entry.url == "N/A":
            return Found(None, entry.why, settled=True)
        return Found(self._card(entry), entry.why)

    def _card(self, entry: Entry) -> ReferenceCard:
        url = relative_to(self.url, entry.url)
        if url not in self._checked:
            found = checksum(url, self._options)
            if found != entry.sha256:
                raise InputError(
                    f"{url}: has changed since {file_name(self.url)} was written "
                    f"(sha256 {found[:12]}…, it was {entry.sha256[:12]}…); restore it or choose again without the lock"
                )
            self._checked[url] = replace(read_card(url, self._options), sha256=found)
        return self._checked[url]


def _entries(url: str, options: Mapping[str, str]) -> tuple[Entry, ...]:
    """Return the lines of a lock file: a JSON list, or an object with that list as ``references``."""
    if not exists(url, options):
        raise InputError(f"{url}: does not exist; give the lock file of a run, or a folder with reference files")
    try:
        content = json.loads(read_text(url, options))
        listed = content["references"] if isinstance(content, dict) else content
        return tuple(_entry(line) for line in listed)
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise InputError(
            f"{url}: is not a lock file of reference files ({type(exc).__name__}: {one_line(exc)}); "
            "give one that a run has written, or a folder"
        ) from exc


def _entry(line: Mapping[str, object]) -> Entry:
    optics = line["exposure"]
    if not isinstance(optics, Mapping):
        raise TypeError("'exposure' is no object")
    text = {key: str(line[key]) for key in ("type", "url", "sha256", "useafter", "why")}
    facts = {str(key): str(value) for key, value in optics.items()}
    return Entry(text["type"], facts, text["url"], text["sha256"], text["useafter"], text["why"])
