"""Wrong policies: refused whole, every error in one run with path, found and allowed; never a traceback."""

from __future__ import annotations

import builtins
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shield.errors import PolicyError
from shield.policy import Policy, schema
from shield.policy.loader import MAX_BYTES
from shield.policy.report import MAX_ISSUES


def issues(text: str | bytes, format: str = "toml") -> dict[str, str]:
    """Path -> message of everything that is wrong with this text."""
    with pytest.raises(PolicyError) as caught:
        Policy.parse(text, format)
    str(caught.value).encode()  # printable whatever was found
    for issue in caught.value.issues:
        assert "\n" not in issue.message
        assert len(issue.message) < 700
    return {issue.path: issue.message for issue in caught.value.issues}


def limit_issues(text: str) -> dict[str, str]:
    """The issues of one limit; `text` follows its name, key and rate."""
    found = issues(f'[[limit]]\nname = "one"\nkey = ["ip"]\nrate = "5/s"\n{text}')
    return {path.removeprefix("limit[0]").removeprefix("."): message for path, message in found.items()}


def test_everything_in_one_run() -> None:
    found = issues(
        """
        version = "1"
        nane = "orders"

        [identity]
        ipv6_prefix = true
        trusted_proxies = ["10.0.0.1/8", 5]

        [[limit]]
        name = "a"
        key = ["user"]
        rate = "0/s"
        burst = 0

        [[limit]]
        name = "b"
        key = ["user"]
        rate = nan
        bursts = 5

        [[limit]]
        name = "a"
        key = "user"
        rate = 100
        missing = "explode"
        plans = { free = { rate = "1.5/s" } }

        [guard.size]
        max_body_bytes = -1
        """
    )
    assert list(found) == [
        "nane",
        "version",
        "identity.trusted_proxies[0]",
        "identity.trusted_proxies[1]",
        "identity.ipv6_prefix",
        "limit[0].rate",
        "limit[0].burst",
        "limit[1].bursts",
        "limit[1].rate",
        "limit[2].key",
        "limit[2].rate",
        "limit[2].missing",
        "limit[2].plans.free.rate",
        "limit[2].name",
        "guard.size.max_body_bytes",
    ]
    assert all("allowed: " in message for message in found.values())
    assert "did you mean 'name'" in found["nane"]
    assert "did you mean 'burst'" in found["limit[1].bursts"]
    assert "found '1'" in found["version"]
    assert "found true" in found["identity.ipv6_prefix"]
    assert "did you mean '10.0.0.0/8'" in found["identity.trusted_proxies[0]"]
    assert "found '0/s'" in found["limit[0].rate"]
    assert "found 0; allowed: a whole number from 1 to 1,000,000,000" in found["limit[0].burst"]
    assert "found the fraction nan" in found["limit[1].rate"]
    assert "found 100" in found["limit[2].rate"]
    assert "found 'explode'" in found["limit[2].missing"]
    assert "limit[0] has it already" in found["limit[2].name"]


def test_tokens_cannot_be_required_without_tokens() -> None:
    assert "[[identity.jwt]]" in issues("[identity]\nanonymous = false")["identity.anonymous"]


def test_required_keys() -> None:
    found = issues("[[limit]]\n")
    assert set(found) == {"limit[0].name", "limit[0].key", "limit[0].rate"}
    assert all("missing" in message for message in found.values())
    assert set(issues('[[limit]]\nalgorithm = "concurrency"')) == {
        "limit[0].name",
        "limit[0].key",
        "limit[0].limit",
    }


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "a b", "a" * 65, "ä", "a/b", "a\\u0000", "a\\n"])
def test_names(name: str) -> None:
    text = f'[[limit]]\nname = "{name}"\nkey = ["ip"]\nrate = "5/s"'
    assert set(issues(text)) == {"limit[0].name"}
    assert set(issues(f'name = "{name}"')) == {"name"}


@pytest.mark.parametrize(
    ("key", "path", "why"),
    [
        ("[]", "key", "1 to 8"),
        ('"ip"', "key", "a list"),
        ('["ip", "ip"]', "key[1]", "twice"),
        ('["usr"]', "key[0]", "did you mean 'user'"),
        ('["bytes"]', "key[0]", "a size is no one"),
        ('["cost"]', "key[0]", "a size is no one"),
        ('["request_id"]', "key[0]", "every request has another"),
        ('["attributes"]', "key[0]", "attributes.NAME"),
        ('["headers"]', "key[0]", "no plain value"),
        ('["attributes."]', "key[0]", "attributes.NAME"),
        ('["attributes.a b"]', "key[0]", "attributes.NAME"),
        ('["attributes.' + "a" * 65 + '"]', "key[0]", "attributes.NAME"),
        ("[1]", "key[0]", "found 1"),
        ('[["ip"]]', "key[0]", "found a list of 1"),
        (json.dumps([f"attributes.a{at}" for at in range(9)]), "key", "found a list of 9"),
    ],
)
def test_keys(key: str, path: str, why: str) -> None:
    found = issues(f'[[limit]]\nname = "one"\nrate = "5/s"\nkey = {key}')
    assert why in found[f"limit[0].{path}"]
    assert len(found) == 1


@pytest.mark.parametrize(
    ("text", "path", "why"),
    [
        ("burst = 0", "burst", "found 0"),
        ("burst = -5", "burst", "found -5"),
        ("burst = 1_000_000_001", "burst", "1,000,000,000"),
        ("burst = 2.0", "burst", "fraction 2.0"),
        ("burst = true", "burst", "found true"),
        ('burst = "5"', "burst", "found '5'"),
        ("burst = 2020-01-01", "burst", "a date or time"),
        ("burst = 07:32:00", "burst", "a date or time"),
        ("burst = inf", "burst", "fraction inf"),
        ("burst = []", "burst", "a list of 0"),
        ("burst = {}", "burst", "a table of 0"),
        ("burst = 0x" + "f" * 10_000, "burst", "an integer of 40000 bits"),
        ("cost = true", "cost", "found true"),
        ("cost = -1", "cost", "found -1"),
        ("cost = 9_007_199_254_740_992", "cost", "found 9007199254740992"),
        ("cost = 1.0", "cost", "fraction"),
        ('cost = "many"', "cost", "found 'many'"),
        ("cost = []", "cost", "a list"),
        ('missing = "denny"', "missing", "did you mean 'deny'"),
        ('when_store_fails = "share"', "when_store_fails", '"local", "allow", "deny"'),
        ('when_full = "local"', "when_full", '"share", "deny", "allow"'),
        ('mode = "off"', "mode", '"enforce", "shadow"'),
        ("mode = 1", "mode", "found 1"),
        ('count_denied = "yes"', "count_denied", "true or false"),
        ("count_denied = 1", "count_denied", "true or false"),
        ("lease = true", "lease", "found true"),
        ('lease = "on"', "lease", '"off", "auto"'),
        ('lease = "auto"\ncount_denied = true', "lease", "not together with count_denied"),
        ('algorithm = "sliding-window"\nlease = "auto"', "lease", "only with algorithm = token-bucket"),
        ('algorithm = "gcra"', "algorithm", '"token-bucket"'),
        ("match = 5", "match", "a table"),
        ("match = { methods = [] }", "match.methods", "did you mean 'method'"),
        ("match = { method = [] }", "match.method", "1 to 32"),
        ('match = { method = ["GET", "get"] }', "match.method[1]", "twice"),
        ('match = { method = "G T" }', "match.method[0]", "an HTTP method"),
        ('match = { path = "orders" }', "match.path[0]", "does not start"),
        ('match = { path = "/orders/*" }', "match.path[0]", "{name}"),
        ('match = { path = "/a\\u0000" }', "match.path[0]", "a path template"),
        ("match = { path = 5 }", "match.path", "a list"),
        # what belongs to another algorithm
        ("limit = 5", "limit", "only with algorithm = concurrency"),
        ('ttl = "60s"', "ttl", "only with algorithm = concurrency"),
        ('align = "day"', "align", "only with algorithm = fixed-window"),
        ('timezone = "UTC"', "timezone", "only with algorithm = fixed-window"),
        ('algorithm = "sliding-window"\nburst = 5', "burst", "only with algorithm = token-bucket"),
        ('algorithm = "fixed-window"\nburst = 5', "burst", "only with algorithm = token-bucket"),
        ('algorithm = "sliding-window"\nalign = "day"', "align", "only with algorithm = fixed-window"),
        # alignment
        ('algorithm = "fixed-window"\nalign = "day"', "rate", "a count per day"),
        ('algorithm = "fixed-window"\nalign = "month"', "rate", "a count per month"),
        ('algorithm = "fixed-window"\nalign = "week"', "align", '"day", "month"'),
        ('algorithm = "fixed-window"\ntimezone = "UTC"', "timezone", "only together with align"),
        # plans
        ("plans = 5", "plans", "a table"),
        ("plans = { a = 5 }", "plans.a", "a table"),
        ("plans = { a = {} }", "plans.a", "one or more keys: rate, burst"),
        ("plans = { a = { burst = 0 } }", "plans.a.burst", "found 0"),
        ('plans = { a = { rate = "5/month" } }', "plans.a.rate", "a fixed period"),
        ("plans = { a = { limit = 5 } }", "plans.a.limit", "only with algorithm = concurrency"),
        ("plans = { a = { cost = 5 } }", "plans.a.cost", "unknown key"),
        ('plans = { "" = { burst = 5 } }', "plans.''", "1 to 64 characters"),
        ('plans = { "a\\u0007" = { burst = 5 } }', "plans.'a\\x07'", "printable"),
        (
            'algorithm = "sliding-window"\nplans = { a = { rate = "5/m" } }',
            "plans.a.rate",
            "the limit's own period",
        ),
        ('algorithm = "sliding-window"\nplans = { a = {} }', "plans.a", "rate"),
        ('algorithm = "sliding-window"\nplans = { a = { burst = 5 } }', "plans.a.burst", "only with"),
    ],
)
def test_wrong_limits(text: str, path: str, why: str) -> None:
    found = limit_issues(text)
    assert why in found[path]
    assert len(found) == 1


@pytest.mark.parametrize(
    ("text", "path", "why"),
    [
        ('rate = "5/month"', "rate", "align"),
        ('algorithm = "sliding-window"\nrate = "5/month"', "rate", "a fixed period"),
        ('algorithm = "fixed-window"\nrate = "5/month"', "rate", 'a month needs align = "month"'),
        ('algorithm = "fixed-window"\nrate = "5/month"\nalign = "day"', "rate", "a count per day"),
        (
            'algorithm = "fixed-window"\nrate = "5/d"\nalign = "day"\ntimezone = "Mars/Base"',
            "timezone",
            "no such time",
        ),
        ('algorithm = "fixed-window"\nrate = "5/d"\nalign = "day"\ntimezone = 5', "timezone", "IANA"),
        ('rate = "2_000_000_000/h"', "rate", "burst defaults to the count"),
        ('algorithm = "sliding-window"\nrate = "2_000_000_000/h"', "rate", "1,000,000,000"),
        ('algorithm = "concurrency"\nlimit = 0', "limit", "1 to 1,024"),
        ('algorithm = "concurrency"\nlimit = 1_025', "limit", "1 to 1,024"),
        ('algorithm = "concurrency"\nlimit = 5\nrate = "5/s"', "rate", "only with"),
        ('algorithm = "concurrency"\nlimit = 5\nttl = "0s"', "ttl", '"1ms" to "24h"'),
        ('algorithm = "concurrency"\nlimit = 5\nttl = "25h"', "ttl", '"1ms" to "24h"'),
        ('algorithm = "concurrency"\nlimit = 5\nttl = 60', "ttl", "found 60"),
        ('algorithm = "concurrency"\nlimit = 5\ncost = "bytes"', "cost", "concurrency"),
        ('algorithm = "concurrency"\nlimit = 5\nwhen_full = "share"', "when_full", "always denies"),
        ('algorithm = "concurrency"\nlimit = 5\nwhen_full = "allow"', "when_full", "always denies"),
        (
            'algorithm = "concurrency"\nlimit = 5\nplans = { a = { limit = 2_000 } }',
            "plans.a.limit",
            "1 to 1,024",
        ),
    ],
)
def test_wrong_combinations(text: str, path: str, why: str) -> None:
    found = issues(f'[[limit]]\nname = "one"\nkey = ["ip"]\n{text}')
    assert why in found[f"limit[0].{path}"]
    assert len(found) == 1


@pytest.mark.parametrize(
    ("text", "path", "why"),
    [
        ("identity = 5", "identity", "a table"),
        ("limit = 5", "limit", "[[limit]]"),
        ("[limit]\nname = 'a'", "limit", "[[limit]]"),
        ("limit = [5]", "limit[0]", "a table"),
        ("guard = []", "guard", "a table"),
        ("guard.size = 5", "guard.size", "a table"),
        ("version = 2", "version", "allowed: 1"),
        ("version = true", "version", "found true"),
        ("owner = 5", "owner", "found 5"),
        ("owner = ''", "owner", "1 to 128"),
        ('owner = "a\\nb"', "owner", "printable"),
        ('settle_within = "0s"', "settle_within", '"1s" to "24h"'),
        ('settle_within = "2d"', "settle_within", '"1s" to "24h"'),
        ('settle_within = "soon"', "settle_within", "found 'soon'"),
        ("settle_within = 300", "settle_within", "found 300"),
        ("identity.ipv6_prefix = 129", "identity.ipv6_prefix", "32 to 128"),
        ("identity.ipv6_prefix = 0", "identity.ipv6_prefix", "32 to 128"),
        ('identity.trusted_proxies = "10.0.0.0/8"', "identity.trusted_proxies", "a list"),
        ('identity.trusted_proxies = ["fe80::1%eth0"]', "identity.trusted_proxies[0]", "no zone"),
        ('identity.trusted_proxies = ["::ffff:10.0.0.1"]', "identity.trusted_proxies[0]", "IPv4"),
        ('identity.trusted_proxies = ["10.0.0.0/8", "10.0.0.0/8"]', "identity.trusted_proxies[1]", "twice"),
        ('identity.trusted_proxies = ["localhost"]', "identity.trusted_proxies[0]", "found 'localhost'"),
        ('identity.headers.tenat = "X"', "identity.headers.tenat", "did you mean 'tenant'"),
        ('identity.headers.method = "X"', "identity.headers.method", "one of: tenant"),
        ('identity.headers.tenant = "X Y"', "identity.headers.tenant", "header"),
        ('identity.headers.tenant = "Shield-Authorization"', "identity.headers.tenant", "secret"),
        ("identity.headers.tenant = 5", "identity.headers.tenant", "found 5"),
        ('identity.headers.attributes."a b" = "X"', "identity.headers.'attributes.a b'", "attributes.NAME"),
        ("guard.size.max_body_bytes = 1.5", "guard.size.max_body_bytes", "fraction"),
        ('guard.size.content_types = ["json"]', "guard.size.content_types[0]", "type/subtype"),
        ('guard.size.content_types = ["a/b; c=d"]', "guard.size.content_types[0]", "parameters"),
        ('guard.size.content_types = ["*/*"]', "guard.size.content_types[0]", "type/subtype"),
        ('guard.size.content_types = ["a/b", "A/B"]', "guard.size.content_types[1]", "twice"),
        ("guard.sise = {}", "guard.sise", "did you mean 'size'"),
        ('"we\\u0000ird \\u001b[2J" = 1', "'we\\x00ird \\x1b[2J'", "unknown key"),
    ],
)
def test_wrong_elsewhere(text: str, path: str, why: str) -> None:
    found = issues(text)
    assert why in found[path]
    assert len(found) == 1


@pytest.mark.parametrize(
    ("format", "text", "why"),
    [
        ("toml", "version = ", "not readable as TOML"),
        ("toml", "version = 1\nversion = 1", "not readable as TOML"),
        ("toml", "[identity]\n[identity]", "not readable as TOML"),
        ("toml", "a = " + "[" * 1_000 + "]" * 1_000, "nested too deeply"),
        ("toml", "a = " + "[" * 17 + "]" * 17, "nested deeper than 16"),
        ("toml", "a = " + "{a = " * 1_000 + "1" + "}" * 1_000, "nested too deeply"),
        ("toml", "a." * 200_000 + "a = 1", "dotted parts"),
        ("toml", "['a' . " + '"b".' * 200_000 + "a]", "dotted parts"),
        ("toml", "version = " + "9" * 5_000, "too many digits"),
        ("toml", 'name = "\ud800"', "not UTF-8"),
        ("toml", 'name = "\\ud800"', "not readable as TOML"),
        ("toml", 'name = "a\0"', "NUL"),
        ("toml", b"\xff\xfe", "not UTF-8"),
        ("toml", "#" + "a" * MAX_BYTES, "1,048,576 bytes"),
        ("toml", "#" + "é" * (MAX_BYTES // 2), "1,048,577 bytes"),
        ("json", "", "not readable as JSON"),
        ("json", "null", "found null"),
        ("json", "[]", "a table"),
        ("json", '{"version": NaN}', "found NaN"),
        ("json", '{"version": -Infinity}', "found -Infinity"),
        ("json", '{"version": 1, "version": 1}', "'version' twice"),
        ("json", '{"limit": [{"name": "a", "name": "a"}]}', "'name' twice"),
        ("json", "[" * 100_000, "nested too deeply"),
        ("json", '{"a": ' * 900 + "1" + "}" * 900, "nested deeper than 16"),
        ("json", '{"version": ' + "9" * 5_000 + "}", "too many digits"),
        ("yaml", "- 1", "a list of 1"),
        ("yaml", "a: [", "not readable as YAML"),
        ("yaml", "\tversion: 1", "not readable as YAML"),
        ("yaml", "a: &a [1]\nb: *a", "an alias"),
        ("yaml", "a: &a {b: *a}", "an alias"),
        ("yaml", "version: 1\nversion: 1", "'version' twice"),
        ("yaml", "identity: {ipv6_prefix: 64, 'ipv6_prefix': 64}", "'ipv6_prefix' twice"),
        ("yaml", "identity:\n  <<: {ipv6_prefix: 64}", "merge key"),
        ("yaml", "[" * 100_000, "more than 16 levels"),
        ("yaml", "version: !!python/object/apply:os.getcwd []", "not readable as YAML"),
        ("yaml", "version: 1\n---\nversion: 1", "single document"),
        ("yaml", "[a]: 1", "no plain value"),
        ("yaml", "version: !!timestamp x", "does not fit its tag"),
        ("yaml", "version: 2020-13-45", "not readable as YAML"),
        ("yaml", "version: 1" + ":59" * 300_000, "too many digits"),
        ("yaml", 'name: "\x07"', "not readable as YAML"),
        ("yaml", b"\x00", "NUL"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_unreadable_text(format: str, text: str | bytes, why: str) -> None:
    found = issues(text, format)
    assert why in found[""]
    assert len(found) == 1


@pytest.mark.parametrize(
    ("format", "text", "path"),
    [
        ("json", '{"owner": "\\ud800"}', "owner"),
        ("json", '{"\\ud800": 1}', "'\\ud800'"),
        ("json", '{"version": 1e999}', "version"),
        ("json", '{"version": null}', "version"),
        ("json", '{"name": "a\\u0000"}', "name"),
        ("yaml", "version: .nan", "version"),
        ("yaml", "1: 1", "1"),
        ("yaml", "null: 1", "null"),
        ("yaml", "2020-01-01: 1", "a date or time"),
        ("yaml", "version: !!set {a}", "version"),
        ("yaml", "limit:", "limit"),
    ],
)
def test_values_that_other_syntaxes_allow(format: str, text: str, path: str) -> None:
    assert set(issues(text, format)) == {path}


def test_another_format_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="format: found 'ini'; allowed: toml, yaml, json"):
        Policy.parse("", "ini")


def test_yaml_without_pyyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_yaml(name: str, *rest: Any, **more: Any) -> Any:
        if name == "yaml":
            raise ImportError("No module named 'yaml'", name="yaml")
        return real(name, *rest, **more)

    monkeypatch.delitem(sys.modules, "shield.policy.yaml_reader", raising=False)
    monkeypatch.delattr("shield.policy.yaml_reader", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_yaml)
    assert "pip install 'shield-limiter[yaml]'" in issues("version: 1", "yaml")[""]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("none.toml", "No such file"),
        ("policy.ini", "found the suffix '.ini'"),
        ("policy", "found the suffix ''"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(PolicyError, match=why) as caught:
        Policy.load(tmp_path / name)
    assert caught.value.source == str(tmp_path / name)


def test_odd_files(tmp_path: Path) -> None:
    (tmp_path / "directory.toml").mkdir()
    with pytest.raises(PolicyError, match="cannot be read"):
        Policy.load(tmp_path / "directory.toml")
    with pytest.raises(PolicyError, match="cannot be read"):
        Policy.load("nul\0byte.toml")
    (tmp_path / "big.toml").write_bytes(b"#" * (MAX_BYTES + 10))
    with pytest.raises(PolicyError, match="more than 1,048,576 bytes"):
        Policy.load(tmp_path / "big.toml")
    (tmp_path / "full.toml").write_bytes(b"version = 1\n" + b"#" * (MAX_BYTES - 12))
    assert Policy.load(tmp_path / "full.toml") == Policy()


@pytest.mark.parametrize(("format", "text"), [("toml", ""), ("toml", "# cut off"), ("yaml", "{}"), ("json", "{}")])
def test_nothing_is_no_policy(format: str, text: str) -> None:
    """A file that is being written, or was cut off, must not switch every limit of a running server off."""
    with pytest.raises(PolicyError, match="version = 1"):
        Policy.parse(text, format)


def test_decorated_comments_are_no_dotted_keys() -> None:
    assert Policy.parse("version = 1\n#" + "-." * 100 + "\n  # " + "a." * 100) == Policy()
    assert Policy.parse('owner = "a.b.c.d.e.f.g.h.i.j"').owner == "a.b.c.d.e.f.g.h.i.j"


def test_limits_are_counted() -> None:
    def many(count: int) -> str:
        return "".join(f'[[limit]]\nname = "n{at}"\nkey = ["ip"]\nrate = "5/s"\n' for at in range(count))

    assert len(Policy.parse(many(schema.MAX_LIMITS)).limits) == schema.MAX_LIMITS
    found = issues(many(schema.MAX_LIMITS + 1).replace('name = "n3"', "name = 3"))
    assert set(found) == {"limit", "limit[3].name"}
    assert "found 1025 entries; allowed: at most 1024" in found["limit"]


def test_entries_are_bounded() -> None:
    plans = "\n".join(f"p{at} = {{ burst = 5 }}" for at in range(257))
    assert "at most 256" in limit_issues(f"[limit.plans]\n{plans}")["plans"]
    headers = "\n".join(f'"attributes.a{at}" = "X"' for at in range(65))
    assert "at most 64" in issues(f"[identity.headers]\n{headers}")["identity.headers"]
    networks = json.dumps([f"10.0.{at // 256}.{at % 256}" for at in range(1_025)])
    assert "0 to 1024" in issues(f"[identity]\ntrusted_proxies = {networks}")["identity.trusted_proxies"]


def test_issues_are_bounded_and_the_rest_is_counted() -> None:
    with pytest.raises(PolicyError) as caught:
        Policy.parse("\n".join(f"k{at} = 1" for at in range(MAX_ISSUES + 500)))
    assert len(caught.value.issues) == MAX_ISSUES + 1
    assert caught.value.issues[-1].message == "and 500 more errors"


VALID = {
    "version": 1,
    "name": "orders",
    "owner": "team",
    "settle_within": "5m",
    "identity": {"trusted_proxies": ["10.0.0.0/8"], "ipv6_prefix": 64, "headers": {"tenant": "X-Tenant"}},
    "limit": [
        {
            "name": "one",
            "key": ["tenant", "user"],
            "rate": "100/s",
            "burst": 5,
            "match": {"method": ["POST"], "path": ["/orders/{id}"]},
            "plans": {"free": {"rate": "10/s", "burst": 1}},
        },
        {"name": "two", "key": ["ip"], "algorithm": "fixed-window", "rate": "9/month", "align": "month"},
        {"name": "three", "key": ["ip"], "algorithm": "concurrency", "limit": 5, "ttl": "60s"},
    ],
    "guard": {"size": {"max_body_bytes": 5, "content_types": ["a/b"]}},
}

odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(10**30, 10**40),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["5/s", "1/month", "deny", "ip", "/a/{b}", "60s", "concurrency", "day", "UTC", "graphql"]),
    st.just([]),
    st.just({}),
    st.lists(st.sampled_from(["ip", "user", "/a", "GET", 5, None]), max_size=3),
    st.dictionaries(st.sampled_from(["rate", "burst", "limit", "name", "a", ""]), st.integers(-1, 3), max_size=3),
)


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, item in inside for place in _places(item, (*path, key)))]


PLACES = [place for place in _places(VALID) if place]


def _put(tree: Any, place: tuple[Any, ...], value: Any) -> None:
    for step in place[:-1]:
        try:
            tree = tree[step]
        except (LookupError, TypeError):
            return
    try:
        tree[place[-1]] = value
    except (LookupError, TypeError):
        return


@given(st.lists(st.tuples(st.sampled_from(PLACES), odd_values), min_size=1, max_size=4))
def test_any_tree_is_a_policy_or_a_policy_error(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    tree = json.loads(json.dumps(VALID))
    for place, value in changes:
        _put(tree, place, value)
    from shield.policy.validate import build

    try:
        policy = build(tree)
    except PolicyError as error:
        str(error).encode()
    else:
        assert len(policy.limits) == len(tree.get("limit", []))  # nothing is left out in silence
        assert policy.fingerprint
        policy.warnings()
        assert hash(policy) == hash(build(tree))


@given(st.text(max_size=60), st.sampled_from(["toml", "yaml", "json"]))
def test_any_text_is_a_policy_or_a_policy_error(text: str, format: str) -> None:
    try:
        Policy.parse(text, format)
    except PolicyError as error:
        str(error).encode()


@given(st.binary(max_size=60), st.sampled_from(["toml", "yaml", "json"]))
def test_any_bytes_are_a_policy_or_a_policy_error(data: bytes, format: str) -> None:
    try:
        Policy.parse(data, format)
    except PolicyError as error:
        str(error).encode()


def test_valid_tree_is_valid() -> None:
    assert len(Policy.parse(json.dumps(VALID), "json").limits) == 3
    assert tomllib.loads("") == {}
