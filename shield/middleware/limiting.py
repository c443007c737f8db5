"""A limit of one handler's own, written where the handler is.

    @limit("5/min", key="user")                       a fact of the request, behind a middleware
    @limit("5/min", key=lambda user_id, **_: user_id)  something of the call's own, anywhere

Behind a middleware its bucket lives in the middleware's store and its fields join the response's; without one, in this
process, and `Refused` is raised to the caller.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, Final, TypeVar

from shield.decision import Decision
from shield.errors import Refused
from shield.middleware.turn import Turn, current
from shield.policy import Policy
from shield.policy.model import Limit
from shield.request import Request
from shield.shield import Shield

F = TypeVar("F", bound=Callable[..., Any])
Key = str | Sequence[str] | Callable[..., object]

_OWN: Final = "call"
"""The attribute that holds what a key function returned."""
_NAME_CHARS: Final = 64


def limit(
    rate: str,
    *,
    key: Key,
    name: str | None = None,
    burst: int | None = None,
    algorithm: str = "token-bucket",
    cost: int = 1,
    shield: Shield | None = None,
) -> Callable[[F], F]:
    """At most `rate` calls for each key, "5/min" for instance.

    `key`: a field of the request or several ("user", "attributes.kind"), or a function of the call's arguments that
    returns text; None or "" from it refuses the call, because it would count with nobody. `name` is the limit's, by
    default the function's. `shield` keeps the bucket where there is no middleware, or in place of its own.

    PolicyError for a rate or key that is none.
    """

    def decorated(function: F) -> F:
        own = _limit(name or _name_of(function), rate, key, burst, algorithm, cost)
        asked = _Asked(own, key, shield)
        if iscoroutinefunction(function):

            @wraps(function)
            async def limited(*args: Any, **kwargs: Any) -> Any:
                await asked.check(args, kwargs)
                return await function(*args, **kwargs)

        else:

            @wraps(function)
            def limited(*args: Any, **kwargs: Any) -> Any:
                asked.check_blocking(args, kwargs)
                return function(*args, **kwargs)

        return limited  # type: ignore[return-value]

    return decorated


class _Asked:
    """One limit, asked before each call."""

    def __init__(self, own: Limit, key: Key, shield: Shield | None) -> None:
        self._limits = (own,)
        self._key = key if callable(key) else None
        self._shield = shield
        self._alone: Shield | None = None

    async def check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        turn = current()
        decision = await self._at(turn).check_only(self._limits, self._request(turn, args, kwargs))
        _judge(turn, decision)

    def check_blocking(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        turn = current()
        shield, request = self._at(turn), self._request(turn, args, kwargs)
        if turn is not None and turn.call is not None:
            decision = turn.call(shield.check_only(self._limits, request))
        else:
            decision = shield.check_only_nowait(self._limits, request)
        _judge(turn, decision)

    def _at(self, turn: Turn | None) -> Shield:
        if self._shield is not None:
            return self._shield
        if turn is not None:
            return turn.shield
        if self._alone is None:
            self._alone = Shield(Policy(name=self._limits[0].name))
        return self._alone

    def _request(self, turn: Turn | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Request:
        if self._key is None:
            return Request() if turn is None else turn.principal
        value = self._key(*args, **kwargs)
        return Request(attributes={_OWN: None if value is None else str(value)})


def _judge(turn: Turn | None, decision: Decision) -> None:
    if turn is not None:
        turn.also.append(decision)
        if not decision.allowed:
            turn.refusal = decision
    if not decision.allowed:
        raise Refused(decision)


def _limit(name: str, rate: str, key: Key, burst: int | None, algorithm: str, cost: int) -> Limit:
    fields = [f"attributes.{_OWN}"] if callable(key) else [key] if isinstance(key, str) else list(key)
    table: dict[str, Any] = {"name": name, "key": fields, "rate": rate, "algorithm": algorithm, "cost": cost}
    table["missing"] = "deny"
    if burst is not None:
        table["burst"] = burst
    return Policy.parse(json.dumps({"version": 1, "limit": [table]}), "json", source=f"limit {name}").limits[0]


def _name_of(function: Callable[..., Any]) -> str:
    """The function's module and name, as limits may be named."""
    whole = f"{function.__module__}.{function.__qualname__}".lower()
    plain = re.sub(r"[^a-z0-9_.-]+", "-", whole).strip("-._") or "handler"
    if len(plain) <= _NAME_CHARS:
        return plain
    # Its end tells functions apart, and a digest of the rest what was cut.
    return hashlib.sha256(whole.encode()).hexdigest()[:8] + "-" + plain[-(_NAME_CHARS - 9) :].lstrip("-._")
