"""Who asks, end to end through the library: what a token says counts, what a client says does not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from shield import Policy, Request, Shield
from shield.errors import PolicyError
from shield.identity.cache import MAX_AGE_US, VerifiedTokens
from shield.identity.jose import TokenError
from shield.identity.principal import ClaimReader, Principal
from shield.request import GraphQL
from shield.testing import FailingStore, ManualClock
from tests.identity.issuer import issuer_server
from tests.identity.tokens import NOW_S, Signer, b64, make
from tests.servers import Server

ISSUER = """
[[identity.jwt]]
issuer = "https://id.example"
audience = "orders"
jwks = "file:keys.json"
algorithms = ["ES256", "EdDSA"]
claims = { user = "sub", tenant = "org_id", plan = "plan" }
"""
LIMITS = """
[[limit]]
name = "tenant"
key = ["tenant"]
rate = "1/h"
burst = 3
plans = { pro = { rate = "1/h", burst = 5 } }

[[limit]]
name = "address"
key = ["ip"]
rate = "1/h"
burst = 1000
"""
FAILURES = """
[[limit]]
name = "identity-failures"
key = ["ip"]
rate = "1/h"
burst = 3
"""


class World:
    """A Shield with a clock of its own and keys in a file."""

    def __init__(self, folder: Path, text: str, *, store: object = "memory://") -> None:
        self.folder = folder
        self.signer = make("ES256")
        self.publish(self.signer)
        self.clock = ManualClock(NOW_S * 1_000_000_000)
        self.text = text
        self.shield = Shield(self.policy(text), store, clock=self.clock)  # type: ignore[arg-type]

    def policy(self, text: str) -> Policy:
        (self.folder / "policy.toml").write_text(text)
        return Policy.load(self.folder / "policy.toml")

    def publish(self, *signers: Signer) -> None:
        (self.folder / "keys.json").write_text(json.dumps({"keys": [one.jwk for one in signers]}))

    def check(self, **facts):
        return self.shield.check_nowait(Request(**{"ip": "203.0.113.7", **facts}))

    def key_of(self, limit: str, **facts) -> str | None:
        seen = {one.name: one for one in self.shield.explain(Request(**{"ip": "203.0.113.7", **facts}))}
        return seen[limit].key


@pytest.fixture
def world(tmp_path):
    return World(tmp_path, ISSUER + LIMITS)


@pytest.fixture
def strict(tmp_path):
    return World(tmp_path, ISSUER + LIMITS + FAILURES + "[identity]\nanonymous = false\n")


def forged(signer: Signer) -> str:
    token = signer.token()
    head, _, _ = token.rpartition(".")
    return f"{head}.{b64(bytes(64))}"


# ---- whose quota ---------------------------------------------------------------------------------------------------


def test_tenant_user_and_plan_come_from_the_token(world):
    token = world.signer.token({"org_id": "acme", "plan": "pro"})
    decision = world.check(token=token, tenant="victim", user="victim", plan="free")
    assert decision.allowed
    assert {one.name: one.limit for one in decision.limits}["tenant"] == 5  # pro's
    assert world.key_of("tenant", token=token, tenant="victim") == "tenant=https://id.example|acme"
    for _ in range(4):
        assert world.check(token=token, tenant="another").allowed
    assert world.check(token=token, tenant="a third").violated == ["tenant"]


def test_what_an_anonymous_request_states_is_ignored(world):
    for _ in range(20):
        decision = world.check(tenant="https://id.example|acme", user="u-17", plan="pro")
        assert decision.allowed
        assert [one.name for one in decision.limits] == ["address"]
    assert world.check(token=world.signer.token()).allowed


def test_a_claim_that_is_absent_leaves_its_field_absent(world):
    token = world.signer.token({"org_id": None, "plan": ""})
    assert [one.name for one in world.check(token=token, tenant="victim").limits] == ["address"]


@pytest.mark.parametrize("value", [["acme"], {"id": "acme"}, True, 1.5, "a" * 257, "a\nb", "a\0b", "\ud800", 2**60])
def test_claims_that_are_no_plain_value_are_refused(strict, value):
    decision = strict.check(token=strict.signer.token({"org_id": value}))
    assert (decision.status, decision.reason) == (401, "identity")
    assert "org_id" in decision.detail


def test_numbers_are_their_digits(world):
    assert world.key_of("tenant", token=world.signer.token({"org_id": 42})) == "tenant=https://id.example|42"


def test_two_issuers_cannot_speak_for_each_other(tmp_path):
    other = ISSUER.replace("https://id.example", "https://partner.example").replace("keys.json", "partner.json")
    partner = make("EdDSA", "p-1")
    (tmp_path / "partner.json").write_text(json.dumps(partner.jwk))
    world = World(tmp_path, ISSUER + other + LIMITS)
    mine = world.signer.token({"org_id": "acme", "plan": None})
    theirs = partner.token({"iss": "https://partner.example", "org_id": "acme", "plan": None})
    for _ in range(3):
        assert world.check(token=theirs).allowed
    assert world.check(token=theirs).violated == ["tenant"]
    assert world.check(token=mine).allowed  # the same word, another tenant
    # Neither signs for the other, nor can a tenant's name imitate a namespace.
    assert world.check(token=partner.token({"org_id": "acme"})).reason == "identity"
    assert world.check(token=world.signer.token({"iss": "https://partner.example"})).reason == "identity"
    sly = world.key_of(
        "tenant", token=partner.token({"iss": "https://partner.example", "org_id": "x|https://id.example|acme"})
    )
    assert sly == "tenant=https://partner.example|x|https://id.example|acme"


def test_a_short_name_stands_for_the_issuer(tmp_path):
    world = World(tmp_path, ISSUER.replace("audience", 'name = "corp"\naudience') + LIMITS)
    assert world.key_of("tenant", token=world.signer.token()) == "tenant=corp|acme"


def test_claims_may_lie_deeper_and_fill_attributes(tmp_path):
    claims = (
        '{ tenant = "org.id", user = "https://example.com/user", session = "sid", "attributes.tier" = "realm.tier" }'
    )
    text = ISSUER.partition("claims")[0] + f"claims = {claims}\n"
    text += '[[limit]]\nname = "all"\nkey = ["tenant", "user", "session", "attributes.tier"]\nrate = "1/h"\n'
    world = World(tmp_path, text)
    more = {"org": {"id": "acme"}, "https://example.com/user": "u", "sid": "s", "realm": {"tier": "gold"}}
    shown = world.key_of(
        "all", token=world.signer.token(more), session="mine", attributes={"tier": "platinum", "country": "NO"}
    )
    assert shown == "tenant=https://id.example|acme, user=https://id.example|u, session=s, attributes.tier=gold"
    without = world.signer.token({"org": {"id": "acme"}})
    assert world.check(token=without, session="mine", attributes={"tier": "platinum"}).limits == []
    assert world.check(session="mine", attributes={"tier": "platinum"}).limits == []


# ---- refusals ------------------------------------------------------------------------------------------------------


def test_without_a_token_where_one_is_needed(strict):
    for _ in range(10):
        decision = strict.check(tenant="victim")
        assert (decision.allowed, decision.status, decision.reason) == (False, 401, "identity")
        assert decision.detail.startswith("a token is needed")
        assert decision.retry_after is None
    assert strict.check(token=strict.signer.token()).allowed  # that was no failed verification


def test_a_wrong_token_is_refused_also_where_none_is_needed(world):
    assert world.check(token=forged(world.signer)).reason == "identity"
    assert world.check(token="opaque").reason == "identity"
    assert world.check(token="").allowed


def test_forged_tokens_spend_nobodys_quota_but_their_address(strict):
    for _ in range(3):
        assert strict.check(token=forged(strict.signer)).reason == "identity"
    decision = strict.check(token=forged(strict.signer))
    assert (decision.status, decision.reason, decision.violated) == (429, "limit", ["identity-failures"])
    assert decision.retry_after == 3_600
    assert decision.headers["Retry-After"] == "3600"
    # Elsewhere, the tenant whose name was forged has lost nothing.
    token = strict.signer.token()
    for _ in range(5):
        assert strict.check(token=token, ip="198.51.100.1").allowed


def test_no_token_is_verified_while_the_address_has_failed_too_often(strict, monkeypatch):
    token = strict.signer.token()
    assert strict.check(token=token).allowed
    for _ in range(3):
        strict.check(token=forged(strict.signer))
    issuers = strict.shield._gate.issuers
    verified, verify = [], issuers.verify
    monkeypatch.setattr(issuers, "verify", lambda *args: verified.append(args) or verify(*args))
    assert strict.check(token=strict.signer.token()).violated == ["identity-failures"]
    assert verified == []
    assert strict.check(token=token).allowed  # known already: nothing needs verifying
    strict.clock.advance(s=3_600)
    strict.check(token=forged(strict.signer))
    assert len(verified) == 1


def test_the_default_limit_of_failures(world):
    refusals = [world.check(token=forged(world.signer)).status for _ in range(52)]
    assert refusals == [401] * 50 + [429] * 2
    world.clock.advance(ms=100)
    assert world.check(token=forged(world.signer)).status == 401


def test_an_exhausted_address_is_refused_before_its_token_is_verified(tmp_path, monkeypatch):
    world = World(tmp_path, ISSUER + LIMITS.replace("burst = 1000", "burst = 2"))
    assert world.check().allowed
    assert world.check().allowed
    monkeypatch.setattr(world.shield._gate.issuers, "verify", None)
    decision = world.check(token=forged(world.signer))
    assert (decision.status, decision.violated) == (429, ["address"])
    assert decision.retry_after == 3_600


def test_looking_takes_nothing(tmp_path):
    world = World(tmp_path, ISSUER + LIMITS.replace("burst = 1000", "burst = 6"))
    left = []
    for _ in range(5):
        world.check(token=forged(world.signer))
        left.append({one.name: one.remaining for one in world.check(token=world.signer.token({"org_id": None})).limits})
    assert left == [{"address": n} for n in (5, 4, 3, 2, 1)]


def test_limits_that_count_refusals_count_these(tmp_path):
    world = World(tmp_path, ISSUER + LIMITS.replace("burst = 1000", "burst = 3\ncount_denied = true"))
    for _ in range(2):
        assert world.check(token=forged(world.signer)).reason == "identity"
    assert world.check().allowed
    assert world.check(token=forged(world.signer)).violated == ["address"]


def test_numbers_by_plan_are_not_asked_before_the_plan_is_known(tmp_path):
    plans = "burst = 1\nplans = { pro = { rate = '1/h', burst = 5 } }"
    world = World(tmp_path, ISSUER + LIMITS.replace("burst = 1000", plans))
    assert world.check().allowed
    assert world.check().violated == ["address"]
    assert world.check(token=world.signer.token({"plan": "pro"})).allowed


def test_malformed_values_come_first(strict):
    for facts in ({"ip": "nowhere"}, {"cost": -1}, {"request_id": "x" * 2_000}):
        assert strict.check(token=forged(strict.signer), **facts).reason == "invalid"
        assert strict.check(**facts).reason == "invalid"
    assert strict.check(token=7).detail == "token: expected text, not int"
    assert strict.check(token=forged(strict.signer)).reason == "identity"  # none of those was charged


def test_identity_comes_before_size(tmp_path):
    world = World(tmp_path, ISSUER + LIMITS + "[guard.size]\nmax_body_bytes = 10\n")
    assert world.check(bytes=11, token=forged(world.signer)).reason == "identity"
    assert world.check(bytes=11, token=world.signer.token()).reason == "too_large"
    assert world.check(bytes=11, token=7).reason == "invalid"


def test_a_refusal_shows_nothing_of_the_token(strict):
    token = forged(strict.signer)
    shown = json.dumps(strict.check(token=token).as_dict())
    assert all(part not in shown for part in token.split("."))


def test_a_request_without_an_address_is_verified_and_charged_to_nobody(strict):
    for _ in range(10):
        assert strict.check(ip=None, token=forged(strict.signer)).reason == "identity"


# ---- time ----------------------------------------------------------------------------------------------------------


def test_a_token_that_is_known_is_not_known_after_it_expired(world):
    token = world.signer.token({"exp": NOW_S + 20, "org_id": None})
    assert world.check(token=token).allowed
    world.clock.advance(s=20 + 29)
    assert world.check(token=token).allowed  # within the leeway
    world.clock.advance(s=1)
    assert world.check(token=token).reason == "identity"


def test_what_is_known_is_forgotten_after_a_minute(world):
    token = world.signer.token({"org_id": None})
    assert world.check(token=token).allowed
    verified = world.shield.stats()["identity_tokens_verified"]
    world.clock.advance(s=59)
    assert world.check(token=token).allowed
    assert world.shield.stats()["identity_tokens_verified"] == verified
    world.clock.advance(s=1)
    assert world.check(token=token).allowed
    assert world.shield.stats()["identity_tokens_verified"] == verified + 1


def test_a_clock_set_back_makes_nothing_known(world):
    token = world.signer.token({"org_id": None, "nbf": NOW_S - 10})
    assert world.check(token=token).allowed
    world.clock.step_back(s=600)
    assert world.check(token=token).reason == "identity"


def test_a_key_that_was_removed_ends_what_it_signed(world):
    token = world.signer.token({"org_id": None})
    assert world.check(token=token).allowed
    successor = make("ES256", "key-2")
    world.publish(successor)
    world.clock.advance(s=300)
    token = world.signer.token({"org_id": None})
    assert world.check(token=successor.token({"org_id": None})).allowed
    assert world.check(token=token).reason == "identity"


def test_a_known_token_ends_with_its_key(world):
    token = world.signer.token({"org_id": None})
    assert world.check(token=token).allowed
    world.clock.advance(s=299)
    assert world.check(token=token).allowed  # known until 359
    successor = make("ES256", "key-2")
    world.publish(successor)
    world.clock.advance(s=1)
    assert world.check(token=successor.token({"org_id": None})).allowed  # reads the file again
    assert world.check(token=token).reason == "identity"


def test_a_rotation_in_a_file_is_noticed_by_the_token_that_needs_it(world):
    world.clock.advance(s=61)
    successor = make("ES256", "key-2")
    world.publish(world.signer, successor)
    assert world.check(token=successor.token()).reason == "identity"
    assert world.check(token=successor.token()).allowed


async def test_another_policy_verifies_anew(world):
    token = world.signer.token({"org_id": None})
    assert world.check(token=token).allowed
    await world.shield.replace_policy(world.policy(world.text.replace('audience = "orders"', 'audience = "billing"')))
    assert world.check(token=token).reason == "identity"


async def test_a_policy_whose_keys_cannot_be_read_is_refused_whole(world):
    (world.folder / "keys.json").unlink()
    with pytest.raises(PolicyError, match=r"identity\.jwt\[0\]\.jwks: keys\.json cannot be read"):
        await world.shield.replace_policy(world.policy(world.text))
    assert world.check(token=world.signer.token()).allowed


@pytest.mark.parametrize("content", ["", "{}", '{"keys":[]}', '{"keys":[{"kty":"oct","k":"' + "A" * 64 + '"}]}'])
def test_files_that_hold_no_public_key(tmp_path, content):
    (tmp_path / "policy.toml").write_text(ISSUER)
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(PolicyError, match=r"identity\.jwt\[0\]\.jwks"):
        Shield(Policy.load(tmp_path / "policy.toml"))


def test_shared_secrets(tmp_path):
    text = ISSUER.replace('jwks = "file:keys.json"', 'secret = "file:secret"').replace('"ES256", "EdDSA"', '"HS256"')
    (tmp_path / "secret").write_text("short")
    with pytest.raises(PolicyError, match=r"identity\.jwt\[0\]\.secret: found 5 bytes; allowed: at least 32") as caught:
        World(tmp_path, text)
    assert "short" not in str(caught.value)
    secret = b"0123456789abcdef0123456789abcdef"
    (tmp_path / "secret").write_bytes(secret + b"\n")
    world = World(tmp_path, text)
    assert world.check(token=Signer("HS256", secret, {}).token()).allowed
    assert world.check(token=Signer("HS256", secret[::-1], {}).token()).reason == "identity"
    assert world.check(token=Signer("HS512", secret, {}).token()).reason == "identity"


# ---- issuers over HTTP ---------------------------------------------------------------------------------------------


async def test_checks_never_wait_for_an_issuer(tmp_path):
    async with issuer_server() as issuer:
        text = ISSUER.replace("file:keys.json", issuer.url) + LIMITS + FAILURES
        world = World(tmp_path, text)
        issuer.keys = [world.signer.jwk]
        token = world.signer.token({"org_id": None})
        for _ in range(5):
            decision = world.check(token=token)
            assert (decision.reason, decision.retry_after) == ("identity", 1)  # our fault: charged to nobody
        async with world.shield as shield:
            assert (await shield.check(Request(ip="203.0.113.7", token=token))).allowed
            assert issuer.asked == 1
            # A rotation: the first token of a new key is refused, and brings the key along.
            successor = make("ES256", "key-2")
            issuer.keys = [world.signer.jwk, successor.jwk]
            fresh = successor.token({"org_id": None})
            assert world.check(token=fresh).reason == "identity"
            await shield._gate.refresh()
            assert world.check(token=fresh).allowed
            # The issuer dies: what it published goes on.
            issuer.how = "failing"
            world.clock.advance(s=400)
            await shield._gate.refresh()
            assert world.check(token=successor.token({"org_id": None, "exp": NOW_S + 9_000})).allowed
            assert "answered 500; the old keys stay in use" in shield.identity_notes[0]


async def test_a_slow_issuer_keeps_no_other_waiting(tmp_path):
    async with issuer_server() as slow, issuer_server() as quick:
        other = ISSUER.replace("https://id.example", "https://slow.example").replace("file:keys.json", slow.url)
        world = World(tmp_path, ISSUER.replace("file:keys.json", quick.url) + other + LIMITS)
        slow.how, quick.keys = "slowly", [world.signer.jwk]
        gate = world.shield._gate
        gate.look()
        await slow.held.wait()
        await gate.issuers._all[0].source.refresh(gate.now_us())  # the fetch that is under way
        assert world.check(token=world.signer.token({"org_id": None})).allowed
        gate.look()
        assert (slow.asked, quick.asked) == (1, 1)
        await gate.close()


async def test_an_open_shield_fetches_at_once_what_a_token_shows_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("shield.keeper.TICK_S", 3_600.0)
    async with issuer_server() as issuer:
        world = World(tmp_path, ISSUER.replace("file:keys.json", issuer.url) + LIMITS)
        successor = make("ES256", "key-2")
        issuer.keys = [world.signer.jwk]
        async with world.shield:
            issuer.how, issuer.keys = "slowly", [world.signer.jwk, successor.jwk]
            assert world.check(token=successor.token()).reason == "identity"
            await issuer.held.wait()  # nobody but the keeper asks
            assert world.check(token=world.signer.token()).allowed
        assert issuer.asked == 2


async def test_an_open_shield_fetches_keys_that_are_old(tmp_path, monkeypatch):
    monkeypatch.setattr("shield.keeper.TICK_S", 0.001)
    async with issuer_server() as issuer:
        world = World(tmp_path, LIMITS)
        issuer.keys = [world.signer.jwk]
        async with world.shield as shield:
            assert world.check(token=world.signer.token()).allowed  # nothing is verified yet, and nothing kept
            await shield.replace_policy(world.policy(ISSUER.replace("file:keys.json", issuer.url) + LIMITS))
            assert issuer.asked == 1
            issuer.how = "slowly"
            world.clock.advance(s=300)
            await issuer.held.wait()
        assert issuer.asked == 2


async def test_keys_of_an_issuer_outlive_a_reload(tmp_path):
    async with issuer_server() as issuer:
        text = ISSUER.replace("file:keys.json", issuer.url) + LIMITS
        world = World(tmp_path, text)
        issuer.keys = [world.signer.jwk]
        async with world.shield as shield:
            issuer.how = "failing"
            await shield.replace_policy(world.policy(text.replace("burst = 3", "burst = 4")))
            assert world.check(token=world.signer.token()).allowed
            assert issuer.asked == 1


# ---- other stores --------------------------------------------------------------------------------------------------


def test_the_processes_of_a_shared_store_count_failures_together(tmp_path):
    text = ISSUER + LIMITS.replace("burst = 1000", "burst = 4") + FAILURES
    url = f"shared://gate?max_keys=1000&dir={tmp_path}"
    one, two = World(tmp_path, text, store=url), World(tmp_path, text, store=url)
    two.signer = one.signer
    one.publish(one.signer)
    for world in (one, two):
        world.shield._gate.issuers.load_files(world.clock() // 1000)
    # Its clock is the host's, and an hour is longer than this test.
    wrong = forged(one.signer)
    assert [world.check(token=wrong).status for world in (one, two, one, two, one)] == [401, 401, 401, 429, 429]
    token = one.signer.token({"org_id": None})
    statuses = [
        world.check(token=token, ip="198.51.100.1", tenant="victim").status for world in (one, two, one, two, one)
    ]
    assert statuses == [200] * 4 + [429]
    assert two.check(token=wrong, ip="198.51.100.1").violated == ["address"]


async def test_a_remote_store_counts_failures_for_all_nodes(tmp_path, server: Server):
    text = ISSUER + LIMITS.replace("burst = 1000", "burst = 4") + FAILURES
    with server.client() as client:
        client.flushall()
    nodes = [World(tmp_path, text, store=server.url) for _ in range(2)]
    nodes[1].signer = nodes[0].signer
    nodes[0].publish(nodes[0].signer)
    for node in nodes:
        node.shield._gate.issuers.load_files(node.clock() // 1000)
    async with nodes[0].shield as one, nodes[1].shield as two:
        wrong = Request(ip="203.0.113.7", token=forged(nodes[0].signer))
        statuses = [(await node.check(wrong)).status for node in (one, two, one, two, two, one)]
        assert statuses == [401, 401, 401, 429, 429, 429]
        assert (await two.check(wrong)).violated == ["identity-failures"]
        good = Request(ip="198.51.100.1", token=nodes[0].signer.token({"org_id": None}), tenant="victim")
        assert [(await node.check(good)).status for node in (one, two, one, two, one)] == [200] * 4 + [429]
        # Looking has taken nothing, and the limit by address is asked before a token is verified.
        decision = await two.check(Request(ip="198.51.100.1", token=forged(nodes[0].signer)))
        assert (decision.status, decision.violated) == (429, ["address"])


async def test_a_store_that_is_away_lets_nobody_in_and_limits_failures_here(tmp_path):
    from shield.store import open_store

    world = World(tmp_path, ISSUER + LIMITS + FAILURES, store=FailingStore(open_store("memory://")))
    world.shield.store.fail_always("timeout")
    wrong = Request(ip="203.0.113.7", token=forged(world.signer))
    assert [(await world.shield.check(wrong)).status for _ in range(5)] == [401, 401, 401, 429, 429]
    decision = await world.shield.check(Request(ip="198.51.100.1", token=world.signer.token(), tenant="victim"))
    assert decision.allowed
    assert decision.degraded


async def test_a_store_with_a_step_that_fails_anywhere(tmp_path):
    """Whichever operation fails, a wrong token is refused and a good one is let in."""
    from shield.store import open_store

    for failing in range(1, 4):
        world = World(tmp_path, ISSUER + LIMITS, store=FailingStore(open_store("memory://")))
        world.shield.store.fail_at(failing, "refused")
        assert (await world.shield.check(Request(ip="203.0.113.7", token=forged(world.signer)))).reason == "identity"
        assert (await world.shield.check(Request(ip="203.0.113.7", token=world.signer.token()))).allowed


# ---- what is remembered --------------------------------------------------------------------------------------------


def principal(name: str, until_us: int = 10**18) -> Principal:
    return Principal({"tenant": name, "user": None, "plan": None}, None, None, 0, until_us)


def test_what_is_remembered_is_bounded():
    cache = VerifiedTokens(max_entries=3)
    for n in range(5):
        cache.put(bytes([n]), principal(str(n)))
    assert len(cache) == 3
    assert [cache.get(bytes([n]), 1) is not None for n in range(5)] == [False, False, True, True, True]
    small = VerifiedTokens(max_bytes=3_000)
    for n in range(100):
        small.put(bytes([n]), principal("x" * 200))
    assert len(small) == 3
    assert small._bytes == sum(one.size_bytes for one in small._entries.values())
    for n in range(100):
        small.get(bytes([n]), 2 * 10**18)
    assert (len(small), small._bytes) == (0, 0)


def test_a_token_is_remembered_for_a_minute_and_never_longer_than_it_lasts(world):
    for expires, lasts_us in ((NOW_S + 20, 20_000_000), (NOW_S + 9_000, MAX_AGE_US)):
        token = world.signer.token({"exp": expires})
        found = world.shield._gate.issuers.verify(token, NOW_S * 1_000_000)
        assert found.until_us == NOW_S * 1_000_000 + lasts_us


def test_a_namespace_is_never_part_of_a_name():
    reader = ClaimReader("corp", {"tenant": "t"}, frozenset({"tenant", "user", "plan"}))
    assert reader.read({"t": "a|b"}, None, 0, 1).fields == {"plan": None, "tenant": "corp|a|b", "user": None}
    with pytest.raises(TokenError):
        reader.read({"t": []}, None, 0, 1)


# ---- beside the rest of a policy -----------------------------------------------------------------------------------


def test_graphql_is_not_priced_for_somebody_who_may_not_ask(tmp_path):
    text = "[identity]\nanonymous = false\n" + ISSUER + LIMITS + "[guard.graphql]\nmax_depth = 3\n"
    world = World(tmp_path, text)
    query = "{ a }"
    digest = hashlib.sha256(query.encode()).hexdigest()
    both, alone = GraphQL(query=query, hash=digest), GraphQL(hash=digest)
    good, wrong = world.signer.token(), forged(world.signer)
    assert world.check(token=wrong, graphql=both).reason == "identity"
    assert world.check(graphql=both).reason == "identity"
    # Nobody who was refused has made a document known here.
    assert world.check(token=good, graphql=alone).reason == "graphql_unknown_hash"
    assert world.check(token=good, graphql=both).allowed
    assert world.check(token=good, graphql=alone).allowed
    assert world.check(token=wrong, graphql=GraphQL(query="{ a { b { c { d } } } }")).reason == "identity"
    assert world.check(token=good, graphql=GraphQL(query="{ a { b { c { d } } } }")).reason == "graphql_depth"


async def test_what_was_prepared_is_put_in_force_whatever_became_of_its_files(tmp_path):
    world = World(tmp_path, ISSUER + LIMITS)
    signer = make("ES256", "key-2")
    (tmp_path / "next.json").write_text(json.dumps({"keys": [signer.jwk]}))
    text = world.text.replace("keys.json", "next.json")
    async with world.shield as shield:
        running, prepared = shield.policy, world.policy(text)
        await shield.make_room(prepared)
        (tmp_path / "next.json").unlink()
        await shield.replace_policy(prepared)
        assert world.check(token=signer.token()).allowed
        # Taken back, while the files of what runs are gone: it goes on with what it has read.
        await shield.make_room(running)
        (tmp_path / "keys.json").unlink()
        await shield.replace_policy(prepared)
        assert world.check(token=signer.token()).allowed
        with pytest.raises(PolicyError, match=r"identity.jwt\[0\].jwks"):
            await shield.make_room(world.policy(world.text))
        assert world.check(token=signer.token()).reason == "ok"
