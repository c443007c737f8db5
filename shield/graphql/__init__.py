"""What a GraphQL operation costs, before anything else parses it.

    schema = Schema.parse(sdl)                                       once; needs the extra `graphql`
    price(schema, query, variables).cost                             what a limit is charged
    Pricer(schema, ceilings=Ceilings(max_cost=1000)).price(query)    for a server: compiled once per document

`Schema` is imported when it is first asked for, because it alone needs graphql-core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shield.core.graphql import Price
from shield.core.path_cost import PathCost
from shield.graphql.ceilings import Ceilings
from shield.graphql.errors import GraphQLError, SchemaError, SchemaIssue
from shield.graphql.pricer import BatchPrice, Pricer, price

if TYPE_CHECKING:
    from shield.graphql.schema import Schema

__all__ = [
    "BatchPrice",
    "Ceilings",
    "GraphQLError",
    "PathCost",
    "Price",
    "Pricer",
    "Schema",
    "SchemaError",
    "SchemaIssue",
    "price",
]


def __getattr__(name: str) -> Any:
    if name == "Schema":
        from shield.graphql.schema import Schema

        return Schema
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
