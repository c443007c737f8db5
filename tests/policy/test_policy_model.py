"""From text to the model: the contract's example, defaults, plans, identities, fingerprints and warnings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from shield.errors import PolicyError
from shield.policy import Identity, Limit, Numbers, Policy, SizeGuard

EXAMPLE = """
version = 1
name = "orders-api"
owner = "payments-platform"

[identity]
trusted_proxies = ["10.0.0.0/8"]
ipv6_prefix = 64
anonymous = true

[identity.headers]
tenant = "X-Tenant"
attributes.country = "X-Country"

[[limit]]
name = "user-burst"
key = ["tenant", "user"]
rate = "100/s"
burst = 200
match = { method = ["POST"], path = "/orders/{id}" }
missing = "skip"
when_store_fails = "local"
when_full = "share"
count_denied = false
mode = "enforce"
cost = 1
plans = { free = { rate = "10/s", burst = 20 } }

[[limit]]
name = "tenant-day"
key = ["tenant"]
algorithm = "fixed-window"
rate = "1_000_000/day"
align = "day"
timezone = "UTC"

[[limit]]
name = "exports"
key = ["tenant"]
algorithm = "concurrency"
limit = 20
ttl = "60s"

[guard.size]
max_body_bytes = 1_048_576
content_types = ["application/json"]
"""

DAY_US = 86_400_000_000


def one(text: str) -> Limit:
    """The only limit of a policy, from the lines that follow its name and key."""
    (limit,) = Policy.parse(f'[[limit]]\nname = "one"\nkey = ["ip"]\n{text}').limits
    return limit


def test_example() -> None:
    assert Policy.parse(EXAMPLE) == Policy(
        version=1,
        name="orders-api",
        owner="payments-platform",
        settle_within_us=300_000_000,
        identity=Identity(("10.0.0.0/8",), 64, True, {"tenant": "X-Tenant", "attributes.country": "X-Country"}),
        limits=(
            Limit(
                name="user-burst",
                key=("tenant", "user"),
                algorithm="token-bucket",
                numbers=Numbers(200, 1, 10_000),
                plans={"free": Numbers(20, 1, 100_000)},
                methods=("POST",),
                paths=("/orders/{id}",),
            ),
            Limit(
                name="tenant-day",
                key=("tenant",),
                algorithm="fixed-window",
                numbers=Numbers(1_000_000),
                window_us=DAY_US,
                align="day",
                timezone="UTC",
            ),
            Limit(
                name="exports",
                key=("tenant",),
                algorithm="concurrency",
                numbers=Numbers(20),
                ttl_us=60_000_000,
                when_full="deny",
            ),
        ),
        size=SizeGuard(1_048_576, ("application/json",)),
    )


def test_the_same_policy_in_three_syntaxes_and_from_files(tmp_path: Path) -> None:
    import tomllib

    tree = tomllib.loads(EXAMPLE)
    expected = Policy.parse(EXAMPLE)
    written = {
        "policy.toml": EXAMPLE,
        "policy.json": json.dumps(tree),
        "policy.yaml": yaml.safe_dump(tree),
        "policy.YML": yaml.safe_dump(tree),
    }
    for name, text in written.items():
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        assert Policy.load(path) == Policy.load(str(path)) == expected
        assert Policy.load(path).fingerprint == expected.fingerprint
    assert Policy.parse(EXAMPLE.encode()) == expected
    assert Policy.parse("\ufeff" + EXAMPLE) == expected
    assert Policy.parse(EXAMPLE.replace("\n", "\r\n")) == expected


def test_defaults() -> None:
    texts = {"toml": "version = 1", "yaml": "version: 1", "json": '{"version": 1}'}
    assert all(Policy.parse(text, format) == Policy() for format, text in texts.items())
    policy = Policy()
    assert policy.identity == Identity(("127.0.0.0/8", "::1/128"), 64, True, {})
    assert (policy.version, policy.name, policy.owner, policy.settle_within_us) == (
        1,
        "default",
        None,
        300_000_000,
    )
    assert (policy.limits, policy.size) == ((), None)
    assert Policy.parse("[identity]\n[guard.size]\n") == dataclasses.replace(policy, size=SizeGuard())
    assert one('rate = "5/s"') == Limit(
        name="one",
        key=("ip",),
        algorithm="token-bucket",
        numbers=Numbers(5, 1, 200_000),
        plans={},
        window_us=None,
        align=None,
        timezone=None,
        ttl_us=None,
        methods=(),
        paths=(),
        missing="skip",
        when_store_fails="local",
        when_full="share",
        count_denied=False,
        mode="enforce",
        cost=1,
    )


def test_numbers() -> None:
    assert one('rate = "90/m"').numbers == Numbers(90, 3, 2_000_000)
    assert one('rate = "90/m"\nburst = 1').numbers == Numbers(1, 3, 2_000_000)
    assert one('rate = "1/30d"\nburst = 1_000_000_000').numbers == Numbers(10**9, 1, 30 * DAY_US)
    assert one('rate = "2_000_000_000/h"\nburst = 5').numbers == Numbers(5, 5, 9)
    sliding = one('algorithm = "sliding-window"\nrate = "100/10s"')
    assert (sliding.numbers, sliding.window_us) == (Numbers(100), 10_000_000)
    fixed = one('algorithm = "fixed-window"\nrate = "100/h"')
    assert (fixed.numbers, fixed.window_us, fixed.align, fixed.timezone) == (
        Numbers(100),
        3_600_000_000,
        None,
        None,
    )
    day = one('algorithm = "fixed-window"\nrate = "100/24h"\nalign = "day"')
    assert (day.window_us, day.align, day.timezone) == (DAY_US, "day", "UTC")
    month = one('algorithm = "fixed-window"\nrate = "100/month"\nalign = "month"\ntimezone = "Europe/Oslo"')
    assert (month.numbers, month.window_us, month.align, month.timezone) == (
        Numbers(100),
        None,
        "month",
        "Europe/Oslo",
    )
    places = one('algorithm = "concurrency"\nlimit = 1_024')
    assert (places.numbers, places.ttl_us, places.window_us) == (Numbers(1_024), 60_000_000, None)
    assert one('algorithm = "concurrency"\nlimit = 1\nttl = "1ms"\nwhen_full = "deny"').ttl_us == 1_000


def test_plans_are_merged() -> None:
    bucket = one(
        """rate = "100/s"
        burst = 200
        [limit.plans]
        both = { rate = "10/s", burst = 20 }
        rate = { rate = "50/s" }
        burst = { burst = 500 }
        "Grösse M" = { burst = 1 }
        """
    )
    assert bucket.plans == {
        "both": Numbers(20, 1, 100_000),
        "rate": Numbers(50, 1, 20_000),  # burst is the count of that rate
        "burst": Numbers(500, 1, 10_000),  # rate is the limit's
        "Grösse M": Numbers(1, 1, 10_000),
    }
    assert bucket.numbers_for("both") == Numbers(20, 1, 100_000)
    assert bucket.numbers_for("none such") == bucket.numbers_for(None) == Numbers(200, 1, 10_000)
    window = one('algorithm = "sliding-window"\nrate = "100/m"\nplans = { pro = { rate = "500/60s" } }')
    assert window.plans == {"pro": Numbers(500)}
    places = one('algorithm = "concurrency"\nlimit = 5\nplans = { pro = { limit = 50 } }')
    assert places.plans == {"pro": Numbers(50)}


def test_conduct() -> None:
    limit = one(
        """rate = "5/s"
        key = ["ip"]
        missing = "deny"
        when_store_fails = "allow"
        when_full = "deny"
        count_denied = true
        mode = "shadow"
        cost = "bytes"
        match = { method = "get", path = ["/a", "/b/{rest...}"] }
        """.replace('key = ["ip"]\n', "")
    )
    assert (limit.missing, limit.when_store_fails, limit.when_full) == ("deny", "allow", "deny")
    assert (limit.count_denied, limit.mode, limit.cost) == (True, "shadow", "bytes")
    assert (limit.methods, limit.paths) == (("GET",), ("/a", "/b/{rest...}"))
    assert one('rate = "5/s"\nmatch = {}').paths == ()
    assert one('rate = "5/s"').lease == one('rate = "5/s"\nlease = "off"').lease == "off"
    assert one('rate = "5/s"\nlease = "auto"').lease == "auto"
    assert one('rate = "5/s"\ncost = 0').cost == 0
    assert one(f'rate = "5/s"\ncost = {2**53 - 1}').cost == 2**53 - 1
    assert one('algorithm = "concurrency"\nlimit = 5\ncost = "request"').cost == "request"


def test_identity_section() -> None:
    identity = Policy.parse(
        """[identity]
        trusted_proxies = ["192.0.2.7", "2001:DB8::/32"]
        ipv6_prefix = 48
        [identity.headers]
        "attributes.tier" = "X-Tier"
        api_key = "X-Api-Key"
        """
    ).identity
    assert identity.trusted_proxies == ("192.0.2.7/32", "2001:db8::/32")
    assert identity.ipv6_prefix == 48
    assert identity.headers == {"attributes.tier": "X-Tier", "api_key": "X-Api-Key"}
    assert Policy.parse("[identity]\ntrusted_proxies = []").identity.trusted_proxies == ()


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ('rate = "10/s"\nburst = 9', True),
        ('rate = "5/s"\nplans = { pro = { burst = 9 } }', True),
        ('rate = "5/s"\nmode = "shadow"\ncost = 2\nmatch = { method = "GET" }', True),
        ('algorithm = "sliding-window"\nrate = "5/s"', False),
        ('algorithm = "fixed-window"\nrate = "5/s"', False),
        ('algorithm = "fixed-window"\nrate = "5/m"', False),
        ('algorithm = "fixed-window"\nrate = "5/d"', False),
        ('algorithm = "fixed-window"\nrate = "5/d"\nalign = "day"', False),
        ('algorithm = "fixed-window"\nrate = "5/d"\nalign = "day"\ntimezone = "Europe/Oslo"', False),
        ('algorithm = "fixed-window"\nrate = "5/month"\nalign = "month"', False),
        ('algorithm = "concurrency"\nlimit = 5', False),
    ],
)
def test_numbers_and_conduct_are_not_identity(text: str, same: bool) -> None:
    assert (one(text).identity == one('rate = "5/s"').identity) is same


def test_identities_differ() -> None:
    texts = [
        *(
            'algorithm = "fixed-window"\nrate = "5/d"',
            'algorithm = "fixed-window"\nrate = "5/d"\nalign = "day"',
        ),
        *('algorithm = "sliding-window"\nrate = "5/d"', 'algorithm = "sliding-window"\nrate = "5/h"'),
    ]
    assert len({one(text).identity for text in texts}) == len(texts)
    base = one('rate = "5/s"')
    for change in ({"name": "other"}, {"key": ("user",)}, {"key": ("ip", "user")}, {"key": ("user", "ip")}):
        assert dataclasses.replace(base, **change).identity != base.identity
    assert base.identity == "one|token-bucket|ip|||"


def test_models_are_frozen_and_hashable() -> None:
    policy = Policy.parse(EXAMPLE)
    assert hash(policy) == hash(Policy.parse(EXAMPLE))
    for value in (policy, policy.identity, policy.limits[0], policy.limits[0].numbers, policy.size):
        assert not hasattr(value, "__dict__")
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, dataclasses.fields(value)[0].name, 5)
    with pytest.raises(TypeError):
        policy.limits[0].plans["free"] = Numbers(1)
    with pytest.raises(TypeError):
        policy.identity.headers["user"] = "X-User"


def test_fingerprint() -> None:
    policy = Policy.parse(EXAMPLE)
    assert policy.fingerprint == Policy.parse("# a comment\n" + EXAMPLE.replace('"60s"', '"1m"')).fingerprint
    assert len(policy.fingerprint) == 12
    changed = [
        EXAMPLE.replace("burst = 200", "burst = 201"),
        EXAMPLE.replace("X-Tenant", "X-Org"),
        EXAMPLE.replace('"shadow"', '"enforce"').replace('missing = "skip"', 'missing = "deny"'),
        EXAMPLE.replace("burst = 20 }", "burst = 21 }"),
        EXAMPLE.replace("application/json", "text/plain"),
    ]
    assert len({policy.fingerprint, *(Policy.parse(text).fingerprint for text in changed)}) == 1 + len(changed)
    # Pinned: a fingerprint in yesterday's log means the same policy today.
    assert Policy().fingerprint == "95f3673e0228"


BY_IP = '[[limit]]\nname = "ip"\nkey = ["ip"]\nrate = "5/s"\n'
BY_USER = '[[limit]]\nname = "user"\nkey = ["tenant", "user"]\nrate = "5/s"\n'
NO_LIMIT_AT_ALL = "a request without user or tenant would meet no limit at all"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BY_IP, None),
        (BY_IP + BY_USER, None),
        (BY_USER + 'missing = "deny"\n', None),
        ("version = 1\n", "no limits"),
        (BY_USER, NO_LIMIT_AT_ALL),
        (BY_USER.replace('["tenant", "user"]', '["ip", "user"]'), NO_LIMIT_AT_ALL),
        (BY_USER.replace('["tenant", "user"]', '["api_key"]'), NO_LIMIT_AT_ALL),
        (
            BY_USER + 'missing = "deny"\nmatch = { method = "POST" }\n',
            NO_LIMIT_AT_ALL + " outside of what user matches",
        ),
        (BY_USER + BY_IP + 'mode = "shadow"\n', NO_LIMIT_AT_ALL),
        (BY_IP + 'mode = "shadow"\n', "shadow mode"),
        (BY_IP + 'match = { path = "/login" }\n', NO_LIMIT_AT_ALL + " outside of what ip matches"),
        (BY_IP + "cost = 0\n", "cost of 0"),
        (BY_IP + "cost = 6\n", "never fits into 5"),
        (BY_IP + "burst = 9\ncost = 6\nplans = { free = { burst = 5 } }\n", "never fits for these plans"),
        (BY_IP + '[identity]\ntrusted_proxies = ["0.0.0.0/0"]\n', "trusts every address"),
        (BY_IP + "[guard.size]\n", "checks nothing"),
        (
            BY_IP
            + '[[limit]]\nname = "c"\nkey = ["ip"]\nalgorithm = "concurrency"\nlimit = 5\n'
            + "count_denied = true\n",
            "count_denied does nothing",
        ),
    ],
)
def test_warnings(text: str, expected: str | None) -> None:
    warnings = Policy.parse(text).warnings()
    if expected is None:
        assert warnings == ()
    else:
        assert any(expected in warning for warning in warnings), warnings


def test_errors_name_their_source(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("version = 2\n")
    with pytest.raises(PolicyError, match=r"broken\.toml: 1 error\n  version: found 2"):
        Policy.load(path)
