"""[identity]: what a policy may say of issuers and keys, and what is wrong with the rest."""

from __future__ import annotations

import json

import pytest

from shield.errors import PolicyError
from shield.identity.algorithms import ALGORITHMS, SYMMETRIC
from shield.policy import Policy
from shield.policy.identity_schema import MAX_ISSUERS
from shield.policy.model import SYMMETRIC_ALGORITHMS, TOKEN_ALGORITHMS

GOOD = {
    "issuer": "https://id.example",
    "audience": "orders",
    "jwks": "file:keys.json",
    "algorithms": ["ES256"],
    "claims": {"user": "sub", "tenant": "org_id"},
}


def parse(*issuers: dict, **more) -> Policy:
    tree = {"identity": {"jwt": list(issuers), **more.pop("identity", {})}, **more}
    return Policy.parse(json.dumps(tree), "json")


def issues(*issuers: dict, **more) -> dict[str, str]:
    with pytest.raises(PolicyError) as caught:
        parse(*issuers, **more)
    return {issue.path: issue.message for issue in caught.value.issues}


def test_the_two_lists_of_algorithms_are_one():
    assert set(TOKEN_ALGORITHMS) == set(ALGORITHMS)
    assert set(SYMMETRIC_ALGORITHMS) == set(SYMMETRIC)


def test_defaults():
    issuer = parse(GOOD).identity.jwt[0]
    assert (issuer.name, issuer.audiences, issuer.secret, issuer.typ) == ("https://id.example", ("orders",), None, None)
    assert (issuer.leeway_us, issuer.refresh_us, issuer.keep_us) == (30_000_000, 300_000_000, 86_400_000_000)
    assert issuer.max_token_bytes == 8_192
    bare = parse({name: value for name, value in GOOD.items() if name != "claims"})
    assert dict(bare.identity.jwt[0].claims) == {"user": "sub"}


def test_toml_with_attributes_in_claims():
    policy = Policy.parse(
        '[[identity.jwt]]\nissuer = "i"\naudience = ["a", "b"]\njwks = "https://i.example/keys"\nalgorithms = "EdDSA"\n'
        'claims = { user = "sub", attributes.tier = "tier" }\n'
    )
    assert dict(policy.identity.jwt[0].claims) == {"user": "sub", "attributes.tier": "tier"}
    assert policy.identity.jwt[0].audiences == ("a", "b")


@pytest.mark.parametrize(
    ("change", "path", "why"),
    [
        ({"issuer": ""}, "issuer", "found ''"),
        ({"issuer": "a b"}, "issuer", "without spaces"),
        ({"issuer": "https://id|x"}, "issuer", "separates it from its tenants"),
        ({"issuer": "i" * 257}, "issuer", "256 characters"),
        ({"issuer": None}, "issuer", "found null"),
        ({"audience": []}, "audience", "1 to 16"),
        ({"audience": [""]}, "audience[0]", "printable text"),
        ({"jwks": None}, "jwks", "found null"),
        ({"jwks": "keys.json"}, "jwks", '"file:NAME"'),
        ({"jwks": "file:"}, "jwks", '"file:NAME"'),
        ({"jwks": "ftp://id.example/k"}, "jwks", "https"),
        ({"jwks": "http://id.example/k"}, "jwks", "whoever is on the way"),
        ({"jwks": "http://127.0.0.1.example/k"}, "jwks", "whoever is on the way"),
        ({"jwks": "https:///k"}, "jwks", "https"),
        ({"jwks": "https://id.example:port/k"}, "jwks", "https"),
        ({"jwks": "https://id.example/k#f"}, "jwks", "https"),
        ({"jwks": "https://me:s3cret@id.example/k"}, "jwks", "a name or password"),
        ({"algorithms": []}, "algorithms", "different values"),
        ({"algorithms": ["none"]}, "algorithms[0]", "RS256"),
        ({"algorithms": ["rs256"]}, "algorithms[0]", "RS256"),
        ({"algorithms": ["HS256"]}, "algorithms[0]", "only together with secret"),
        ({"algorithms": ["ES256", "HS256"]}, "algorithms[1]", "only together with secret"),
        ({"secret": "file:s"}, "secret", "one of the two"),
        ({"claims": {"cost": "x"}}, "claims.cost", "tenant"),
        ({"claims": {"tenant": ""}}, "claims.tenant", "name of a claim"),
        ({"claims": {"tenant": "a.b.c.d.e.f.g.h.i"}}, "claims.tenant", "up to 8 names"),
        ({"claims": {"tenant": 1}}, "claims.tenant", "name of a claim"),
        ({"leeway": "6m"}, "leeway", "5m"),
        ({"leeway": 30}, "leeway", "found 30"),
        ({"typ": "at jwt"}, "typ", "media type"),
        ({"max_token_bytes": 100}, "max_token_bytes", "256"),
        ({"max_token_bytes": 1_000_000}, "max_token_bytes", "16,384"),
        ({"refresh": "1s"}, "refresh", "10s"),
        ({"keep": "40d"}, "keep", "30d"),
        ({"keep": "1m"}, "keep", "less than refresh"),
        ({"name": "Corp"}, "name", "a-z0-9"),
        ({"jwk": "x"}, "jwk", "did you mean 'jwks'"),
    ],
)
def test_wrong_issuers(change, path, why):
    found = issues(GOOD | change)
    assert why in found[f"identity.jwt[0].{path}"]
    assert len(found) == 1
    assert "s3cret" not in str(found)


def test_secrets_never_show():
    changed = {name: value for name, value in GOOD.items() if name != "jwks"} | {
        "secret": "s3cret-itself",
        "algorithms": ["HS256"],
    }
    found = issues(changed)
    assert "names no file" in found["identity.jwt[0].secret"]
    assert "s3cret" not in str(found)


def test_either_keys_or_a_secret():
    neither = {name: value for name, value in GOOD.items() if name != "jwks"}
    assert "missing" in issues(neither)["identity.jwt[0].jwks"]
    assert "only together with jwks" in issues(neither | {"secret": "file:s"})["identity.jwt[0].algorithms[0]"]
    assert parse(neither | {"secret": "file:s", "algorithms": ["HS256"]}).identity.jwt[0].secret == "file:s"


def test_loopback_may_be_plain():
    for host in ("127.0.0.1:8000", "localhost", "[::1]:1"):
        assert parse(GOOD | {"jwks": f"http://{host}/keys"})


def test_issuers_and_names_are_their_own():
    assert "identity.jwt[0] has it already" in issues(GOOD, GOOD)["identity.jwt[1].issuer"]
    one, two = GOOD | {"name": "corp"}, GOOD | {"issuer": "https://two.example", "name": "corp"}
    assert "identity.jwt[0] has it already" in issues(one, two)["identity.jwt[1].name"]
    # A name that is another's issuer would be that issuer's namespace.
    three = GOOD | {"issuer": "corp"}
    assert "identity.jwt[0] has it already" in issues(one, three)["identity.jwt[1].name"]


def test_issuers_are_bounded():
    many = [GOOD | {"issuer": f"https://{n}.example"} for n in range(MAX_ISSUERS + 1)]
    assert len(parse(*many[:-1]).identity.jwt) == MAX_ISSUERS
    assert "at most 32" in issues(*many)["identity.jwt"]


def test_anonymous_needs_something_to_ask_for():
    assert "[[identity.jwt]] or [identity.api_keys]" in issues(identity={"anonymous": False})["identity.anonymous"]
    assert not parse(GOOD, identity={"anonymous": False}).identity.anonymous
    assert not parse(identity={"anonymous": False, "api_keys": {"store": "file:k"}}).identity.anonymous


def test_api_keys():
    assert parse(identity={"api_keys": {"store": "file:k.json"}}).identity.api_keys.secret == "file:k.json.secret"
    assert "missing" in issues(identity={"api_keys": {}})["identity.api_keys.store"]
    assert "names no file" in issues(identity={"api_keys": {"store": "k.json"}})["identity.api_keys.store"]
    assert (
        "names no file"
        in issues(identity={"api_keys": {"store": "file:k", "secret": "hunter2"}})["identity.api_keys.secret"]
    )


# ---- the limit of failures -------------------------------------------------------------------------------------


FAILURES = {"name": "identity-failures", "key": ["ip"], "rate": "1/s", "burst": 5}


def test_the_limit_of_failures_has_a_default():
    failures = parse(GOOD).identity.failures
    assert (failures.key, failures.numbers.limit, failures.numbers.refill_units, failures.numbers.refill_us) == (
        ("ip",),
        50,
        1,
        100_000,
    )
    assert failures.count_denied
    assert Policy.parse("version = 1").identity.failures is None


def test_the_policy_may_have_its_own():
    policy = parse(GOOD, limit=[FAILURES, {"name": "other", "key": ["ip"], "rate": "1/s"}])
    assert policy.identity.failures.numbers.limit == 5
    assert [limit.name for limit in policy.limits] == ["other"]
    # Without anything to verify it is a limit like any other.
    assert [limit.name for limit in parse(limit=[FAILURES]).limits] == ["identity-failures"]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"key": ["tenant"]}, ".key"),
        ({"key": ["ip", "path"]}, ".key"),
        ({"cost": 2}, ".cost"),
        ({"missing": "deny"}, ".missing"),
        ({"match": {"method": "GET"}}, ""),
        ({"plans": {"pro": {"burst": 7}}}, ""),
    ],
)
def test_wrong_limits_of_failures(change, path):
    assert list(issues(GOOD, limit=[{"name": "a", "key": ["ip"], "rate": "1/s"}, FAILURES | change])) == [
        f"limit[1]{path}"
    ]


def test_a_concurrency_limit_of_failures():
    limit = {"name": "identity-failures", "key": ["ip"], "algorithm": "concurrency", "limit": 5}
    assert "found 'concurrency'" in issues(GOOD, limit=[limit])["limit[0].algorithm"]


# ---- fingerprints ----------------------------------------------------------------------------------------------


def test_what_decides_is_in_the_fingerprint_and_where_the_file_lies_is_not(tmp_path):
    policies = [
        parse(GOOD),
        parse(GOOD | {"audience": "x"}),
        parse(GOOD | {"claims": {"user": "email"}}),
        parse(GOOD | {"leeway": "31s"}),
        parse(GOOD, identity={"anonymous": False}),
        parse(GOOD, limit=[FAILURES]),
        parse(identity={"api_keys": {"store": "file:k"}}),
        Policy.parse("version = 1"),
    ]
    assert len({policy.fingerprint for policy in policies}) == len(policies)
    text = json.dumps({"identity": {"jwt": [GOOD]}})
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "policy.json").write_text(text)
    one, two = (Policy.load(tmp_path / name / "policy.json") for name in ("a", "b"))
    assert one.fingerprint == two.fingerprint == policies[0].fingerprint
    assert one == two
    assert one.identity.directory == str(tmp_path / "a")


def test_an_issuer_whose_tokens_no_limit_counts_is_warned_of():
    by_tenant = {"name": "t", "key": ["tenant"], "rate": "1/s"}
    everybody = {"name": "a", "key": ["ip"], "rate": "1/s"}
    assert parse(GOOD, limit=[by_tenant, everybody]).warnings() == ()
    without = GOOD | {"claims": {"user": "sub"}}
    assert parse(without, limit=[by_tenant, everybody]).warnings() == (
        "tokens of https://id.example give no tenant (claims), so these limits never count their requests: t",
    )
    assert parse(without, limit=[by_tenant | {"missing": "deny"}, everybody]).warnings() == ()
