"""Blocks: until when, how they escalate, who is never blocked, and that they outlive a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from shield import Policy, Request, Shield
from shield.block import BlockBook
from shield.block.book import subject_of
from shield.core.cidr import PrefixTable
from shield.errors import PolicyError
from shield.testing import ManualClock

NOW = 1_700_000_000_000_000
MINUTE = 60_000_000
HOUR = 60 * MINUTE
IP = ("ip", "203.0.113.7")


def test_a_block_ends_exactly() -> None:
    book = BlockBook()
    book.add(IP, NOW + 5, NOW, by="operator", why="")
    assert book.of_address("203.0.113.7", NOW + 4) is not None
    assert book.of_address("203.0.113.7", NOW + 5) is None
    assert book.of_address("203.0.113.8", NOW) is None
    assert book.sweep(NOW + 5) == 1
    assert book.is_empty


def test_kinds() -> None:
    book = BlockBook(lists=[PrefixTable(b"198.51.100.0/24")])
    book.add(subject_of("network", "192.0.2.77/25"), None, NOW, by="operator", why="")
    book.add(subject_of("ip", "2001:db8::1"), None, NOW, by="operator", why="")
    book.add(subject_of("user", "mallory"), None, NOW, by="operator", why="")
    for ip, blocked in (
        ("192.0.2.1", True),
        ("::ffff:192.0.2.1", True),
        ("192.0.2.129", False),
        ("198.51.100.9", True),
        ("2001:db8::ffff", True),  # one customer, one subject
        ("2001:db8:0:1::1", False),
        ("no address", False),
        (None, False),
    ):
        assert (book.of_address(ip, NOW) is not None) == blocked, ip
    assert book.of_subject(Request(user="mallory"), NOW) is not None
    assert book.of_subject(Request(user="ada", tenant="mallory"), NOW) is None


def test_detectors_escalate_and_time_forgives() -> None:
    book = BlockBook()
    lasting = []
    now = NOW
    for _ in range(5):
        block = book.escalate(IP, now, by="detector:probing", why="")
        assert block.until_us is not None
        lasting.append(block.until_us - now)
        now = block.until_us + MINUTE
        assert book.of_address(IP[1], now) is None
        book.sweep(now)
    assert lasting == [MINUTE, 10 * MINUTE, HOUR, 24 * HOUR, 24 * HOUR]
    now += 24 * HOUR
    again = book.escalate(IP, now, by="detector:probing", why="")
    assert again.until_us == now + MINUTE, "after a day without a block it begins again"


def test_an_operator_has_the_last_word() -> None:
    book = BlockBook()
    book.add(IP, None, NOW, by="operator", why="for good")
    assert book.escalate(IP, NOW, by="detector:probing", why="").why == "for good"
    assert book.lift(IP) is not None
    assert book.of_address(IP[1], NOW) is None
    assert book.lift(IP) is None


def test_past_the_bound_the_block_that_ends_first_makes_room_and_never_an_operators() -> None:
    book = BlockBook(max_blocks=3)
    book.add(("user", "first"), NOW + MINUTE, NOW, by="operator", why="")
    book.add(("user", "second"), NOW + 3 * MINUTE, NOW, by="detector:x", why="")
    book.add(("user", "third"), NOW + 2 * MINUTE, NOW, by="detector:x", why="")
    book.add(("user", "fourth"), NOW + HOUR, NOW, by="detector:x", why="")
    assert [block.subject[1] for block in book.all(NOW)] == ["first", "second", "fourth"]
    assert (len(book), book.pushed_out) == (3, 1)
    full = BlockBook(max_blocks=1)
    full.add(("user", "first"), None, NOW, by="operator", why="")
    with pytest.raises(ValueError, match="all of them an operator's"):
        full.add(("user", "second"), None, NOW, by="operator", why="")


@pytest.mark.parametrize(
    ("kind", "value"), [("ip", "x"), ("ip", "10.0.0.0/8"), ("network", "a/b"), ("who", "x"), ("user", "")]
)
def test_wrong_subjects_are_said(kind: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{kind}|kind"):
        subject_of(kind, value)


# ---- in a Shield -----------------------------------------------------------------------------------------------

POLICY = """
version = 1
[blocks]
allow = ["203.0.113.200/32"]
{}
[[limit]]
name = "address"
key = ["ip"]
rate = "1000/s"
[[limit]]
name = "fine"
key = ["ip"]
rate = "3/h"
count_denied = true
mode = "enforce"
match = {{ path = "/fined" }}
[[detector]]
use = "user-agent-switching"
action = "{}"
mode = "{}"
[guard.size]
max_body_bytes = 10
"""


def shield_of(
    blocks: str = "", action: str = "block", mode: str = "enforce", clock: ManualClock | None = None
) -> Shield:
    return Shield(Policy.parse(POLICY.format(blocks, action, mode)), clock=clock or ManualClock())


def attack(shield: Shield, ip: str = "203.0.113.7") -> list[str]:
    return [shield.check_nowait(Request(ip=ip, user_agent=f"a{i}")).reason for i in range(12)]


def test_a_detector_blocks_and_the_block_ends() -> None:
    clock = ManualClock()
    shield = shield_of(clock=clock)
    assert attack(shield) == ["ok"] * 11 + ["blocked"]
    decision = shield.check_nowait(Request(ip="203.0.113.7"))
    assert (decision.allowed, decision.status, decision.reason) == (False, 403, "blocked")
    assert shield.check_nowait(Request(ip="203.0.113.8")).allowed
    clock.advance(s=59)
    assert not shield.check_nowait(Request(ip="203.0.113.7")).allowed
    clock.advance(s=1)
    assert shield.check_nowait(Request(ip="203.0.113.7")).allowed


def test_a_challenge_and_a_shadow() -> None:
    assert attack(shield_of(action="challenge"))[-1] == "challenge"
    assert attack(shield_of(mode="shadow")) == ["ok"] * 12
    assert attack(shield_of(action="observe")) == ["ok"] * 12


def test_allow_lists_win_over_blocks_and_detectors_and_over_nothing_else() -> None:
    shield = shield_of()
    assert attack(shield, "203.0.113.200") == ["ok"] * 12
    shield.abuse.block(("ip", "203.0.113.200"), None, by="operator", why="")
    assert shield.check_nowait(Request(ip="203.0.113.200")).allowed
    assert shield.check_nowait(Request(ip="203.0.113.200", bytes=11)).reason == "too_large"


def test_the_order_of_refusals_and_that_a_block_costs_nothing() -> None:
    shield = shield_of()
    shield.abuse.block(("ip", "203.0.113.9"), None, by="operator", why="")
    assert shield.check_nowait(Request(ip="203.0.113.9", cost=-1)).reason == "invalid"
    assert shield.check_nowait(Request(ip="203.0.113.9", bytes=11)).reason == "blocked"
    shield.abuse.unblock(("ip", "203.0.113.9"))
    statuses = {one.name: one.remaining for one in shield.check_nowait(Request(ip="203.0.113.9")).limits}
    assert statuses == {"address": 999}


def test_limits_that_count_refusals_count_blocked_requests() -> None:
    shield = shield_of()
    shield.abuse.block(("ip", "203.0.113.9"), None, by="operator", why="")
    for _ in range(5):
        assert shield.check_nowait(Request(ip="203.0.113.9", path="/fined")).reason == "blocked"
    shield.abuse.unblock(("ip", "203.0.113.9"))
    assert shield.check_nowait(Request(ip="203.0.113.9", path="/fined")).violated == ["fine"]


async def test_blocks_survive_a_reload_and_a_restart(tmp_path: Path) -> None:
    clock = ManualClock()
    blocks = f'file = "{tmp_path / "blocks.jsonl"}"'
    shield = shield_of(blocks, clock=clock)
    attack(shield)
    shield.abuse.block(("user", "mallory"), None, by="operator", why="fraud")
    shield.abuse.block(("user", "ada"), None, by="operator", why="mistake")
    shield.abuse.unblock(("user", "ada"))
    await shield.replace_policy(Policy.parse(POLICY.format(blocks, "observe", "enforce")))
    assert not shield.check_nowait(Request(ip="203.0.113.7")).allowed
    await shield.close()
    written = (tmp_path / "blocks.jsonl").read_bytes()
    (tmp_path / "blocks.jsonl").write_bytes(written + b'{"kind": "ip", "value": "192.0.2')  # what a crash leaves
    again = shield_of(blocks, clock=clock)
    assert not again.check_nowait(Request(ip="203.0.113.7")).allowed
    assert not again.check_nowait(Request(user="mallory")).allowed
    assert again.check_nowait(Request(user="ada")).allowed
    assert [block.why for block in again.abuse.book.all(again.abuse.now_us())][1] == "fraud"
    clock.advance(s=61)
    assert shield_of(blocks, clock=clock).check_nowait(Request(ip="203.0.113.7")).allowed


def test_lists_are_read_and_wrong_ones_refused_whole(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# bad ones\n198.51.100.0/24\n")
    shield = shield_of(f'lists = ["{tmp_path / "list.txt"}"]')
    assert shield.check_nowait(Request(ip="198.51.100.1")).reason == "blocked"
    (tmp_path / "list.txt").write_text("198.51.100.0/24\nexample.com\n")
    for path, part in ((tmp_path / "list.txt", "line 2: found 'example.com'"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(PolicyError) as caught:
            shield_of(f'lists = ["{path}"]')
        assert caught.value.issues[0].path == "blocks.lists[0]"
        assert part in caught.value.issues[0].message


async def test_a_policy_whose_list_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    shield = shield_of()
    shield.abuse.block(("user", "mallory"), None, by="operator", why="")
    other = POLICY.format(f'lists = ["{tmp_path / "none"}"]', "block", "enforce").replace("1000/s", "1/h")
    before = shield.policy
    with pytest.raises(PolicyError):
        await shield.replace_policy(Policy.parse(other))
    assert shield.policy is before
    assert [shield.check_nowait(Request(ip="192.0.2.1")).allowed for _ in range(3)] == [True] * 3
    assert shield.check_nowait(Request(user="mallory")).reason == "blocked"
