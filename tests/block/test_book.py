"""The book: until when, how detectors' answers escalate, whose word stands, and that copies may come in any order."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shield import Request
from shield.block import Block, BlockBook
from shield.block.block import LIFTED, subject_of
from shield.block.said import decoded, encoded
from shield.policy.abuse import Blocks

NOW = 1_700_000_000_000_000
MINUTE = 60_000_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
IP = ("ip", "203.0.113.7")


def operator(book: BlockBook, kind: str, value: str, until_us: int | None = None, now_us: int = NOW) -> Block:
    block = book.said_by_operator(subject_of(kind, value, book.ipv6_prefix), until_us, now_us, by="operator", why="")
    assert book.learn(block, now_us)
    return block


def lift(book: BlockBook, subject: tuple[str, str], now_us: int) -> None:
    book.learn(book.said_by_operator(subject, None, now_us, by="operator", why="", reason=LIFTED), now_us)


def detector(book: BlockBook, now_us: int, subject: tuple[str, str] = IP, reason: str = "blocked") -> Block | None:
    block = book.escalated(subject, now_us, by="detector:probing", why="11 against 10", reason=reason, factor=0.5)
    if block is not None:
        book.learn(block, now_us)
    return block


def test_a_block_ends_exactly() -> None:
    book = BlockBook()
    operator(book, *IP, NOW + 5)
    assert book.of_address("203.0.113.7", NOW + 4) is not None
    assert book.of_address("203.0.113.7", NOW + 5) is None
    assert book.of_address("203.0.113.8", NOW) is None
    assert book.is_empty


def test_kinds() -> None:
    book = BlockBook()
    operator(book, "network", "192.0.2.77/25")
    operator(book, "network", "2001:db8:f::/48")
    operator(book, "ip", "2001:db8::1")
    operator(book, "user", "mallory")
    for ip, blocked in (
        ("192.0.2.1", True),
        ("::ffff:192.0.2.1", True),
        ("192.0.2.129", False),
        ("2001:db8::ffff", True),  # one customer, one subject
        ("2001:db8:0:1::1", False),
        ("2001:db8:f:1::1", True),
        ("no address", False),
        (None, False),
    ):
        assert (book.of_address(ip, NOW) is not None) == blocked, ip
    assert book.of_subject(Request(user="mallory"), NOW) is not None
    assert book.of_subject(Request(user="ada", tenant="mallory"), NOW) is None
    for subject in [block.subject for block in book.all(NOW)]:
        lift(book, subject, NOW + 1)
    assert book.is_empty
    assert book.all(NOW + 1) == []


def test_the_smallest_network_is_the_one_that_is_told() -> None:
    book = BlockBook()
    for network in ("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24"):
        operator(book, "network", network)
    found = book.of_address("10.1.2.3", NOW)
    assert found is not None
    assert found.value == "10.1.2.0/24"


def test_detectors_escalate() -> None:
    book = BlockBook()
    lasting = []
    now = NOW
    for _ in range(5):
        block = detector(book, now)
        assert block is not None
        assert block.until_us is not None
        lasting.append(block.until_us - now)
        now = block.until_us + MINUTE
        assert book.of_address(IP[1], now) is None
    assert lasting == [MINUTE, 10 * MINUTE, HOUR, DAY, DAY]


def test_time_forgives_step_by_step() -> None:
    book = BlockBook()
    now = NOW
    for _ in range(3):
        block = detector(book, now)
        assert block is not None
        assert block.until_us is not None
        now = block.until_us + MINUTE
    assert block.level == 2
    for days, level in ((1, 2), (2, 1), (3, 0), (4, 0)):
        later = BlockBook()
        later.take_over(book, now)
        again = detector(later, now - MINUTE + days * DAY)
        assert again is not None
        assert again.level == level, days
    assert book.everything() == [block]
    book.sweep(now + 4 * DAY)
    assert book.everything() == [], "what makes no difference any more is forgotten"


def test_what_several_see_at_once_is_one_block() -> None:
    book = BlockBook()
    first = detector(book, NOW)
    assert first is not None
    assert detector(book, NOW + MINUTE // 60) is None
    later = detector(book, NOW + MINUTE // 2)
    assert later is not None
    assert (later.level, later.until_us) == (1, NOW + MINUTE // 2 + 10 * MINUTE)


def test_an_operator_has_the_last_word() -> None:
    book = BlockBook()
    operator(book, *IP)
    assert detector(book, NOW) is None
    lift(book, IP, NOW)
    assert book.of_address(IP[1], NOW) is None
    block = detector(book, NOW + 1)
    assert block is not None
    detector(book, NOW + MINUTE)
    operator(book, *IP, NOW + 2 * MINUTE, NOW + MINUTE)
    lift(book, IP, NOW + 61_000_000)
    again = detector(book, NOW + 62_000_000)
    assert again is not None
    assert again.level == 0, "lifted is forgiven"


def test_when_an_operators_block_ends_the_detectors_goes_on() -> None:
    book = BlockBook()
    detector(book, NOW)
    operator(book, *IP, NOW + 5_000_000, NOW + 1)
    found = book.of_address(IP[1], NOW + 2)
    assert found is not None
    assert found.by == "operator"
    found = book.of_address(IP[1], NOW + 5_000_000)
    assert found is not None
    assert found.by == "detector:probing"


def test_throttles_stand_beside_blocks_and_a_lift_ends_both() -> None:
    book = BlockBook()
    assert detector(book, NOW, reason="throttle") is not None
    assert detector(book, NOW) is not None
    assert len(book) == 2
    throttle = book.throttle_of(Request(ip=IP[1]), NOW)
    assert throttle is not None
    assert throttle.factor == 0.5
    assert book.of_address(IP[1], NOW) is not None
    lift(book, IP, NOW + 1)
    assert book.throttle_of(Request(ip=IP[1]), NOW + 1) is None
    assert book.is_empty


def test_past_the_bound_the_block_that_ends_first_makes_room_and_never_an_operators() -> None:
    book = BlockBook(Blocks(max_blocks=2))
    operator(book, "user", "first", NOW + HOUR)
    for name, at in (("second", 2), ("third", 1), ("fourth", 3)):
        detector(book, NOW + at, ("user", name))
    assert [block.value for block in book.all(NOW)] == ["first", "fourth", "second"]
    assert book.pushed_out == 1
    operator(book, "user", "fifth")
    assert book.is_full


def test_memory_is_bounded_by_places_whatever_comes() -> None:
    book = BlockBook(Blocks(max_blocks=50))
    for i in range(5_000):
        detector(book, NOW + i * 3_000_000, ("user", f"u{i % 120}"))
    assert len(list(book.everything())) == 50
    assert len(book._ending) <= 4 * 50 + 1_024 + 2


@pytest.mark.parametrize(
    ("kind", "value"),
    [("ip", "x"), ("ip", "10.0.0.0/8"), ("network", "a/b"), ("who", "x"), ("user", ""), ("user", "\ud800")],
)
def test_wrong_subjects_are_said(kind: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{kind}|kind"):
        subject_of(kind, value)


# ---- copies ----------------------------------------------------------------------------------------------------


def history() -> list[Block]:
    """What two nodes with clocks of their own said of one subject."""
    here, there = BlockBook(), BlockBook()
    said = [detector(here, NOW), detector(there, NOW + 500)]
    said.append(here.said_by_operator(IP, NOW + HOUR, NOW + 900, by="operator ann", why=""))
    here.learn(said[-1], NOW)  # type: ignore[arg-type]
    said.append(here.said_by_operator(IP, None, NOW + 950, by="operator ann", why="", reason=LIFTED))
    said.append(detector(there, NOW + 30_000_000))
    said.append(detector(there, NOW + 30_000_000, reason="throttle"))
    return [one for one in said if one is not None]


def test_copies_may_come_in_any_order_and_more_than_once() -> None:
    outcomes = set()
    for order in permutations(history()):
        book = BlockBook()
        for block in (*order, *order[:2]):
            book.learn(block, NOW + 31_000_000)
        outcomes.add(tuple(sorted(encoded(block) for block in book.all(NOW + 31_000_000))))
    assert len(outcomes) == 1
    assert len(next(iter(outcomes))) == 2


texts = st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable())
blocks = st.builds(
    Block,
    kind=st.just("user"),
    value=texts,
    stamp_us=st.integers(0, 2**61),
    reason=st.sampled_from(["blocked", "challenge", "throttle", "lifted"]),
    by=texts,
    since_us=st.integers(0, 2**61),
    until_us=st.none() | st.integers(0, 2**61),
    why=texts,
    level=st.integers(0, 15),
)


@given(blocks)
def test_what_is_written_is_read(block: Block) -> None:
    assert decoded(encoded(block)) == block


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"null",
        b'{"kind":"ip","value":"x","stamp_us":1,"reason":"blocked","by":"a","since_us":1}',
        b'{"kind":"ip","value":"1.2.3.4","stamp_us":-1,"reason":"blocked","by":"a","since_us":1}',
        b'{"kind":"ip","value":"1.2.3.4","stamp_us":1,"reason":"gone","by":"a","since_us":1}',
        b'{"kind":"ip","value":"1.2.3.4","stamp_us":1,"reason":"blocked","by":"a","since_us":1,"until_us":1e99}',
        b"\xff\xfe",
        b"[" * 5_000,
    ],
)
def test_what_is_no_block_is_said(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"no block|ip:"):
        decoded(line)
