"""How the values of a policy file are read: lists, tables and the keys in them.

A `Kind` turns what the file's syntax gave (text, whole numbers, lists, tables) into what the model holds, or
reports what was found and what is allowed and answers REFUSED. It never raises, so one run finds everything
that is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from shield.policy.report import REFUSED, Report, join, suggestion
from shield.policy.scalars import Scalar


class Kind(Protocol):
    """Something that can read a value. `type_name` and `allowed`: its words in reference and errors."""

    @property
    def type_name(self) -> str: ...

    @property
    def allowed(self) -> str: ...

    def read(self, value: Any, path: str, report: Report) -> Any: ...


@dataclass(frozen=True, slots=True)
class ListOf:
    """Different values of one kind, read as a tuple; with `single`, one value stands for a list of it."""

    item: Kind
    most: int
    least: int = 0
    single: bool = False

    @property
    def type_name(self) -> str:
        one = self.item.type_name
        return f"{one}, or a list of them" if self.single else f"list of {one}s"

    @property
    def allowed(self) -> str:
        return f"{self.least} to {self.most} different values, each {self.item.allowed}"

    def read(self, value: Any, path: str, report: Report) -> Any:
        if self.single and isinstance(value, str):
            value = [value]
        if not isinstance(value, list):
            report.wrong(path, value, f"a list: {self.allowed}")
            return REFUSED
        if not self.least <= len(value) <= self.most:
            report.wrong(path, value, self.allowed)
            return REFUSED
        items = [self.item.read(one, f"{path}[{at}]", report) for at, one in enumerate(value)]
        for at, one in enumerate(items):
            if one is not REFUSED and one in items[:at]:
                report.wrong(f"{path}[{at}]", value[at], self.allowed, "it is there twice")
                items[at] = REFUSED
        return REFUSED if REFUSED in items else tuple(items)


@dataclass(frozen=True, slots=True)
class MapOf:
    """A table whose keys are chosen by whoever writes the policy."""

    key: Scalar
    value: Kind
    most: int

    @property
    def type_name(self) -> str:
        return f"table of {self.value.type_name}s by {self.key.type_name}"

    @property
    def allowed(self) -> str:
        return f"up to {self.most} entries; key: {self.key.allowed}; value: {self.value.allowed}"

    def read(self, value: Any, path: str, report: Report) -> Any:
        if not isinstance(value, dict):
            report.wrong(path, value, f"a table: {self.allowed}")
            return REFUSED
        if len(value) > self.most:
            report.wrong(path, value, f"at most {self.most} entries")
            return REFUSED
        entries: dict[str, Any] = {}
        for name, item in value.items():
            at = join(path, name)
            read_name = self.key.read(name, at, report)
            read_item = self.value.read(item, at, report)
            if read_name is not REFUSED and read_item is not REFUSED:
                entries[read_name] = read_item
        return MappingProxyType(entries) if len(entries) == len(value) else REFUSED


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table. `default` is written as in a file; `only` names algorithms that know the key."""

    name: str
    kind: Kind
    doc: str
    default: Any = None
    required: bool = False
    only: tuple[str, ...] = ()
    default_doc: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table with known keys, read as a dict that has them all: its value, its default or REFUSED."""

    title: str
    doc: str
    keys: tuple[Key, ...]
    may_be_empty: bool = True
    type_name: str = "table"
    _by_name: dict[str, Key] = field(init=False, compare=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._by_name.update((key.name, key) for key in self.keys)

    @property
    def allowed(self) -> str:
        return "keys: " + ", ".join(key.name for key in self.keys)

    def read(self, value: Any, path: str, report: Report) -> Any:
        if not isinstance(value, dict):
            report.wrong(path, value, f"a table with {self.allowed}")
            return REFUSED
        if not value and not self.may_be_empty:
            report.wrong(path, value, f"a table with one or more {self.allowed}")
            return REFUSED
        for name in value:
            if name not in self._by_name:
                self._unknown(name, path, report)
        values: dict[str, Any] = {}
        for key in self.keys:
            at = join(path, key.name)
            if key.name in value:
                values[key.name] = key.kind.read(value[key.name], at, report)
            elif key.required:
                report.add(at, f"missing; allowed: {key.kind.allowed}")
                values[key.name] = REFUSED
            else:
                values[key.name] = self.default(key)
        return values

    @staticmethod
    def default(key: Key) -> Any:
        """What an absent key reads as: its default through its own kind, so that both are checked alike."""
        if key.default is None:
            return None
        return key.kind.read(key.default, key.name, Report())

    def _unknown(self, name: object, path: str, report: Report) -> None:
        at = join(path, name)
        near = suggestion(name, [key.name for key in self.keys])
        report.add(at, f"unknown key{near}; allowed: {', '.join(key.name for key in self.keys)}")


@dataclass(frozen=True, slots=True)
class TableList:
    """A list of tables ([[name]]), read as a list of dicts; a refused entry stands in it as REFUSED."""

    table: Table
    most: int

    @property
    def type_name(self) -> str:
        return "list of tables"

    @property
    def allowed(self) -> str:
        return f"at most {self.most} tables"

    def read(self, value: Any, path: str, report: Report) -> Any:
        if not isinstance(value, list):
            report.wrong(path, value, f"a list of tables, [[{path}]]")
            return REFUSED
        if len(value) > self.most:
            report.add(path, f"found {len(value)} entries; allowed: at most {self.most}")
        return [self.table.read(one, f"{path}[{at}]", report) for at, one in enumerate(value[: self.most])]


@dataclass(frozen=True, slots=True)
class RawList:
    """A list of tables that is handed on as it stands, because its entries are completed before they can be read."""

    of: TableList

    @property
    def type_name(self) -> str:
        return self.of.type_name

    @property
    def allowed(self) -> str:
        return self.of.allowed

    def read(self, value: Any, path: str, report: Report) -> Any:
        return value
