"""Keys that this service hands out: shown once, kept as hashes, gone when revoked, whatever happens to the file."""

from __future__ import annotations

import json
import os
import stat
import threading

import pytest

from shield import Policy, Request, Shield
from shield.errors import PolicyError, RequestError
from shield.identity import api_keys
from shield.identity.api_keys import ApiKeys, KeyStoreError
from shield.testing import ManualClock

NOW_S = 1_763_900_000
US = 1_000_000


@pytest.fixture
def ring(tmp_path):
    return ApiKeys(tmp_path / "keys.json", tmp_path / "keys.secret")


def test_a_key_is_somebodys(ring):
    key, text = ring.create(tenant="acme", user="ci", plan="pro", note="the build", now_s=NOW_S)
    assert text.startswith(f"shk_{key.id}_")
    assert len(text) > 55
    found = ring.find(text, NOW_S * US)
    assert found.fields == {"tenant": "acme", "user": "ci", "plan": "pro"}
    assert ring.list() == [key]
    for wrong in ("", "shk_", text[:-1], text + "x", text.upper(), "x" * 300, "\ud800", f"shk_{key.id}_"):
        assert ring.find(wrong, NOW_S * US) is None


def test_nothing_on_disk_is_a_key(ring, tmp_path):
    _, text = ring.create(tenant="acme", now_s=NOW_S)
    secret = text.rpartition("_")[2]
    for path in tmp_path.iterdir():
        assert secret not in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys.json", "keys.json.lock", "keys.secret"]


def test_a_hash_is_worth_nothing_under_another_secret(ring, tmp_path):
    _, text = ring.create(tenant="acme", now_s=NOW_S)
    (tmp_path / "keys.secret").write_text("another secret of enough bytes")
    assert ApiKeys(tmp_path / "keys.json", tmp_path / "keys.secret").find(text, NOW_S * US) is None
    (tmp_path / "keys.secret").unlink()
    with pytest.raises(KeyStoreError, match=r"keys\.secret is missing"):
        ApiKeys(tmp_path / "keys.json", tmp_path / "keys.secret")


def test_keys_outlive_the_process(ring, tmp_path):
    _, text = ring.create(user="ci", now_s=NOW_S)
    again = ApiKeys(tmp_path / "keys.json", tmp_path / "keys.secret")
    assert again.find(text, NOW_S * US).fields["user"] == "ci"


def test_other_processes_notice_within_a_second(ring, tmp_path):
    other = ApiKeys(tmp_path / "keys.json", tmp_path / "keys.secret")
    assert other.find("shk_x", NOW_S * US) is None
    key, text = ring.create(tenant="acme", now_s=NOW_S)
    assert other.find(text, NOW_S * US + 999_999) is None
    assert other.find(text, NOW_S * US + 1_000_000) is not None
    assert other.revoke(key.id)
    assert ring.find(text, NOW_S * US + 10 * US) is None


def test_revoking_is_for_good(ring):
    key, text = ring.create(tenant="acme", now_s=NOW_S)
    kept, kept_text = ring.create(tenant="acme", now_s=NOW_S + 1)
    assert ring.revoke(key.id)
    assert not ring.revoke(key.id)
    assert ring.find(text, NOW_S * US) is None
    assert ring.find(kept_text, NOW_S * US) is not None
    assert ring.list() == [kept]


def test_a_key_may_end(ring):
    _, text = ring.create(tenant="acme", expires=NOW_S + 10, now_s=NOW_S)
    assert ring.find(text, (NOW_S + 10) * US - 1) is not None
    assert ring.find(text, (NOW_S + 10) * US) is None


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({}, "tenant"),
        ({"plan": "pro"}, "tenant"),
        ({"tenant": ""}, "tenant"),
        ({"tenant": "a\nb"}, "tenant"),
        ({"tenant": "x" * 257}, "tenant"),
        ({"tenant": "a", "user": 7}, "user"),
        ({"tenant": "a", "note": "n" * 257}, "note"),
        ({"tenant": "a", "expires": NOW_S}, "expires"),
        ({"tenant": "a", "expires": 2**50}, "expires"),
    ],
)
def test_what_no_key_is_made_for(ring, facts, field):
    with pytest.raises(RequestError) as caught:
        ring.create(**facts, now_s=NOW_S)
    assert caught.value.field == field
    assert ring.list() == []


def test_keys_are_bounded(ring, monkeypatch):
    monkeypatch.setattr(api_keys, "MAX_KEYS", 2)
    for _ in range(2):
        ring.create(tenant="acme", now_s=NOW_S)
    with pytest.raises(KeyStoreError, match="there are 2 keys already"):
        ring.create(tenant="acme", now_s=NOW_S)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "is not a file of keys"),
        ("[]", "is not a file of keys"),
        ('{"version":1,"keys":[{"id":"a"}]}', "is not a file of keys"),
        ('{"version":1,"keys":[{"id":"a","hash":"00","created":1,"admin":true}]}', "is not a file of keys"),
        ('{"version":2,"keys":[]}', "version 2"),
        ('{"version":1,"keys":[{"id":"a","hash":"00","created":1}]}', r"keys\[0\]\.hash is no hash"),
        ("[" * 100_000, "is not a file of keys"),
    ],
)
def test_files_that_hold_no_keys(ring, tmp_path, content, why):
    _, text = ring.create(tenant="acme", now_s=NOW_S)
    ring.find(text, NOW_S * US)
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(KeyStoreError, match=why):
        ApiKeys(tmp_path / "keys.json", tmp_path / "keys.secret")
    # A running service keeps what it had and says so; it does not write over what it cannot read.
    assert ring.find(text, (NOW_S + 5) * US) is not None
    assert ring.why is not None
    with pytest.raises(KeyStoreError):
        ring.create(tenant="acme", now_s=NOW_S)


def test_a_write_that_fails_changes_nothing(ring, tmp_path, monkeypatch):
    _, text = ring.create(tenant="acme", now_s=NOW_S)
    before = (tmp_path / "keys.json").read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyStoreError, match="No space left"):
        ring.create(tenant="acme", now_s=NOW_S)
    monkeypatch.undo()
    assert (tmp_path / "keys.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys.json", "keys.json.lock", "keys.secret"]
    assert len(ApiKeys(tmp_path / "keys.json", tmp_path / "keys.secret")) == 1
    assert ring.find(text, NOW_S * US) is not None
    assert len(ring.list()) == 1


def test_changes_at_once_are_all_kept(tmp_path):
    paths = tmp_path / "keys.json", tmp_path / "keys.secret"

    def make(name: str) -> None:
        for _ in range(10):
            ApiKeys(*paths).create(tenant=name, now_s=NOW_S)

    threads = [threading.Thread(target=make, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ApiKeys(*paths)) == 40


# ---- in a policy -----------------------------------------------------------------------------------------------

POLICY = """
[identity]
anonymous = false
[identity.api_keys]
store = "file:keys.json"
[[limit]]
name = "tenant"
key = ["tenant"]
rate = "1/h"
burst = 2
[[limit]]
name = "identity-failures"
key = ["ip"]
rate = "1/h"
burst = 2
"""


@pytest.fixture
def shield(tmp_path):
    (tmp_path / "policy.toml").write_text(POLICY)
    return Shield(Policy.load(tmp_path / "policy.toml"), clock=ManualClock(NOW_S * 1_000_000_000))


def test_a_key_decides_whose_quota_it_is(shield):
    _, text = shield.api_keys.create(tenant="acme", now_s=NOW_S)
    good = Request(ip="203.0.113.7", api_key=text, tenant="victim")
    assert shield.explain(good)[0].key == "tenant=acme"
    assert [shield.check_nowait(good).status for _ in range(3)] == [200, 200, 429]


def test_unknown_keys_are_refused_and_limited(shield):
    wrong = Request(ip="203.0.113.7", api_key="shk_guess", tenant="acme")
    decisions = [shield.check_nowait(wrong) for _ in range(3)]
    assert [decision.status for decision in decisions] == [401, 401, 429]
    assert decisions[0].detail == "the API key is unknown, revoked or expired"
    assert decisions[2].violated == ["identity-failures"]
    none = shield.check_nowait(Request(ip="198.51.100.1", tenant="acme"))
    assert (none.status, none.detail) == (401, "an API key is needed")
    # A token means nothing where none can be verified.
    assert shield.check_nowait(Request(ip="198.51.100.1", token="a.b.c")).detail == "an API key is needed"
    assert shield.check_nowait(Request(ip="198.51.100.1", api_key=5)).reason == "invalid"


def test_a_store_that_cannot_be_read_is_a_wrong_policy(tmp_path):
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "keys.json").write_text("{}")
    (tmp_path / "keys.json.secret").write_text("0123456789abcdef")
    with pytest.raises(PolicyError, match=r"identity\.api_keys\.store: keys\.json is not a file of keys"):
        Shield(Policy.load(tmp_path / "policy.toml"))
    (tmp_path / "keys.json.secret").write_text("short")
    with pytest.raises(PolicyError, match=r"holds 5 bytes; allowed: 16 to 64") as caught:
        Shield(Policy.load(tmp_path / "policy.toml"))
    assert "short" not in str(caught.value)


def test_what_is_stored_is_plain(shield, tmp_path):
    shield.api_keys.create(tenant="acme", note="for the build", now_s=NOW_S)
    stored = json.loads((tmp_path / "keys.json").read_text())
    assert stored["version"] == 1
    assert stored["keys"][0].keys() == {"id", "hash", "tenant", "note", "created"}
