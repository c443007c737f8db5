"""What does it cost to know who asks, and do forged tokens cost anybody else?

The same limits twice: once counting what the request states, once what its token says. Tokens are texts of their own
for each call, as behind a gateway: Python keeps no hash or bytes of them. The flood is run open loop on one thread:
every request has an instant at which it is due, and its delay counts from there, waiting included.
"""

from __future__ import annotations

import base64
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from shield import Policy, Request, Shield
from shield.identity.cache import VerifiedTokens

from .record import Row, interleaved

LIMITS = "".join(
    f'[[limit]]\nname = "{name}-{kind}"\nkey = {key}\nrate = "{rate}"\nburst = {burst}\n'
    for name, key in (("user", '["tenant", "user"]'), ("tenant", '["tenant"]'), ("address", '["ip"]'))
    for kind, rate, burst in (("burst", "100000/s", 200_000), ("sustained", "1000000/s", 100_000_000))
)
IDENTITY = """
[[identity.jwt]]
issuer = "https://id.example"
audience = "orders"
jwks = "file:keys.json"
algorithms = ["ES256", "EdDSA"]
claims = { user = "sub", tenant = "org_id", plan = "plan" }
"""
TOKENS = 1_000
FORGED_PER_S = 10_000
HONEST_PER_S = 2_000


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Signer:
    """Makes tokens of the size that providers make: 700 bytes with a few claims."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm
        if algorithm == "ES256":
            self._ec = ec.generate_private_key(ec.SECP256R1())
            point = self._ec.public_key().public_numbers()
            x, y = (b64(value.to_bytes(32, "big")) for value in (point.x, point.y))
            self.jwk = {"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": algorithm}
        else:
            self._ed = ed25519.Ed25519PrivateKey.generate()
            raw = self._ed.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
            self.jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64(raw), "kid": algorithm}

    def token(self, user: int) -> str:
        now_s = int(time.time())
        claims = {
            "iss": "https://id.example",
            "aud": ["orders", "billing"],
            "iat": now_s,
            "exp": now_s + 36_000,
            "sub": f"user-{user}",
            "org_id": "acme",
            "plan": "pro",
            "scope": "orders:read orders:write profile email",
            "jti": f"{user:032x}",
            "roles": [f"role-{n}" for n in range(12)],
        }
        head = {"alg": self.algorithm, "kid": self.algorithm, "typ": "at+jwt"}
        signed = ".".join(b64(json.dumps(part).encode()) for part in (head, claims)).encode()
        if self.algorithm == "ES256":
            r, s = decode_dss_signature(self._ec.sign(signed, ec.ECDSA(hashes.SHA256())))
            signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        else:
            signature = self._ed.sign(signed)
        return f"{signed.decode()}.{b64(signature)}"


def run(seconds: float) -> list[Row]:
    signers = {name: Signer(name) for name in ("ES256", "EdDSA")}
    tokens = {name: [signer.token(n) for n in range(TOKENS)] for name, signer in signers.items()}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "keys.json").write_text(json.dumps({"keys": [signer.jwk for signer in signers.values()]}))
        Path(folder, "policy.toml").write_text(IDENTITY + LIMITS)
        policy = Policy.load(Path(folder, "policy.toml"))
        return [*_costs(policy, tokens, seconds), *_flood(policy, tokens["ES256"], seconds)]


def _costs(policy: Policy, tokens: dict[str, list[str]], seconds: float) -> list[Row]:
    stated, known, cold = Shield(Policy.parse(LIMITS)), Shield(policy), Shield(policy)
    _forget_at_once(cold)
    halves = {name: [(text[:40], text[40:]) for text in made] for name, made in tokens.items()}

    def make(name: str, i: int) -> Request:
        first, second = halves[name][i % TOKENS]
        return Request(tenant="acme", user=f"user-{i % TOKENS}", ip=f"203.0.113.{i % 250}", token=first + second)

    def by_statement(calls: int) -> None:
        for i in range(calls):
            stated.check_nowait(make("ES256", i))

    def by_known_token(calls: int) -> None:
        for i in range(calls):
            known.check_nowait(make("ES256", i))

    def by_new_token(name: str) -> Any:
        def work(calls: int) -> None:
            for i in range(calls):
                assert cold.check_nowait(make(name, i)).allowed

        return work

    by_known_token(TOKENS)
    works = [by_statement, by_known_token, by_new_token("ES256"), by_new_token("EdDSA")]
    plain, cached, es256, ed25519_ns = interleaved(works, [2_000, 2_000, 200, 200], seconds)
    return [
        Row("a check by what the request states, six limits", plain, "ns"),
        Row("a known token adds", cached - plain, "ns", "at most 3,000", cached - plain <= 3_000),
        Row("a new ES256 token adds", (es256 - plain) / 1000, "us", "at most 400", es256 - plain <= 400_000),
        Row(
            "a new Ed25519 token adds", (ed25519_ns - plain) / 1000, "us", "at most 400", ed25519_ns - plain <= 400_000
        ),
    ]


def _forget_at_once(shield: Shield) -> None:
    gate = shield._gate
    assert gate is not None
    assert gate.issuers is not None
    gate.issuers._cache = VerifiedTokens(max_entries=1)


def _flood(policy: Policy, tokens: list[str], seconds: float) -> list[Row]:
    """The 99th percentile of honest requests' delay, quiet and flooded in turns."""
    shield = Shield(policy)
    chance = random.Random(7)
    honest = [
        Request(ip=f"198.51.100.{n % 250}", token=token, method="GET", path="/orders") for n, token in enumerate(tokens)
    ]
    for request in honest:
        assert shield.check_nowait(request).allowed
    forged = []
    for n in range(FORGED_PER_S):
        head, _, signature = tokens[n % TOKENS].rpartition(".")
        forged.append(Request(ip="203.0.113.7", token=f"{head}.{chance.randrange(10**9):09d}{signature[9:]}"))
    quiet, flooded, refused = [], [], 0
    for _ in range(max(3, int(seconds))):
        quiet.append(_p99_us(shield, honest, [], chance))
        flooded.append(_p99_us(shield, honest, forged, chance))
        refused += sum(not shield.check_nowait(request).allowed for request in forged[:100])
    before, during = statistics.median(quiet), statistics.median(flooded)
    return [
        Row(f"p99 of {HONEST_PER_S:,} honest checks a second", before, "us"),
        Row(f"the same beside {FORGED_PER_S:,} forged tokens a second", during, "us"),
        Row(
            "the second against the first", during / before, "times", "at most 2", during / before <= 2 and refused > 0
        ),
    ]


def _p99_us(shield: Shield, honest: list[Request], forged: list[Request], chance: random.Random) -> float:
    """One second of traffic at random instants (a Poisson process), each request at its own."""
    due = [(chance.random(), honest[n % len(honest)], True) for n in range(HONEST_PER_S)]
    due += [(chance.random(), request, False) for request in forged]
    due.sort(key=lambda one: one[0])
    clock, check = time.perf_counter, shield.check_nowait
    delays = []
    start = clock()
    for at, request, is_honest in due:
        while clock() - start < at:
            pass
        check(request)
        if is_honest:
            delays.append(clock() - start - at)
    delays.sort()
    return delays[int(len(delays) * 0.99)] * 1e6
