"""The two listeners and what answers where."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

from shield.identity.callers import AllowedCallers
from shield.server.admin import admin_routes
from shield.server.auth import CallerTokens
from shield.server.authz import ENVOY_PREFIX, AuthzReader, authz_at_once, authz_handler, read_authz, read_envoy
from shield.server.check import check_at_once, check_handler, plain_check
from shield.server.idempotency import idempotency_handler
from shield.server.listener import POST_ONLY, Listener, Route
from shield.server.report import release_handler, report_handler
from shield.server.service import Front, Service


def decision_listener(
    service: Service, tokens: CallerTokens | None, callers: AllowedCallers | None = None, *, express: bool = True
) -> Listener:
    """For gateways and whoever else asks. With `tokens` every caller needs one, with `callers` a certificate of
    somebody on that list. Without `express` aiohttp serves all
    of them: the same answers, more slowly.
    """
    routes = {
        "/v1/check": Route(
            "check",
            check_handler(service),
            POST_ONLY,
            at_once=check_at_once(service),
            plain=partial(plain_check, service),
        ),
        "/v1/report": Route("report", report_handler(service), POST_ONLY),
        "/v1/release": Route("release", release_handler(service), POST_ONLY),
        "/v1/idempotency": Route("idempotency", idempotency_handler(service), POST_ONLY),
        "/v1/authz": _authz(service, read_authz),
    }
    envoy = (ENVOY_PREFIX, _authz(service, read_envoy))
    return Listener(service, routes, prefix=envoy, tokens=tokens, callers=callers, express=express, sheds=True)


def _authz(service: Service, read: AuthzReader) -> Route:
    return Route("authz", authz_handler(service, read), at_once=authz_at_once(service, read))


def admin_listener(
    service: Front,
    tokens: CallerTokens | None,
    before_scrape: Callable[[], None] = lambda: None,
    callers: AllowedCallers | None = None,
) -> Listener:
    """For operators, probes and Prometheus."""
    # Of its service a listener asks nothing that a Front does not have.
    return Listener(cast(Service, service), admin_routes(service, before_scrape), tokens=tokens, callers=callers)
