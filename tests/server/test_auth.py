"""Callers: tokens in files, tokens in requests, and that a listener beyond this machine needs them."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from pathlib import Path

import aiohttp
import pytest

from shield.identity.bearer import bearer
from shield.server.auth import CallerTokens, TokenFileError
from shield.server.lifecycle import Server
from shield.server.options import ServeOptions, read_secret
from shield.server.sockets import Address, TlsFiles, UsageError
from tests.server.running import serving


def test_a_file_holds_one_token_a_line(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("# the edge\nalpha-secret\n\n  beta-secret  \r\n")
    tokens = CallerTokens.read(file)
    assert len(tokens) == 2
    for good in ("Bearer alpha-secret", "bearer beta-secret", "BEARER  beta-secret "):
        assert tokens.accept(good), good
    for bad in (
        *(None, "", "Bearer", "Bearer ", "Bearer alpha", "Bearer alpha-secret2", "Bearer ALPHA-SECRET"),
        *("alpha-secret", "Basic alpha-secret", "Bearer # the edge", "Bearer \udcff", "Bearer é"),
    ):
        assert not tokens.accept(bad), bad
    assert "alpha" not in repr(vars(tokens))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no token"),
        (b"\n# nothing\n", "holds no token"),
        (b"two words\n", "line 1"),
        ("ключ\n".encode(), "not ASCII"),
        (b"x\n" * 65, "at most 64"),
        (b"x" * 70_000, "more than"),
    ],
)
def test_a_file_that_does_not_do_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "tokens"
    file.write_bytes(content)
    with pytest.raises(TokenFileError, match=message) as caught:
        CallerTokens.read(file)
    assert "two words" not in str(caught.value)
    with pytest.raises(TokenFileError, match="cannot be read"):
        CallerTokens.read(tmp_path / "absent")


def test_other_schemes_carry_no_bearer_token() -> None:
    assert bearer("Bearer x") == "x"
    for other in (None, "", "x", "Basic x", "Bearer", "Bearerx"):
        assert bearer(other) is None


async def test_every_decision_endpoint_asks_for_a_token() -> None:
    async with serving(tokens=CallerTokens(["alpha-secret"])) as server:
        for method, path in (
            ("POST", "/v1/check"), ("GET", "/v1/authz"), ("GET", "/v1/authz/envoy/x"), ("POST", "/v1/report"),
            ("POST", "/v1/release"), ("GET", "/nowhere"), ("GET", "/v1/check"),
        ):  # fmt: skip
            for headers in (
                {},
                {"Shield-Authorization": "Bearer wrong"},
                {"Authorization": "Bearer alpha-secret"},  # that is the end client's header
            ):
                async with server.client.request(method, path, headers=headers) as answer:
                    assert answer.status == 401, path
                    assert answer.headers["Content-Type"] == "application/problem+json"
                    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        good = {"Shield-Authorization": "Bearer alpha-secret"}
        async with server.client.post("/v1/check", json={"ip": "203.0.113.7"}, headers=good) as answer:
            assert answer.status == 200
        async with server.client.get("/nowhere", headers=good) as answer:
            assert answer.status == 404
        async with server.client.get("/v1/authz?deny=403") as answer:
            assert answer.status == 401  # the gateway's own mistake, which deny=403 is not about
        assert "alpha-secret" not in server.log()
        assert "wrong" not in server.log()


async def test_two_tokens_in_one_request_are_none() -> None:
    async with serving(tokens=CallerTokens(["alpha-secret"])) as server:
        raw = await server.raw(
            b"GET /v1/authz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nShield-Authorization: Bearer x\r\n"
            b"Shield-Authorization: Bearer alpha-secret\r\n\r\n"
        )
        assert raw.startswith(b"HTTP/1.1 401")


async def test_a_refused_caller_is_told_before_its_body_is_read() -> None:
    async with serving(tokens=CallerTokens(["alpha-secret"])) as server:
        raw = await server.raw(b"POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n", end=False)
        assert raw.startswith(b"HTTP/1.1 401")
        assert b"Connection: close" in raw


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:8080"])
@pytest.mark.parametrize("which", ["listen", "admin"])
async def test_a_listener_beyond_this_machine_needs_callers_to_prove_themselves(address: str, which: str) -> None:
    local = Address.parse("127.0.0.1:0")
    given = {"listen": (local,), "admin": local}
    given[which] = (Address.parse(address),) if which == "listen" else Address.parse(address)
    with pytest.raises(UsageError, match="--auth-token-file"):
        await Server(ServeOptions(version="0", **given)).run()  # type: ignore[arg-type]
    server_only = TlsFiles(Path("cert"), Path("key"))
    with pytest.raises(UsageError, match="--auth-token-file"):
        await Server(ServeOptions(version="0", tls=server_only, **given)).run()  # type: ignore[arg-type]


async def test_an_admin_listener_beyond_this_machine_is_guarded_but_for_its_probes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing here listens beyond loopback: it is only told that loopback can be reached from elsewhere."""
    monkeypatch.setattr(Address, "is_local", False)
    tokens = tmp_path / "tokens"
    tokens.write_text("alpha-secret\n")
    somewhere = Address.parse("127.0.0.1:0")
    out = io.StringIO()
    server = Server(ServeOptions("0", listen=(somewhere,), admin=somewhere, token_file=tokens), out=out, err=out)
    running = asyncio.create_task(server.run())
    while "try:" not in out.getvalue():
        await asyncio.sleep(0)
        assert not running.done()
    admin = out.getvalue().split("admin on ")[1].split()[0]
    good = {"Shield-Authorization": "Bearer alpha-secret"}
    async with aiohttp.ClientSession(admin) as client:
        for path, without in (("/healthz", 200), ("/readyz", 200), ("/metrics", 401), ("/v1/policy", 401), ("/x", 401)):
            async with client.get(path) as answer:
                assert answer.status == without, path
            async with client.get(path, headers=good) as answer:
                assert answer.status == (404 if path == "/x" else 200)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running, 10)


def test_a_secret_needs_sixteen_bytes(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("0123456789abcdef\n")
    assert read_secret(file) == b"0123456789abcdef"
    file.write_text("short\n")
    with pytest.raises(UsageError, match="found 5 bytes; allowed: 16"):
        read_secret(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read_secret(tmp_path)
