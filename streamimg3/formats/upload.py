"""Uploads to object stores: in parts, beside the writing; an object appears when it is committed, or never."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping

from streamimg3.store.backend import freeze
from streamimg3.store.objects import again, object_store

PART = 16 * 2**20  # bytes of one part; 10,000 parts at most, so products up to 160 GB
_WAIT = 1.0  # seconds between two looks whether the upload still goes on


class _Discarded(Exception):
    """The upload is not wanted any more."""


class _Broken(Exception):
    """An upload that cannot be begun again."""


class Upload:
    """An object being made; nothing of it is visible before :meth:`commit`.

    Small ones are put with one request, others are sent part by part by a thread.

    Parameters
    ----------
    url : str
        Of an object that obstore serves.
    options : mapping of str to str
        Storage options.
    """

    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        folder, _, self._name = url.rpartition("/")
        self._options = freeze(dict(options))
        self._store = object_store(folder, self._options)
        self._first = bytearray()
        self._pieces: queue.Queue[bytes | None] = queue.Queue(maxsize=1)
        self._unwanted = self._begun = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def write(self, data: bytes | memoryview, /) -> int:
        """Append bytes; waits while earlier ones are being sent.

        Raises
        ------
        Exception
            What went wrong with the sending (obstore's own errors).
        """
        if self._thread is None:
            self._first += data
            if len(self._first) < PART:
                return len(data)
            self._thread = threading.Thread(target=self._send, daemon=True)
            self._thread.start()
            self._hand_over(bytes(self._first))
            self._first = bytearray()
        else:
            self._hand_over(bytes(data))
        return len(data)

    def _hand_over(self, piece: bytes | None) -> None:
        while self._error is None:
            try:
                self._pieces.put(piece, timeout=_WAIT)
                return
            except queue.Full:
                continue
        raise self._error

    def _send(self) -> None:
        import obstore

        def send() -> None:
            # One part at a time beside the one being filled; an error in the pieces makes obstore abort the upload.
            try:
                obstore.put(
                    self._store, self._name, self._given(), chunk_size=PART, max_concurrency=1, use_multipart=True
                )
            except Exception as error:
                if self._begun:  # pieces have been taken, and are gone
                    raise _Broken from error
                raise

        try:
            again(send, self._options)
        except _Broken as error:
            self._error = error.__cause__
        except BaseException as error:
            self._error = error

    def _given(self) -> Iterator[bytes]:
        while (piece := self._pieces.get()) is not None:
            self._begun = True
            yield piece
        if self._unwanted:
            raise _Discarded

    def commit(self) -> None:
        """Finish the object and let it appear."""
        import obstore

        if self._thread is None:
            whole = bytes(self._first)
            again(lambda: obstore.put(self._store, self._name, whole, use_multipart=False), self._options)
            return
        self._hand_over(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def discard(self) -> None:
        """Give it up: what was sent is dropped."""
        self._unwanted = True
        if self._thread is not None and self._error is None:
            self._hand_over(None)
            self._thread.join()
        self._first = bytearray()

    def close(self) -> None:
        """Everything was done by :meth:`commit` or :meth:`discard`."""
