"""The fast look at a document's names against the exact one."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shield.core.json_names import surely_unique

NAMES = st.sampled_from(["a", "b", "ab", "é", "a b", "", ":", "x" * 70])
VALUES: Any = st.recursive(
    st.none() | st.integers() | NAMES, lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner), max_leaves=20
)


def names_of(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(name for inner in value.values() for name in names_of(inner))]
    return [name for inner in value for name in names_of(inner)] if isinstance(value, list) else []


@given(VALUES, st.sampled_from([None, 1]))
def test_it_is_sure_exactly_where_no_name_is_there_twice(value: Any, indent: int | None) -> None:
    document = json.dumps(value, ensure_ascii=False, indent=indent, separators=(",", " :\n")).encode()
    names = names_of(value)
    assert surely_unique(document) == (len(names) == len(set(names)) and b"\\" not in document)


def test_what_it_is_not_sure_of() -> None:
    assert not surely_unique(b'{"a":1,"a":2}')
    assert not surely_unique(b'{"a":1,"\\u0061":2}')
    assert not surely_unique(b'{"a":1,"b":{"a" \t:2}}')
    assert not surely_unique(b'{"a')
    many = b",".join(b'"n%d":1' % i for i in range(65))
    assert not surely_unique(b"{" + many + b"}")
    assert surely_unique(b"{" + many[: many.rindex(b",")] + b"}")
    assert surely_unique(b'["a","a",":","a"]')
    assert surely_unique(b"")
