"""The protocol of ext/slots.pxd in every interleaving: two or three processes on a window of two slots, each of which
may be killed before any of its accesses, or stand still for as long as it likes.

The model is the file's text, access by access: a process is a generator that yields before each access to a shared
word. All schedules are tried by running each anew; states that were seen are not tried again. Two laws are held in
each state: a key has at most one live cell, and no charge is lost.

Two that want the last slot for different keys can void each other's claims again and again, each time making progress
nowhere; schedules are followed until a slot has had so many generations.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import pytest

SLOTS = 2
GENERATIONS = 6
Word = tuple[object, ...]
Steps = Generator[None, None, None]
VACANT = "vacant"


@dataclass
class Table:
    """KEY: (key, generation). STATE: ("vacant", n) or (key, charges), the key being there for the laws alone."""

    keys: list[tuple[str, int]] = field(default_factory=lambda: [("", 0)] * SLOTS)
    states: list[Word] = field(default_factory=lambda: [(VACANT, 0)] * SLOTS)
    charged: dict[str, int] = field(default_factory=dict)
    """Swaps that charged a key: what its one cell has to hold."""

    def swap_state(self, i: int, old: Word, new: Word) -> bool:
        if self.states[i] != old:
            return False
        self.states[i] = new
        return True

    def swap_key(self, i: int, old: tuple[str, int], new: tuple[str, int]) -> bool:
        if self.keys[i] != old:
            return False
        self.keys[i] = new
        return True


def live(state: Word) -> bool:
    return state[0] != VACANT


def claims(state: Word, key: tuple[str, int]) -> bool:
    return not live(state) and key[1] == state[1] + 1  # type: ignore[operator]


def void(state: Word) -> Word:
    return (VACANT, state[1] + 1)  # type: ignore[operator]


FORGETTABLE = "old"
"""The key whose cells a fresh one would answer the same as."""


def charge(table: Table, key: str, second_look: bool = True) -> Steps:
    """`write`, `slot_find`, `slot_candidate` and `slot_claim`: one charge of `key`."""
    while True:
        mine, found_claim = None, False
        state: Word = ()
        word = ("", 0)
        spare = None
        for i in range(SLOTS):  # slot_candidate: state before key
            yield
            s = table.states[i]
            yield
            k = table.keys[i]
            if k[0] == key and live(s):
                yield
                if table.swap_state(i, s, (key, s[1] + 1)):  # type: ignore[operator]
                    table.charged[key] = table.charged.get(key, 0) + 1
                    return
                mine = -1  # somebody came first: look again
                break
            if k[0] == key and claims(s, k):
                mine, state, word, found_claim = i, s, k, True
                break
            if mine is None and (k[0] == FORGETTABLE if live(s) else not claims(s, k)):
                mine, state, word = i, s, k
            elif spare is None and not live(s):
                spare = (i, s, k)
            if k == ("", 0):
                break
        if mine == -1:
            continue
        if mine is None:
            if spare is None:
                return  # no room
            mine, state, word = spare
        if not found_claim:
            if live(state) or claims(state, word):
                wanted: Word = (VACANT, word[1]) if live(state) else void(state)
                yield
                if not table.swap_state(mine, state, wanted):
                    continue
                if live(state):
                    table.charged.pop(str(state[0]), None)  # forgotten: a fresh one would answer the same
                state = wanted
            yield
            if not table.swap_key(mine, word, (key, state[1] + 1)):  # type: ignore[operator]
                continue
        alone = True
        for i in range(SLOTS if second_look else 0):
            if i == mine:
                continue
            yield
            s = table.states[i]
            yield
            k = table.keys[i]
            if k[0] == key and (live(s) or claims(s, k)):
                yield
                if live(s) or i < mine:
                    table.swap_state(mine, state, void(state))
                    alone = False
                    break
                if not table.swap_state(i, s, void(s)):
                    alone = False
                    break
            if k == ("", 0):
                break
        if not alone:
            continue
        yield
        if table.swap_state(mine, state, (key, 1)):
            table.charged[key] = table.charged.get(key, 0) + 1
            return


def forget(table: Table, i: int) -> Steps:
    """Somebody drops what is forgettable at `i`, and goes away: a claim for another key that was never filled, say."""
    yield
    s = table.states[i]
    yield
    k = table.keys[i]
    if live(s) and k[0] == FORGETTABLE:
        yield
        if table.swap_state(i, s, (VACANT, k[1])):
            table.charged.pop(str(s[0]), None)


def old_cells(*at: int) -> Table:
    table = Table()
    for i in range(max(at, default=-1) + 1):
        key = FORGETTABLE if i in at else f"other{i}"
        table.keys[i], table.states[i] = (key, 1), (key, 1)
        table.charged[key] = 1
    return table


def wrong(table: Table) -> str | None:
    for key in {k for k, _ in table.keys} - {"", FORGETTABLE}:
        cells = [s[1] for s, k in zip(table.states, table.keys, strict=True) if live(s) and k[0] == key]
        if len(cells) > 1:
            return f"{key} has two cells: {table}"
        if sum(cells) != table.charged.get(key, 0):  # type: ignore[arg-type]
            return f"{key} was charged {table.charged.get(key, 0)} times: {table}"
    for s, k in zip(table.states, table.keys, strict=True):
        if live(s) and s[0] != k[0]:
            return f"a cell of {s[0]} under the key {k[0]}"
    return None


Played = tuple[tuple[object, object, int], list[int], str | None]


def play(make: Callable[[], tuple[Table, list[Steps]]], schedule: tuple[int, ...]) -> Played:
    """The state after a schedule, who can go on, and what is wrong with it."""
    table, processes = make()
    ended = set()
    for process in schedule:
        try:
            next(processes[process])
        except StopIteration:
            ended.add(process)
    inside = []
    for process in processes:
        frame = process.gi_frame
        inside.append(
            None
            if frame is None
            else (
                frame.f_lineno,
                repr(sorted((name, value) for name, value in frame.f_locals.items() if name not in ("table",))),
            )
        )
    words = (tuple(table.keys), tuple(table.states), tuple(sorted(table.charged.items())))
    state = (words, tuple(inside), max(generation for _, generation in table.keys))
    return state, [i for i in range(len(processes)) if i not in ended], wrong(table)


def search(make: Callable[[], tuple[Table, list[Steps]]], most: int = 60_000) -> tuple[int, str | None]:
    """Every reachable state. A killed process is one that is never scheduled again: any prefix of a schedule."""
    seen: set[object] = set()
    stack: list[tuple[int, ...]] = [()]
    while stack:
        schedule = stack.pop()
        state, able, problem = play(make, schedule)
        if problem:
            return len(seen), problem
        if state in seen:
            continue
        seen.add(state)
        if state[2] > GENERATIONS:
            continue
        assert len(seen) < most, "the case is too large to be searched whole"
        stack += [(*schedule, process) for process in able]
    return len(seen), None


CASES: dict[str, Callable[[], tuple[Table, list[Steps]]]] = {}


def case(make: Callable[[], tuple[Table, list[Steps]]]) -> Callable[[], tuple[Table, list[Steps]]]:
    CASES[make.__name__] = make
    return make


def start(table: Table, *works: Callable[[Table], Steps]) -> tuple[Table, list[Steps]]:
    return table, [work(table) for work in works]


@case
def one_key_in_an_empty_window():
    return start(Table(), lambda t: charge(t, "k"), lambda t: charge(t, "k"))


@case
def one_key_while_an_earlier_slot_comes_free():
    return start(old_cells(0, 1), lambda t: charge(t, "k"), lambda t: charge(t, "k"), lambda t: forget(t, 0))


@case
def two_keys_want_one_slot():
    return start(old_cells(1), lambda t: charge(t, "k"), lambda t: charge(t, "l"))


@case
def a_forgotten_key_comes_back():
    return start(old_cells(0), lambda t: charge(t, "k"), lambda t: charge(t, FORGETTABLE))


@pytest.mark.parametrize("name", sorted(CASES))
def test_no_interleaving_breaks_a_law(name):
    states, problem = search(CASES[name])
    assert problem is None
    assert states > 100


def test_the_search_would_find_it():
    """Without the second look two processes that saw different slots to take make two cells."""

    def make() -> tuple[Table, list[Steps]]:
        table = old_cells(1)
        return start(
            table,
            lambda t: charge(t, "k", second_look=False),
            lambda t: charge(t, "k", second_look=False),
            lambda t: forget_other(t),
        )

    def forget_other(table: Table) -> Steps:
        yield
        table.states[0] = (VACANT, 1)
        table.charged.pop("other0", None)

    _, problem = search(make)
    assert problem is not None
    assert "two cells" in problem
