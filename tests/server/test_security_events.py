"""Security events: their shape, what they hide, how repeats are folded, and what a slow sink costs."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from shield import Decision, Policy, Request, Shield
from shield.errors import PolicyError
from shield.policy.abuse import Events
from shield.server import security_events
from shield.server.security_events import SecurityEvents
from tests.server.running import serving
from tests.servers import Server

POLICY = """
[[limit]]
name = "address"
key = ["ip"]
rate = "1/h"
burst = 20
[[detector]]
use = "user-agent-switching"
action = "block"
[events]
to = ["file:{}"]
{}
"""


def events_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def story(path: Path, more: str = "") -> list[dict[str, Any]]:
    async with serving(POLICY.format(path, more)) as server:
        for i in range(11):
            await server.check(
                {"ip": "203.0.113.7", "user_agent": f"a{i}", "path": f"/p{i}?token=secret", "method": "GET"}
            )
        for _ in range(5):
            await server.check({"ip": "203.0.113.7", "path": "/p?token=secret", "method": "GET"})
        for _ in range(22):
            await server.check({"ip": "203.0.113.8", "path": "/q", "method": "POST", "user": "ada"})
        server.service.close()
    return events_of(path)


async def test_shape_and_folding(tmp_path: Path) -> None:
    events = await story(tmp_path / "e.jsonl")
    assert [(one["class_uid"], one.get("count")) for one in events] == [
        (2004, None),  # the block
        (2004, 11),  # the detection
        (4002, 1),  # refused by it
        (6003, 1),  # refused by a limit
        (4002, 4),  # the repeats of both
        (6003, 1),
    ]
    for one in events:
        assert one["type_uid"] == one["class_uid"] * 100 + one["activity_id"]
        assert one["category_uid"] == one["class_uid"] // 1000
        assert {"severity_id", "time", "metadata"} <= set(one)
    detection = events[1]
    assert detection["finding_info"]["title"] == "user-agent-switching"
    assert detection["finding_info"]["types"] == ["OAT-004", "OAT-015"]
    assert (detection["unmapped"]["value"], detection["unmapped"]["threshold"]) == (11, 10)
    assert len(detection["evidences"]) == 5
    assert (events[2]["status_detail"], events[2]["http_request"]["url"]["path"]) == ("blocked", "/p")
    assert (events[3]["api"]["operation"], events[3]["unmapped"]["violated"]) == ("POST /q", ["address"])


async def test_subjects_are_hashed_unless_the_policy_allows_them(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("0123456789abcdef0123456789abcdef")
    hashed = await story(tmp_path / "h.jsonl", f'key_file = "file:{tmp_path / "key"}"')
    text = (tmp_path / "h.jsonl").read_text()
    assert "203.0.113" not in text
    assert '"ada"' not in text
    again = await story(tmp_path / "i.jsonl", f'key_file = "file:{tmp_path / "key"}"')
    assert hashed[0]["unmapped"]["subject"] == again[0]["unmapped"]["subject"], "the same key, the same hash"
    await story(tmp_path / "p.jsonl", 'subjects = "plain"')
    assert "203.0.113.7" in (tmp_path / "p.jsonl").read_text()


async def test_a_replaced_policy_is_an_event(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    async with serving(POLICY.format(path, "")) as server:
        body = POLICY.format(path, "").replace("burst = 20", "burst = 21")
        async with server.admin.put("/v1/policy", data=body) as answer:
            assert answer.status == 200
        server.service.close()
    (event,) = events_of(path)
    assert event["api"]["operation"] == "policy.replace"
    assert event["unmapped"]["fingerprint"] != event["unmapped"]["previous"]


async def test_a_sink_that_cannot_be_used_refuses_the_policy_and_the_running_one_stays(tmp_path: Path) -> None:
    async with serving(POLICY.format(tmp_path / "e.jsonl", "")) as server:
        body = POLICY.format(tmp_path / "no" / "such" / "folder", "")
        async with server.admin.put("/v1/policy", data=body) as answer:
            assert answer.status == 400
            assert "events.to" in await answer.text()
        assert (await server.check({"ip": "203.0.113.9"}))["allowed"]
    for wrong in ('to = ["mail"]', "to = []", 'to = ["stdout"]\nsubjects = "clear"', 'to = ["stdout"]\nfold = "1ms"'):
        with pytest.raises(PolicyError):
            Policy.parse(f"version = 1\n[events]\n{wrong}")


def refusing(*addresses: str) -> list[Decision]:
    shield = Shield(Policy.parse('version = 1\n[[limit]]\nname = "a"\nkey = ["ip"]\nrate = "1/h"\n'))
    asked = [Request(ip=ip) for ip in (addresses or ("203.0.113.7",))]
    for request in asked:
        shield.check_nowait(request)
    return [shield.check_nowait(request) for request in asked]


def test_a_sink_that_hangs_costs_events_and_says_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security_events, "QUEUE_BOUND", 3)
    path = tmp_path / "e.jsonl"
    events = SecurityEvents(Events((f"file:{path}",)), version="0", now_us=lambda: 0)
    gate = threading.Event()
    sink = events._sinks[0]
    write = sink.write
    monkeypatch.setattr(sink, "write", lambda line: (gate.wait(5), write(line)))
    for decision in refusing(*(f"203.0.113.{i}" for i in range(20))):
        events.refused(decision)
    assert events.dropped >= 16
    gate.set()
    limit = time.monotonic() + 5
    while events._queue.qsize() and time.monotonic() < limit:
        time.sleep(0.01)
    dropped = events.dropped
    events.refused(*refusing("203.0.113.99"))
    events.close()
    told = [one["count"] for one in events_of(path) if one.get("api", {}).get("operation") == "events.dropped"]
    assert told == [dropped]


def test_folds_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security_events, "MAX_FOLDED", 10)
    events = SecurityEvents(Events((f"file:{tmp_path / 'e'}",)), version="0", now_us=lambda: 0)
    for decision in refusing(*(f"10.0.{i >> 8}.{i & 255}" for i in range(1_000))):
        events.refused(decision)
        assert len(events._folded) <= 10
    events.close()


def test_syslog(tmp_path: Path) -> None:
    address = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(address)
        server.settimeout(5)
        events = SecurityEvents(Events((f"syslog:unix:{address}",)), version="0", now_us=lambda: 0)
        events.refused(*refusing())
        datagram = server.recv(65_536)
        events.close()
    head, _, body = datagram.partition(b"{")
    assert head.startswith(b"<85>1 - ")
    assert json.loads(b"{" + body)["status_code"] == "429"


async def test_malformed_requests_are_events_and_no_faults(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    async with serving(POLICY.format(path, "")) as server:
        shield = server.service.shield
        for facts in ({"user": 5}, {"ip": ["x"]}, {"method": 7, "path": 8}, {"user": "\ud800"}, {"ip": "x" * 100_000}):
            server.service.decide_nowait(Request(**{"cost": -1, **facts}), "check")
        assert shield.abuse.listener_faults == 0
        server.service.close()
    assert {one["status_detail"] for one in events_of(path)} == {"invalid"}
    assert sum(one["count"] for one in events_of(path)) == 5
    assert path.stat().st_size < 10_000


async def test_repeats_are_told_when_their_time_is_over_also_when_nothing_more_comes(tmp_path: Path) -> None:
    now = [0]
    events = SecurityEvents(Events((f"file:{tmp_path / 'e'}",)), version="0", now_us=lambda: now[0])
    (decision,) = refusing()
    for _ in range(5):
        events.refused(decision)
    now[0] = 59_999_999
    events.tick()
    assert events._folded
    now[0] = 60_000_000
    events.tick()
    assert not events._folded
    events.close()
    assert [one["count"] for one in events_of(tmp_path / "e")] == [1, 4]
    assert events.stats()["events_folded"] == 4


async def test_what_shadowed_blocks_would_have_refused_is_an_event(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    async with serving(POLICY.format(path, "") + '[blocks]\nmode = "shadow"\n') as server:
        server.service.blocks.block("ip", "203.0.113.7", None, by="operator")
        for _ in range(3):
            assert (await server.check({"ip": "203.0.113.7"}))["allowed"]
        server.service.close()
    shadow = [one for one in events_of(path) if one["class_uid"] == 4002]
    assert [(one["disposition"], one["count"], one["unmapped"]["mode"]) for one in shadow] == [
        ("Logged", 1, "shadow"),
        ("Logged", 2, "shadow"),
    ]


def test_a_redis_stream(any_server: Server) -> None:
    sink = f"{any_server.url}?stream=events-test&maxlen=100"
    events = SecurityEvents(Events((sink,)), version="0", now_us=lambda: 0)
    events.refused(*refusing())
    events.close()
    with any_server.client() as client:
        ((_, fields),) = client.xrange("events-test")
    assert json.loads(fields[b"event"])["status_code"] == "429"


def test_a_stream_that_is_away_costs_its_events_and_is_counted() -> None:
    events = SecurityEvents(Events(("redis://127.0.0.1:1/0",)), version="0", now_us=lambda: 0)
    events.refused(*refusing())
    events.close()
    assert events.sink_faults == 1


@pytest.mark.parametrize(
    "sink", ["redis://", "redis:x", "syslog:host", "syslog:host:0", "syslog:unix:", "file:", "stderr", "syslog:h:99999"]
)
def test_sinks_that_cannot_be_are_said(sink: str) -> None:
    with pytest.raises(PolicyError, match=r"events\.to"):
        Policy.parse(f'version = 1\n[events]\nto = ["{sink}"]')
