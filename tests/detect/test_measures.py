"""What the core remembers: bounded whatever comes, and true within its error."""

from __future__ import annotations

from typing import Any

import pytest

from shield import Policy, Request
from shield.detect.watch import Watch
from tests.detect.stories import START_US

SECRET = b"0123456789abcdef"


def one(text: str, secret: bytes = SECRET) -> Watch:
    return Watch(Policy.parse(f'version = 1\n[[detector]]\nname = "d"\n{text}').detectors, secret=secret)


def counting(capacity: int = 5, leak: str = "1/10s", more: str = "") -> Watch:
    return one(
        f'on = {{}}\nkey = ["ip"]\nmeasure = "count"\ncapacity = {capacity}\nleak = "{leak}"\nquiet = "0s"\n{more}'
    )


def distinct(capacity: int, leak: str = "1/h", more: str = "") -> Watch:
    return one(
        f'on = {{}}\nkey = ["ip"]\nmeasure = "distinct"\nof = "user"\ncapacity = {capacity}\n'
        f'leak = "{leak}"\nquiet = "0s"\n{more}'
    )


def address(i: int) -> str:
    return f"{i >> 24}.{i >> 16 & 255}.{i >> 8 & 255}.{i & 255}"


def ask(watching: Watch, at_us: int = START_US, **facts: Any) -> bool:
    return bool(watching.request(Request(**{"ip": "192.0.2.1"} | facts), at_us))


def test_a_bucket_leaks_exactly() -> None:
    watching = counting()
    assert [ask(watching) for _ in range(5)] == [False] * 5
    # At ten seconds to the microsecond there is room for one, and not for two.
    assert not ask(watching, START_US + 10_000_000)
    assert ask(watching, START_US + 10_000_000)
    watching = counting()
    assert not any(ask(watching) for _ in range(5))
    assert ask(watching, START_US + 9_999_999)


def test_time_that_steps_back_drains_nothing() -> None:
    watching = counting()
    assert not any(ask(watching, START_US - i * 1_000_000) for i in range(5))
    assert ask(watching, START_US - 3_600_000_000)


def test_an_address_in_other_words_is_the_same_address() -> None:
    watching = counting(1)
    assert not ask(watching, ip="::ffff:192.0.2.1")
    assert ask(watching, ip="192.0.2.1")
    watching = counting(1)
    assert not ask(watching, ip="2001:db8::1")
    assert ask(watching, ip="2001:db8::ffff:1"), "one customer has a whole /64"


@pytest.mark.parametrize("measure", ["count", "distinct"])
def test_a_flood_of_addresses_grows_nothing_past_its_bound(measure: str) -> None:
    watching = counting(more="max_keys = 1024") if measure == "count" else distinct(5, more="max_keys = 1024")
    attacker = {"ip": "203.0.113.9"}
    for i in range(4):
        ask(watching, user=f"u{i}", **attacker)
    for i in range(200_000):
        ask(watching, START_US + i, ip=address(i), user="x")
    stats = watching.stats()["d"]
    assert stats["keys"] <= 1_024
    assert stats["max_keys"] == 1_024
    assert stats["size_bytes"] <= 1_024 * 420
    assert stats["pushed_out"] > 100_000, "a bound that was reached is counted"
    # Newcomers push out each other, not the key that is near its threshold.
    assert not ask(watching, START_US + 200_000, user="u4", **attacker)
    assert ask(watching, START_US + 200_000, user="u5", **attacker)


def test_a_billion_values_of_one_key_need_no_more_than_a_block() -> None:
    watching = distinct(10**6, more="max_keys = 8")
    for i in range(300_000):
        ask(watching, user=f"user-{i}")
    assert watching.stats()["d"]["size_bytes"] <= 8 * 420


@pytest.mark.parametrize("true", [60, 64, 100, 300, 900])
def test_different_values_are_counted_within_the_error_of_the_sketch(true: int) -> None:
    """Exactly up to 64; then with a standard error of about 1.04 / sqrt(256) = 6.5 percent."""
    needed = []
    for seed in range(8):
        watching = one(
            f'on = {{}}\nkey = ["ip"]\nmeasure = "distinct"\nof = "user"\ncapacity = {true - 1}\nleak = "1/30d"\n',
            secret=bytes([seed] * 16),
        )
        i = 0
        while not ask(watching, user=f"user-{i}"):
            assert not ask(watching, user=f"user-{i}"), "seen again, it counts once"
            i += 1
            assert i < 2 * true
        needed.append(i + 1)
    if true <= 64:
        assert set(needed) == {true}
    else:
        assert all(abs(count - true) <= 0.33 * true for count in needed)
        assert abs(sum(needed) / 8 - true) <= 0.12 * true


def test_sums_and_ratios() -> None:
    watching = one('on = {}\nkey = ["user"]\nmeasure = "sum"\nof = "bytes"\ncapacity = 1000\nleak = "100/s"\n')
    assert not ask(watching, user="a", bytes=1_000)
    assert not ask(watching, user="a", bytes=None)
    assert ask(watching, user="a", bytes=1)
    assert ask(watching, user="b", bytes=2**53 - 1)
    watching = one(
        'on = {status = ["2xx", "5xx"]}\nfailing = {status = ["5xx"]}\nkey = ["tenant"]\nmeasure = "ratio"\n'
        'share = 0.5\nminimum = 10\nwindow = "1m"\n'
    )
    request = Request(tenant="acme", ip="192.0.2.1")
    seen = [bool(watching.outcome(request, status, None, START_US)) for status in [200, 500] * 4 + [200]]
    assert not any(seen)
    assert watching.outcome(request, 500, None, START_US)


def test_conditions() -> None:
    watching = one(
        'on = {method = "POST", path = "/pay/{id}", status = [402], user_agent = "curl", country = "NO", '
        'asn = "64500"}\nkey = ["ip"]\nmeasure = "count"\ncapacity = 0\nleak = "1/s"\nquiet = "0s"\n'
    )
    facts: dict[str, Any] = {
        "ip": "192.0.2.1",
        "method": "POST",
        "path": "/pay/7",
        "user_agent": "CURL/8",
        "attributes": {"country": "NO", "asn": 64500},
    }
    assert watching.outcome(Request(**facts), 402, None, START_US)
    for other in (
        {"method": "GET"},
        {"path": "/pay"},
        {"user_agent": "wget"},
        {"attributes": {"country": "SE", "asn": 64500}},
        {"attributes": None},
        {"ip": None},
    ):
        assert not watching.outcome(Request(**facts | other), 402, None, START_US), other
    assert not watching.outcome(Request(**facts), 403, None, START_US)
    assert not watching.request(Request(**facts), START_US)


@pytest.mark.parametrize(
    ("text", "path", "part"),
    [
        ('use = "probin"', "detector[0].use", "did you mean 'probing'"),
        ('use = "probing"\ncapacity = -1', "detector[0].capacity", "from 0 to"),
        ('use = "probing"\nfoo = 1', "detector[0].foo", "unknown key"),
        ('use = "probing"\nof = "bytes"', "detector[0].of", "no amount"),
        ('use = "probing"\non = [{}, {status = [404]}]', "detector[0].on", "one or the other"),
        ('use = "probing"\nshare = 0.5', "detector[0].share", "go together"),
        ('use = "probing"\non = {trait = "admin"}', "detector[0].on[0].trait[0]", "admin-interface"),
        ('use = "tenant-volume"\nkey = ["host"]\nsubject = "host"', "detector[0].subject", "tenant"),
        ('name = "x"\non = {}\nkey = ["ip"]\nmeasure = "count"', "detector[0].leak", "missing"),
        ('name = "x"\non = {}\nkey = ["host"]\nmeasure = "count"\nleak = "1/s"', "detector[0].subject", "missing"),
        ('use = "probing"\ncapacity = 1000000000\nleak = "1/30d"', "detector[0].leak", "faster"),
    ],
)
def test_wrong_detectors_name_the_field(text: str, path: str, part: str) -> None:
    from shield.errors import PolicyError

    with pytest.raises(PolicyError) as caught:
        Policy.parse(f"version = 1\n[[detector]]\n{text}\n")
    assert {issue.path for issue in caught.value.issues} == {path}
    assert part in caught.value.issues[0].message


def test_a_plain_target_is_never_one_that_has_traits() -> None:
    """What the core passes over without reading has no trait but `static`; checked over every word that traits know."""
    import random
    import tomllib
    from importlib.resources import files

    from shield.detect.traits import BIT, of_target

    words = tomllib.loads(files("shield.detect").joinpath("traits.toml").read_text())
    dice = random.Random(5)
    every = [word for group in words.values() for word in group]
    targets = [
        "/",
        "/a/b",
        "/a.png",
        "/ABC123",
        "/?12345678",
        "/x?author=1",
        "/x?a=1&author=2",
        "/login",
        "/a/.env",
        "a",
        "",
    ]
    for word in every:
        plain = word.strip("/")
        for shape in ("/{}", "/a/{}", "/{}/a", "/{}/a.png", "/a/{}?b=1", "/{}-2/x", "/x.{}", "/a/{}.php", "/{}.html"):
            targets += [shape.format(plain), shape.format(plain).upper()]
    targets += ["/" + "".join(dice.choices("ab/.?=&1Z%-_", k=12)) for _ in range(3_000)]
    watching = one(
        'on = {trait = "static"}\nkey = ["ip"]\nmeasure = "count"\ncapacity = 0\nleak = "1/s"\nquiet = "0s"\n'
    )
    passed = 0
    for target in dict.fromkeys(targets):
        before = watching.core.trait_misses
        detected = ask(watching, path=target)
        bits = of_target(target)
        assert detected == bool(bits & BIT["static"]), target
        if watching.core.trait_misses == before:
            passed += 1
            assert bits in (0, BIT["static"]), f"{target} was passed over, and has traits"
    assert passed > 500
