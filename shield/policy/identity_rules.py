"""The rules of [identity] that span several keys, and the limit that failed verifications are charged to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from shield.policy.model import (
    CONCURRENCY,
    IDENTITY_FAILURES,
    SYMMETRIC_ALGORITHMS,
    TOKEN_BUCKET,
    ApiKeys,
    Identity,
    JwtIssuer,
    Limit,
    Numbers,
)
from shield.policy.report import REFUSED, Report
from shield.rate import Rate

FAILURES_RATE: Final = "10/s"
FAILURES_BURST: Final = 50
"""A page of a client whose token has just expired asks a few dozen times at once; ten wrong tokens a second cost a
thousandth of a core."""


def default_failures() -> Limit:
    """The limit that stands where the policy has none of that name."""
    numbers = Numbers(FAILURES_BURST, *Rate.parse(FAILURES_RATE).reduced)
    return Limit(IDENTITY_FAILURES, ("ip",), TOKEN_BUCKET, numbers, count_denied=True)


def identity_of(
    values: Any,
    limits: Sequence[Limit],
    places: Mapping[str, int],
    report: Report,
    directory: str | None,
    *,
    signed: bool = False,
) -> Identity:
    """The model of [identity]. `limits`: all of the policy's, `places`: where in the file each name is; the limit for
    failures is taken over. `signed`: signatures are verified, whoever asks.
    """
    identity, wanted = Identity(directory=directory), False
    if values is not None and values is not REFUSED:
        identity, wanted = _identity(values, report, directory)
    if not wanted and not signed:
        return identity
    own = next((limit for limit in limits if limit.name == IDENTITY_FAILURES), None)
    failures = default_failures() if own is None else replace(own, count_denied=True)
    if own is not None:
        _check_failures(own, f"limit[{places[own.name]}]", report)
    return replace(identity, failures=failures)


def _identity(values: Mapping[str, Any], report: Report, directory: str | None) -> tuple[Identity, bool]:
    """The model without its limit, and whether tokens or API keys are verified."""
    issuers = _issuers(values["jwt"], report)
    api_keys = _api_keys(values["api_keys"])
    wanted = bool(values["jwt"]) or values["api_keys"] is not None
    if values["anonymous"] is False and not wanted:
        report.wrong(
            "identity.anonymous",
            False,
            "true",
            "without [[identity.jwt]] or [identity.api_keys] every request would be refused",
        )
    identity = Identity(
        trusted_proxies=values["trusted_proxies"],
        ipv6_prefix=values["ipv6_prefix"],
        anonymous=values["anonymous"],
        headers=values["headers"],
        jwt=issuers,
        api_keys=api_keys,
        directory=directory,
    )
    return identity, wanted


def _issuers(entries: Any, report: Report) -> tuple[JwtIssuer, ...]:
    if entries is REFUSED:
        return ()
    issuers: list[JwtIssuer] = []
    names: dict[str, int] = {}
    urls: dict[str, int] = {}
    for at, values in enumerate(entries):
        if values is REFUSED:
            continue
        path = f"identity.jwt[{at}]"
        issuer, name = values["issuer"], values["name"] or values["issuer"]
        if issuer is not REFUSED and urls.setdefault(issuer, at) != at:
            report.wrong(
                f"{path}.issuer", issuer, "an issuer of its own", f"identity.jwt[{urls[issuer]}] has it already"
            )
        elif name is not REFUSED and names.setdefault(name, at) != at:
            report.wrong(f"{path}.name", name, "a name of its own", f"identity.jwt[{names[name]}] has it already")
        _check_keys(values, path, report)
        if any(value is REFUSED for value in values.values()):
            continue
        if values["keep"] < values["refresh"]:
            report.add(f"{path}.keep", "found less than refresh; allowed: refresh or longer")
        issuers.append(
            JwtIssuer(
                issuer=issuer,
                name=name,
                audiences=values["audience"],
                algorithms=values["algorithms"],
                jwks=values["jwks"],
                secret=values["secret"],
                claims=values["claims"],
                leeway_us=values["leeway"],
                typ=values["typ"],
                max_token_bytes=values["max_token_bytes"],
                refresh_us=values["refresh"],
                keep_us=values["keep"],
            )
        )
    return tuple(issuers)


def _check_keys(values: dict[str, Any], path: str, report: Report) -> None:
    """Public keys or a secret, and algorithms that go with it: a public key must never serve as a secret."""
    jwks, secret, algorithms = values["jwks"], values["secret"], values["algorithms"]
    if jwks is None and secret is None:
        report.add(f"{path}.jwks", "missing; allowed: jwks, or secret for HS256, HS384 and HS512")
    elif jwks is not None and secret is not None:
        report.add(f"{path}.secret", "found beside jwks; allowed: one of the two")
    elif algorithms is not REFUSED:
        for at, name in enumerate(algorithms):
            if (name in SYMMETRIC_ALGORITHMS) != (secret is not None):
                key = "secret" if secret is None else "jwks"
                report.wrong(f"{path}.algorithms[{at}]", name, f"only together with {key}")


def _api_keys(values: Any) -> ApiKeys | None:
    if values is None or values is REFUSED or REFUSED in (values["store"], values["secret"]):
        return None
    return ApiKeys(values["store"], values["secret"] or values["store"] + ".secret")


def _check_failures(limit: Limit, path: str, report: Report) -> None:
    """It is charged before anything but the address is known, one unit for each failure."""
    if limit.key != ("ip",):
        report.wrong(f"{path}.key", limit.key, '["ip"]', "nothing else is known of a wrong token")
    if limit.algorithm == CONCURRENCY:
        report.wrong(f"{path}.algorithm", limit.algorithm, f"any other in the limit {IDENTITY_FAILURES}")
    if limit.cost != 1:
        report.wrong(f"{path}.cost", limit.cost, "1")
    if limit.plans or limit.methods or limit.paths:
        report.add(
            path, f"found plans or match; allowed: neither in {IDENTITY_FAILURES}, which counts every wrong token"
        )
    if limit.missing != "skip":
        report.wrong(f"{path}.missing", limit.missing, '"skip"')
