"""YAML, narrowed to what a policy needs: plain values, no aliases, no merge keys, no key twice, one document.

Aliases are refused because a few of them expand to any size. PyYAML is optional; without it this module does
not import, which the loader reports.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_MAX_DIGITS = 64


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` with those restrictions."""

    max_depth = 0
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _error("an alias (*name); allowed: values written out", self.get_mark())
        if self.depth > self.max_depth:
            raise _error(f"more than {self.max_depth} levels", self.get_mark())
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        # Reading "1:59:59..." as a number takes quadratic time.
        if node.tag in _NUMBERS and len(str(node.value)) > _MAX_DIGITS:
            raise _error("a number of too many digits", node.start_mark)
        try:
            return super().construct_object(node, deep=deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError):
            # What PyYAML raises for an explicit tag on something else, as in `!!bool perhaps`.
            raise _error("a value that does not fit its tag", node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                raise _error("a merge key (<<); allowed: values written out", key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _error("a key that is no plain value", key_node.start_mark)
            if key in seen:
                raise _error(f"the key {str(key)[:64]!r} twice in one mapping", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _error(what: str, mark: yaml.Mark | None) -> ValueError:
    where = f" (at line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    return ValueError(f"found {what}{where}")


def read(text: str, max_depth: int) -> object:
    """The one document in this text as dicts, lists and scalars. Raises ValueError, or RecursionError."""
    try:
        loader = _Loader(text)
        loader.max_depth = max_depth
        tree: object = loader.get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    return {} if tree is None else tree  # an empty file is an empty mapping, as it is in TOML
