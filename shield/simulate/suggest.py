"""Limits out of the traffic's own percentiles, and what share of the clients that were there each would touch.

Of every client the busiest second, minute and hour are counted. A candidate allows what the client at some percentile
did in its busiest minute, with the busiest second of the same percentile at once. Then the candidates, in shadow mode,
are run on the same traffic by the code that decides live, and the clients that each would have refused are counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import Any, Final

from shield.policy import Policy
from shield.simulate.records import Record
from shield.simulate.replay import MAX_CLIENTS, UNKNOWN, Replay

PERCENTILES: Final = (50.0, 90.0, 99.0, 99.9, 100.0)
_SPANS_US: Final = {"second": 1_000_000, "minute": 60_000_000, "hour": 3_600_000_000}


class Peaks:
    """The busiest second, minute and hour of each client."""

    def __init__(self) -> None:
        # [requests, (bin, count, peak) for each span, flat]
        self._clients: dict[str, list[int]] = {}
        self.left_off = 0

    def add(self, record: Record) -> None:
        at_us, request = record[0], record[1]
        client = request.ip or UNKNOWN
        seen = self._clients.get(client)
        if seen is None:
            if len(self._clients) >= MAX_CLIENTS:
                self.left_off += 1
                return
            seen = self._clients[client] = [0] * 10
        seen[0] += 1
        for at, span_us in ((1, 1_000_000), (4, 60_000_000), (7, 3_600_000_000)):
            now = at_us // span_us
            if seen[at] != now:
                seen[at], seen[at + 1] = now, 0
            seen[at + 1] += 1
            if seen[at + 1] > seen[at + 2]:
                seen[at + 2] = seen[at + 1]

    @property
    def clients(self) -> int:
        return len(self._clients)

    def percentile(self, span: str, percent: float) -> int:
        """The peak that this share of the clients do not exceed (nearest rank)."""
        at = {"second": 3, "minute": 6, "hour": 9}[span]
        peaks = sorted(seen[at] for seen in self._clients.values())
        return peaks[max(0, ceil(percent / 100 * len(peaks)) - 1)] if peaks else 0


def candidates(peaks: Peaks) -> list[dict[str, Any]]:
    """One limit for each percentile; equal ones once."""
    found: list[dict[str, Any]] = []
    for percent in PERCENTILES:
        minute = max(1, peaks.percentile("minute", percent))
        burst = max(minute, peaks.percentile("second", percent))
        numbers = {"rate": f"{minute}/m", "burst": burst}
        if any(one["rate"] == numbers["rate"] and one["burst"] == burst for one in found):
            continue
        found.append({"percentile": percent, "peaks": {s: peaks.percentile(s, percent) for s in _SPANS_US}, **numbers})
    return found


def shadow_policy(found: list[dict[str, Any]]) -> Policy:
    """All candidates at once, none of which refuses: each is charged as if it were alone."""
    limits = [
        f'[[limit]]\nname = "p{str(one["percentile"]).rstrip("0").rstrip(".")}"\nkey = ["ip"]\nrate = "{one["rate"]}"\n'
        f'burst = {one["burst"]}\nmode = "shadow"\n'
        for one in found
    ]
    return Policy.parse('version = 1\nname = "suggested"\n' + "".join(limits))


def tried(found: list[dict[str, Any]], records: Iterable[Record], clients: int) -> list[dict[str, Any]]:
    """The candidates with what each would have refused of these records."""
    policy = shadow_policy(found)
    replay = Replay(policy)
    touched: dict[str, set[str]] = {limit.name: set() for limit in policy.limits}
    for at_us, request, _, _ in records:
        decision = replay.record(at_us, request, None, None)
        for name in decision.shadow:
            if len(touched[name]) < MAX_CLIENTS:
                touched[name].add(request.ip or UNKNOWN)
    outcome = replay.finish()
    out = []
    for one, limit in zip(found, policy.limits, strict=True):
        refused = outcome.shadow.get(limit.name, 0)
        out.append(
            {
                **one,
                "clients_touched": len(touched[limit.name]),
                "clients_share": len(touched[limit.name]) / clients if clients else 0.0,
                "requests_refused": refused,
                "requests_share": refused / outcome.requests if outcome.requests else 0.0,
                "policy": '[[limit]]\nname = "address"\nkey = ["ip"]\n'
                f'rate = "{one["rate"]}"\nburst = {one["burst"]}\n',
            }
        )
    return out


def as_text(found: list[dict[str, Any]], clients: int) -> str:
    """The candidates as a table, and one of them as it stands in a policy."""
    lines = [
        f"limits by address, from the busiest minute of each of {clients:,} clients",
        f"{'percentile':>10}  {'rate':>12}  {'burst':>8}  {'clients touched':>22}  {'requests refused':>22}",
    ]
    for one in found:
        touched = f"{one['clients_touched']:,} ({one['clients_share']:.2%})"
        refused = f"{one['requests_refused']:,} ({one['requests_share']:.2%})"
        lines.append(f"{one['percentile']:>10g}  {one['rate']:>12}  {one['burst']:>8,}  {touched:>22}  {refused:>22}")
    chosen = next((one for one in found if one["clients_share"] <= 0.01), found[-1] if found else None)
    if chosen is not None:
        lines += ["", "the tightest that touches at most 1 percent of them:", "", chosen["policy"].rstrip()]
    return "\n".join(lines)
