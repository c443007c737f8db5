"""Laws 1, 2, 3 and 10 of the shared table when processes meet: one is stopped before each of its accesses to shared
memory, while another runs a whole step, or for ever, because it was killed there.

Buckets here do not refill while the test runs (one unit in thirty days), so what may be admitted is known to the unit.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
from collections.abc import Callable, Coroutine, Iterator, Mapping

import pytest

from shield import Policy, Request, Shield
from shield.store.shared import SharedStore, remove_table
from tests.stepping import AVAILABLE, points, stopped_at

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="stops processes by ptrace(2) on x86-64 Linux")
US = 1_000_000
T0 = 1_763_900_000 * US
# At T1 only filler 5 of a full window can be forgotten, at T2 filler 2 as well, which lies before it.
T1, T2 = T0 + 1_200_000, T0 + 1_600_000
EARLY = {5: T0, 2: T0 + 500_000}
PROBES = 32


def limit(name: str, key: str, more: str) -> str:
    return f'[[limit]]\nname = "{name}"\nkey = ["{key}"]\n{more}\n'


def slow(name: str, burst: int, key: str = "user", more: str = "") -> str:
    return limit(name, key, f'rate = "1/30d"\nburst = {burst}\n{more}')


FILLER = limit("filler", "session", 'rate = "1/s"\nburst = 1\nwhen_full = "deny"')
PLACE = limit("places", "user", 'algorithm = "concurrency"\nlimit = 1\nttl = "60s"')


class Host:
    """One table of a single window of slots, which is put back to how a test began with it."""

    def __init__(self, limits: str) -> None:
        self.url = f"shared://steps-{os.getpid()}?max_keys=1&max_leases=1&max_receipts=1&max_nonces=1"
        remove_table(self.url)
        self.policy = Policy.parse('version = 1\nname = "steps"\n' + limits)
        self.now_us = T0
        self.shield = Shield(self.policy, self.url, clock=lambda: self.now_us * 1000)
        peeks = tuple(dataclasses.replace(limit, cost=0) for limit in self.policy.limits)
        peek_policy = dataclasses.replace(self.policy, limits=peeks)
        self.peeks = Shield(peek_policy, self.url, clock=lambda: self.now_us * 1000)
        store = self.shield.store
        assert isinstance(store, SharedStore)
        self.bytes = mmap.mmap(os.open(store.path, os.O_RDWR), 0)
        self.begin()

    def begin(self) -> None:
        self.beginning = self.bytes[:]

    def back_to_the_beginning(self) -> None:
        self.bytes[:] = self.beginning

    def ask(self, now_us: int, **facts: object) -> bool:
        self.now_us = now_us
        return self.shield.check_nowait(Request(**facts)).allowed  # type: ignore[arg-type]

    def remaining(self, name: str, now_us: int, **facts: object) -> int:
        self.now_us = now_us
        decision = self.peeks.check_nowait(Request(**facts))  # type: ignore[arg-type]
        return next(status.remaining for status in decision.limits if status.name == name)

    def fill_the_window(self, early: Mapping[int, int]) -> None:
        """Fillers 0 to 31 in slots 0 to 31, which are charged in a far future but for the early ones."""
        for i in range(PROBES):
            assert self.ask(T0 - 10 * US, session=f"f{i}")
        for i in range(PROBES):
            assert self.ask(early.get(i, T0 + 100 * US), session=f"f{i}")
        assert self.shield.stats()["keys"] == PROBES
        self.begin()


@pytest.fixture
def host() -> Iterator[Callable[[str], Host]]:
    made: list[Host] = []

    def make(limits: str) -> Host:
        made.append(Host(limits))
        return made[-1]

    yield make
    for one in made:
        one.bytes.close()
        remove_table(one.url)


def at_once(coroutine: Coroutine[None, None, bool]) -> bool:
    """The answer of a call that never waits, without an event loop's thousands of instructions."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        return bool(ended.value)
    raise AssertionError("it waits")


def interleaved(host: Host, first: Callable[[], bool], second: Callable[[], bool]) -> Iterator[tuple[bool, bool]]:
    """What `first` and `second` return, for every point at which `second` can come into `first`."""
    first()  # both once, so that the interpreter has warmed up and takes the same way each time
    host.back_to_the_beginning()
    second()
    host.back_to_the_beginning()
    where = points(first)
    for point in where:
        host.back_to_the_beginning()
        with stopped_at(point, first) as process:
            answer = second()
            yield process.finish(), answer


def killed(host: Host, action: Callable[[], bool]) -> Iterator[None]:
    """Once for every point at which a process can be killed."""
    action()
    host.back_to_the_beginning()
    for point in points(action):
        host.back_to_the_beginning()
        with stopped_at(point, action) as process:
            process.kill()
        yield


def test_two_charges_of_one_bucket(host):
    table = host(slow("b", 5))
    assert table.ask(T0, user="u")
    table.begin()
    for both in interleaved(table, lambda: table.ask(T1, user="u"), lambda: table.ask(T2, user="u")):
        assert both == (True, True)
        assert table.remaining("b", T2, user="u") == 2


def test_two_newcomers_of_one_key_find_one_bucket(host):
    table = host(slow("b", 5))
    for both in interleaved(table, lambda: table.ask(T1, user="u"), lambda: table.ask(T2, user="u")):
        assert both == (True, True)
        assert table.remaining("b", T2, user="u") == 3
        assert table.shield.stats()["keys"] == 1


def test_two_newcomers_of_one_key_that_see_different_slots_to_take(host):
    """The one that came earlier finds slot 5, the other one slot 2: still one bucket, so one unit."""
    table = host(FILLER + slow("b", 1))
    table.fill_the_window(EARLY)
    for both in interleaved(table, lambda: table.ask(T1, user="u"), lambda: table.ask(T2, user="u")):
        assert sum(both) == 1
    for both in interleaved(table, lambda: table.ask(T2, user="u"), lambda: table.ask(T1, user="u")):
        assert sum(both) == 1


def test_two_newcomers_want_the_same_slot(host):
    table = host(FILLER + slow("b", 1, more='when_full = "deny"'))
    table.fill_the_window(EARLY)
    for both in interleaved(table, lambda: table.ask(T2, user="u"), lambda: table.ask(T2, user="v")):
        assert both == (True, True)
        assert not table.ask(T2, user="u")
        assert not table.ask(T2, user="v")


def test_a_bucket_is_charged_while_it_is_being_forgotten(host):
    """Whoever takes slot 5 must not take a charge away with it."""
    table = host(FILLER + slow("b", 1, more='when_full = "deny"'))
    table.fill_the_window(EARLY)
    for newcomer, back in interleaved(table, lambda: table.ask(T1, user="u"), lambda: table.ask(T1, session="f5")):
        assert newcomer or back
        assert not table.ask(T1, session="f5") or not back
        assert not newcomer or not table.ask(T1, user="u")
    for back, newcomer in interleaved(table, lambda: table.ask(T1, session="f5"), lambda: table.ask(T1, user="u")):
        assert newcomer or back
        assert not table.ask(T1, session="f5") or not back
        assert not newcomer or not table.ask(T1, user="u")


def test_one_key_by_the_shared_bucket_and_by_its_own(host):
    """At T1 the window is full for the one, at T2 there is a slot for the other: together they have one bucket."""
    table = host(FILLER + slow("b", 1))
    table.fill_the_window({2: T0 + 500_000})
    for both in interleaved(table, lambda: table.ask(T1, user="u"), lambda: table.ask(T2, user="u")):
        assert sum(both) == 1
    for both in interleaved(table, lambda: table.ask(T2, user="u"), lambda: table.ask(T1, user="u")):
        assert sum(both) == 1


def test_what_a_denied_request_took_is_given_back(host):
    table = host(slow("a", 5, key="tenant") + slow("b", 1))
    facts = {"tenant": "t", "user": "u"}
    for both in interleaved(table, lambda: table.ask(T1, **facts), lambda: table.ask(T1, user="u")):
        assert sum(both) == 1
        assert table.remaining("a", T1, **facts) == 5 - both[0]
    for both in interleaved(table, lambda: table.ask(T1, **facts), lambda: table.ask(T1, **facts)):
        assert sum(both) == 1
        assert table.remaining("a", T1, **facts) == 4


def test_one_place_is_taken_once_and_its_refusal_costs_nothing(host):
    table = host(slow("a", 5) + PLACE)
    for both in interleaved(table, lambda: table.ask(T1, user="u"), lambda: table.ask(T1, user="u")):
        assert sum(both) == 1
        assert table.remaining("a", T1, user="u") == 4
        assert table.shield.stats()["leases"] == 1


def test_a_receipt_is_settled_once(host):
    table = host(slow("b", 9, more='cost = "request"'))
    table.now_us = T0
    receipt = table.shield.check_nowait(Request(user="u", cost=6)).receipt
    assert receipt is not None
    table.begin()

    def settle() -> bool:
        return at_once(table.shield.report(receipt, cost=2))

    for both in interleaved(table, settle, settle):
        assert sum(both) == 1
        assert table.remaining("b", T0, user="u") == 7


def test_a_charge_beside_a_refund_loses_neither(host):
    table = host(slow("b", 9, more='cost = "request"'))
    table.now_us = T0
    receipt = table.shield.check_nowait(Request(user="u", cost=6)).receipt
    table.begin()
    for both in interleaved(
        table, lambda: table.ask(T0, user="u", cost=1), lambda: at_once(table.shield.report(receipt, cost=2))
    ):
        assert both == (True, True)
        assert table.remaining("b", T0, user="u") == 6


# ---- killed ---------------------------------------------------------------------------------------------------------


def units_left(table: Host, now_us: int, **facts: object) -> int:
    """How many are admitted until one is refused."""
    for admitted in range(100):
        if not table.ask(now_us, **facts):
            return admitted
    raise AssertionError("more than any bucket here has")


def test_killed_anywhere_costs_at_most_the_charge_in_hand(host):
    table = host(slow("a", 5, key="tenant") + slow("b", 3))
    facts = {"tenant": "t", "user": "u"}
    seen = set()
    for _ in killed(table, lambda: table.ask(T1, **facts)):
        seen.add((table.remaining("a", T1, **facts), table.remaining("b", T1, **facts)))
        assert units_left(table, T1, **facts) in (2, 3)
    assert seen == {(5, 3), (4, 3), (4, 2)}, "in one order, and none else"


def test_killed_while_taking_a_slot_leaves_it_to_others(host):
    table = host(FILLER + slow("b", 3, more='when_full = "deny"'))
    table.fill_the_window(EARLY)
    for _ in killed(table, lambda: table.ask(T1, user="u")):
        other, left = table.ask(T1, user="other"), units_left(table, T2, user="u")
        assert left in (2, 3)
        assert other or left == 2, "the slot is of use to somebody"
        assert table.ask(T0 + 200 * US, session="f5"), "and the forgotten key to find another one"
        assert not table.ask(T0 + 200 * US, session="f5")


def test_killed_with_a_place_in_hand_loses_it_until_it_expires(host):
    table = host(PLACE)
    seen = set()
    for _ in killed(table, lambda: table.ask(T1, user="u")):
        free = table.ask(T1, user="u")
        seen.add(free)
        assert not table.ask(T1, user="u")
        assert table.ask(T1 + 60 * US, user="u")
    assert seen == {True, False}


def test_killed_while_settling_never_settles_twice(host):
    table = host(slow("b", 9, more='cost = "request"'))
    table.now_us = T0
    receipt = table.shield.check_nowait(Request(user="u", cost=6)).receipt
    table.begin()

    def settle() -> bool:
        return at_once(table.shield.report(receipt, cost=2))

    for _ in killed(table, settle):
        settle()
        assert table.remaining("b", T0, user="u") in (3, 7)
        assert not settle()
        assert units_left(table, T0, user="u") in (3, 7)
