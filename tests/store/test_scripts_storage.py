"""What the scripts leave on a server, for how long, and what they refuse to touch."""

from __future__ import annotations

import struct

import pytest
import redis.exceptions

from shield.policy.model import Numbers
from shield.store import Settlement
from shield.store.lua import CHECK, SCRIPTS, SETTLE
from tests.servers import Server, binaries, run_server
from tests.store.scripts import (
    FULL,
    REFUSED,
    SLACK_MS,
    START_US,
    TAKEN,
    Ask,
    Scripts,
    bucket,
    fixed,
    places,
    sliding,
)

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US


def test_names_are_pinned() -> None:
    """A script's name is its text. When one changes on purpose: are states that the old one wrote still read right?"""
    names = {script.name: script.sha for script in SCRIPTS}
    assert names == {
        "check": b"92a593cb42055733304cdccea67c661c56426511",
        "settle": b"1d1135aebcc6b583c2de437b1c1dead3544b9be8",
        "release": b"828bf6769c4553af824afe7bd0b788761f9726a3",
    }


# ---- time to live


def test_every_key_expires_and_none_too_early(server: Server) -> None:
    """P5 and P15: the first write sets the time to live, rounded up, and never again without one."""
    with server.client() as client:
        scripts = Scripts(client, slack_ms=0)
        slow = Numbers(3, 1, 10 * SECOND_US)
        limits = {
            bucket("b", rate=(1, 100_000), burst=100): 200,
            bucket("p", rate=(1, 100_000), burst=100, plans={"free": slow}): 20_000,
            fixed("f", window_us=10 * SECOND_US): 10_000 - START_US % (10 * SECOND_US) // 1000,
            sliding("s", window_us=10 * SECOND_US): 20_000 - START_US % (10 * SECOND_US) // 1000,
            places("c", ttl_us=7_000_500): 7_001,
        }
        for limit, expected_ms in limits.items():
            for hit in (1, 2):
                scripts.check(START_US, [Ask(limit, "k", 1)])
                left_ms = client.pttl(scripts.key(limit, "k"))
                due_ms = expected_ms * (hit if limit.algorithm == "token-bucket" else 2) // 2
                assert due_ms - 2_000 < left_ms <= due_ms + 1, limit.name


def test_a_part_of_a_millisecond_is_a_millisecond(server: Server) -> None:
    with server.client() as client:
        scripts = Scripts(client, slack_ms=0)
        limit = bucket(rate=(1, 100_500), burst=1)
        left_ms = []
        for i in range(100):
            scripts.check(START_US, [Ask(limit, f"k{i}", 1)])
            left_ms.append(client.pttl(scripts.key(limit, f"k{i}")))
        assert max(left_ms) == 101


def test_an_emptied_bucket_may_be_forgotten_at_once(server: Server) -> None:
    """A time to live of 0 would be an error of SET."""
    with server.client() as client:
        scripts = Scripts(client, slack_ms=0)
        limit = bucket(rate=(1, SECOND_US), burst=10)
        scripts.check(START_US, [Ask(limit, "k", 3)])
        entry = scripts.entry(limit, "k", 3, 0)
        assert scripts.settle(START_US, Settlement(b"r", START_US + 1, START_US, (entry,))) == (START_US, 1)


def test_the_slack_is_added(scripts: Scripts) -> None:
    limit = bucket(rate=(1, SECOND_US), burst=10)
    scripts.check(START_US, [Ask(limit, "k", 10)])
    assert SLACK_MS + 8_000 < scripts.client.pttl(scripts.key(limit, "k")) <= SLACK_MS + 10_001


def test_the_slowest_bucket_lives_long_enough(scripts: Scripts) -> None:
    """A billion units at one a month: 82 million years, still a time to live the server accepts."""
    limit = bucket(rate=(1, 30 * DAY_US), burst=10**9)
    assert scripts.check(START_US, [Ask(limit, "k", 10**9)]).status == TAKEN
    assert scripts.client.pttl(scripts.key(limit, "k")) > 2**52


def test_more_than_a_server_can_wait_is_cut_to_what_it_can(scripts: Scripts) -> None:
    limit = bucket(rate=(1, 30 * DAY_US), burst=10**9)
    scripts.client.set(scripts.key(limit, "k"), struct.pack("<Bdddd", 17, 2**32 - 1, 0, START_US, 30 * DAY_US))
    entry = scripts.entry(limit, "k", 3, 0)
    assert scripts.settle(START_US, Settlement(b"r", 2**52, START_US, (entry,)))[1] == 1
    assert scripts.client.pttl(scripts.key(limit, "k")) > 2**52


# ---- what was not written by these scripts

GARBAGE = [
    b"",
    b"7",
    b"x" * 33,
    b"\x11" + b"\xff" * 32,
    struct.pack("<Bdddd", 18, 1, 0, START_US, 1_000_000),
    struct.pack("<Bdddd", 17, -1, 0, START_US, 1_000_000),
    struct.pack("<Bdddd", 17, 0.5, 0, START_US, 1_000_000),
    struct.pack("<Bdddd", 17, 1, 1_000_000, START_US, 1_000_000),
    struct.pack("<Bdddd", 17, 1, 0, float("nan"), 1_000_000),
    struct.pack("<Bdddd", 17, 1, 0, START_US, 0),
    struct.pack("<Bdddd", 17, 1, 0, START_US, float("inf")),
    struct.pack("<Bdddd", 17, 2.0**32, 0, START_US, 1_000_000),
]


@pytest.mark.parametrize("stored", GARBAGE)
def test_a_foreign_value_is_an_error_and_stays(scripts: Scripts, stored: bytes) -> None:
    limit, other = bucket("mine"), bucket("other")
    key = scripts.key(limit, "k")
    scripts.client.set(key, stored)
    with pytest.raises(redis.exceptions.ResponseError, match="was not written by this version"):
        scripts.check(START_US, [Ask(other, "k", 1), Ask(limit, "k", 1)])
    with pytest.raises(redis.exceptions.ResponseError, match="was not written by this version"):
        scripts.settle(START_US, Settlement(b"r", 2**52, START_US, (scripts.entry(limit, "k", 2, 1),)))
    assert scripts.client.get(key) == stored
    assert scripts.client.exists(scripts.key(other, "k"), scripts.forms.mark_key(b"r")) == 0


def test_a_key_of_another_type_is_an_error_and_stays(scripts: Scripts) -> None:
    for limit in (bucket("mine"), fixed("mine"), sliding("mine")):
        scripts.client.delete(scripts.key(limit, "k"))
        scripts.client.rpush(scripts.key(limit, "k"), "a list")
        with pytest.raises(redis.exceptions.ResponseError, match="was not written by this version"):
            scripts.check(START_US, [Ask(bucket("other"), "k", 1), Ask(limit, "k", 1)])
        with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
            scripts.settle(START_US, Settlement(b"r", 2**52, START_US, (scripts.entry(limit, "k", 2, 1),)))
        assert scripts.client.type(scripts.key(limit, "k")) == b"list"
    limit = places("mine2")
    scripts.client.set(scripts.key(limit, "k"), "text")
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        scripts.check(START_US, [Ask(bucket("other"), "k", 1), Ask(limit, "k", 1)])
    assert scripts.client.exists(scripts.key(bucket("other"), "k")) == 0


def test_numbers_that_do_not_match_the_keys_are_refused(scripts: Scripts) -> None:
    for script, arguments in ((CHECK, (b"x" * 79, b"")), (SETTLE, (b"\0" * 33, b""))):
        with pytest.raises(redis.exceptions.ResponseError, match="do not match"):
            scripts.client.evalsha(script.sha.decode(), 1, b"key", *arguments)


# ---- a server without memory


@pytest.mark.parametrize("kind", sorted(binaries()))
def test_out_of_memory_takes_nothing(kind: str) -> None:
    """Redis refuses the first write of a script or none: whatever is taken, all of it is."""
    with run_server(kind, binaries()[kind], args=["--maxmemory-policy", "noeviction"]) as server:
        scripts = Scripts(server.client())
        known, other = bucket("known"), bucket("other")
        assert scripts.check(START_US, [Ask(known, "k", 1)]).status == TAKEN
        scripts.client.config_set("maxmemory", 1)
        asks = [Ask(known, "k", 1), Ask(other, "k", 0), Ask(places(), "k", 1)]
        answer = scripts.check(START_US, asks)
        assert (answer.status, answer.verdicts) == (FULL, (2, 0, 2))
        assert [state[0] for state in answer.states] == [1, 0, 0]
        counted = fixed(limit=1, count_denied=True)
        assert scripts.check(START_US, [Ask(counted, "k", 2), Ask(known, "k", 1)]).status == REFUSED
        with pytest.raises(redis.exceptions.ResponseError, match="command not allowed when used memory"):
            scripts.settle(START_US, Settlement(b"r", 2**52, START_US, (scripts.entry(known, "k", 1, 0),)))
        scripts.client.config_set("maxmemory", 0)
        assert scripts.client.keys("*") == [scripts.key(known, "k")]
        assert scripts.check(START_US, asks).states == ((2, 0, START_US), (0, 0, START_US), (1, 0))
