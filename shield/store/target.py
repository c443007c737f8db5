"""Where a Redis server is and how to speak to it: a URL resolved once into what the store needs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast
from urllib.parse import unquote

from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url

from shield.store.denials import MAX_DENIALS
from shield.store.lane import Transport
from shield.store.sentinel import make_through, parse_cluster_address, parse_sentinel_address
from shield.store.url import Options, StoreURLError, split_url

SCHEMES: Final = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster")
DEFAULTS: Final[dict[str, Any]] = {
    "prefix": "shield",
    # A check that takes longer than this costs its caller more than a local decision would.
    "deadline": 20_000,
    # Two keep a server busy while one of them is being written; more only spread the same work.
    "connections": 2,
    "connect_timeout": 1_000_000,
    # At 20 ms this is 50,000 checks a second on one connection; what is beyond waits for nothing.
    "max_in_flight": 1024,
    "ttl_slack": 60_000_000,
    "deny_cache": MAX_DENIALS,
    "wait_replicas": 0,
}
_SECOND_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Target:
    """A server and the options of the store on it. Durations in microseconds."""

    where: str
    """For people: no credentials."""
    make: Callable[..., Transport]
    """A connection, not yet connected; of a cluster's, by `host` and `port`."""
    seeds: tuple[tuple[str, int], ...]
    """Servers of a cluster that are asked where the others are; empty where there is one server."""
    prefix: str
    deadline_us: int
    connections: int
    connect_timeout_us: int
    max_in_flight: int
    ttl_slack_us: int
    deny_cache: int
    """How many refusals are remembered."""
    wait_replicas: int
    """How many replicas have to confirm what a check takes."""


def parse_redis_url(url: str) -> Target:
    """Reads a URL of one of SCHEMES. StoreURLError says what is wrong, without credentials."""
    parts = split_url(url)
    if parts.scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise StoreURLError(f"{parts.scheme}:// is no Redis URL; those begin with {known}")
    parsers = {
        "prefix": Options.prefix,
        "deadline": Options.duration(100, 10 * _SECOND_US),
        "connections": Options.whole(1, 64),
        "connect_timeout": Options.duration(1_000, 60 * _SECOND_US),
        "max_in_flight": Options.whole(1, 1_000_000),
        "ttl_slack": Options.duration(0, 30 * 86_400 * _SECOND_US),
        "deny_cache": Options.whole(0, 10_000_000),
        "wait_replicas": Options.whole(0, 5),
        "db": Options.whole(0, 2**31 - 1),
    }
    sentinel, cluster = parts.scheme == "redis+sentinel", parts.scheme == "redis+cluster"
    tls = parts.scheme == "rediss"
    if sentinel or cluster:
        parsers["tls"] = _yes_no
        tls = parts.options.says("tls")
    if tls:
        parsers |= _TLS_PARSERS
    if cluster:
        del parsers["db"]
    if sentinel:
        parsers |= {"sentinel_username": Options.secret, "sentinel_password": Options.secret}
    given = parts.options.take(**parsers)
    given.pop("tls", None)
    seeds: tuple[tuple[str, int], ...] = ()
    if cluster:
        address, seeds = parse_cluster_address(parts.bare.netloc, parts.bare.path)
    elif sentinel:
        account = {name: given.pop(f"sentinel_{name}", None) for name in ("username", "password")}
        address, sentinels, service = parse_sentinel_address(parts.bare.netloc, parts.bare.path)
        address["db"] = given.pop("db", 0)
    else:
        address = _address(url, parts.scheme, given.pop("db", None))
    own = {name: given.pop(name, default) for name, default in DEFAULTS.items()}
    kwargs = {key: value for key, value in address.items() if key != "connection_class"}
    kwargs |= given
    if parts.scheme != "unix":
        kwargs["socket_keepalive"] = True
    kind = SSLConnection if tls else UnixDomainSocketConnection if parts.scheme == "unix" else Connection
    connect_timeout_s = own["connect_timeout"] / _SECOND_US
    make: Callable[..., Transport] = partial(
        cast(Callable[..., Transport], kind),
        protocol=2,
        # The link has its own deadline for each request; redis-py's would tear down a connection that is only
        # idle.
        socket_timeout=None,
        socket_connect_timeout=connect_timeout_s,
        **kwargs,
    )
    if sentinel:
        asking = {"socket_timeout": connect_timeout_s, "socket_connect_timeout": connect_timeout_s, **account}
        if tls:
            asking |= {"ssl": True} | {name: value for name, value in given.items() if name.startswith("ssl_")}
        make = make_through(sentinels, service, make, asking)
        where = f"{service} of " + ", ".join(f"{host}:{port}" for host, port in sentinels)
    elif cluster:
        where = "the cluster of " + ", ".join(f"{host}:{port}" for host, port in seeds)
    else:
        where = kwargs["path"] if parts.scheme == "unix" else f"{kwargs['host']}:{kwargs['port']}"
    return Target(
        where=where if cluster else f"{where} db {kwargs['db']}",
        make=make,
        seeds=seeds,
        prefix=own["prefix"],
        deadline_us=own["deadline"],
        connections=own["connections"],
        connect_timeout_us=own["connect_timeout"],
        max_in_flight=own["max_in_flight"],
        ttl_slack_us=own["ttl_slack"],
        deny_cache=own["deny_cache"],
        wait_replicas=own["wait_replicas"],
    )


def _address(url: str, scheme: str, db: int | None) -> dict[str, Any]:
    """Credentials, place and database, as redis-py reads them; but nothing that is wrong is passed over in
    silence.
    """
    bare = split_url(url).bare
    escape = "special characters in a user name or password are percent-encoded"
    try:
        port = bare.port
        found = dict(cast(dict[str, Any], parse_url(bare.geturl())))
    except ValueError:
        raise StoreURLError(f"{scheme}://: the port is not a number from 1 to 65535; {escape}") from None
    if scheme == "unix":
        if not unquote(bare.path).strip("/"):
            raise StoreURLError("unix:// needs the path of a socket, as in unix:///run/redis.sock")
        if bare.hostname and "@" not in bare.netloc:
            raise StoreURLError("unix:// takes an absolute path: three slashes, as in unix:///run/redis.sock")
        return {**found, "db": db or 0}
    if bare.hostname is None and bare.netloc not in ("", ":") and "@" not in bare.netloc:
        raise StoreURLError(f"{scheme}://: no host; {escape}")
    path = re.fullmatch(r"/?([0-9]{0,9})/?", bare.path)
    if path is None:
        raise StoreURLError(f"{scheme}://: what follows the host is /DB, the number of a database; {escape}")
    in_path = int(path[1]) if path[1] else None
    if db is not None and in_path is not None and db != in_path:
        raise StoreURLError(f"{scheme}://: db: found {db} here and {in_path} in the path")
    found["db"] = next((number for number in (db, in_path) if number is not None), 0)
    return {"host": "localhost", **found, "port": port or 6379}


def _cert_reqs(text: str) -> str:
    if text not in ("none", "optional", "required"):
        raise ValueError(f"found {text[:32]!r}; allowed: none, optional or required")
    return text


def _yes_no(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"found {text[:32]!r}; allowed: true or false")
    return text.lower() == "true"


_TLS_PARSERS: Final[dict[str, Callable[[str], Any]]] = {
    "ssl_ca_certs": Options.secret,
    "ssl_ca_path": Options.secret,
    "ssl_certfile": Options.secret,
    "ssl_keyfile": Options.secret,
    "ssl_password": Options.secret,
    "ssl_cert_reqs": _cert_reqs,
    "ssl_check_hostname": _yes_no,
}


# What the test suite runs on: Redis by major and minor version, Valkey likewise.
TESTED: Final = {"Redis": ("6.2", "7.0"), "Valkey": ("9.1",)}


def describe(info: object) -> tuple[str, ...]:
    """What is amiss in the answers to INFO memory and INFO server, one sentence each."""
    if not isinstance(info, bytes):
        return ()
    told = dict(re.findall(r"^(\w+):(\S*)", info.decode("utf-8", "replace"), re.MULTILINE))
    found = []
    policy = told.get("maxmemory_policy", "noeviction")
    if told.get("maxmemory", "0") != "0" and policy != "noeviction":
        found.append(
            f"maxmemory-policy is {policy}: a full server forgets live buckets, requests get over; "
            "set it to noeviction, and a full server says so instead"
        )
    name = "Valkey" if "valkey_version" in told else "Redis"
    version = told.get("valkey_version") or told.get("redis_version")
    if version is not None and ".".join(version.split(".")[:2]) not in TESTED[name]:
        tested = ", ".join(f"{kind} {one}" for kind, versions in TESTED.items() for one in versions)
        found.append(f"{name} {version} is untested; tested are {tested}")
    return tuple(found)
