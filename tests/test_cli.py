"""The command line: what it prints, and the exit status 0 yes, 1 no, 2 misuse, 3 fault."""

from __future__ import annotations

import io
import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from shield.cli import main

POLICY = """
name = "orders"
owner = "payments"

[[limit]]
name = "user-burst"
key = ["tenant", "user"]
rate = "10/s"
burst = 20
plans = { free = { rate = "1/s" } }
match = { method = ["POST"], path = "/orders/{id}" }

[[limit]]
name = "address"
key = ["ip"]
algorithm = "sliding-window"
rate = "2/h"

[[limit]]
name = "tenant-month"
key = ["tenant"]
algorithm = "fixed-window"
rate = "1000/month"
align = "month"
timezone = "Europe/Oslo"
mode = "shadow"

[[limit]]
name = "exports"
key = ["tenant"]
algorithm = "concurrency"
limit = 20

[guard.size]
max_body_bytes = 1_048_576
content_types = ["application/json"]
"""
WRONG = '[[limit]]\nname = "x"\nrate = "0/s"\nbrust = 1\n'


def policy(directory: Path, text: str = POLICY) -> str:
    file = directory / "policy.toml"
    file.write_text(text)
    return str(file)


class Run:
    """Runs the command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        """(exit status, standard output, standard error)"""
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = main(arguments)
        out, err = self._capsys.readouterr()
        assert "Traceback" not in out + err
        return status, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("SHIELD_STORE", raising=False)
    return Run(capsys, monkeypatch)


# ---- help --------------------------------------------------------------------------------------------------


def test_help_shows_examples_on_each_command(run: Run) -> None:
    for command in ((), ("serve",), ("check-policy",), ("decide",)):
        status, out, err = run(*command, "--help")
        assert (status, err) == (0, "")
        assert "examples:" in out
        assert "exit status: 0" in out
        assert "2 misuse, 3 fault" in out


def test_version(run: Run) -> None:
    status, out, _ = run("--version")
    assert status == 0
    assert out.startswith("shield ")


@pytest.mark.parametrize(
    "arguments",
    [(), ("serv",), ("--polcy", "x"), ("decide", "extra"), ("check-policy",), ("decide", "--format", "xml")],
)
def test_misuse_is_2(run: Run, arguments: tuple[str, ...]) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert "usage:" in err


@pytest.mark.parametrize("given", ["0", "-1", "257", "two", "1.5", "", "10000000000"])
def test_workers_are_a_whole_number_or_auto(run: Run, given: str) -> None:
    status, out, err = run("serve", "--workers", given)
    assert (status, out) == (2, "")
    assert "--workers" in err
    assert "allowed: 1 to 256, or auto" in err


def test_workers_reach_the_server(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = []
    monkeypatch.setattr("shield.server.lifecycle.serve", served.append)
    for given in ((), ("--workers", "3"), ("--workers", "auto"), ("--store", "shared://x")):
        assert run("serve", *given)[0] == 0
    assert [options.workers for options in served][:2] == [1, 3]
    assert 1 <= served[2].workers <= 256
    assert [options.store for options in served] == [None, None, None, "shared://x"]
    assert "(default: 1)" in run("serve", "--help")[1]


# ---- check-policy ------------------------------------------------------------------------------------------


def test_a_valid_policy_is_summed_up(run: Run, tmp_path: Path) -> None:
    status, out, err = run("check-policy", policy(tmp_path))
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert "valid: policy 'orders', owner payments, 4 limits, fingerprint" in lines[0]
    for words in (
        ("user-burst", "tenant, user", "token-bucket", "10/s, burst 20", "POST /orders/{id}", "1 plan"),
        ("address", "ip", "sliding-window", "2 per 1h", "every request"),
        ("tenant-month", "1,000 per month (Europe/Oslo)", "shadow"),
        ("exports", "concurrency", "20 in flight, ttl 1m"),
    ):
        [line] = [line for line in lines if line.startswith(words[0])]
        assert all(word in line for word in words), line
    assert "bodies: at most 1,048,576 bytes, application/json" in out


def test_a_valid_policy_as_json(run: Run, tmp_path: Path) -> None:
    status, out, _ = run("check-policy", policy(tmp_path), "--format", "json")
    told = json.loads(out)
    assert status == 0
    assert (told["ok"], told["name"], told["owner"]) == (True, "orders", "payments")
    assert told["limits"][0]["plans"] == {"free": "1/s, burst 1"}
    assert told["limits"][0]["match"] == {"method": ["POST"], "path": ["/orders/{id}"]}


def test_everything_wrong_is_said_with_its_path(run: Run, tmp_path: Path) -> None:
    file = policy(tmp_path, WRONG)
    status, out, err = run("check-policy", file)
    assert (status, err) == (1, "")
    assert out.startswith(f"{file}: 3 errors")
    for path in ("limit[0].key", "limit[0].rate", "limit[0].brust"):
        assert f"  {path}: " in out
    status, out, _ = run("check-policy", file, "--format", "json")
    told = json.loads(out)
    assert (status, told["ok"], len(told["errors"])) == (1, False, 3)
    assert set(told["errors"][0]) == {"path", "message"}


def test_a_policy_that_lets_everybody_through_is_warned_of(run: Run, tmp_path: Path) -> None:
    file = policy(tmp_path, '[[limit]]\nname = "u"\nkey = ["user"]\nrate = "1/s"\n')
    status, out, _ = run("check-policy", file)
    assert status == 0
    assert "warning: a request without user or tenant would meet no limit at all" in out
    assert json.loads(run("check-policy", file, "--format", "json")[1])["warnings"]


def test_a_policy_file_that_is_not_there_is_misuse(run: Run, tmp_path: Path) -> None:
    status, out, err = run("check-policy", str(tmp_path / "absent.toml"))
    assert (status, out) == (2, "")
    assert "absent.toml: no such file" in err
    assert run("check-policy", str(tmp_path))[0] == 2


def test_the_starter_policy_has_nothing_to_warn_of(run: Run) -> None:
    import shield

    file = Path(shield.__file__).parent / "starter.toml"
    status, out, err = run("check-policy", str(file))
    assert (status, err) == (0, "")
    assert "warning" not in out
    for name in ("address-burst", "user-burst", "user-sustained", "tenant-day"):
        assert name in out
    assert len(file.read_text().splitlines()) < 50


# ---- decide ------------------------------------------------------------------------------------------------


def test_an_allowed_request_is_0_and_prints_the_decision(run: Run) -> None:
    status, out, err = run("decide", stdin=b'{"ip": "203.0.113.7", "request_id": "c0ffee"}')
    assert (status, err) == (0, "")
    decision = json.loads(out)
    assert (decision["allowed"], decision["reason"], decision["request_id"]) == (True, "ok", "c0ffee")
    assert decision["limits"][0]["name"] == "address-burst"


def test_a_refused_request_is_1(run: Run, tmp_path: Path) -> None:
    file = policy(tmp_path)
    status, out, _ = run("decide", "--policy", file, stdin=b'{"ip": "no address"}')
    assert (status, json.loads(out)["reason"]) == (1, "invalid")
    request = b'{"bytes": 2000000, "content_type": "application/json"}'
    status, out, _ = run("decide", "--policy", file, stdin=request)
    assert (status, json.loads(out)["status"]) == (1, 413)


def test_explain_tells_of_every_limit(run: Run, tmp_path: Path) -> None:
    request = json.dumps(
        {"tenant": "acme", "user": "u-17", "ip": "203.0.113.7", "method": "POST", "path": "/orders/9?x=1", "bytes": 0}
    ).encode()
    status, out, _ = run("decide", "--policy", policy(tmp_path), "--explain", stdin=request)
    assert status == 0
    assert out.startswith("allowed: 200 ok\n")
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert "yes" in lines["user-burst"]
    assert "acme" in lines["user-burst"]
    assert "u-17" in lines["user-burst"]
    assert "19 of 20" in lines["user-burst"]
    assert "203.0.113.7" in lines["address"]
    assert "1 of 2" in lines["address"]
    status, out, _ = run("decide", "--policy", policy(tmp_path), "--explain", stdin=b'{"ip": "203.0.113.7"}')
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    for name in ("user-burst", "tenant-month", "exports"):
        assert " no " in lines[name]
    status, out, _ = run("decide", "--policy", policy(tmp_path), "--explain", "--format", "json", stdin=request)
    told = json.loads(out)
    assert told["decision"]["allowed"]
    assert [one["name"] for one in told["explain"]] == ["user-burst", "address", "tenant-month", "exports"]
    assert told["explain"][0]["remaining"] == 19


def test_explain_tells_who_refused_and_until_when(run: Run, tmp_path: Path) -> None:
    file = policy(tmp_path, '[[limit]]\nname = "never"\nkey = ["ip"]\nrate = "1/h"\ncost = "request"\n')
    status, out, _ = run("decide", "--policy", file, "--explain", stdin=b'{"ip": "203.0.113.7", "cost": 5}')
    assert status == 1
    assert "refused: 429 limit by never; it would never fit" in out
    assert "refuses" in out
    assert "203.0.113.7" in out


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (b"", "the body is empty"),
        (b"{", "ends too early"),
        (b'{"tennant": "x"}', "tennant: unknown field, did you mean 'tenant'?"),
        (b'{"cost": -1}', "cost: found -1"),
        (b"[{}]", "found an array; allowed: one request object"),
        (b'{"user": "' + b"x" * 3_000_000 + b'"}', "more than 2,097,152 bytes"),
    ],
)
def test_what_is_no_request_is_misuse(run: Run, stdin: bytes, message: str) -> None:
    status, out, err = run("decide", stdin=stdin)
    assert (status, out) == (2, "")
    assert message in err


def test_a_policy_or_store_that_does_not_do_is_misuse(run: Run, tmp_path: Path) -> None:
    status, _, err = run("decide", "--policy", policy(tmp_path, WRONG), stdin=b"{}")
    assert status == 2
    assert "limit[0].rate" in err
    status, _, err = run("decide", "--store", "mysql://user:very-secret@x", stdin=b"{}")
    assert status == 2
    assert "known are memory://" in err
    assert "very-secret" not in err


def test_the_store_can_come_from_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHIELD_STORE", "mysql://x")
    assert run("decide", stdin=b"{}")[0] == 2
    assert run("decide", "--store", "memory://", stdin=b"{}")[0] == 0


def test_a_store_that_is_away_is_told_and_the_policy_decides(run: Run, tmp_path: Path) -> None:
    store = "redis://127.0.0.1:1/0?connect_timeout=50ms"
    status, out, _ = run("decide", "--store", store, stdin=b'{"ip": "203.0.113.7"}')
    assert (status, json.loads(out)["degraded"]) == (0, True)
    deny = '[[limit]]\nname = "a"\nkey = ["ip"]\nrate = "1/s"\nwhen_store_fails = "deny"\n'
    command = ("decide", "--store", store, "--policy", policy(tmp_path, deny))
    status, out, _ = run(*command, stdin=b'{"ip": "203.0.113.7"}')
    assert (status, json.loads(out)["reason"]) == (1, "store_unavailable")


def test_text_from_the_request_cannot_draw_on_the_terminal(run: Run) -> None:
    request = json.dumps({"tenant": "a\x1b[2J", "user": "b\nc"}).encode()
    _, out, _ = run("decide", "--explain", stdin=request)
    assert "\x1b" not in out


# ---- serve -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--listen", "0.0.0.0:0"), 2, "give --auth-token-file"),
        (("--admin", "0.0.0.0:0"), 2, "give --auth-token-file"),
        (("--listen", "nonsense"), 2, "allowed: HOST:PORT"),
        (("--admin", "nonsense"), 2, "--admin: 'nonsense' is no address"),
        (("--policy", "absent.toml"), 2, "absent.toml"),
        (("--policy", "WRONG"), 2, "limit[0].rate"),
        (("--policy", "/"), 2, "allowed: .toml"),
        (("--store", "mysql://x"), 2, "known are memory://"),
        (("--store", "memory://?max_keys=0"), 2, "max_keys"),
        (("--auth-token-file", "absent"), 2, "--auth-token-file absent: cannot be read"),
        (("--secret-file", "absent"), 2, "--secret-file absent: cannot be read"),
        (("--tls-cert", "a"), 2, "go together"),
        (("--tls-client-ca", "a"), 2, "go together"),
        (("--tls-cert", "a", "--tls-key", "b"), 2, "--tls-cert a"),
        (("--trace-decisions", "/absent/trace"), 2, "--trace-decisions /absent/trace: No such file"),
        (("--listen", "192.0.2.1:0", "--auth-token-file", "TOKENS"), 3, "no address of this machine"),
        (("--listen", "unix:/absent/s"), 3, "cannot listen on unix:/absent/s"),
        (("--listen", "TAKEN"), 3, "another program listens there already"),
        (("--admin", "TAKEN"), 3, "another program listens there already"),
        (("--grace", "soon"), 2, "allowed: seconds"),
        (("--log-level", "loud"), 2, "invalid choice"),
    ],
)
def test_what_keeps_it_from_starting_is_said_in_a_sentence(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], status: int, message: str
) -> None:
    (tmp_path / "tokens").write_text("alpha-secret\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        files = {
            "TOKENS": str(tmp_path / "tokens"),
            "WRONG": policy(tmp_path, WRONG),
            "TAKEN": f"127.0.0.1:{taken.getsockname()[1]}",
        }
        given = [files.get(one, one) for one in arguments]
        for option in ("--listen", "--admin"):
            if option not in given:
                given += [option, "127.0.0.1:0"]
        ended, out, err = run("serve", *given)
    assert ended == status, err
    assert message in err
    assert out == ""


def test_a_fault_that_nobody_foresaw_is_3_in_a_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("shield.server.lifecycle.serve", broken)
    status, _, err = run("serve")
    assert status == 3
    assert "an unforeseen fault, ZeroDivisionError: division by zero at test_cli.py:" in err
    assert err.count("\n") == 1
