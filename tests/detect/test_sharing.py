"""Several processes that tell each other what they saw: as if one had seen it all, a little later, and never more."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shield import Policy, Request
from shield.detect.detection import Detection
from shield.detect.parcel import FORMAT, MAX_COUNT_BYTES, MAX_PARCEL_BYTES, pack, unpack
from shield.detect.travel import Place
from shield.detect.watch import Watch
from tests.detect.stories import START_US

SECRET = b"k" * 16
SECOND_US = 1_000_000


def watch(text: str, **more: Any) -> Watch:
    return Watch(Policy.parse(f"version = 1\n{text}").detectors, secret=SECRET, **more)


def detector(measure: str, more: str, key: str = "ip", on: str = "{}") -> str:
    return f'[[detector]]\nname = "d"\non = {on}\nkey = ["{key}"]\nmeasure = "{measure}"\n{more}\n'


class Crowd:
    """Processes that exchange parcels once a second, and of one detection tell once: as a claim decides it."""

    def __init__(self, text: str, count: int, **more: Any) -> None:
        self.watches = [watch(text, **more) for _ in range(count)]
        for one in self.watches:
            one.share()
        self.found: list[Detection] = []
        self.told: dict[bytes, int] = {}
        self.said_us = START_US

    def advance(self, now_us: int) -> None:
        while self.said_us + SECOND_US <= now_us:
            self.said_us += SECOND_US
            self.exchange(self.said_us)

    def exchange(self, now_us: int, lag_us: int = 0) -> None:
        parcels = [one.say(now_us) for one in self.watches]
        for at, one in enumerate(self.watches):
            for other, parcel in enumerate(parcels):
                if other != at and parcel:
                    found = one.hear(parcel, now_us + lag_us, lag_us)
                    self.claim([detection for detection, _ in found], now_us + lag_us)

    def claim(self, found: Any, now_us: int) -> None:
        for one in found:
            if self.told.get(one.mark, 0) <= now_us:
                self.told[one.mark] = now_us + one.detector.quiet_us
                self.found.append(one)

    def request(self, at: int, now_us: int, **facts: Any) -> None:
        self.claim(self.watches[at].request(Request(**facts), now_us), now_us)

    def outcome(self, at: int, now_us: int, status: int, event: str | None = None, **facts: Any) -> None:
        self.claim(self.watches[at].outcome(Request(**facts), status, event, now_us), now_us)


COUNT = detector("count", 'capacity = 5\nleak = "1/10s"\nquiet = "1m"')


def test_an_attack_spread_over_processes_is_found_as_in_one() -> None:
    crowd = Crowd(COUNT, 6)
    for at in range(6):
        crowd.request(at, START_US, ip="203.0.113.9")
    assert crowd.found == []
    crowd.exchange(START_US + SECOND_US)
    assert [(one.name, one.subject, round(one.value, 1)) for one in crowd.found] == [("d", "203.0.113.9", 5.9)]
    assert crowd.found[0].events == 6


def test_one_event_fewer_is_no_attack() -> None:
    crowd = Crowd(COUNT, 6)
    for at in range(5):
        crowd.request(at, START_US, ip="203.0.113.9")
    for i in range(1, 5):
        crowd.exchange(START_US + i * SECOND_US)
    assert crowd.found == []


def test_a_detection_is_heard_of_everywhere() -> None:
    """Who did not detect it starts over too, and is quiet."""
    crowd = Crowd(COUNT, 2)
    for _ in range(4):
        crowd.request(1, START_US, ip="203.0.113.9")
    for _ in range(6):
        crowd.request(0, START_US + 1, ip="203.0.113.9")
    assert len(crowd.found) == 1
    crowd.exchange(START_US + SECOND_US)
    for i in range(5):
        crowd.request(1, START_US + SECOND_US + i, ip="203.0.113.9")
    crowd.exchange(START_US + 2 * SECOND_US)
    assert len(crowd.found) == 1, "nine events altogether, and four of them before the detection"


def test_what_drains_between_two_exchanges_is_not_lost() -> None:
    """Four processes with one page a second each against a leak of two: in each alone the bucket runs dry."""
    crowd = Crowd(detector("distinct", 'of = "path"\ncapacity = 20\nleak = "2/s"'), 4)
    for i in range(400):
        now_us = START_US + i * 250_000
        crowd.advance(now_us)
        crowd.request(i % 4, now_us, ip="203.0.113.9", path=f"/{i}")
        if crowd.found:
            break
    assert crowd.found
    assert 39 <= i <= 39 + 3 * 4, "one process: two units a second from one on, so the fortieth page; within the lag"


def test_values_that_several_saw_count_once() -> None:
    crowd = Crowd(detector("distinct", 'of = "user"\ncapacity = 5\nleak = "1/h"'), 4)
    for at in range(4):
        for i in range(5):
            crowd.request(at, START_US, ip="203.0.113.9", user=f"u{i}")
    crowd.exchange(START_US + SECOND_US)
    assert crowd.found == []
    crowd.request(2, START_US + SECOND_US, ip="203.0.113.9", user="u5")
    assert len(crowd.found) == 1


@pytest.mark.parametrize("count", [200, 600])
def test_many_values_are_estimated_as_in_one(count: int) -> None:
    """Past 64 they stand in registers, and those are merged."""
    needed = []
    for seed in range(6):
        dice = random.Random(seed)
        crowd = Crowd(detector("distinct", f'of = "user"\ncapacity = {count}\nleak = "1/30d"'), 3)
        for i in range(3 * count):
            now_us = START_US + i * 10_000
            crowd.advance(now_us)
            crowd.request(dice.randrange(3), now_us, ip="203.0.113.9", user=f"{seed}-{i}")
            if crowd.found:
                break
        needed.append(i)
    assert all(0.65 * count <= one <= 1.45 * count + 200 for one in needed), needed


def test_shares_of_failures_and_sums_and_rates_add_up() -> None:
    share = 'capacity = 5\nleak = "1/10s"\nof = "user"\nshare = 0.8\nminimum = 6\nwindow = "10m"\n'
    share += "failing = {status = [401]}"
    crowd = Crowd(detector("distinct", share, on="{status = [200, 401]}"), 3)
    for i in range(9):
        crowd.outcome(i % 3, START_US, 401 if i != 4 else 200, ip="203.0.113.9", user=f"u{i}")
    crowd.exchange(START_US + SECOND_US)
    assert [round(one.share or 0, 2) for one in crowd.found] == [0.83]
    crowd = Crowd(detector("distinct", share, on="{status = [200, 401]}"), 3)
    for i in range(9):
        crowd.outcome(i % 3, START_US, 401 if i % 2 else 200, ip="203.0.113.9", user=f"u{i}")
    crowd.exchange(START_US + SECOND_US)
    assert crowd.found == []
    crowd = Crowd(detector("sum", 'of = "cost"\ncapacity = 1000\nleak = "1/s"', key="user"), 3)
    for at in range(3):
        crowd.request(at, START_US, user="ada", cost=340)
    crowd.exchange(START_US + SECOND_US)
    assert [round(one.value) for one in crowd.found] == [1_019]
    rate = 'window = "10s"\ncapacity = 20\nminimum = 5\n'
    crowd = Crowd(detector("change", rate, key="tenant"), 3)
    start_us = START_US // 10_000_000 * 10_000_000
    crowd.said_us = start_us
    for bin_ in range(12):
        for i in range(30 if bin_ == 11 else 4):
            now_us = start_us + bin_ * 10_000_000 + i * 100_000
            crowd.advance(now_us)
            crowd.request(i % 3, now_us, tenant="acme")
    crowd.advance(now_us + SECOND_US)
    assert [one.name for one in crowd.found] == ["d"], "ten of each of three"


def test_a_journey_between_processes() -> None:
    places = {"203.0.113.1": Place(59.91, 10.75, 20, "NO", "1"), "198.51.100.1": Place(-33.87, 151.21, 20, "AU", "2")}
    crowd = Crowd('[[detector]]\nuse = "impossible-travel"\n', 3, locate=places.get)
    crowd.outcome(0, START_US, 200, "login_ok", ip="203.0.113.1", user="ada")
    crowd.outcome(1, START_US + 500_000, 200, "login_ok", ip="198.51.100.1", user="ada")
    assert crowd.found == []
    crowd.exchange(START_US + SECOND_US)
    assert [(one.subject, len(one.places)) for one in crowd.found] == [("ada", 2)]
    crowd.exchange(START_US + 2 * SECOND_US)
    assert len(crowd.found) == 1


def test_what_covers_another_covers_it_everywhere() -> None:
    crowd = Crowd('[[detector]]\nuse = "sensitive-files"\n[[detector]]\nuse = "probing"\n', 2)
    for path in ("/.env", "/.git/HEAD", "/.htpasswd", "/.ssh/id_rsa", "/.aws/x"):
        crowd.outcome(0, START_US, 404, ip="203.0.113.9", path=path)
    crowd.exchange(START_US + SECOND_US)
    for i in range(20):
        crowd.outcome(1, START_US + SECOND_US + i, 404, ip="203.0.113.9", path=f"/p{i}")
    assert [one.name for one in crowd.found] == ["sensitive-files"]


# ---- never more than one process would have measured ------------------------------------------------------------

EVENTS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from([0, 50_000, 200_000, 250_000, 400_000, 1_000_000]),
        st.integers(0, 30),
        st.integers(1, 400),
    ),
    min_size=20,
    max_size=80,
)


@given(
    EVENTS,
    st.sampled_from(["count", "distinct", "sum"]),
    st.sampled_from(["1/10s", "1/s", "3/s"]),
    st.integers(0, 700_000),
)
def test_together_they_detect_nothing_that_one_would_not(
    events: list[tuple[int, int, int, int]], measure: str, leak: str, lag_us: int
) -> None:
    """The first detection of several processes is never before that of one that sees everything. Different values are
    forgotten when their bucket runs empty, which is at an instant of its own in each process: so theirs does not."""
    if measure == "distinct":
        leak = "1/h"
    of = {"count": "", "distinct": 'of = "user"\n', "sum": 'of = "cost"\n'}[measure]
    capacity = 600 if measure == "sum" else 3
    text = detector(measure, f'{of}capacity = {capacity}\nleak = "{leak}"\nquiet = "24h"')
    crowd, alone = Crowd(text, 4), watch(text)
    now_us, first_us = START_US, None
    for at, pause_us, user, cost in events:
        now_us += pause_us
        while crowd.said_us + SECOND_US <= now_us:
            crowd.said_us += SECOND_US
            crowd.exchange(crowd.said_us, min(lag_us, now_us - crowd.said_us))
        facts = {"ip": "203.0.113.9", "user": f"u{user}", "cost": cost}
        if alone.request(Request(**facts), now_us) and first_us is None:
            first_us = now_us
        crowd.request(at, now_us, **facts)
        if crowd.found:
            break
    else:
        crowd.exchange(now_us + SECOND_US)
    if crowd.found:
        assert first_us is not None, "what several measured exceeds what one would have"


def test_what_has_drained_before_it_is_heard_of_counts_no_more() -> None:
    """Four events a quarter of a second apart: in one process the bucket never holds two."""
    crowd = Crowd(detector("count", 'capacity = 2\nleak = "3/s"'), 4)
    for at in range(4):
        crowd.request(at, START_US + at * 250_000, ip="203.0.113.9")
    crowd.exchange(START_US + SECOND_US)
    assert crowd.found == []


@given(st.integers(2, 8), st.integers(7, 60), st.randoms(use_true_random=False))
def test_an_attack_that_one_finds_they_find_within_the_lag(count: int, extra: int, dice: random.Random) -> None:
    """Twice as many events as it takes, anyhow spread over processes and ten seconds."""
    crowd = Crowd(COUNT, count)
    times = sorted(dice.randrange(10 * SECOND_US) for _ in range(6 + extra))
    for at_us in times:
        crowd.advance(START_US + at_us)
        crowd.request(dice.randrange(count), START_US + at_us, ip="203.0.113.9")
    crowd.advance(START_US + times[-1] + 2 * SECOND_US)
    assert len(crowd.found) == 1


# ---- bounds and bad input ---------------------------------------------------------------------------------------


def test_a_flood_of_addresses_hides_no_attack_from_the_others() -> None:
    crowd = Crowd(COUNT, 2)
    for at in range(2):
        for _ in range(3):
            crowd.request(at, START_US, ip="203.0.113.9")
        for i in range(20_000):
            crowd.request(at, START_US + i, ip=f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}")
    parcels = [one.say(START_US + SECOND_US) for one in crowd.watches]
    assert all(len(parcel) <= MAX_PARCEL_BYTES for parcel in parcels)
    found = crowd.watches[0].hear(parcels[1], START_US + SECOND_US, 0)
    assert [(one.subject, request.ip) for one, request in found] == [("203.0.113.9", "203.0.113.9")]
    assert crowd.watches[0].unsaid > 0, "what there is no room for is counted"
    later = crowd.watches[0].say(START_US + 2 * SECOND_US)
    assert len(unpack(later).counts) > MAX_COUNT_BYTES // 2, "the rest waits for the next second"


def test_what_is_kept_of_requests_is_light() -> None:
    """A body of a megabyte is not kept until the next second, and who sent it is told all the same."""
    crowd = Crowd(detector("count", 'capacity = 5\nleak = "1/10s"', key='ip", "attributes.shop'), 2)
    for at in range(2):
        for _ in range(3):
            facts = {
                "body": "x" * 1_000_000,
                "headers": {"a": "b" * 9_999},
                "attributes": {"shop": 7, "long": "y" * 999},
            }
            crowd.request(at, START_US, ip="203.0.113.9", user="u" * 5_000, **facts)
    parcels = [one.say(START_US) for one in crowd.watches]
    ((found, request),) = crowd.watches[1].hear(parcels[0], START_US, 0)
    assert dict(found.key) == {"ip": "203.0.113.9", "attributes.shop": "7"}
    assert (request.body, request.headers, request.user) == (None, None, None)
    assert request.attributes == {"shop": 7}


def test_nothing_is_said_twice_or_said_on() -> None:
    crowd = Crowd(COUNT, 3)
    crowd.request(0, START_US, ip="203.0.113.9")
    crowd.exchange(START_US + SECOND_US)
    assert [one.say(START_US + 2 * SECOND_US) for one in crowd.watches] == [b"", b"", b""]


def test_what_is_no_parcel_is_an_error_that_changes_nothing_else() -> None:
    one = watch(COUNT)
    one.share()
    one.request(Request(ip="203.0.113.9"), START_US)
    parcel = one.say(START_US)
    for wrong in (
        *(b"", b"\x00", b"\xff" * 40, parcel[:-9], b"x" * (MAX_PARCEL_BYTES + 1)),
        pack(b"\x01" * 57, [], []),
        parcel[:1] + bytes([FORMAT + 1]) + parcel[2:],
    ):
        with pytest.raises(ValueError, match=r".+"):
            one.hear(wrong, START_US, 0)


@given(st.binary(max_size=300))
def test_no_bytes_of_another_process_are_a_fault(data: bytes) -> None:
    one = watch(COUNT + detector("distinct", 'of = "user"\ncapacity = 5\nleak = "1/s"').replace('"d"', '"e"'))
    core = one.core
    one.share()
    one.request(Request(ip="203.0.113.9", user="a"), START_US)
    good = unpack(one.say(START_US)).counts
    for counts in (data, good[:10] + data, good[:27] + data):
        with contextlib.suppress(ValueError):
            core.hear(counts, START_US, 0)


def test_a_detector_that_only_others_have_is_passed_over() -> None:
    other = watch(COUNT.replace('"d"', '"another"') + COUNT)
    here = watch(COUNT)
    other.share()
    here.share()
    for i in range(6):
        other.request(Request(ip=f"203.0.113.{i}"), START_US)
    here.hear(other.say(START_US + SECOND_US), START_US + SECOND_US, 0)
    assert here.stats()["d"]["keys"] == 6
