"""The scripts as they are, without the store around them: run against a server, held against the oracle."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import redis

from shield.policy.model import Limit, Numbers
from shield.store import Settlement, SettlementEntry
from shield.store.lua import CHECK, RELEASE, SCRIPTS, SETTLE
from shield.store.settling import pack_settle
from shield.store.steps import COUNT_DENIED, ENFORCED, ONCE, OUTCOME, PLACES, UNDO, Forms, Shape
from tests import oracle

START_US = 1_763_900_000_123_457
SLACK_MS = 60_000
REFUSED, TAKEN, FULL, MISPLACED, FOREIGN = 0, 1, 2, 3, 4
_prefixes = itertools.count()


class Ask(NamedTuple):
    """One charge of a request: a limit, a key, a cost, and the numbers that hold, which default to the
    limit's.
    """

    limit: Limit
    key: str
    cost: int
    numbers: Numbers | None = None
    lease: str | None = None


class Answer(NamedTuple):
    """What check.lua said."""

    now_us: int
    status: int
    verdicts: tuple[int, ...]
    states: tuple[tuple[int, ...], ...]


def bucket(
    name: str = "b",
    rate: tuple[int, int] = (1, 1_000_000),
    burst: int = 10,
    key: tuple[str, ...] = ("user",),
    **more: Any,
) -> Limit:
    """A token bucket of `burst` that drains rate[0] units per rate[1] microseconds, which must be reduced."""
    return Limit(name=name, key=key, algorithm="token-bucket", numbers=Numbers(burst, *rate), **more)


def sliding(name: str = "s", limit: int = 10, window_us: int = 60_000_000, **more: Any) -> Limit:
    return Limit(
        name=name,
        key=("user",),
        algorithm="sliding-window",
        numbers=Numbers(limit),
        window_us=window_us,
        **more,
    )


def fixed(name: str = "f", limit: int = 10, window_us: int | None = 60_000_000, **more: Any) -> Limit:
    return Limit(
        name=name,
        key=("user",),
        algorithm="fixed-window",
        numbers=Numbers(limit),
        window_us=window_us,
        **more,
    )


def places(name: str = "c", limit: int = 3, ttl_us: int = 60_000_000, **more: Any) -> Limit:
    return Limit(name=name, key=("user",), algorithm="concurrency", numbers=Numbers(limit), ttl_us=ttl_us, **more)


@dataclass
class Scripts:
    """The scripts under a prefix of their own. Every instant is an argument, None is the server's clock."""

    client: redis.Redis
    forms: Forms = field(default_factory=lambda: Forms(f"t{next(_prefixes)}"))
    slack_ms: int = SLACK_MS
    leases: itertools.count[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        for script in SCRIPTS:
            assert self.client.script_load(script.text).encode() == script.sha

    def key(self, limit: Limit, key: str) -> bytes:
        form = self.forms.of(limit)
        return form.key(form.address(key.encode()))

    def lease(self) -> str:
        return f"{next(self.leases):016x}"

    def check(
        self, now_us: int | None, asks: Sequence[Ask], *, refused: bool = False, around_us: int | None = None
    ) -> Answer:
        around = around_us if around_us is not None else now_us if now_us is not None else START_US
        keys, arguments = self.packed(asks, refused, around)
        return self.run(now_us, [asks], keys, arguments)[0]

    def check_many(self, now_us: int, requests: Sequence[Sequence[Ask]]) -> list[Answer]:
        """Several requests in one command."""
        packed = [self.packed(asks, False, now_us) for asks in requests]
        keys = [key for keys, _ in packed for key in keys]
        return self.run(now_us, requests, keys, [argument for _, arguments in packed for argument in arguments])

    def run(
        self, now_us: int | None, requests: Sequence[Sequence[Ask]], keys: list[bytes], arguments: list[bytes]
    ) -> list[Answer]:
        slack, instant = struct.pack("<d", self.slack_ms), b"" if now_us is None else b"%d" % now_us
        reply = self.client.evalsha(CHECK.sha.decode(), len(keys), *keys, slack, instant, *arguments)
        reply = struct.unpack(f"<{len(reply) // 8}d", reply)
        assert all(number.is_integer() for number in reply)
        reply = [int(number) for number in reply]
        at, answers = 1, []
        for asks in requests:
            status = reply[at]
            parts = [tuple(reply[at + 1 + OUTCOME * i : at + 1 + OUTCOME * (i + 1)]) for i in range(len(asks))]
            at += 1 + OUTCOME * len(asks)
            if status > FULL:
                answers.append(Answer(reply[0], status, parts[0], ()))
                continue
            verdicts = tuple(part[0] for part in parts)
            states = tuple(state_of(ask.limit, part) for ask, part in zip(asks, parts, strict=True))
            answers.append(Answer(reply[0], status, verdicts, states))
        assert at == len(reply)
        return answers

    def packed(self, asks: Sequence[Ask], refused: bool, around_us: int) -> tuple[list[bytes], list[bytes]]:
        """(KEYS, ARGV from the third on) of one request, as Shape packs them."""
        described, leases = [], []
        for ask in asks:
            form = self.forms.of(ask.limit)
            if form.kind == PLACES:
                leases.append((ask.lease or self.lease()).encode())
            flags = (ask.limit.mode == "enforce") * ENFORCED + ask.limit.count_denied * COUNT_DENIED
            described.append((form, ask.numbers or ask.limit.numbers, flags))
        shape = Shape(described, refused)
        # A request has one partition for each tuple of key fields; a test may mix them.
        named = [form.key(form.address(ask.key.encode())) for (form, _, _), ask in zip(described, asks, strict=True)]
        keys = list(dict.fromkeys(named))
        shape.key_of, shape.keys = (
            [keys.index(name) + 1 for name in named],
            [(0, form) for form, _, _ in described][: len(keys)],
        )
        costs = struct.pack(f"<{len(asks)}d", *[ask.cost for ask in asks])
        return keys, [payload(shape.wire(around_us)), costs, *leases]

    def settle(
        self, now_us: int, settlement: Settlement, *, once: bool = True, around_us: int | None = None
    ) -> tuple[int, int]:
        around = now_us if around_us is None else around_us
        keys, blob = pack_settle(
            self.forms, settlement, slack_ms=self.slack_ms, mode=ONCE if once else UNDO, around_us=around
        )
        reply = self.client.evalsha(SETTLE.sha.decode(), len(keys), *keys, blob, b"%d" % now_us)
        return reply[0], reply[1]

    def release(self, now_us: int, limit: Limit, key: str, *leases: str) -> int:
        name = self.key(limit, key)
        freed: int = self.client.evalsha(
            RELEASE.sha.decode(),
            len(leases),
            *[name] * len(leases),
            b"%d" % now_us,
            *[lease.encode() for lease in leases],
        )
        return freed

    def entry(self, limit: Limit, key: str, charged: int, actual: int, start_us: int | None = None) -> SettlementEntry:
        return SettlementEntry(limit, self.forms.of(limit).address(key.encode()), charged, actual, start_us)


def payload(argument: bytes) -> bytes:
    """An argument without its form on the wire."""
    return argument.split(b"\r\n", 1)[1][:-2]


def state_of(limit: Limit, part: tuple[int, ...]) -> tuple[int, ...]:
    """The part of a reply that is the state, in the oracle's form."""
    if limit.algorithm == "token-bucket":
        return part[1:4]
    return part[1:3] if limit.algorithm == "concurrency" else part[1:5]


class Both:
    """Scripts and oracle side by side: whatever is asked is asked of both, and they must agree on everything."""

    def __init__(self, scripts: Scripts) -> None:
        self.scripts = scripts
        self.oracle = oracle.Oracle()

    def check(self, now_us: int, asks: Sequence[Ask], *, refused: bool = False) -> oracle.Outcome:
        asks = [ask._replace(lease=ask.lease or self.scripts.lease()) for ask in asks]
        told = [(ask.limit, ask.numbers or ask.limit.numbers, ask.key, ask.cost, ask.lease) for ask in asks]
        expected = self.oracle.apply(now_us, told, refused=refused)
        answer = self.scripts.check(now_us, asks, refused=refused)
        assert answer.now_us == now_us
        assert answer.status == (TAKEN if expected.admitted else REFUSED)
        assert answer.verdicts == tuple(0 if status.fits else 1 for status in expected.statuses)
        assert answer.states == expected.states
        for ask, lease in zip(asks, expected.leases, strict=True):
            if lease is not None:
                self._forget_expired(now_us, ask.limit, ask.key)
        return expected

    def _forget_expired(self, now_us: int, limit: Limit, key: str) -> None:
        """A place that was found expired and removed is gone, also when the clock is set back afterwards; the
        oracle, which forgets nothing, would see it held again.
        """
        cell = self.oracle.buckets[oracle.address(oracle.Charge(limit, limit.numbers, key, 0))]
        cell.held = {name: held for name, held in cell.held.items() if now_us < held[0]}

    def settle(self, now_us: int, receipt: bytes, expires_us: int, charged_us: int, settled: Sequence[Any]) -> bool:
        """`settled`: (limit, key, charged, actual, start_us) each, and optionally the numbers that hold now."""
        entries = []
        told = []
        for limit, key, charged, actual, start_us, *numbers in settled:
            now = numbers[0] if numbers else limit.numbers
            address = self.scripts.forms.of(limit).address(key.encode())
            entries.append(SettlementEntry(limit, address, charged, actual, start_us, numbers=now))
            told.append(oracle.Settled(limit, now, key, charged, actual, charged_us, start_us))
        settlement = Settlement(receipt, expires_us, charged_us, tuple(entries))
        _, status = self.scripts.settle(now_us, settlement)
        if now_us >= expires_us:
            assert status == 2
            return False
        expected = self.oracle.settle(now_us, receipt, told)
        assert status == int(expected)
        return expected

    def release(self, now_us: int, limit: Limit, key: str, lease: str) -> int:
        expected = self.oracle.release(now_us, limit, key, lease)
        assert self.scripts.release(now_us, limit, key, lease) == expected
        self._forget_expired(now_us, limit, key)
        return expected
