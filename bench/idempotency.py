"""What does an idempotency key cost a decision, in the memory of a process and in the file of a host?"""

from __future__ import annotations

from shield import Policy, Request, Shield
from shield.request import IdempotencyKey
from shield.store.shared import PrivateTable

from .decision import SIX_LIMITS_TOML
from .record import Row, interleaved

# As many keys as one run takes, and none expires.
RULES = Policy.parse(
    f"{SIX_LIMITS_TOML}[guard.idempotency]\nmax_keys = 100_000_000\nmax_keys_per_tenant = 100_000_000\n"
    "max_bytes = 1_000_000_000\n"
)


def run(seconds: float) -> list[Row]:
    rows = _store("memory", Shield(RULES), seconds)
    with PrivateTable(max_keys=20_000) as table:
        rows += _store("shared", Shield(RULES, table.url), seconds)
    return rows


def _store(name: str, shield: Shield, seconds: float) -> list[Row]:
    taken = 0

    def request(key: str | None) -> Request:
        stated = None if key is None else IdempotencyKey(key, "sha256:00")
        return Request(tenant="acme", user="u", ip="203.0.113.7", method="POST", path="/orders", idempotency=stated)

    def without(calls: int) -> None:
        for _ in range(calls):
            assert shield.check_nowait(request(None)).allowed

    def new(calls: int) -> None:
        nonlocal taken
        for _ in range(calls):
            taken += 1
            assert shield.check_nowait(request(f"k-{taken}")).allowed

    def new_and_completed(calls: int) -> None:
        nonlocal taken
        for _ in range(calls):
            taken += 1
            assert shield.complete_nowait(shield.check_nowait(request(f"k-{taken}")), 201, (), b"x" * 256)

    def answered(calls: int) -> None:
        for _ in range(calls):
            assert shield.check_nowait(request("answered")).status == 201

    shield.complete_nowait(shield.check_nowait(request("answered")), 201, (), b"x" * 256)
    found = interleaved([without, new, new_and_completed, answered], [2_000, 200, 200, 200], seconds)
    none, alone, ended, again = found
    return [
        Row(f"{name}: six limits, no key stated", none, "ns"),
        Row(f"{name}: a new key adds", alone - none, "ns"),
        Row(f"{name}: its answer, 256 bytes", ended - alone, "ns"),
        Row(f"{name}: a stored answer, no limits", again, "ns"),
    ]
