"""What can go wrong: a document that is refused, and a schema that is no schema.

Neither is a decision: the guard of a policy turns a `GraphQLError` into a refusal, and a `SchemaError` into errors of
the policy that names the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shield.errors import ShieldError


class GraphQLError(ShieldError, ValueError):
    """A document that cannot be priced, or that crosses a ceiling.

    `reason` is that of the decision (`graphql_invalid`, `graphql_cost`, ...); `detail` a sentence for whoever wrote the
    document, with the figure and the ceiling, and for a cost the paths it comes from. `figure` and `ceiling` are
    numbers where something was counted, else None; `line` and `column` count from 1 where a place is meant.
    """

    def __init__(
        self,
        reason: str,
        detail: str,
        *,
        figure: float | None = None,
        ceiling: float | None = None,
        line: int | None = None,
        column: int | None = None,
        paths: Sequence[str] = (),
    ) -> None:
        self.reason = reason
        self.detail = detail
        self.figure = figure
        self.ceiling = ceiling
        self.line = line
        self.column = column
        self.paths = tuple(paths)
        super().__init__(f"{reason}: {detail}")


class SchemaIssue(NamedTuple):
    """One thing wrong with a schema; `line` and `column` count from 1, and are 0 where no place is known."""

    message: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.line}:{self.column}: {self.message}" if self.line else self.message


class SchemaError(ShieldError, ValueError):
    """A schema was refused whole; `issues` lists everything found wrong with it."""

    def __init__(self, issues: Sequence[SchemaIssue], source: str | None = None) -> None:
        self.issues = tuple(issues)
        self.source = source
        where = source or "schema"
        super().__init__("\n".join(f"{where}:{issue}" if issue.line else f"{where}: {issue}" for issue in self.issues))
