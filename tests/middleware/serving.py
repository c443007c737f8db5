"""Real servers for applications under test: those that run in a loop are started in the test's own, on a free port, so
that a test may move the clock; those that fork are processes that die with the tests.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import hypercorn.asyncio
import hypercorn.config
import uvicorn

from tests.servers import _die_with_parent

BOOT_S = 20.0


def listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def url_of(sock: socket.socket) -> str:
    return f"http://127.0.0.1:{sock.getsockname()[1]}"


@asynccontextmanager
async def uvicorn_serving(app: Any, **options: Any) -> AsyncIterator[str]:
    sock = listening()
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", **options))
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        while not server.started:
            assert not task.done(), "uvicorn did not start"
            await asyncio.sleep(0.002)
        yield url_of(sock)
    finally:
        server.should_exit = True
        await task
        sock.close()


@asynccontextmanager
async def hypercorn_serving(app: Any) -> AsyncIterator[str]:
    sock = listening()
    config = hypercorn.config.Config()
    config.bind = [f"fd://{os.dup(sock.fileno())}"]  # which it closes
    config.errorlog = None
    config.accesslog = None
    stop = asyncio.Event()
    task = asyncio.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait))
    try:
        url = url_of(sock)
        async with httpx.AsyncClient() as client:
            for _ in range(200):
                with suppress(httpx.TransportError):
                    await client.get(url + "/up")
                    break
                assert not task.done(), "hypercorn did not start"
                await asyncio.sleep(0.01)
        yield url
    finally:
        stop.set()
        await task
        sock.close()


ASGI_SERVERS = {"uvicorn": uvicorn_serving, "hypercorn": hypercorn_serving}


@contextmanager
def gunicorn_serving(target: str, *, args: tuple[str, ...] = (), env: dict[str, str] | None = None) -> Iterator[str]:
    """`target` as "module:app", importable from the repository's root."""
    sock = listening()
    sock.listen(64)
    url = url_of(sock)
    root = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "gunicorn", target, "--bind", f"fd://{sock.fileno()}", "--log-level", "error"]
        process = subprocess.Popen(
            [*command, "--worker-tmp-dir", tempfile.gettempdir(), "--graceful-timeout", "1", *args],
            cwd=root,
            stdout=log,
            stderr=log,
            env={**os.environ, **(env or {})},
            pass_fds=(sock.fileno(),),
            preexec_fn=_die_with_parent,
        )
        try:
            ends = time.monotonic() + BOOT_S
            while True:
                with suppress(httpx.TransportError):
                    httpx.get(url + "/up", timeout=1)
                    break
                if process.poll() is not None or time.monotonic() > ends:
                    log.seek(0)
                    raise RuntimeError(f"gunicorn did not start: {log.read().decode(errors='replace')}")
                time.sleep(0.01)
            yield url
        finally:
            process.send_signal(signal.SIGQUIT)  # at once
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            sock.close()


@contextmanager
def removed_after(store: str) -> Iterator[None]:
    """The files of a shared table."""
    try:
        yield
    finally:
        for folder in ("/dev/shm", "/tmp"):
            for name in os.listdir(folder) if os.path.isdir(folder) else ():
                if store.startswith("shared") and store.removeprefix("shared://") in name:
                    os.unlink(os.path.join(folder, name))
