"""Signed requests: the published examples of each scheme, and whatever must not pass for one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from shield.identity import dpop, http_signature, webhook
from shield.identity.http_signature import SigningKey
from shield.identity.proof import REASONS, ProofError, Window
from shield.identity.structured import InnerList, Parser, write_item, write_list
from shield.identity.webhook import GITHUB, SCHEMES, SLACK, STANDARD, STRIPE, read_secret
from tests.identity.tokens import NOW_S, b64, make

WINDOW = Window(300, 30)


def refusal(call, *args, **options) -> ProofError:
    with pytest.raises(ProofError) as caught:
        call(*args, **options)
    assert caught.value.reason in REASONS
    return caught.value


# ---- webhooks ------------------------------------------------------------------------------------------------------

SLACK_BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar"
    b"&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com"
    b"%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121."
    b"803a0bc887a14d10d2c447fce8b6703c"
)
PUBLISHED = [  # each from its service's own documentation or library
    (
        STANDARD,
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        {
            "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "webhook-timestamp": "1614265330",
            "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        },
        b'{"test": 2432232314}',
        1_614_265_330,
    ),
    (
        SLACK,
        "8f742231b10e8888abcd99yyyzzz85a5",
        {
            "X-Slack-Request-Timestamp": "1531420618",
            "X-Slack-Signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
        },
        SLACK_BODY,
        1_531_420_618,
    ),
    (
        GITHUB,
        "It's a Secret to Everybody",
        {"X-Hub-Signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"},
        b"Hello, World!",
        None,
    ),
]


@pytest.mark.parametrize(
    ("scheme", "secret", "headers", "body", "at"), PUBLISHED, ids=lambda one: getattr(one, "name", "")
)
def test_published_webhooks(scheme, secret, headers, body, at):
    secrets = [read_secret(scheme, secret)]
    proof = webhook.verify(scheme, headers, body, secrets, at or NOW_S)
    assert proof.timestamp_s == at
    assert proof.nonce == headers.get("webhook-id", proof.nonce)
    for wrong in (body + b" ", body[:-1], b""):
        assert refusal(webhook.verify, scheme, headers, wrong, secrets, at or NOW_S).reason == "signature"
    assert refusal(webhook.verify, scheme, headers, body, [b"x" * 32], at or NOW_S).reason == "signature"
    if at is not None:
        for now_s in (at - 301, at + 301):
            assert refusal(webhook.verify, scheme, headers, body, secrets, now_s).reason == "stale"


SECRET = b"0123456789abcdef0123456789abcdef"


def signed(
    scheme, body: bytes = b"{}", *, at: object = NOW_S, id: str = "msg_1", secret: bytes = SECRET
) -> dict[str, str]:
    content = scheme.signed.format(id=id, timestamp=at).encode() + body
    mac = hmac.digest(secret, content, "sha256")
    value = mac.hex() if scheme.encoding == "hex" else base64.b64encode(mac).decode()
    headers = {scheme.signature: f"{scheme.version}{scheme.separator}{value}"}
    if scheme.timestamp == "t":
        headers[scheme.signature] = f"t={at},{headers[scheme.signature]}"
    elif scheme.timestamp is not None:
        headers[scheme.timestamp] = str(at)
    if scheme.id is not None:
        headers[scheme.id] = id
    return headers


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda scheme: scheme.name)
def test_every_scheme_takes_what_it_signs(scheme):
    headers = {name.upper(): value for name, value in signed(scheme).items()}
    proof = webhook.verify(scheme, headers, b"{}", [b"another secret", SECRET], NOW_S)
    assert proof.timestamp_s == (None if scheme is GITHUB else NOW_S)
    # The same capture has the same nonce, whichever secret is the present one.
    assert webhook.verify(scheme, headers, b"{}", [SECRET, b"another secret"], NOW_S) == proof
    other = webhook.verify(scheme, signed(scheme, b"[]", id="msg_2"), b"[]", [SECRET], NOW_S)
    assert other.nonce != proof.nonce


@pytest.mark.parametrize("scheme", [STANDARD, STRIPE, SLACK], ids=lambda scheme: scheme.name)
@pytest.mark.parametrize(
    "at",
    ["1e9", "1763900000.0", "-1", "+1763900000", " 1763900000", "0x10", "01763900000", "", "9" * 13, "٣", "NaN", "1_0"],
)
def test_timestamps_that_are_none(scheme, at):
    error = refusal(webhook.verify, scheme, signed(scheme, at=at), b"{}", [SECRET], NOW_S)
    assert error.reason in ("malformed", "missing", "signature")


def test_the_year_300000_is_no_timestamp():
    assert (
        refusal(webhook.verify, SLACK, signed(SLACK, at=253_402_300_800), b"{}", [SECRET], NOW_S).reason == "malformed"
    )


def test_stripes_future_is_bounded_too():
    assert refusal(webhook.verify, STRIPE, signed(STRIPE, at=NOW_S + 301), b"{}", [SECRET], NOW_S).reason == "stale"
    assert webhook.verify(STRIPE, signed(STRIPE, at=NOW_S + 300), b"{}", [SECRET], NOW_S)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "v1",
        "v1,",
        ",abc",
        "v1 abc",
        "v1,abc",
        "v1,!" + "A" * 43,
        "v2," + "A" * 43 + "=",
        "v1," * 3,
        "v1,AAAA " * 20,
        "x" * 5_000,
    ],
)
def test_signatures_that_are_none(value):
    headers = signed(STANDARD) | {"webhook-signature": value}
    assert refusal(webhook.verify, STANDARD, headers, b"{}", [SECRET], NOW_S).reason in ("malformed", "missing")


@pytest.mark.parametrize("id", ["", "x" * 257, "x" * 10_000, "a\nb", "é"])
def test_ids_that_are_none(id):
    error = refusal(webhook.verify, STANDARD, signed(STANDARD, id=id), b"{}", [SECRET], NOW_S)
    assert error.reason in ("missing", "malformed")


def test_several_signatures_during_a_rotation():
    headers = signed(STANDARD)
    old = signed(STANDARD, secret=b"an old secret")["webhook-signature"]
    headers["webhook-signature"] = f"v1a,unknown {old} {headers['webhook-signature']}"
    assert webhook.verify(STANDARD, headers, b"{}", [SECRET], NOW_S)
    stripe = signed(STRIPE)
    stripe["stripe-signature"] += ",v1=" + "0" * 64 + ",v0=" + "1" * 64
    assert webhook.verify(STRIPE, stripe, b"{}", [SECRET], NOW_S)
    stripe["stripe-signature"] += f",t={NOW_S}"
    assert refusal(webhook.verify, STRIPE, stripe, b"{}", [SECRET], NOW_S).reason == "malformed"


def test_a_field_that_is_there_twice_is_refused():
    headers = signed(SLACK)
    twice = {**headers, "x-slack-signature": [headers["x-slack-signature"]] * 2}
    assert refusal(webhook.verify, SLACK, twice, b"{}", [SECRET], NOW_S).reason == "malformed"
    cases = {**headers, "X-SLACK-SIGNATURE": headers["x-slack-signature"]}
    assert refusal(webhook.verify, SLACK, cases, b"{}", [SECRET], NOW_S).reason == "malformed"


def test_secrets_that_are_none():
    for scheme, text in ((STANDARD, "whsec_!"), (STANDARD, "whsec_AAAA"), (STRIPE, "short"), (GITHUB, "x" * 257)):
        with pytest.raises(ValueError) as caught:
            read_secret(scheme, text)
        assert text not in str(caught.value)
    for secrets in ([], [SECRET] * 9):
        with pytest.raises(ValueError, match="1 to 8"):
            webhook.verify(GITHUB, {}, b"", secrets, NOW_S)


@given(st.sampled_from(list(SCHEMES.values())), st.text(max_size=80))
def test_no_header_is_more_than_a_refusal(scheme, text):
    refusal(webhook.verify, scheme, signed(scheme) | {scheme.signature: text}, b"{}", [SECRET], NOW_S)


# ---- DPoP ----------------------------------------------------------------------------------------------------------

# RFC 9449, figures 2 and 12, and the thumbprint of figure 9.
TOKEN_PROOF = (
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQy"
    "VVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiIt"
    "QndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwiaWF0IjoxNTYyMjYyNjE2"
    "fQ.2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg"
)
RESOURCE_PROOF = (
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJoRjQy"
    "VVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19.eyJqdGkiOiJl"
    "MWozVl9iS2ljOC1MQUVCIiwiaHRtIjoiR0VUIiwiaHR1IjoiaHR0cHM6Ly9yZXNvdXJjZS5leGFtcGxlLm9yZy9wcm90ZWN0ZWRyZXNvdXJjZSIsImlh"
    "dCI6MTU2MjI2MjYxOCwiYXRoIjoiZlVIeU8ycjJaM0RaNTNFc05yV0JiMHhXWG9hTnk1OUlpS0NBcWtzbVFFbyJ9.2oW9RP35yRqzhrtNP86L-Ey71EOp"
    "txRimPPToA1plemAgR6pxHF8y6-yqyVnmcw6Fy1dqd-jfxSYoMxhAJpLjA"
)
ACCESS_TOKEN = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"
THUMBPRINT = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"


def test_published_proofs():
    proof = dpop.verify(
        [TOKEN_PROOF], method="POST", url="https://server.example.com/token", now_s=1_562_262_616, window=WINDOW
    )
    assert (proof.nonce, proof.timestamp_s, proof.signer) == ("-BwC3ESc6acc2lTc", 1_562_262_616, THUMBPRINT)
    proof = dpop.verify(
        [RESOURCE_PROOF],
        method="GET",
        url="https://resource.example.org/protectedresource",
        now_s=1_562_262_618,
        window=WINDOW,
        access_token=ACCESS_TOKEN,
        bound_to=THUMBPRINT,
    )
    assert proof.nonce == "e1j3V_bKic8-LAEB"


URL = "https://api.example/orders/9"
SIGNER = make("ES256", None)


def proof_of(claims=None, header=None, signer=SIGNER) -> str:
    stated = {"jti": "j-1", "htm": "POST", "htu": URL, "iat": NOW_S} | (claims or {})
    stated = {name: value for name, value in stated.items() if value is not None}
    head = {"typ": "dpop+jwt", "jwk": signer.jwk, "kid": None} | (header or {})
    return signer.token(json.dumps(stated).encode(), head)


def check(*proofs: str, **options):
    defaults = {"method": "POST", "url": URL, "now_s": NOW_S, "window": WINDOW}
    return dpop.verify(list(proofs), **{**defaults, **options})


@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "PS256", "EdDSA"])
def test_a_good_proof(algorithm):
    signer = make(algorithm, None)
    proof = check(proof_of(signer=signer))
    assert (proof.nonce, proof.timestamp_s) == ("j-1", NOW_S)
    assert proof.signer == dpop.thumbprint_of(signer.jwk)


def test_check_1_one_field():
    assert refusal(check).reason == "missing"
    assert refusal(check, proof_of(), proof_of()).reason == "malformed"


@pytest.mark.parametrize("text", ["", "a.b.c", "x" * 5_000, proof_of() + ", " + proof_of(), proof_of() + "="])
def test_check_2_a_well_formed_token(text):
    assert refusal(check, text).reason == "malformed"


@pytest.mark.parametrize("name", ["jti", "htm", "htu", "iat"])
@pytest.mark.parametrize("value", [None, "", 7.5, True, [], {}])
def test_check_3_its_claims(name, value):
    assert refusal(check, proof_of({name: value})).reason == "malformed"


@pytest.mark.parametrize("jti", ["x" * 257, "x" * 1_000, "a\nb", "é"])
def test_check_3_a_jti_is_short(jti):
    assert refusal(check, proof_of({"jti": jti})).reason == "malformed"


@pytest.mark.parametrize("typ", [None, "JWT", "dpop", "DPOP+JWT", "application/dpop+jwt"])
def test_check_4_its_type(typ):
    assert refusal(check, proof_of(header={"typ": typ})).reason == "malformed"


def test_check_5_its_algorithm():
    assert refusal(check, proof_of(), algorithms=["EdDSA"]).reason == "malformed"
    shared = make("HS256", None)
    assert refusal(check, proof_of(signer=shared), algorithms=["HS256"]).reason == "malformed"
    assert refusal(check, proof_of(header={"alg": "none"})).reason == "malformed"


def test_check_6_its_signature():
    other = make("ES256", None)
    assert refusal(check, proof_of(header={"jwk": other.jwk})).reason == "signature"
    assert refusal(check, proof_of(header={"jwk": make("ES384", None).jwk})).reason == "signature"
    assert refusal(check, proof_of()[:-8] + "AAAAAAAA").reason in ("signature", "malformed")


@pytest.mark.parametrize(
    "jwk",
    [
        None,
        "x",
        [],
        {},
        SIGNER.jwk | {"d": "AA"},
        SIGNER.jwk | {"x": "AAAA"},
        SIGNER.jwk | {"use": "enc"},
        {"kty": "oct", "k": "AA"},
    ],
)
def test_check_7_its_key_is_a_public_one(jwk):
    assert refusal(check, proof_of(header={"jwk": jwk})).reason == "malformed"


def test_check_8_this_method():
    for method in ("GET", "post", "POST "):
        assert refusal(check, proof_of(), method=method).reason == "mismatch"


@pytest.mark.parametrize(
    ("htu", "same"),
    [
        (URL, True),
        ("HTTPS://API.EXAMPLE:443/orders/9", True),
        (URL + "?x=1#f", True),
        ("https://api.example/orders/%39", True),
        ("https://api.example/a/../orders/./9", True),
        ("https://api.example/orders/9/", False),
        ("https://api.example/Orders/9", False),
        ("http://api.example/orders/9", False),
        ("https://api.example:8443/orders/9", False),
        ("https://api.example.evil/orders/9", False),
        ("https://api.example@evil/orders/9", False),
        ("/orders/9", False),
        ("https://[", False),
        ("https://api.example:x/orders/9", False),
        ("ftp://api.example/orders/9", False),
        ("https://api.example/orders%2f9", False),
    ],
)
def test_check_9_this_url(htu, same):
    if same:
        assert check(proof_of({"htu": htu}))
    else:
        assert refusal(check, proof_of({"htu": htu})).reason in ("mismatch", "malformed")


def test_escapes_that_mean_something_are_kept():
    assert dpop.normalised("https://a/b%2fc") == dpop.normalised("https://a/b%2Fc")
    assert dpop.normalised("https://a/b%2fc") != dpop.normalised("https://a/b/c")
    assert dpop.normalised("https://a") == dpop.normalised("https://a/")
    assert dpop.normalised("https://a/..") == dpop.normalised("https://a/")


def test_check_10_a_nonce_of_this_servers():
    assert check(proof_of({"nonce": "n-1"}), nonces={"n-1"})
    for nonce in (None, "n-2", ["n-1"], 1):
        error = refusal(check, proof_of({"nonce": nonce}), nonces={"n-1"})
        assert "use_dpop_nonce" in error.detail


def test_check_11_now():
    assert check(proof_of(), now_s=NOW_S + 300)
    assert check(proof_of(), now_s=NOW_S - 30)
    for now_s in (NOW_S + 301, NOW_S - 31, NOW_S - 600, NOW_S + 600):
        assert refusal(check, proof_of(), now_s=now_s).reason == "stale"
    assert refusal(check, proof_of({"iat": 9_404_000_000_000})).reason == "malformed"


def test_check_12_this_token_by_its_key():
    ath = b64(hashlib.sha256(b"token-1").digest())
    mine = dpop.thumbprint_of(SIGNER.jwk)
    assert check(proof_of({"ath": ath}), access_token="token-1", bound_to=mine)
    for claims, token, bound_to in (
        ({}, "token-1", mine),
        ({"ath": ath}, "token-2", mine),
        ({"ath": [ath]}, "token-1", mine),
        ({"ath": "\ud800"}, "token-1", mine),
        ({"ath": ath}, "token-1", "another thumbprint"),
    ):
        assert refusal(check, proof_of(claims), access_token=token, bound_to=bound_to).reason == "mismatch"
    with pytest.raises(ValueError, match="go together"):
        check(proof_of(), access_token="token-1")


# ---- HTTP message signatures ---------------------------------------------------------------------------------------

# RFC 9421, appendix B: the request of B.2, the keys of B.1.4 and B.1.5, the signatures of B.2.5 and B.2.6.
BODY = b'{"hello": "world"}'
PUBLISHED_HEADERS = {
    "Host": "example.com",
    "Date": "Tue, 20 Apr 2021 02:07:55 GMT",
    "Content-Type": "application/json",
    "Content-Digest": "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BN"
    "NyealdVLvRwEmTHWXvJwew==:",
    "Content-Length": "18",
}
PUBLISHED_KEYS = {
    "test-shared-secret": SigningKey(
        "hmac-sha256",
        base64.b64decode("uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ=="),
    ),
    "test-key-ed25519": SigningKey("ed25519", base64.b64decode("JrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=")),
}


@pytest.mark.parametrize(
    ("described", "signature", "covers"),
    [
        (
            'sig-b25=("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret"',
            "sig-b25=:pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=:",
            ("@authority", "date"),
        ),
        (
            'sig-b26=("date" "@method" "@path" "@authority" "content-type" "content-length")'
            ';created=1618884473;keyid="test-key-ed25519"',
            "sig-b26=:wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==:",
            http_signature.REQUIRED,
        ),
    ],
)
def test_published_signatures(described, signature, covers):
    headers = {**PUBLISHED_HEADERS, "Signature-Input": described, "Signature": signature}
    url = "https://example.com/foo?param=Value&Pet=dog"
    request = http_signature.Request("POST", url, headers)
    proof = http_signature.verify(request, PUBLISHED_KEYS, 1_618_884_473, window=WINDOW, required=covers)
    assert proof.timestamp_s == 1_618_884_473
    changed = http_signature.Request("POST", url.replace("example.com", "example.org"), headers)
    error = refusal(http_signature.verify, changed, PUBLISHED_KEYS, 1_618_884_473, window=WINDOW, required=covers)
    assert error.reason == "signature"
    with_body = http_signature.Request("POST", url, headers, BODY)
    error = refusal(http_signature.verify, with_body, PUBLISHED_KEYS, 1_618_884_473, window=WINDOW, required=covers)
    assert error.detail == "Signature-Input: it does not cover content-digest"


PRIVATE = Ed25519PrivateKey.generate()
KEYS = {
    "secret": SigningKey("hmac-sha256", SECRET),
    "ed": SigningKey(
        "ed25519", PRIVATE.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    ),
}
DIGEST = f"sha-256=:{base64.b64encode(hashlib.sha256(BODY).digest()).decode()}:"
LINES = {
    '"@method"': "POST",
    '"@authority"': "api.example",
    '"@path"': "/orders/9",
    '"@query"': "?x=1&y=",
    '"@scheme"': "https",
    '"@target-uri"': "https://api.example/orders/9?x=1&y=",
    '"@request-target"': "/orders/9?x=1&y=",
    '"@query-param";name="x"': "1",
    '"content-digest"': DIGEST,
    '"x-list"': "a, b, c d",
}
ALL = '"@method" "@authority" "@path" "content-digest"'


def sign(components=ALL, params=f';created={NOW_S};keyid="secret"', key="secret", lines=LINES) -> dict:
    """The headers of a request signed over these components, by a base written here from the RFC."""
    described = f"({components}){params}"
    names = [name for name in components.replace('" "', '"\n"').split("\n") if name]
    base = "\n".join([*(f"{name}: {lines[name]}" for name in names), f'"@signature-params": {described}']).encode()
    raw = hmac.digest(SECRET, base, "sha256") if key == "secret" else PRIVATE.sign(base)
    return {
        "Content-Digest": DIGEST,
        "X-List": ["a", "b,  c d".replace(",  ", ", ")],
        "Signature-Input": f"sig={described}",
        "Signature": f"sig=:{base64.b64encode(raw).decode()}:",
    }


def asked(headers, **options):
    facts = {"method": "POST", "url": "https://API.example:443/orders/9?x=1&y=", "body": BODY}
    given = {name: options.pop(name) for name in list(options) if name in facts}
    request = http_signature.Request(headers=headers, **{**facts, **given})
    return http_signature.verify(request, KEYS, options.pop("now_s", NOW_S), window=WINDOW, **options)


@pytest.mark.parametrize(("key", "keyid"), [("secret", "secret"), ("private", "ed")])
def test_a_good_signature(key, keyid):
    params = f';created={NOW_S};nonce="n-1";keyid="{keyid}"'
    proof = asked(sign(params=params, key=key))
    assert (proof.nonce, proof.timestamp_s, proof.signer) == ("n-1", NOW_S, keyid)
    without = asked(sign(params=f';keyid="{keyid}";created={NOW_S}', key=key))
    assert len(without.nonce) in (64, 128)


@pytest.mark.parametrize(
    "more", ['"@query"', '"@scheme"', '"@request-target"', '"@query-param";name="x"', '"x-list"', '"@target-uri"']
)
def test_components(more):
    assert asked(sign(f"{ALL} {more}"))
    assert asked(sign('"@method" "@target-uri" "content-digest"'))


def test_a_signature_must_cover_what_matters():
    for components in ("", '"@method"', '"@method" "@path" "content-digest"', '"@method" "@authority" "@path"'):
        assert refusal(asked, sign(components)).reason == "mismatch"
    assert asked(sign('"@method" "@authority" "@path"'), body=b"")
    assert refusal(asked, sign(), required=("@method", "authorization")).reason == "mismatch"


def test_the_digest_is_compared_with_the_body():
    for body in (b"{}", BODY + b" "):
        assert refusal(asked, sign(), body=body).reason == "mismatch"
    assert refusal(asked, sign(), body=None).reason == "mismatch"
    for digest in ("md5=:AA==:", "sha-256=:AAAA:", 'sha-256="x"', "sha-256", "?1"):
        lines = LINES | {'"content-digest"': digest}
        error = refusal(asked, sign(lines=lines) | {"Content-Digest": digest})
        assert error.reason in ("mismatch", "malformed")


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        (';keyid="secret"', "missing"),
        (f';created={NOW_S - 301};keyid="secret"', "stale"),
        (f';created={NOW_S + 31};keyid="secret"', "stale"),
        (f';created={NOW_S};expires={NOW_S};keyid="secret"', "stale"),
        (f';created="{NOW_S}";keyid="secret"', "malformed"),
        (';created=-1;keyid="secret"', "malformed"),
        (';created=253402300800;keyid="secret"', "malformed"),
        (f';created={NOW_S}.5;keyid="secret"', "malformed"),
        (';created=1e9;keyid="secret"', "malformed"),
        (f';created={NOW_S};keyid="unknown"', "unknown_key"),
        (f";created={NOW_S}", "unknown_key"),
        (f";created={NOW_S};keyid=7", "unknown_key"),
        (f';created={NOW_S};keyid="ed"', "signature"),
        (f';created={NOW_S};keyid="secret";alg="ed25519"', "mismatch"),
        (f';created={NOW_S};keyid="secret";alg=hmac', "malformed"),
        (f';created={NOW_S};keyid="secret";nonce=""', "malformed"),
        (f';created={NOW_S};keyid="secret";nonce=5', "malformed"),
        (f';created={NOW_S};keyid="secret";nonce="{"n" * 257}"', "malformed"),
        (f';created={NOW_S};keyid="secret";x=1', "malformed"),
        (f';created={NOW_S};created={NOW_S};keyid="secret"', "malformed"),
    ],
)
def test_parameters_that_are_refused(params, reason):
    assert refusal(asked, sign(params=params)).reason == reason


@pytest.mark.parametrize(
    "components",
    [
        '"@method" "@method"',
        '"@status"',
        '"@nothing"',
        '"@method";req',
        '"X-List"',
        '"x-absent"',
        '"x-list";sf',
        '"@query-param";name="z"',
        "5",
        '"@query-param"',
    ],
)
def test_components_that_are_refused(components):
    lines = {**LINES, **dict.fromkeys(components.split(" "), "POST")}
    error = refusal(asked, sign(components, lines=lines), required=(), body=b"")
    assert error.reason in ("malformed", "mismatch")


def test_a_line_break_in_a_field_is_no_line_of_the_base():
    smuggled = 'a\n"@path": /admin'
    lines = LINES | {'"x-list"': smuggled}
    for value in (smuggled, smuggled.replace("\n", "\r\n"), "a\rb", "é"):
        error = refusal(asked, sign(f'{ALL} "x-list"', lines=lines) | {"X-List": value})
        assert error.reason in ("malformed", "signature")


@pytest.mark.parametrize(
    "change",
    [
        {"Signature": ""},
        {"Signature-Input": ""},
        {"Signature": "sig=AAAA"},
        {"Signature": "sig=:A:"},
        {"Signature": "sig=:AB==:"},
        {"Signature": "other=:AAAA:"},
        {"Signature": "sig=:AAAA:, sig=:AAAA:"},
        {"Signature-Input": 'sig="x"'},
        {"Signature-Input": "sig=("},
        {"Signature-Input": "sig=();a=("},
        {"Signature-Input": "(" * 9_000},
        {"Signature-Input": "sig=(" + '"a" ' * 40 + ");keyid=" + '"secret"' + f";created={NOW_S}"},
        {"Signature-Input": ", ".join(f"s{n}=()" for n in range(9))},
        {"Signature": ["sig=:AAAA:", "x=:AAAA:", "sig=:AAAA:"]},
    ],
)
def test_fields_that_are_refused(change):
    assert refusal(asked, sign() | change, required=()).reason in ("malformed", "missing", "signature")


def test_only_signatures_with_the_tag_count():
    tagged = sign(params=f';created={NOW_S};keyid="secret";tag="orders"')
    assert asked(tagged, tag="orders")
    assert refusal(asked, tagged, tag="billing").reason == "unknown_key"
    assert refusal(asked, sign(), tag="orders").reason == "unknown_key"


def test_one_of_several_signatures():
    mine = sign()
    both = mine | {
        "Signature-Input": ['proxy=("@method");created=1;keyid="theirs"', mine["Signature-Input"]],
        "Signature": [mine["Signature"], "proxy=:AAAA:"],
    }
    assert asked(both).signer == "secret"


@pytest.mark.parametrize(
    ("algorithm", "material"), [("hmac-sha256", b"short"), ("ed25519", b"x" * 31), ("rsa-pss-sha512", b"x" * 32)]
)
def test_keys_that_are_none(algorithm, material):
    with pytest.raises(ValueError):
        SigningKey(algorithm, material)


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_signature_fields_are_more_than_a_refusal(described, signature):
    refusal(asked, {"Signature-Input": described, "Signature": signature})


# ---- structured fields ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("a=()", "()"),
        ('a=( "b"   "c" );x;y=?1;z=?0', '("b" "c");x;y;z=?0'),
        ('a=("\\"" "\\\\");n=-0', '("\\"" "\\\\");n=0'),
        ('a=("b";k=:AQ==: 5);t="x"', '("b";k=:AQ==: 5);t="x"'),
    ],
)
def test_lists_are_written_canonically(text, canonical):
    member = Parser(text).dictionary()["a"]
    assert isinstance(member, InnerList)
    assert write_list(member) == canonical


@pytest.mark.parametrize("text", ["a=1, b=:AQ==:;x=?0, c, d=?0", "  a=1  ", "a=1\t,\tb=2"])
def test_dictionaries(text):
    members = Parser(text).dictionary()
    again = ", ".join(f"{name}={write_item(item)}" for name, item in members.items())
    assert Parser(again).dictionary() == members


@pytest.mark.parametrize(
    "text",
    [
        "A=1",
        "a=",
        "a=1,",
        "a=1 b=2",
        "a=1,,b=2",
        ",a",
        "a=1.5",
        "a=tok",
        "a=1234567890123456",
        'a="é"',
        'a="x',
        'a="\\x"',
        "a=?2",
        "a=:*:",
        "a=:AB==:",
        "a=:AQ:",
        "a=1;",
        "a=1;B",
        "a=1;b=1;b=2",
        'a=("b""c")',
        "a=((1))",
        "a=1, a=2",
        "=1",
        "a =1",
    ],
)
def test_what_is_no_structured_field(text):
    with pytest.raises(ValueError):
        Parser(text).dictionary()


@given(st.text(st.sampled_from('ab=;,()":?01 \\\t'), max_size=30))
def test_the_parser_never_fails_otherwise(text):
    try:
        members = Parser(text).dictionary()
    except ValueError:
        return
    for member in members.values():
        assert (write_list if isinstance(member, InnerList) else write_item)(member)
