"""The model of [guard.replay]: how long a request may be on its way, and how many nonces a tenant may have then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import gcd
from types import MappingProxyType
from typing import Any, Literal

from shield.policy.model import TOKEN_BUCKET, Limit, Numbers
from shield.policy.report import REFUSED, Report


@dataclass(frozen=True, slots=True)
class ReplayScheme:
    """A kind of signature that has a nonce in it, and by whose keys."""

    use: str
    secrets: tuple[str, ...] = ()  # "file:NAME" each, of webhooks
    keys: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)  # keyid -> "file:NAME"
    origin: str | None = None  # scheme, host and port that clients sign for; None: https and the request's host
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplayGuard:
    """A request is let through once. Its nonce is held until no clock would accept its timestamp any more."""

    required: bool = False
    window_us: int = 300_000_000
    future_skew_us: int = 30_000_000
    max_per_tenant: int = 100_000
    when_store_fails: Literal["deny", "allow"] = "deny"
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    schemes: tuple[ReplayScheme, ...] = ()

    @property
    def bounds(self) -> tuple[Limit, Limit]:
        """What keeps one tenant's nonces below `max_per_tenant`: charged one unit with each, in the same step. The
        first is each tenant's own, the second that of all requests without a tenant together.

        A nonce is held for at most window + 2 * future_skew. A bucket of a quarter of the bound that refills three
        quarters of it in that time admits no more than the bound in any such time.
        """
        held_us = self.window_us + 2 * self.future_skew_us
        units, period_us = 3 * self.max_per_tenant, 4 * held_us
        common = gcd(units, period_us)
        if units > period_us:  # no rate is faster than one a microsecond
            units = period_us = common = 1
        numbers = Numbers(max(1, self.max_per_tenant // 4), units // common, period_us // common)

        def bound(name: str, key: tuple[str, ...]) -> Limit:
            return Limit(
                name,
                key,
                TOKEN_BUCKET,
                numbers,
                methods=self.methods,
                paths=self.paths,
                when_store_fails="allow",
                when_full="deny",
            )

        # No limit of a policy file has such a name.
        return bound("~nonces", ("tenant",)), bound("~nonces-of-nobody", ())


def replay_of(values: Any, report: Report) -> ReplayGuard | None:
    """The model of the table's values; None where there is none, or where they were refused."""
    if values is None or values is REFUSED or any(value is REFUSED for value in values.values()):
        return None
    match = values["match"] if values["match"] is not None else {"method": None, "path": None}
    if values["future_skew"] > values["window"]:
        report.add("guard.replay.future_skew", "found a longer time than window; allowed: at most as long as window")
    schemes = []
    for at, entry in enumerate(values["scheme"]):
        scheme = _scheme(entry, f"guard.replay.scheme[{at}]", report)
        if scheme is not None:
            schemes.append(scheme)
    return ReplayGuard(
        required=values["required"],
        window_us=values["window"],
        future_skew_us=values["future_skew"],
        max_per_tenant=values["max_per_tenant"],
        when_store_fails=values["when_store_fails"],
        methods=match["method"] or (),
        paths=match["path"] or (),
        schemes=tuple(schemes),
    )


def _scheme(values: Any, path: str, report: Report) -> ReplayScheme | None:
    if values is REFUSED or any(value is REFUSED for value in values.values()):
        return None
    use = values["use"]
    wanted = "keys" if use == "http-signature" else None if use == "dpop" else "secrets"
    for name in ("keys", "secrets"):
        if name == wanted and not values[name]:
            report.add(f"{path}.{name}", f'missing; allowed: files, because of use = "{use}"')
        elif name != wanted and values[name]:
            report.add(f"{path}.{name}", f'found with use = "{use}"; allowed: leave it out')
    if values["origin"] is not None and use not in ("http-signature", "dpop"):
        report.add(f"{path}.origin", f'found with use = "{use}", which signs no URL; allowed: leave it out')
    match = values["match"] if values["match"] is not None else {"method": None, "path": None}
    return ReplayScheme(
        use,
        values["secrets"],
        values["keys"],
        values["origin"],
        match["method"] or (),
        match["path"] or (),
    )
