"""Matching: the automaton answers as templates tried one by one, kept or not, and its size is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shield.policy import Limit, Numbers
from shield.policy.matcher import MAX_BYTES, Matcher
from shield.policy.path import normalise, parse_template


def limit(methods: tuple[str, ...] = (), paths: tuple[str, ...] = ()) -> Limit:
    return Limit("any", ("ip",), "token-bucket", Numbers(1, 1, 1), methods=methods, paths=paths)


def fits(template: str, path: str) -> bool:
    """The rule as the reference states it."""
    parsed = parse_template(template)
    segments = [segment for segment in normalise(path).split("/") if segment]
    wanted = parsed.segments
    if len(segments) < len(wanted) or (len(segments) > len(wanted) and not parsed.rest):
        return False
    return all(want in (None, segment) for want, segment in zip(wanted, segments, strict=False))


def naive(limits: list[Limit], method: str | None, path: str | None) -> tuple[int, ...]:
    return tuple(
        at
        for at, one in enumerate(limits)
        if (not one.methods or (method or "").upper() in one.methods)
        and (not one.paths or (bool(path) and any(fits(template, path or "") for template in one.paths)))
    )


def test_no_conditions_is_a_fast_path() -> None:
    matcher = Matcher([limit(), limit()])
    assert matcher.unconditional
    assert matcher.match("GET", "/a") == matcher.match(None, None) == (0, 1)
    assert Matcher([]).match("GET", "/") == ()
    assert not Matcher([limit(), limit(methods=("GET",))]).unconditional


LIMITS = [
    limit(),
    limit(methods=("POST",)),
    limit(paths=("/orders/{id}",)),
    limit(methods=("POST", "PUT"), paths=("/orders/{id}", "/orders")),
    limit(paths=("/orders/new",)),
    limit(paths=("/files/{rest...}",)),
    limit(paths=("/",)),
    limit(paths=("/{any...}",)),
    limit(paths=("/{version}/orders",)),
]


@pytest.mark.parametrize(
    ("method", "path", "met"),
    [
        ("GET", "/orders/9", (0, 2, 7)),
        ("POST", "/orders/9", (0, 1, 2, 3, 7)),
        ("post", "/orders/9", (0, 1, 2, 3, 7)),
        ("Put", "/orders", (0, 3, 7)),
        ("GET", "/orders/new", (0, 2, 4, 7)),
        ("GET", "/orders/NEW", (0, 2, 7)),
        ("GET", "/orders/9/items", (0, 7)),
        ("GET", "/files", (0, 5, 7)),
        ("GET", "/files/", (0, 5, 7)),
        ("GET", "/files/a/b/c", (0, 5, 7)),
        ("GET", "/", (0, 6, 7)),
        ("GET", "/v1/orders", (0, 7, 8)),
        ("GET", "/orders/orders", (0, 2, 7, 8)),
        (None, "/orders/9", (0, 2, 7)),
        ("", "/orders/9", (0, 2, 7)),
        ("POST", None, (0, 1)),
        ("POST", "", (0, 1)),
        (None, None, (0,)),
        ("BREW", "/nowhere/at/all", (0, 7)),
        # every spelling of a path meets the same limits
        ("GET", "//orders/./9/?x=1", (0, 2, 7)),
        ("GET", "/%6frders/x/../9", (0, 2, 7)),
        ("GET", "http://host/orders%2F9#f", (0, 2, 7)),
    ],
)
@pytest.mark.parametrize("max_bytes", [MAX_BYTES, 0])
def test_match(method: str | None, path: str | None, met: tuple[int, ...], max_bytes: int) -> None:
    matcher = Matcher(LIMITS, max_bytes)
    assert matcher.match(method, path) == met
    assert matcher.match(method, path) == met  # as remembered
    assert naive(LIMITS, method, path) == met


def test_malformed_values_are_value_errors() -> None:
    matcher = Matcher(LIMITS)
    with pytest.raises(ValueError, match="path: found 9000 characters"):
        matcher.match("GET", "/" + "a" * 8_999)
    with pytest.raises(ValueError, match="path: expected text, not int"):
        matcher.match("GET", 5)
    with pytest.raises(ValueError, match="method: expected text, not bytes"):
        matcher.match(b"GET", "/")


def test_a_wrong_template_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="path template"):
        Matcher([limit(paths=("/a/{b",))])


segments = st.sampled_from(["a", "b", "c", "{x}", "{y}", "{z}"])


def _template(parts: list[str], rest: bool) -> str:
    named = [f"{{p{at}}}" if part.startswith("{") else part for at, part in enumerate(parts)]
    return "/" + "/".join([*named, *(["{rest...}"] if rest else [])])


templates = st.builds(_template, st.lists(segments, max_size=4), st.booleans())
methods = st.sampled_from(["GET", "POST", "PUT"])
conditioned = st.builds(
    limit, methods=st.lists(methods, max_size=2).map(tuple), paths=st.lists(templates, max_size=3).map(tuple)
)
asked = st.tuples(
    st.sampled_from(["GET", "post", "PUT", "BREW", None]),
    st.none()
    | st.lists(st.sampled_from(["a", "b", "c", "d", "", "..", "%61"]), max_size=6).map(lambda s: "/" + "/".join(s)),
)


@given(
    st.lists(conditioned, max_size=8),
    st.lists(asked, min_size=1, max_size=12),
    st.sampled_from([MAX_BYTES, 0, 1, 1_000, 2_500, 5_000]),
)
def test_answers_as_trying_one_by_one(
    limits: list[Limit], requests: list[tuple[str | None, str | None]], max_bytes: int
) -> None:
    matcher = Matcher(limits, max_bytes)
    for method, path in requests:
        assert matcher.match(method, path) == naive(limits, method, path)


def test_states_are_bounded_where_they_could_be_exponential() -> None:
    # The k-th segment from the end decides: the classic case with 2^k states.
    templates = [_template([*["{x}"] * skip, "a", *["{x}"] * 7], rest=False) for skip in range(8)]
    limits = [limit(paths=(template,)) for template in templates]
    room = 20_000
    matcher = Matcher(limits, room)
    for number in range(1 << 12):
        path = "/" + "/".join("ab"[number >> bit & 1] for bit in range(12))
        assert matcher.match("GET", path) == naive(limits, "GET", path)
    kept = len(matcher._states)
    assert 0 < kept < room // 800 + 1
    assert matcher._room >= 0


def test_hostile_paths_grow_nothing() -> None:
    matcher = Matcher(LIMITS)
    for at in range(2_000):
        matcher.match(f"M{at}", f"/x{at}/y{at}/orders/z{at}")
    # One state for each depth that templates tell apart, whatever the segments were.
    assert len(matcher._states) <= 4
    assert sum(len(state.edges) for state in matcher._states.values()) <= 16


def test_cost_does_not_grow_with_limits() -> None:
    limits = [limit(paths=(f"/api/service-{at}/{{id}}",)) for at in range(1_024)]
    matcher = Matcher(limits)
    assert matcher.match("GET", "/api/service-7/9") == (7,)
    steps = []
    step = matcher._step
    matcher._step = lambda *given: steps.append(given) or step(*given)
    assert matcher.match("GET", "/api/service-7/10") == (7,)
    assert steps == []  # three lookups, nothing computed
