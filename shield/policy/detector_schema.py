"""The keys of `[[detector]]`: types, defaults, bounds and meanings. What spans several is in `detector_rules.py`."""

from __future__ import annotations

import re
from typing import Any

from shield.detect.traits import TRAITS
from shield.policy import scalars
from shield.policy.detector import ACTIONS, ENFORCE, MEASURES, SEVERITIES, SHADOW, SUBJECTS
from shield.policy.kinds import Key, ListOf, Table
from shield.policy.report import suggestion
from shield.policy.scalars import Scalar, Wrong

MAX_DETECTORS = 64  # a bit each
MAX_RULES = 64  # likewise: the conditions of all detectors together
MAX_KEYS = 1_048_576  # remembered by one detector: 436 MB at most
DEFAULT_KEYS = 16_384  # 3 MB of counts, 7 MB where different values are counted
MAX_CAPACITY = 10**9

NAME = r"[a-z0-9][a-z0-9_.-]{0,63}"
_ATTRIBUTE = re.compile(r"attributes\.[A-Za-z0-9_-]{1,64}")
_FIELDS = (
    *("ip", "network", "principal", "tenant", "user", "api_key", "session", "token", "plan"),
    *("method", "host", "path", "route", "target", "query", "user_agent", "content_type"),
)
_AMOUNTS = ("bytes", "cost")
_EVENT = r"[a-z0-9][a-z0-9_.-]{0,63}"


def _field(optional: bool, amounts: bool) -> Scalar:
    known = (*_FIELDS, *_AMOUNTS) if amounts else _FIELDS
    words = f"one of {', '.join(known)} or attributes.NAME"
    if optional:
        words += ', with a "?" behind it where it may be absent'

    def parse(value: Any) -> str:
        if not isinstance(value, str):
            raise Wrong
        name = value.removesuffix("?") if optional else value
        if name in known or _ATTRIBUTE.fullmatch(name):
            return value
        raise Wrong(suggestion(name, known).removeprefix(", "))

    return Scalar("field", words, parse)


def _status() -> Scalar:
    def parse(value: Any) -> tuple[int, ...]:
        if type(value) is int and 100 <= value <= 599:
            return (value,)
        if isinstance(value, str) and re.fullmatch(r"[1-5]xx", value):
            low = int(value[0]) * 100
            return tuple(range(low, low + 100))
        raise Wrong

    return Scalar("status", 'a status from 100 to 599, or "2xx", "4xx" and the like', parse)


def _fraction(low: float, high: float) -> Scalar:
    def parse(value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            raise Wrong
        return float(value)

    return Scalar("number", f"a number from {low:g} to {high:g}", parse)


def _plain(what: str, most: int) -> Scalar:
    return scalars.text(what, f"printable text of 1 to {most} characters", r".+", most)


CONDITION = Table(
    "detector.on",
    "Which events a detector looks at; all that is said must hold, and of several conditions one is enough. A "
    "condition with a status or an event is about outcomes, which /v1/report states; any other is about requests.",
    (
        Key("method", ListOf(scalars.method(), 32, 1, single=True), "Methods.", default_doc="every method"),
        Key("path", ListOf(scalars.path_template(), 64, 1, single=True), "Path templates.", default_doc="every path"),
        Key("status", ListOf(_status(), 64, 1), "The HTTP status of the outcome.", default_doc="not asked for"),
        Key(
            "event",
            ListOf(scalars.text("event", f"text that matches {_EVENT}", _EVENT, 64), 32, 1, single=True),
            "What the service reported: login_failed, login_ok, user_unknown, payment_failed, token_failed, or a name "
            "of your own.",
            default_doc="not asked for",
        ),
        Key(
            "trait",
            ListOf(scalars.choice(*TRAITS), 16, 1, single=True),
            "What target and agent look like.",
            default_doc="none",
        ),
        Key(
            "without",
            ListOf(scalars.choice(*TRAITS), 16, 1, single=True),
            "What they must not look like.",
            default_doc="none",
        ),
        Key(
            "user_agent",
            ListOf(_plain("text", 128), 32, 1, single=True),
            "One of these is part of it.",
            default_doc="none",
        ),
        Key(
            "country",
            ListOf(_plain("country", 8), 256, 1, single=True),
            "attributes.country, or the country of the address by --geo.",
            default_doc="none",
        ),
        Key(
            "asn",
            ListOf(_plain("network number", 16), 256, 1, single=True),
            "attributes.asn, as text, or the network of the address by --geo.",
            default_doc="none",
        ),
    ),
)

DETECTOR = Table(
    "detector",
    "A kind of abuse that is recognised from the stream of requests and outcomes, written [[detector]]. Either `use`, "
    "and what differs from the packaged detector of that name, or all of it.",
    (
        Key(
            "use",
            scalars.text("name", "the name of a packaged detector", NAME, 64),
            "A packaged detector, see docs/detectors.md; `packaged`: all of them.",
            default_doc="none",
        ),
        Key(
            "name",
            scalars.text("name", f"text that matches {NAME}", NAME, 64),
            "Unique in the policy.",
            default_doc="required without use",
        ),
        Key(
            "on",
            ListOf(CONDITION, 16, 1),
            "Which events. A single table, or a list of them.",
            default_doc="required without use",
        ),
        Key("failing", ListOf(CONDITION, 16, 1), "Which of them are failures, for a share.", default_doc="none"),
        Key("key", ListOf(_field(True, False), 8, 1), "What it counts by.", default_doc="required without use"),
        Key("measure", scalars.choice(*MEASURES), "What is measured.", default_doc="required without use"),
        Key(
            "of",
            _field(False, True),
            "The field whose different values or whose amounts are measured.",
            default_doc="none",
        ),
        Key(
            "capacity",
            scalars.integer(0, MAX_CAPACITY),
            "Units that a leaky bucket holds: what comes on top is a detection. For change and value-change the least "
            "that is ever too much.",
            default_doc="0",
        ),
        Key("leak", scalars.rate(), "How fast the bucket drains.", default_doc="required for count, distinct and sum"),
        Key("share", _fraction(0.01, 1.0), "The share of failures that it takes.", default_doc="required for ratio"),
        Key(
            "minimum",
            scalars.integer(1, 1_000_000),
            "Events in the window before a share counts; bins or values seen before a change does.",
            default_doc="1; change: 30",
        ),
        Key("window", scalars.duration("1s", "30d"), "The window of a share, a bin of a change.", default_doc='"1m"'),
        Key("weight", _fraction(0.001, 0.5), "What a bin or value weighs in the average.", default=0.05),
        Key("deviations", _fraction(1, 100), "How many deviations above the average are too much.", default=4.0),
        Key("distance_km", scalars.integer(1, 20_000), "travel: the least distance.", default=500),
        Key("speed_kmh", scalars.integer(1, 100_000), "travel: the greatest speed.", default=900),
        Key(
            "quiet",
            scalars.duration("0s", "24h"),
            "How long a key that was reported is not reported again.",
            default="1m",
        ),
        Key(
            "action",
            scalars.choice(*ACTIONS),
            "What is done about it beside telling: `throttle` the limits that count by the subject, refuse it with the "
            "reason `challenge` or `blocked`. For how long is said under [blocks].",
            default="observe",
        ),
        Key(
            "factor",
            _fraction(0.001, 0.999),
            "Of what its limits allow, this much is left to a throttled subject; one unit at least.",
            default_doc="0.1; only with action = throttle",
        ),
        Key(
            "mode",
            scalars.choice(ENFORCE, SHADOW),
            "`shadow`: what it would have done is told, and not done.",
            default=ENFORCE,
        ),
        Key("subject", scalars.choice(*SUBJECTS), "Whom it is about.", default_doc="the first such field of key"),
        Key("max_keys", scalars.integer(8, MAX_KEYS), "How many keys it remembers.", default=DEFAULT_KEYS),
        Key(
            "covers",
            ListOf(scalars.text("name", "the name of a detector", NAME, 64), 32),
            "Detectors that stay silent about a subject that this one has just reported.",
            default=[],
        ),
        Key("severity", scalars.choice(*SEVERITIES), "Of the security event.", default="medium"),
        Key(
            "oat",
            ListOf(scalars.text("id", "an id such as OAT-008", r"OAT-0[0-2][0-9]", 7), 8),
            "OWASP automated threats.",
            default=[],
        ),
        Key(
            "api",
            ListOf(scalars.text("id", "an id such as API1:2023", r"API(?:[1-9]|10):20[0-9][0-9]", 10), 8),
            "OWASP API security risks.",
            default=[],
        ),
        Key(
            "note",
            scalars.text("text", "printable text of 1 to 500 characters", r".+", 500),
            "What it means, for people.",
            default_doc="none",
        ),
    ),
)
