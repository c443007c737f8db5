"""HTTP Message Signatures (RFC 9421) of requests, by HMAC-SHA256 and Ed25519.

    verify(request, keys, now_s, window=Window(300, 30)) -> Proof

A signature covers what its Signature-Input says it covers, so what it must cover is said here: one over nothing could
be replayed on anything. By default method, authority and path, and the body's digest where there is a body, which is
then compared with the body. The key's algorithm is the key's, whatever `alg` says.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, quote_plus, urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shield.identity.jwt import MAX_DATE_S
from shield.identity.proof import Headers, Proof, ProofError, Window, fields_of, nonce_of
from shield.identity.structured import InnerList, Item, Params, Parser, write_item, write_list

HMAC_SHA256: Final = "hmac-sha256"
ED25519: Final = "ed25519"
MIN_SECRET_BYTES: Final = 16
MAX_FIELD_CHARS: Final = 8_192
"""Of Signature-Input and of Signature, all values together."""
MAX_SIGNATURES: Final = 8
"""A client's, and a few of intermediaries."""
MAX_COMPONENTS: Final = 32
REQUIRED: Final = ("@method", "@authority", "@path")
"""What every signature must cover, unless the caller says otherwise. @target-uri covers the last two."""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_DIGESTS: Final = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}
_FOLD: Final = re.compile(r"[ \t]*\r?\n[ \t]+")
_PARAMETERS: Final = frozenset({"created", "expires", "nonce", "alg", "keyid", "tag"})
_IMPLIED: Final = {"@target-uri": frozenset({"@scheme", "@authority", "@path", "@query"})}


@dataclass(frozen=True, slots=True)
class Request:
    """What was signed. `url` is the whole target URI as the client meant it, `headers` all fields, `body` the bytes
    that arrived, None where nobody has them.
    """

    method: str
    url: str
    headers: Headers
    body: bytes | None = None


class SigningKey:
    """A key that requests are verified with: a secret for hmac-sha256, or the 32 bytes of an Ed25519 public key."""

    __slots__ = ("_material", "algorithm")

    def __init__(self, algorithm: str, material: bytes) -> None:
        """ValueError for another algorithm and for material that is no key of it."""
        self.algorithm = algorithm
        self._material: bytes | Ed25519PublicKey = material
        if algorithm == ED25519:
            if len(material) != 32:
                raise ValueError(f"an Ed25519 public key has 32 bytes, this one {len(material)}")
            self._material = Ed25519PublicKey.from_public_bytes(material)
        elif algorithm != HMAC_SHA256:
            raise ValueError(f"found {algorithm[:64]!r}; allowed: {HMAC_SHA256} and {ED25519}")
        elif len(material) < MIN_SECRET_BYTES:
            raise ValueError(f"a secret has at least {MIN_SECRET_BYTES} bytes, this one {len(material)}")

    def verifies(self, signed: bytes, signature: bytes) -> bool:
        """Whether it is this key's signature."""
        if isinstance(self._material, bytes):
            return hmac.compare_digest(hmac.digest(self._material, signed, "sha256"), signature)
        try:
            self._material.verify(signature, signed)
        except InvalidSignature:
            return False
        return True


def verify(
    request: Request,
    keys: Mapping[str, SigningKey],
    now_s: float,
    *,
    window: Window,
    required: Collection[str] = REQUIRED,
    tag: str | None = None,
) -> Proof:
    """What a request's signatures prove. `keys` by their keyid; `tag`: only signatures with it count.

    The first signature by a known key decides. ProofError for a request that has none, or whose signature is wrong,
    covers too little, or is too old. The nonce is the signature's own, or else the signature: of both kinds of key
    there is one for one content.
    """
    fields = fields_of(request.headers)
    inputs, signatures = (_dictionary(fields, name) for name in ("signature-input", "signature"))
    for label, described in inputs.items():
        if not isinstance(described, InnerList):
            raise ProofError("malformed", "Signature-Input: a member is no list of components")
        name = described.params.get("keyid")
        key = keys.get(name) if isinstance(name, str) else None
        if key is None or (tag is not None and described.params.get("tag") != tag):
            continue
        signature = signatures.get(label)
        if not isinstance(signature, Item) or not isinstance(signature.value, bytes):
            raise ProofError("malformed", "Signature: no bytes for a member of Signature-Input")
        return _verify_one(request, fields, described, signature.value, key, str(name), now_s, window, required)
    raise ProofError("unknown_key", "Signature-Input: no signature by a key that is known here")


def _dictionary(fields: Mapping[str, list[str]], name: str) -> dict[str, Item | InnerList]:
    text = ", ".join(fields.get(name, ()))
    if not text.strip():
        raise ProofError("missing", f"{name}: missing")
    if len(text) > MAX_FIELD_CHARS:
        raise ProofError("malformed", f"{name}: more than {MAX_FIELD_CHARS:,} characters")
    try:
        members = Parser(text).dictionary()
    except ValueError as error:
        raise ProofError("malformed", f"{name}: no structured field: {error}") from None
    if len(members) > MAX_SIGNATURES:
        raise ProofError("malformed", f"{name}: more than {MAX_SIGNATURES} signatures")
    return members


def _verify_one(
    request: Request,
    fields: Mapping[str, list[str]],
    described: InnerList,
    signature: bytes,
    key: SigningKey,
    keyid: str,
    now_s: float,
    window: Window,
    required: Collection[str],
) -> Proof:
    created_s, expires_s, nonce = _parameters(described.params, key)
    covered = _covered(described)
    wanted = set(required) | ({"content-digest"} if request.body else set())
    implied = covered.union(*(_IMPLIED.get(name, frozenset()) for name in covered))
    if missing := sorted(wanted - implied):
        raise ProofError("mismatch", f"Signature-Input: it does not cover {', '.join(missing)}")
    signed = _base(request, fields, described)
    if not key.verifies(signed.encode(), signature):
        raise ProofError("signature", "Signature: it is not that of its key")
    if "content-digest" in covered:
        _check_digest(fields, request.body)
    window.check(created_s, now_s)
    if expires_s is not None and now_s >= expires_s:
        raise ProofError("stale", "Signature-Input: it has expired")
    return Proof(nonce if nonce is not None else signature.hex(), created_s, keyid)


def _parameters(params: Params, key: SigningKey) -> tuple[int, int | None, str | None]:
    if unknown := set(params) - _PARAMETERS:
        raise ProofError("malformed", f"Signature-Input: {len(unknown)} parameters that are not known here")
    dates = []
    for name in ("created", "expires"):
        value = params.get(name)
        if value is not None and (type(value) is not int or not 0 <= value <= MAX_DATE_S):
            raise ProofError("malformed", f"Signature-Input: {name}: allowed: Unix time in whole seconds")
        dates.append(value)
    created_s, expires_s = dates
    if not isinstance(created_s, int):
        raise ProofError("missing", "Signature-Input: created: missing; nobody knows how old it is")
    if params.get("alg", key.algorithm) != key.algorithm:
        raise ProofError("mismatch", "Signature-Input: alg is not the key's algorithm")
    nonce = params.get("nonce")
    if nonce is not None and not isinstance(nonce, str):
        raise ProofError("malformed", "Signature-Input: nonce: allowed: text")
    expires = expires_s if isinstance(expires_s, int) else None
    return created_s, expires, None if nonce is None else nonce_of(nonce, "Signature-Input: nonce")


def _covered(described: InnerList) -> set[str]:
    """The names of the components that are covered as a whole."""
    if len(described.items) > MAX_COMPONENTS:
        raise ProofError("malformed", f"Signature-Input: more than {MAX_COMPONENTS} components")
    seen: set[str] = set()
    covered: set[str] = set()
    for item in described.items:
        if not isinstance(item.value, str) or item.value != item.value.lower():
            raise ProofError("malformed", "Signature-Input: a component is no name in lower case")
        written = write_item(item)
        if written in seen:
            raise ProofError("malformed", "Signature-Input: a component is there twice")
        seen.add(written)
        if not item.params:
            covered.add(item.value)
    return covered


def _base(request: Request, fields: Mapping[str, list[str]], described: InnerList) -> str:
    """The signature base, RFC 9421, 2.5."""
    lines = [f"{write_item(item)}: {_value(request, fields, item)}" for item in described.items]
    return "\n".join([*lines, f'"@signature-params": {write_list(described)}'])


def _value(request: Request, fields: Mapping[str, list[str]], item: Item) -> str:
    name = str(item.value)
    if name == "@query-param" and set(item.params) == {"name"}:
        return _query_parameter(request, item.params["name"])
    if item.params:
        raise ProofError("malformed", "Signature-Input: a component has parameters that are not known here")
    if name.startswith("@"):
        return _derived(request, name)
    values = fields.get(name)
    if not values:
        raise ProofError("mismatch", "Signature-Input: it covers a field that is not there")
    # A line break in a value would be a line of the signature base.
    joined = ", ".join(_FOLD.sub(" ", value).strip(" \t") for value in values)
    if "\n" in joined or "\r" in joined or not joined.isascii():
        raise ProofError("malformed", "a covered field is not plain ASCII on one line")
    return joined


def _derived(request: Request, name: str) -> str:
    """RFC 9421, 2.2."""
    try:
        parts = urlsplit(request.url)
        port = parts.port
    except ValueError:
        raise ProofError("malformed", "the request's URL is none") from None
    scheme, host = parts.scheme.lower(), (parts.hostname or "").lower()
    if ":" in host:
        host = f"[{host}]"
    authority = host if port is None or port == _DEFAULT_PORTS.get(scheme) else f"{host}:{port}"
    path = parts.path or "/"
    query = f"?{parts.query}" if parts.query or request.url.partition("#")[0].endswith("?") else ""
    found = {
        "@method": request.method,
        "@scheme": scheme,
        "@authority": authority,
        "@path": path,
        "@query": query or "?",
        "@target-uri": f"{scheme}://{authority}{path}{query}",
        "@request-target": path + query,
    }.get(name)
    if found is None:
        raise ProofError("malformed", "Signature-Input: it covers a part that requests do not have")
    return found


def _query_parameter(request: Request, wanted: object) -> str:
    """RFC 9421, 2.2.8: the one value of a parameter, encoded again the one way there is."""
    pairs = parse_qsl(urlsplit(request.url).query, keep_blank_values=True, max_num_fields=256)
    values = [value for name, value in pairs if _encoded(name) == wanted]
    if len(values) != 1:
        raise ProofError("mismatch", "Signature-Input: it covers a query parameter that is not there once")
    return _encoded(values[0])


def _encoded(text: str) -> str:
    return quote_plus(text, safe="*").replace("+", "%20").replace("~", "%7E")


def _check_digest(fields: Mapping[str, list[str]], body: bytes | None) -> None:
    """RFC 9530: every digest that is known here must be the body's, and one must be."""
    if body is None:
        raise ProofError("mismatch", "content-digest: the body is not at hand")
    members = _dictionary(fields, "content-digest")
    known = [(name, item) for name, item in members.items() if name in _DIGESTS]
    if not known:
        raise ProofError("mismatch", f"content-digest: allowed: {' and '.join(_DIGESTS)}")
    for name, item in known:
        value = item.value if isinstance(item, Item) else None
        if not isinstance(value, bytes) or not hmac.compare_digest(value, _DIGESTS[name](body).digest()):
            raise ProofError("mismatch", "content-digest: it is not the body's")
