"""The guard on size and type of a request body: 413 for too much of it, 415 for something else than is read
here.

It judges facts that a gateway states, so it is only as good as those. `bytes` that are absent are unknown,
not zero: a gateway that streams (chunked, HTTP/2 without a length) states no size, must count for itself, and
must not say 0.

    size, then type     what is too large is answered 413 whatever its type is
    a body of 0 bytes   has no type to judge; a leftover Content-Type on a GET is no offence
    size unknown        a stated type is judged, because there may be a body; no type and no size is no body
    a body, no type     refused once types are listed: guessing would decide what the server behind then does
"""

from __future__ import annotations

from shield.policy.model import SizeGuard

TOO_LARGE = "too_large"
CONTENT_TYPE = "content_type"

_MAX_SHOWN = 64


def check_size(guard: SizeGuard, request_bytes: int | None, content_type: str | None) -> tuple[str, str] | None:
    """(reason, detail) of a refusal, or None. `detail` is one sentence that names the request's field.

    `content_type` is the field's value as sent, parameters included; None and "" are absent.
    """
    ceiling = guard.max_body_bytes
    if ceiling is not None and request_bytes is not None and request_bytes > ceiling:
        return TOO_LARGE, f"bytes: found {request_bytes}; allowed: at most {ceiling}"
    if not guard.content_types or request_bytes == 0:
        return None
    allowed = ", ".join(guard.content_types)
    if not content_type:
        if request_bytes is None:
            return None
        return CONTENT_TYPE, f"content_type: a body without a type; allowed: {allowed}"
    if _listed(content_type, guard.content_types):
        return None
    shown = content_type if len(content_type) <= _MAX_SHOWN else content_type[:_MAX_SHOWN] + "..."
    return CONTENT_TYPE, f"content_type: found {shown!r}; allowed: {allowed}"


def _listed(content_type: str, allowed: tuple[str, ...]) -> bool:
    """Whether the media type, without parameters and case, is listed itself or by its "type/*"."""
    essence = content_type.partition(";")[0].strip(" \t").lower()
    if essence in allowed:
        # A list holds ranges too, and "text/*" sent as a type is none.
        return not essence.endswith("/*")
    major, slash, minor = essence.partition("/")
    # The remainder has to be one plain subtype: "application/json, text/html" is two types sent as one.
    return bool(slash and minor) and minor.isascii() and not _STOPS.intersection(minor) and f"{major}/*" in allowed


_STOPS = frozenset('/,; \t"*')
