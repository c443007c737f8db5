"""Identity over HTTP: what gateways get, what the operator manages, what is logged and counted."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from shield.cli import main
from tests.identity.issuer import issuer_server
from tests.identity.tokens import NOW_S, b64, make
from tests.server.process import run
from tests.server.running import serving
from tests.server.test_lifecycle import ask, reloaded

ISSUER = """
[identity]
anonymous = false
[identity.headers]
tenant = "X-Tenant"
api_key = "X-Api-Key"
[[identity.jwt]]
issuer = "https://id.example"
audience = "orders"
jwks = "{jwks}"
algorithms = ["ES256"]
claims = {{ user = "sub", tenant = "org_id", plan = "plan" }}
[identity.api_keys]
store = "{keys}"
[[limit]]
name = "tenant"
key = ["tenant"]
rate = "1/h"
burst = 2
"""


def files(folder: Path, *signers) -> str:
    """The policy, and the keys it names."""
    (folder / "jwks.json").write_text(json.dumps({"keys": [one.jwk for one in signers]}))
    return ISSUER.format(jwks=f"file:{folder}/jwks.json", keys=f"file:{folder}/keys.json")


def forged(signer) -> str:
    return f"{signer.token().rpartition('.')[0]}.{b64(bytes(64))}"


async def test_authorization_belongs_to_the_end_client(tmp_path):
    signer = make("ES256")
    async with serving(files(tmp_path, signer)) as server:
        headers = {"X-Forwarded-For": "203.0.113.7", "X-Tenant": "victim"}
        authorized = headers | {"Authorization": f"Bearer {signer.token()}"}
        for wanted in (200, 200, 429):
            async with server.client.get("/v1/authz", headers=authorized) as answer:
                assert answer.status == wanted
                assert "WWW-Authenticate" not in answer.headers
        async with server.client.get("/v1/authz", headers=headers) as answer:
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"] == 'Bearer realm="api"'
            assert (await answer.json())["reason"] == "identity"
        for path in ("/v1/authz?from=forwarded", "/v1/authz/envoy/orders"):
            wrong = headers | {"Authorization": f"Bearer {forged(signer)}"}
            async with server.client.get(path, headers=wrong) as answer:
                assert answer.status == 401
                assert answer.headers["WWW-Authenticate"] == 'Bearer realm="api", error="invalid_token"'
        async with server.client.get("/v1/authz?from=forwarded&deny=403", headers=headers) as answer:
            assert (answer.status, answer.headers["Shield-Status"]) == (403, "401")


async def test_checks_by_token(tmp_path):
    signer = make("ES256")
    async with serving(files(tmp_path, signer)) as server:
        good = await server.check({"ip": "203.0.113.7", "tenant": "victim", "token": signer.token()})
        assert good["allowed"]
        wrong = await server.check({"ip": "203.0.113.7", "tenant": "victim", "token": forged(signer)})
        assert (wrong["status"], wrong["reason"]) == (401, "identity")
        assert wrong["detail"] == "the signature is not that of the key"
        batch = await server.check([{"token": signer.token()}, {"token": "x"}, {}])
        assert [one["status"] for one in batch] == [200, 401, 401]
        large = await server.check({"ip": "203.0.113.7", "token": "x" * 1_000_000})
        assert (large["reason"], large["detail"]) == ("identity", "the token has more than 8,192 bytes")


async def test_neither_logs_nor_metrics_show_a_token(tmp_path):
    signer = make("ES256")
    async with serving(files(tmp_path, signer)) as server:
        tokens = [signer.token(), forged(signer), signer.token({"exp": 1}), "opaque-token-of-somebody"]
        for token in tokens:
            await server.check({"ip": "203.0.113.7", "token": token})
        async with server.admin.get("/metrics") as answer:
            metrics = await answer.text()
        shown = server.log() + metrics
        assert all(part not in shown for token in tokens for part in token.split("."))
        assert 'shield_decisions_total{reason="identity"} 3.0' in metrics
        assert "shield_identity_tokens_verified_total 1.0" in metrics
        assert "shield_identity_tokens_refused_total 3.0" in metrics
        assert "shield_identity_tokens_cached 1.0" in metrics
        assert 'shield_limit_refusals_total{limit="identity-failures",owner=""} 0.0' in metrics


async def test_keys_are_made_listed_and_revoked(tmp_path):
    async with serving(files(tmp_path, make("ES256"))) as server:
        async with server.admin.post("/v1/keys", json={"tenant": "acme", "note": "the build"}) as answer:
            assert (answer.status, answer.headers["Cache-Control"]) == (201, "no-store")
            made = await answer.json()
        assert (made["tenant"], made["user"], made["note"]) == ("acme", None, "the build")
        asked = {"ip": "203.0.113.7", "api_key": made["key"], "tenant": "victim"}
        assert [(await server.check(asked))["status"] for _ in range(3)] == [200, 200, 429]
        headers = {"X-Forwarded-For": "203.0.113.7", "X-Api-Key": made["key"]}
        async with server.client.get("/v1/authz", headers=headers) as answer:
            assert answer.status == 429
        async with server.admin.get("/v1/keys") as answer:
            listed = await answer.json()
        assert listed == {"keys": [{name: value for name, value in made.items() if name != "key"}]}
        async with server.admin.delete(f"/v1/keys?id={made['id']}") as answer:
            assert await answer.json() == {"revoked": made["id"]}
        assert (await server.check(asked))["reason"] == "identity"
        async with server.admin.delete(f"/v1/keys?id={made['id']}") as answer:
            assert answer.status == 404
        assert made["key"] not in server.log()
        events = [event for event in server.events() if event["event"].startswith("api key")]
        assert [event["event"] for event in events] == ["api key made", "api key revoked"]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"", 400, "tenant"),
        (b"[]", 400, None),
        (b'{"tenant":1}', 400, None),
        (b'{"tennant":"a"}', 400, None),
        (b'{"tenant":"a","expires":1}', 400, "expires"),
        (b'{"plan":"pro"}', 400, "tenant"),
        (b"{" * 9_000, 413, "body"),
        (b"\xff", 400, None),
    ],
)
async def test_keys_that_are_not_made(tmp_path, body, status, field):
    async with serving(files(tmp_path, make("ES256"))) as server:
        async with server.admin.post("/v1/keys", data=body) as answer:
            problem = await answer.json()
        assert answer.status == status
        assert problem.get("field") == field
        assert not (tmp_path / "keys.json").exists()


async def test_keys_are_not_managed_from_web_pages_nor_from_the_decision_listener(tmp_path):
    async with serving(files(tmp_path, make("ES256"))) as server:
        headers = {"Origin": "https://evil.example"}
        async with server.admin.post("/v1/keys", json={"tenant": "a"}, headers=headers) as answer:
            assert answer.status == 403
        async with server.admin.delete("/v1/keys?id=x", headers=headers) as answer:
            assert answer.status == 403
        async with server.client.get("/v1/keys") as answer:
            assert answer.status == 404
        async with server.admin.put("/v1/keys") as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "DELETE, GET, HEAD, POST")
        for query in ("", "?id=", "?x=y"):
            async with server.admin.delete(f"/v1/keys{query}") as answer:
                assert answer.status == 400
    async with serving() as server, server.admin.get("/v1/keys") as answer:
        assert answer.status == 404


def test_a_policy_over_http_finds_its_files_where_the_running_one_does(tmp_path):
    text = files(tmp_path, make("ES256")).replace(f"file:{tmp_path}/", "file:")
    (tmp_path / "policy.toml").write_text(text)
    with run(tmp_path / "run", "--policy", tmp_path / "policy.toml") as process:
        url = f"{process.admin_url}/v1/policy"
        document = ask(url)[1]
        document["limit"][0]["burst"] = 9
        status, answer = ask(url, document)
        assert (status, answer["limits"]) == (200, 1)
        document["identity"]["jwt"][0]["jwks"] = "file:elsewhere.json"
        status, answer = ask(url, document)
        assert (status, answer["issues"][0]["path"]) == (400, "identity.jwt[0].jwks")


def test_a_server_with_an_issuers_keys_in_a_file(tmp_path):
    signer, successor = make("ES256"), make("ES256", "key-2")
    now_s = int(time.time())
    claims = {"exp": now_s + 600, "iat": now_s}
    policy = tmp_path / "policy.toml"
    policy.write_text(files(tmp_path, signer))
    with run(tmp_path / "run", "--policy", policy) as process:
        check = f"{process.url}/v1/check"
        assert ask(check, {"token": signer.token(claims)})[1]["allowed"]
        assert ask(check, {"token": successor.token(claims)})[1]["reason"] == "identity"
        files(tmp_path, signer, successor)
        reloaded(process, "policy replaced")
        assert ask(check, {"token": successor.token(claims)})[1]["allowed"]
        (tmp_path / "jwks.json").write_text("{}")
        issues = reloaded(process, "policy refused, the running one stays in force")["issues"]
        assert issues == ['identity.jwt[0].jwks: no member "keys"']
        assert ask(check, {"token": successor.token(claims)})[1]["reason"] == "limit"  # known and over its quota
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


async def test_a_dead_issuer_is_said_at_the_start_and_when_it_comes_back(tmp_path):
    async with issuer_server() as issuer:
        issuer.how = "failing"
        policy = ISSUER.format(jwks=issuer.url, keys=f"file:{tmp_path}/keys.json")
        async with serving(policy) as server:
            notes = server.service.tell_of_keys()
            assert notes == (f"https://id.example: {issuer.url}: answered 500; no keys yet",)
            server.service.tell_of_keys()
            assert [event["event"] for event in server.events()] == ["keys of identity"]  # once
            signer = make("ES256")
            issuer.how, issuer.keys = "well", [signer.jwk]
            server.clock.now_ns = NOW_S * 1_000_000_000 + 120_000_000_000
            await server.service.shield._gate.refresh()
            assert server.service.tell_of_keys() == ()
            assert server.events()[-1]["event"] == "keys of identity are all usable again"
            assert (await server.check({"token": signer.token()}))["allowed"]


def test_check_policy_reads_the_keys_too(tmp_path, capsys):
    policy = tmp_path / "policy.toml"
    policy.write_text(files(tmp_path, make("ES256")))
    assert main(["check-policy", str(policy)]) == 0
    shown = capsys.readouterr().out
    assert "tokens of https://id.example (ES256; keys: file:" in shown
    assert "failures by address" in shown
    (tmp_path / "jwks.json").unlink()
    assert main(["check-policy", str(policy)]) == 1
    assert "identity.jwt[0].jwks: jwks.json cannot be read" in capsys.readouterr().out
