"""Blocks in a Shield: the order of refusals, what they cost, allow lists, lists of networks, restarts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shield import Policy, Request, Shield
from shield.block.file import BlockFileError
from shield.errors import PolicyError
from shield.identity.principal import NAMESPACE_MARK
from shield.testing import ManualClock
from tests.identity.tokens import make

POLICY = """
version = 1
[blocks]
allow = ["203.0.113.200/32"]
{}
[[limit]]
name = "address"
key = ["ip"]
rate = "1000/s"
[[limit]]
name = "fine"
key = ["ip"]
rate = "3/h"
count_denied = true
mode = "enforce"
match = {{ path = "/fined" }}
[[detector]]
use = "user-agent-switching"
action = "{}"
mode = "{}"
[guard.size]
max_body_bytes = 10
"""


def shield_of(
    blocks: str = "", action: str = "block", mode: str = "enforce", clock: ManualClock | None = None
) -> Shield:
    return Shield(Policy.parse(POLICY.format(blocks, action, mode)), clock=clock or ManualClock())


def attack(shield: Shield, ip: str = "203.0.113.7") -> list[str]:
    return [shield.check_nowait(Request(ip=ip, user_agent=f"a{i}")).reason for i in range(12)]


def test_a_detector_blocks_and_the_block_ends() -> None:
    clock = ManualClock()
    shield = shield_of(clock=clock)
    assert attack(shield) == ["ok"] * 11 + ["blocked"]
    decision = shield.check_nowait(Request(ip="203.0.113.7"))
    assert (decision.allowed, decision.status, decision.reason) == (False, 403, "blocked")
    assert shield.check_nowait(Request(ip="203.0.113.8")).allowed
    clock.advance(s=59)
    assert not shield.check_nowait(Request(ip="203.0.113.7")).allowed
    clock.advance(s=1)
    assert shield.check_nowait(Request(ip="203.0.113.7")).allowed


def test_a_challenge_and_a_shadow() -> None:
    assert attack(shield_of(action="challenge"))[-1] == "challenge"
    assert attack(shield_of(mode="shadow")) == ["ok"] * 12
    assert attack(shield_of(action="observe")) == ["ok"] * 12


def test_allow_lists_win_over_blocks_and_detectors_and_over_nothing_else() -> None:
    shield = shield_of()
    assert attack(shield, "203.0.113.200") == ["ok"] * 12
    shield.abuse.blocks.block("ip", "203.0.113.200", None, by="operator")
    assert shield.check_nowait(Request(ip="203.0.113.200")).allowed
    assert shield.check_nowait(Request(ip="203.0.113.200", bytes=11)).reason == "too_large"


def test_allow_lists_win_by_user_tenant_and_key_too() -> None:
    shield = shield_of('allow_users = ["root"]\nallow_tenants = ["acme"]\nallow_api_keys = ["k1"]')
    for kind, value in (("ip", "192.0.2.1"), ("user", "root"), ("tenant", "acme"), ("api_key", "k1")):
        shield.abuse.blocks.block(kind, value, None, by="operator")
    for facts in ({"user": "root"}, {"tenant": "acme"}, {"api_key": "k1"}):
        assert shield.check_nowait(Request(ip="192.0.2.1", **facts)).allowed
    assert shield.check_nowait(Request(ip="192.0.2.1", user="ada")).reason == "blocked"
    assert shield.check_nowait(Request(ip="192.0.2.1", user=["root"])).reason == "blocked"  # type: ignore[arg-type]


U1 = f"https://id.example{NAMESPACE_MARK}u1"
IDENTITY = """
version = 1
[identity]
anonymous = false
[[identity.jwt]]
issuer = "https://id.example"
audience = "orders"
jwks = "file:keys.json"
algorithms = ["ES256"]
claims = {{ user = "sub", tenant = "org_id" }}
[[limit]]
name = "identity-failures"
key = ["ip"]
rate = "1/h"
burst = 3
[blocks]
{}
"""


def identified(folder: Path, blocks: str) -> tuple[Shield, str]:
    """A Shield that verifies tokens, and one of user u1's."""
    signer, now_s = make("ES256"), 1_800_000_000
    (folder / "keys.json").write_text(json.dumps({"keys": [signer.jwk]}))
    (folder / "policy.toml").write_text(IDENTITY.format(blocks))
    shield = Shield(Policy.load(folder / "policy.toml"), clock=ManualClock(now_s * 10**9))
    claims = {"iss": "https://id.example", "aud": "orders", "sub": "u1", "org_id": "acme", "exp": now_s + 600}
    return shield, signer.token(claims)


def test_a_blocked_address_is_refused_before_who_asks_and_costs_it_nothing(tmp_path: Path) -> None:
    shield, token = identified(tmp_path, "")
    assert shield.check_nowait(Request(ip="192.0.2.1", token=token)).allowed
    shield.abuse.blocks.block("ip", "192.0.2.1", None, by="operator")
    for _ in range(5):
        assert shield.check_nowait(Request(ip="192.0.2.1", token="x.y.z")).reason == "blocked"
    shield.abuse.blocks.unblock("ip", "192.0.2.1", by="operator")
    assert shield.check_nowait(Request(ip="192.0.2.1", token="x.y.z")).reason == "identity"
    shield.abuse.blocks.block("user", U1, None, by="operator")
    assert shield.check_nowait(Request(ip="192.0.2.1", token=token)).reason == "blocked"
    assert shield.check_nowait(Request(ip="192.0.2.1", user="u1", token="x.y.z")).reason == "identity"


def test_only_a_verified_name_is_on_an_allow_list(tmp_path: Path) -> None:
    shield, token = identified(tmp_path, 'allow_users = ["' + U1 + '"]')
    shield.abuse.blocks.block("ip", "192.0.2.1", None, by="operator")
    assert shield.check_nowait(Request(ip="192.0.2.1", user="u1", token="x.y.z")).reason == "blocked"
    assert shield.check_nowait(Request(ip="192.0.2.1", user="u1")).reason == "blocked"
    assert shield.check_nowait(Request(ip="192.0.2.1", token=token)).allowed
    assert shield.check_nowait(Request(ip="192.0.2.1", token=token)).allowed, "known by now"


def test_the_order_of_refusals_and_that_a_block_costs_nothing() -> None:
    shield = shield_of()
    shield.abuse.blocks.block("ip", "203.0.113.9", None, by="operator", why="")
    assert shield.check_nowait(Request(ip="203.0.113.9", cost=-1)).reason == "invalid"
    assert shield.check_nowait(Request(ip="203.0.113.9", bytes=11)).reason == "blocked"
    shield.abuse.blocks.unblock("ip", "203.0.113.9", by="operator")
    statuses = {one.name: one.remaining for one in shield.check_nowait(Request(ip="203.0.113.9")).limits}
    assert statuses == {"address": 999}


def test_a_block_comes_before_the_nonce() -> None:
    shield = Shield(Policy.parse("version = 1\n[guard.replay]\nrequired = true"), clock=ManualClock())
    assert shield.check_nowait(Request(ip="192.0.2.1")).reason == "nonce_missing"
    shield.abuse.blocks.block("ip", "192.0.2.1", None, by="operator")
    assert shield.check_nowait(Request(ip="192.0.2.1")).reason == "blocked"


def test_limits_that_count_refusals_count_blocked_requests() -> None:
    shield = shield_of()
    shield.abuse.blocks.block("ip", "203.0.113.9", None, by="operator", why="")
    for _ in range(5):
        assert shield.check_nowait(Request(ip="203.0.113.9", path="/fined")).reason == "blocked"
    shield.abuse.blocks.unblock("ip", "203.0.113.9", by="operator")
    assert shield.check_nowait(Request(ip="203.0.113.9", path="/fined")).violated == ["fine"]


async def test_blocks_survive_a_reload_and_a_restart(tmp_path: Path) -> None:
    clock, path = ManualClock(), tmp_path / "blocks"
    shield = Shield(Policy.parse(POLICY.format("", "block", "enforce")), clock=clock, blocks=path)
    attack(shield)
    for user, why in (("mallory", "fraud"), ("ada", "mistake")):
        shield.abuse.blocks.block("user", user, None, by="operator", why=why)
    shield.abuse.blocks.unblock("user", "ada", by="operator")
    await shield.replace_policy(Policy.parse(POLICY.format("", "observe", "enforce")))
    assert not shield.check_nowait(Request(ip="203.0.113.7")).allowed
    await shield.close()
    path.write_bytes(path.read_bytes() + b'{"kind": "ip", "value": "192.0.2')  # what a crash leaves
    again = Shield(Policy.parse(POLICY.format("", "block", "enforce")), clock=clock, blocks=path)
    assert not again.check_nowait(Request(ip="203.0.113.7")).allowed
    assert not again.check_nowait(Request(user="mallory")).allowed
    assert again.check_nowait(Request(user="ada")).allowed
    assert [block.why for block in again.abuse.blocks.book.all(again.abuse.now_us())][1] == "fraud"
    assert again.stats()["blocks_file_lines_unread"] == 1
    clock.advance(s=61)
    assert again.check_nowait(Request(ip="203.0.113.7")).allowed
    attack(again)
    (block, _) = again.abuse.blocks.book.all(again.abuse.now_us())
    assert block.level == 1, "that it was blocked before is remembered too"


async def test_processes_of_one_shared_table_hear_of_each_others_blocks(tmp_path: Path) -> None:
    url = f"shared://t?dir={tmp_path}&max_keys=1000&max_leases=10&max_receipts=10"
    policy = Policy.parse(POLICY.format("", "block", "enforce"))
    async with Shield(policy, url) as one, Shield(policy, url) as other:
        one.abuse.blocks.block("user", "mallory", None, by="operator")
        await one.abuse.blocks.turn()
        await other.abuse.blocks.turn()
        assert other.check_nowait(Request(user="mallory")).reason == "blocked"
        assert other.check_nowait(Request(user="ada")).allowed
        other.abuse.blocks.unblock("user", "mallory", by="operator")
        await other.abuse.blocks.turn()
        await one.abuse.blocks.turn()
        assert one.check_nowait(Request(user="mallory")).allowed


def test_a_file_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    with pytest.raises(BlockFileError, match="cannot be used"):
        Shield(Policy.parse("version = 1"), blocks=tmp_path / "no" / "file")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BlockFileError):
        Shield(Policy.parse("version = 1"), blocks=tmp_path / "link")


def test_blocks_in_shadow_refuse_nobody_and_are_counted() -> None:
    shield = shield_of('mode = "shadow"')
    assert attack(shield) == ["ok"] * 12
    assert shield.abuse.stats()["user-agent-switching"]["detected"] == 1
    assert shield.stats()["blocks_shadow_refusals"] == 1


def test_unusual_names_can_be_blocked_and_impossible_ones_cost_nothing() -> None:
    policy = """
version = 1
[[detector]]
name = "busy"
on = { method = "GET" }
key = ["user"]
measure = "count"
leak = "1/s"
capacity = 3
action = "block"
"""
    shield = Shield(Policy.parse(policy), clock=ManualClock())
    for user, last in (("m\u200bo", "blocked"), ("x" * 300, "blocked"), ("y" * 5_000, "ok")):
        reasons = [shield.check_nowait(Request(user=user, method="GET")).reason for _ in range(5)]
        assert reasons[-1] == last, user[:9]


def test_lists_are_read_and_wrong_ones_refused_whole(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# bad ones\n198.51.100.0/24\n")
    shield = shield_of(f'lists = ["file:{tmp_path / "list.txt"}"]')
    assert shield.check_nowait(Request(ip="198.51.100.1")).reason == "blocked"
    (tmp_path / "list.txt").write_text("198.51.100.0/24\nexample.com\n")
    for path, part in ((tmp_path / "list.txt", "line 2: found 'example.com'"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(PolicyError) as caught:
            shield_of(f'lists = ["file:{path}"]')
        assert caught.value.issues[0].path == "blocks.lists[0]"
        assert part in caught.value.issues[0].message


async def test_a_policy_whose_list_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    shield = shield_of()
    shield.abuse.blocks.block("user", "mallory", None, by="operator", why="")
    other = POLICY.format(f'lists = ["file:{tmp_path / "none"}"]', "block", "enforce").replace("1000/s", "1/h")
    before = shield.policy
    with pytest.raises(PolicyError):
        await shield.replace_policy(Policy.parse(other))
    assert shield.policy is before
    assert [shield.check_nowait(Request(ip="192.0.2.1")).allowed for _ in range(3)] == [True] * 3
    assert shield.check_nowait(Request(user="mallory")).reason == "blocked"
