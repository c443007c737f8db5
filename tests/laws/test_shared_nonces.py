"""A nonce in the shared table when processes meet: one is stopped before each of its accesses to shared memory, while
another runs a whole step, or for ever, because it was killed there.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shield import Policy, Request, Shield
from shield.request import Nonce
from tests.laws.test_shared_interleavings import T0, T1, US, Host, interleaved, killed, slow
from tests.laws.test_shared_interleavings import host as host
from tests.stepping import AVAILABLE

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="stops processes by ptrace(2) on x86-64 Linux")
GUARD = "[guard.replay]\nwindow = '10s'\nfuture_skew = '0s'\n"
QUOTA = slow("b", 5) + GUARD
SLOTS = 32


def once(table: Host, value: str, stamp_us: int, now_us: int | None = None, **facts: object) -> bool:
    return table.ask(stamp_us if now_us is None else now_us, nonce=Nonce(value, stamp_us / US), **facts)


def test_one_nonce_is_taken_once_and_its_refusal_costs_nothing(host):
    table = host(QUOTA)
    for both in interleaved(table, lambda: once(table, "n", T1, user="u"), lambda: once(table, "n", T1, user="v")):
        assert sum(both) == 1
        assert table.remaining("b", T1, user="u") == 5 - both[0]
        assert table.remaining("b", T1, user="v") == 5 - both[1]
        assert table.shield.stats()["nonces"] == 1


def test_a_nonce_that_ran_out_is_taken_once(host):
    """Both find its old cell."""
    table = host(QUOTA)
    assert once(table, "n", T1, user="u")
    table.begin()
    later = T1 + 20 * US
    for both in interleaved(
        table, lambda: once(table, "n", later, user="u"), lambda: once(table, "n", later, user="v")
    ):
        assert sum(both) == 1
        assert not once(table, "n", later, user="w")


def test_two_nonces_want_the_one_slot_that_ran_out(host):
    table = host(slow("b", 500) + GUARD)
    for i in range(SLOTS):
        assert once(table, f"n{i}", T1 + (0 if i == 7 else 5 * US), T1 + 5 * US, user="u")
    table.begin()
    later = T1 + 12 * US  # only number 7 is not held any more
    for both in interleaved(
        table, lambda: once(table, "x", later, user="u"), lambda: once(table, "y", later, user="v")
    ):
        assert sum(both) == 1, "the other finds no room: what is held is not dropped"
        assert table.remaining("b", later, user="v") == 500 - both[1], "and is charged nothing"
        assert not once(table, "x", later) or not both[0]
        for i in range(SLOTS):
            assert i == 7 or not once(table, f"n{i}", T1 + 5 * US, later, user="w")


def test_a_nonce_taken_while_the_window_is_widened_is_not_taken_again(host):
    table = host(QUOTA)
    wide = Shield(
        Policy.parse(f'version = 1\nname = "steps"\n{QUOTA}'.replace("10s", "60s")),
        table.url,
        clock=lambda: table.now_us * 1000,
    )

    def widen() -> bool:
        table.now_us = T1
        return wide.check_nowait(Request(user="v", nonce=Nonce("m", T1 / US))).allowed

    for narrow, widened in interleaved(table, lambda: once(table, "n", T1, user="u"), widen):
        assert widened
        for later in (T1, T1 + 5 * US, T1 + 20 * US, T1 + 59 * US):
            table.now_us = later
            again = wide.check_nowait(Request(user="w", nonce=Nonce("n", T1 / US))).allowed
            assert not (narrow and again), "twice"


# ---- killed ---------------------------------------------------------------------------------------------------------


def outcomes(table: Host) -> Iterator[tuple[bool, int]]:
    for _ in killed(table, lambda: once(table, "n", T1, user="u")):
        left = table.remaining("b", T1, user="u")
        again = once(table, "n", T1, user="v")
        assert not once(table, "n", T1, user="w"), "whoever took it, took it"
        yield again, left
        assert once(table, "n", T1 + 11 * US, user="x"), "nothing is stuck when it has run out"


def test_killed_anywhere_the_nonce_is_free_or_used(host):
    """The nonce is the last thing taken: while it is free the charge in hand may be lost, and never the other way."""
    assert set(outcomes(host(QUOTA))) == {(True, 5), (True, 4), (False, 4)}


def test_a_nonce_is_known_to_who_comes_later_to_the_table(host):
    table = host(QUOTA)
    assert not once(table, "n", T0, user="u"), "the table is too new to know"
    assert once(table, "n", T1, user="u")
    late = Shield(table.policy, table.url, clock=lambda: T1 * 1000)
    assert late.check_nowait(Request(user="v", nonce=Nonce("n", T1 / US))).reason == "replay"
