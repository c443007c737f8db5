"""The admin listener: probes, metrics whose cardinality the policy bounds, and the policy itself."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.running import POLICY, Running, serving

OTHER = POLICY.replace('name = "test"', 'name = "other"').replace("burst = 3", "burst = 5")


async def get(server: Running, path: str, **headers: str) -> tuple[int, Any]:
    async with server.admin.get(path, headers=headers) as answer:
        return answer.status, json.loads(await answer.text())


async def metrics(server: Running) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    async with server.admin.get("/metrics") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=")
        text = await answer.text()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def put(server: Running, policy: str, query: str = "", **headers: str) -> tuple[int, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with server.admin.put(f"/v1/policy{query}", data=policy.encode(), headers=named) as answer:
        return answer.status, json.loads(await answer.text())


async def test_probes() -> None:
    async with serving() as server:
        assert await get(server, "/healthz") == (200, {"alive": True})
        status, state = await get(server, "/readyz")
        assert (status, state["ready"], state["draining"], state["degraded"]) == (200, True, False, False)
        server.service.draining = True
        status, state = await get(server, "/readyz")
        assert (status, state["ready"], state["draining"]) == (503, False, True)
        assert (await get(server, "/healthz"))[0] == 200
        async with server.admin.head("/healthz") as answer:
            assert answer.status == 200


async def test_a_store_that_is_away_degrades_but_does_not_unready() -> None:
    async with serving(store="redis://127.0.0.1:1/0?connect_timeout=50ms") as server:
        status, state = await get(server, "/readyz")
        assert (status, state["ready"], state["degraded"], state["store"]) == (200, True, True, "redis")
        assert (await get(server, "/readyz?store=required"))[0] == 503
        assert (await server.check({"ip": "203.0.113.7"}))["degraded"]
        assert (await metrics(server))[("shield_degraded_decisions_total", ())] == 1


async def test_the_bound_of_a_tenants_nonces_is_counted_by_itself() -> None:
    rules = "version = 1\nname = 'n'\n[guard.replay]\nmax_per_tenant = 4\nwindow = '10s'\nfuture_skew = '0s'\n"
    async with serving(policy=rules) as server:
        server.clock.now_ns += 60_000_000_000  # a store that was just made knows of no older nonces
        found: list[str] = []
        while found.count("store_full") < 2:
            stated = {"tenant": "t", "nonce": {"value": str(len(found)), "timestamp": server.clock.now_ns / 1e9}}
            found.append((await server.check(stated))["reason"])
        seen = await metrics(server)
        assert seen["shield_nonce_bound_refusals_total", ()] == 2
        assert seen["shield_decisions_total", (("reason", "store_full"),)] == 2


async def test_decisions_are_counted_by_reason_and_refusals_by_limit() -> None:
    async with serving() as server:
        for _ in range(5):
            await server.check({"ip": "203.0.113.7"})
        await server.check({"ip": "wrong"})
        async with server.client.post("/v1/check", data=b"{"):
            pass
        seen = await metrics(server)
        assert seen["shield_decisions_total", (("reason", "ok"),)] == 3
        assert seen["shield_decisions_total", (("reason", "limit"),)] == 2
        assert seen["shield_decisions_total", (("reason", "invalid"),)] == 1
        address = (("limit", "address"), ("owner", "the tests"))
        assert seen["shield_limit_refusals_total", address] == 2
        assert seen["shield_http_problems_total", (("endpoint", "check"), ("status", "400"))] == 1
        assert seen["shield_check_duration_seconds_count", ()] == 6
        assert seen["shield_check_duration_seconds_bucket", (("le", "+Inf"),)] == 6
        assert seen["shield_store_keys", ()] == 1


async def test_shadow_refusals_are_counted() -> None:
    async with serving(POLICY.replace("burst = 3", 'burst = 3\nmode = "shadow"')) as server:
        for _ in range(5):
            assert (await server.check({"ip": "203.0.113.7"}))["allowed"]
        seen = await metrics(server)
        assert seen["shield_shadow_refusals_total", (("limit", "address"), ("owner", "the tests"))] == 2


async def test_no_traffic_makes_a_new_time_series() -> None:
    async with serving() as server:
        await server.check({"ip": "203.0.113.7"})
        await server.check({"ip": "x"})
        async with server.client.get("/warm-up"):
            pass
        before = set(await metrics(server))
        await server.check([{"ip": f"198.51.100.{i}", "user": f"u{i}", "tenant": f"t{i}"} for i in range(200)])
        for i in range(20):
            async with server.client.get(f"/path-{i}"):
                pass
            async with server.client.get("/v1/authz", headers={"X-Forwarded-For": f"192.0.2.{i}"}):
                pass
        assert set(await metrics(server)) == before


async def test_replaced_policies_do_not_add_up() -> None:
    async with serving() as server:
        for i in range(20):
            policy = f'name = "p{i}"\n[[limit]]\nname = "limit-{i}"\nkey = ["ip"]\nrate = "1/s"\n'
            assert (await put(server, policy))[0] == 200
        limits = {labels for name, labels in await metrics(server) if name == "shield_limit_refusals_total"}
        assert limits == {(("limit", "limit-19"), ("owner", ""))}


async def test_the_policy_in_force_can_be_read_and_sent_back() -> None:
    async with serving() as server:
        status, document = await get(server, "/v1/policy")
        assert status == 200
        assert document["name"] == "test"
        assert [limit["name"] for limit in document["limit"]] == ["address", "user"]
        status, answer = await put(server, json.dumps(document))
        assert status == 200
        assert answer["fingerprint"] == answer["previous"]
        async with server.admin.get("/v1/policy?format=source") as source:
            assert source.headers["Content-Type"].startswith("application/json")
            assert json.loads(await source.text()) == document
        assert (await put(server, OTHER))[0] == 200
        async with server.admin.get("/v1/policy?format=source") as source:
            assert source.headers["Content-Type"].startswith("application/toml")
            assert await source.text() == OTHER


async def test_a_replaced_policy_counts_from_the_next_decision_and_keeps_what_was_spent() -> None:
    async with serving() as server:
        for _ in range(3):
            await server.check({"ip": "203.0.113.7"})
        assert not (await server.check({"ip": "203.0.113.7"}))["allowed"]
        status, answer = await put(server, OTHER)
        assert status == 200
        assert (answer["name"], answer["limits"], answer["owner"]) == ("other", 2, "the tests")
        after = await server.check({"ip": "203.0.113.7"})
        assert after["allowed"]
        assert after["limits"][0]["remaining"] == 1
        [event] = [event for event in server.events() if event["event"] == "policy replaced"]
        assert (event["owner"], event["origin"]) == ("the tests", "admin")


async def test_gateway_facts_follow_the_policy() -> None:
    async with serving() as server:
        headers = {"X-Forwarded-For": "203.0.113.7", "X-Tenant": "t", "X-User": "u"}
        policy = POLICY + '\n[identity.headers]\ntenant = "X-Tenant"\nuser = "X-User"\n'
        async with server.client.get("/v1/authz", headers=headers) as answer:
            assert "user" not in answer.headers["RateLimit"]
        assert (await put(server, policy))[0] == 200
        async with server.client.get("/v1/authz", headers=headers) as answer:
            assert '"user";r=1' in answer.headers["RateLimit"]


async def test_a_wrong_policy_is_refused_whole_and_the_running_one_kept() -> None:
    wrong = 'name = "x"\n[[limit]]\nname = "A B"\nkey = ["usr"]\nrate = "0/s"\nbrust = 1\n'
    async with serving() as server:
        before = server.service.shield.policy.fingerprint
        status, body = await put(server, wrong)
        assert status == 400
        paths = [issue["path"] for issue in body["issues"]]
        assert set(paths) == {"limit[0].name", "limit[0].key[0]", "limit[0].rate", "limit[0].brust"}
        assert all(issue["message"] for issue in body["issues"])
        assert server.service.shield.policy.fingerprint == before
        assert (await get(server, "/v1/policy"))[1]["name"] == "test"
        for text in ("{", "not toml", "\x00", "limit = 3", '{"version": 7}'):
            status, body = await put(server, text)
            assert status == 400
            assert body["issues"]
        async with server.admin.put("/v1/policy", data=b'name = "\xff"') as answer:
            assert answer.status == 400
        async with server.admin.put("/v1/policy", data=io.BytesIO(b"#" * 1_100_000)) as answer:
            assert answer.status == 413
        assert server.service.shield.policy.fingerprint == before
        seen = await metrics(server)
        assert seen["shield_policy_reloads_total", (("outcome", "refused"),)] == 6


async def test_the_format_of_a_policy_is_said_or_seen() -> None:
    as_json = json.dumps({"name": "j"})
    async with serving() as server:
        for policy, query, content_type in (
            (as_json, "", "application/json"),
            (as_json, "", "application/x-www-form-urlencoded"),
            ('name = "t"', "", "application/toml"),
            ('name = "t"', "", "text/plain"),
            ('name = "t"', "?format=toml", "application/json"),
            ("name: y", "?format=yaml", "text/plain"),
            ("name: y", "", "application/yaml; charset=utf-8"),
        ):
            status, answer = await put(server, policy, query, Content_Type=content_type)
            assert (status, len(answer["name"])) == (200, 1), (policy, query, content_type)
        async with server.admin.get("/v1/policy") as answer_in_yaml:
            assert await answer_in_yaml.json() == {"name": "y"}
        assert (await put(server, as_json, "?format=xml"))[0] == 400
        assert (await put(server, as_json, "?fromat=json"))[0] == 400


async def test_two_operators_do_not_overwrite_each_other() -> None:
    async with serving() as server:
        async with server.admin.get("/v1/policy") as answer:
            etag = answer.headers["ETag"]
        assert (await put(server, OTHER, If_Match=etag))[0] == 200
        assert (await put(server, POLICY, If_Match=etag))[0] == 412
        assert (await get(server, "/v1/policy"))[1]["name"] == "other"


async def test_a_page_in_a_browser_cannot_replace_the_policy() -> None:
    async with serving() as server:
        status, _ = await put(server, OTHER, Origin="https://evil.example", Content_Type="text/plain")
        assert status == 403
        assert (await get(server, "/v1/policy"))[1]["name"] == "test"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/v1/check", 404),
        ("DELETE", "/v1/policy", 405),
        ("POST", "/metrics", 405),
        ("GET", "/v1/policy?x=1", 400),
        ("GET", "/readyz?x=1", 400),
    ],
)
async def test_what_is_not_there(method: str, path: str, status: int) -> None:
    async with serving() as server, server.admin.request(method, path) as answer:
        assert answer.status == status
        assert (await answer.json(content_type=None))["status"] == status
