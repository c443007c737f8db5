"""How much do twelve detectors add to a check plus report on the memory store?

The packaged twelve that look at every request or outcome of an API: half of the outcomes fail, five thousand users come
from 250 addresses and ask for fifty thousand different objects, so the memory of targets is missed too.
"""

from __future__ import annotations

from shield import Policy, Request, Shield
from shield.detect.watch import Watch

from .decision import SIX_LIMITS
from .record import Row, interleaved

TWELVE = (
    *("credential-cracking-address", "credential-cracking-account", "credential-stuffing", "object-enumeration"),
    *("crawling", "probing", "user-agent-switching", "denied-spike", "tenant-volume", "payload-anomaly"),
    *("expensive-queries", "sensitive-files"),
)
WANTED_NS = 4_000


def run(seconds: float) -> list[Row]:
    shield = Shield(SIX_LIMITS)
    text = "".join(f'[[detector]]\nuse = "{name}"\n' for name in TWELVE)
    watch = Watch(Policy.parse("version = 1\n" + text).detectors)
    clock = [1_700_000_000_000_000]

    def make(i: int) -> Request:
        return Request(
            tenant="acme",
            user=f"user:{i % 5000}",
            ip=f"203.0.113.{i % 250}",
            method="POST" if i & 1 else "GET",
            path=f"/orders/{i % 50_000}/items?page={i & 7}",
            user_agent="Mozilla/5.0 (X11; Linux x86_64) Firefox/130.0",
            bytes=500,
            cost=1,
        )

    def without(calls: int) -> None:
        for i in range(calls):
            shield.check_nowait(make(i))

    def watched(calls: int) -> None:
        now_us = clock[0]
        for i in range(calls):
            now_us += 100
            request = make(i)
            shield.check_nowait(request)
            watch.request(request, now_us)
            watch.outcome(request, (200, 404, 401, 200)[i & 3], None, now_us)
        clock[0] = now_us

    alone, together = interleaved([without, watched], [5_000, 5_000], seconds)
    added = together - alone
    return [
        Row("check_nowait, six limits, the Request made", alone, "ns"),
        Row("twelve detectors: added to a check plus report", added, "ns", "at most 4,000", added <= WANTED_NS),
    ]
