"""Against graphql-core: which documents are read at all, and against a reference estimator: what they cost."""

from __future__ import annotations

import re

import graphql as g
from documents import SCHEMA, SDL, damaged, operations, soup, variables
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from reference import Estimator

from shield.core.graphql import Refusal, Screen
from shield.graphql import Ceilings, GraphQLError, Pricer, Schema

LOOSE = Ceilings(
    max_depth=250,
    max_aliases=10_000,
    max_root_fields=10_000,
    max_directives=10_000,
    max_duplicate_fields=10_000,
    max_tokens=100_000,
    max_introspection_depth=64,
)
schema = Schema.parse(SDL)
plain_schema = Schema.parse(re.sub(r'"-?([0-9]+)[.0-9]*"', r'"\1"', SDL))
screen = Screen(**LOOSE.limits())
# What is refused in one pass though its syntax is right: graphql-core leaves these to validation.
BEYOND_SYNTAX = (
    "two fragments of one name",
    "two operations of one name",
    "an operation without a name among several",
    "a fragment that is not defined",
    "a fragment that leads back to itself",
    "the document has no operation",
    "operation_name: the document has several operations",
)
slow = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def core_reads(text: str) -> bool:
    """Whether graphql-core reads it as an executable document, without selections that are empty."""
    try:
        document = g.parse(text)
    except g.GraphQLError:
        return False
    if not all(isinstance(d, g.OperationDefinitionNode | g.FragmentDefinitionNode) for d in document.definitions):
        return False
    empty = []

    class Sets(g.Visitor):
        def enter_selection_set(self, node, *_):
            if not node.selections:
                empty.append(node)

    g.visit(document, Sets())
    return not empty


def shield_reads(text: str) -> bool:
    try:
        screen.screen(text)
    except Refusal as refusal:
        return refusal.reason != "graphql_invalid" or refusal.message.startswith(BEYOND_SYNTAX)
    return True


@slow
@given(soup | damaged())
def test_reads_what_graphql_core_reads(text):
    assert shield_reads(text) == core_reads(text)


@slow
@given(soup)
def test_counts_the_tokens_that_graphql_core_counts(text):
    assume(shield_reads(text))
    try:
        tokens = screen.screen(text)[0]
    except Refusal:
        return
    lexer = g.Lexer(g.Source(text))
    counted = 0
    while lexer.advance().kind is not g.TokenKind.EOF:
        counted += 1
    assert tokens == counted


@slow
@given(operations(), variables, st.sampled_from([None, 0, 1, 3, 10]))
def test_costs_what_the_reference_says(text, values, default_size):
    document = g.parse(text)
    assume(not g.validate(SCHEMA, document, rules=[g.OverlappingFieldsCanBeMergedRule]))
    price = Pricer(schema, default_list_size=default_size, ceilings=LOOSE).price(text, values)
    types, fields = Estimator(SCHEMA, default_size).costs(document, values)
    for found, expected in ((price.type_cost, types), (price.field_cost, fields)):
        if expected >= 2**53 - 1:
            assert found == 2**53 - 1
        else:
            assert found == (int(expected) if expected.denominator == 1 else float(expected))


@slow
@given(operations(), st.lists(variables, min_size=2, max_size=4))
def test_a_program_forgets_the_variables_before(text, rounds):
    """Each set of variables costs the same on a used program as on a fresh one."""
    used = Pricer(schema, default_list_size=10, ceilings=LOOSE)
    for values in rounds:
        fresh = Pricer(schema, default_list_size=10, ceilings=LOOSE, cache_entries=0)
        a, b = used.price(text, values), fresh.price(text, values)
        assert (a.type_cost, a.field_cost) == (b.type_cost, b.field_cost)


@slow
@given(operations(), variables)
def test_paths_add_up(text, values):
    """What every path costs by itself is together the price, where nothing is merged and nothing negative."""
    try:
        price = Pricer(plain_schema, dialect="router", default_list_size=2, ceilings=LOOSE).price(text, values)
    except GraphQLError as error:
        assume("exactly one slicing argument" not in error.detail)
        raise
    rows = price.paths(100_000)
    assume(not price.saturated and len(rows) < 4_000)
    assert sum(row.field_cost for row in rows) == price.field_cost
    top = price.costliest(3)
    assert [row.field_cost for row in top] == sorted((row.field_cost for row in rows), reverse=True)[: len(top)]
