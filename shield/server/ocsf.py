"""Security events in the shape of the Open Cybersecurity Schema Framework.

Detections and blocks are Detection Findings (2004), refusals API Activity (6003), those by an address's block HTTP
Activity (4002), those for want of identity Authentication (3002), a replaced policy API Activity. `type_uid` is
class_uid * 100 + activity_id, times are milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from shield.block.block import LIFTED, Block
from shield.decision import Decision
from shield.detect.detection import Detection
from shield.request import Request

SCHEMA_VERSION: Final = "1.3.0"
FINDING: Final = 2004
AUTHENTICATION: Final = 3002
HTTP: Final = 4002
API: Final = 6003

_SEVERITY: Final = {"info": 1, "low": 2, "medium": 3, "high": 4, "critical": 5}
_API_ACTIVITY: Final = {"POST": 1, "GET": 2, "HEAD": 2, "PUT": 3, "PATCH": 3, "DELETE": 4}
_HTTP_ACTIVITY: Final = {
    name: at for at, name in enumerate(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT", "TRACE"), 1)
}
_OTHER: Final = 99
_MOST_TEXT: Final = 256
_MOST_ISSUES: Final = 20

Hide = Callable[[str], str]
"""From a subject to what an event may say of it."""


def detected(one: Detection, hide: Hide, version: str) -> dict[str, Any]:
    """A detection, with its figures and a sample of its requests."""
    detector = one.detector
    event = _base(FINDING, 1, one.at_us, _SEVERITY[detector.severity], version, one.request_id)
    event |= {
        "finding_info": {
            "uid": f"{detector.name}-{hide(one.subject)}-{one.at_us}",
            "title": detector.name,
            "desc": detector.note,
            "types": [*detector.oat, *detector.api],
            "analytic": {"name": detector.name, "type": "Behavioral", "type_id": 2},
            "first_seen_time": one.since_us // 1000,
            "last_seen_time": one.at_us // 1000,
        },
        "count": one.events,
        "is_alert": True,
        "disposition": _disposition(detector.action, detector.mode),
        "evidences": [{"data": {"at": sample.at_us // 1000, "target": _clip(sample.target)}} for sample in one.samples],
        "unmapped": {
            "subject": {"kind": detector.subject, "value": hide(one.subject)},
            "key": {field: hide(value) for field, value in one.key},
            "measure": detector.measure,
            "of": detector.of,
            "value": round(one.value, 3),
            "threshold": round(one.threshold, 3),
            "share": one.share,
            "repeats": one.repeats,
            "places": list(one.places),
            "action": detector.action,
            "mode": detector.mode,
        },
    }
    return event


_DISPOSITIONS: Final = {"block": "Blocked", "challenge": "Challenged", "throttle": "Throttled"}


def _disposition(action: str, mode: str) -> str:
    if mode != "enforce" or action == "observe":
        return "Detected"
    return _DISPOSITIONS[action]


def refused(decision: Decision, request: Request, at_us: int, hide: Hide, version: str) -> dict[str, Any]:
    """A refusal; `count` grows where repeats are folded into it."""
    reason, method = decision.reason, stated(request, "method").upper()[:32]
    user, ip, tenant = (hide(stated(request, name)) for name in ("user", "ip", "tenant"))
    if reason == "identity":
        event = _base(AUTHENTICATION, 1, at_us, 2, version, decision.request_id)
        event["user"] = {"uid": user, "type_id": 0}
    elif reason in ("blocked", "challenge"):
        event = _base(HTTP, _HTTP_ACTIVITY.get(method, _OTHER), at_us, 2, version, decision.request_id)
        event["http_request"] = {"http_method": method, "url": {"path": _path(request)}}
    else:
        event = _base(API, _API_ACTIVITY.get(method, _OTHER), at_us, 1, version, decision.request_id)
        event["api"] = {"operation": f"{method} {_path(request)}".strip()}
    event |= {
        "actor": {"user": {"uid": user}} if user else {},
        "src_endpoint": {"ip": ip} if ip else {},
        "status": "Failure",
        "status_id": 2,
        "status_code": str(decision.status),
        "status_detail": reason,
        "disposition": "Blocked",
        "count": 1,
        "unmapped": {
            "violated": list(decision.violated),
            "tenant": tenant or None,
            "degraded": decision.degraded,
        },
    }
    return event


def would_refuse(block: Block, request: Request, at_us: int, hide: Hide, version: str) -> dict[str, Any]:
    """A request that a block would have refused, were blocks not in shadow mode."""
    method = stated(request, "method").upper()[:32]
    event = _base(HTTP, _HTTP_ACTIVITY.get(method, _OTHER), at_us, 1, version, _clip(stated(request, "request_id")))
    ip = hide(stated(request, "ip"))
    return event | {
        "http_request": {"http_method": method, "url": {"path": _path(request)}},
        "src_endpoint": {"ip": ip} if ip else {},
        "status": "Success",
        "status_id": 1,
        "status_detail": block.reason,
        "disposition": "Logged",
        "count": 1,
        "unmapped": {"mode": "shadow", "by": block.by},
    }


def blocked(block: Block, at_us: int, hide: Hide, version: str) -> dict[str, Any]:
    """A block that was set, or lifted."""
    lifted = block.reason == LIFTED
    event = _base(FINDING, 3 if lifted else 1, at_us, 3, version, None)
    kind, value = block.subject
    event |= {
        "finding_info": {
            "uid": f"block-{kind}-{hide(value)}-{block.since_us}",
            "title": "block lifted" if lifted else "block set",
            "types": ["block"],
        },
        "is_alert": False,
        "unmapped": {
            "subject": {"kind": kind, "value": hide(value)},
            "until": None if block.until_us is None else block.until_us // 1000,
            "by": block.by,
            "why": block.why,
            "reason": block.reason,
            "level": block.level,
            "factor": block.factor,
        },
    }
    return event


def replaced(name: str, owner: str | None, fingerprint: str, previous: str, at_us: int, version: str) -> dict[str, Any]:
    """A policy that was put in force."""
    event = _base(API, 3, at_us, 1, version, None)
    event |= {
        "api": {"operation": "policy.replace"},
        "actor": {"user": {"name": owner}} if owner else {},
        "src_endpoint": {},
        "status": "Success",
        "status_id": 1,
        "unmapped": {"policy": name, "fingerprint": fingerprint, "previous": previous},
    }
    return event


def kept(fingerprint: str, issues: list[str], at_us: int, version: str) -> dict[str, Any]:
    """A policy that was refused, while the running one stayed."""
    event = _base(API, 3, at_us, 3, version, None)
    return event | {
        "api": {"operation": "policy.replace"},
        "actor": {},
        "src_endpoint": {},
        "status": "Failure",
        "status_id": 2,
        "unmapped": {"fingerprint": fingerprint, "issues": issues[:_MOST_ISSUES], "count": len(issues)},
    }


def lost(count: int, at_us: int, version: str) -> dict[str, Any]:
    """How many events could not be kept."""
    event = _base(API, _OTHER, at_us, 3, version, None)
    event |= {"api": {"operation": "events.dropped"}, "actor": {}, "src_endpoint": {}, "count": count}
    return event


def stated(request: Request, name: str) -> str:
    """A fact that is text; what a malformed request states instead is nothing."""
    value = getattr(request, name)
    return value if isinstance(value, str) else ""


def _base(
    class_uid: int, activity_id: int, at_us: int, severity_id: int, version: str, request_id: str | None
) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "version": SCHEMA_VERSION,
        "product": {"name": "Shield", "vendor_name": "Shield", "version": version},
    }
    if request_id:
        metadata["correlation_uid"] = _clip(request_id)
    return {
        "class_uid": class_uid,
        "category_uid": class_uid // 1000,
        "activity_id": activity_id,
        "type_uid": class_uid * 100 + activity_id,
        "severity_id": severity_id,
        "time": at_us // 1000,
        "metadata": metadata,
    }


def _path(request: Request) -> str:
    """Without the query, which may hold secrets."""
    return (_clip(stated(request, "path").partition("?")[0])) or ""


def _clip(text: str | None) -> str | None:
    return None if text is None else text[:_MOST_TEXT]
