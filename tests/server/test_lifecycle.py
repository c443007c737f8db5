"""A server's life as its operator sees it: start, signals, drain, end."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.server.process import Process, run
from tests.server.running import POLICY
from tests.servers import Server, make_certificates


def ask(url: str, body: Any = None, *, context: ssl.SSLContext | None = None, **headers: str) -> tuple[int, Any]:
    """The status and JSON of a GET, or of a POST with a body."""
    data = None if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, data, named)
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"null")


def policy_file(directory: Path, text: str = POLICY) -> Path:
    file = directory / "policy.toml"
    file.write_text(text)
    return file


def reloaded(process: Process, event: str) -> dict[str, Any]:
    """The event that a SIGHUP leads to."""
    before = len(process.events(event))
    process.signal(signal.SIGHUP)
    process.until(event, lambda: len(process.events(event)) > before)
    return process.events(event)[-1]


def test_it_starts_with_nothing_given_says_what_it_serves_and_ends_with_0(tmp_path: Path) -> None:
    with run(tmp_path) as process:
        status, decision = ask(f"{process.url}/v1/check", {"ip": "203.0.113.7"})
        assert (status, decision["allowed"]) == (200, True)
        assert ask(f"{process.admin_url}/readyz")[0] == 200
        first, second = process.out().splitlines()
        assert "policy 'starter' (the starter policy), 4 limits, store memory" in first
        assert second == f"""try: curl -s {process.url}/v1/check -d '{{"ip":"203.0.113.7"}}'"""
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert [json.loads(line)["event"] for line in process.err().splitlines()] == ["serving", "draining", "ended"]


def test_several_listeners_a_unix_socket_among_them(tmp_path: Path) -> None:
    path = tmp_path / "decide.sock"
    with run(tmp_path, "--listen", f"unix:{path}", "--listen", "127.0.0.1:0", "--admin", "none") as process:
        url = process.address(r"(http://127[^\s,;]+)")
        assert ask(f"{url}/v1/check", {})[0] == 200
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET /v1/authz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        assert f"--unix-socket {path}" in process.out()
        assert "admin" not in process.out()
        process.signal(signal.SIGINT)
        assert process.wait() == 0
    assert not path.exists()


def test_a_killed_servers_unix_socket_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with run(tmp_path / "1", "--listen", f"unix:{path}") as process:
        process.address(r"(unix:\S+)")
        process.kill()
    assert path.is_socket()
    with run(tmp_path / "2", "--listen", f"unix:{path}") as process:
        process.address(r"(unix:\S+)")
        with run(tmp_path / "3", "--listen", f"unix:{path}") as late:
            assert late.wait() == 3
            assert "another program listens there already" in late.err()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_what_is_in_flight_finishes_while_readyz_says_503(tmp_path: Path) -> None:
    with run(tmp_path) as process:
        url, admin = process.url, process.admin_url
        slow, kept = (socket.create_connection(_endpoint(url)) for _ in range(2))
        kept.sendall(b"GET /v1/authz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in kept.recv(1000)
        body = b'{"ip":"203.0.113.7"}'
        slow.sendall(b"POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body[:5]))
        process.until("count it", lambda: _in_flight(admin))
        process.signal(signal.SIGTERM)
        process.until("drain", lambda: ask(f"{admin}/readyz")[0] == 503)
        assert ask(f"{admin}/healthz")[0] == 200
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(_endpoint(url)).close()
        # A connection that was there is served once more and told to go.
        kept.sendall(b"GET /v1/authz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"Connection: close" in kept.recv(1000)
        slow.sendall(body[5:])
        answer = slow.recv(4000)
        assert b"200 OK" in answer
        assert b'"allowed":true' in answer
        assert process.wait() == 0
        slow.close()
        kept.close()


def _endpoint(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def _in_flight(admin: str) -> bool:
    with urllib.request.urlopen(f"{admin}/metrics", timeout=10) as answer:
        return b"\nshield_in_flight 1.0\n" in answer.read()


@pytest.mark.parametrize("second", [None, signal.SIGTERM])
def test_what_does_not_finish_is_cut_off_after_the_grace_or_a_second_signal(
    tmp_path: Path, second: signal.Signals | None
) -> None:
    grace = "0.2" if second is None else "60"
    with run(tmp_path, "--grace", grace) as process:
        stuck = socket.create_connection(_endpoint(process.url))
        stuck.sendall(b"POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        process.until("count it", lambda: _in_flight(process.admin_url))
        process.signal(signal.SIGTERM)
        process.until("drain", lambda: process.events("draining"))
        if second is not None:
            process.signal(second)
        assert process.wait() == 0
        assert process.events("requests cut off")[0]["count"] == 1
        stuck.close()


def test_the_drain_delay_lets_balancers_notice(tmp_path: Path) -> None:
    with run(tmp_path, "--drain-delay", "60") as process:
        url = process.url
        process.signal(signal.SIGTERM)
        process.until("drain", lambda: ask(f"{process.admin_url}/readyz")[0] == 503)
        assert ask(f"{url}/v1/check", {"ip": "203.0.113.7"})[0] == 200  # still open
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_sighup_reads_the_policy_again_and_keeps_what_was_spent(tmp_path: Path) -> None:
    file = policy_file(tmp_path)
    with run(tmp_path, "--policy", file) as process:
        check = f"{process.url}/v1/check"
        for _ in range(3):
            ask(check, {"ip": "203.0.113.7"})
        assert not ask(check, {"ip": "203.0.113.7"})[1]["allowed"]
        policy_file(tmp_path, POLICY.replace("burst = 3", "burst = 5"))
        event = reloaded(process, "policy replaced")
        assert (event["origin"], event["owner"]) == ("SIGHUP", "the tests")
        assert ask(check, {"ip": "203.0.113.7"})[1]["limits"][0]["remaining"] == 1

        policy_file(tmp_path, '[[limit]]\nname = "x"\nrate = "0/s"\nbrust = 1\n')
        event = reloaded(process, "policy refused, the running one stays in force")
        assert len(event["issues"]) == 3
        assert any(issue.startswith("limit[0].rate") for issue in event["issues"])
        assert ask(check, {"ip": "203.0.113.7"})[1]["limits"][0]["limit"] == 5
        file.unlink()
        assert "cannot be read" in str(reloaded(process, "policy refused, the running one stays in force"))
        assert ask(f"{process.admin_url}/readyz")[0] == 200


def test_sighup_without_a_policy_file_is_no_error(tmp_path: Path) -> None:
    with run(tmp_path) as process:
        assert process.url
        reloaded(process, "the starter policy has no file to read again")
        assert ask(f"{process.url}/v1/check", {})[0] == 200


def test_tokens_are_asked_for_and_read_again(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("alpha-secret\n")
    with run(tmp_path, "--auth-token-file", tokens) as process:
        check = f"{process.url}/v1/check"
        assert ask(check, {})[0] == 401
        assert ask(check, {}, Shield_Authorization="Bearer alpha-secret")[0] == 200
        assert ask(f"{process.admin_url}/v1/policy")[0] == 200  # loopback is the operator's
        tokens.write_text("beta-secret\n")
        assert reloaded(process, "tokens reloaded")["tokens"] == 1
        assert ask(check, {}, Shield_Authorization="Bearer alpha-secret")[0] == 401
        assert ask(check, {}, Shield_Authorization="Bearer beta-secret")[0] == 200
        tokens.write_text("\n")
        reloaded(process, "tokens not reloaded, the old ones stay valid")
        assert ask(check, {}, Shield_Authorization="Bearer beta-secret")[0] == 200
        assert "secret" not in process.err() + process.out().replace("-H 'Shield-Authorization: Bearer TOKEN'", "")


def test_mutual_tls_lets_in_who_has_a_certificate(tmp_path: Path) -> None:
    certificate, key = make_certificates(tmp_path)
    options = ("--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", certificate)
    with run(tmp_path, *options) as process:
        check = f"{process.url}/v1/check"
        assert check.startswith("https://127.0.0.1:")
        known = ssl.create_default_context(cafile=str(certificate))
        known.load_cert_chain(certificate, key)
        assert ask(check, {"ip": "203.0.113.7"}, context=known)[0] == 200
        unknown = ssl.create_default_context(cafile=str(certificate))
        with pytest.raises((ssl.SSLError, urllib.error.URLError, ConnectionError)):
            ask(check, {}, context=unknown)
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            ask(check.replace("https", "http"), {})
        reloaded(process, "certificate reloaded")
        assert ask(check, {"ip": "203.0.113.7"}, context=known)[0] == 200
        assert ask(f"{process.admin_url}/readyz")[0] == 200


def test_traced_decisions_are_on_disk_after_the_end(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    with run(tmp_path, "--trace-decisions", trace) as process:
        for _ in range(3):
            ask(f"{process.url}/v1/check", {"ip": "203.0.113.7"})
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert len(trace.read_text().splitlines()) == 3


# ---- stores ------------------------------------------------------------------------------------------------


def test_an_unreachable_redis_is_told_and_served_degraded(tmp_path: Path) -> None:
    store = "redis://:very-secret@127.0.0.1:1/0?connect_timeout=50ms"
    with run(tmp_path, "--store", store) as process:
        decision = ask(f"{process.url}/v1/check", {"ip": "203.0.113.7"})[1]
        assert (decision["allowed"], decision["degraded"]) == (True, True)
        assert "warning: starting degraded" in process.out()
        assert "127.0.0.1:1" in process.out()
        assert ask(f"{process.admin_url}/readyz")[1]["degraded"]
        assert "very-secret" not in process.out() + process.err()


def test_a_redis_is_used(tmp_path: Path, any_server: Server) -> None:
    with run(tmp_path, "--store", f"{any_server.url}?prefix=lifecycle") as process:
        decision = ask(f"{process.url}/v1/check", {"ip": "203.0.113.7"})[1]
        assert (decision["allowed"], decision["degraded"]) == (True, False)
        assert f"store redis at 127.0.0.1:{any_server.port}" in process.out()


async def test_a_redis_that_answers_garbage_is_served_degraded(tmp_path: Path) -> None:
    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(1000):
                writer.write(b"!!! no RESP at all \x00\xff\r\n")
        except ConnectionError:
            pass  # it hangs up on us, and rightly
        finally:
            writer.close()

    fake = await asyncio.start_server(garbage, "127.0.0.1", 0)
    port = fake.sockets[0].getsockname()[1]

    def use() -> dict[str, Any]:
        with run(tmp_path, "--store", f"redis://127.0.0.1:{port}/0") as process:
            decision: dict[str, Any] = ask(f"{process.url}/v1/check", {"ip": "203.0.113.7"})[1]
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
            assert "Traceback" not in process.err() + process.out()
            return decision

    try:
        decision = await asyncio.to_thread(use)
    finally:
        fake.close()
    assert (decision["allowed"], decision["degraded"]) == (True, True)
