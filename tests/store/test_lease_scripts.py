"""lease.lua beside check.lua and settle.lua, held against tests/oracle_escrow.py: what is granted, charged and left."""

from __future__ import annotations

import itertools
import struct
from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shield.policy.model import Limit
from shield.store import Settlement
from shield.store.lua import LEASE
from tests import oracle_escrow
from tests.oracle_escrow import Out, Rules, Told
from tests.servers import Server
from tests.store.scripts import FOREIGN, REFUSED, START_US, TAKEN, Ask, Scripts, bucket

RULES = Rules()
_keys = itertools.count()
LEAST, TTL_US, AHEAD_US = 2, 1_000, 300


class Lease(NamedTuple):
    """What lease.lua said."""

    now_us: int
    granted: int
    start_us: int
    until_us: int
    units: int
    ticks: int
    out: int
    known: tuple[bool, ...]


def lease(
    scripts: Scripts,
    now_us: int,
    limit: Limit,
    key: str,
    name: int,
    want: int,
    *told: Told,
    least: int = LEAST,
    ttl_us: int = TTL_US,
    ahead_us: int = AHEAD_US,
) -> Lease:
    form = scripts.forms.of(limit)
    numbers = form.numbers(limit.numbers, 0)
    blob = struct.pack("<d8s10d", scripts.slack_ms, form.id, *numbers, want, least, name, ttl_us, ahead_us)
    blob += b"".join(struct.pack("<4d", *one) for one in told)
    reply: Any = scripts.client.evalsha(LEASE.sha.decode(), 1, scripts.key(limit, key), blob, b"%d" % now_us)
    assert all(type(number) is int for number in reply)
    assert reply[1] == 1, reply
    return Lease(reply[0], *reply[2:8], tuple(bool(known) for known in reply[8:]))


class Pair:
    """Script and oracle side by side, one bucket."""

    def __init__(self, scripts: Scripts, limit: Limit, key: str) -> None:
        self.scripts, self.limit, self.key = scripts, limit, key
        self.numbers = oracle_escrow.Numbers(limit.numbers.limit, limit.numbers.refill_units, limit.numbers.refill_us)
        self.bucket = oracle_escrow.Bucket(at=START_US)
        self.now_us = START_US
        self.names = iter(range(1, 10**6))

    def check(self, cost: int) -> bool:
        self.bucket = RULES.touch(self.bucket, self.numbers, self.now_us)
        fits = RULES.fits(self.bucket, self.numbers, cost)
        answer = self.scripts.check(self.now_us, [Ask(self.limit, self.key, cost)])
        assert answer.status == (TAKEN if fits else REFUSED)
        if fits and cost:
            self.bucket = self.bucket._replace(level=self.bucket.level + cost * self.numbers.p)
        units, ticks = divmod(self.bucket.level, self.numbers.p)
        assert answer.states[0][:2] == (units + self.bucket.out, ticks)
        return fits

    def lease(self, want: int, *told: Told) -> Lease:
        name = next(self.names)
        self.bucket = RULES.touch(self.bucket, self.numbers, self.now_us)
        self.bucket, known = RULES.tell(self.bucket, self.numbers, told, self.now_us)
        reply = lease(self.scripts, self.now_us, self.limit, self.key, name, want, *told)
        if want:
            granted, wait = RULES.grant(self.bucket, self.numbers, want, LEAST, AHEAD_US, self.now_us)
            assert reply.granted == granted
            if granted:
                start = self.now_us + wait
                assert (reply.start_us, reply.until_us) == (start, start + TTL_US)
                out = Out(name, granted, 0, reply.until_us)
                self.bucket = self.bucket._replace(leases=(*self.bucket.leases, out))
        assert reply.known == known
        assert (reply.units, reply.ticks) == divmod(self.bucket.level, self.numbers.p)
        assert reply.out == self.bucket.out
        return reply


STEP = st.one_of(
    st.tuples(st.just("wait"), st.integers(1, 800)),
    st.tuples(st.just("check"), st.integers(0, 12)),
    st.tuples(
        st.just("lease"),
        st.sampled_from([0, *range(LEAST, 13)]),
        st.lists(st.tuples(st.integers(0, 9), st.integers(0, 14)), max_size=3),
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rate=st.sampled_from([(1, 1), (1, 7), (3, 100), (99, 100), (1, 1_000)]), steps=st.lists(STEP, max_size=30))
def test_random_histories_are_as_the_oracle_says(scripts: Scripts, rate: tuple[int, int], steps: list[Any]) -> None:
    pair = Pair(scripts, bucket(rate=rate, burst=20), f"random{next(_keys)}")
    taken: list[Lease] = []
    for step in steps:
        if step[0] == "wait":
            pair.now_us += step[1]
        elif step[0] == "check":
            pair.check(step[1])
        else:
            told = []
            for which, spent in step[2]:
                if which < len(taken):
                    # Also of leases that are over, twice, and back to front.
                    told.append(
                        Told(which + 1, min(spent, taken[which].granted), spent % 2 == 0, taken[which].until_us)
                    )
            reply = pair.lease(step[1], *told)
            taken.append(reply)


def test_what_is_out_counts_as_used(scripts: Scripts) -> None:
    pair = Pair(scripts, bucket(rate=(1, 1_000_000), burst=10), "out")
    assert pair.lease(6).granted == 6
    assert pair.check(4)
    assert not pair.check(1)
    assert pair.lease(0, Told(1, 2, True, START_US + TTL_US)).out == 4
    assert not pair.check(1), "spent or out, it is used"
    assert pair.lease(0, Told(1, 3, False, START_US + TTL_US)).out == 0
    assert pair.check(3), "what came back may be had"
    assert not pair.check(1)


def test_a_lease_that_runs_out_is_charged_whole_from_there_on(scripts: Scripts) -> None:
    pair = Pair(scripts, bucket(rate=(1, 100), burst=10), "expired")
    assert pair.lease(8).granted == 8
    pair.now_us += TTL_US - 1
    assert not pair.check(3)
    pair.now_us += 101
    assert pair.check(3), "one unit has drained since"
    assert not pair.check(1)


def test_where_room_is_short_a_start_is_told_and_held(scripts: Scripts) -> None:
    pair = Pair(scripts, bucket(rate=(1, 100), burst=10), "short")
    assert pair.check(10)
    first = pair.lease(2)
    assert (first.granted, first.start_us - pair.now_us) == (2, 200)
    assert pair.lease(2).granted == 0, "another two are 400 us away"
    pair.now_us = first.start_us
    assert not pair.check(1)
    assert pair.lease(2).granted == 2


def test_a_report_counts_once_in_whatever_order(scripts: Scripts) -> None:
    pair = Pair(scripts, bucket(rate=(1, 1_000_000), burst=20), "order")
    until_us = pair.lease(10).until_us
    assert pair.lease(0, Told(1, 7, True, until_us)).units == 7
    for spent in (3, 7, 5):
        assert pair.lease(0, Told(1, spent, True, until_us)).units == 7
    assert pair.lease(0, Told(1, 8, False, until_us)).units == 8


def test_what_was_lost_with_the_state_is_charged_when_it_is_told(scripts: Scripts) -> None:
    pair = Pair(scripts, bucket(rate=(1, 1_000_000), burst=20), "lost")
    until_us = pair.lease(10).until_us
    scripts.client.delete(scripts.key(pair.limit, pair.key))
    pair.bucket = oracle_escrow.Bucket(at=START_US)
    reply = pair.lease(0, Told(1, 6, True, until_us))
    assert (reply.known, reply.units, reply.out) == ((False,), 6, 0)


def test_a_clock_that_is_set_back_keeps_no_lease_for_ever(scripts: Scripts) -> None:
    limit = bucket(rate=(1, 1), burst=10)
    lease(scripts, START_US, limit, "back", 1, 10)
    hour_us = 3_600_000_000
    back_us = START_US - hour_us
    assert scripts.check(back_us, [Ask(limit, "back", 1)]).status == REFUSED
    assert scripts.check(back_us + 2_000_000, [Ask(limit, "back", 0)]).states[0][:2] == (10, 0), "charged by now"
    assert scripts.check(back_us + 2_000_010, [Ask(limit, "back", 10)]).status == TAKEN


def test_a_denied_cost_waits_for_leases_only_where_it_must(scripts: Scripts) -> None:
    limit = bucket(rate=(1, 100), burst=10)
    granted = lease(scripts, START_US, limit, "wait", 1, 6)
    scripts.check(START_US, [Ask(limit, "wait", 4)])
    small = scripts.check(START_US, [Ask(limit, "wait", 2)])
    assert small.states[0] == (10, 0, START_US)
    large = scripts.check(START_US, [Ask(limit, "wait", 5)])
    assert large.states[0] == (10, 0, granted.until_us)
    assert scripts.check(granted.until_us + 500 - 100, [Ask(limit, "wait", 5)]).status == TAKEN, "no later than told"


def test_leases_outlive_the_level_in_time_to_live(server: Server) -> None:
    with server.client() as client:
        scripts = Scripts(client, slack_ms=0)
        limit = bucket(rate=(1, 1_000), burst=100)
        lease(scripts, START_US, limit, "ttl", 1, 50, ttl_us=1_000_000)
        left_ms = client.pttl(scripts.key(limit, "ttl"))
        assert 550 < left_ms <= 1_051, "it runs out after a second and has drained after 50 ms more"


def test_a_cell_with_leases_is_of_another_layout_and_back(server: Server) -> None:
    """Releases that know no leases leave such a cell alone, and share all others."""
    with server.client() as client:
        scripts = Scripts(client)
        limit = bucket(burst=20)
        key = scripts.key(limit, "layout")
        scripts.check(START_US, [Ask(limit, "layout", 1)])
        assert client.get(key)[0] == 2
        until_us = lease(scripts, START_US, limit, "layout", 1, 5).until_us
        assert client.get(key)[0] == 3
        lease(scripts, START_US, limit, "layout", 2, 0, Told(1, 0, False, until_us))
        assert client.get(key)[0] == 2


def test_a_foreign_value_is_left_alone(server: Server) -> None:
    with server.client() as client:
        scripts = Scripts(client)
        limit = bucket(burst=20)
        lease(scripts, START_US, limit, "mine", 1, 5)
        good = client.get(scripts.key(limit, "mine"))
        key = scripts.key(limit, "foreign")
        for value in (b"\x02" + good[1:], good[:1] + good[50:], b"\x04" + good[1:], b"text"):
            client.set(key, value)
            assert scripts.check(START_US, [Ask(limit, "foreign", 1)]).status == FOREIGN
            form = scripts.forms.of(limit)
            blob = struct.pack("<d8s10d", 0, form.id, *form.numbers(limit.numbers, 0), 5, 1, 1, 1, 1)
            assert client.evalsha(LEASE.sha.decode(), 1, key, blob, b"%d" % START_US) == [START_US, FOREIGN]
            assert client.get(key) == value


def test_no_more_leases_than_a_cell_should_hold(scripts: Scripts) -> None:
    limit = bucket(rate=(1, 1_000_000), burst=1_000)
    granted = [lease(scripts, START_US, limit, "many", name, 2).granted for name in range(70)]
    assert granted == [2] * 64 + [0] * 6


def test_a_refund_of_what_a_lease_spent_gives_no_more_than_it_should(scripts: Scripts) -> None:
    """The receipt says when it was admitted, which is before it was charged: what has drained since comes not back."""
    limit = bucket(rate=(1, 100), burst=20)
    until_us = lease(scripts, START_US, limit, "refund", 1, 10).until_us
    lease(scripts, START_US + 500, limit, "refund", 2, 0, Told(1, 10, False, until_us))
    settlement = Settlement(b"r" * 16, START_US + 10**6, START_US, (scripts.entry(limit, "refund", 10, 2),))
    scripts.settle(START_US + 500, settlement)
    assert scripts.check(START_US + 500, [Ask(limit, "refund", 0)]).states[0][:2] == (7, 0), "8 less 5 drained"
