"""[guard.graphql] in a policy: its files, what goes together, and the fingerprint."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from shield import Policy
from shield.errors import PolicyError
from shield.graphql import Ceilings
from shield.policy.graphql_rules import MAX_SCHEMA_BYTES
from shield.policy.graphql_schema import _DOCS

SDL = 'type Query { users(first: Int): [User] @listSize(slicingArguments: ["first"]) }\ntype User { age: Int }\n'


def write(directory: Path, guard: str, *, sdl: str = SDL, rest: str = "") -> Path:
    (directory / "api.graphql").write_text(sdl)
    policy = directory / "policy.toml"
    policy.write_text(f"version = 1\n[guard.graphql]\n{guard}\n{rest}")
    return policy


def issues(source: Path | str) -> list[str]:
    with pytest.raises(PolicyError) as found:
        _ = Policy.load(source) if isinstance(source, Path) else Policy.parse(source)
    return [str(issue) for issue in found.value.issues]


def limit(cost: str) -> str:
    return f'[[limit]]\nname = "q"\nkey = ["ip"]\nrate = "10/s"\ncost = "{cost}"\n'


def test_defaults_without_a_schema() -> None:
    guard = Policy.parse("version = 1\n[guard.graphql]\nmax_depth = 3").graphql
    assert guard is not None
    assert (guard.dialect, guard.default_list_size, guard.unknown, guard.reads_http) == ("shape", 10, "refuse", False)
    assert guard.ceilings == Ceilings(max_depth=3)


def test_a_schema_beside_the_policy_file(tmp_path: Path) -> None:
    guard = Policy.load(write(tmp_path, 'schema = "api.graphql"\ndefault_list_size = "unbounded"')).graphql
    assert guard is not None
    assert guard.schema is not None
    assert (guard.dialect, guard.default_list_size) == ("ibm", None)


def test_a_graphql_cost_needs_no_section() -> None:
    guard = Policy.parse("version = 1\n" + limit("graphql")).graphql
    assert guard is not None
    assert guard.dialect == "shape"
    assert Policy.parse("version = 1").graphql is None


def test_every_ceiling_is_a_key_with_words() -> None:
    assert set(_DOCS) == {one.name for one in fields(Ceilings)}


def test_the_schema_counts_for_the_fingerprint(tmp_path: Path) -> None:
    first = Policy.load(write(tmp_path, 'schema = "api.graphql"'))
    assert Policy.load(write(tmp_path, 'schema = "api.graphql"')).fingerprint == first.fingerprint
    other = Policy.load(write(tmp_path, 'schema = "api.graphql"', sdl=SDL + "type Other { a: Int }"))
    assert other.fingerprint != first.fingerprint


def test_a_policy_without_graphql_keeps_the_fingerprint_it_had() -> None:
    assert Policy.parse("version = 1").fingerprint == "95f3673e0228"


def test_persisted_documents(tmp_path: Path) -> None:
    (tmp_path / "known.json").write_text(json.dumps({"abc": "{users(first:1){age}}"}))
    policy = Policy.load(write(tmp_path, 'schema = "api.graphql"\npersisted = "known.json"'))
    assert policy.graphql is not None
    assert policy.graphql.persisted == {"abc": "{users(first:1){age}}"}


@pytest.mark.parametrize(
    ("guard", "rest", "path", "what"),
    [
        ('dialect = "ibm"', "", "guard.graphql.schema", 'because of dialect = "ibm"'),
        ('dialect = "shape"\nschema = "api.graphql"', "", "guard.graphql.dialect", "because there is a schema"),
        ('dialect = "imb"', "", "guard.graphql.dialect", "ibm"),
        ("max_type_cost = 3", "", "guard.graphql.max_type_cost", 'only with "ibm"'),
        ("max_depth = 0", "", "guard.graphql.max_depth", "from 1 to 250"),
        ("max_cost = true", "", "guard.graphql.max_cost", "a whole number"),
        ("default_list_size = -1", "", "guard.graphql.default_list_size", '"unbounded"'),
        ("max_dept = 1", "", "guard.graphql.max_dept", "did you mean"),
        ('schema = "none.graphql"', "", "guard.graphql.schema", "cannot be read"),
        ('schema = "."', "", "guard.graphql.schema", "cannot be read"),
        ('persisted = "none.json"', "", "guard.graphql.persisted", "cannot be read"),
        ('persisted = "api.graphql"', "", "guard.graphql.persisted", "a JSON object of documents"),
        ("", limit("graphql:type"), "limit[0].cost", '"graphql", because shape has one figure'),
        (
            "",
            '[[limit]]\nname="c"\nkey=["ip"]\nalgorithm="concurrency"\nlimit=3\ncost="graphql"',
            "limit[0].cost",
            "request",
        ),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, guard: str, rest: str, path: str, what: str) -> None:
    found = issues(write(tmp_path, guard, rest=rest))
    assert len(found) == 1, found
    assert found[0].startswith(f"{path}: ")
    assert what in found[0]


def test_what_is_wrong_in_a_schema_has_its_place(tmp_path: Path) -> None:
    sdl = 'type Query {\n  a: [Int] @listSize(slicingArguments: ["n"])\n  b: Nothing\n}\n'
    found = issues(write(tmp_path, 'schema = "api.graphql"', sdl=sdl))
    assert all(issue.startswith("guard.graphql.schema: api.graphql:") for issue in found)
    assert any("api.graphql:3:" in issue for issue in found), found


def test_a_schema_that_is_too_large_or_no_text(tmp_path: Path) -> None:
    assert "more than" in issues(write(tmp_path, 'schema = "api.graphql"', sdl="#" * (MAX_SCHEMA_BYTES + 1)))[0]
    policy = write(tmp_path, 'schema = "api.graphql"')
    (tmp_path / "api.graphql").write_bytes(b"\xff")
    assert "not UTF-8 at byte 0" in issues(policy)[0]


@pytest.mark.parametrize("documents", ["[]", '{"a": 1}', '{"": "{a}"}', '{"a": ""}', "[" * 100_000])
def test_persisted_documents_that_are_none(tmp_path: Path, documents: str) -> None:
    policy = write(tmp_path, 'persisted = "known.json"')
    (tmp_path / "known.json").write_text(documents)
    assert issues(policy)[0].startswith("guard.graphql.persisted")
