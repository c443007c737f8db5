"""One line of where a price comes from."""

from __future__ import annotations

from typing import NamedTuple


class PathCost(NamedTuple):
    """A field of an operation, by its path of response names.

    `size` is how many values it has for each of its parent and `calls` how often it is called, None for unbounded.
    `type_cost` and `field_cost` are its own over all calls, the totals with everything selected inside it.
    """

    path: str
    size: int | None
    calls: int | None
    type_cost: float
    field_cost: float
    total_type_cost: float
    total_field_cost: float
