"""Holds the oracle against a trace of a live run: the file of `shield serve --trace-decisions`.

The format is described in shield/testing/trace.py. The oracle needs nothing but the file: every line says
what its limits are, and the trace has to begin with empty buckets.

What no oracle can know is left out: degraded decisions, and from then on the buckets they may have touched;
charges that were decided without a bucket or by one that newcomers share, or not at all because the store was
full. Their verdicts are taken as given. Of a bucket that disagrees only the first disagreement is told, since
all that follows may come from it.
"""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import Any, NamedTuple

from shield.testing import read_trace
from tests.oracle import Charge, Oracle, Settled, Spec, Status

# A guard's refusal has any other reason.
DECIDED_BY_LIMITS = {"ok", "limit", "concurrency", "store_full", "store_unavailable"}


class Disagreement(NamedTuple):
    """One thing the run answered and the oracle would not have."""

    record: int
    """Its number, from 0, without the header."""
    now_us: int
    where: str
    """A limit and its key, or "decision"."""
    what: str
    recorded: Any
    expected: Any


class Replay:
    """A run that is decided again. `decided` and `left_out` count charges, so that nobody mistakes silence
    for proof."""

    def __init__(self) -> None:
        self.oracle = Oracle()
        self.found: list[Disagreement] = []
        self.decided = 0
        self.left_out = 0
        self._unknowable: set[tuple[str, str]] = set()
        self._index = -1

    def play(self, record: dict[str, Any]) -> None:
        """The next line of the trace."""
        self._index += 1
        event = record.get("event")
        if event == "settle":
            self._settle(record)
        elif event == "release":
            self._release(record)
        elif record["degraded"]:
            self.left_out += len(record["charges"])
            self._unknowable.update(map(bucket_of, record["charges"]))
        else:
            self._decide(record)

    def _decide(self, record: dict[str, Any]) -> None:
        known = [charge for charge in record["charges"] if self._knows(charge)]
        given = [charge for charge in record["charges"] if not self._knows(charge)]
        self.decided += len(known)
        self.left_out += len(given)
        refused = record["reason"] not in DECIDED_BY_LIMITS or any(
            charge["verdict"] != 0 and charge["mode"] == "enforce" for charge in given
        )
        charges = [charge_of(charge) for charge in known]
        outcome = self.oracle.apply(record["now_us"], charges, refused=refused)
        if outcome.admitted != record["allowed"]:
            self._tell(record, None, "allowed", record["allowed"], outcome.admitted)
        for charge, status, state in zip(known, outcome.statuses, outcome.states, strict=True):
            recorded = Status(
                charge["verdict"] == 0,
                charge["numbers"][0],
                charge["remaining"],
                charge["retry_after_us"],
                charge["reset_after_us"],
            )
            if recorded != status:
                self._tell(record, charge, "status", recorded, status)
            elif tuple(charge["state"]) != state:
                self._tell(record, charge, "state", tuple(charge["state"]), state)

    def _settle(self, record: dict[str, Any]) -> None:
        entries = [
            Settled(
                spec_of(charge),
                tuple(charge["numbers"]),
                charge["key"],
                charge["charged"],
                charge["actual"],
                record["charged_us"],
                charge["start_us"],
            )
            for charge in record["charges"]
            if self._knows(charge)
        ]
        settled = self.oracle.settle(record["now_us"], record["receipt"], entries)
        if settled != record["settled"]:
            self._tell(record, None, "settled", record["settled"], settled)

    def _release(self, record: dict[str, Any]) -> None:
        for charge in filter(self._knows, record["charges"]):
            freed = self.oracle.release(record["now_us"], spec_of(charge), charge["key"], charge["lease"])
            if freed != charge["freed"]:
                self._tell(record, charge, "freed", charge["freed"], freed)

    def _knows(self, charge: dict[str, Any]) -> bool:
        given = charge.get("unknown") or charge.get("shared") or charge.get("verdict", 0) > 1
        return not given and bucket_of(charge) not in self._unknowable

    def _tell(
        self, record: dict[str, Any], charge: dict[str, Any] | None, what: str, recorded: Any, expected: Any
    ) -> None:
        where = "decision" if charge is None else " ".join(bucket_of(charge))
        self.found.append(Disagreement(self._index, record["now_us"], where, what, recorded, expected))
        self._unknowable.update(map(bucket_of, record["charges"] if charge is None else [charge]))


def replay(trace: str | PathLike[str] | Iterable[dict[str, Any]], *, by_time: bool = False) -> list[Disagreement]:
    """Everything in which a run and the oracle disagree: verdicts, remaining, waits and states. [] is
    agreement.

    `by_time` sorts by the instants first: answers of a remote store arrive in any order.
    """
    records = trace if isinstance(trace, Iterable) and not isinstance(trace, str) else read_trace(trace)
    if by_time:
        records = sorted(records, key=lambda record: record["now_us"])
    run = Replay()
    for record in records:
        run.play(record)
    return run.found


def spec_of(charge: dict[str, Any]) -> Spec:
    """The limit of a charge, as the trace describes it."""
    return Spec(
        name=charge["limit"],
        algorithm=charge["algorithm"],
        window_us=charge["window_us"],
        align=charge["align"],
        timezone=charge["timezone"],
        ttl_us=charge["ttl_us"],
        count_denied=charge["count_denied"],
        mode=charge["mode"],
    )


def charge_of(charge: dict[str, Any]) -> Charge:
    return Charge(spec_of(charge), tuple(charge["numbers"]), charge["key"], charge["cost"], charge.get("lease"))


def bucket_of(charge: dict[str, Any]) -> tuple[str, str]:
    return charge["limit"], charge["key"]
