"""A server's pricer: its cache, batches, documents known by their hash, threads, and what it accepts as options."""

from __future__ import annotations

import hashlib
import threading

import pytest

from shield.graphql import Ceilings, GraphQLError, Pricer, Schema, price
from shield.graphql.pricer import Operation

schema = Schema.parse(
    """
    type Query { x: Int a: Query list(first: Int = 5): [Query] @listSize(slicingArguments: ["first"]) }
    type Mutation { login(name: String, password: String): Query }
    """
)
LIST = "query Q($n: Int) { list(first: $n) { x } }"


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_figures():
    found = Pricer(schema).price(
        "query Q($n: Int = 2) { b: list(first: $n) @include(if: true) { ...F } } fragment F on Query { x c: a { x } }"
    )
    assert (found.type_cost, found.field_cost, found.cost, found.type_charge) == (5, 3, 3, 5)
    assert (found.depth, found.aliases, found.root_fields, found.fields) == (3, 2, 1, 4)
    assert (found.directives, found.fragments, found.operations, found.tokens) == (1, 1, 1, 45)
    assert (found.operation, found.operation_name, found.dialect) == ("query", "Q", "ibm")
    assert not found.saturated
    assert [row.path for row in found.paths()] == ["b", "b.x", "b.c", "b.c.x"]
    assert found.paths()[2] == ("b.c", 1, 2, 2, 2, 2, 2)


def test_a_price_keeps_its_figures():
    pricer = Pricer(schema)
    first = pricer.price(LIST, {"n": 3})
    pricer.price(LIST, {"n": 300})
    assert first.type_cost == 4
    assert first.paths()[0].size == 3


def test_the_cache_is_bounded_in_entries_and_bytes():
    pricer = Pricer(schema, cache_entries=3)
    for i in range(10):
        pricer.price(f"{{ x{i}: x }}")
    assert pricer.cached_entries == 3
    small = Pricer(schema, cache_bytes=20_000)
    for i in range(200):
        small.price(f"{{ x{i}: x }}")
        assert small.cached_bytes <= 20_000
    assert 0 < small.cached_entries < 100
    none = Pricer(schema, cache_bytes=0)
    none.price("{ x }")
    assert (none.cached_entries, none.cached_bytes) == (0, 0)


def test_the_least_recently_used_goes_first():
    pricer = Pricer(schema, cache_entries=2)
    first = pricer.price("{ a: x }")
    pricer.price("{ b: x }")
    pricer.price("{ a: x }")
    pricer.price("{ c: x }")
    assert [key[0] for key in pricer._programs] == ["{ a: x }", "{ c: x }"]
    assert first.cost == 0


def test_what_is_refused_is_not_kept():
    pricer = Pricer(schema)
    for query in ("{ nothing }", "{", "{ x }" * 30):
        with pytest.raises(GraphQLError):
            pricer.price(query)
    assert pricer.cached_entries == 0


def test_operations_of_one_document_are_told_apart():
    pricer = Pricer(schema, default_list_size=1)
    query = "query Cheap { x } query Dear { list(first: 90) { x } }"
    assert pricer.price(query, None, "Cheap").type_cost == 1
    assert pricer.price(query, None, "Dear").type_cost == 91
    assert pricer.price(query, None, "Cheap").type_cost == 1
    for name in (None, "", "Nobody", "cheap"):
        with pytest.raises(GraphQLError) as caught:
            pricer.price(query, None, name)
        assert caught.value.reason == "graphql_invalid"


def test_ceilings_of_one_operation_are_not_those_of_another():
    query = "query Flat { x } query Deep { a { a { a { x } } } }"
    pricer = Pricer(schema, ceilings=Ceilings(max_root_fields=1, max_aliases=0))
    assert pricer.price(query, None, "Flat").depth == 1
    assert pricer.price(query, None, "Deep").depth == 4


# ---- batches -----------------------------------------------------------------------------------------------


def test_a_batch_is_the_sum_of_its_operations():
    pricer = Pricer(schema)
    login = {"query": 'mutation { login(name: "a", password: "b") { x } }'}
    ten = pricer.price_batch([login] * 10)
    assert len(ten.prices) == 10
    assert ten.cost == 10 * pricer.price(login["query"]).cost == 10
    assert ten.type_charge == 20
    mixed = pricer.price_batch(
        [Operation(LIST, {"n": 7}), {"query": LIST, "variables": {"n": 1}, "operation_name": "Q"}]
    )
    assert [one.type_cost for one in mixed.prices] == [8, 2]


def test_a_batch_has_a_ceiling_and_so_has_its_sum():
    pricer = Pricer(schema, ceilings=Ceilings(max_cost=5, max_batch=10))
    one = {"query": "{ a { x } }"}
    assert pricer.price_batch([one] * 5).cost == 5
    with pytest.raises(GraphQLError) as caught:
        pricer.price_batch([one] * 6)
    assert (caught.value.reason, caught.value.figure, caught.value.ceiling) == ("graphql_cost", 6, 5)
    with pytest.raises(GraphQLError) as caught:
        pricer.price_batch([one] * 11)
    assert (caught.value.reason, caught.value.figure, caught.value.ceiling) == ("graphql_batch", 11, 10)


def test_a_batch_names_the_operation_that_is_wrong():
    pricer = Pricer(schema)
    with pytest.raises(GraphQLError) as caught:
        pricer.price_batch([{"query": "{ x }"}, {"query": "{ y }"}])
    assert caught.value.detail.startswith("operation 1: ")
    for batch in ([], [{}], [{"query": 3}], [{"query": "{ x }", "operation_name": 3}], ["{ x }"]):
        with pytest.raises(GraphQLError) as caught:
            pricer.price_batch(batch)
        assert caught.value.reason == "graphql_invalid"


# ---- hashes ------------------------------------------------------------------------------------------------


def test_a_hash_alone_must_be_known():
    pricer = Pricer(schema)
    with pytest.raises(GraphQLError) as caught:
        pricer.price(hash=sha(LIST))
    assert caught.value.reason == "graphql_unknown_hash"
    assert pricer.price(LIST, {"n": 3}, hash=sha(LIST)).type_cost == 4
    assert pricer.price(variables={"n": 4}, hash=sha(LIST)).type_cost == 5
    assert pricer.price(variables={"n": 4}, hash=sha(LIST).upper()).type_cost == 5


def test_a_hash_must_be_the_document_s():
    """Or one could have a cheap document priced and a dear one run."""
    pricer = Pricer(schema)
    pricer.price("{ x }", hash=sha("{ x }"))
    with pytest.raises(GraphQLError) as caught:
        pricer.price(LIST, hash=sha("{ x }"))
    assert caught.value.reason == "graphql_invalid"
    with pytest.raises(GraphQLError):
        pricer.price(LIST, hash="é" * 64)


def test_persisted_documents_are_never_forgotten():
    pricer = Pricer(schema, cache_entries=1)
    pricer.persist({"list-1": LIST, sha("{ x }"): "{ x }"})
    for i in range(5):
        pricer.price(f"{{ x{i}: x }}", hash=sha(f"{{ x{i}: x }}"))
    assert pricer.price(hash="list-1").type_cost == 6
    assert pricer.price(hash=sha("{ x }")).cost == 0
    with pytest.raises(GraphQLError):
        pricer.price(hash=sha("{ x0: x }"))


def test_documents_known_by_a_hash_are_bounded():
    pricer = Pricer(schema, cache_bytes=3_000, cache_entries=1_000)
    for i in range(100):
        text = f"{{ x{i}: x }}"
        pricer.price(text, hash=sha(text))
        assert pricer.cached_bytes <= 6_000


# ---- options and threads -----------------------------------------------------------------------------------


def test_neither_document_nor_hash():
    for query in (None, ""):
        with pytest.raises(GraphQLError) as caught:
            Pricer(schema).price(query)
        assert caught.value.reason == "graphql_invalid"
    with pytest.raises(TypeError):
        Pricer(schema).price(3)


@pytest.mark.parametrize(
    "options",
    [
        {"dialect": "IBM"},
        {"unknown": "guess"},
        {"default_list_size": -1},
        {"default_list_size": 1.5},
        {"default_list_size": True},
        {"default_list_size": float("nan")},
        {"cache_entries": -1},
        {"cache_bytes": "1"},
    ],
)
def test_wrong_options(options):
    with pytest.raises(ValueError):
        Pricer(schema, **options)


@pytest.mark.parametrize(
    "ceilings",
    [
        {"max_tokens": 0},
        {"max_depth": 251},
        {"max_value_depth": 65},
        {"max_cost": -1},
        {"max_batch": True},
        {"max_aliases": 1.0},
    ],
)
def test_wrong_ceilings(ceilings):
    with pytest.raises(ValueError) as caught:
        Ceilings(**ceilings)
    assert next(iter(ceilings)) in str(caught.value)


def test_a_schema_is_needed_but_for_shape():
    with pytest.raises(ValueError):
        Pricer(None)
    assert Pricer(None, dialect="shape").price("{ a(first: 3) { b } }").cost == 4
    assert price(None, "{ a }", dialect="shape").cost == 1


def test_unbounded_is_said_in_three_ways():
    for size in (None, float("inf"), 2**60):
        found = price(schema, "{ list(first: null) { x } }", default_list_size=size)
        assert found.saturated
        assert found.type_cost == 2**53 - 1


def test_threads_share_a_pricer():
    pricer = Pricer(schema, cache_entries=4)
    wrong: list[object] = []

    def work(seed: int) -> None:
        for i in range(400):
            n = (seed * 7 + i) % 50
            query = f"query Q($n: Int) {{ a{i % 9}: list(first: $n) {{ x }} }}"
            found = pricer.price(query, {"n": n}).type_cost
            if found != n + 1:
                wrong.append((query, n, found))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
