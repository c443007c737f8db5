"""Detectors on the live way: a Shield shows them every request, and every outcome that is reported."""

from __future__ import annotations

from shield import Policy, Request, Shield
from shield.detect.detection import Detection
from shield.testing import ManualClock

POLICY = """
version = 1
[[limit]]
name = "address"
key = ["ip"]
rate = "5/s"
[[detector]]
use = "user-agent-switching"
[[detector]]
use = "probing"
"""


def listening(policy: str = POLICY) -> tuple[Shield, list[Detection]]:
    shield = Shield(Policy.parse(policy), clock=ManualClock())
    heard: list[Detection] = []
    shield.abuse.listeners.append(heard.append)
    return shield, heard


def test_requests_are_seen_whether_allowed_or_not() -> None:
    shield, heard = listening()
    decisions = [shield.check_nowait(Request(ip="203.0.113.7", user_agent=f"a{i}")) for i in range(11)]
    assert [one.allowed for one in decisions] == [True] * 5 + [False] * 6, "detecting changes no decision"
    assert [(one.name, one.subject) for one in heard] == [("user-agent-switching", "203.0.113.7")]


async def test_outcomes_are_seen() -> None:
    shield, heard = listening()
    for i in range(11):
        assert (await shield.check(Request(ip="203.0.113.8", path=f"/{i}"))).status in (200, 429)
        shield.abuse.outcome(Request(ip="203.0.113.8", path=f"/{i}"), 404, None)
    assert [one.name for one in heard] == ["probing"]
    assert shield.abuse.stats()["probing"]["detected"] == 1


async def test_a_reload_keeps_what_unchanged_detectors_know() -> None:
    shield, heard = listening()
    for i in range(10):
        shield.abuse.outcome(Request(ip="203.0.113.8", path=f"/{i}"), 404, None)
    await shield.replace_policy(Policy.parse(POLICY.replace("5/s", "50/s")))
    shield.abuse.outcome(Request(ip="203.0.113.8", path="/10"), 404, None)
    assert [one.name for one in heard] == ["probing"]
    await shield.replace_policy(Policy.parse("version = 1"))
    assert not shield.abuse.active


def test_a_listener_that_fails_keeps_nobody_from_deciding() -> None:
    shield, heard = listening()

    def wrong(_: Detection) -> None:
        raise RuntimeError("no")

    shield.abuse.listeners.insert(0, wrong)
    for i in range(11):
        shield.check_nowait(Request(ip="203.0.113.7", user_agent=f"a{i}"))
    assert len(heard) == 1
    assert shield.abuse.listener_faults == 1
