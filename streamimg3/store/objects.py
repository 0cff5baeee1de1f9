"""Object stores through obstore: which URLs it serves, credentials, retries, and reading ranges of an object."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from streamimg3.errors import InputError
from streamimg3.store.recent import Fetched, recent

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ObjectStore

Options = tuple[tuple[str, str], ...]
T = TypeVar("T")

# Bytes between two ranges that are fetched rather than asked for apart
GAP = 2**16
_SCHEMES = ("s3://", "s3a://", "gs://", "gcs://", "az://", "abfs://", "abfss://")
_S3_NAMES = {
    "key": "access_key_id",
    "secret": "secret_access_key",
    "endpoint_url": "endpoint",
    "region": "region",
    "token": "session_token",
}
_OWN = ("retries", "timeout")  # options that are no business of any service
_RETRIES, _TIMEOUT = 8, 60.0
FIRST, LONGEST, PATIENCE = 0.2, 10.0, 150.0  # seconds: first pause, longest pause, after which no more is tried


def serves(url: str) -> bool:
    """Return whether a URL is read and written through obstore; others go through fsspec.

    Examples
    --------
    >>> serves("s3://bucket/x"), serves("memory://x"), serves("/tmp/x")
    (True, False, False)
    """
    return url.startswith(_SCHEMES)


def retries(options: Mapping[str, str]) -> int:
    """Return how often a request that fails for a passing reason is tried again (option ``retries``, default 8).

    Raises
    ------
    InputError
        If the option is no number.
    """
    return int(_number(options, "retries", _RETRIES, 0))


def timeout(options: Mapping[str, str]) -> float:
    """Return after how many seconds a request counts as failed (option ``timeout``, default 60).

    Raises
    ------
    InputError
        If the option is no positive number.
    """
    return _number(options, "timeout", _TIMEOUT, 0.1)


def _number(options: Mapping[str, str], name: str, default: float, least: float) -> float:
    text = options.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value < 1e6:
        raise InputError(f"--storage-option {name}={text}: give a number of at least {least:g}")
    return value


def for_others(options: Mapping[str, str]) -> dict[str, str]:
    """Return the options that are meant for the service itself."""
    return {k: v for k, v in options.items() if k not in _OWN}


@lru_cache(maxsize=64)
def object_store(url: str, options: Options) -> ObjectStore:
    """Open what lies below a URL; credentials come from the options or the service's usual environment variables.

    Parameters
    ----------
    url : str
        ``s3://bucket/prefix``, ``gs://…``, ``az://…``.
    options : tuple of (str, str)
        For S3 ``key``, ``secret``, ``token``, ``endpoint_url``, ``region``, ``anon``; for other services obstore's own
        names. ``retries`` and ``timeout`` (s) for all.

    Raises
    ------
    InputError
        If an option is unknown or obstore is not installed.
    """
    try:
        from obstore.store import S3Store, from_url
    except ImportError as error:
        raise InputError(
            f"{url}: reading this kind of URL needs an extra package ({error}): pip install '.[cloud]' in the clone"
        ) from error
    how = settings(url, options)
    if url.startswith(("s3://", "s3a://")):
        return S3Store.from_url(url.replace("s3a://", "s3://", 1), **how)
    found: Any = from_url(url, **how)
    return found  # type: ignore[no-any-return]


def settings(url: str, options: Options) -> dict[str, Any]:
    """Return configuration, client options and retries in obstore's words.

    Raises
    ------
    InputError
        If an option is unknown.
    """
    given = dict(options)
    how = _patience(given)
    how["config"] = for_others(given)
    if url.startswith(("s3://", "s3a://")):
        how["config"] = _s3_config(given)
        how["client_options"]["allow_http"] = str(how["config"].get("endpoint", "")).startswith("http://")
    return how


def _patience(options: Mapping[str, str]) -> dict[str, Any]:
    """Back-off, limits and time-outs in obstore's words."""
    pause = {"init_backoff": timedelta(seconds=FIRST), "max_backoff": timedelta(seconds=LONGEST), "base": 2}
    limit = timedelta(seconds=timeout(options))
    return {
        "retry_config": {
            "max_retries": retries(options),
            "backoff": pause,
            "retry_timeout": timedelta(seconds=PATIENCE),
        },
        "client_options": {"timeout": limit, "connect_timeout": min(limit, timedelta(seconds=10))},
    }


def _s3_config(options: Mapping[str, str]) -> dict[str, Any]:
    config: dict[str, Any] = {_S3_NAMES[k]: v for k, v in options.items() if k in _S3_NAMES}
    unknown = set(for_others(options)) - set(_S3_NAMES) - {"anon"}
    if unknown:
        known = ", ".join([*_S3_NAMES, "anon", *_OWN])
        raise InputError(f"--storage-option {sorted(unknown)[0]}: for s3:// the options are {known}")
    from_environment = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    endpoint = config.get("endpoint") or from_environment
    if endpoint:
        config["endpoint"] = endpoint
        config["virtual_hosted_style_request"] = False
    if options.get("anon", "").lower() in ("1", "true", "yes"):
        config["skip_signature"] = True
    config.setdefault("region", os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1")
    return config


def again(call: Callable[[], T], options: Options) -> T:
    """Call something that asks an object store, again after passing troubles that obstore does not try again by itself.

    Those are answers that break off, and requests without answer that change something; only what may be repeated is to
    be called so.
    """
    from obstore.exceptions import GenericError

    given, begun, pause = dict(options), time.monotonic(), FIRST
    for _ in range(retries(given)):
        try:
            return call()
        except GenericError:
            if time.monotonic() - begun > PATIENCE:
                raise
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST)
    return call()


def remove(store: ObjectStore, keys: Sequence[str]) -> None:
    """Delete objects, many with one request; missing ones are no error."""
    import obstore

    if keys:
        with contextlib.suppress(FileNotFoundError):
            obstore.delete(store, list(keys))


def swap(store: ObjectStore, key: str, old: bytes | None, new: bytes) -> bool:
    """Replace an object if it still is what it was (None = absent); the service sees to it that nobody comes between.

    Called again after the answer was lost, it finds its own object and says so.
    """
    import obstore
    from obstore.exceptions import AlreadyExistsError, PreconditionError

    try:
        if old is None:
            obstore.put(store, key, new, mode="create")
            return True
        found = obstore.get(store, key)
        there = bytes(found.bytes())
        if there != old:
            return there == new
        obstore.put(store, key, new, mode={"e_tag": found.meta["e_tag"]}, use_multipart=False)
        return True
    except FileNotFoundError:
        return False
    except (AlreadyExistsError, PreconditionError):
        # A first try may have been successful, and its answer lost.
        return bytes(obstore.get(store, key).bytes()) == new


class RemoteObject:
    """One object, of which ranges are read; nearby ranges come with one request, small objects whole, recent parts not again.

    Parameters
    ----------
    url : str
        Of the folder that :func:`object_store` opens.
    options : tuple of (str, str)
        Its options.
    key : str
        Name below the URL.
    """

    def __init__(self, url: str, options: Options, key: str) -> None:
        self._store, self._key = object_store(url, options), key
        self._name, self._options = (url, key), options
        self._known: Fetched | None = None

    def tail(self, nbytes: int) -> bytes | None:
        """Return the last bytes, or None if there is no such object."""
        from obstore.exceptions import NotModifiedError

        self._known = recent().get(self._name)
        wanted: GetOptions = {"range": {"suffix": max(nbytes, GAP)}}
        if self._known is not None:
            wanted["if_none_match"] = self._known.tag
        try:
            self._known = again(lambda: self._fetched(wanted), self._options)
            if self._known.tag:
                recent().put(self._name, self._known)
        except NotModifiedError:
            pass
        except FileNotFoundError:
            recent().drop(self._name)
            return None
        assert self._known is not None
        return self._known.end[-nbytes:]

    def _fetched(self, wanted: GetOptions) -> Fetched:
        import obstore

        found = obstore.get(self._store, self._key, options=wanted)
        return Fetched(found.meta["e_tag"] or "", found.range[0], bytes(found.bytes()))

    def ranges(self, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of some ranges ``(start, end)``; to be called after :meth:`tail`."""
        import obstore

        known = self._known
        assert known is not None
        parts = {s: known.end[s[0] - known.first : s[1] - known.first] for s in spans if s[0] >= known.first}
        parts |= {s: known.spans[s] for s in spans if s in known.spans}
        asked = [s for s in spans if s not in parts]
        if asked:
            starts, ends = [s for s, _ in asked], [e for _, e in asked]
            found = again(
                lambda: obstore.get_ranges(self._store, self._key, starts=starts, ends=ends, coalesce=GAP),
                self._options,
            )
            fetched = dict(zip(asked, map(bytes, found), strict=True))
            recent().add(self._name, known.tag, fetched)
            parts |= fetched
        return [parts[s] for s in spans]

    def close(self) -> None:
        """Nothing is held open."""
