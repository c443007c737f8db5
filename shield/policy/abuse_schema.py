"""The keys of `[blocks]` and `[events]`: types, defaults, bounds and meanings."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

from shield.policy import scalars
from shield.policy.abuse import DEFAULT_MAX_BLOCKS, Blocks, Events
from shield.policy.detector import ENFORCE, SHADOW
from shield.policy.identity_schema import file_or_url
from shield.policy.kinds import Key, ListOf, Table
from shield.policy.report import REFUSED
from shield.policy.scalars import Scalar, Wrong

MAX_SINKS: Final = 8

_SUBJECTS = ListOf(scalars.text("text", "printable text of 1 to 256 characters", r".+", 256), 1_024)
BLOCKS = Table(
    "blocks",
    "How long blocks last, who is never blocked, and lists of networks that always are. Blocks are set by detectors "
    "and by operators, see docs/blocks.md.",
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
            ListOf(file_or_url(), 64),
            "Networks or addresses that are always blocked, one a line, at most four million in a list.",
            default=[],
        ),
        Key(
            "refresh",
            scalars.duration("10s", "30d"),
            "How often the lists are read again. One that cannot be read, or holds a line that is no network, stays as "
            "it was.",
            default="1h",
        ),
        Key(
            "steps",
            ListOf(scalars.duration("1s", "30d"), 16, 1),
            "How long a detector's first, second and further answers to a subject last.",
            default=["1m", "10m", "1h", "24h"],
        ),
        Key(
            "decay",
            scalars.duration("1m", "30d"),
            "A subject that was left alone for so long goes one step back.",
            default="24h",
        ),
        Key("max_blocks", scalars.integer(1, 1_000_000), "How many are kept, 1 KB each.", default=DEFAULT_MAX_BLOCKS),
        Key(
            "mode",
            scalars.choice(ENFORCE, SHADOW),
            "`shadow`: requests that a block would have refused are counted and told, and go on.",
            default=ENFORCE,
        ),
    ),
)


def _sink() -> Scalar:
    allowed = (
        '"stdout", "file:NAME", "syslog:unix:/dev/log", "syslog:HOST:PORT" (UDP) or "redis://HOST:PORT/DB?stream=NAME"'
    )

    def parse(value: Any) -> str:
        if not isinstance(value, str) or len(value) > 1_024 or not value.isprintable():
            raise Wrong
        kind, _, rest = value.partition(":")
        if kind in ("redis", "rediss"):
            _check_url(value)
        elif kind == "syslog":
            _check_syslog(rest)
        elif value != "stdout" and (kind != "file" or not rest):
            raise Wrong
        return value

    return Scalar("sink", allowed, parse)


def _check_url(value: str) -> None:
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise Wrong from None
    if not host:
        raise Wrong


def _check_syslog(rest: str) -> None:
    if rest.startswith("unix:") and len(rest) > len("unix:"):
        return
    host, _, port = rest.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port[:6]) <= 65_535:
        raise Wrong


EVENTS = Table(
    "events",
    "Security events: one JSON object of the Open Cybersecurity Schema Framework for each detection, refusal, block "
    "and replaced policy, see docs/events.md. Without this section there are none.",
    (
        Key("to", ListOf(_sink(), MAX_SINKS, 1), "Where they go.", required=True),
        Key(
            "subjects",
            scalars.choice("hash", "plain"),
            "Whether addresses, users and keys stand in events as a keyed hash or as they are.",
            default="hash",
        ),
        Key(
            "key_file",
            scalars.text("file", '"file:NAME", relative to the policy file', r"file:.{1,1024}", 1_029),
            "The key of that hash, the same on all nodes whose events are put together.",
            default_doc="a key of the server's own, anew with every start",
        ),
        Key(
            "fold",
            scalars.duration("1s", "1h"),
            "Refusals of one subject for the same reason within so long are one event with a count.",
            default="1m",
        ),
    ),
)


def blocks_of(values: Any) -> Blocks | None:
    """The section, None where it is absent or refused."""
    if not _is_whole(values):
        return None
    return Blocks(
        allow=values["allow"],
        allow_users=values["allow_users"],
        allow_tenants=values["allow_tenants"],
        allow_api_keys=values["allow_api_keys"],
        lists=values["lists"],
        refresh_us=values["refresh"],
        steps_us=values["steps"],
        decay_us=values["decay"],
        max_blocks=values["max_blocks"],
        mode=values["mode"],
    )


def events_of(values: Any) -> Events | None:
    """The section, None where it is absent or refused."""
    if not _is_whole(values):
        return None
    return Events(values["to"], values["subjects"], values["key_file"], values["fold"])


def _is_whole(values: Any) -> bool:
    return values is not None and values is not REFUSED and all(value is not REFUSED for value in values.values())
