from collections.abc import Mapping
from typing import Any, final

from shield.core.path_cost import PathCost

OPERATIONS: tuple[str, ...]
DIALECT_NAMES: tuple[str, ...]
SCALARS: tuple[str, ...]
PAGE_SIZES: dict[str, int]

class Refusal(Exception):
    reason: str
    message: str
    figure: int | None
    ceiling: int | None
    line: int | None
    column: int | None
    def __init__(
        self,
        reason: str,
        message: str,
        figure: int | None = None,
        ceiling: int | None = None,
        line: int | None = None,
        column: int | None = None,
    ) -> None: ...

@final
class SchemaTable:
    def __new__(
        cls,
        *,
        names: list[str],
        types: list[tuple[Any, ...]],
        fields: list[tuple[Any, ...]],
        inputs: list[tuple[Any, ...]],
        list_sizes: list[tuple[Any, ...]],
        paths: list[tuple[str, ...]],
        trie: list[tuple[str, int, int, int]],
        directives: list[tuple[str, int, int]],
        roots: tuple[int, ...],
    ) -> SchemaTable: ...

@final
class Price:
    @property
    def cost(self) -> int: ...
    @property
    def type_charge(self) -> int: ...
    @property
    def type_cost(self) -> float: ...
    @property
    def field_cost(self) -> float: ...
    @property
    def saturated(self) -> bool: ...
    @property
    def depth(self) -> int: ...
    @property
    def aliases(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def root_fields(self) -> int: ...
    @property
    def directives(self) -> int: ...
    @property
    def duplicate_fields(self) -> int: ...
    @property
    def fields(self) -> int: ...
    @property
    def fragments(self) -> int: ...
    @property
    def operations(self) -> int: ...
    @property
    def introspection_depth(self) -> int: ...
    @property
    def operation(self) -> str: ...
    @property
    def operation_name(self) -> str | None: ...
    @property
    def dialect(self) -> str: ...
    def costliest(self, limit: int = 5, *, by_type: bool = False) -> list[PathCost]: ...
    def paths(self, limit: int = 1000, *, by_type: bool = False) -> list[PathCost]: ...

@final
class Compiler: ...

@final
class Program:
    operation_name: str | None
    @property
    def depth(self) -> int: ...
    @property
    def aliases(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def root_fields(self) -> int: ...
    @property
    def directives(self) -> int: ...
    @property
    def duplicate_fields(self) -> int: ...
    @property
    def fields(self) -> int: ...
    @property
    def fragments(self) -> int: ...
    @property
    def operations(self) -> int: ...
    @property
    def introspection_depth(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    def price(self, variables: Mapping[str, Any] | None = None) -> Price: ...

@final
class Screen:
    def __new__(
        cls,
        *,
        document_bytes: int,
        tokens: int,
        depth: int,
        aliases: int,
        root_fields: int,
        directives: int,
        duplicate_fields: int,
        value_depth: int,
        fragments: int,
        operations: int,
        introspection_depth: int,
        introspection: int,
        work: int,
    ) -> Screen: ...
    def screen(
        self, query: str | bytes, operation_name: str | None = None
    ) -> tuple[int, int, int, int, int, int, int, int, int, int]: ...
    def compile(
        self,
        query: str | bytes,
        operation_name: str | None,
        schema: SchemaTable | None,
        dialect: int,
        default_list_size: int | None,
    ) -> Program: ...
