"""Store URLs: what they may say, and that their errors never say a password."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection

from shield.errors import ShieldError
from shield.store import StoreURLError, open_store
from shield.store.memory import MemoryStore
from shield.store.target import parse_redis_url
from shield.store.url import MAX_URL_CHARS


@pytest.mark.parametrize(
    ("url", "kind", "where", "found"),
    [
        ("redis://", Connection, "localhost:6379 db 0", {}),
        ("redis://db.example:7000/4", Connection, "db.example:7000 db 4", {"db": 4}),
        ("redis://[::1]:7000", Connection, "::1:7000 db 0", {"host": "::1"}),
        ("redis://u:p%40ss@h/2", Connection, "h:6379 db 2", {"username": "u", "password": "p@ss"}),
        ("redis://:p@h?db=3", Connection, "h:6379 db 3", {"password": "p", "db": 3}),
        ("redis://h/3?db=3", Connection, "h:6379 db 3", {"db": 3}),
        ("unix:///run/r.sock?db=1", UnixDomainSocketConnection, "/run/r.sock db 1", {"path": "/run/r.sock"}),
        ("unix://u:p@/run/r.sock", UnixDomainSocketConnection, "/run/r.sock db 0", {"password": "p"}),
        ("rediss://h?ssl_cert_reqs=none", SSLConnection, "h:6379 db 0", {}),
        ("rediss://h?ssl_check_hostname=false&ssl_ca_certs=/ca.pem", SSLConnection, "h:6379 db 0", {}),
    ],
)  # fmt: skip
def test_where_a_server_is(url: str, kind: Any, where: str, found: dict[str, Any]) -> None:
    target = parse_redis_url(url)
    connection: Any = target.make()
    assert type(connection) is kind
    assert target.where == where
    assert {name: getattr(connection, name) for name in found} == found
    assert (connection.socket_timeout, connection.protocol) == (None, 2)


def test_options_have_defaults() -> None:
    target = parse_redis_url("redis://h")
    assert (target.prefix, target.deadline_us, target.connections, target.max_in_flight) == ("shield", 20_000, 2, 1024)
    assert (target.connect_timeout_us, target.ttl_slack_us) == (1_000_000, 60_000_000)


def test_options_are_read() -> None:
    target = parse_redis_url(
        "redis://h?prefix=a:b&deadline=5ms&connections=4&max_in_flight=2_000&connect_timeout=3s&ttl_slack=5m"
    )
    assert (target.prefix, target.deadline_us, target.connections, target.max_in_flight) == ("a:b", 5_000, 4, 2_000)
    assert (target.connect_timeout_us, target.ttl_slack_us) == (3_000_000, 300_000_000)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("dead_line=5ms", "unknown option 'dead_line'; known are connect_timeout, connections, db, deadline,"),
        ("socket_timeout=5", "unknown option 'socket_timeout'"),
        ("ssl_ca_certs=/x", "unknown option 'ssl_ca_certs'"),
        ("deadline=0s", "deadline: found 0s; allowed: 100us to 10s"),
        ("deadline=soon", "deadline: found 'soon'"),
        ("deadline=", "deadline: found empty text"),
        ("deadline=1s&deadline=2s", "option 'deadline' is given twice"),
        ("connections=0", "connections: found 0; allowed: 1 to 64"),
        ("connections=-1", "connections: expected a whole number from 1 to 64"),
        ("connections=2.5", "connections: expected a whole number"),
        ("max_in_flight=99999999999999999999999", "max_in_flight: expected a whole number"),
        ("prefix=", "prefix: expected 1 to 64 letters"),
        ("prefix=a%20b", "prefix: expected 1 to 64 letters"),
        ("prefix=" + "x" * 65, "prefix: expected 1 to 64 letters"),
        ("db=x", "db: expected a whole number"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(query: str, said: str) -> None:
    with pytest.raises(StoreURLError) as caught:
        open_store(f"redis://user:s3cret@h/0?{query}")
    assert said in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret@h:port",
        "redis://:s3cret@h:99999999",
        "redis://:s3/cret@h",
        "redis://:s3#s3cret@h",
        "redis://:s3?s3cret@h",
        "redis://:s3[cret@h",
        "redis://:s3cret@h/zero",
        "redis://:s3cret@h/0/1",
        "redis://:s3cret@h/1?db=2",
        "redis://:s3cret@h?nope",
        "unix://:s3cret@",
        "unix://s3cret",
        "unix://s3cret/path",
        "rediss://:s3cret@h?ssl_cert_reqs=s3cret_",
        "rediss://:s3cret@h?ssl_check_hostname=maybe",
        "postgres://:s3cret@h",
        "memory://s3cret",
        "memory:///s3cret",
        "s3cret",
        "s3cret:x",
        "",
        "redis://:s3cret@h?" + "x" * MAX_URL_CHARS,
    ],
)
def test_errors_never_say_a_password(url: str) -> None:
    with pytest.raises(StoreURLError) as caught:
        open_store(url)
    told = str(caught.value).replace("found 's3cret_'", "")
    assert "s3cret" not in told
    assert "s3" not in told
    assert isinstance(caught.value, ShieldError)
    assert isinstance(caught.value, ValueError)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_no_text_is_no_url() -> None:
    with pytest.raises(StoreURLError, match="text, not NoneType"):
        open_store(None)  # type: ignore[arg-type]


def test_memory_has_options_too() -> None:
    store = open_store("memory://?max_keys=10&max_leases=5")
    assert isinstance(store, MemoryStore)
    assert (store.table.max_keys, store.table.leases.max_leases) == (10, 5)
    with pytest.raises(StoreURLError, match="unknown option 'prefix'; known are max_keys, max_leases"):
        open_store("memory://?prefix=x")
