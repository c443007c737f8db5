"""Which limits a request meets, by its method and path.

The cost of a match grows with the segments of the path and not with the number of limits. All templates stand
in one trie of segments; where a path fits several branches (a literal and a `{name}`), what is walked is the
set of nodes it may be at. Such sets are states of a deterministic automaton that is built as requests first
need them, so that walking on is one dictionary lookup a segment.

The automaton is bounded, because hostile paths choose which states are built. Past the bound nothing more is
kept: the same walk then steps through the sets themselves, exactly and only slower.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from shield.policy.path import normalise, parse_template

# What the automaton may hold, estimated from CPython's sizes of sets, dicts and tuples. A thousand limits on
# a thousand different paths need about two.
MAX_BYTES = 16 * 1_048_576
_STATE_BYTES = 800
_MEMBER_BYTES = 64
_EDGE_BYTES = 128
_ANSWER_BYTES = 128

_OTHER = 0  # a method that no limit names, or none


class Conditional(Protocol):
    """What says which requests it is for: a limit, a guard."""

    @property
    def methods(self) -> tuple[str, ...]: ...

    @property
    def paths(self) -> tuple[str, ...]: ...


class _Node:
    """A place in the trie of templates."""

    __slots__ = ("any_segment", "ends", "literals", "rests")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.any_segment: _Node | None = None
        self.ends: list[int] = []  # limits whose template ends here
        self.rests: list[int] = []  # limits whose template accepts whatever follows here


class _State:
    """A set of places, and the limits whose {rest...} was passed on the way to it."""

    __slots__ = ("answers", "edges", "nodes", "passed")

    def __init__(self, nodes: frozenset[_Node], passed: frozenset[int]) -> None:
        self.nodes = nodes
        self.passed = passed.union(*(node.rests for node in nodes))
        self.edges: dict[int, _State] = {}
        self.answers: dict[int, tuple[int, ...]] = {}


class Matcher:
    """Built once for a policy. Raises ValueError for a path template that is none.

    `unconditional` is True when every limit is for every request: then `match` is always the same tuple.
    """

    def __init__(self, limits: Sequence[Conditional], max_bytes: int = MAX_BYTES) -> None:
        """`max_bytes` is for tests: with 0 nothing is kept and every match walks the sets."""
        self._limits = tuple(limits)
        self._every = tuple(range(len(self._limits)))
        self.unconditional = not any(limit.methods or limit.paths for limit in self._limits)
        self._room = max_bytes
        self._deepest = 0
        self._methods: dict[str, int] = {}
        self._segments: dict[str, int] = {}
        self._states: dict[tuple[frozenset[_Node], frozenset[int]], _State] = {}
        self._pathless = tuple(at for at, limit in enumerate(self._limits) if not limit.paths)
        root = _Node()
        for at, limit in enumerate(self._limits):
            for method in limit.methods:
                self._methods.setdefault(method, len(self._methods) + 1)
            for path in limit.paths:
                self._plant(root, path, at)
        self._start = _State(frozenset((root,)), frozenset())
        self._no_path = _State(frozenset(), frozenset())

    def match(self, method: str | None, path: str | None) -> tuple[int, ...]:
        """The indexes of the limits that this request meets, ascending.

        `path` is as sent, and normalised here; `method` is taken in any case. A limit with a condition on a
        fact that the request does not state (None or "") does not match. Raises ValueError for a path that is
        too long and for values that are not text.
        """
        if self.unconditional:
            return self._every
        asked = _OTHER
        if method:
            if not isinstance(method, str):
                raise ValueError(f"method: expected text, not {type(method).__name__}")
            asked = self._methods.get(method, _OTHER) or self._methods.get(method.upper(), _OTHER)
        state = self._no_path
        if path:
            path = normalise(path)
            state = self._start
            if path != "/":
                # Past the deepest template nothing makes a difference: what follows stays one piece.
                for segment in path[1:].split("/", self._deepest):
                    known = self._segments.get(segment, -1)
                    state = state.edges.get(known) or self._step(state, segment, known)
        answer = state.answers.get(asked)
        return self._answer(state, asked) if answer is None else answer

    def _plant(self, root: _Node, path: str, limit: int) -> None:
        template = parse_template(path)
        self._deepest = max(self._deepest, len(template.segments))
        node = root
        for segment in template.segments:
            if segment is None:
                if node.any_segment is None:
                    node.any_segment = _Node()
                node = node.any_segment
            else:
                self._segments.setdefault(segment, len(self._segments))
                node = node.literals.setdefault(segment, _Node())
        (node.rests if template.rest else node.ends).append(limit)

    def _step(self, state: _State, segment: str, known: int) -> _State:
        """Where this segment leads, remembered while there is room."""
        nodes: set[_Node] = set()
        for node in state.nodes:
            literal = node.literals.get(segment)
            if literal is not None:
                nodes.add(literal)
            if node.any_segment is not None:
                nodes.add(node.any_segment)
        reached = _State(frozenset(nodes), state.passed)
        # The same set may be reached on many ways. A state that is not kept has no edges kept either.
        key = (reached.nodes, reached.passed)
        kept = self._states.get(key)
        if kept is None:
            if not self._take(_STATE_BYTES + _MEMBER_BYTES * (len(reached.nodes) + len(reached.passed))):
                return reached
            kept = self._states[key] = reached
        if self._is_kept(state) and self._take(_EDGE_BYTES):
            state.edges[known] = kept
        return kept

    def _answer(self, state: _State, asked: int) -> tuple[int, ...]:
        met = {*self._pathless, *state.passed}
        met.update(*(node.ends for node in state.nodes))
        answer = tuple(sorted(self._with_method(met, asked)))
        if self._is_kept(state) and self._take(_ANSWER_BYTES + 8 * len(answer)):
            state.answers[asked] = answer
        return answer

    def _with_method(self, limits: Iterable[int], asked: int) -> Iterable[int]:
        for at in limits:
            methods = self._limits[at].methods
            if not methods or any(self._methods[method] == asked for method in methods):
                yield at

    def _is_kept(self, state: _State) -> bool:
        first = state is self._start or state is self._no_path
        return first or self._states.get((state.nodes, state.passed)) is state

    def _take(self, size_bytes: int) -> bool:
        """Whether there was room for that much more."""
        if size_bytes > self._room:
            return False
        self._room -= size_bytes
        return True
