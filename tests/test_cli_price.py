"""`shield price`: what it prints, and its exit status."""

from __future__ import annotations

import io
import json
import sys

import pytest

from shield.cli import main

SDL = """
type Query { users(first: Int): [User] @listSize(slicingArguments: ["first"]) me: User }
type User { name: String friends: [User] }
"""
QUERY = "query Q($n: Int) { users(first: $n) { name friends { name } } }"


@pytest.fixture
def files(tmp_path):
    (tmp_path / "schema.graphql").write_text(SDL)
    (tmp_path / "query.graphql").write_text(QUERY)
    (tmp_path / "variables.json").write_text('{"n": 5}')
    return tmp_path


def price(files, *arguments: str) -> list[str]:
    return ["price", "--schema", str(files / "schema.graphql"), *arguments]


def test_a_table_of_paths(files, capsys):
    assert main(price(files, "--variables", '{"n": 5}', str(files / "query.graphql"))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["path", "size", "calls", "type", "cost", "field", "cost"]
    assert lines[1].split() == ["users", "5", "1", "5", "1"]
    assert lines[3].split() == ["users.friends", "10", "5", "50", "5"]
    assert "cost 6 (type cost 56, field cost 6), dialect ibm" in lines
    assert "depth 3," in lines[-1]


def test_json_and_a_file_of_variables(files, capsys):
    options = ["--format", "json", "--default-list-size", "2", "--dialect", "router"]
    assert main(price(files, *options, "--variables", f"@{files}/variables.json", str(files / "query.graphql"))) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["cost"], answer["dialect"], answer["operation_name"]) == (15, "router", "Q")
    assert answer["paths"][2]["path"] == "users.friends"


def test_unbounded(files, capsys):
    assert main(price(files, "--default-list-size", "unbounded", str(files / "query.graphql"))) == 0
    out = capsys.readouterr().out
    assert "cost unbounded" in out
    assert "9007199254740991" not in out


def test_a_ceiling_refuses(files, capsys):
    arguments = ["--variables", '{"n": 500}', str(files / "query.graphql")]
    assert main(price(files, "--max-cost", "501", *arguments)) == 0
    assert main(price(files, "--max-cost", "500", *arguments)) == 1
    assert "graphql_cost: cost: found 501; allowed: at most 500" in capsys.readouterr().out
    assert main(price(files, "--max-type-cost", "500", "--format", "json", *arguments)) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["refused"], answer["reason"], answer["figure"]) == (True, "graphql_type_cost", 5501)
    assert answer["paths"] == ["users[500].friends[10] (5000)", "users[500] (500)"]


def test_without_a_schema_from_standard_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"{ users(first: 20) { name } }")))
    assert main(["price", "-"]) == 0
    assert "cost 21, dialect shape" in capsys.readouterr().out


def test_which_operation(files, capsys):
    (files / "query.graphql").write_text("query A { me { name } } query B { users(first: 3) { name } }")
    assert main(price(files, str(files / "query.graphql"))) == 1
    assert "name one" in capsys.readouterr().out
    assert main(price(files, "--operation", "B", str(files / "query.graphql"))) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--variables", "{", "q"], "--variables: not JSON"),
        (["--variables", "[]", "q"], "--variables: found list"),
        (["--default-list-size", "-1", "q"], "allowed: a whole number, or unbounded"),
        (["--max-cost", "x", "q"], "allowed: a whole number"),
        (["nowhere.graphql"], "nowhere.graphql: No such file"),
    ],
)
def test_misuse(files, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(files)
    (files / "q").write_text("{ me { name } }")
    assert main(price(files, *arguments)) == 2
    assert said in capsys.readouterr().err


def test_a_wrong_schema_or_none(files, capsys):
    (files / "schema.graphql").write_text(SDL.replace("first: Int", "last: Int"))
    assert main(price(files, str(files / "query.graphql"))) == 2
    assert "schema.graphql:2:" in capsys.readouterr().err
    assert main(["price", "--dialect", "ibm", str(files / "query.graphql")]) == 2
    (files / "query.graphql").write_bytes(b"\xff")
    assert main(["price", str(files / "query.graphql")]) == 2
    assert "not UTF-8 at byte 0" in capsys.readouterr().err
