"""Guards in shadow mode: they refuse nothing, and decisions and metrics say what they would have refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shield import Policy, Request, Shield
from shield.cli import main
from shield.errors import PolicyError
from shield.request import GraphQL
from shield.server.metrics import Metrics, no_stats
from shield.testing import ManualClock

POLICY = """
version = 1
[[limit]]
name = "a-limit"
key = ["ip"]
rate = "2/h"
[[limit]]
name = "tried"
key = ["ip"]
rate = "1/h"
mode = "shadow"
[guard.size]
max_body_bytes = 100
content_types = ["application/json"]
mode = "shadow"
[guard.graphql]
max_cost = 3
mode = "shadow"
"""
DEEP = GraphQL(query="{a{b{c{d{e}}}}}")


def shield_of(policy: str = POLICY) -> Shield:
    return Shield(Policy.parse(policy), clock=ManualClock())


@pytest.mark.parametrize(
    ("facts", "shadow"),
    [
        ({}, []),
        ({"bytes": 101, "content_type": "application/json"}, ["guard.size"]),
        ({"bytes": 5, "content_type": "text/plain"}, ["guard.size"]),
        ({"graphql": DEEP}, ["guard.graphql"]),
        ({"graphql": GraphQL(query="{")}, ["guard.graphql"]),
        ({"bytes": 101, "graphql": DEEP}, ["guard.size", "guard.graphql"]),
    ],
)
def test_what_a_guard_would_refuse_is_allowed_and_told(facts: dict[str, object], shadow: list[str]) -> None:
    decision = shield_of().check_nowait(Request(ip="203.0.113.7", **facts))  # type: ignore[arg-type]
    assert (decision.allowed, decision.reason, decision.shadow, decision.detail) == (True, "ok", shadow, None)
    assert json.loads(decision.to_json()) == decision.as_dict()
    refused = shield_of(POLICY.replace('mode = "shadow"', 'mode = "enforce"')).check_nowait(
        Request(ip="203.0.113.7", **facts)  # type: ignore[arg-type]
    )
    assert refused.allowed == (not shadow)
    assert refused.shadow == []


def test_guards_and_limits_are_told_together_whoever_refuses() -> None:
    shield = shield_of()
    big = Request(ip="203.0.113.7", bytes=101)
    assert [shield.check_nowait(big).shadow for _ in range(2)] == [["guard.size"], ["guard.size", "tried"]]
    refused = shield.check_nowait(big)
    assert (refused.reason, refused.violated, refused.shadow) == ("limit", ["a-limit"], ["guard.size", "tried"])
    assert json.loads(refused.to_json()) == refused.as_dict()


def test_a_malformed_value_is_refused_all_the_same() -> None:
    assert shield_of().check_nowait(Request(ip="203.0.113.7", bytes=-1)).reason == "invalid"


def test_metrics_count_it() -> None:
    policy = Policy.parse(POLICY)
    metrics = Metrics("1", policy, no_stats)
    metrics.decided(shield_of().check_nowait(Request(ip="203.0.113.7", bytes=101)), 0.001)
    text = metrics.render("")[0].decode()
    assert 'shield_shadow_refusals_total{limit="guard.size",owner=""} 1.0' in text
    assert 'shield_shadow_refusals_total{limit="guard.graphql",owner=""} 0.0' in text
    metrics.adopt(Policy.parse("version = 1"))
    assert "guard.size" not in metrics.render("")[0].decode()


def test_simulate_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "policy.toml").write_text(POLICY)
    line = {"at": 1631722426, "ip": "203.0.113.7", "method": "POST", "path": "/", "status": 200}
    line["content_type"] = "text/plain"
    (tmp_path / "log").write_text(json.dumps(line) + "\n")
    page = tmp_path / "page.html"
    arguments = ["simulate", str(tmp_path / "log"), "--policy", str(tmp_path / "policy.toml"), "--html", str(page)]
    assert main([*arguments, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["refused"], told["shadow"]) == (0, {"guard.size": 1})
    assert "guard.size" in page.read_text()


def test_a_policy_that_says_nothing_of_it_is_the_policy_it_was() -> None:
    plain = "version = 1\n[guard.size]\nmax_body_bytes = 100\n"
    assert Policy.parse(plain).fingerprint == Policy.parse(plain + 'mode = "enforce"\n').fingerprint
    assert Policy.parse(plain).fingerprint != Policy.parse(plain + 'mode = "shadow"\n').fingerprint
    with pytest.raises(PolicyError, match=r"guard\.size\.mode"):
        Policy.parse(plain + 'mode = "off"\n')
