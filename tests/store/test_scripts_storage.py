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
    FOREIGN,
    FULL,
    REFUSED,
    SLACK_MS,
    START_US,
    TAKEN,
    Ask,
    Both,
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
        "check": b"2eb0ff1f97c2308ec8a4e8d333a3cda733426b9a",
        "settle": b"3314e83b95e7b848804c38ae4d7e959e97b186dc",
        "release": b"90fedf10662b72fbb22ccbbbe6f0a3f827bd62e7",
        "blocks": b"cb3768036163c1b787829223316f0b0a98b3ca3d",
        "keyed": b"2e942d88bd8b219009d29c92778281ddcf26befa",
        "end": b"877c093347325c02f031e9d48ac0d035b7d3442f",
        "holder": b"245818cd7e64db9fb8c322d30aa36ba43073d9ed",
        "lease": b"d63bc36d5ed52001f7eb81f2770de957502db208",
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
                scripts.check(START_US, [Ask(limit, limit.name, 1)])
                left_ms = client.pttl(scripts.key(limit, limit.name))
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
    scripts.client.set(
        scripts.key(limit, "k"),
        b"\x02" + section(1, 2**32 - 1, 0, START_US, 30 * DAY_US, id=scripts.forms.of(limit).id),
    )
    entry = scripts.entry(limit, "k", 3, 0)
    assert scripts.settle(START_US, Settlement(b"r", 2**52, START_US, (entry,)))[1] == 1
    assert scripts.client.pttl(scripts.key(limit, "k")) > 2**52


# ---- what was not written by these scripts


def section(tag: int, *numbers: float, until_us: float = 2.0**52, id: bytes = b"8 bytes!") -> bytes:
    return struct.pack("<8sBd", id, tag, until_us) + struct.pack("<4d", *numbers)


GARBAGE = [
    b"",
    b"7",
    b"x" * 50,
    b"\x02" + b"\xff" * 49,
    b"\x02" + section(1, 1, 0, START_US, 1_000_000)[:-1],
    b"\x01" + section(1, 1, 0, START_US, 1_000_000),
    b"\x04" + section(1, 1, 0, START_US, 1_000_000),
    b"\x02" + section(3, 1, 0, START_US, 1_000_000),
    b"\x02" + section(1, -1, 0, START_US, 1_000_000),
    b"\x02" + section(1, 0.5, 0, START_US, 1_000_000),
    b"\x02" + section(1, 1, 1_000_000, START_US, 1_000_000),
    b"\x02" + section(1, 1, 0, float("nan"), 1_000_000),
    b"\x02" + section(1, 1, 0, START_US, 0),
    b"\x02" + section(1, 1, 0, START_US, float("inf")),
    b"\x02" + section(1, 2.0**32, 0, START_US, 1_000_000),
    b"\x02" + section(1, 1, 0, START_US, 1_000_000, until_us=float("nan")),
    b"\x02" + section(2, 1, 2.0**32, START_US, 0),
    b"\x02" + section(1, 1, 0, START_US, 1_000_000) + section(2, 1, -1, START_US, 0),
]


@pytest.mark.parametrize("stored", GARBAGE)
def test_a_foreign_value_is_an_error_and_stays(scripts: Scripts, stored: bytes) -> None:
    limit, other = bucket("mine"), bucket("other", key=("tenant",))
    key = scripts.key(limit, "k")
    scripts.client.set(key, stored)
    answer = scripts.check(START_US, [Ask(other, "k", 1), Ask(limit, "k", 1)])
    assert (answer.status, answer.verdicts[0]) == (FOREIGN, 2)
    with pytest.raises(redis.exceptions.ResponseError, match="was not written by this version"):
        scripts.settle(START_US, Settlement(b"r", 2**52, START_US, (scripts.entry(limit, "k", 2, 1),)))
    assert scripts.client.get(key) == stored
    assert scripts.client.exists(scripts.key(other, "k"), scripts.forms.mark_key(b"r")) == 0


def test_a_state_of_another_algorithm_is_an_error_and_stays(scripts: Scripts) -> None:
    for limit, tag in ((bucket(), 2), (fixed(), 1)):
        key, id = scripts.key(limit, "k"), scripts.forms.of(limit).id
        stored = b"\x02" + section(tag, 1, 0, START_US, 1_000_000, id=id)
        scripts.client.set(key, stored)
        assert scripts.check(START_US, [Ask(limit, "k", 1)]).status == FOREIGN
        with pytest.raises(redis.exceptions.ResponseError, match="was not written by this version"):
            scripts.settle(START_US, Settlement(b"r", 2**52, START_US, (scripts.entry(limit, "k", 2, 1, 0),)))
        assert scripts.client.get(key) == stored


def test_a_key_of_another_type_is_an_error_and_stays(scripts: Scripts) -> None:
    other = bucket("other", key=("tenant",))
    for limit in (bucket("mine"), fixed("mine"), sliding("mine")):
        scripts.client.delete(scripts.key(limit, "k"))
        scripts.client.rpush(scripts.key(limit, "k"), "a list")
        assert scripts.check(START_US, [Ask(other, "k", 1), Ask(limit, "k", 1)]).status == FOREIGN
        with pytest.raises(redis.exceptions.ResponseError, match="was not written by this version"):
            scripts.settle(START_US, Settlement(b"r", 2**52, START_US, (scripts.entry(limit, "k", 2, 1),)))
        assert scripts.client.type(scripts.key(limit, "k")) == b"list"
    limit = places("mine2")
    scripts.client.set(scripts.key(limit, "k"), "text")
    assert scripts.check(START_US, [Ask(other, "k", 1), Ask(limit, "k", 1)]).status == FOREIGN
    assert scripts.client.exists(scripts.key(other, "k")) == 0


def test_numbers_that_do_not_match_the_keys_are_refused(scripts: Scripts) -> None:
    keys, (shape, costs) = scripts.packed([Ask(bucket(), "k", 1)], False, START_US)
    slack = b"\0" * 8
    for arguments in (
        [keys, slack, b"", shape[:-1], costs],
        [keys, slack, b"", shape, costs + costs],
        [keys, slack, b"", shape],
        [keys, slack, b"", b"", costs],
        [keys, slack, b"", shape, b""],
        [keys, slack, b"", shape, costs, b"lease"],
        [keys, slack, b"", shape, costs, shape, costs],
        [[*keys, b"more"], slack, b"", shape, costs],
        [[], slack, b"", shape, costs],
    ):
        with pytest.raises(redis.exceptions.ResponseError, match="do not match"):
            scripts.client.evalsha(CHECK.sha.decode(), len(arguments[0]), *arguments[0], *arguments[1:])
    with pytest.raises(redis.exceptions.ResponseError, match="do not match"):
        scripts.client.evalsha(SETTLE.sha.decode(), 1, b"key", b"\0" * 33, b"")
    assert scripts.client.exists(*keys) == 0


# ---- several limits in one cell, several requests in one command


def test_limits_of_one_key_share_a_cell_and_nothing_else(both: Both) -> None:
    limits = [bucket("one", burst=3), bucket("two", burst=5), fixed("three"), sliding("four")]
    for limit in limits:
        both.check(START_US, [Ask(limit, "k", 2)])
    assert len(both.scripts.client.keys(both.scripts.forms.prefix + ":*")) == 1
    assert not both.check(START_US, [Ask(limits[0], "k", 2), Ask(limits[1], "k", 2)]).admitted
    both.check(START_US, [Ask(limit, "k", 0) for limit in limits])


def test_a_cell_lives_as_long_as_its_longest_section(scripts: Scripts) -> None:
    slow, fast = bucket("slow", rate=(1, 1_000 * SECOND_US)), bucket("fast", rate=(1, 1_000))
    scripts.check(START_US, [Ask(slow, "k", 10)])
    scripts.check(START_US, [Ask(fast, "k", 1)])
    assert scripts.client.pttl(scripts.key(fast, "k")) > 9_000_000


def test_sections_of_limits_that_are_gone_do_not_pile_up(scripts: Scripts) -> None:
    for i in range(40):
        scripts.check(START_US + i * DAY_US, [Ask(bucket(f"gone{i}", rate=(1, 1_000)), "k", 1)])
    assert scripts.client.strlen(scripts.key(bucket(), "k")) <= 1 + 17 * 49


def test_requests_of_one_command_are_decided_in_their_order(scripts: Scripts) -> None:
    """As if each had come in a command of its own: what one takes the next finds taken, under its own numbers."""
    limit, other, held = bucket(burst=5), fixed("f", 4), places(limit=2)
    requests = [
        [Ask(limit, "k", 2), Ask(other, "k", 1)],
        [Ask(limit, "k", 4), Ask(other, "k", 1)],
        [Ask(limit, "k", 3), Ask(other, "k", 1), Ask(held, "k", 1)],
        [Ask(limit, "k", 1), Ask(other, "k", 1)],
        [Ask(limit, "j", 5), Ask(other, "j", 0)],
        [Ask(limit, "k", 3, Numbers(10, 1, 7)), Ask(other, "k", 2), Ask(held, "k", 1)],
        [Ask(held, "k", 1)],
        [Ask(limit, "k", 0), Ask(other, "k", 0), Ask(held, "k", 0)],
    ]
    twin = Scripts(scripts.client)
    together = scripts.check_many(START_US, requests)
    assert together == [twin.check(START_US, asks) for asks in requests]
    assert [answer.status for answer in together] == [1, 0, 1, 0, 1, 1, 0, 1]


def test_one_foreign_value_concerns_its_request_alone(scripts: Scripts) -> None:
    limit = bucket()
    scripts.client.set(scripts.key(limit, "bad"), "text")
    day = fixed("day", 5, DAY_US, align="day", timezone="UTC")
    requests = [[Ask(limit, "good", 1)], [Ask(limit, "bad", 1), Ask(day, "bad", 1)], [Ask(limit, "good", 1)]]
    answers = scripts.check_many(START_US, requests)
    assert [answer.status for answer in answers] == [TAKEN, FOREIGN, TAKEN]
    assert answers[2].states == ((2, 0, START_US),)


# ---- a server without memory


@pytest.mark.parametrize("kind", sorted(binaries()))
def test_out_of_memory_takes_nothing(kind: str) -> None:
    """Redis refuses the first write of a script or none: whatever is taken, all of it is."""
    with run_server(kind, binaries()[kind], args=["--maxmemory-policy", "noeviction"]) as server:
        scripts = Scripts(server.client())
        known, other = bucket("known"), bucket("other", key=("tenant",))
        assert scripts.check(START_US, [Ask(known, "k", 1)]).status == TAKEN
        scripts.client.config_set("maxmemory", 1)
        asks = [Ask(known, "k", 1), Ask(other, "k", 0), Ask(places(), "k", 1)]
        answer = scripts.check(START_US, asks)
        assert (answer.status, answer.verdicts) == (FULL, (2, 0, 2))
        assert [state[0] for state in answer.states] == [1, 0, 0]
        many = scripts.check_many(START_US, [asks, [Ask(known, "k", 11)], asks])
        assert [answer.status for answer in many] == [FULL, REFUSED, FULL]
        assert many[2] == answer
        counted = fixed(limit=1, count_denied=True)
        assert scripts.check(START_US, [Ask(counted, "k", 2), Ask(known, "k", 1)]).status == REFUSED
        with pytest.raises(redis.exceptions.ResponseError, match="command not allowed when used memory"):
            scripts.settle(START_US, Settlement(b"r", 2**52, START_US, (scripts.entry(known, "k", 1, 0),)))
        scripts.client.config_set("maxmemory", 0)
        assert scripts.client.keys("*") == [scripts.key(known, "k")]
        assert scripts.check(START_US, asks).states == ((2, 0, START_US), (0, 0, START_US), (1, 0))
