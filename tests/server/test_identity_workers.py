"""Identity where several workers decide: each verifies for itself, and what an operator changes all of them know."""

from __future__ import annotations

import json
import os
import signal
import ssl
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.identity.certificates import Authority
from tests.identity.tokens import Signer, b64, make
from tests.server.process import Process, run
from tests.server.test_lifecycle import ask, reloaded
from tests.server.test_workers import ask_until_each_answered, metrics, pids, put, total

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

POLICY = """
[identity]
anonymous = false
[[identity.jwt]]
issuer = "https://id.example"
audience = "orders"
jwks = "file:jwks.json"
algorithms = ["ES256"]
claims = { user = "sub", tenant = "org_id" }
[identity.api_keys]
store = "file:keys.json"
[[limit]]
name = "tenant"
key = ["tenant"]
rate = "1/h"
burst = 100_000
[[limit]]
name = "identity-failures"
key = ["ip"]
rate = "1/h"
burst = 100_000
"""
CHECK = {"ip": "203.0.113.7"}
GATEWAY = "spiffe://example.org/gateway"


def written(folder: Path, *signers: Signer, policy: str = POLICY) -> Path:
    """The policy's file, and the keys that it names beside it."""
    (folder / "jwks.json").write_text(json.dumps({"keys": [one.jwk for one in signers]}))
    file = folder / "policy.toml"
    file.write_text(policy)
    return file


def token_of(signer: Signer) -> str:
    now_s = int(time.time())
    return signer.token({"exp": now_s + 600, "iat": now_s})


def all_answer(process: Process, body: dict[str, Any], reason: str) -> None:
    """Comes to be true of every worker."""

    def round_of() -> bool:
        reasons: list[str] = []
        ask_until_each_answered(process, lambda decision: reasons.append(decision["reason"]), body)
        return set(reasons) == {reason}

    process.until(f"answer {reason}", round_of)


def revoke(process: Process, key_id: str) -> Any:
    request = urllib.request.Request(f"{process.admin_url}/v1/keys?id={key_id}", method="DELETE")
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


def test_a_key_that_is_made_or_revoked_is_so_for_every_worker(tmp_path: Path) -> None:
    with run(tmp_path / "run", "--policy", written(tmp_path, make("ES256")), "--workers", "2") as process:
        assert ask(f"{process.admin_url}/v1/keys") == (200, {"keys": []})
        status, made = ask(f"{process.admin_url}/v1/keys", {"tenant": "acme"})
        assert status == 201
        # Nobody has shown it yet: they look by themselves.
        process.until("know of it", lambda: total(process, "shield_identity_api_keys") == 1)
        asked = {"ip": "203.0.113.7", "api_key": made["key"], "tenant": "victim"}
        all_answer(process, asked, "ok")
        listed = ask(f"{process.admin_url}/v1/keys")[1]["keys"]
        assert listed == [{name: value for name, value in made.items() if name != "key"}]
        assert revoke(process, made["id"]) == {"revoked": made["id"]}
        all_answer(process, asked, "identity")
        assert ask(f"{process.admin_url}/v1/keys")[1] == {"keys": []}
        process.until("forget it", lambda: total(process, "shield_identity_api_keys") == 0)
        assert made["key"] not in process.err() + process.out()
        status, answer = put(process, 'version = 1\n[[limit]]\nname = "a"\nkey = ["ip"]\nrate = "1/s"\n')
        assert status == 200, answer
        assert ask(f"{process.admin_url}/v1/keys")[0] == 404


def test_workers_count_forged_tokens_as_one(tmp_path: Path) -> None:
    signer = make("ES256")
    policy = POLICY.replace("burst = 100_000", "burst = 5")
    with run(tmp_path / "run", "--policy", written(tmp_path, signer, policy=policy), "--workers", "2") as process:
        token = token_of(signer)
        forged = f"{token.rpartition('.')[0]}.{b64(bytes(64))}"
        check = f"{process.url}/v1/check"
        statuses = [ask(check, {"ip": "203.0.113.7", "token": forged})[1]["status"] for _ in range(8)]
        assert statuses == [401] * 5 + [429] * 3
        statuses = [ask(check, {"ip": "198.51.100.1", "token": token})[1]["status"] for _ in range(8)]
        assert statuses == [200] * 5 + [429] * 3
        assert ("shield_limit_refusals_total", (("limit", "identity-failures"), ("owner", ""))) in metrics(process)


def test_a_policy_over_http_finds_its_files_for_every_worker(tmp_path: Path) -> None:
    signer, successor = make("ES256"), make("ES256", "key-2")
    file = written(tmp_path, signer)
    # No worker runs where the policy lies.
    with run(tmp_path / "run", "--policy", file, "--workers", "2") as process:
        assert os.getcwd() != str(tmp_path)
        (tmp_path / "next.json").write_text(json.dumps({"keys": [successor.jwk]}))
        assert put(process, POLICY.replace("jwks.json", "next.json"))[0] == 200
        asked = {"ip": "203.0.113.7", "token": token_of(successor)}
        all_answer(process, asked, "ok")
        status, answer = put(process, POLICY.replace("jwks.json", "elsewhere.json"))
        assert (status, answer["issues"][0]["path"]) == (400, "identity.jwt[0].jwks")
        # What was refused leaves nothing behind, not even where the running policy's file has gone meanwhile.
        (tmp_path / "next.json").rename(tmp_path / "away.json")
        assert put(process, POLICY.replace("jwks.json", "elsewhere.json"))[0] == 400
        all_answer(process, asked, "ok")
        assert not process.events("worker died")
        (tmp_path / "away.json").rename(tmp_path / "next.json")
        victim = pids(process)[1]
        os.kill(victim, signal.SIGKILL)
        process.until("start another", lambda: pids(process)[1] != victim)
        all_answer(process, asked, "ok")
        reloaded(process, "policy replaced")
        all_answer(process, asked, "identity")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_every_worker_knows_whose_certificates_may_ask(tmp_path: Path, workers: str) -> None:
    authority = Authority("an authority", tmp_path)
    certificate, key = authority.certificate("server", ips=["127.0.0.1"])
    options = ("--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", authority.file)
    # An admin listener that others can reach is theirs alone as well.
    listening = ("--tls-client-id", GATEWAY, "--admin", "0.0.0.0:0", "--workers", workers)
    with run(tmp_path / "run", *options, *listening) as process:

        def status_of(files: tuple[Path, Path], url: str = f"{process.url}/v1/check", body: Any = CHECK) -> int:
            context = ssl.create_default_context(cafile=str(authority.file))
            context.load_cert_chain(*files)
            return ask(url, body, context=context)[0]

        gateway = authority.certificate("gateway", uris=[GATEWAY])
        other = authority.certificate("other", uris=["spiffe://example.org/other"])
        for _ in range(10):
            assert status_of(gateway) == 200
            assert status_of(other) == 403
        policy = f"https://127.0.0.1:{urlsplit(process.admin_url).port}/v1/policy"
        assert [status_of(one, policy, None) for one in (gateway, other)] == [200, 403]
