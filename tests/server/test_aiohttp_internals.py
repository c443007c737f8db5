"""What Shield relies on inside aiohttp, held against the aiohttp that is installed.

A failure here names what changed. Then read the change, see whether the lanes still get what they need
(shield/server/aiohttp_internals.py says what that is), run `python -m tests.server.lane_fuzz`, and only then put the
new digest here and the new version into pyproject.toml's bound.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import inspect
import textwrap
from pathlib import Path
from typing import Any

import pytest
from aiohttp import base_protocol, web_protocol

from shield.server import aiohttp_internals, guarded
from shield.server.aiohttp_internals import METHODS, NAMES
from shield.server.guarded import Guarded
from tests.server.running import serving

ROOT = Path(__file__).resolve().parents[2]


def digest(method: str) -> str:
    """Of the method's code as it is parsed: comments and line breaks do not matter, docstrings neither."""
    function = getattr(web_protocol.RequestHandler, method)
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]


DIGESTS = {
    "_process_keepalive": "940e3e632721c2e1",
    "close": "86b502729942b6be",
    "connection_lost": "f7de54ff4691d93c",
    "connection_made": "03cddef7c59adb8e",
    "data_received": "b7639d80bedd89cb",
    "eof_received": "463e2d67aaf510f8",
    "force_close": "4f5ba31beb64d18b",
    "pause_writing": "eb545626ba5bc985",
    "resume_writing": "bcb56f547c6b247e",
    "shutdown": "3fa6395274d5ddcf",
    "start": "bf1eb39ecefbc464",
}


def test_every_attribute_is_still_there() -> None:
    slots = {name for base in web_protocol.RequestHandler.__mro__ for name in getattr(base, "__slots__", ())}
    missing = [name for name in NAMES if name not in slots]
    assert not missing, f"aiohttp's connection has no {missing} any more"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_still_does_what_it_did(method: str) -> None:
    assert hasattr(web_protocol.RequestHandler, method), f"aiohttp's connection has no {method}() any more"
    found = digest(method)
    assert found == DIGESTS[method], f"aiohttp changed RequestHandler.{method}(); its digest now is {found}"


def test_nothing_else_touches_internals() -> None:
    """Private names of aiohttp's connection are used in one file only."""
    slots = {name for base in (web_protocol.RequestHandler, base_protocol.BaseProtocol) for name in base.__slots__}
    private = {name for name in slots if name.startswith("_")}
    used = {
        node.attr
        for node in ast.walk(ast.parse(Path(aiohttp_internals.__file__).read_text()))
        if isinstance(node, ast.Attribute) and node.attr in private
    }
    assert used <= set(NAMES), f"missing from NAMES: {used - set(NAMES)}"
    for path in (ROOT / "shield/server").glob("*.py"):
        if path.stem == "aiohttp_internals":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            # A listener is aiohttp's Server and has a loop and a table of connections of its own.
            if isinstance(node, ast.Attribute) and node.attr in private - {"_loop", "_manager"}:
                pytest.fail(f"{path.name}:{node.lineno} uses aiohttp's {node.attr}")


async def test_idle_busy_and_ended_are_told_apart() -> None:
    """The properties mean what they say, on a connection that aiohttp serves."""
    async with serving(express=False) as server:
        reader, writer = await asyncio.open_unix_connection(str(server.path))
        writer.write(b"GET /v1/authz HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        connection = next(iter(server.decisions.connections))
        assert isinstance(connection, Guarded)
        assert (connection.awaits_request, connection.ended, connection.requests_read) == (True, False, 1)
        writer.write(b"POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        for _ in range(100):
            await asyncio.sleep(0)
            if connection.requests_read == 2:
                break
        assert (connection.awaits_request, connection.requests_read) == (False, 2)
        connection.close()
        assert connection.ended
        writer.close()


async def test_the_keep_alive_timer_is_moved_by_requests_of_the_express_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(guarded.CONNECTION_OPTIONS, "keepalive_timeout", 0.2)
    async with serving() as server:
        reader, writer = await asyncio.open_unix_connection(str(server.path))
        # Once aiohttp has answered, its timer runs.
        for target in (b"/v1/other", b"/v1/authz"):
            writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target)
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.05)
        connection: Any = next(iter(server.decisions.connections))
        assert connection.requests_read == 1  # aiohttp saw nothing of the second
        due = connection._next_keepalive_close_time
        connection._keepalive_handle.cancel()
        monkeypatch.setattr(connection.loop, "time", lambda: due, raising=False)
        connection._process_keepalive()
        assert not connection.ended
        assert connection._next_keepalive_close_time == connection.used_s + 0.2 > due
        assert connection._keepalive_handle.when() == connection._next_keepalive_close_time
        monkeypatch.setattr(connection.loop, "time", lambda: connection.used_s + 0.21, raising=False)
        connection._process_keepalive()
        assert connection.ended
        monkeypatch.undo()
        writer.close()
