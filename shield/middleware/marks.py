"""What a handler says about itself: it costs more, it counts by something of its own, it is not limited at all.

    @app.get("/report")
    @cost(20)
    async def report(): ...

A mark rests on the handler. The middleware finds the handler before it decides, by asking the framework's own routes;
where no handler is marked nothing is looked up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import msgspec

from shield.request import MAX_COST, Attribute, Request

NAME: Final = "__shield_mark__"
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Mark:
    """What is known of a handler before its request is decided."""

    exempt: bool = False
    cost: int | None = None
    attributes: tuple[tuple[str, Attribute], ...] = ()

    def applied(self, request: Request) -> Request:
        """The request with what its handler adds."""
        changed: dict[str, Any] = {}
        if self.cost is not None:
            changed["cost"] = self.cost
        if self.attributes:
            changed["attributes"] = {**(request.attributes or {}), **dict(self.attributes)}
        return msgspec.structs.replace(request, **changed) if changed else request


def exempt(handler: F) -> F:
    """Requests to this handler are neither counted nor refused; nothing is reported of them."""
    return _marked(handler, exempt=True)


def cost(units: int) -> Callable[[F], F]:
    """A request to this handler costs so many units of limits with `cost = "request"`. ValueError for no cost."""
    if isinstance(units, bool) or not isinstance(units, int) or not 0 <= units <= MAX_COST:
        raise ValueError(f"found {units!r}; allowed: an integer from 0 to 2**53 - 1")
    return lambda handler: _marked(handler, cost=units)


def attributes(**values: Attribute) -> Callable[[F], F]:
    """Facts that requests to this handler have, for keys such as "attributes.kind"."""
    return lambda handler: _marked(handler, attributes=tuple(values.items()))


def mark_of(handler: object) -> Mark | None:
    """What this handler says about itself; None when it says nothing."""
    mark = getattr(handler, NAME, None)
    return mark if isinstance(mark, Mark) else None


def _marked(handler: F, **changes: Any) -> F:
    setattr(handler, NAME, replace(mark_of(handler) or Mark(), **changes))
    return handler
