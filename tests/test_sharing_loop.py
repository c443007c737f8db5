"""The loop between detectors and where processes meet: told once over all of them, and never not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from shield import Policy, Request, Shield
from shield.detect.detection import Detection
from shield.detect.exchange import Claim, Said, Swapped
from shield.errors import StoreError
from shield.sharing import CLAIM_TRIES, Sharing
from shield.testing import ManualClock

POLICY = """
version = 1
[[detector]]
name = "d"
on = {}
key = ["ip"]
measure = "count"
capacity = 5
leak = "1/10s"
quiet = "1m"
"""


class Square:
    """A meeting point in this process. `fails`: how many exchanges fail first; `loses`: answers that do not arrive."""

    def __init__(self) -> None:
        self.said: list[Said] = []
        self.owners: dict[bytes, bytes] = {}
        self.fails = 0
        self.loses = 0

    def end(self) -> Corner:
        return Corner(self)


class Corner:
    def __init__(self, square: Square) -> None:
        self.square = square
        self.read = 0

    async def swap(self, said: Said | None, claims: Sequence[Claim]) -> Swapped:
        square = self.square
        await asyncio.sleep(0)
        if square.fails:
            square.fails -= 1
            raise StoreError("away")
        if said is not None:
            square.said.append(said)
        won = [square.owners.setdefault(claim.mark, claim.owner) == claim.owner for claim in claims]
        if square.loses:
            square.loses -= 1
            raise StoreError("no answer in time")
        heard, self.read = square.said[self.read :], len(square.said)
        return Swapped(won, heard)


class Node:
    def __init__(self, square: Square, clock: ManualClock) -> None:
        self.shield = Shield(Policy.parse(POLICY), clock=clock)
        self.found: list[Detection] = []
        self.shield.abuse.listeners.append(self.found.append)
        self.sharing = Sharing(self.shield.abuse, square.end(), self.secret)

    async def secret(self) -> bytes:
        return b"s" * 32

    def ask(self, count: int = 1, ip: str = "203.0.113.9") -> None:
        for _ in range(count):
            self.shield.check_nowait(Request(ip=ip))


async def nodes(count: int) -> tuple[Square, ManualClock, list[Node]]:
    square, clock = Square(), ManualClock()
    made = [Node(square, clock) for _ in range(count)]
    for one in made:
        await one.sharing.swap()
    return square, clock, made


def found(made: list[Node]) -> list[str]:
    return [detection.subject for one in made for detection in one.found]


async def test_an_attack_over_three_nodes_is_told_by_one_of_them() -> None:
    _, clock, made = await nodes(3)
    for one in made:
        one.ask(2)
    assert found(made) == []
    clock.advance(s=1)
    for _ in range(3):
        for one in made:
            await one.sharing.swap()
    assert found(made) == ["203.0.113.9"]


async def test_what_each_finds_by_itself_is_told_once() -> None:
    """More than enough for every one of four, in the same second."""
    _, _, made = await nodes(4)
    for one in made:
        one.ask(20)
    assert found(made) == [], "it is told when it is settled by whom"
    for one in made:
        await one.sharing.swap()
    assert found(made) == ["203.0.113.9"]
    assert sum(one.sharing.stats()["told_elsewhere"] for one in made) == 3


async def test_a_claim_whose_answer_was_lost_is_still_ones_own() -> None:
    square, _, made = await nodes(2)
    made[0].ask(6)
    square.loses = 1
    await made[0].sharing.swap()
    assert found(made) == []
    await made[0].sharing.swap()
    assert found(made) == ["203.0.113.9"]
    assert made[0].sharing.stats()["told_unclaimed"] == 0


async def test_a_parcel_that_is_handed_over_again_counts_once() -> None:
    square, _, made = await nodes(2)
    made[0].ask(3)
    square.loses = 1
    await made[0].sharing.swap()
    await made[0].sharing.swap()
    assert [said.number for said in square.said] == [1, 1]
    made[1].ask(2)
    await made[1].sharing.swap()
    assert found(made) == [], "three and two: with three more it would be an attack"
    assert made[1].sharing.stats()["heard"] == 1


async def test_who_reaches_nobody_tells_by_himself() -> None:
    square, _, made = await nodes(1)
    made[0].ask(6)
    square.fails = CLAIM_TRIES
    for _ in range(CLAIM_TRIES):
        assert found(made) == []
        await made[0].sharing.swap()
    assert found(made) == ["203.0.113.9"]
    assert made[0].sharing.stats()["told_unclaimed"] == 1


async def test_what_was_counted_meanwhile_is_said_when_the_way_is_free_again() -> None:
    square, clock, made = await nodes(2)
    made[0].ask(3)
    square.fails = 3
    for _ in range(3):
        await made[0].sharing.swap()
        clock.advance(ms=100)
    made[0].ask(1)
    await made[0].sharing.swap()
    await made[0].sharing.swap()
    made[1].ask(2)
    await made[1].sharing.swap()
    await made[1].sharing.swap()  # the claim
    assert found(made) == ["203.0.113.9"]


async def test_the_loop_runs_by_itself_and_what_waits_at_its_end_is_told() -> None:
    square, _, made = await nodes(2)
    for one in made:
        await one.sharing.start()
    made[0].ask(6)
    for _ in range(200):
        if made[0].found:
            break
        await asyncio.sleep(0.01)
    assert found(made) == ["203.0.113.9"], "a claim does not wait for the second to pass"
    square.fails = 1_000
    made[1].ask(6, ip="198.51.100.1")
    for one in made:
        await one.sharing.stop()
    assert found(made) == ["203.0.113.9", "198.51.100.1"]
    made[1].ask(6, ip="198.51.100.2")
    assert found(made)[-1] == "198.51.100.2", "and from then on at once"


async def test_another_formats_parcel_is_counted_and_left_alone() -> None:
    square, _, made = await nodes(1)
    square.said.append(Said(b"stranger", 1, 0, b"\x94\x63\xc4\x00\x90\x90"))
    await made[0].sharing.swap()
    assert made[0].sharing.stats()["unreadable"] == 1


async def test_a_policy_without_detectors_says_nothing() -> None:
    square, _, made = await nodes(1)
    await made[0].shield.replace_policy(Policy.parse("version = 1"))
    square.fails = 1
    await made[0].sharing.swap()
    assert square.fails == 1
