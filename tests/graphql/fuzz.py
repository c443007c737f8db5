"""Coverage-guided fuzzing of the pass and of the walk over costs, under sanitizers: a crash, a sanitizer's finding or a
broken promise ends it.

    python tests/graphql/fuzz.py [libFuzzer's options]      with atheris; -runs=N or -max_total_time=S bounds it
    python tests/graphql/fuzz.py --without-atheris N SEED   no feedback: N documents mutated from the seeds

For feedback from the compiled modules build them with clang and preload atheris' runtime. (Cython's own code adds 0 to
null pointers, which is left out.)

    CC=clang LDSHARED="clang -shared" CFLAGS="-fsanitize=address,undefined,fuzzer-no-link -fno-sanitize=pointer-overflow
        -fno-sanitize-recover=undefined -fno-wrapv -O1 -g" python setup.py build_ext --inplace
    LD_PRELOAD=$(python -c 'import atheris; print(atheris.path())')/asan_with_fuzzer.so PYTHONMALLOC=malloc
        ASAN_OPTIONS=detect_leaks=0 python tests/graphql/fuzz.py -max_total_time=420 -seed=20261125

The first bytes of an input choose dialect, list size and variables; the rest is the document.
"""

from __future__ import annotations

import random
import re
import sys

from shield.graphql import Ceilings, GraphQLError, Pricer, Schema

REASONS = {
    *("graphql_invalid", "graphql_depth", "graphql_aliases", "graphql_tokens", "graphql_fields", "graphql_directives"),
    *("graphql_fragments", "graphql_batch", "graphql_introspection"),
}
SDL = """
directive @d(x: Int @cost(weight: "-1"), in: In) on FIELD | QUERY | FRAGMENT_SPREAD
scalar S @cost(weight: "0.3")
enum E { A B }
input In { n: Int = 2 @cost(weight: "3") in: In list: [In!] @cost(weight: "-2") e: E s: String }
interface I { a(first: Int, in: In = {n: 1}): [I] b: U s: S }
type T implements I @cost(weight: "-4") {
  a(first: Int, in: In = {n: 1}): [I] @listSize(slicingArguments: ["first", "in.n"], sizedFields: ["a"])
  b: U
  s: S
  c(first: Int): C @listSize(slicingArguments: ["first"], sizedFields: ["t { a }"])
}
type V implements I { a(first: Int, in: In = {n: 1}): [I] @cost(weight: "2") b: U s: S }
type C { list: [T] @listSize(assumedSize: 4) t: T }
union U = T | V
type Query { t: T i: I u: [U] c(first: Int = 3): C @listSize(slicingArguments: ["first"], sizedFields: ["list"]) s: S }
type Mutation { t(in: [In]): T }
"""
SEEDS = [
    "{t{s a(first:3){s a{s}}}}",
    "query Q($a:Boolean=true,$n:Int,$in:In){i{...F @skip(if:$a) b{...on T{s}...on V{x:s}}a(first:$n,in:$in){s}}}"
    "fragment F on I{s}",
    'mutation($in:[In]=[{n:1,in:{e:A,s:"x"}}]){t(in:$in){c{list{s}t{a(in:{list:[{n:4},$i]}){s}}}}}',
    "{...A}fragment A on Query{...B c(first:9){list{a{s}}}}fragment B on Query{u{__typename}s@d(x:1,in:{n:null})}",
    '{__schema{types{fields{name}}}t{s}}#c\n"""d"""query X{s}',
    "query A{s}query B{u{...on I{s}...on T{s c{t{s}}}}}",
    "{t{a(first:-2147483648){s}b:a(first:99999999999){s}}c:s d:s@include(if:false)}",
]
VALUES: list[object] = [
    *(None, 0, 1, -5, 2**31 - 1, 2**40, 2**70, 1.5, True, "x", "A", [], [1], {}, {"n": 3}),
    *({"in": {"in": {"n": None}}}, {"list": [{"n": 1}, {}]}, {"e": "A"}, {"e": "C"}, {"zz": 1}, [{"n": 1}]),
]

schema = Schema.parse(SDL)
tight = Ceilings(max_work=5_000)
pricers = [
    Pricer(schema, dialect="ibm", default_list_size=3, ceilings=tight),
    Pricer(schema, dialect="router", default_list_size=3, ceilings=tight),
    Pricer(None, dialect="shape", ceilings=tight),
    Pricer(schema, dialect="ibm", default_list_size=None, ceilings=tight),
    Pricer(schema, dialect="ibm", default_list_size=0, ceilings=tight, unknown="shape"),
]


def one_input(data: bytes) -> None:
    """Prices one document twice. Nothing but a GraphQLError of the known reasons may come of it."""
    if len(data) < 3:
        return
    pricer = pricers[data[0] % len(pricers)]
    query = data[3:]
    names = re.findall(rb"\$([_A-Za-z][_A-Za-z0-9]*)", query)[:8]
    variables = {
        name.decode(): VALUES[(data[1] * 7 + data[2] * (i + 1)) % len(VALUES)]
        for i, name in enumerate(dict.fromkeys(names))
    }
    operation = (None, "A", "B", "Q")[data[2] % 4]
    try:
        first = pricer.price(query, variables, operation)
    except GraphQLError as error:
        if error.reason not in REASONS or len(error.detail) > 2_000:
            raise AssertionError("a reason or a detail that nobody promised") from error
        return
    again = pricer.price(query, variables, operation)
    assert (first.type_cost, first.field_cost) == (again.type_cost, again.field_cost)
    assert 0 <= first.cost < 2**53
    assert 0 <= first.type_charge < 2**53
    assert first.depth <= tight.max_depth
    assert first.aliases <= tight.max_aliases
    assert first.tokens <= tight.max_tokens
    first.paths(50)
    first.costliest(5, by_type=True)


MAX_POOL = 500
PIECES = [
    *(re.findall(rb"\w+|[^\w\s]", " ".join([*SEEDS, SDL]).encode())),
    *(b'"""', b'\\"""', b"\\u{1F600}", b"\xef\xbb\xbf", b"\x00", b"\xff", b"...", b"{s}", b"9" * 30, b"[[", b"{n:"),
]  # fmt: skip


def without_atheris(count: int, seed: int) -> None:
    """Splices and damages the seeds, and what came of them, at random."""
    dice = random.Random(seed)
    pool = [bytes([i, i, i]) + text.encode() for i, text in enumerate(SEEDS)]
    for _ in range(count):
        data = bytearray(dice.choice(pool))
        for _ in range(dice.randrange(1, 6)):
            at = dice.randrange(len(data) + 1)
            what = dice.randrange(5)
            if what == 0:
                data[at : at + dice.randrange(1, 9)] = b""
            elif what == 1:
                data[at:at] = dice.choice(PIECES)
            elif what == 2:
                other = dice.choice(pool)
                cut = dice.randrange(len(other))
                data[at:at] = other[cut : cut + dice.randrange(1, 60)]
            elif what == 3 and at < len(data):
                data[at] = dice.randrange(256)
            else:
                data[at : at + 1] = data[at : at + 1] * dice.randrange(1, 40)
        one = bytes(data[:4_000])
        one_input(one)
        if dice.randrange(20) == 0:
            if len(pool) < MAX_POOL:
                pool.append(one)
            else:
                pool[dice.randrange(len(SEEDS), MAX_POOL)] = one


def main() -> None:
    if sys.argv[1:2] == ["--without-atheris"]:
        without_atheris(int(sys.argv[2]), int(sys.argv[3]))
        print(f"{sys.argv[2]} documents, seed {sys.argv[3]}")
        return
    import tempfile
    from pathlib import Path

    import atheris

    corpus = tempfile.mkdtemp()
    for i, text in enumerate(SEEDS):
        for j in range(len(pricers)):
            (Path(corpus) / f"seed-{i}-{j}").write_bytes(bytes([j, i, j]) + text.encode())
    words = Path(corpus) / ".." / f"{Path(corpus).name}.dict"
    escaped = ("".join(f"\\x{byte:02x}" for byte in piece) for piece in dict.fromkeys(PIECES))
    words.write_text("".join('"' + piece + '"\n' for piece in escaped))
    atheris.Setup([sys.argv[0], f"-dict={words}", "-max_len=4096", *sys.argv[1:], corpus], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
