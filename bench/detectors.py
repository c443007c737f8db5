"""How much do twelve detectors add to a check plus report on the memory store, and what does sharing cost?

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
    sharing = Watch(watch.detectors, secret=bytes(16))
    sharing.share()
    other = Watch(watch.detectors, secret=bytes(16))
    other.share()
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

    def watched(calls: int, by: Watch = watch) -> None:
        now_us = clock[0]
        for i in range(calls):
            now_us += 100
            request = make(i)
            shield.check_nowait(request)
            by.request(request, now_us)
            by.outcome(request, (200, 404, 401, 200)[i & 3], None, now_us)
        clock[0] = now_us

    def shared(calls: int) -> None:
        """A second of 5,000 checks and reports, and the parcel at its end."""
        watched(calls, sharing)
        other.hear(sharing.say(clock[0]), clock[0], 0)

    alone, together, both = interleaved([without, watched, shared], [5_000, 5_000, 5_000], seconds)
    added = together - alone
    return [
        Row("check_nowait, six limits, the Request made", alone, "ns"),
        Row("twelve detectors: added to a check plus report", added, "ns", "at most 4,000", added <= WANTED_NS),
        Row("the same, and said to and heard by another process once a second", both - alone, "ns"),
    ]
