"""The golden tables under tests/vectors, as values: what the core, the Lua scripts and the oracle all must
answer.

A table is a `[[group]]` of a TOML file:

    id, source, pins   a name; where the facts come from; what would go unnoticed without this table
    unit               "us", "ms" or "s": the unit of `now` and of every duration in the rows (default "us")
    epoch              Unix seconds at now = 0 (default 1_699_920_000, a midnight in UTC)
    [group.limits.NAME]  in the words of the policy file; `key` is ["user"] and `cost` is "request" by default
    columns, rows      one request or event each, in order

Columns, all but `now` optional:

    now                since the epoch of the group; rows may go back in time
    do                 "check" (default); "refused": a guard refused it; "settle" and "release": what came of
    `of` user, tenant       values of key fields: "u" and absent by default, "" is absent. Limits whose key is
    absent
                       are not met
    plan, cost         of the request; `cost` of a settlement is what it really cost
    times, every       that many requests, so far apart; the other columns are of the last one
    admitted           how many of those were admitted
    label, of          a name for a request; the name of the request that is settled or released
    allowed            was it admitted (of a settlement: was it the first; of a release: did any place come
    free) wait               retry_after of the whole decision fits, remaining, reset_after, retry_after    of
    the limit, or NAME.fits and so on where there are several

"never" is no number of microseconds, and "-" is not looked at.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from shield.policy.model import Limit, Numbers
from shield.rate import Rate, parse_duration

VECTORS = Path(__file__).parent / "vectors"
UNITS_US = {"us": 1, "ms": 1_000, "s": 1_000_000}
DEFAULT_EPOCH_S = 1_699_920_000
ANSWERS = ("fits", "remaining", "reset_after", "retry_after")
DURATIONS = ("reset_after", "retry_after")


@dataclass(frozen=True)
class Step:
    """One row: what happens at an instant, and what has to come of it. Absent expectations are not looked
    at."""

    row: int
    now_us: int
    do: str
    user: str | None
    tenant: str | None
    plan: str | None
    cost: int
    times: int
    every_us: int
    label: str | None
    of: str | None
    decision: Mapping[str, Any]
    """Of: allowed, wait (microseconds or None), admitted."""
    limits: Mapping[str, Mapping[str, Any]]
    """By limit, of: fits, remaining, reset_after, retry_after (microseconds, or None for never)."""

    def instants(self) -> Iterator[int]:
        """When to ask, in microseconds of Unix time."""
        return (self.now_us + i * self.every_us for i in range(self.times))

    def disagreements(
        self,
        allowed: bool,
        statuses: Mapping[str, Any],
        wait_us: int | None = None,
        admitted: int | None = None,
    ) -> list[str]:
        """What differs from the table, a line each. `statuses` by limit have fits, remaining, retry_after_us
        and reset_after_us, such as the oracle's Status."""
        got: dict[str, Any] = {"allowed": allowed, "wait": wait_us, "admitted": admitted}
        found = [(name, want, got[name]) for name, want in self.decision.items()]
        for limit, answers in self.limits.items():
            for name, want in answers.items():
                attribute = f"{name}_us" if name in DURATIONS else name
                found.append((f"{limit}.{name}", want, getattr(statuses[limit], attribute)))
        return [f"row {self.row}: {name} is {have}, not {want}" for name, want, have in found if have != want]


@dataclass(frozen=True)
class Group:
    """One table."""

    id: str
    file: str
    source: str
    pins: str
    limits: tuple[Limit, ...]
    steps: tuple[Step, ...]

    def charges(self, step: Step) -> list[tuple[Limit, Numbers, tuple[str, ...], int]]:
        """What a request of this step would take: (limit, numbers, key values, cost) for each limit it
        meets."""
        facts = {"user": step.user, "tenant": step.tenant}
        charges = []
        for limit in self.limits:
            values = tuple(value for name in limit.key if (value := facts[name]) is not None)
            if len(values) == len(limit.key):
                cost = limit.cost if isinstance(limit.cost, int) else step.cost
                charges.append((limit, limit.numbers_for(step.plan), values, cost))
        return charges


@cache
def groups() -> tuple[Group, ...]:
    """Every table there is. Raises ValueError for one that cannot be read."""
    found = []
    for path in sorted(VECTORS.glob("*.toml")):
        for table in tomllib.loads(path.read_text())["group"]:
            try:
                found.append(read_group(table, path.stem))
            except (KeyError, ValueError, TypeError) as error:
                raise ValueError(f"{path.name}, {table.get('id')}: {error!r}") from error
    names = [group.id for group in found]
    if len(set(names)) < len(names):
        raise ValueError(f"two tables of one name among {names}")
    return tuple(found)


def read_group(table: dict[str, Any], file: str) -> Group:
    """One [[group]]."""
    allowed = {"id", "source", "pins", "unit", "epoch", "limits", "columns", "rows"}
    if not allowed.issuperset(table):
        raise ValueError(f"no such keys as {set(table) - allowed}")
    limits = tuple(read_limit(name, words) for name, words in table["limits"].items())
    unit_us = UNITS_US[table.get("unit", "us")]
    epoch_us = table.get("epoch", DEFAULT_EPOCH_S) * UNITS_US["s"]
    steps = []
    for row, values in enumerate(table["rows"]):
        cells = dict(zip(table["columns"], values, strict=True))
        steps.append(read_step(row, cells, [limit.name for limit in limits], unit_us, epoch_us))
    return Group(table["id"], file, table["source"], table["pins"], limits, tuple(steps))


def read_step(row: int, cells: dict[str, Any], names: list[str], unit_us: int, epoch_us: int) -> Step:
    """One row, already beside the names of its columns."""
    cells = {column: value for column, value in cells.items() if value != "-"}

    def duration(value: Any) -> int | None:
        return None if value == "never" else value * unit_us

    decision: dict[str, Any] = {name: cells.pop(name) for name in ("allowed", "admitted") if name in cells}
    if "wait" in cells:
        decision["wait"] = duration(cells.pop("wait"))
    answers: dict[str, dict[str, Any]] = {name: {} for name in names}
    step = Step(
        row=row,
        now_us=epoch_us + cells.pop("now") * unit_us,
        do=cells.pop("do", "check"),
        user=cells.pop("user", "u") or None,
        tenant=cells.pop("tenant", None) or None,
        plan=cells.pop("plan", None),
        cost=cells.pop("cost", 1),
        times=cells.pop("times", 1),
        every_us=cells.pop("every", 0) * unit_us,
        label=cells.pop("label", None),
        of=cells.pop("of", None),
        decision=decision,
        limits=answers,
    )
    if step.do not in ("check", "refused", "settle", "release"):
        raise ValueError(f"row {row}: nothing is called {step.do!r}")
    for column, value in cells.items():
        limit, _, answer = column.rpartition(".")
        if answer not in ANSWERS or not (limit in names or (limit == "" and len(names) == 1)):
            raise ValueError(f"no such column as {column!r}")
        answers[limit or names[0]][answer] = duration(value) if answer in DURATIONS else value
    return step


def read_limit(name: str, words: dict[str, Any]) -> Limit:
    """A limit in the words of the policy file, without any of the loader's checks."""
    words = dict(words)
    algorithm = words.pop("algorithm", "token-bucket")
    plans = words.pop("plans", {})
    own: dict[str, Any] = {word: words.pop(word) for word in ("rate", "burst", "limit") if word in words}
    fixed = algorithm.endswith("window")
    period_us = Rate.parse(own["rate"]).period_us if "rate" in own else None
    limit = Limit(
        name=name,
        key=tuple(words.pop("key", ("user",))),
        algorithm=algorithm,
        numbers=read_numbers(algorithm, own),
        plans={plan: read_numbers(algorithm, {**own, **changed}) for plan, changed in plans.items()},
        window_us=period_us if fixed else None,
        align=words.pop("align", None),
        timezone=words.pop("timezone", None),
        ttl_us=parse_duration(words.pop("ttl")) if "ttl" in words else None,
        count_denied=words.pop("count_denied", False),
        mode=words.pop("mode", "enforce"),
        cost=words.pop("cost", "request"),
    )
    if words:
        raise ValueError(f"limit {name}: no such words as {list(words)}")
    return limit


def read_numbers(algorithm: str, words: dict[str, Any]) -> Numbers:
    """The numbers of a limit or a plan; a plan's words are already merged with the limit's."""
    if algorithm == "concurrency":
        return Numbers(words["limit"])
    rate = Rate.parse(words["rate"])
    if algorithm == "token-bucket":
        return Numbers(words.get("burst", rate.count), *rate.reduced)
    return Numbers(rate.count)
