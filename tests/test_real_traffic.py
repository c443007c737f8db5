"""Real traffic through a real gateway: all verdicts of a live run agree with exact arithmetic.

The input is the log of a public web server, 10,000 requests from 1,753 addresses; where it is absent, a
generated log of the same shape stands in. This process plays the load balancer in front of the gateway: it
keeps connections alive and states each client's address in X-Forwarded-For. Shield traces what it decides,
and the oracle decides everything again.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from shield.testing import read_trace, replay_trace
from tests.gateway_processes import (
    ROOT,
    envoy_binary,
    nginx_binary,
    patient,
    run_envoy,
    run_nginx,
    run_shield,
)
from tests.gateways.client import Client
from tests.replay import Replay
from tests.servers import binaries, run_server

LOG = ROOT.parent / "shared" / "data" / "apache_access.log"
REQUESTS = 10_000
ADDRESSES = 1_753
CONNECTIONS = 8

# Sent as fast as the machine can, the busiest addresses run into each of these, and come back once they have
# refilled.
POLICY = """
version = 1
name = "real-traffic"

[identity]
headers = { request_id = "X-Request-Id" }

[[limit]]
name = "burst"
key = ["ip"]
rate = "3/s"
burst = 8

[[limit]]
name = "sustained"
key = ["ip"]
algorithm = "sliding-window"
rate = "10/2s"

[[limit]]
name = "pictures"
key = ["ip"]
algorithm = "fixed-window"
rate = "3/500ms"
match = { method = ["GET", "HEAD"], path = "/images/{rest...}" }
count_denied = true

[[limit]]
name = "tried-out"
key = ["ip", "path"]
rate = "1/300ms"
burst = 2
mode = "shadow"
"""


class Line(NamedTuple):
    """One request of the log."""

    address: str
    method: str
    target: str
    user_agent: str


class Front(NamedTuple):
    """Where to send requests, from which address, and what goes in front of their targets."""

    port: int
    source: str
    prefix: str = ""


class Seen(NamedTuple):
    """What the load balancer got back for it."""

    line: Line
    status: int
    request_id: str
    retry_after: str | None
    remaining: dict[str, int]


_LINE = re.compile(r'(\S+) \S+ \S+ \[[^]]*\] "([A-Z]+) (\S+) HTTP/1\.[01]" \d+ \S+ "[^"]*" "([^"]*)')


def recorded(log: Path) -> list[Line]:
    """The lines of a log in Apache's combined format, in their order."""
    lines = []
    for text in log.read_text("latin-1").splitlines():
        found = _LINE.match(text)
        assert found is not None, text
        lines.append(Line(*found.groups()))
    return lines


def generated(seed: int) -> list[Line]:
    """A log of the same shape: as many requests and addresses, some of which send hundreds."""
    chance = random.Random(seed)
    addresses = [f"198.{18 + number // 65536}.{number // 256 % 256}.{number % 256}" for number in range(ADDRESSES)]
    weights = [1 / (rank + 3) for rank in range(ADDRESSES)]
    visits = addresses + chance.choices(addresses, weights, k=REQUESTS - ADDRESSES)
    pages = [f"/{'images' if number % 4 == 1 else 'blog'}/{number}" for number in range(400)]
    popularity = [1 / (rank + 1) for rank in range(len(pages))]
    timed = []
    for address in visits:
        start = chance.random() * 86_400
        page = chance.choices(pages, popularity)[0]
        timed.append((start, Line(address, "GET", page, "Mozilla/5.0 (generated)")))
    return [line for _, line in sorted(timed)]


def traffic() -> list[Line]:
    lines = recorded(LOG) if LOG.exists() else generated(1_753)
    assert len(lines) == REQUESTS
    assert len({line.address for line in lines}) == ADDRESSES
    return lines


@contextlib.contextmanager
def gateway(directory: Path, shield_port: int) -> Iterator[Front]:
    """The best gateway that this machine has: Envoy, else nginx, else this process speaks as Envoy does. CI has
    Envoy."""
    if envoy_binary() is not None:
        # Envoy writes 127.0.0.1 as the machine's own address, which the policy does not trust.
        source = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
        with run_envoy(directory, shield_port, patient) as envoy:
            yield Front(envoy.port, source)
        return
    assert os.environ.get("CI") != "true", "CI must run this with Envoy"
    if nginx_binary() is not None:
        with run_nginx(directory, shield_port, patient) as nginx:
            yield Front(nginx.port, "127.0.0.1")
        return
    yield Front(shield_port, "127.0.0.1", "/v1/authz/envoy")


def send(front: Front, lines: list[Line]) -> list[Seen]:
    """All requests, in the log's order as far as CONNECTIONS at once have one."""
    waiting = iter(lines)
    lock = threading.Lock()
    seen: list[Seen] = []
    faults: list[BaseException] = []

    def connection() -> None:
        try:
            with Client(front.port, front.source) as client:
                while not faults:
                    with lock:
                        line = next(waiting, None)
                    if line is None:
                        return
                    seen.append(one(client, front.prefix, line))
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=connection) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return seen


def one(client: Client, prefix: str, line: Line) -> Seen:
    fields = [("X-Forwarded-For", line.address), ("User-Agent", line.user_agent), ("Host", "www.example")]
    answer = client.ask(prefix + line.target, line.method, fields)
    remaining = re.findall(r'"([^"]+)";r=(\d+)', answer.headers.get("RateLimit", ""))
    return Seen(
        line,
        answer.status,
        answer.headers["X-Request-Id"] or answer.headers["Shield-Request-Id"],
        answer.headers.get("Retry-After"),
        {name: int(left) for name, left in remaining},
    )


def check_what_clients_saw(seen: list[Seen], records: list[dict[str, Any]]) -> None:
    """Every answer is the decision of the trace that has its request id, for the address of its line."""
    by_id = {record["request_id"]: record for record in records}
    assert len(records) == len(by_id) == len(seen) == REQUESTS
    keys: dict[str, set[str]] = {}
    for answer in seen:
        record = by_id[answer.request_id]
        assert not record["degraded"]
        assert answer.status == record["status"] == (200 if record["allowed"] else 429)
        charges = {charge["limit"]: charge for charge in record["charges"]}
        assert ("pictures" in charges) == answer.line.target.startswith("/images/")
        shown = charges.keys() - {"tried-out"} if record["allowed"] else set(record["violated"])
        assert answer.remaining == {name: charges[name]["remaining"] for name in shown}
        if record["allowed"]:
            assert answer.retry_after is None
        else:
            longest_us = max(charges[name]["retry_after_us"] for name in record["violated"])
            assert answer.retry_after == str(ceil(longest_us / 1_000_000))
        keys.setdefault(answer.line.address, set()).add(charges["burst"]["key"])
    # One bucket for each address, and no two addresses in one.
    assert all(len(found) == 1 for found in keys.values())
    assert len(set.union(*keys.values())) == ADDRESSES


def check_that_it_was_worth_it(records: list[dict[str, Any]]) -> None:
    """Each limit denied something, none everything, and buckets that had denied have allowed again."""
    denied = Counter(name for record in records for name in record["violated"])
    assert denied.keys() == {"burst", "sustained", "pictures"}
    shadow = [c for record in records for c in record["charges"] if c["limit"] == "tried-out" and c["verdict"] == 1]
    assert shadow
    allowed = sum(record["allowed"] for record in records)
    assert REQUESTS // 4 < allowed < REQUESTS - 200
    refilled = set()
    turned_away = set()
    for record in sorted(records, key=lambda record: record["now_us"]):
        key = next(charge["key"] for charge in record["charges"] if charge["limit"] == "burst")
        if not record["allowed"]:
            turned_away.add(key)
        elif key in turned_away:
            refilled.add(key)
    assert len(refilled) > 10


@pytest.fixture(params=["memory", "valkey"])
def store(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of each store. The deadline is for a machine that has two busy cores for everything."""
    if request.param == "memory":
        yield "memory://"
        return
    with run_server("valkey", binaries()["valkey"]) as server:
        yield f"{server.url}{'&' if '?' in server.url else '?'}deadline=5s"


def test_ten_thousand_requests_agree_with_the_oracle(store: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = traffic()
    with (
        run_shield(tmp_path / "shield", POLICY, "--store", store, "--trace-decisions", trace) as shield,
        gateway(tmp_path / "gateway", shield.port) as front,
    ):
        seen = send(front, lines)
    records = list(read_trace(trace))
    check_what_clients_saw(seen, records)
    check_that_it_was_worth_it(records)
    assert replay_trace(trace, by_time=True) == []  # law 1
    run = Replay()
    # Answers of a remote store may arrive in another order than it made them; it makes no two at one instant.
    for record in sorted(records, key=lambda record: record["now_us"]):
        run.play(record)
    assert run.found == []
    charges = [charge for record in records for charge in record["charges"]]
    # A shared store that has refused a moment ago is not asked about the rest of the request.
    unknown = sum(charge["unknown"] for charge in charges)
    assert (run.decided, run.left_out) == (len(charges) - unknown, unknown)
    assert unknown == 0 or store != "memory://"


def test_the_generated_log_has_the_shape_of_the_recorded_one() -> None:
    lines = generated(1_753)
    assert lines == generated(1_753)
    assert len(lines) == REQUESTS
    counts = Counter(line.address for line in lines)
    assert len(counts) == ADDRESSES
    assert 200 < counts.most_common(1)[0][1] < 1_500
