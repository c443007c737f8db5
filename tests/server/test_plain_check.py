"""The compiled way of a plain check against the common code: alike in bytes, counts, log and trace.

Two listeners with the same policy, clock and request ids, each with an express lane; one of them may not use
PlainCheck. Policies and histories are random, bodies are anything from plain to malformed.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shield import Policy, Shield
from shield.core.http_lane import PlainCheck, RequestIds
from shield.server.auth import CallerTokens
from shield.server.logs import open_log
from shield.server.metrics import Metrics
from shield.server.pressure import Pressure
from shield.server.routes import decision_listener
from shield.server.service import Service
from shield.server.source import PolicySource
from tests.identity.tokens import make
from tests.laws.against_oracle import random_policy
from tests.server.lane_fuzz import Clock, Transport, settle

# A receipt or a lease is sealed under randomness of its own; what it is for is compared by the limits' states.
_OWN = re.compile(rb"\r\nDate: [^\r]*|(?<=\"receipt\":)\"[^\"]*\"|(?<=\"leases\":)\[\"[^]]*]|\r\nContent-Length: \d+")
_TOLD = ("event", "endpoint", "status", "reason", "violated", "field", "level", "request_id", "suppressed")


class Side:
    """One listener on transports of memory."""

    def __init__(self, policy: Policy, *, plain: bool, tokens: bool = False, traced: bool = False) -> None:
        self.clock = Clock()
        self.trace: list[dict[str, Any]] = []
        self.shield = Shield(policy, clock=self.clock, trace=self.trace.append if traced else None)
        self.metrics = Metrics("0", policy, dict)
        self._log = io.StringIO()
        self.service = Service(self.shield, PolicySource("", "toml"), self.metrics, open_log(self._log, "json", "info"))
        self.service.pressure = Pressure(self.metrics.shed, clock=lambda: 0.0)
        self.service.ids = RequestIds("same")
        self.listener = decision_listener(self.service, CallerTokens(["alpha"]) if tokens else None, express=True)
        express = self.listener.express
        assert express is not None
        assert isinstance(express.plain, PlainCheck)
        if not plain:
            express.plain = None
        self.connect()

    def connect(self) -> None:
        self.connection = self.listener()
        self.transport = Transport(self.connection, asyncio.get_running_loop())
        self.connection.connection_made(self.transport)

    async def ask(self, data: bytes) -> bytes:
        """What is sent for what is received, and then whether the connection was closed."""
        if self.transport.closed:
            self.connect()
        self.transport.written.clear()
        self.connection.data_received(data)
        await settle(self.connection, self.transport)
        for _ in range(3):
            await asyncio.sleep(0)
        return b"".join(self.transport.written) + b"|closed" * self.transport.closed

    @property
    def told(self) -> Any:
        counts = self.metrics.counts()
        lines = [json.loads(line) for line in self._log.getvalue().splitlines()]
        lines = [{name: value for name, value in line.items() if name in _TOLD} for line in lines]
        decided = (counts.reasons, counts.refusals, counts.shadow, counts.degraded, counts.problems)
        for record in self.trace:
            for charge in record["charges"]:  # hashed and drawn under secrets of its own
                charge["key"] = charge["lease"] = None
        return decided, sum(counts.latency), lines, self.trace, self.service.ids.number


def message(body: bytes, *more: bytes, target: bytes = b"/v1/check") -> bytes:
    fields = b"".join(b"%b\r\n" % field for field in more)
    return b"POST %b HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b" % (target, fields, len(body), body)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
FACTS = st.fixed_dictionaries(
    {},
    optional={
        "tenant": st.sampled_from(["t1", "", None, "é🙂", "a\nb", "a\\b", "long" * 300]),
        "user": st.sampled_from(["u1", "u2", "", None]) | TEXT,
        "ip": st.sampled_from(["192.0.2.1", "2001:db8::1", "nowhere", "", None]),
        "plan": st.sampled_from(["pro", "unknown", None]),
        "bytes": st.sampled_from([0, 10, 1001, -1, 2**53, None]),
        "path": st.sampled_from(["/a", "/a/../b?c", "no", "%zz", None]),
        "request_id": st.sampled_from(["mine", "", None, "bad\x00id", "x" * 2_000]),
        "cost": st.sampled_from([0, 1, 7, -1, 2**53, None]),
        "attributes": st.just({"country": "NO"}),
        "headers": st.just({"A": "b"}),
        "graphql": st.sampled_from([{"query": "{a}"}, [{"query": "{a}"}, {"query": "{b}"}], {}, None]),
        "nonce": st.sampled_from([{"value": "n", "timestamp": 1_763_900_000}, None]),
        "idempotency": st.sampled_from([{"key": "k"}, None]),
    },
)
ODD = st.sampled_from(
    (
        *(b"", b"{", b"[]", b"[{}, {}]", b'{"user":1}', b'{"tennant":"x"}', b'{"user":"a","user":"b"}', b" {} "),
        *(b'{"user":"\\u0061"}', b'{"user":"\xff"}', b'{"nonce":{"value":"a","value":"b"}}', b"null", b"[" * 2_000),
        b'{"cost":1.5}',
    )
)
BODIES = FACTS.map(lambda facts: json.dumps(facts, ensure_ascii=False).encode()) | ODD
MOVES = st.tuples(st.sampled_from([0, 1, 250_000, 90_000_000]), st.lists(BODIES, min_size=1, max_size=4))
FIELDS = st.sampled_from(
    [(), (), (), (b"Connection: close",), (b"Shield-Authorization: Bearer alpha",), (b"Expect: x",)]
)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    moves=st.lists(st.tuples(MOVES, FIELDS), min_size=1, max_size=8),
    tokens=st.sampled_from([False, False, True]),
    traced=st.booleans(),
)
def test_the_compiled_way_is_the_common_one(seed: int, moves: Any, tokens: bool, traced: bool) -> None:
    policy = random_policy(random.Random(seed))

    async def play() -> None:
        one, other = (Side(policy, plain=plain, tokens=tokens, traced=traced) for plain in (True, False))
        for (pause_us, bodies), fields in moves:
            data = b"".join(message(body, *fields) for body in bodies)
            answers = []
            for side in (one, other):
                side.clock.now_ns += 1_000 * pause_us
                answers.append(_OWN.sub(b"", await side.ask(data)))
            assert answers[0] == answers[1]
        assert one.told == other.told

    asyncio.run(play())


_LIMIT = '[[limit]]\nname = "l"\nkey = ["user"]\nrate = "2/m"\n'
POLICIES = {
    "plain": _LIMIT,
    "detectors": _LIMIT + '[[detector]]\nuse = "credential-stuffing"\n',
    "graphql": _LIMIT + 'cost = "graphql"\n[guard.graphql]\nmax_depth = 2\n',
    "identity": '[identity]\nanonymous = true\n[[identity.jwt]]\nissuer = "https://id.example"\naudience = "a"\n'
    'jwks = "file:KEYS"\nalgorithms = ["ES256"]\nclaims = { user = "sub" }\n'
    '[[limit]]\nname = "l"\nkey = ["ip"]\nrate = "2/m"\n',
}


@pytest.mark.parametrize("name", POLICIES)
async def test_whatever_the_policy_asks_first(name: str, tmp_path: Any) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [make("ES256").jwk]}))
    policy = Policy.parse(POLICIES[name].replace("KEYS", str(keys)))
    one, other = (Side(policy, plain=plain) for plain in (True, False))
    for body in (
        *(
            b'{"user":"u","ip":"192.0.2.1"}',
            b'{"user":"u","ip":"192.0.2.1","token":"a.b.c"}',
            b'{"user":"u","tenant":"t"}',
        ),
        *(b'{"user":"u","graphql":{"query":"{a{b{c}}}"}}', b'{"user":"u","graphql":{"query":"{a}"}}') * 2,
        *(b'{"user":"u","ip":"192.0.2.1","path":"/login","method":"POST"}',) * 3,
    ):
        answers = [_OWN.sub(b"", await side.ask(message(body))) for side in (one, other)]
        assert answers[0] == answers[1]
        assert answers[0].startswith(b"HTTP/1.1 200 OK\r\n")
    assert one.told == other.told
    assert one.shield.abuse.stats() == other.shield.abuse.stats()


async def test_a_fault_of_ours_is_told_alike_and_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = [Side(Policy.parse(POLICIES["plain"]), plain=plain) for plain in (True, False)]
    for side in sides:

        def broken(request: Any) -> Any:
            raise ZeroDivisionError

        monkeypatch.setattr(side.shield, "check_nowait", broken)
    answers = [_OWN.sub(b"", await side.ask(message(b"{}") * 2)) for side in sides]
    assert answers[0] == answers[1]
    assert answers[0].startswith(b"HTTP/1.1 500 ")
    assert answers[0].endswith(b"|closed")
    assert answers[0].count(b"HTTP/1.1") == 1
    assert sides[0].told == sides[1].told


async def test_only_what_is_plain_stays_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing at all while the server drains, or while requests must wait."""
    side = Side(Policy.parse(POLICIES["plain"]), plain=True)
    express = side.listener.express
    assert express is not None
    asked: list[bytes] = []
    answer_of = side.listener.answer_at_once

    def told(head: Any) -> Any:
        asked.append(head.whole)
        return answer_of(head)

    monkeypatch.setattr(type(side.listener), "answer_at_once", lambda _, head: told(head))
    side.listener.express = side.listener._opened(None)
    side.connect()
    plain = [b'{"user":"u"}', b'{"user":"u","attributes":{"a":1},"headers":{"b":"c"}}', b'{"nonce":null}']
    special = [b"[{}]", b'{"cost":1}', b'{"graphql":{"query":"{a}"}}', b'{"nonce":{"value":"a"}}']
    special += [b'{"idempotency":{"key":"k"}}', b"{", b'{"user":"a","user":"b"}', b'{"user":"\\u0061"}']
    for body in plain + special:
        await side.ask(message(body))
    assert asked == special
    asked.clear()
    side.service.draining = True
    assert b"Connection: close" in await side.ask(message(plain[0]))
    assert asked == [plain[0]]


async def test_an_answer_of_many_limits_and_long_names_is_whole() -> None:
    """One that the room on the stack does not hold."""
    policy = "".join(
        f'[[limit]]\nname = "{"n" * 50}-{i}"\nkey = ["user"]\nrate = "2/m"\nburst = 1000000000\n' for i in range(60)
    )
    sides = [Side(Policy.parse(policy), plain=plain) for plain in (True, False)]
    answers = [await side.ask(message(b'{"user":"u"}')) for side in sides]
    assert answers[0] == answers[1]
    body = answers[0].partition(b"\r\n\r\n")[2]
    assert len(json.loads(body)["limits"]) == 60
    assert len(body) > 8_192


def test_a_request_of_another_make_is_refused() -> None:
    class Dicts:
        request_id = None

    parts: dict[str, Any] = dict.fromkeys(("decode", "shield", "judged", "failed"))
    parts |= {"ids": RequestIds("a"), "tally": Metrics("0", Policy(), dict).tally}
    with pytest.raises(TypeError, match="keeps its fields in no slots"):
        PlainCheck(None, 1, kind=Dicts, **parts)
    with pytest.raises(TypeError, match="kind is a class"):
        PlainCheck(None, 1, kind="Request", **parts)  # type: ignore[arg-type]
