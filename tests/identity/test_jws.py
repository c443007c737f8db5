"""Signatures: the published facts, and what this code must not be talked into."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from hypothesis import given
from hypothesis import strategies as st

from shield.identity import jws
from shield.identity.algorithms import ALGORITHMS, ASYMMETRIC
from shield.identity.jose import REASONS, TokenError, decode_base64url, parse_object
from shield.identity.jwt import Verifier
from shield.identity.keys import MAX_KEYS, KeySet, KeySetError
from tests.identity.tokens import AUDIENCE, ISSUER, NOW_S, b64, make, number, rsa_private

TABLE = tomllib.loads((Path(__file__).parent / "jose.toml").read_text())


def refusal(call, *args, **options) -> TokenError:
    with pytest.raises(TokenError) as caught:
        call(*args, **options)
    assert caught.value.reason in REASONS
    return caught.value


@pytest.mark.parametrize("case", TABLE["case"], ids=lambda case: f"{case['source']} {case['what']}")
def test_published_facts(case):
    keys = json.loads(TABLE["keys"][case["keys"]])
    if case["valid"]:
        jws.verify(case["jws"], keys, algorithms=ALGORITHMS)
    else:
        refusal(jws.verify, case["jws"], keys, algorithms=ALGORITHMS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_algorithm_takes_its_own_signature_and_no_other(algorithm):
    signer = make(algorithm)
    token = signer.token(b"any bytes")
    signed = jws.verify(token, signer.jwk, algorithms=[algorithm])
    assert signed.payload == b"any bytes"
    others = [name for name in ALGORITHMS if name != algorithm]
    assert refusal(jws.verify, token, signer.jwk, algorithms=others).reason == "algorithm"
    head, payload, signature = token.split(".")
    raw = decode_base64url(signature.encode())
    for changed in (raw[:-1] + bytes([raw[-1] ^ 1]), raw[:-1], raw + b"\0", b"\0" + raw, bytes(len(raw))):
        assert refusal(jws.verify, f"{head}.{payload}.{b64(changed)}", signer.jwk, algorithms=[algorithm]).reason == (
            "signature"
        )


def test_a_public_key_is_never_a_secret():
    """Key confusion: an HMAC over the text of the public key, which everybody has."""
    rsa, attacker = make("RS256"), make("HS256")
    for secret in (json.dumps(rsa.jwk).encode(), rsa.jwk["n"].encode(), decode_base64url(rsa.jwk["n"].encode())):
        forged = type(attacker)("HS256", secret, rsa.jwk).token()
        for algorithms in (["RS256"], ["RS256", "HS256"]):
            assert refusal(jws.verify, forged, rsa.jwk, algorithms=algorithms).reason == "algorithm"


def test_what_the_token_says_of_its_own_key_is_ignored():
    honest, attacker = make("ES256"), make("ES256")
    for name, value in (
        ("jwk", attacker.jwk),
        ("jku", "http://127.0.0.1:1/keys"),
        ("x5u", "http://127.0.0.1:1/c"),
        ("x5c", ["MII"]),
    ):
        forged = attacker.token(header={name: value})
        assert refusal(jws.verify, forged, honest.jwk, algorithms=ASYMMETRIC).reason == "signature"
        jws.verify(honest.token(header={name: value}), honest.jwk, algorithms=ASYMMETRIC)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"alg": "none"}, "algorithm"),
        ({"alg": "None"}, "algorithm"),
        ({"alg": "nOnE"}, "algorithm"),
        ({"alg": ""}, "algorithm"),
        ({"alg": ["ES256"]}, "algorithm"),
        ({"alg": "es256"}, "algorithm"),
        ({"alg": "ES256K"}, "algorithm"),
        ({"crit": ["exp"]}, "critical"),
        ({"crit": []}, "critical"),
        ({"b64": False}, "critical"),
        ({"b64": True}, "critical"),
        ({"kid": 7}, "malformed"),
        ({"kid": ""}, "malformed"),
        ({"kid": "k" * 257}, "malformed"),
        ({"kid": "\ud800"}, "malformed"),
        ({"kid": "../../etc/passwd"}, "unknown_key"),
        ({"kid": "key-1\0"}, "unknown_key"),
        ({"typ": 1}, "malformed"),
        ({"x": "y" * 3000}, "too_large"),
    ],
)
def test_headers_that_are_refused(header, reason):
    signer = make("ES256")
    assert refusal(jws.verify, signer.token(header=header), signer.jwk, algorithms=ALGORITHMS).reason == reason


@pytest.mark.parametrize(
    "header",
    [
        b'{"alg":"HS256","alg":"ES256","kid":"key-1"}',
        b'{"alg":"ES256","kid":"key-1","kid":"key-1"}',
        b'{"alg":"ES256","kid":"key-1","x":{"a":1,"a":2}}',
        b'["ES256"]',
        b'"ES256"',
        b"",
        b"{",
        b'{"alg":"ES256","kid":"key-1"}x',
        b'\xef\xbb\xbf{"alg":"ES256","kid":"key-1"}',
        b'{"alg":"ES256","kid":"key-1","n":NaN}',
        b'{"alg":"ES256","kid":"\xff"}',
        b"[" * 1500,
    ],
)
def test_headers_that_are_no_good_json(header):
    signer = make("ES256")
    assert refusal(jws.verify, signer.token(header=header), signer.jwk, algorithms=ALGORITHMS).reason == "malformed"


@pytest.mark.parametrize(
    "token", [None, 7, b"a.b.c", "", ".", "..", "a.b", "a.b.c.d", "....", "é.b.c", "a.b.c", "{}", "a.b.=", "e30..e30"]
)
def test_what_is_no_token(token):
    assert refusal(jws.verify, token, make("ES256").jwk, algorithms=ALGORITHMS).reason in ("malformed", "algorithm")


@pytest.mark.parametrize("token", ["a" * 1_000_000, "." * 1_000_000, "é" * 9_000, "e30." + "a" * 1_000_000])
def test_large_tokens_are_refused_by_their_size_alone(token):
    assert refusal(jws.verify, token, make("ES256").jwk, algorithms=ALGORITHMS).reason == "too_large"


def test_a_signature_has_one_spelling():
    """Unused bits, padding, foreign characters and the other alphabet are other texts, hence other tokens."""
    signer = make("EdDSA")
    token = signer.token()
    last = token[-1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = alphabet[alphabet.index(last) ^ 1]
    for text in (
        token[:-1] + twin,
        token + "==",
        token + "=",
        token + "\n",
        " " + token,
        token + "?",
        token.replace(".", ".\t", 1),
    ):
        assert refusal(jws.verify, text, signer.jwk, algorithms=["EdDSA"]).reason == "malformed"


@given(st.binary(max_size=64))
def test_base64url_round_trip(raw):
    text = b64(raw).encode()
    assert decode_base64url(text) == raw


@given(st.text("ABCab-_+/=?. \n", max_size=12))
def test_base64url_takes_nothing_it_would_not_write(text):
    try:
        raw = decode_base64url(text.encode())
    except ValueError:
        return
    assert b64(raw) == text


@given(st.text(max_size=200))
def test_no_text_is_more_than_a_refusal(text):
    refusal(jws.verify, text, make("HS256").jwk, algorithms=ALGORITHMS)


@given(st.binary(max_size=100), st.binary(max_size=100), st.binary(max_size=100))
def test_no_parts_are_more_than_a_refusal(header, payload, signature):
    token = ".".join(map(b64, (header, payload, signature)))
    refusal(jws.verify, token, make("HS256").jwk, algorithms=ALGORITHMS)


def test_numbers_of_endless_digits_and_deep_nesting_are_refused():
    for text in (b'{"exp":' + b"9" * 5_000 + b"}", b'{"a":' * 3_000 + b"1" + b"}" * 3_000):
        with pytest.raises(ValueError):
            parse_object(text)


# ---- keys ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"use": "enc"},
        {"use": None},
        {"key_ops": ["encrypt"]},
        {"key_ops": ["sign"]},
        {"key_ops": "verify"},
        {"alg": "RSA-OAEP"},
        {"alg": "ES256"},
        {"alg": 5},
        {"kty": "EC"},
        {"kty": ["RSA"]},
        {"kty": "rsa"},
        {"kid": 9},
        {"kid": "x" * 300},
        {"n": None},
        {"n": "AQAB"},
        {"n": number((1 << 8193) + 1)},
        {"e": "AQ"},
        {"e": "Ag"},
        {"e": "AQAA"},
        {"e": number((1 << 64) + 1)},
        {"e": "AQAB="},
        {"n": "not base64url!"},
    ],
)
def test_rsa_keys_that_are_not_used(change):
    keys = KeySet.read({"keys": [make("RS256").jwk | change]})
    assert len(keys) == 0
    assert len(keys.skipped) == 1
    assert "AQAB" not in keys.skipped[0]


@pytest.mark.parametrize(
    "change",
    [
        {"crv": "P-384"},
        {"crv": "secp256k1"},
        {"crv": None},
        {"x": b64(bytes(32))},
        {"x": b64(bytes(31))},
        {"y": "AAAA"},
        {"alg": "ES224"},
    ],
)
def test_curve_keys_that_are_not_used(change):
    assert len(KeySet.read(make("ES256").jwk | change)) == 0


@pytest.mark.parametrize("change", [{"crv": "X25519"}, {"x": "AAAA"}, {"kty": "EC"}, {"alg": "ES256"}])
def test_edwards_keys_that_are_not_used(change):
    assert len(KeySet.read(make("EdDSA").jwk | change)) == 0


def test_a_key_that_a_broken_chip_made_is_not_used():
    """CVE-2017-15361: a modulus that is a power of 65,537 modulo the first primes."""
    primes = [2, *(n for n in range(3, 168, 2) if all(n % d for d in range(3, n, 2)))]
    product = 1
    for prime in primes:
        product *= prime
    modulus = pow(65_537, 12_345, product)
    while modulus.bit_length() < 2_048:
        modulus += product << (2_047 - product.bit_length())
    assert all(modulus % prime in {pow(65_537, i, prime) for i in range(prime)} for prime in primes)
    keys = KeySet.read(make("RS256").jwk | {"n": number(modulus)})
    assert len(keys) == 0
    assert "CVE-2017-15361" in keys.skipped[0]


def test_rsa_keys_of_1024_bits_are_not_used():
    numbers = rsa_private(1024).public_key().public_numbers()
    assert len(KeySet.read({"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e)})) == 0


def test_secrets_are_as_long_as_their_hash():
    for bits in (256, 384, 512):
        algorithms = KeySet.read({"kty": "oct", "k": b64(bytes(bits // 8))}).keys[0].algorithms
        assert algorithms == {f"HS{n}" for n in (256, 384, 512) if n <= bits}
        with pytest.raises(ValueError, match="at least"):
            KeySet.of_secret(bytes(bits // 8 - 1), [f"HS{bits}"])
    assert len(KeySet.read({"kty": "oct", "k": b64(bytes(31))})) == 0
    assert len(KeySet.read({"kty": "oct", "k": ""})) == 0


def test_secrets_and_public_keys_do_not_mix():
    with pytest.raises(KeySetError, match="one kind"):
        KeySet.read({"keys": [make("HS256", "a").jwk, make("ES256", "b").jwk]})


def test_a_kid_that_is_there_twice_names_nobody():
    one, other = make("ES256"), make("ES256")
    keys = KeySet.read([one.jwk, other.jwk, make("ES256", "key-2").jwk])
    assert len(keys) == 1
    for signer in (one, other):
        assert refusal(jws.verify, signer.token(), keys, algorithms=ALGORITHMS).reason == "ambiguous_key"
    broken = one.jwk | {"x": "AAAA"}
    assert refusal(jws.verify, one.token(), [one.jwk, broken], algorithms=ALGORITHMS).reason == "ambiguous_key"
    # The same key twice is one key; kinds of keys that no token could confuse may share a name.
    jws.verify(one.token(), [one.jwk, one.jwk], algorithms=ALGORITHMS)
    rsa = make("RS256")
    for signer in (one, rsa):
        jws.verify(signer.token(), [one.jwk, rsa.jwk], algorithms=ALGORITHMS)


def test_a_token_without_kid_needs_a_single_key():
    one, other = make("ES256", "a"), make("ES256", "b")
    token = one.token(header={"kid": None})
    jws.verify(token, one.jwk, algorithms=ALGORITHMS)
    jws.verify(token, [one.jwk, make("RS256", "r").jwk], algorithms=ALGORITHMS)
    assert refusal(jws.verify, token, [one.jwk, other.jwk], algorithms=ALGORITHMS).reason == "ambiguous_key"
    assert refusal(jws.verify, token, make("RS256").jwk, algorithms=ALGORITHMS).reason == "unknown_key"


def test_a_key_verifies_what_its_alg_says():
    signer = make("PS256", alg="PS512")
    for algorithm in ("PS256", "PS384", "RS512", "RS256"):
        token = type(signer)(algorithm, signer.private, signer.jwk).token()
        assert refusal(jws.verify, token, signer.jwk, algorithms=ALGORITHMS).reason == "algorithm"
    # RFC 7520, figure 20: a longer hash than the key says is the one exception.
    longer = make("PS384", alg="PS256")
    jws.verify(longer.token(), longer.jwk, algorithms=ALGORITHMS)


def test_pss_salts_have_the_length_of_the_hash():
    signer = make("PS256")
    head = b64(b'{"alg":"PS256","kid":"key-1"}') + "." + b64(b"x")
    for salt in (0, 20, 31, 33, 64):
        raw = signer.private.sign(head.encode(), padding.PSS(padding.MGF1(hashes.SHA256()), salt), hashes.SHA256())
        assert refusal(jws.verify, f"{head}.{b64(raw)}", signer.jwk, algorithms=ALGORITHMS).reason == "signature"


@pytest.mark.parametrize(
    "source",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys":{}}',
        b'{"keys":[],"keys":[]}',
        b'{"keys":"x"}',
        b"\xff",
        b" " * 300_000,
        {"key": []},
        {"keys": [{}] * (MAX_KEYS + 1)},
    ],
)
def test_what_is_no_key_set(source):
    with pytest.raises(KeySetError):
        KeySet.read(source)


def test_one_wrong_key_does_not_spoil_the_set():
    good = make("ES256", "good")
    keys = KeySet.read({"keys": [7, None, {}, {"kty": "AKP"}, make("ES256", "enc", use="enc").jwk, good.jwk]})
    assert len(keys) == 1
    assert len(keys.skipped) == 5
    jws.verify(good.token(), keys, algorithms=ALGORITHMS)


def test_a_successor_keeps_the_keys_that_stay():
    stays, goes, comes = (make("ES256", kid) for kid in "abc")
    old = KeySet.read([stays.jwk, goes.jwk])
    kept, gone = old.keys
    new = KeySet.read([stays.jwk, comes.jwk]).succeed(old)
    assert new.keys[0] is kept
    assert (kept.live, gone.live, new.keys[1].live) == (True, False, True)
    # The same kid with other numbers is another key.
    newer = KeySet.read([make("ES256", "a").jwk]).succeed(new)
    assert not kept.live
    assert newer.keys[0].live


# ---- claims ----------------------------------------------------------------------------------------------------


def verifier(signer, **options) -> Verifier:
    return Verifier(signer.jwk, **{"issuer": ISSUER, "audience": AUDIENCE, "algorithms": [signer.algorithm], **options})


def test_a_good_token():
    signer = make("ES256")
    verified = verifier(signer).verify(signer.token(), NOW_S)
    assert verified.claims["sub"] == "u-17"
    assert (verified.issuer, verified.expires_s) == (ISSUER, NOW_S + 600)
    assert verifier(signer).verify_signature(signer.token(b"no claims")).payload == b"no claims"


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"iss": "https://id.example/"}, "issuer"),
        ({"iss": "https://id"}, "issuer"),
        ({"iss": [ISSUER]}, "issuer"),
        ({"iss": None}, "issuer"),
        ({"aud": "billing"}, "audience"),
        ({"aud": []}, "audience"),
        ({"aud": ["billing", "order"]}, "audience"),
        ({"aud": ["orders", 1]}, "audience"),
        ({"aud": {"orders": 1}}, "audience"),
        ({"aud": None}, "audience"),
        ({"aud": ["orders"] * 65}, "audience"),
        ({"exp": NOW_S - 30}, "expired"),
        ({"exp": 0}, "expired"),
        ({"exp": None}, "claims"),
        ({"exp": "1e9"}, "claims"),
        ({"exp": str(NOW_S + 60)}, "claims"),
        ({"exp": NOW_S + 60.5}, "claims"),
        ({"exp": True}, "claims"),
        ({"exp": -1}, "claims"),
        ({"exp": 9_404_000_000_000}, "claims"),  # the year 300,000
        ({"exp": 10**30}, "claims"),
        ({"exp": [NOW_S + 60]}, "claims"),
        ({"nbf": NOW_S + 31}, "not_yet_valid"),
        ({"nbf": "0"}, "claims"),
        ({"nbf": None}, "claims"),
        ({"nbf": False}, "claims"),
        ({"iat": NOW_S + 31}, "not_yet_valid"),
        ({"iat": 1.5}, "claims"),
        ({"iat": 9_404_000_000_000}, "claims"),
    ],
)
def test_claims_that_are_refused(claims, reason):
    signer = make("ES256")
    assert refusal(verifier(signer).verify, signer.token(claims), NOW_S).reason == reason


def test_a_token_without_an_end_is_refused():
    signer = make("ES256")
    claims = json.dumps({"iss": ISSUER, "aud": AUDIENCE}).encode()
    assert refusal(verifier(signer).verify, signer.token(claims), NOW_S).reason == "claims"


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b"{", b'{"iss":"a","iss":"b"}', b'{"exp":1e400}', b'{"exp":NaN}', b"\xff", b'{"a":{"b":1,"b":2}}'],
)
def test_payloads_that_are_no_claims(payload):
    signer = make("ES256")
    assert refusal(verifier(signer).verify, signer.token(payload), NOW_S).reason in ("malformed", "issuer")


def test_time_has_one_leeway_both_ways():
    signer = make("ES256")
    token = signer.token({"exp": NOW_S + 100, "nbf": NOW_S, "iat": NOW_S})
    strict, loose = verifier(signer, leeway_s=0), verifier(signer, leeway_s=30)
    assert strict.verify(token, NOW_S)
    assert strict.verify(token, NOW_S + 99.999)
    assert refusal(strict.verify, token, NOW_S + 100).reason == "expired"
    assert refusal(strict.verify, token, NOW_S - 0.001).reason == "not_yet_valid"
    assert loose.verify(token, NOW_S - 30)
    assert loose.verify(token, NOW_S + 129)
    assert refusal(loose.verify, token, NOW_S + 130).reason == "expired"
    assert refusal(loose.verify, token, NOW_S - 31).reason == "not_yet_valid"
    # A clock ten minutes wrong.
    assert refusal(loose.verify, token, NOW_S - 600).reason == "not_yet_valid"
    assert refusal(loose.verify, token, NOW_S + 600).reason == "expired"


def test_the_type_is_looked_at_when_one_is_asked_for():
    signer = make("ES256")
    typed = verifier(signer, typ="at+jwt")
    assert typed.verify(signer.token(header={"typ": "at+jwt"}), NOW_S)
    assert typed.verify(signer.token(header={"typ": "application/AT+JWT"}), NOW_S)
    for header in ({}, {"typ": "JWT"}, {"typ": "dpop+jwt"}):
        assert refusal(typed.verify, signer.token(header=header), NOW_S).reason == "type"


def test_without_keys_it_is_our_fault():
    signer = make("ES256")
    error = refusal(
        Verifier(None, issuer=ISSUER, audience=AUDIENCE, algorithms=["ES256"]).verify, signer.token(), NOW_S
    )
    assert (error.reason, error.transient) == ("no_keys", True)


@pytest.mark.parametrize(
    "options",
    [
        {"algorithms": []},
        {"algorithms": ["none"]},
        {"algorithms": ["ES256K"]},
        {"issuer": ""},
        {"audience": ""},
        {"audience": []},
    ],
)
def test_a_verifier_that_would_take_anything_cannot_be_made(options):
    with pytest.raises(ValueError):
        verifier(make("ES256"), **options)


def test_an_error_shows_nothing_of_the_token():
    signer = make("ES256")
    for claims, header in (
        ({"iss": "s3cret"}, None),
        ({"aud": "s3cret"}, None),
        ({"exp": "s3cret"}, None),
        (None, {"kid": "s3cret"}),
    ):
        error = refusal(verifier(signer).verify, signer.token(claims, header), NOW_S)
        assert "s3cret" not in f"{error} {error.detail} {error!r}"
