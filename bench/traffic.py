"""What is asked: so many limits, keys that are drawn unevenly, a part that is refused, a part that is GraphQL.

Everything comes of a seed, so that the same traffic can be made again. The server reads every request anew from its
socket; nothing of it is kept warm by Python here.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from .arrivals import zipf
from .load import in_turn

DOCUMENTS = Path(__file__).parent / "documents"
POOL = 8192
"""So many different requests are made before the run and asked in turn: rendering costs more than asking."""
LANES = ("express", "aiohttp")
_KEYS = ('["tenant", "user"]', '["tenant"]', '["ip"]')


@dataclass(frozen=True, slots=True)
class Traffic:
    """One kind of traffic. Shares are parts of one."""

    limits: int = 6
    """By user, tenant and address in turn."""
    keys: int = 5_000
    """Users."""
    skew: float = 0.0
    """Zipf's exponent over users; 0 is even."""
    hot: float = 0.0
    """This share comes from one user of one tenant."""
    denied: float = 0.0
    """This share meets a limit that is used up."""
    graphql: float = 0.0
    """This share carries a GraphQL operation to be priced."""
    lane: str = "express"
    """"aiohttp": bodies come in chunks, which the express lane leaves to aiohttp."""
    fresh: bool = False
    """Every request has a user that never came before."""

    def policy(self) -> str:
        """The policy that refuses nothing but the denied share."""
        text = 'version = 1\nname = "bench"\n'
        for i in range(self.limits):
            rate, burst = ("1000000/s", 1_000_000_000) if i % 2 else ("900000/s", 900_000_000)
            text += f'[[limit]]\nname = "l{i}"\nkey = {_KEYS[i // 2 % 3]}\nrate = "{rate}"\nburst = {burst}\n'
        if self.denied:
            text += '[[limit]]\nname = "used-up"\nkey = ["tenant"]\nrate = "1/day"\nmatch = { path = "/used-up" }\n'
        if self.graphql:
            text += '[guard.graphql]\nschema = "schema.graphql"\nmax_cost = 1_000_000_000\n'
        return text

    def requests(self, seed: int) -> list[bytes]:
        """POOL requests, each whole."""
        source = random.Random(f"traffic:{seed}")
        users = zipf(self.keys, self.skew, source)
        query = (DOCUMENTS / "query.graphql").read_text() if self.graphql else ""
        return [self._one(source, users, query) for _ in range(POOL)]

    def _one(self, source: random.Random, users: Iterator[int], query: str) -> bytes:
        user = 0 if source.random() < self.hot else next(users)
        facts: dict[str, object] = {
            "tenant": f"tenant:{user % 50}",
            "user": f"user:{user}",
            "ip": f"203.0.113.{user % 250}",
        }
        if source.random() < self.denied:
            facts["path"] = "/used-up"
        if source.random() < self.graphql:
            facts |= {"method": "POST", "path": "/graphql", "graphql": {"query": query, "variables": {"org": "acme"}}}
        return framed(json.dumps(facts, separators=(",", ":")).encode(), self.lane)

    def source(self, seed: int) -> Callable[[], bytes]:
        """The next request, without end."""
        if not self.fresh:
            return in_turn(self.requests(seed))
        body = b'{"tenant":"t","user":"%012d","ip":"203.0.113.7"}'
        whole = framed(body % 0, self.lane)
        head, tail = whole.split(b"0" * 12)
        numbers = itertools.count(seed * 7919 % 900 * 1_000_000_000)
        return lambda: head + b"%012d" % next(numbers) + tail

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """The policy's file in a folder of its own, with the schema beside it."""
        with TemporaryDirectory(prefix="shield-bench-") as folder:
            file = Path(folder, "policy.toml")
            file.write_text(self.policy())
            Path(folder, "schema.graphql").write_text((DOCUMENTS / "schema.graphql").read_text())
            yield file


def framed(body: bytes, lane: str = "express") -> bytes:
    """A POST /v1/check."""
    head = b"POST /v1/check HTTP/1.1\r\nHost: shield\r\nContent-Type: application/json\r\n"
    if lane == "express":
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
