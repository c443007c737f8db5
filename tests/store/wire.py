"""Servers that misbehave on purpose: one that says what it is told to, and a proxy that holds and cuts."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import hiredis

from shield.store.lua import SCRIPTS
from shield.store.steps import VERSION
from tests.servers import Server

PATIENCE_S = 10.0


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until something has happened, which it does within milliseconds or never."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in production code, which has no event for it
            await asyncio.sleep(0.001)


Command = list[bytes]
Behaviour = Callable[[Command, asyncio.StreamWriter], Awaitable[bool]]
"""Deals with a command; True when it did, else the fake server answers as a healthy one would."""


class FakeServer:
    """Speaks the protocol, remembers nothing, and lets a test answer any command as it likes."""

    def __init__(self, path: Path) -> None:
        self.url = f"unix://{path}"
        self._path = path
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.behaviour: Behaviour | None = None
        self.commands: list[Command] = []
        self.connections = 0
        self.reads = 0

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    def cut(self) -> None:
        """Drops every connection without a word."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        parser = hiredis.Reader()
        try:
            while data := await reader.read(65536):
                self.reads += 1
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    self.commands.append(command)
                    if self.behaviour is None or not await self.behaviour(command, writer):
                        writer.write(healthy(command))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()


def healthy(command: Command) -> bytes:
    """What a server that is well would say."""
    match command[0]:
        case b"SCRIPT":
            sha = next(script.sha for script in SCRIPTS if script.text == command[2])
            return b"$40\r\n%s\r\n" % sha
        case b"ROLE":
            return b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"
        case b"GET" if command[1].endswith(b":~version"):
            return b"$1\r\n%d\r\n" % VERSION
        case b"ECHO":
            return b"$%d\r\n%b\r\n" % (len(command[1]), command[1])
        case b"INFO":
            return b"$0\r\n\r\n"
        case b"EVALSHA":
            return b"-ERR no scripts here\r\n"
    return b"+OK\r\n"


def saying(reply: bytes, *, to: bytes = b"ECHO", times: int | None = None, hang_up: bool = False) -> Behaviour:
    """Answers one kind of command with these bytes, `times` times or always, and perhaps hangs up then."""
    left = itertools.count() if times is None else iter(range(times))

    async def behave(command: Command, writer: asyncio.StreamWriter) -> bool:
        if command[0] != to or next(left, None) is None:
            return False
        writer.write(reply)
        if hang_up:
            await writer.drain()
            writer.close()
        return True

    return behave


@contextlib.asynccontextmanager
async def fake_server() -> AsyncIterator[FakeServer]:
    with tempfile.TemporaryDirectory(prefix="shield-") as directory:
        server = FakeServer(Path(directory, "s"))
        await server.start()
        try:
            yield server
        finally:
            await server.stop()


class Proxy:
    """Between a store and a real server: one command at a time, each of which it can hold, drop, cut short or
    answer with nonsense.

    `replies.clear()` holds what the server says, `requests.clear()` what the store says. With `fail_at` the
    connection that carries the N-th command is cut, at the point `how` names.
    """

    def __init__(self, server: Server, path: Path) -> None:
        self.url = f"unix://{path}"
        self._path = path
        self._upstream = server
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.replies = asyncio.Event()
        self.requests = asyncio.Event()
        self.replies.set()
        self.requests.set()
        self.commands: list[Command] = []
        self.fail_at: int | None = None
        self.how = "unsent"  # "unsent": the server never sees it; "unheard": it is done but not said; "torn": half said
        self.failed = False
        self.corrupt_next: bytes | None = None
        """What is said in place of the next reply."""

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def count(self, name: bytes) -> int:
        return sum(command[0] == name for command in self.commands)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._upstream.port is not None:
            return await asyncio.open_connection("127.0.0.1", self._upstream.port)
        return await asyncio.open_unix_connection(self._upstream.url.removeprefix("unix://"))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        up_reader, up_writer = await self._connect()
        try:
            await self._forward(reader, writer, up_reader, up_writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()
            up_writer.transport.abort()

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        parser = hiredis.Reader()
        while data := await reader.read(65536):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                self.commands.append(command)
                fails = len(self.commands) == self.fail_at
                self.failed |= fails
                await self.requests.wait()
                if fails and self.how == "unsent":
                    return
                up_writer.write(_packed(command))
                reply = await _one_reply(up_reader)
                await self.replies.wait()
                if self.corrupt_next is not None and command[0] == b"EVALSHA":
                    reply, self.corrupt_next = self.corrupt_next, None
                if fails:
                    writer.write(b"" if self.how == "unheard" else reply[: len(reply) // 2])
                    await writer.drain()
                    return
                writer.write(reply)


def _packed(command: Command) -> bytes:
    return b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in command)


async def _one_reply(reader: asyncio.StreamReader) -> bytes:
    parser: Any = hiredis.Reader()
    raw = b""
    while True:
        data = await reader.read(65536)
        if not data:
            raise ConnectionResetError
        raw += data
        parser.feed(data)
        if parser.gets() is not False:
            return raw


@contextlib.asynccontextmanager
async def proxy_to(server: Server) -> AsyncIterator[Proxy]:
    with tempfile.TemporaryDirectory(prefix="shield-") as directory:
        proxy = Proxy(server, Path(directory, "p"))
        await proxy.start()
        try:
            yield proxy
        finally:
            await proxy.stop()
