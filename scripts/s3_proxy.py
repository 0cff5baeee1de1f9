"""A proxy on the loopback interface before an S3 server: counts requests and bytes, and disturbs some of them.

    python scripts/s3_proxy.py UPSTREAM_PORT [--faults 0.05] [--seed 1] [--kinds error slow hang cut] [--pause 0.5]

It prints the port it listens on. ``GET /-/stats`` returns what it has counted, ``GET /-/reset`` sets that to zero, and
``GET /-/faults?share=0.05`` changes the share of requests that are disturbed: ``error`` answers 503, ``slow`` waits, ``hang``
never answers, ``cut`` closes the connection in the middle of a body.
"""

import argparse
import asyncio
import json
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import TextIO

_PIECE = 1 << 18
KINDS = ("error", "slow", "hang", "cut")
_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>injected</Message></Error>"


@dataclass
class Counts:
    """What went through: requests by kind, body bytes to and from the server, disturbances by kind."""

    requests: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    received: int = 0

    def to_json(self) -> bytes:
        """All of it."""
        tree = {"requests": self.requests, "faults": self.faults, "sent": self.sent, "received": self.received}
        return json.dumps(tree).encode()


@dataclass(frozen=True)
class Head:
    """The first lines of a message."""

    raw: bytes
    first: str
    headers: dict[str, str]

    @classmethod
    async def read(cls, reader: asyncio.StreamReader) -> "Head | None":
        """Read one, None at the end of the connection."""
        try:
            raw = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        first, *lines = raw.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines if ":" in line)
        return cls(raw, first, {name.strip().lower(): value.strip() for name, _, value in pairs})

    @property
    def chunked(self) -> bool:
        """Whether the body comes in pieces of announced length."""
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    @property
    def length(self) -> int:
        """Announced length of the body."""
        return int(self.headers.get("content-length", "0"))


class Cut(Exception):
    """The connection is to be closed now."""


class Proxy:
    """Forwards connections to a server."""

    def __init__(self, upstream: int, share: float, seed: int, kinds: tuple[str, ...], pause: float) -> None:
        self.upstream, self.share, self.kinds, self.pause = upstream, share, kinds, pause
        self.counts, self._random = Counts(), random.Random(seed)
        self.log: TextIO | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Handle one connection of a client."""
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while (head := await Head.read(reader)) is not None:
                method, path, _ = head.first.split(" ", 2)
                if path.startswith("/-/"):
                    await self._control(path, writer)
                    continue
                self.counts.requests[_kind(method, path)] += 1
                fault = self._random.choice(self.kinds) if self._random.random() < self.share else ""
                self.counts.faults[fault] += bool(fault)
                if fault == "error":
                    await _answer(writer, b"503 Slow Down", _SLOW_DOWN)
                    return
                if fault == "hang":
                    await reader.read()  # until the client has had enough
                    return
                if fault == "slow":
                    await asyncio.sleep(self.pause)
                server = server or await asyncio.open_connection("127.0.0.1", self.upstream)
                if not await self._forward(head, method, (reader, writer), server, fault == "cut"):
                    return
        except (Cut, ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            for end in (writer, *([server[1]] if server else [])):
                end.close()

    async def _control(self, path: str, writer: asyncio.StreamWriter) -> None:
        body = self.counts.to_json()
        if path.startswith("/-/reset"):
            self.counts = Counts()
        if found := re.search(r"share=([\d.]+)", path):
            self.share = float(found[1])
        await _answer(writer, b"200 OK", body)

    async def _forward(self, head: Head, method: str, client, server, cut: bool) -> bool:  # type: ignore[no-untyped-def]
        """Hand on one request and its answer; returns whether the connection goes on."""
        server[1].write(head.raw)
        early = None
        if head.headers.get("expect", "").lower() == "100-continue":
            early = await Head.read(server[0])
            if early is not None and " 100 " in f"{early.first} ":
                client[1].write(early.raw)
                early = None
        if early is None:
            upload = cut and head.length > 0
            self.counts.sent += await _pump(head, client[0], server[1], head.length // 2 if upload else None)
            early = await Head.read(server[0])
        if early is None:
            return False
        client[1].write(early.raw)
        status = int(early.first.split(" ")[1])
        if method != "HEAD" and status not in (204, 304):
            self.counts.received += await _pump(early, server[0], client[1], early.length // 2 if cut else None)
        await client[1].drain()
        if self.log is not None:
            print(method, head.first.split(" ")[1], status, early.length, file=self.log, flush=True)
        return early.headers.get("connection", "").lower() != "close"


def _kind(method: str, path: str) -> str:
    """Name of a request in the statistics."""
    if method == "GET" and "list-type" in path:
        return "LIST"
    if "uploadId" in path or re.search(r"[?&]uploads\b", path):
        return f"{method} part" if "partNumber" in path else f"{method} upload"
    return method


async def _answer(writer: asyncio.StreamWriter, status: bytes, body: bytes) -> None:
    writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(body), body))
    await writer.drain()


async def _pump(head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None) -> int:
    """Hand on a body, or raise after ``most`` bytes of it; returns how many there were."""
    if not head.chunked:
        return await _copy(reader, writer, head.length, most)
    total = 0
    while True:
        line = await reader.readuntil(b"\r\n")
        writer.write(line)
        size = int(line.split(b";")[0], 16)
        if size == 0:
            while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
                writer.write(line)
            writer.write(line)
            await writer.drain()
            return total
        total += await _copy(reader, writer, size, most)
        writer.write(await reader.readexactly(2))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int, most: int | None) -> int:
    left = size if most is None else most
    while left:
        piece = await reader.read(min(left, _PIECE))
        if not piece:
            raise Cut
        writer.write(piece)
        await writer.drain()
        left -= len(piece)
    if most is not None:
        raise Cut
    return size


async def _main(options: argparse.Namespace) -> None:
    proxy = Proxy(options.upstream, options.faults, options.seed, tuple(options.kinds), options.pause)
    proxy.log = open(options.log, "a") if options.log else None  # noqa: SIM115 (to the end)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=1 << 20)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


def main() -> int:
    """Serve until ended."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("upstream", type=int, help="port of the S3 server on 127.0.0.1")
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that are disturbed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--log", help="file for one line per request: method, path, status, bytes of the answer")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds that a slow answer takes longer")
    try:
        asyncio.run(_main(parser.parse_args()))
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
