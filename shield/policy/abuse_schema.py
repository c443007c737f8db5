"""The keys of `[blocks]` and `[events]`: types, defaults, bounds and meanings."""

from __future__ import annotations

from typing import Any

from shield.policy import scalars
from shield.policy.kinds import Key, ListOf, Table
from shield.policy.scalars import Scalar, Wrong

_SUBJECTS = ListOf(scalars.text("text", "printable text of 1 to 256 characters", r".+", 256), 1_024)
BLOCKS = Table(
    "blocks",
    "How blocks are kept, and who is never blocked. Blocks are set by detectors and by operators, see docs/blocks.md.",
    (
        Key(
            "allow",
            ListOf(scalars.network(), 1_024),
            "Networks that are never blocked and that no detector looks at. Limits count them all the same.",
            default=[],
        ),
        Key("allow_users", _SUBJECTS, "Users of whom the same is true.", default=[]),
        Key("allow_tenants", _SUBJECTS, "Tenants of whom the same is true.", default=[]),
        Key("allow_api_keys", _SUBJECTS, "API keys of which the same is true.", default=[]),
        Key(
            "lists",
            ListOf(scalars.text("path", "a path of 1 to 1,024 characters", r".+", 1_024), 64),
            "Files with one network or address a line, at most four million in each; read when the policy is.",
            default=[],
        ),
        Key(
            "file",
            scalars.text("path", "a path of 1 to 1,024 characters", r".+", 1_024),
            "Where blocks are remembered across restarts.",
            default_doc="they end with the process",
        ),
        Key(
            "steps",
            ListOf(scalars.duration("1s", "30d"), 16, 1),
            "How long a detector's first, second and further blocks of a subject last.",
            default=["1m", "10m", "1h", "24h"],
        ),
        Key(
            "forget_after",
            scalars.duration("1m", "30d"),
            "A subject that was free of blocks for so long begins again at the first step.",
            default="24h",
        ),
        Key("max_blocks", scalars.integer(1, 1_000_000), "How many are kept; 400 bytes each.", default=100_000),
    ),
)


def _sink() -> Scalar:
    def parse(value: Any) -> str:
        if not isinstance(value, str) or len(value) > 1_024 or not value.isprintable():
            raise Wrong
        kind, _, rest = value.partition(":")
        if value == "stdout" or (kind in ("file", "syslog") and rest):
            return value
        raise Wrong

    return Scalar("sink", '"stdout", "file:PATH", "syslog:unix:/dev/log" or "syslog:HOST:PORT" (UDP)', parse)


EVENTS = Table(
    "events",
    "Security events: one JSON object of the Open Cybersecurity Schema Framework for each detection, refusal, block "
    "and replaced policy, see docs/events.md. Without this section there are none.",
    (
        Key("to", ListOf(_sink(), 8, 1), "Where they go.", required=True),
        Key(
            "subjects",
            scalars.choice("hash", "plain"),
            "Whether addresses, users and keys stand in events as a keyed hash or as they are.",
            default="hash",
        ),
        Key(
            "key_file",
            scalars.text("path", "a path of 1 to 1,024 characters", r".+", 1_024),
            "The key of that hash, the same on all nodes whose events are put together.",
            default_doc="a key of the process",
        ),
        Key(
            "fold",
            scalars.duration("1s", "1h"),
            "Refusals of one subject for the same reason within so long are one event with a count.",
            default="1m",
        ),
    ),
)
