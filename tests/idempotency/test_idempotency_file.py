"""Records in memory and in the file of a host: threads, processes, a file that is busy, full, foreign or gone."""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shield import Shield, ShieldError
from shield.errors import StoreError
from shield.store.key_file import LOCK_S, FileRecords, records_of
from shield.store.memory import MemoryStore
from shield.store.shared import PrivateTable, SharedStore, table_path
from shield.store.table import give_back
from shield.testing import FailingStore
from tests.idempotency.keyed import LIMITS, policy, request

ROOT = Path(__file__).resolve().parent.parent.parent
MANY = LIMITS.replace("burst = 3", "burst = 100000")
SMALL = "max_keys=1000&max_leases=10&max_receipts=100"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"shared://keys?{SMALL}&dir={tmp_path}"


@pytest.fixture
def path(url: str) -> Path:
    return records_of(table_path(url))


@pytest.mark.parametrize("store", ["memory://", "shared"])
def test_of_many_threads_one_owns_the_key(store: str, url: str) -> None:
    shield = Shield(policy("", MANY), url if store == "shared" else store)
    admitted: list[str] = []
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        for round_ in range(25):
            decision = shield.check_nowait(request(f"k-{round_}"))
            if decision.allowed:
                admitted.append(f"k-{round_}")
            else:
                assert decision.reason in ("idempotency_in_flight", "store_unavailable")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(admitted) == sorted(f"k-{round_}" for round_ in range(25))
    assert shield.check_nowait(request(None)).limits[0].remaining == 100_000 - 25 - 1


def test_of_four_processes_one_owns_the_key(url: str) -> None:
    """A thousand requests with one key, at the same time."""
    found = workers(url, "race", 4)
    outcomes = [word for line in found for word in line.split()]
    assert len(outcomes) == 1000
    assert outcomes.count("ok") == 1
    assert set(outcomes) <= {"ok", "idempotency_in_flight", "idempotency_replay"}


def test_a_process_that_is_killed_in_its_section_leaves_nothing_stuck(url: str, path: Path) -> None:
    shield = Shield(policy("", MANY), url)
    assert shield.check_nowait(request("before")).allowed
    command = [sys.executable, "-m", "tests.idempotency.workers", "hold", url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        started = time.monotonic()
        busy = shield.check_nowait(request("k-1"))
        assert (busy.status, busy.reason, busy.retry_after) == (503, "store_unavailable", 1.0)
        assert LOCK_S <= time.monotonic() - started < LOCK_S + 1  # bounded, on a machine that may be slow
        assert shield.check_nowait(request(None)).allowed  # who has no key does not wait
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert shield.check_nowait(request("k-1")).allowed  # what it had begun is not there
    assert shield.check_nowait(request("before")).reason == "idempotency_in_flight"


def workers(url: str, scenario: str, count: int) -> list[str]:
    command = [sys.executable, "-m", "tests.idempotency.workers", scenario, url]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    found = []
    for process in running:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        found.append(process.communicate(timeout=60)[0])
        assert process.returncode == 0
    return found


# ---- the file --------------------------------------------------------------------------------------------------------


def test_it_is_made_with_the_first_key_for_its_owner_alone_and_goes_with_the_table(tmp_path: Path) -> None:
    with PrivateTable(dir=str(tmp_path), max_keys=100, max_leases=1, max_receipts=1) as table:
        shield = Shield(policy(), table.url)
        shield.check_nowait(request(None))
        assert not list(tmp_path.glob("*.keys*"))
        shield.check_nowait(request())
        assert len(list(tmp_path.glob("*.keys"))) == 1
        assert all(stat.S_IMODE(one.stat().st_mode) == 0o600 for one in tmp_path.glob("*.keys*"))
        asyncio.run(shield.close())
    assert not list(tmp_path.iterdir())


def test_what_is_no_file_of_ours_is_not_used(url: str, path: Path) -> None:
    shield = Shield(policy(), url)

    def refused() -> None:
        decision = shield.check_nowait(request())
        assert (decision.reason, decision.degraded) == ("store_unavailable", False)
        with pytest.raises(StoreError):
            shield.store.keys._opened()  # type: ignore[attr-defined]

    path.symlink_to("/etc/hostname")
    refused()
    path.unlink()
    path.touch(0o600)
    path.chmod(0o644)
    refused()
    path.unlink()
    path.write_bytes(b"not a database" * 100)
    path.chmod(0o600)
    with pytest.raises(StoreError, match="not a database"):
        shield.extend_nowait(owner_of(shield))
    assert shield.check_nowait(request()).reason == "store_unavailable"
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 7")
    path.chmod(0o600)
    refused()
    path.unlink()
    assert shield.check_nowait(request()).allowed
    assert shield.stats()["idempotency_unavailable"] >= 4


def owner_of(shield: Shield) -> str:
    """An owner that this shield has sealed, of a key that it never took."""
    from shield.receipt import HeldKey

    assert shield._handles is not None
    return shield._handles.seal_key(HeldKey(b"a" * 16, b"h" * 16, b"o" * 16))


def test_the_policy_may_let_requests_pass_while_the_records_are_out_of_reach(url: str, path: Path) -> None:
    shield = Shield(policy('when_store_fails = "allow"'), url)
    path.write_bytes(b"not a database" * 100)
    path.chmod(0o600)
    for left in (2, 1, 0):
        decision = shield.check_nowait(request())
        assert (decision.allowed, decision.degraded, decision.idempotency) == (True, True, None)
        assert decision.limits[0].remaining == left
    assert shield.check_nowait(request()).reason == "limit"


def test_a_commit_that_fails_gives_everything_back(url: str) -> None:
    limits = (
        MANY + '[[limit]]\nname = "jobs"\nkey = ["tenant"]\nalgorithm = "concurrency"\nlimit = 1\n'
        '[[limit]]\nname = "window"\nkey = ["tenant"]\nalgorithm = "sliding-window"\nrate = "10/h"\n'
    )
    shield = Shield(policy("", limits), url)
    store = shield.store
    assert isinstance(store, SharedStore)

    def fails(db: sqlite3.Connection, charges: object) -> None:
        give_back(store.table, charges)  # type: ignore[arg-type]
        raise sqlite3.OperationalError("disk I/O error")

    real, store.keys._commit = store.keys._commit, fails  # type: ignore[method-assign,assignment]
    for _ in range(3):
        assert shield.check_nowait(request()).reason == "store_unavailable"
    store.keys._commit = real  # type: ignore[method-assign]
    decision = shield.check_nowait(request())
    assert decision.allowed
    assert [status.remaining for status in decision.limits] == [100_000 - 1, 0, 9]


def test_a_connection_is_not_used_by_a_child_process(url: str) -> None:
    shield = Shield(policy("", MANY), url)
    shield.check_nowait(request("k-1"))
    child = os.fork()
    if child == 0:
        ok = shield.check_nowait(request("k-1")).reason == "idempotency_in_flight"
        os._exit(0 if ok and shield.check_nowait(request("k-2")).allowed else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert shield.check_nowait(request("k-2")).reason == "idempotency_in_flight"


@pytest.mark.parametrize("store", ["memory://", "shared"])
def test_bounds_of_a_host(store: str, url: str) -> None:
    shield = Shield(policy("max_keys = 2\nmax_bytes = 200", MANY), url if store == "shared" else store)
    one, two = (shield.check_nowait(request(f"k-{i}", tenant=f"t-{i}")) for i in range(2))
    assert shield.check_nowait(request("k-2", tenant="t-2")).reason == "store_full"
    assert shield.complete_nowait(one, 200, (), b"x" * 150)
    assert shield.complete_nowait(two, 200, (), b"x" * 150)  # no room for it: known, and not kept
    assert shield.check_nowait(request("k-0", tenant="t-0")).status == 200
    assert shield.check_nowait(request("k-1", tenant="t-1")).status == 409
    found = shield.stats()
    assert (found["idempotency_keys"], found["idempotency_full"], found["idempotency_not_kept"]) == (2, 1, 1)
    assert 150 <= found["idempotency_bytes"] <= 200


def test_a_body_of_a_gigabyte_is_not_even_copied() -> None:
    shield = Shield(policy(), "memory://")
    owner = shield.check_nowait(request())
    before = time.thread_time()
    # Memory that is never touched, so none of it is there until somebody reads it.
    huge = mmap.mmap(-1, 2**30, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    assert shield.complete_nowait(owner, 200, (), memoryview(huge))  # type: ignore[arg-type]
    assert time.thread_time() - before < 0.1
    assert shield.check_nowait(request()).response.body is None
    assert shield.stats()["idempotency_bytes"] == 0


# ---- a store that is away --------------------------------------------------------------------------------------------


async def test_while_the_store_is_away_nothing_runs_unless_the_policy_says_so() -> None:
    for rule, reason in (("", "store_unavailable"), ('when_store_fails = "allow"', "ok")):
        store = FailingStore(MemoryStore())
        async with Shield(policy(rule), store) as shield:
            owner = await shield.check(request())
            store.fail_always("refused")
            decision = await shield.check(request("k-2"))
            assert decision.reason == reason
            assert decision.idempotency is None
            with pytest.raises(StoreError):
                await shield.complete(owner, 200)
            # What is wrong with a key stays wrong.
            assert (await shield.check(request("a,b"))).reason == "idempotency_invalid"
            store.heal()
            assert await shield.complete(owner, 200)
            with pytest.raises(ShieldError, match="must be awaited"):
                shield.complete_nowait(owner, 200)


async def test_a_missing_key_is_refused_also_while_the_store_is_away() -> None:
    limits = LIMITS.replace("burst = 3", "burst = 3\ncount_denied = true")
    store = FailingStore(MemoryStore())
    async with Shield(policy("required = true", limits), store) as shield:
        store.fail_always("refused")
        assert (await shield.check(request(None))).reason == "idempotency_missing"


def test_records_may_be_closed_twice(path: Path) -> None:
    records = FileRecords(path, lambda charges: None)
    records.close()
    records.close()
    assert records.stats()["idempotency_keys"] == 0
