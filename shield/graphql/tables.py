"""The rows that a schema is handed to the core in."""

from __future__ import annotations

from typing import Any, TypeAlias

# (parent type or -1, name, type as (type, scalar, brackets, non-null bits), weight, router's weight or None, has a
# default, the default); weights in billionths.
InputRow: TypeAlias = tuple[int, str, tuple[int, int, int, int], int, int | None, bool, Any]
