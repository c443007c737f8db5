"""The rules of [guard.idempotency] that span several keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from shield.policy.model import IdempotencyGuard, Routes
from shield.policy.report import REFUSED, Report

PATH: Final = "guard.idempotency"


def idempotency_of(values: Any, report: Report) -> IdempotencyGuard | None:
    """The model of [guard.idempotency], None where there is none or it is wrong, which has been reported."""
    if values is None or values is REFUSED or any(value is REFUSED for value in values.values()):
        return None
    strict = values["strict"]
    if strict is not None and strict["method"] is None and strict["path"] is None:
        report.add(f"{PATH}.strict", 'found no condition; allowed: a path or method, such as path = "/{rest...}"')
    if any(value is not None and REFUSED in value.values() for value in (values["match"], strict)):
        return None
    if values["lease"] > values["retention"]:
        report.add(f"{PATH}.lease", "found a lease longer than the retention; allowed: at most as long")
    return IdempotencyGuard(
        required=values["required"],
        methods=values["methods"],
        match=_routes(values["match"]) or Routes(),
        strict=_routes(strict),
        syntax=values["syntax"],
        retention_us=values["retention"],
        lease_us=values["lease"],
        keep=values["keep"],
        max_body_bytes=values["max_body_bytes"],
        max_keys_per_tenant=values["max_keys_per_tenant"],
        max_keys=values["max_keys"],
        max_bytes=values["max_bytes"],
        when_store_fails=values["when_store_fails"],
    )


def _routes(match: Mapping[str, Any] | None) -> Routes | None:
    return None if match is None else Routes(match["method"] or (), match["path"] or ())
