"""What a GraphQL document may have at most.

Each ceiling has a default that ordinary clients stay far below, the reason for it, and a bound of its own, because a
ceiling may be raised but never taken away.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

MAX_COST: Final = (1 << 53) - 1

# Bounds of the ceilings themselves: what one document can then cost is still milliseconds and megabytes.
BOUNDS: Final[dict[str, tuple[int, int]]] = {
    "max_document_bytes": (1, 16_777_216),
    "max_tokens": (1, 1_000_000),
    "max_depth": (1, 250),
    "max_aliases": (0, 100_000),
    "max_root_fields": (1, 100_000),
    "max_directives": (0, 100_000),
    "max_duplicate_fields": (0, 100_000),
    "max_value_depth": (1, 64),
    "max_fragments": (0, 10_000),
    "max_operations": (1, 1_000),
    "max_introspection_depth": (0, 64),
    "max_batch": (1, 1_000),
    "max_work": (1_000, 100_000_000),
    "max_cost": (0, MAX_COST),
    "max_type_cost": (0, MAX_COST),
}


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Every ceiling, checked. All but the last three are of one document's structure and need no schema.

    Fragments are followed: depth, aliases, root fields and introspection are those of the operation that is run, with
    each fragment counted wherever it is named.
    """

    # Bytes. Bodies are bounded before; this bounds what the lexer may have to look at.
    max_document_bytes: int = 262_144
    # Comments and commas are none. Large hand-written operations have 1,000.
    max_tokens: int = 4_000
    # Fields within each other.
    max_depth: int = 15
    # Each is one more execution of a field: `a: login(...) b: login(...)` tries two passwords.
    max_aliases: int = 30
    max_root_fields: int = 30
    # In the whole document: servers used to take quadratic time over repeated ones (CVE-2022-37734).
    max_directives: int = 50
    # Fields repeated within their own selections: validation compares each with each (CVE-2023-26144, CVE-2026-40476).
    max_duplicate_fields: int = 200
    # Lists and input objects within each other, in literals and in variables.
    max_value_depth: int = 16
    max_fragments: int = 100
    # Of one document; only one of them is run.
    max_operations: int = 20
    # fields, interfaces, possibleTypes and inputFields within each other below __schema or __type: the usual
    # introspection query has one, a circular walk as many as one likes (CVE-2024-40094).
    max_introspection_depth: int = 3
    # Whether __schema and __type may be asked for at all.
    introspection: bool = True
    # Selections that the compiler visits while it merges fragments.
    max_work: int = 200_000
    # Operations in one request's array.
    max_batch: int = 10
    # None: no ceiling. The cost that is charged, and the type cost.
    max_cost: int | None = None
    max_type_cost: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "introspection":
                if not isinstance(value, bool):
                    raise ValueError(f"introspection must be a bool, not {value!r}")
                continue
            if value is None and field.name in ("max_cost", "max_type_cost"):
                continue
            low, high = BOUNDS[field.name]
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{field.name} must be an int from {low} to {high}, not {value!r}")

    def limits(self) -> dict[str, int]:
        """The ceilings of the pass, as shield.core.graphql names them."""
        return {
            "document_bytes": self.max_document_bytes,
            "tokens": self.max_tokens,
            "depth": self.max_depth,
            "aliases": self.max_aliases,
            "root_fields": self.max_root_fields,
            "directives": self.max_directives,
            "duplicate_fields": self.max_duplicate_fields,
            "value_depth": self.max_value_depth,
            "fragments": self.max_fragments,
            "operations": self.max_operations,
            "introspection_depth": self.max_introspection_depth,
            "introspection": int(self.introspection),
            "work": self.max_work,
        }
