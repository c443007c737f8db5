"""`shield simulate`: the decisions of the live code on recorded traffic, told as text, JSON and one page."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shield import Policy, Request, Shield
from shield.cli import main

# Beside the repository, or beside the folder of its worktrees.
_BESIDE = [Path(__file__).resolve().parents[up] / "shared" / "data" for up in (3, 4)]
SHARED = next((path for path in _BESIDE if path.exists()), _BESIDE[0])
START = datetime(2024, 3, 1, 12, tzinfo=UTC)
LIMIT = 'version = 1\nname = "orders"\n[[limit]]\nname = "address"\nkey = ["ip"]\nrate = "{}/m"\n'


def line(second: float, ip: str = "203.0.113.7", path: str = "/", status: int = 200, agent: str = "Mozilla/5.0") -> str:
    at = (START + timedelta(seconds=second)).strftime("%d/%b/%Y:%H:%M:%S +0000")
    return f'{ip} - - [{at}] "GET {path} HTTP/1.1" {status} 100 "-" "{agent}"'


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def simulate(lines: list[str], *options: str, policy: str | None = None) -> dict[str, Any]:
        (tmp_path / "access.log").write_text("\n".join(lines) + "\n")
        more = list(options)
        if policy is not None:
            (tmp_path / "policy.toml").write_text(policy)
            more += ["--policy", str(tmp_path / "policy.toml")]
        status = main(["simulate", str(tmp_path / "access.log"), "--format", "json", *more])
        assert status == 0
        told: dict[str, Any] = json.loads(capsys.readouterr().out)
        return told

    return simulate


def test_refusals_are_those_of_the_live_code(run: Any) -> None:
    lines = [line(i // 4, ip=f"203.0.113.{i % 3}") for i in range(200)]
    told = run(lines, policy=LIMIT.format(10))
    now = [0]
    shield = Shield(Policy.parse(LIMIT.format(10)), clock=lambda: now[0])
    refused, first = 0, None
    for i in range(200):
        now[0] = int((START + timedelta(seconds=i // 4)).timestamp()) * 10**9
        if not shield.check_nowait(Request(ip=f"203.0.113.{i % 3}", method="GET", path="/")).allowed:
            refused += 1
            first = first if first is not None else i // 4
    assert told["refused"] == refused > 0
    assert told["limits"] == {"address": refused}
    assert {one["client"] for one in told["refusals"]} == {f"203.0.113.{i}" for i in range(3)}
    assert min(one["first"] for one in told["refusals"]) == f"2024-03-01T12:00:{first:02d}Z"
    assert (told["from"], told["to"]) == ("2024-03-01T12:00:00Z", "2024-03-01T12:00:49Z")


def test_who_was_closest(run: Any) -> None:
    lines = [line(0, ip="192.0.2.1")] * 9 + [line(0, ip="192.0.2.2")] * 3
    told = run(lines, policy=LIMIT.format(10))
    assert told["refused"] == 0
    assert told["closest"]["address"] == [{"key": "192.0.2.1", "left": 0.1}]


def test_lines_that_are_none_are_counted_and_not_fatal(run: Any, tmp_path: Path) -> None:
    told = run([line(0), "what is this", line(1)], policy=LIMIT.format(10))
    assert (told["requests"], told["malformed"]["total"]) == (2, 1)
    (tmp_path / "binary.log").write_bytes(bytes(range(256)) * 100)
    assert main(["simulate", str(tmp_path / "binary.log")]) == 1


def test_two_policies_on_the_same_traffic(run: Any, tmp_path: Path) -> None:
    (tmp_path / "old.toml").write_text(LIMIT.format(100))
    (tmp_path / "new.toml").write_text(LIMIT.format(5))
    lines = [line(0, ip="192.0.2.1")] * 20 + [line(0, ip="192.0.2.2")] * 5
    told = run(lines, "--compare", str(tmp_path / "old.toml"), str(tmp_path / "new.toml"))
    compared = told["compared"]
    assert (compared["old"]["refused"], compared["new"]["refused"]) == (0, 15)
    assert compared["newly_refused"] == {
        "total": 1,
        "clients": [{"client": "192.0.2.1", "requests": 20, "old": 0, "new": 15}],
    }


def test_suggested_limits_touch_whom_they_say(run: Any) -> None:
    """99 clients with two requests a minute, one with sixty."""
    lines = [line(i % 60, ip=f"10.0.0.{i}") for i in range(99)] * 2 + [line(i, ip="192.0.2.9") for i in range(60)]
    lines.sort(key=lambda text: text[text.index("[") :])
    suggested = run(lines, "--suggest", policy=LIMIT.format(1_000))["suggested"]
    assert [(one["percentile"], one["rate"]) for one in suggested] == [(50.0, "2/m"), (99.9, "60/m")]
    assert (suggested[0]["clients_touched"], suggested[1]["clients_touched"]) == (1, 0)
    assert suggested[0]["clients_share"] == pytest.approx(0.01)
    assert suggested[0]["requests_refused"] > 50


def test_one_page_without_a_network(run: Any, tmp_path: Path) -> None:
    evil = line(0, path="/<script>alert(1)</script>", agent="<b>")
    run([evil] * 5 + [line(i, path=f"/{i}", status=404) for i in range(20)], "--html", str(tmp_path / "r.html"))
    page = (tmp_path / "r.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<svg" in page
    assert "<script" not in page
    assert not re.search(r"(?:src|href)\s*=", page)
    assert "http://" not in page
    assert "probing" in page


def test_misuse_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "a.log"
    log.write_text(line(0))
    for arguments, part in (
        ([str(tmp_path / "none.log")], "no such file"),
        (["--suggest", "-"], "twice"),
        (["--geo", str(tmp_path / "none.mmdb"), str(log)], "no such file"),
        (["--geo", str(log), str(log)], "no MaxMind-format database"),
        (["--html", str(tmp_path / "no" / "r.html"), str(log)], "cannot be written"),
    ):
        assert main(["simulate", *arguments]) == 2
        assert part in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "alerts"),
    [
        ("apache-http-probing", [("probing", "172.17.0.1")]),
        ("http-admin-interface-probing", [("admin-probing", "157.230.234.189")]),
        ("http-dos-switching-ua", [("user-agent-switching", "1.2.3.4")]),
    ],
)
def test_real_attacks_give_the_documented_alerts_and_no_others(
    name: str, alerts: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    log = SHARED / "detections" / f"{name}.log"
    if not log.exists():
        pytest.skip("the recorded attacks are not here")
    assert main(["simulate", str(log), "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(one["detector"], one["subject"]) for one in told["detections"]] == alerts
    assert told["malformed"]["total"] == 0


def test_real_traffic_without_an_attack_gives_none(capsys: pytest.CaptureFixture[str]) -> None:
    log = SHARED / "apache_access.log"
    if not log.exists():
        pytest.skip("the recorded traffic is not here")
    assert main(["simulate", str(log), "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["requests"], told["malformed"]["total"], told["detections"]) == (10_000, 0, [])
