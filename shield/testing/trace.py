"""The file that `shield serve --trace-decisions` writes: how it is read, and law 1 held against it.

Version 1: one JSON object a line, every instant and duration in whole microseconds. The first line may be a
header, `{"shield_trace": 1, "store": "memory"}`; a file without one is of version 1.

A line without `event` is a decision:

    now_us                     when the store decided, by its own clock
    request_id, allowed, status, reason, violated, degraded    as in the decision
    charges                    one for each limit that was met; where a guard refused, only what that cost

Each charge:

    limit, algorithm, window_us, align, timezone, ttl_us, mode, count_denied   of the limit, or null
    numbers                    [limit, c, p]: c units come back every p us; only a token bucket's c, p mean it
    key                        the 16 bytes that name the bucket, in hex
    cost                       units
    verdict                    0 fits, 1 does not, 2 the store is full, 3 the store is away
    state                      after the step. Token bucket: [units, ticks, at_us], used: units + ticks / p.
                               Windows: [cur, prev, start_us, end_us].
                               Concurrency: [in use, when enough of them have expired for this cost]
    remaining, retry_after_us, reset_after_us    after the step; retry_after_us is null for never
    unknown                    true: decided without a bucket, as the policy says for a full or absent store; or not
                               asked, because a shared store had refused another charge of the request a moment ago
    shared                     true: decided by the bucket that newcomers to a full store share
    lease                      concurrency: the name under which places are held now, else null

What comes after a decision has lines of its own; their charges name limit and bucket in the same way:

    {"event": "settle", "now_us": ..., "receipt": hex, "charged_us": ..., "settled": false if done before,
     "charges": [{..., "charged": units, "actual": units, "start_us": of the charged window, else null}]}
    {"event": "release", "now_us": ..., "charges": [{..., "lease": name, "freed": places}]}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from os import PathLike
from typing import Any

from shield.testing.law import Admission, Violation, check_trace, check_window_trace

TRACE_VERSION = 1


def read_trace(path: str | PathLike[str]) -> Iterator[dict[str, Any]]:
    """The decisions and events of a trace file, in its order, without the header.

    A last line without an end is left out: the process was still writing it. ValueError names the line that
    is no JSON object, and a version that is not known here. OSError when the file cannot be read.
    """
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                return
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number}: expected an object")
            if "shield_trace" not in record:
                yield record
            elif record["shield_trace"] != TRACE_VERSION:
                raise ValueError(f"{path}, line {number}: version {record['shield_trace']!r} is not known")


@dataclass(slots=True)
class _History:
    """What a trace says of one bucket."""

    charge: Mapping[str, Any]
    limit: int = 0
    rate: Fraction = Fraction(0)
    admissions: list[Admission] = field(default_factory=list)
    windows: dict[int, int] = field(default_factory=dict)


def replay_trace(path: str | PathLike[str], *, by_time: bool = False) -> list[Violation]:
    """Law 1, held against every token bucket and window of a trace file; [] when it holds.

    Degraded decisions are left out, as the law leaves them out, and so are places in flight, which are not
    units over time. When numbers changed, the largest count. `by_time` sorts the file by its instants first:
    the answers of a remote store may have arrived in another order than they were made in.
    """
    records: Iterable[dict[str, Any]] = read_trace(path)
    if by_time:
        records = sorted(records, key=lambda record: int(record["now_us"]))
    histories: dict[str, _History] = {}
    for record in records:
        if record.get("event") == "settle":
            _refund(record, histories)
        elif "event" not in record and not record["degraded"]:
            _admit(record, histories)
    found: list[Violation] = []
    for bucket, history in histories.items():
        charge = history.charge
        if charge["algorithm"] == "token-bucket":
            rate = (history.rate.numerator, history.rate.denominator)
            violations = check_trace(history.admissions, rate, history.limit)
        elif charge["align"] is None:
            sliding = charge["algorithm"] == "sliding-window"
            violations = check_window_trace(history.admissions, history.limit, charge["window_us"], sliding=sliding)
        else:
            violations = check_window_trace(history.admissions, history.limit, _recorded(history))
        found += [replace(violation, bucket=bucket) for violation in violations]
    return sorted(found, key=lambda violation: -violation.excess)


def _admit(record: Mapping[str, Any], histories: dict[str, _History]) -> None:
    for charge in record["charges"]:
        if charge["algorithm"] == "concurrency" or charge.get("unknown") or charge.get("shared"):
            continue
        history = histories.setdefault(f"{charge['limit']} {charge['key']}", _History(charge))
        limit, c, p = charge["numbers"]
        history.limit = max(history.limit, limit)
        if charge["algorithm"] == "token-bucket":
            history.rate = max(history.rate, Fraction(c, p))
        elif charge["verdict"] < 2:
            history.windows[charge["state"][2]] = charge["state"][3]
        taken = charge["cost"] if record["allowed"] and charge["verdict"] == 0 else 0
        history.admissions.append(Admission(record["now_us"], taken))


def _refund(record: Mapping[str, Any], histories: dict[str, _History]) -> None:
    """Takes what a settlement gave back off the admission that was charged."""
    for charge in record["charges"] if record["settled"] else ():
        history = histories.get(f"{charge['limit']} {charge['key']}")
        back = Fraction(charge["charged"] - charge["actual"])
        if charge["algorithm"] == "token-bucket":
            _, c, p = charge["numbers"]
            back -= Fraction(c * max(0, record["now_us"] - record["charged_us"]), p)
        if history is None or back <= 0:
            continue
        for i, admission in enumerate(history.admissions):
            if admission.at_us == record["charged_us"] and admission.cost - admission.refunded >= back:
                history.admissions[i] = admission._replace(refunded=admission.refunded + back)
                break


def _recorded(history: _History) -> Callable[[int], tuple[int, int]]:
    """The windows of a calendar, as the trace itself tells them."""

    def bounds(now_us: int) -> tuple[int, int]:
        for start_us, end_us in history.windows.items():
            if start_us <= now_us < end_us:
                return start_us, end_us
        # No step was counted in this one: the clock had been set back, and the next window went on counting.
        return now_us, min(start_us for start_us in history.windows if start_us > now_us)

    return bounds
