"""One answer to one subject: what is remembered, spread and shown of it.

For each subject there are three places, and each is filled by whoever wrote last: what an operator said (a block, or
that none shall be), what a detector said (a block or a challenge), and a detector's throttle. A later stamp wins
wherever two copies meet, so it does not matter in which order, by which way or how often a copy arrives.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, Literal

import msgspec

from shield.core.cidr import canonical

ADDRESS: Final = "ip"
NETWORK: Final = "network"
SUBJECTS: Final = ("user", "tenant", "api_key", "session")
KINDS: Final = (ADDRESS, NETWORK, *SUBJECTS)

BLOCKED: Final = "blocked"
CHALLENGE: Final = "challenge"
THROTTLE: Final = "throttle"
LIFTED: Final = "lifted"
OPERATOR: Final = "operator"

# Of a user or key that can be blocked: whoever calls himself something longer is still counted by his limits.
MAX_VALUE_CHARS: Final = 1_024
MAX_WHY_CHARS: Final = 500
MAX_BY_CHARS: Final = 128
# No block that ends lasts longer; for good is said by not saying until when.
MAX_LASTING_US: Final = 100 * 365 * 86_400_000_000
_FOR_GOOD: Final = 2**62
_SURROGATES: Final = re.compile("[\ud800-\udfff]")

Subject = tuple[str, str]
"""(kind, value): one of KINDS, and its canonical text."""
Place = tuple[str, str, str]
"""(whose, kind, value): "operator", "detector" or "throttle", and the subject."""


class Block(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, tag="block", tag_field="what"):
    """One subject, refused, challenged or throttled until an instant; or, in an operator's place, let go."""

    kind: str
    value: str
    stamp_us: int
    """Later ones of the same place win."""
    reason: Literal["blocked", "challenge", "throttle", "lifted"]
    by: str
    """Who: "operator" and a name, or "detector:NAME"."""
    since_us: int
    until_us: int | None = None
    """None: until it is lifted."""
    why: str = ""
    level: int = 0
    """How many steps of the escalation it has climbed."""
    factor: float = 1.0
    """throttle: of what the limits allow."""

    @property
    def subject(self) -> Subject:
        return self.kind, self.value

    @property
    def by_detector(self) -> bool:
        return self.by.startswith("detector:")

    @property
    def place(self) -> Place:
        whose = THROTTLE if self.reason == THROTTLE else "detector" if self.by_detector else OPERATOR
        return whose, self.kind, self.value

    @property
    def order(self) -> str:
        """41 digits; of two copies for one place the one whose digits, and then text, are greater stays, everywhere."""
        until_us = _FOR_GOOD if self.until_us is None else self.until_us
        return f"{self.stamp_us:020d}{self.reason == LIFTED:d}{until_us:020d}"

    @property
    def rank(self) -> tuple[str, bytes]:
        """What `order` begins, and the text decides where that is the same."""
        return self.order, msgspec.json.encode(self)

    def ends_before(self, now_us: int) -> bool:
        """Whether it is over."""
        return self.until_us is not None and self.until_us <= now_us

    def as_object(self) -> dict[str, object]:
        """For people; times are Unix seconds."""
        shown: dict[str, object] = {
            "kind": self.kind,
            "value": self.value,
            "reason": self.reason,
            "until": None if self.until_us is None else self.until_us / 1_000_000,
            "by": self.by,
            "why": self.why,
            "since": self.since_us / 1_000_000,
            "level": self.level,
        }
        return shown | {"factor": self.factor} if self.reason == THROTTLE else shown


def checked(block: Block) -> Block:
    """The same, from wherever it came. ValueError for what cannot be."""
    if subject_of(block.kind, block.value) != block.subject or not 0 <= block.level < 64:
        raise ValueError(f"no block: {block.kind}")
    if not all(0 <= at_us < _FOR_GOOD for at_us in (block.stamp_us, block.since_us, block.until_us or 0)):
        raise ValueError("no block: its times")
    return block


def subject_of(kind: str, value: str, ipv6_prefix: int = 128) -> Subject:
    """The canonical subject; an IPv6 address counts with its prefix. ValueError names what is wrong."""
    if kind not in KINDS:
        raise ValueError(f"kind: found {kind[:64]!r}; allowed: {', '.join(KINDS)}")
    if not 0 < len(value) <= MAX_VALUE_CHARS or _SURROGATES.search(value):
        raise ValueError(f"{kind}: allowed: text of 1 to {MAX_VALUE_CHARS:,} characters")
    if kind == ADDRESS:
        return kind, _address(value, ipv6_prefix)
    if kind == NETWORK:
        try:
            network = ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise ValueError(f"network: found {value[:64]!r}; allowed: a network such as 203.0.113.0/24") from None
        mapped = getattr(network.network_address, "ipv4_mapped", None)
        if mapped is not None and network.prefixlen >= 96:
            network = ipaddress.ip_network((mapped, network.prefixlen - 96))
        return kind, str(network)
    return kind, value


def _address(value: str, ipv6_prefix: int) -> str:
    """ "203.0.113.7", "2001:db8::1" or, where a prefix of an address is one subject, "2001:db8::/64"."""
    text, slash, bits = value.partition("/")
    prefix = int(bits) if slash and bits.isascii() and bits.isdigit() and len(bits) < 4 else ipv6_prefix
    key = canonical(text, min(prefix, ipv6_prefix, 128)) if not slash or bits.isdigit() else None
    if key is None or (len(key) == 4 and slash):
        raise ValueError(f"ip: found {value[:64]!r}; allowed: an address; for a network say network")
    prefix = min(prefix, ipv6_prefix)
    shown = str(ipaddress.ip_address(key))
    return shown if len(key) == 4 or prefix >= 128 else f"{shown}/{prefix}"
