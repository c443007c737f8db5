"""What a policy says about blocks and security events: plain frozen values, checked by the loader and never again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from shield.policy.detector import ENFORCE

MINUTE_US: Final = 60_000_000
DAY_US: Final = 86_400_000_000
DEFAULT_STEPS_US: Final = (MINUTE_US, 10 * MINUTE_US, 60 * MINUTE_US, DAY_US)
DEFAULT_MAX_BLOCKS: Final = 100_000


@dataclass(frozen=True, slots=True)
class Blocks:
    """How blocks are kept, and who is never blocked."""

    allow: tuple[str, ...] = ()  # canonical networks
    allow_users: tuple[str, ...] = ()
    allow_tenants: tuple[str, ...] = ()
    allow_api_keys: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()  # "file:NAME" or a URL
    refresh_us: int = 3_600_000_000
    steps_us: tuple[int, ...] = DEFAULT_STEPS_US
    decay_us: int = DAY_US
    max_blocks: int = DEFAULT_MAX_BLOCKS
    mode: str = ENFORCE


@dataclass(frozen=True, slots=True)
class Events:
    """Where security events go, and what they may show."""

    to: tuple[str, ...]
    subjects: str = "hash"  # or "plain"
    key_file: str | None = None  # "file:NAME"
    fold_us: int = MINUTE_US
