"""Law 3 between threads: nothing comes between a step's first read and its last write."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from shield import Policy, Request, Shield

START_NS = 1_763_900_000 * 10**9


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def hammer(shield: Shield, threads: int, calls: int) -> int:
    admitted: list[int] = []

    def work() -> None:
        admitted.append(sum(shield.check_nowait(Request(user="u", tenant=f"t{i % 7}")).allowed for i in range(calls)))

    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(admitted)


def bucket(more: str) -> str:
    return f'[[limit]]\nname = "b"\nkey = ["user"]\n{more}\n'


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize(
    "limits",
    [
        bucket('rate = "500/d"'),
        bucket('rate = "500/d"') + '[[limit]]\nname = "s"\nkey = ["tenant"]\nalgorithm = "concurrency"\nlimit = 1000\n',
        '[[limit]]\nname = "s"\nkey = ["user"]\nalgorithm = "concurrency"\nlimit = 500\n',
        bucket('rate = "500/d"\nalgorithm = "fixed-window"\nalign = "day"'),
    ],
    ids=["bucket", "bucket and places", "places", "day"],
)
@pytest.mark.parametrize("store", ["memory", "shared"])
def test_threads_admit_exactly_what_there_is(limits, store, tmp_path):
    for i in range(3):
        url = "memory://" if store == "memory" else f"shared://threads{i}?max_keys=100&max_receipts=1&dir={tmp_path}"
        shield = Shield(Policy.parse(f'version = 1\nname = "threads"\n{limits}'), url, clock=None)
        assert hammer(shield, 4, 400) == 500


@pytest.mark.usefixtures("hasty_threads")
def test_threads_on_a_day_that_the_clock_was_set_back_from():
    now = [START_NS]
    policy = 'version = 1\nname = "threads"\n' + bucket('rate = "500/d"\nalgorithm = "fixed-window"\nalign = "day"')
    shield = Shield(Policy.parse(policy), clock=lambda: now[0])
    assert shield.check_nowait(Request(user="u")).allowed
    now[0] -= 86_400 * 10**9
    assert hammer(shield, 4, 400) == 499
