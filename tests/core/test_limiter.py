"""TokenBucket and SlidingWindow as a library user meets them."""

from __future__ import annotations

import gc
import resource
import sys

import pytest

from shield import LimitStatus, SlidingWindow, TokenBucket
from shield.core.limiter import siphash128_digest

S = 1_000_000_000


class Clock:
    """Nanoseconds that only the test moves."""

    def __init__(self, now_ns: int = 1_763_900_000 * S) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns


def test_the_hash_gives_known_answers():
    """SipHash-1-3-128 of 0, 1 and 2 bytes under the key 00..0f (tests of the Rust crate `siphasher`, which follow the
    authors' vectors.h with the rounds changed)."""
    key = bytes(range(16))
    answers = {
        0: "e77ebcb22788a5befd62db6add303001",
        1: "fc6f370460d3eda85e0573cc2b2ff063",
        2: "75787f090569839b855bc9548c6aea95",
    }
    assert {n: siphash128_digest(bytes(range(n)), key).hex() for n in answers} == answers


def test_five_lines_from_the_readme():
    limiter = TokenBucket("100/s", burst=200)
    assert limiter.allow("user:1") is True
    status = limiter.take("user:1", cost=3)
    assert status == LimitStatus(True, 200, 196, status.reset_after, 0.0, cost=3)
    assert 0.03 < status.reset_after <= 0.04


def test_str_and_bytes_of_the_same_text_are_one_key():
    limiter = TokenBucket("1/h", clock=Clock())
    assert limiter.allow("é") is True
    assert limiter.allow("é".encode()) is False
    assert limiter.allow("\ud800") is True  # no text that UTF-8 has, but a key
    assert limiter.allow("\ud800") is False


def test_peek_takes_nothing_and_a_cost_of_nothing_is_always_allowed():
    limiter = TokenBucket("1/h", burst=5, clock=Clock())
    assert limiter.peek("k", cost=5).allowed
    assert limiter.peek("k", cost=6) == LimitStatus(False, 5, 5, 0.0, None, cost=6)
    assert limiter.take("k", cost=5)
    assert limiter.take("k", cost=0).allowed
    assert limiter.peek("k").retry_after == 3600.0
    assert len(limiter) == 1


def test_a_peek_at_a_new_key_does_not_make_one():
    limiter = TokenBucket("1/h", clock=Clock())
    limiter.peek("k")
    limiter.allow("k", cost=0)
    limiter.allow("k", cost=2)
    assert len(limiter) == 0


def test_allow_many_is_allow_in_order():
    clock = Clock()
    one, many = TokenBucket("1/h", burst=3, clock=clock), TokenBucket("1/h", burst=3, clock=clock)
    keys = [f"k{i % 70}" for i in range(300)]
    costs = [i % 3 for i in range(300)]
    assert many.allow_many(keys, costs) == [one.allow(k, c) for k, c in zip(keys, costs, strict=True)]
    assert many.allow_many([]) == []
    assert many.allow_many(tuple(keys[:2]), cost=1) == [one.allow(k) for k in keys[:2]]


def test_allow_many_checks_everything_before_it_takes_anything():
    limiter = TokenBucket("1/h", burst=3, clock=Clock())
    with pytest.raises(TypeError, match="str or bytes"):
        limiter.allow_many(["a", 7])
    with pytest.raises(ValueError, match="2 keys but 1 costs"):
        limiter.allow_many(["a", "b"], [1])
    with pytest.raises(ValueError, match="cost"):
        limiter.allow_many(["a", "b"], [1, -1])
    assert len(limiter) == 0


@pytest.mark.parametrize("cost", [-1, 2**53, 2**62, 2**63, 2**64, 10**40])
def test_a_cost_out_of_range_is_an_error_that_says_so(cost):
    limiter = TokenBucket("1/s")
    for ask in (limiter.allow, limiter.take, limiter.peek):
        with pytest.raises(ValueError, match="cost must be from 0 to"):
            ask("k", cost)


@pytest.mark.parametrize("cost", [1.0, float("nan"), "1", None, True])
def test_a_cost_that_is_no_int_is_a_type_error(cost):
    with pytest.raises((TypeError, ValueError)):
        TokenBucket("1/s").allow("k", cost)


@pytest.mark.parametrize("key", [None, 7, 1.5, ("a",), bytearray(b"a")])
def test_a_key_is_text_or_bytes(key):
    with pytest.raises(TypeError, match="str or bytes"):
        TokenBucket("1/s").allow(key)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenBucket("0/s"), "0"),
        (lambda: TokenBucket("1/s", burst=0), "burst"),
        (lambda: TokenBucket("1/s", burst=10**9 + 1), "burst"),
        (lambda: TokenBucket("1/s", burst=1.5), "burst"),
        (lambda: TokenBucket("1/s", burst=True), "burst"),
        (lambda: TokenBucket("1/s", max_keys=0), "max_keys"),
        (lambda: TokenBucket("1/s", max_keys=2**62), "max_keys"),
        (lambda: TokenBucket("1/s", when_full="evict"), "when_full"),
        (lambda: TokenBucket("5/month"), "steady"),
        (lambda: SlidingWindow("5/month"), "fixed length"),
        (lambda: SlidingWindow("nonsense"), "nonsense"),
        (lambda: TokenBucket("1/s", clock=5), "clock"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize("now", ["soon", 1.5, None])
def test_a_clock_that_returns_no_int_is_named(now):
    with pytest.raises(TypeError, match="nanoseconds"):
        TokenBucket("1/s", clock=lambda: now).allow("k")
    with pytest.raises(OverflowError, match="2262"):
        TokenBucket("1/s", clock=lambda: 2**70).allow("k")


def test_time_before_the_epoch_stands_still():
    clock = Clock(-5 * S)
    limiter = TokenBucket("1/s", burst=1, clock=clock)
    assert limiter.allow("k")
    clock.now_ns = -S
    assert not limiter.allow("k")
    clock.now_ns = S
    assert limiter.allow("k")


def test_nanoseconds_are_floored_to_microseconds():
    clock = Clock(0)
    limiter = TokenBucket("1000000/s", burst=1, clock=clock)
    assert limiter.allow("k")
    clock.now_ns = 999
    assert not limiter.allow("k")
    clock.now_ns = 1000
    assert limiter.allow("k")


def test_the_sliding_window_of_the_books():
    """alisaifee/limits, strategies.rst: 40 before, 80 now, limit 100 a minute: full at 30 s, 93 used at 40 s."""
    clock = Clock(1_763_900_040 * S)  # a multiple of 60 s
    window = SlidingWindow("100/m", clock=clock)
    assert window.take("k", cost=40)
    clock.now_ns += 60 * S + 15 * S
    assert window.allow("k", cost=70)
    clock.now_ns += 15 * S
    assert window.allow("k", cost=10)
    assert not window.allow("k")
    clock.now_ns += 10 * S
    assert window.take("k") == LimitStatus(True, 100, 5, 80.0, 0.0)


# ---- the bound ------------------------------------------------------------------------------------------------------


def test_a_full_table_lets_newcomers_share_and_forgets_nobody():
    clock = Clock()
    limiter = TokenBucket("1/h", burst=2, max_keys=100, clock=clock)
    for i in range(100):
        assert limiter.allow(f"live{i}", cost=2)
    newcomers = [limiter.allow(f"new{i}") for i in range(50)]
    assert newcomers == [True, True] + [False] * 48, "newcomers share one bucket"
    assert not any(limiter.allow(f"live{i}") for i in range(100)), "who was live stays as spent as before"
    assert len(limiter) == 100


def test_a_newcomers_own_bucket_starts_at_the_level_of_the_shared_one():
    clock = Clock()
    limiter = TokenBucket("10/s", burst=10, max_keys=10, clock=clock)
    for i in range(10):
        assert limiter.allow(f"live{i}")  # forgotten after 100 ms
    assert limiter.allow("late", cost=10)
    clock.now_ns += S // 5  # room again; the shared bucket has only 2 of its 10 back
    assert limiter.take("late", cost=0).remaining == 2
    assert not limiter.allow("late", cost=3)
    assert limiter.allow("late", cost=2)


@pytest.mark.parametrize(("when_full", "answer"), [("deny", False), ("allow", True)])
def test_when_full_may_also_deny_or_allow(when_full, answer):
    limiter = TokenBucket("1/h", max_keys=10, clock=Clock(), when_full=when_full)
    assert all(limiter.allow(f"live{i}") for i in range(10))
    assert [limiter.allow("new") for _ in range(3)] == [answer] * 3
    assert not limiter.allow("live3")


def test_what_has_refilled_makes_room():
    clock = Clock()
    limiter = TokenBucket("1/s", burst=1, max_keys=1000, clock=clock)
    for _ in range(20):
        assert all(limiter.allow(f"k{clock.now_ns}-{i}") for i in range(900))
        clock.now_ns += S
    assert len(limiter) <= 1000


def test_junk_keys_do_not_buy_a_live_key_anything():
    """throttled-py's memory store is an LRU of 1,024 keys: three thousand junk keys admit 20 of 5."""
    clock = Clock()
    limiter = TokenBucket("5/m", max_keys=1024, clock=clock)
    admitted = 0
    for round_number in range(4):
        admitted += sum(limiter.allow("victim") for _ in range(5))
        limiter.allow_many([f"junk{round_number}-{i}" for i in range(1024)])
    assert admitted == 5


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_millions_of_attacker_keys_stay_within_the_bound():
    def resident_bytes() -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()

    gc.collect()
    before = resident_bytes()
    limiter = TokenBucket("1/h", burst=1, max_keys=100_000)
    assert limiter.allow("victim")
    for start in range(0, 1_000_000, 10_000):
        limiter.allow_many([b"%d" % i for i in range(start, start + 10_000)])
    grown = resident_bytes() - before
    assert limiter.size_bytes <= 100_000 * 64
    assert grown < limiter.size_bytes + 8_000_000
    assert not limiter.allow("victim")
