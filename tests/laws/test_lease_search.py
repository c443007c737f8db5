"""Every history of a small escrow, one step at a time: two nodes, a bucket of two units, messages that are late or
lost, nodes that die. In none is law 1 broken; with any of the rules broken, in some it is.

The rules of the store are those of tests/oracle_escrow.py, which tests/store/test_lease_scripts.py holds against
lease.lua; the rules of a node are those of shield/store/leases.py, with clocks that agree.

Law 1 in all intervals is the law of one bucket that is charged when something is admitted, whoever admitted it:
`law`. A state says nothing of absolute time: instants are counted from now. States that differ in names alone are
one.

The suite looks through the smallest world that has everything in it; `python -m tests.laws.test_lease_search` through
larger ones as well, for a minute or so.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.oracle_escrow import Bucket, Numbers, Out, Rules, Told

NODES = 2


class World(NamedTuple):
    """How large a search is, in units and microseconds."""

    numbers: Numbers = Numbers(burst=2, c=1, p=1)
    want: int = 1
    ttl: int = 1
    ahead: int = 1
    held: int = 1
    """Leases that a node holds at once."""


WORLDS = [World(), World(ttl=2), World(Numbers(2, 1, 2), ttl=2, ahead=2)]


class Held(NamedTuple):
    """A lease, as its node knows it."""

    name: int
    left: int
    spent: int
    start: int
    stop: int
    until: int


class Answer(NamedTuple):
    """The store's word, with instants as of when it was made."""

    units: int
    start: int
    until: int
    known: tuple[bool, ...]


class Message(NamedTuple):
    """A report, a request for a lease, or both, and the reply once there is one."""

    awaited: bool
    age: int
    told: tuple[Told, ...]
    name: int  # of the lease that is asked for; -1: none
    answer: Answer | tuple[()] = ()
    answered: int = 0  # how long ago


class Node(NamedTuple):
    held: tuple[Held, ...] = ()
    message: Message | tuple[()] = ()


class State(NamedTuple):
    bucket: Bucket = Bucket()
    nodes: tuple[Node, ...] = (Node(),) * NODES
    law: int = 0


class Holder:
    """The rules of a node."""

    def spendable(self, held: Held) -> bool:
        return held.start <= 0 < held.stop

    def granted(self, name: int, answer: Answer, asked_ago: int, answered_ago: int) -> Held:
        """What a reply brings, now. The store answered no earlier than it was asked, and no later than now."""
        return Held(name, answer.units, 0, answer.start, answer.until - asked_ago, answer.until - answered_ago)

    def spends_what_is_late(self) -> bool:
        return False

    def spends_what_it_gave_back(self) -> bool:
        return False


class Broken(AssertionError):
    """Law 1 does not hold."""


class Search:
    """The states of a world that can be reached."""

    def __init__(self, world: World, rules: Rules, holder: Holder) -> None:
        self.world, self.rules, self.holder = world, rules, holder
        self.numbers = world.numbers

    def run(self, at_most: int = 10**6) -> int:
        """How many there are, or that it gave up. Broken when law 1 does not hold in one."""
        seen = {State()}
        edge = [State()]
        while edge and len(seen) < at_most:
            following = []
            for state in edge:
                for after in self.steps(state):
                    after = renamed(after)
                    if after not in seen:
                        seen.add(after)
                        following.append(after)
            edge = following
        return len(seen)

    def steps(self, state: State) -> Iterator[State]:
        yield self.tick(state)
        bucket, nodes, _ = state
        if self.rules.fits(bucket, self.numbers, 1):
            charged = bucket._replace(level=bucket.level + self.numbers.p)
            yield State(charged, nodes, self.admitted(state))
        for i, node in enumerate(nodes):
            for law, after, to in self.moves(state, node):
                yield State(to, (*nodes[:i], after, *nodes[i + 1 :]), law)

    def admitted(self, state: State) -> int:
        law = state.law + self.numbers.p
        if law > self.numbers.burst * self.numbers.p:
            raise Broken(state)
        return law

    def moves(self, state: State, node: Node) -> Iterator[tuple[int, Node, Bucket]]:
        bucket, _, law = state
        held, message = node
        for n, one in enumerate(held):
            if one.left and self.holder.spendable(one):
                spent = one._replace(left=one.left - 1, spent=one.spent + 1)
                yield self.admitted(state), Node((*held[:n], spent, *held[n + 1 :]), message), bucket
        if not message:
            if held:
                yield law, Node(), bucket  # it dies, and begins anew
            yield from self.asks(state, node)
            return
        if message.awaited:
            gone = message._replace(awaited=False)
            yield law, self.node(held, gone), bucket  # it has waited for long enough
            yield law, self.node((), gone), bucket  # it dies
        if not message.answer:
            to, answer = self.answered(bucket, message)
            yield law, self.node(held, message._replace(answer=answer)), to
            if not message.awaited:
                yield law, Node(held), bucket  # it is lost
        elif message.awaited or self.holder.spends_what_is_late():
            known = dict(zip((told.name for told in message.told), message.answer.known, strict=True))
            kept = tuple(one for one in held if known.get(one.name, True))
            if message.answer.units and len(kept) < self.world.held:
                kept += (self.holder.granted(message.name, message.answer, message.age, message.answered),)
            yield law, Node(kept), bucket

    def node(self, held: tuple[Held, ...], message: Message) -> Node:
        """A reply that is not heard changes nothing."""
        heard = not message.answer or message.awaited or self.holder.spends_what_is_late()
        return Node(held, message if heard else ())

    def asks(self, state: State, node: Node) -> Iterator[tuple[int, Node, Bucket]]:
        """It reports what it spent, keeps the rest or gives it back, and takes another lease or does not."""
        for keeps, wants in ((True, True), (False, False)):
            told: list[Told] = []
            held: list[Held] = []
            for one in node.held:
                kept = keeps and one.left > 0 and one.stop > 0
                if one.spent or not kept:
                    told.append(Told(one.name, one.spent, kept, one.until))
                if kept or self.holder.spends_what_it_gave_back():
                    held.append(one)
            wants = wants and len(held) < self.world.held
            if told or wants:
                name = unused(state) if wants else -1
                yield state.law, Node(tuple(held), Message(True, 0, tuple(told), name)), state.bucket

    def answered(self, bucket: Bucket, message: Message) -> tuple[Bucket, Answer]:
        world = self.world
        bucket, known = self.rules.tell(bucket, self.numbers, message.told, 0)
        if message.name < 0:
            return bucket, Answer(0, 0, 0, known)
        units, start = self.rules.grant(bucket, self.numbers, world.want, world.want, world.ahead, 0)
        if units == 0:
            return bucket, Answer(0, 0, 0, known)
        lease = Out(message.name, units, 0, start + world.ttl)
        return bucket._replace(leases=(*bucket.leases, lease)), Answer(units, start, start + world.ttl, known)

    def tick(self, state: State) -> State:
        """A microsecond passes."""
        level, _, leases = self.rules.touch(state.bucket._replace(at=0), self.numbers, 1)
        leases = tuple(lease._replace(until=lease.until - 1) for lease in leases)
        nodes = tuple(Node(tuple(map(older, node.held)), self.later(node.message)) for node in state.nodes)
        return State(Bucket(level, 0, leases), nodes, max(0, state.law - self.numbers.c))

    def later(self, message: Message | tuple[()]) -> Message | tuple[()]:
        if not message:
            return ()
        longest = self.world.ttl + self.world.ahead  # by then nothing it brings is worth anything
        told = tuple(told._replace(until=max(0, told.until - 1)) for told in message.told)
        answered = min(message.answered + 1, longest) if message.answer else 0
        return message._replace(age=min(message.age + 1, longest), told=told, answered=answered)


def older(held: Held) -> Held:
    return held._replace(start=max(0, held.start - 1), stop=max(0, held.stop - 1), until=max(0, held.until - 1))


def unused(state: State) -> int:
    """A name that nobody knows any more."""
    names = {lease.name for lease in state.bucket.leases}
    for held, message in state.nodes:
        names |= {one.name for one in held}
        if message:
            names |= {message.name, *(told.name for told in message.told)}
    return next(name for name in itertools.count() if name not in names)


def renamed(state: State) -> State:
    """The same state with its nodes and names in a fixed order, without what means nothing any more."""
    names: dict[int, int] = {-1: -1}

    def name(old: int) -> int:
        return names.setdefault(old, len(names) - 1)

    def nameless(node: Node) -> tuple[object, ...]:
        held, message = node
        shown = message and (*message._replace(told=(), name=message.name >= 0), [told[1:] for told in message.told])
        return [one[1:] for one in held], shown

    out = {lease.name for lease in state.bucket.leases}
    nodes = []
    for held, message in sorted(state.nodes, key=lambda node: repr(nameless(node))):
        held = tuple(one._replace(name=name(one.name)) for one in held)
        if message:
            told = message.told
            if not message.answer:  # what the store neither knows nor would charge
                told = tuple(one for one in told if one.name in out or (one.until and one.spent))
            told = tuple(one._replace(name=name(one.name)) for one in told)
            age = message.age if message.awaited else 0
            message = message._replace(told=told, name=name(message.name), age=age)
        idle = message and not message.awaited and not message.told and message.name < 0
        nodes.append(Node(held, () if idle else message))
    leases = sorted(state.bucket.leases, key=lambda lease: (names.get(lease.name, len(names)), lease[1:]))
    leases = [lease._replace(name=name(lease.name)) for lease in leases]
    return State(state.bucket._replace(leases=tuple(leases)), tuple(nodes), state.law)


def test_law_1_holds_in_every_history() -> None:
    assert Search(WORLDS[0], Rules(), Holder()).run() > 10_000


class OutIsFree(Rules):
    def counted(self, bucket: Bucket) -> int:
        return 0


class RunsOutForNothing(Rules):
    def run_out(self, lease: Out) -> int:
        return 0


class StartsAtOnce(Rules):
    def start(self, bucket: Bucket, numbers: Numbers, units: int, wait: int) -> int:
        return 0


class OutExceedsTheBurst(Rules):
    def grant(self, bucket: Bucket, numbers: Numbers, want: int, least: int, ahead: int, now: int) -> tuple[int, int]:
        free = numbers.burst - bucket.out - -(-bucket.level // numbers.p)
        return (want, 0 if free >= want else self.start(bucket, numbers, want, 0))


class ReportsAreForgotten(Rules):
    def tell(
        self, bucket: Bucket, numbers: Numbers, told: tuple[Told, ...], now: int
    ) -> tuple[Bucket, tuple[bool, ...]]:
        after, known = super().tell(bucket, numbers, told, now)
        return after._replace(level=bucket.level), known


class StopsWhenHeard(Holder):
    def granted(self, name: int, answer: Answer, asked_ago: int, answered_ago: int) -> Held:
        return super().granted(name, answer, 0, answered_ago)


class NeverStops(Holder):
    def spendable(self, held: Held) -> bool:
        return held.start <= 0


class DoesNotWait(Holder):
    def spendable(self, held: Held) -> bool:
        return held.stop > 0


class SpendsWhatIsLate(Holder):
    def spends_what_is_late(self) -> bool:
        return True

    def granted(self, name: int, answer: Answer, asked_ago: int, answered_ago: int) -> Held:
        return super().granted(name, answer, 0, answered_ago)


class SpendsWhatItGaveBack(Holder):
    def spends_what_it_gave_back(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("burst", "rules", "holder"),
    [
        *[(2, rules, Holder) for rules in (OutIsFree, RunsOutForNothing, StartsAtOnce, ReportsAreForgotten)],
        (1, OutExceedsTheBurst, Holder),
        *[(2, Rules, holder) for holder in (StopsWhenHeard, NeverStops, DoesNotWait, SpendsWhatIsLate)],
        (2, Rules, SpendsWhatItGaveBack),
    ],
)
def test_without_any_of_the_rules_it_does_not(burst: int, rules: type[Rules], holder: type[Holder]) -> None:
    with pytest.raises(Broken):
        Search(World(Numbers(burst, 1, 1), ttl=2), rules(), holder()).run()


if __name__ == "__main__":
    for size in WORLDS:
        started = time.perf_counter()
        print(size, Search(size, Rules(), Holder()).run(), f"states, {time.perf_counter() - started:.1f} s")
