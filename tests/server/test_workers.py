"""`shield serve --workers N` as its operator sees it: real processes, killed, stopped, reloaded and drained."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shield.store.shared import table_path
from shield.testing import read_trace
from tests.replay import Replay
from tests.server.load import load
from tests.server.process import Process, run
from tests.server.running import POLICY
from tests.server.test_lifecycle import ask, policy_file, reloaded
from tests.servers import Server, free_port, make_certificates

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

CHECK = {"ip": "203.0.113.7"}
OTHER = POLICY.replace('name = "test"', 'name = "other"').replace("burst = 3", "burst = 5")
Sample = tuple[str, tuple[tuple[str, str], ...]]


@pytest.fixture
def store(any_server: Server, request: pytest.FixtureRequest) -> str:
    """A place of this test's own on a real server."""
    # The deadline of a step is generous: on a busy machine a decision without the store would be no fault of ours.
    return f"{any_server.url}?deadline=5s&prefix={request.node.name.partition('[')[0][:40]}-{os.urandom(4).hex()}"


def metrics(process: Process) -> dict[Sample, float]:
    with urllib.request.urlopen(f"{process.admin_url}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def each(process: Process, name: str, **labels: str) -> list[float]:
    """A metric of every worker, in their order."""
    found = metrics(process)
    named = [
        (dict(labels_of)["worker"], value)
        for (sample, labels_of), value in found.items()
        if sample == name and labels.items() <= dict(labels_of).items()
    ]
    return [value for _, value in sorted(named)]


def total(process: Process, name: str, **labels: str) -> float:
    return metrics(process)[name, tuple(sorted(labels.items()))]


def pids(process: Process) -> dict[int, int]:
    """The process of each worker, by the log."""
    assert process.url
    return {event["worker"]: event["pid"] for event in process.events("worker decides")}


def until_dead(pid: int) -> None:
    ends = time.monotonic() + 30
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        assert time.monotonic() < ends, f"process {pid} is still there, in state {state}"
        time.sleep(0.01)


def ask_until_each_answered(process: Process, seen: Callable[[Any], None], body: Any = None) -> None:
    """Asks over connections of their own until every worker has decided once more."""
    before = each(process, "shield_worker_decisions_total")
    ends = time.monotonic() + 30
    while not all(now > then for now, then in zip(each(process, "shield_worker_decisions_total"), before, strict=True)):
        assert time.monotonic() < ends, each(process, "shield_worker_decisions_total")
        for _ in range(10):
            status, decision = ask(f"{process.url}/v1/check", body or CHECK)
            assert status == 200
            seen(decision)


def put(process: Process, policy: str, **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(f"{process.admin_url}/v1/policy", policy.encode(), headers, method="PUT")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def in_force(process: Process, burst: int) -> None:
    """Every worker decides by the policy with this burst."""

    def seen(decision: Any) -> None:
        assert decision["limits"][0]["limit"] == burst

    ask_until_each_answered(process, seen)


@contextmanager
def held(process: Process) -> Iterator[list[int]]:
    """Whatever process is started from now on stands still until the `with` ends; the list grows with them."""
    import threading

    assert process.url
    known, stopped, done = set(process.children()), [], threading.Event()

    def hold() -> None:
        while not done.wait(0.002):
            for child in set(process.children()) - known:
                os.kill(child, signal.SIGSTOP)
                known.add(child)
                stopped.append(child)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield stopped
    finally:
        done.set()
        thread.join()
        for child in stopped:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGCONT)


# ---- deciding together -------------------------------------------------------------------------------------


def test_all_workers_answer_decide_as_one_and_are_counted_as_one(tmp_path: Path, store: str) -> None:
    file = policy_file(tmp_path)
    with run(tmp_path, "--policy", file, "--store", store, "--workers", "3") as process:
        allowed = []
        ask_until_each_answered(process, lambda decision: allowed.append(decision["allowed"]))
        assert allowed.count(True) == 3  # the burst, once, whoever was asked
        assert "with 3 workers, on http://127.0.0.1:" in process.out()
        assert ask(f"{process.url}/nothing")[0] == 404
        found = metrics(process)
        by_worker = each(process, "shield_worker_decisions_total")
        assert sum(by_worker) == len(allowed)
        assert found["shield_decisions_total", (("reason", "ok"),)] == 3
        assert found["shield_decisions_total", (("reason", "limit"),)] == len(allowed) - 3
        assert found["shield_limit_refusals_total", (("limit", "address"), ("owner", "the tests"))] == len(allowed) - 3
        assert found["shield_check_duration_seconds_count", ()] == len(allowed)
        assert found["shield_check_duration_seconds_bucket", (("le", "+Inf"),)] == len(allowed)
        assert found["shield_check_duration_seconds_sum", ()] > 0
        assert found["shield_http_problems_total", (("endpoint", "unknown"), ("status", "404"))] == 1
        assert found["shield_store_checks_total", ()] == len(allowed)
        assert found["shield_store_connections", ()] == 3 * 2
        assert found["shield_store_max_keys", ()] == 3_000_000  # each has a table of its own for when Redis is away
        assert each(process, "shield_worker_up") == [1, 1, 1]
        assert len(each(process, "shield_worker_process_resident_memory_bytes")) == 3
        assert len(set(pids(process).values())) == 3
        assert set(process.children()) == set(pids(process).values())
        refusals = process.events("refused")
        assert {event["worker"] for event in refusals} <= {1, 2, 3}
        assert refusals
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert process.events("ended")
        assert not process.events("worker died")


def test_what_one_worker_charged_any_other_settles_once(tmp_path: Path, store: str) -> None:
    text = '[[limit]]\nname = "work"\nkey = ["tenant"]\nrate = "1/h"\nburst = 1000\ncost = "request"\n'
    file = policy_file(tmp_path, text)
    with run(tmp_path, "--policy", file, "--store", store, "--workers", "2") as process:
        receipts: list[str] = []
        asked = {"tenant": "t", "cost": 10}
        ask_until_each_answered(process, lambda decision: receipts.append(decision["receipt"]), asked)
        spent = 10 * len(receipts)
        assert all(receipts)
        settled = [ask(f"{process.url}/v1/report", {"receipt": each, "cost": 1}) for each in receipts for _ in range(4)]
        assert {status for status, _ in settled} == {202}
        left = ask(f"{process.url}/v1/check", {"tenant": "t", "cost": 0})[1]["limits"][0]["remaining"]
        assert left > 1000 - spent
        assert 1000 - len(receipts) - 1 <= left <= 1000 - len(receipts)  # what was refilled meanwhile is not refunded


def test_a_unix_socket_is_everybodys(tmp_path: Path, store: str) -> None:
    path = tmp_path / "decide.sock"
    arguments = ("--listen", f"unix:{path}", "--listen", "127.0.0.1:0", "--store", store, "--workers", "2")
    with run(tmp_path, *arguments) as process:
        process.address(r"(unix:\S+?),")

        def one() -> bytes:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                client.sendall(b"GET /v1/authz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                return client.recv(100)

        victim = pids(process)[1]
        for _ in range(20):
            assert one().startswith(b"HTTP/1.1 200")
        with held(process) as stopped:
            os.kill(victim, signal.SIGKILL)
            process.until("start another", lambda: stopped)
            for _ in range(20):
                assert one().startswith(b"HTTP/1.1 200")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert not path.exists()


def test_each_worker_traces_into_a_file_of_its_own_and_together_they_replay(tmp_path: Path, store: str) -> None:
    trace = tmp_path / "trace.jsonl"
    file = policy_file(tmp_path, POLICY.replace("1/h", "50/s"))
    arguments = ("--policy", file, "--store", store, "--workers", "2", "--trace-decisions", trace)
    with run(tmp_path, *arguments) as process:
        with load(process.url, 4) as asked:
            process.until("answer", lambda: asked.answered > 300)
        victim = pids(process)[2]
        before = Path(f"{trace}.2")
        process.until("write all", lambda: _lines(trace) == total(process, "shield_check_duration_seconds_count"))
        lines = before.read_text().splitlines()
        os.kill(victim, signal.SIGKILL)
        process.until("start another", lambda: pids(process)[2] != victim)
        with load(process.url, 4) as more:
            process.until("answer", lambda: more.answered > 300)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert before.read_text().splitlines()[: len(lines)] == lines  # the successor goes on where it ended
    assert not trace.exists()
    assert _lines(trace) == asked.answered + more.answered
    records = [line for number in (1, 2) for line in Path(f"{trace}.{number}").read_text().splitlines()]
    merged = tmp_path / "merged.jsonl"
    merged.write_text("".join(f"{line}\n" for line in sorted(records, key=lambda line: json.loads(line)["now_us"])))
    replay = Replay()
    for record in read_trace(merged):
        replay.play(record)
    assert replay.decided > 600
    assert not replay.found


def _lines(trace: Path) -> int:
    return sum(len(file.read_text().splitlines()) for file in trace.parent.glob(f"{trace.name}.*"))


# ---- dying -------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_while_the_others_go_on(tmp_path: Path, store: str) -> None:
    with run(tmp_path, "--store", store, "--workers", "3") as process:
        victim = pids(process)[2]
        with load(process.url) as asked:
            process.until("answer", lambda: asked.answered > 200)
            counted = total(process, "shield_check_duration_seconds_count")
            killed_s = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            process.until("start another", lambda: pids(process)[2] != victim)
            started_s = time.monotonic()
            answered = asked.answered
            process.until("answer", lambda: asked.answered > answered + 200)
            process.until("use it", lambda: each(process, "shield_worker_up") == [1, 1, 1])
        [died] = process.events("worker died")
        assert (died["worker"], died["pid"], died["cause"], died["signal"]) == (2, victim, "signal", "SIGKILL")
        assert 0 < died["next_in_s"] <= 0.1
        assert not asked.wrong
        assert asked.refused == 0
        # What its own connections were waiting for is lost with it; whoever connected later was served.
        assert all(sent_s < started_s for sent_s in asked.lost_s)
        assert len(asked.lost_s) <= 8, (killed_s, asked.lost_s)
        assert each(process, "shield_worker_restarts_total") == [0, 1, 0]
        assert each(process, "shield_worker_deaths_total", cause="signal") == [0, 1, 0]
        assert each(process, "shield_worker_deaths_total", cause="exit") == [0, 0, 0]
        assert total(process, "shield_check_duration_seconds_count") >= counted
        ask_until_each_answered(process, lambda decision: None)


def test_nobody_waits_at_a_dead_workers_door(tmp_path: Path, store: str) -> None:
    """The kernel goes on to put connections into its socket; until its successor is there a neighbour takes them."""
    with run(tmp_path, "--store", store, "--workers", "2") as process:
        ask_until_each_answered(process, lambda decision: None)
        with held(process) as stopped:
            counted = total(process, "shield_check_duration_seconds_count")
            os.kill(pids(process)[1], signal.SIGKILL)
            process.until("start another", lambda: stopped)
            for _ in range(40):
                assert ask(f"{process.url}/v1/check", CHECK)[0] == 200
            # The dead worker's counts stay in the sums.
            assert total(process, "shield_check_duration_seconds_count") == counted + 40
            assert each(process, "shield_worker_up") == [0, 1]
            state = ask(f"{process.admin_url}/readyz")
            assert (state[0], state[1]["workers"], state[1]["workers_ready"]) == (200, 2, 1)
        process.until("be whole", lambda: each(process, "shield_worker_up") == [1, 1])
        ask_until_each_answered(process, lambda decision: None)


def test_connections_wait_for_the_next_worker_when_none_is_left(tmp_path: Path, store: str) -> None:
    with run(tmp_path, "--store", store, "--workers", "2") as process:
        parts = urlsplit(process.url)
        with held(process) as stopped:
            for pid in pids(process).values():
                os.kill(pid, signal.SIGKILL)
            process.until("start others", lambda: len(stopped) == 2)
            status, state = ask(f"{process.admin_url}/readyz")
            assert (status, state["ready"], state["workers_ready"]) == (503, False, 0)
            assert ask(f"{process.admin_url}/healthz")[0] == 200
            waiting = [http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30) for _ in range(10)]
            for connection in waiting:
                connection.request("POST", "/v1/check", json.dumps(CHECK))
        for connection in waiting:
            assert connection.getresponse().status == 200
            connection.close()
        assert ask(f"{process.admin_url}/readyz")[0] == 200


def test_a_worker_that_stands_still_keeps_nobody_waiting(tmp_path: Path, store: str) -> None:
    with run(tmp_path, "--store", store, "--workers", "2") as process:
        still = pids(process)[1]
        os.kill(still, signal.SIGSTOP)
        process.until("notice", lambda: process.events("worker is quiet"))
        parts = urlsplit(process.url)
        # Those that connect now are served by its neighbour, whichever socket the kernel puts them in.
        for _ in range(20):
            with closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)) as connection:
                connection.request("POST", "/v1/check", json.dumps(CHECK))
                assert connection.getresponse().status == 200
        os.kill(still, signal.SIGCONT)
        ask_until_each_answered(process, lambda decision: None)
        assert pids(process)[1] == still


def test_a_worker_that_dies_again_and_again_comes_back_more_and_more_slowly(tmp_path: Path, store: str) -> None:
    with run(tmp_path, "--store", store, "--workers", "2") as process:
        assert process.url
        survivor = pids(process)[2]

        def died(times: int) -> bool:
            for child in process.children():
                if child != survivor:
                    os.kill(child, signal.SIGKILL)
            return len(process.events("worker died")) >= times

        process.until("see it die", lambda: died(5))
        pauses = [event["next_in_s"] for event in process.events("worker died")][:5]
        for least, pause_s in zip((0.05, 0.1, 0.2, 0.4, 0.8), pauses, strict=True):
            assert least <= pause_s <= 2 * least
        process.until("be whole", lambda: each(process, "shield_worker_up") == [1, 1])
        assert pids(process)[2] == survivor
        assert each(process, "shield_worker_deaths_total", cause="signal")[0] >= 5


def test_a_server_whose_workers_never_come_to_decide_ends(tmp_path: Path, store: str) -> None:
    with run(tmp_path, "--store", store, "--workers", "2") as process:

        def ended() -> bool:
            for child in process.children():
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            return process.ended

        process.until("end", ended)
        assert process.wait() == 3
        assert "ended 3 times before it could decide, at last by cause signal, signal SIGKILL" in process.err()
        assert process.out() == ""


def test_a_worker_that_was_told_what_cannot_be_right_says_what(tmp_path: Path, store: str) -> None:
    (tmp_path / "trace.2").mkdir()
    arguments = ("--trace-decisions", tmp_path / "trace", "--store", store, "--workers", "2")
    with run(tmp_path, *arguments) as process:
        assert process.wait() == 2
        assert f"shield: --trace-decisions {tmp_path}/trace.2: Is a directory" in process.err()
        assert process.children() == []


def test_workers_end_with_their_supervisor_however_it_ends(tmp_path: Path, store: str) -> None:
    with run(tmp_path, "--store", store, "--workers", "3") as process:
        assert process.url
        workers = process.children()
        assert len(workers) == 3
        process.kill()
        for pid in workers:
            until_dead(pid)
    assert "Traceback" not in process.err()


# ---- changes -----------------------------------------------------------------------------------------------


def test_sighup_changes_the_policy_of_all_or_of_none(tmp_path: Path, store: str) -> None:
    file = policy_file(tmp_path)
    with run(tmp_path, "--policy", file, "--store", store, "--workers", "3") as process:
        in_force(process, 3)
        policy_file(tmp_path, OTHER)
        event = reloaded(process, "policy replaced")
        assert (event["origin"], event["name"], event["owner"]) == ("SIGHUP", "other", "the tests")
        in_force(process, 5)
        policy_file(tmp_path, '[[limit]]\nname = "x"\nrate = "0/s"\nbrust = 1\n')
        event = reloaded(process, "policy refused, the running one stays in force")
        assert len(event["issues"]) == 3
        in_force(process, 5)
        # Told once, not once by each worker.
        assert len(process.events("policy replaced")) == 1
        assert total(process, "shield_policy_reloads_total", outcome="replaced") == 1
        assert total(process, "shield_policy_reloads_total", outcome="refused") == 1
        assert not process.events("worker died")
        # A worker that comes later decides by what is in force, and not by what lies in the file.
        victim = pids(process)[1]
        os.kill(victim, signal.SIGKILL)
        process.until("start another", lambda: pids(process)[1] != victim)
        in_force(process, 5)


def test_an_operator_replaces_the_policy_of_all_workers(tmp_path: Path, store: str) -> None:
    with run(tmp_path, "--policy", policy_file(tmp_path), "--store", store, "--workers", "3") as process:
        before = ask(f"{process.admin_url}/readyz")[1]["policy"]
        status, answer = put(process, OTHER, **{"If-Match": f'"{before}"'})
        assert (status, answer["name"], answer["previous"]) == (200, "other", before)
        in_force(process, 5)
        assert put(process, POLICY, **{"If-Match": f'"{before}"'})[0] == 412
        status, answer = put(process, "name = 3")
        assert (status, answer["issues"][0]["path"]) == (400, "name")
        in_force(process, 5)
        assert ask(f"{process.admin_url}/v1/policy")[1]["name"] == "other"
        assert total(process, "shield_policy_reloads_total", outcome="refused") == 1
        assert ("shield_policy_info", "other") in {
            (name, dict(labels).get("name")) for name, labels in metrics(process)
        }


def test_a_worker_that_starts_while_the_policy_changes_decides_by_the_new_one(tmp_path: Path, store: str) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("alpha-secret\n")
    file = policy_file(tmp_path)
    arguments = ("--policy", file, "--store", store, "--workers", "2", "--auth-token-file", tokens)
    with run(tmp_path, *arguments) as process:
        assert process.url
        with held(process) as stopped:
            victim = pids(process)[1]
            os.kill(victim, signal.SIGKILL)
            # It has been told the old policy by then, which it will read when it goes on.
            process.until("start another", lambda: stopped)
            assert put(process, OTHER)[0] == 200
            tokens.write_text("beta-secret\n")
            reloaded(process, "tokens reloaded")
            assert put(process, OTHER)[0] == 200  # SIGHUP has read the file
        process.until("be whole", lambda: each(process, "shield_worker_up") == [1, 1])
        before = each(process, "shield_worker_decisions_total")
        while each(process, "shield_worker_decisions_total")[0] == before[0]:
            assert ask(f"{process.url}/v1/check", CHECK, Shield_Authorization="Bearer alpha-secret")[0] == 401
            status, decision = ask(f"{process.url}/v1/check", CHECK, Shield_Authorization="Bearer beta-secret")
            assert (status, decision["limits"][0]["limit"]) == (200, 5)


def test_tokens_and_certificates_are_read_again_by_all(tmp_path: Path, store: str) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("alpha-secret\n")
    arguments = ("--auth-token-file", tokens, "--store", store, "--workers", "2")
    with run(tmp_path, *arguments) as process:
        check = f"{process.url}/v1/check"
        assert ask(check, {})[0] == 401
        assert ask(check, {}, Shield_Authorization="Bearer alpha-secret")[0] == 200
        tokens.write_text("beta-secret\n")
        assert reloaded(process, "tokens reloaded")["tokens"] == 1
        for _ in range(20):
            assert ask(check, {}, Shield_Authorization="Bearer alpha-secret")[0] == 401
            assert ask(check, {}, Shield_Authorization="Bearer beta-secret")[0] == 200
        tokens.write_text("\n")
        reloaded(process, "tokens not reloaded, the old ones stay valid")
        for _ in range(10):
            assert ask(check, {}, Shield_Authorization="Bearer beta-secret")[0] == 200
        assert "beta" not in process.err() + process.out()
        arguments_of_all = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in process.children()]
        assert store.encode() not in b"".join(arguments_of_all)


def test_each_worker_serves_the_certificate_that_was_reloaded(tmp_path: Path, store: str) -> None:
    import ssl

    certificate, key = make_certificates(tmp_path)
    options = ("--tls-cert", certificate, "--tls-key", key, "--store", store, "--workers", "2")
    with run(tmp_path, *options) as process:
        parts = urlsplit(process.url)
        assert parts.scheme == "https"
        assert parts.port is not None
        address = ("127.0.0.1", parts.port)
        old = ssl.get_server_certificate(address)
        make_certificates(tmp_path)
        reloaded(process, "certificate reloaded")
        for _ in range(20):
            assert ssl.get_server_certificate(address) not in ("", old)
        key.write_text("nonsense")
        reloaded(process, "certificate not reloaded, the old one stays in use")
        assert ssl.get_server_certificate(address) != old


# ---- ending ------------------------------------------------------------------------------------------------


def test_what_was_sent_before_sigterm_is_answered(tmp_path: Path, store: str) -> None:
    trace = tmp_path / "trace"
    arguments = ("--store", store, "--workers", "3", "--trace-decisions", trace)
    with run(tmp_path, *arguments) as process:
        with load(process.url, 16) as asked:
            process.until("answer", lambda: asked.answered > 500)
            told_s = time.monotonic()
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
        assert not [sent_s for sent_s in asked.lost_s if sent_s < told_s]
        assert not asked.wrong
        assert not process.events("worker died")
        assert not process.events("requests cut off")
        assert asked.answered <= _lines(trace) <= asked.answered + len(asked.lost_s)


def test_what_is_in_flight_finishes_while_readyz_says_503(tmp_path: Path, store: str) -> None:
    with run(tmp_path, "--store", store, "--workers", "2") as process:
        url, admin = urlsplit(process.url), process.admin_url
        address = (url.hostname or "", url.port or 0)
        body = b'{"ip":"203.0.113.7"}'
        slow = [socket.create_connection(address, 20) for _ in range(6)]
        for each_one in slow:
            head = b"POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body[:5])
            each_one.sendall(head)
        process.until("count them", lambda: total(process, "shield_in_flight") == 6)
        process.signal(signal.SIGTERM)
        process.until("drain", lambda: ask(f"{admin}/readyz")[0] == 503)

        def refuses() -> bool:
            try:
                socket.create_connection(address, 5).close()
            except ConnectionError:
                return True
            return False

        process.until("refuse", refuses)
        assert ask(f"{admin}/healthz")[0] == 200
        for each_one in slow:
            each_one.sendall(body[5:])
            answer = each_one.recv(4000)
            assert b"200 OK" in answer
            assert b"Connection: close" in answer
            each_one.close()
        assert process.wait() == 0


@pytest.mark.parametrize("second", [None, signal.SIGTERM])
def test_what_does_not_finish_is_cut_off_after_the_grace_or_a_second_signal(
    tmp_path: Path, store: str, second: signal.Signals | None
) -> None:
    grace = "0.2" if second is None else "60"
    with run(tmp_path, "--grace", grace, "--store", store, "--workers", "2") as process:
        url = urlsplit(process.url)
        stuck = socket.create_connection((url.hostname or "", url.port or 0))
        stuck.sendall(b"POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        process.until("count it", lambda: total(process, "shield_in_flight") == 1)
        process.signal(signal.SIGTERM)
        process.until("drain", lambda: process.events("draining"))
        if second is not None:
            process.signal(second)
        assert process.wait() == 0
        assert [event["count"] for event in process.events("requests cut off")] == [1]
        assert not process.events("worker did not end and is killed")
        stuck.close()


def test_ctrl_c_reaches_all_and_only_the_supervisor_minds(tmp_path: Path, store: str) -> None:
    with run(tmp_path, "--store", store, "--workers", "3") as process:
        with load(process.url, 8) as asked:
            process.until("answer", lambda: asked.answered > 200)
            process.signal_group(signal.SIGHUP)
            process.until("say so", lambda: process.events("the starter policy has no file to read again"))
            told_s = time.monotonic()
            process.signal_group(signal.SIGINT)
            assert process.wait() == 0
        assert not [sent_s for sent_s in asked.lost_s if sent_s < told_s]
        assert not process.events("worker died")
        assert "Traceback" not in process.err()
        assert process.events("ended")


def test_signals_are_not_for_workers_from_their_first_moment(tmp_path: Path, store: str) -> None:
    with run(tmp_path, "--store", store, "--workers", "2") as process:

        def served_under_fire() -> bool:
            for child in process.children():
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    os.kill(child, number)
            return "try: curl" in process.out()

        process.until("serve", served_under_fire)
        assert served_under_fire()
        ask_until_each_answered(process, lambda decision: None)
        assert not process.events("worker died")
        assert "Traceback" not in process.err()


def test_ctrl_c_while_workers_start_ends_quietly(tmp_path: Path, store: str) -> None:
    with run(tmp_path, "--store", store, "--workers", "2") as process:
        process.until("start workers", lambda: len(process.children()) == 2)
        process.signal_group(signal.SIGINT)
        assert process.wait() == 0
        assert "Traceback" not in process.err()
        assert process.out() == ""


# ---- starting ----------------------------------------------------------------------------------------------


def test_not_ready_until_all_workers_are(tmp_path: Path, store: str) -> None:
    admin = f"http://127.0.0.1:{free_port()}"
    arguments = ("--admin", admin.removeprefix("http://"), "--store", store, "--workers", "2")
    process = Process(tmp_path, "--listen", "127.0.0.1:0", *arguments)
    try:

        def half_ready() -> bool:
            children = process.children()
            if len(children) < 2:
                return False
            os.kill(max(children), signal.SIGSTOP)
            try:
                return ask(f"{admin}/readyz")[1]["workers_ready"] == 1
            except urllib.error.URLError:
                return False

        process.until("have one of two", half_ready)
        status, state = ask(f"{admin}/readyz")
        assert (status, state["ready"], state["workers"]) == (503, False, 2)
        assert ask(f"{admin}/healthz")[0] == 200
        assert process.out() == ""
        os.kill(max(process.children()), signal.SIGCONT)
        process.until("be ready", lambda: ask(f"{admin}/readyz")[0] == 200)
        process.until("say so", lambda: "try: curl" in process.out())
    finally:
        process.kill()


@pytest.mark.parametrize(("first", "second"), [("2", "2"), ("1", "2"), ("2", "1")])
def test_two_servers_do_not_share_a_port(tmp_path: Path, store: str, first: str, second: str) -> None:
    with run(tmp_path / "1", "--store", store, "--workers", first) as process:
        port = urlsplit(process.url).port
        arguments = ("--listen", f"127.0.0.1:{port}", "--store", store, "--workers", second)
        with run(tmp_path / "2", *arguments) as late:
            assert late.wait() == 3
            assert f"cannot listen on 127.0.0.1:{port}: another program listens there already" in late.err()
            assert late.out() == ""
        for _ in range(20):
            assert ask(f"{process.url}/v1/check", CHECK)[0] == 200


def test_a_store_that_is_away_is_told_once(tmp_path: Path) -> None:
    store = "redis://:very-secret@127.0.0.1:1/0?connect_timeout=50ms"
    with run(tmp_path, "--store", store, "--workers", "2") as process:
        decision = ask(f"{process.url}/v1/check", CHECK)[1]
        assert (decision["allowed"], decision["degraded"]) == (True, True)
        assert process.out().count("warning: starting degraded") == 1
        assert "127.0.0.1:1" in process.out()
        assert ask(f"{process.admin_url}/readyz")[1]["degraded"]
        assert "very-secret" not in process.out() + process.err()


@pytest.mark.parametrize("where", ["option", "environment"])
def test_a_table_for_each_worker_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    given = ("--store", "memory://?max_keys=10") if where == "option" else ()
    if where == "environment":
        monkeypatch.setenv("SHIELD_STORE", "memory://")
    with run(tmp_path, *given, "--workers", "2") as process:
        assert process.wait() == 2
        assert "2 workers would admit 2 times what the limits allow. Use shared://NAME" in process.err()


# ---- without a store -----------------------------------------------------------------------------------------


def test_workers_that_are_given_no_store_share_a_table_and_the_next_server_there_goes_on_with_it(
    tmp_path: Path,
) -> None:
    file = policy_file(tmp_path)
    port = free_port()
    arguments = ("--listen", f"127.0.0.1:{port}", "--policy", file, "--workers", "3")
    table = table_path(f"shared://127.0.0.1-{port}")
    allowed: list[bool] = []
    try:
        with run(tmp_path / "1", *arguments) as process:
            victim = pids(process)[1]
            ask_until_each_answered(process, lambda decision: allowed.append(decision["allowed"]))
            assert allowed.count(True) == 3
            assert f"store shared at {table}, with 3 workers" in process.out()
            found = metrics(process)
            assert found["shield_store_keys", ()] == 1
            assert found["shield_store_max_keys", ()] == 1_000_000
            assert found["shield_decisions_total", (("reason", "ok"),)] == 3
            os.kill(victim, signal.SIGKILL)
            process.until("start another", lambda: pids(process)[1] != victim)
            ask_until_each_answered(process, lambda decision: allowed.append(decision["allowed"]))
            receipts = ask(f"{process.url}/v1/check", CHECK)[1]["receipt"]
            assert receipts is None
            process.signal(signal.SIGTERM)
            assert process.wait() == 0
        with run(tmp_path / "2", *arguments) as process:
            ask_until_each_answered(process, lambda decision: allowed.append(decision["allowed"]))
        assert allowed.count(True) == 3
    finally:
        table.unlink(missing_ok=True)


def test_a_table_of_a_passing_address_ends_with_its_server(tmp_path: Path) -> None:
    with run(tmp_path, "--policy", policy_file(tmp_path), "--workers", "2") as process:
        table = Path(process.address(r"store shared at (\S+),"))
        allowed: list[bool] = []
        ask_until_each_answered(process, lambda decision: allowed.append(decision["allowed"]))
        assert allowed.count(True) == 3
        assert table.exists()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert not table.exists()


def test_receipts_and_places_are_every_workers_on_a_shared_table(tmp_path: Path) -> None:
    text = """
        [[limit]]
        name = "work"
        key = ["tenant"]
        rate = "1/h"
        burst = 1000
        cost = "request"

        [[limit]]
        name = "places"
        key = ["tenant"]
        algorithm = "concurrency"
        limit = 4
    """
    with run(tmp_path, "--policy", policy_file(tmp_path, text), "--workers", "2") as process:
        asked = {"tenant": "t", "cost": 10}
        decisions = [ask(f"{process.url}/v1/check", asked)[1] for _ in range(12)]
        held_places = [decision for decision in decisions if decision["allowed"]]
        assert len(held_places) == 4
        for decision in held_places:
            answers = [ask(f"{process.url}/v1/report", {"receipt": decision["receipt"], "cost": 1}) for _ in range(5)]
            assert [status for status, _ in answers] == [202] * 5
            assert [body["settled"] for _, body in answers] == [True] + [False] * 4
            freed = [ask(f"{process.url}/v1/release", {"leases": decision["leases"]})[1] for _ in range(5)]
            assert [body["released"] for body in freed] == [1, 0, 0, 0, 0]
        again = [ask(f"{process.url}/v1/check", asked)[1]["allowed"] for _ in range(12)]
        assert again.count(True) == 4
