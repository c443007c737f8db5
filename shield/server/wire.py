"""From bytes to requests. What a caller's own program got wrong raises RequestError, which names the field.

A caller is a gateway or service: JSON that cannot be read, a wrong type, a misspelt field or a cost that is
none is its mistake and is answered 400. What its clients state (an address that is none) is for
`Shield.check` to refuse.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar

import msgspec

from shield.core.json_names import surely_unique
from shield.errors import RequestError
from shield.policy.report import found, suggestion
from shield.request import MAX_COST, Request
from shield.server.bounds import MAX_BATCH, MAX_LEASES


class Report(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What became of a request: a receipt, or the request's facts, and how it went.

    `cost`, `bytes` and, of GraphQL, `type_cost` are what it took in the end; `status` is the HTTP status the client
    got.
    """

    receipt: str | None = None
    status: int | None = None
    type_cost: int | None = None
    event: str | None = None


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Concurrency places to give back."""

    leases: list[str]


class Answered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer that whoever repeats the request gets. `retained` false: its body is too large to be handed over."""

    status: int
    headers: dict[str, str | list[str]] = {}
    body_b64: str | None = None
    retained: bool = True


class Ended(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What became of a request that owns its idempotency key."""

    owner: str
    action: str
    response: Answered | None = None

    @property
    def body(self) -> bytes | None:
        """Of the answer; None where it is not handed over. RequestError."""
        answered = self.response
        if answered is None or not answered.retained:
            return None
        try:
            return b64decode(answered.body_b64 or "", validate=True)
        except ValueError:
            raise RequestError("response.body_b64", "not base64") from None


T = TypeVar("T")

_request = msgspec.json.Decoder(Request)
decode_request = _request.decode
_elements = msgspec.json.Decoder(list[msgspec.Raw])
_report = msgspec.json.Decoder(Report)
_release = msgspec.json.Decoder(Release)
_ended = msgspec.json.Decoder(Ended)

# Every `"name":` of a document without escapes. Possessive, so that no input makes it slow.
_names = re.compile(rb'"([^"\\]*+)"\s*+:').findall
ACTIONS: Final = ("complete", "abandon", "extend")
_WHITESPACE: Final = b" \t\r\n"
_LONE_SURROGATE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]..", re.ASCII
)
_AT = re.compile(r"\A(?P<message>.*?)(?: - at `\$(?P<path>.*)`)?\Z", re.DOTALL)
_EXPECTED = re.compile(r"\AExpected `(?P<wanted>[^`]*)`, got `(?P<got>[^`]*)`\Z")
_UNKNOWN = re.compile(r"\AObject contains unknown field `(?P<name>.*)`\Z", re.DOTALL)
_MISSING = re.compile(r"\AObject missing required field `(?P<name>\w+)`\Z")
_BYTE = re.compile(r"\(byte (?P<at>\d+)\)\Z")
_WORDS: Final = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
    "array": "an array",
    "object": "an object",
}


def decode_check(body: bytes) -> Request | list[Request]:
    """One request, or the requests of an array of up to MAX_BATCH, all of them valid. RequestError."""
    try:
        request = decode_request(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if body[:1] != b"{" and body.lstrip(_WHITESPACE)[:1] == b"[":
            return _batch(body)
        request = _decode(_request, body)  # says what is wrong
    _look_for_duplicates(body)
    return request if request.cost is None else _checked(request)


def decode_report(body: bytes) -> Report:
    """A report that says which request it is about. RequestError."""
    report = _checked(_decode(_report, body))
    if report.receipt is None and not _states_facts(report):
        raise RequestError("receipt", "missing: a report needs a receipt, or facts of the request it is about")
    return report


def decode_release(body: bytes) -> list[str]:
    """Up to MAX_LEASES leases. RequestError."""
    leases = _decode(_release, body).leases
    if len(leases) > MAX_LEASES:
        raise RequestError("leases", f"found {len(leases)} leases; allowed: at most {MAX_LEASES}")
    return leases


def decode_ended(body: bytes) -> Ended:
    """How a request ended, with an answer if it was completed. RequestError."""
    ended = _decode(_ended, body)
    if ended.action not in ACTIONS:
        raise RequestError("action", f"found {found(ended.action)}; allowed: {', '.join(ACTIONS)}")
    if (ended.response is None) == (ended.action == "complete"):
        what = "missing: what was answered" if ended.response is None else "found; allowed: only with complete"
        raise RequestError("response", what)
    return ended


def detail_of(error: RequestError) -> str:
    """What is wrong, without the field's name in front."""
    return str(error).removeprefix(f"{error.field}: ")


def _states_facts(report: Report) -> bool:
    return any(getattr(report, name) not in (None, "") for name in Request.__struct_fields__)


def _batch(body: bytes) -> list[Request]:
    elements = _decode_with(_elements.decode, body, "an array of requests")
    if len(elements) > MAX_BATCH:
        raise RequestError("", f"found an array of {len(elements)} requests; allowed: at most {MAX_BATCH}")
    requests = []
    for index, raw in enumerate(elements):
        try:
            requests.append(_checked(_decode(_request, bytes(raw))))
        except RequestError as error:
            path = f"[{index}].{error.field}" if error.field else f"[{index}]"
            raise RequestError(path, detail_of(error)) from None
    return requests


R = TypeVar("R", bound=Request)


def _checked(request: R) -> R:
    cost = request.cost
    if cost is not None and not 0 <= cost <= MAX_COST:
        raise RequestError("cost", f"found {found(cost)}; allowed: a whole number from 0 to {MAX_COST}")
    return request


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    value = _decode_with(decoder.decode, body, "an object")
    _look_for_duplicates(body)
    return value


def _look_for_duplicates(body: bytes) -> None:
    """The decoder keeps the last of two equal names. Whoever reads the first would act on another request than we
    do. Three looks at a valid document, each slower and more exact than the one before.
    """
    if not surely_unique(body) and (b"\\" in body or len(names := _names(body)) != len(set(names))):
        _refuse_duplicates(body)


def _decode_with(decode: Callable[[bytes], T], body: bytes, what: str) -> T:
    try:
        return decode(body)
    except msgspec.ValidationError as error:
        _refuse_invalid(error, body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        _refuse_malformed(error, body, what)
    except RecursionError:
        raise RequestError("", "the JSON is nested too deeply") from None


def _refuse_invalid(error: msgspec.ValidationError, body: bytes) -> NoReturn:
    """JSON, but not of our shape: which field, what was found, what is allowed."""
    parts = _AT.match(str(error))
    assert parts is not None
    message, path = parts["message"], (parts["path"] or "").removeprefix(".")
    if unknown := _UNKNOWN.match(message):
        name = unknown["name"]
        known = Request.__struct_fields__ if not path else ()
        field = f"{path}.{_short(name)}" if path else _short(name)
        raise RequestError(field, f"unknown field{suggestion(name, known)}") from None
    if missing := _MISSING.match(message):
        field = f"{path}.{missing['name']}" if path else missing["name"]
        raise RequestError(field, "missing") from None
    if "[...]" in path:
        path = _culprit(path, body)
    if expected := _EXPECTED.match(message):
        wanted, got = _words(expected["wanted"]), _words(expected["got"])
        raise RequestError(path, f"found {got}; allowed: {wanted}") from None
    raise RequestError(path, message[:1].lower() + message[1:]) from None


def _refuse_malformed(error: Exception, body: bytes, what: str) -> NoReturn:
    """No JSON at all: where it breaks off, and in which field that seems to be."""
    if not body.strip(_WHITESPACE):
        raise RequestError("", f"the body is empty; allowed: {what} in JSON") from None
    try:
        text = body.decode()
    except UnicodeDecodeError as wrong:
        at = wrong.start
        raise RequestError(_name_before(body, at), f"not UTF-8 at byte {at}") from None
    if lone := _LONE_SURROGATE.search(text):
        at = len(text[: lone.start()].encode())
        raise RequestError(
            _name_before(body, at), f"an unpaired surrogate, {lone[0]}, at byte {at}; allowed: Unicode text"
        ) from None
    if place := _BYTE.search(str(error)):
        at = int(place["at"])
        raise RequestError(_name_before(body, at), f"not JSON: unexpected character near byte {at}") from None
    raise RequestError(_name_before(body, len(body)), "not JSON: it ends too early") from None


def _name_before(body: bytes, at: int) -> str:
    names = _names(body[:at])
    return _short(names[-1].decode("utf-8", "replace")) if names else ""


def _culprit(path: str, body: bytes) -> str:
    """`attributes[...]` says that some value of a map is wrong; this says which."""
    name = path.partition("[...]")[0]
    allowed = (str, int, float, bool, type(None)) if name == "attributes" else (str, type(None))
    try:
        members = msgspec.json.decode(body)[name]
        wrong = next(key for key, value in members.items() if not isinstance(value, allowed))
    except (
        msgspec.DecodeError,
        UnicodeDecodeError,
        RecursionError,
        LookupError,
        TypeError,
        AttributeError,
        StopIteration,
    ):
        return name
    return f"{name}.{_short(wrong)}"


def _refuse_duplicates(body: bytes) -> None:
    """The exact and slower look: RequestError where one object has a name twice."""

    def unique(pairs: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise RequestError(_short(name), "is there twice; allowed: once")
            seen.add(name)

    try:
        # Numbers stay text: only names matter here, and converting endless digits takes long.
        json.loads(body, object_pairs_hook=unique, parse_int=str, parse_float=str)
    except RecursionError:
        raise RequestError("", "the JSON is nested too deeply") from None


def _short(name: str) -> str:
    """A name out of the input, fit for a message: printable and no longer than a line."""
    shown = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in name[:64])
    return shown if len(name) <= 64 else shown + "..."


def _words(types: str) -> str:
    return " or ".join(_WORDS.get(one, one) for one in types.split(" | "))
