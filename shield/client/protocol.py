"""What clients of the endpoint say and hear, without a socket: calls become bytes, answers become values or errors.

    Call -> POST path, body -> (status, body) -> Call.read -> value

Whether nobody answered, or somebody who is no shield, is `Unreachable`, and for a check the client's `when_unreachable`
decides. What the caller got wrong (a misspelt field, a missing token) is an error always: it would be wrong again.
"""

from __future__ import annotations

import json
import ssl
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar
from urllib.parse import quote, unquote, urlsplit

import msgspec

from shield.answer import HeaderFields, StoredAnswer, pairs_of
from shield.errors import ReceiptError, RequestError, ShieldError
from shield.request import Request

T = TypeVar("T")
WhenUnreachable = Literal["raise", "allow", "deny"]

MAX_BATCH: Final = 256
"""Requests of one `check_many`: the endpoint's own bound."""
MAX_ANSWER_BYTES: Final = 32 * 1_048_576
"""An answer is not read further: a batch of stored answers may be long, what is no shield's answer longer."""
MAX_KEPT_BYTES: Final = 1_048_576
"""A longer body is not handed over to be kept: it would not go into the endpoint's own bound."""
DEADLINE_S: Final = 1.0
"""For a call, everything included: many times what a decision takes, and little beside what a client waits."""
POOL_SIZE: Final = 32
"""Connections at once. A decision takes less than a millisecond, so few are busy; who comes later waits for one."""
IDLE_S: Final = 30.0
"""A connection that was silent for longer is not used again: the endpoint closes those of strangers after 90 s."""


class LimitEntry(msgspec.Struct, frozen=True):
    """What one limit says, with the attributes of `shield.LimitStatus`."""

    name: str
    allowed: bool
    cost: int
    limit: int
    remaining: int
    reset_after: float
    retry_after: float | None

    def __bool__(self) -> bool:
        return self.allowed


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The endpoint's answer, with the attributes of `shield.Decision`."""

    allowed: bool
    status: int
    reason: str
    violated: list[str] = []
    retry_after: float | None = None
    cost: int = 0
    limits: list[LimitEntry] = []
    headers: dict[str, str] = {}
    request_id: str | None = None
    degraded: bool = False
    shadow: list[str] = []
    receipt: str | None = None
    leases: list[str] = []
    detail: str | None = None
    idempotency: dict[str, Any] | None = None
    response: dict[str, Any] | None = None
    graphql: Any = None

    def __bool__(self) -> bool:
        return self.allowed


class Unreachable(ShieldError):
    """Nobody answered in time, or not as a shield does. Whether the request was counted is not known."""

    transient = True


class EndpointError(ShieldError):
    """The endpoint refused the caller itself: `status` 401 or 403 for its token, 404 for another kind of server."""

    def __init__(self, status: int, detail: str) -> None:
        self.status = status
        super().__init__(f"{status}: {detail}")


class Endpoint(NamedTuple):
    """Where a client asks."""

    scheme: str
    """http, https or unix."""
    host: str
    port: int
    path: str
    """Of the unix socket, or what stands in front of every path."""

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """`http://HOST:PORT`, `https://HOST:PORT` or `unix:PATH`. ValueError."""
        parts = urlsplit(url)
        if parts.scheme == "unix" and parts.path:
            return cls("unix", "localhost", 0, unquote(parts.path))
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"found {url!r}; allowed: http://HOST:PORT, https://HOST:PORT or unix:PATH")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))

    def __str__(self) -> str:
        return self.path if self.scheme == "unix" else f"{self.host}:{self.port}"

    @property
    def prefix(self) -> str:
        """In front of every path."""
        return "" if self.scheme == "unix" else self.path


class Call(NamedTuple, Generic[T]):
    """One call: what is posted, how a success is read, and what stands for it when nobody answers."""

    path: str
    body: bytes
    read: Callable[[bytes], T]
    instead: Callable[[bool], T] | None = None
    """From whether to allow, for calls that have an answer of their own then."""
    ends: bool = False
    """Whether it ends an idempotency key: then that somebody else has it is an answer."""

    def result(self, status: int, body: bytes) -> T:
        """The value. Unreachable, RequestError or EndpointError."""
        if 200 <= status < 300:
            try:
                return self.read(body)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise Unreachable(f"the answer is none of a shield's: {error}") from None
        detail, field = _problem(body)
        if self.ends and status == 409:
            return self.read(b'{"done": false}')
        if self.ends and status == 404 and field == "owner":
            raise ReceiptError(detail)
        if status in (400, 413):
            raise RequestError(field, detail)
        if status >= 500 or status == 408:
            raise Unreachable(f"{status}: {detail}")
        raise EndpointError(status, detail)

    def stand_in(self, policy: WhenUnreachable, error: Unreachable) -> T:
        """What the client's `when_unreachable` says in place of an answer."""
        if policy == "raise" or self.instead is None:
            raise error
        return self.instead(policy == "allow")


class Caller:
    """What a client is, whichever way it waits: where it asks, and on what terms.

    `url` is `http://HOST:PORT`, `https://HOST:PORT` or `unix:PATH`. `token` is the caller's, for an endpoint with
    `--auth-token-file`; `tls` holds its certificate, for mutual TLS. A call takes `deadline_s` at most, waiting for one
    of `pool_size` connections included. When nobody answers, `when_unreachable` decides what a check says: "raise"
    (Unreachable), "allow" or "deny", and then the decision is `degraded`. Nothing is sent twice. ValueError for an
    option that is none.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        deadline_s: float = DEADLINE_S,
        when_unreachable: WhenUnreachable = "raise",
        pool_size: int = POOL_SIZE,
    ) -> None:
        if when_unreachable not in ("raise", "allow", "deny"):
            raise ValueError(f"when_unreachable: found {when_unreachable!r}; allowed: raise, allow or deny")
        if not 0 < deadline_s <= 3600:
            raise ValueError(f"deadline_s: found {deadline_s!r}; allowed: more than 0, at most 3600")
        if not 1 <= pool_size <= 4096:
            raise ValueError(f"pool_size: found {pool_size!r}; allowed: 1 to 4096")
        self._endpoint = Endpoint.parse(url)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token is not None:
            self._headers["Shield-Authorization"] = f"Bearer {token}"
        self._tls = tls
        self._deadline_s = deadline_s
        self._when_unreachable: WhenUnreachable = when_unreachable
        self._pool_size = pool_size
        self._start()

    def _start(self) -> None:
        """Makes what it keeps of connections."""

    def _unreachable(self, error: Exception) -> Unreachable:
        """What went wrong on the way."""
        return Unreachable(f"{self._endpoint}: {type(error).__name__}: {error}")


def check_call(request: Request) -> Call[Decision]:
    """One decision."""
    return Call("/v1/check", _json(_stated(request)), _decision, _instead)


def check_many_call(requests: Sequence[Request]) -> Call[list[Decision]]:
    """Several, each its own step, in order. RequestError for more than MAX_BATCH."""
    count = len(requests)
    if count > MAX_BATCH:
        raise RequestError("", f"found {count} requests; allowed: at most {MAX_BATCH}")
    return Call(
        "/v1/check",
        _json([_stated(request) for request in requests]),
        _decisions,
        lambda allow: [_instead(allow)] * count,
    )


def report_call(receipt: str | None, facts: Request | None, told: Mapping[str, Any]) -> Call[bool]:
    """What became of a request."""
    body = {} if facts is None else _stated(facts)
    body |= {name: value for name, value in told.items() if value is not None}
    if receipt is not None:
        body["receipt"] = receipt
    return Call("/v1/report", _json(body), lambda answer: _settled(answer).settled)


def release_call(leases: Sequence[str]) -> Call[int]:
    """Places that are given back."""
    return Call("/v1/release", _json({"leases": list(leases)}), lambda answer: _released(answer).released)


def ending_call(
    owner: str | Decision, action: str, status: int = 0, headers: HeaderFields = (), body: bytes | None = None
) -> Call[bool]:
    """What became of a request that owns its idempotency key. ReceiptError for a decision that owns none."""
    if isinstance(owner, Decision):
        if owner.idempotency is None:
            raise ReceiptError("the decision owns no idempotency key")
        owner = str(owner.idempotency["owner"])
    told: dict[str, Any] = {"owner": owner, "action": action}
    if action == "complete":
        if body is not None and len(body) > MAX_KEPT_BYTES:
            body = None
        told["response"] = StoredAnswer(status, pairs_of(headers), body).as_dict()
    return Call("/v1/idempotency", _json(told), lambda answer: _done(answer).done, ends=True)


class _Done(msgspec.Struct):
    done: bool


class _Settled(msgspec.Struct):
    settled: bool


class _Released(msgspec.Struct):
    released: int


class _Problem(msgspec.Struct):
    detail: str = ""
    field: str = ""
    title: str = ""


_decision = msgspec.json.Decoder(Decision).decode
_decisions = msgspec.json.Decoder(list[Decision]).decode
_settled = msgspec.json.Decoder(_Settled).decode
_released = msgspec.json.Decoder(_Released).decode
_done = msgspec.json.Decoder(_Done).decode
_read_problem = msgspec.json.Decoder(_Problem).decode
_encode = msgspec.json.Encoder().encode


def _problem(body: bytes) -> tuple[str, str]:
    try:
        problem = _read_problem(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "no problem document", ""
    return problem.detail or problem.title, problem.field


def _instead(allow: bool) -> Decision:
    if allow:
        return Decision(allowed=True, status=200, reason="ok", retry_after=0.0, degraded=True)
    return Decision(allowed=False, status=503, reason="store_unavailable", retry_after=1.0, degraded=True)


def _stated(request: Request) -> dict[str, Any]:
    return {name: value for name in Request.__struct_fields__ if (value := getattr(request, name)) is not None}


def _json(value: Any) -> bytes:
    try:
        return _encode(value)
    except UnicodeEncodeError:
        # Lone surrogates, for bytes that are no UTF-8. In a path they have a form of their own; of any other field
        # the endpoint says which one it is.
        return json.dumps(_escaped(msgspec.to_builtins(value))).encode("ascii")
    except (TypeError, ValueError) as error:
        raise RequestError("", f"cannot be written as JSON: {error}") from None


def _escaped(value: Any) -> Any:
    if isinstance(value, list):
        return [_escaped(one) for one in value]
    if isinstance(path := value.get("path"), str):
        try:
            value["path"] = quote(path.encode("utf-8", "surrogateescape"), safe=string.printable)
        except UnicodeEncodeError:
            raise RequestError("path", "found an unpaired surrogate; allowed: text") from None
    return value
