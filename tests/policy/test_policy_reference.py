"""The generated reference: committed as generated, and complete."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from shield.policy import schema
from shield.policy.kinds import ListOf, MapOf, RawList, Table, TableList
from shield.policy.reference import render

COMMITTED = Path(__file__).parents[2] / "docs" / "policy-reference.md"


def test_committed_file_is_what_the_generator_gives() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == render(), (
        "regenerate it: python -m shield.policy.reference > docs/policy-reference.md"
    )


def test_module_prints_it() -> None:
    run = subprocess.run([sys.executable, "-m", "shield.policy.reference"], capture_output=True, text=True, check=True)
    assert run.stdout == render()


def _tables(table: Table) -> list[Table]:
    """The table and those in it, each once: a limit and a guard have one `match`."""
    found = [table]
    for key in table.keys:
        kind = key.kind
        if isinstance(kind, RawList):
            kind = kind.of
        if isinstance(kind, ListOf) and isinstance(kind.item, Table):
            # A list of conditions: the same table wherever it is used.
            found += [] if kind.item in found else [kind.item]
            continue
        inner = kind.table if isinstance(kind, TableList) else kind.value if isinstance(kind, MapOf) else kind
        if isinstance(inner, Table):
            found += [one for one in _tables(inner) if one not in found]
    return found


def test_every_key_is_in_it_with_type_default_bound_and_meaning() -> None:
    text = render()
    tables = _tables(schema.POLICY)
    assert {table.title for table in tables} >= {
        "policy",
        "identity",
        "limit",
        "limit.match",
        "limit.plans.NAME",
    }
    for table in tables:
        if table is schema.GUARD:
            continue
        for key in table.keys:
            assert f"| `{key.name}` | {key.kind.type_name} |" in text
            assert key.doc
            assert key.kind.allowed
            assert key.required or key.default is not None or key.default_doc or key.name in ("rate", "limit", "owner")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == sum(len(table.keys) for table in tables if table is not schema.GUARD)
    assert all(line.count("|") - line.count("\\|") == 6 for line in rows)


def test_lists_and_tables_are_bounded() -> None:
    for table in _tables(schema.POLICY):
        for key in table.keys:
            if isinstance(key.kind, (ListOf, MapOf, TableList)):
                assert 0 < key.kind.most <= 1_024
