"""[[guard.replay.scheme]]: the nonce of a signed request, through the whole decision and over a real connection."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shield import Decision, Policy, PolicyError, Request, Shield
from shield.gate import load_checked
from shield.identity.jose import encode_base64url

NOW_S = 1_763_900_000
SECRET = "a secret of a webhook"
ED25519 = Ed25519PrivateKey.generate()
BODY = b'{"amount":5}'
POLICY = """
version = 1
name = "signed"
[[limit]]
name = "few"
key = ["tenant"]
rate = "100/h"
[guard.replay]
required = true
"""
FILES = {
    "plain.secret": SECRET.encode() + b"\n",
    "old.secret": b"the secret that was before",
    "standard.secret": b"whsec_" + base64.b64encode(bytes(32)),
    "client.pem": ED25519.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    "client.secret": b"x" * 32,
}


def scheme(use: str, more: str) -> str:
    return f'[[guard.replay.scheme]]\nuse = "{use}"\n{more}\n'


def mac(secret: bytes, text: bytes) -> bytes:
    return hmac.digest(secret, text, "sha256")


def github(now_s: int, body: bytes = BODY) -> dict[str, str]:
    return {"X-Hub-Signature-256": f"sha256={mac(SECRET.encode(), body).hex()}"}


def slack(now_s: int, body: bytes = BODY) -> dict[str, str]:
    signed = mac(SECRET.encode(), b"v0:%d:%b" % (now_s, body)).hex()
    return {"X-Slack-Signature": f"v0={signed}", "X-Slack-Request-Timestamp": str(now_s)}


def stripe(now_s: int, body: bytes = BODY) -> dict[str, str]:
    return {"Stripe-Signature": f"t={now_s},v1={mac(SECRET.encode(), b'%d.%b' % (now_s, body)).hex()}"}


def standard(now_s: int, body: bytes = BODY, name: str = "msg_1") -> dict[str, str]:
    signed = base64.b64encode(mac(bytes(32), f"{name}.{now_s}.".encode() + body)).decode()
    return {"webhook-id": name, "webhook-timestamp": str(now_s), "webhook-signature": f"v1,{signed}"}


def http_signature(now_s: int, body: bytes = BODY, *, keyid: str = "ed", nonce: str = "n1") -> dict[str, str]:
    digest = f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"
    params = f'("@method" "@authority" "@path" "content-digest");created={now_s};keyid="{keyid}";nonce="{nonce}"'
    base = (
        f'"@method": POST\n"@authority": api.example\n"@path": /orders\n"content-digest": {digest}\n'
        f'"@signature-params": {params}'
    ).encode()
    signed = ED25519.sign(base) if keyid == "ed" else mac(b"x" * 32, base)
    return {
        "Content-Digest": digest,
        "Signature-Input": f"sig={params}",
        "Signature": f"sig=:{base64.b64encode(signed).decode()}:",
    }


def dpop(now_s: int, body: bytes = BODY, *, jti: str = "j1", url: str = "https://api.example/orders") -> dict[str, str]:
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": encode_base64url(ED25519.public_key().public_bytes_raw())}
    head = {"typ": "dpop+jwt", "alg": "EdDSA", "jwk": jwk}
    claims = {"jti": jti, "htm": "POST", "htu": url, "iat": now_s}
    signed = ".".join(encode_base64url(json.dumps(part).encode()) for part in (head, claims))
    return {"DPoP": f"{signed}.{encode_base64url(ED25519.sign(signed.encode()))}"}


Sign = Callable[..., dict[str, str]]
SCHEMES: list[tuple[str, str, Sign]] = [
    ("github", 'secrets = ["file:plain.secret"]', github),
    ("slack", 'secrets = ["file:old.secret", "file:plain.secret"]', slack),
    ("stripe", 'secrets = ["file:plain.secret"]', stripe),
    ("standard-webhooks", 'secrets = ["file:standard.secret"]', standard),
    ("http-signature", 'keys = { ed = "file:client.pem", mac = "file:client.secret" }', http_signature),
    ("dpop", 'origin = "https://api.example"', dpop),
]
IDS = [one[0] for one in SCHEMES]


class World:
    def __init__(self, directory: Path, text: str, policy: str = POLICY) -> None:
        for name, content in FILES.items():
            (directory / name).write_bytes(content)
        self.now_s = NOW_S - 31
        self.shield = Shield(
            Policy.parse(policy + text, directory=str(directory)), clock=lambda: self.now_s * 1_000_000_000
        )
        self.now_s = NOW_S

    def ask(self, headers: dict[str, str] | None, body: bytes | None = BODY, **facts: Any) -> Decision:
        given = {"method": "POST", "path": "/orders", "host": "api.example", "tenant": "t", "ip": "192.0.2.1", **facts}
        encoded = base64.b64encode(body).decode() if body is not None else None
        return self.shield.check_nowait(Request(headers=headers, body=encoded, **given))


@pytest.mark.parametrize(("use", "more", "sign"), SCHEMES, ids=IDS)
def test_a_signed_request_is_let_through_once(tmp_path: Path, use: str, more: str, sign: Sign) -> None:
    world = World(tmp_path, scheme(use, more))
    signed = sign(NOW_S)
    assert world.ask(signed).allowed
    again = world.ask(signed)
    assert (again.reason, again.status) == ("replay", 409)
    assert world.ask(None).reason == "nonce_missing"
    if use != "github":  # a delivery of GitHub's says not when it was made
        for off_s in (-600, 600):
            assert world.ask(sign(NOW_S + off_s)).reason == "stale", "a clock ten minutes wrong"


@pytest.mark.parametrize(("use", "more", "sign"), SCHEMES, ids=IDS)
def test_a_wrong_signature_is_refused_and_charged_to_its_address(
    tmp_path: Path, use: str, more: str, sign: Sign
) -> None:
    world = World(tmp_path, scheme(use, more))
    forged = {
        name: value[:-6] + ("AAAAAA" if value[-6:] != "AAAAAA" else "BBBBBB") for name, value in sign(NOW_S).items()
    }
    decision = world.ask(forged)
    assert (decision.reason, decision.status) == ("identity", 401)
    for _ in range(60):
        decision = world.ask(forged)
    assert (decision.reason, decision.violated) == ("limit", ["identity-failures"])
    assert world.ask(sign(NOW_S), ip="192.0.2.2").allowed, "nobody else pays, and the nonce was not burnt"


@pytest.mark.parametrize(
    ("use", "more", "headers"),
    [
        ("standard-webhooks", 'secrets = ["file:standard.secret"]', {**standard(NOW_S), "webhook-signature": "v1"}),
        ("standard-webhooks", 'secrets = ["file:standard.secret"]', {**standard(NOW_S), "webhook-timestamp": "1e9"}),
        ("standard-webhooks", 'secrets = ["file:standard.secret"]', standard(NOW_S, name="n" * 10_000)),
        ("stripe", 'secrets = ["file:plain.secret"]', {"Stripe-Signature": "t=9404983440000,v1=" + "0" * 64}),
        ("slack", 'secrets = ["file:plain.secret"]', {**slack(NOW_S), "X-Slack-Request-Timestamp": "1e9"}),
        ("http-signature", 'keys = { ed = "file:client.pem" }', {"Signature-Input": "sig", "Signature": "sig=::"}),
        ("dpop", "", {"DPoP": "a.b"}),
        ("dpop", "", dpop(NOW_S, url="https://other.example/orders")),
    ],
    ids=str,
)
def test_hostile_fields_are_refusals(tmp_path: Path, use: str, more: str, headers: dict[str, str]) -> None:
    decision = World(tmp_path, scheme(use, more)).ask(headers)
    assert (decision.reason, decision.status) == ("identity", 401)
    assert decision.detail


def test_what_is_stated_as_a_nonce_is_not_believed(tmp_path: Path) -> None:
    from shield.request import Nonce

    world = World(tmp_path, scheme("slack", 'secrets = ["file:plain.secret"]'))
    assert world.ask(slack(NOW_S), nonce=Nonce("mine", NOW_S)).allowed
    assert world.ask(slack(NOW_S), nonce=Nonce("other", NOW_S)).reason == "replay"
    assert world.ask(None, nonce=Nonce("third", NOW_S)).reason == "nonce_missing"


def test_another_body_and_another_tenant(tmp_path: Path) -> None:
    world = World(tmp_path, scheme("http-signature", 'keys = { ed = "file:client.pem", mac = "file:client.secret" }'))
    assert world.ask(http_signature(NOW_S), body=b'{"amount":9}').reason == "identity", "not what was signed"
    assert world.ask(http_signature(NOW_S), body=None, bytes=12).reason == "identity", "nobody has the body"
    assert world.ask(http_signature(NOW_S), body=b"").reason == "identity", "nor is none"
    assert world.ask(http_signature(NOW_S, nonce="n2")).allowed
    assert world.ask(http_signature(NOW_S, nonce="n2", keyid="mac")).allowed, "another signer's nonce"
    assert world.ask(http_signature(NOW_S, nonce="n2"), tenant="o").allowed, "another tenant's"
    malformed = Request(method="POST", path="/orders", headers=http_signature(NOW_S), body="%", ip="192.0.2.9")
    refused = world.shield.check_nowait(malformed)
    assert (refused.reason, refused.detail) == ("invalid", "body: expected base64")


def test_schemes_are_for_the_requests_they_match(tmp_path: Path) -> None:
    text = scheme("stripe", 'secrets = ["file:plain.secret"]\nmatch = { path = "/hooks/stripe" }')
    text += scheme("github", 'secrets = ["file:plain.secret"]\nmatch = { path = "/hooks/github" }')
    world = World(tmp_path, text)
    assert world.ask(stripe(NOW_S), path="/hooks/stripe").allowed
    assert world.ask(stripe(NOW_S), path="/hooks/github").reason == "nonce_missing"
    assert world.ask(github(NOW_S), path="/hooks/github").allowed
    from shield.request import Nonce

    assert world.ask(None, path="/other", nonce=Nonce("n", NOW_S)).allowed, "where no scheme is, the request states it"
    assert world.shield.wants_body(Request(path="/hooks/github"))
    assert not world.shield.wants_body(Request(path="/other"))


def test_a_refused_signature_is_none_of_the_limits_doing(tmp_path: Path) -> None:
    world = World(tmp_path, scheme("stripe", 'secrets = ["file:plain.secret"]'), POLICY.replace("100/h", "1/h"))
    assert world.ask(stripe(NOW_S)).allowed
    for _ in range(2):
        assert world.ask(stripe(NOW_S, b"more"), body=b"more").reason == "limit", "it burnt no nonce"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (scheme("stripe", ""), "guard.replay.scheme[0].secrets"),
        (scheme("dpop", 'secrets = ["file:x"]'), "guard.replay.scheme[0].secrets"),
        (scheme("http-signature", ""), "guard.replay.scheme[0].keys"),
        (scheme("github", 'secrets = ["file:x"]\norigin = "https://a"'), "guard.replay.scheme[0].origin"),
        (scheme("dpop", 'origin = "ftp://a"'), "guard.replay.scheme[0].origin"),
        (scheme("paypal", ""), "guard.replay.scheme[0].use"),
    ],
)
def test_a_wrong_scheme_is_told_by_its_path(text: str, path: str) -> None:
    with pytest.raises(PolicyError) as refused:
        Policy.parse(POLICY + text)
    assert path in {issue.path for issue in refused.value.issues}


@pytest.mark.parametrize("content", [None, b"", b"short", b"x" * 5000, b"-----BEGIN PUBLIC KEY-----\nnone"])
def test_a_file_that_holds_no_key_is_told_when_the_policy_is_checked(tmp_path: Path, content: bytes | None) -> None:
    for use, key in (("github", 'secrets = ["file:k"]'), ("http-signature", 'keys = { a = "file:k" }')):
        if content is not None:
            (tmp_path / "k").write_bytes(content)
        (tmp_path / "policy.toml").write_text(POLICY + scheme(use, key))
        if use == "github" and content is not None and content.startswith(b"--"):
            continue
        with pytest.raises(PolicyError) as refused:
            load_checked(tmp_path / "policy.toml")
        assert refused.value.issues[0].path == "guard.replay.scheme[0]"
