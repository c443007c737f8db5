"""`shield block` and `shield unblock`: an operator's hand on a running server, through its admin listener."""

from __future__ import annotations

import argparse
import http.client
import ipaddress
import json
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from getpass import getuser
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlencode

from shield.errors import ShieldError

_EXAMPLES: Final = """\
examples:
  shield block 203.0.113.7 --for 1h --why "probes for wp-admin"
  shield block 203.0.113.0/24 --for 24h
  shield block mallory --kind user --challenge
  shield block --list
  shield unblock 203.0.113.7

exit status: 0 done, 1 there was no such block, 2 misuse, 3 the server does not answer
"""
_TIMEOUT_S: Final = 10
_PAGE: Final = 10_000
# A million lines is what anybody can want on a terminal or in a pipe.
_MOST_SHOWN: Final = 1_000_000


class AdminError(ShieldError):
    """The admin listener did not answer, or answered that it would not."""

    transient = True


def add_to(commands: Any, new_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Both commands."""
    block = new_parser(
        commands.add_parser,
        "block",
        help="refuse an address, network, user, tenant or API key",
        description="Blocks a subject on a running server, or lists who is blocked, by whom, why and until when.",
        epilog=_EXAMPLES,
    )
    block.add_argument(
        "value", nargs="?", metavar="SUBJECT", help="an address, a network, or with --kind another subject"
    )
    block.add_argument("--list", action="store_true", help="who is blocked")
    block.add_argument(
        "--for", dest="lasting", metavar="DURATION", help="such as 10m or 24h (default: until it is lifted)"
    )
    block.add_argument("--why", default="", metavar="TEXT", help="shown in lists")
    block.add_argument("--challenge", action="store_true", help="answer with the reason challenge instead")
    _add_common(block)
    block.set_defaults(command=_block)
    unblock = new_parser(
        commands.add_parser, "unblock", help="lift a block", description="Lifts a block.", epilog=_EXAMPLES
    )
    unblock.add_argument("value", metavar="SUBJECT")
    _add_common(unblock)
    unblock.set_defaults(command=_unblock)


def _add_common(parser: argparse.ArgumentParser) -> None:
    kinds = ("ip", "network", "user", "tenant", "api_key", "session")
    parser.add_argument("--kind", choices=kinds, help="what SUBJECT is (default: ip or network, by its form)")
    add_admin(parser)


def add_admin(parser: argparse.ArgumentParser) -> None:
    """Which server is spoken to, and how."""
    parser.add_argument("--admin", default="127.0.0.1:8081", metavar="ADDRESS", help="HOST:PORT or unix:PATH")
    parser.add_argument("--auth-token-file", type=Path, metavar="FILE", help="the first token in it is sent")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def _block(options: argparse.Namespace) -> int:
    if options.list == (options.value is not None):
        misuse("give either a SUBJECT or --list")
    if options.list:
        return _list(options)
    body = {
        "kind": options.kind or _kind_of(options.value),
        "value": options.value,
        "why": options.why,
        "by": f"operator {getuser()}",
        "reason": "challenge" if options.challenge else "blocked",
    }
    if options.lasting is not None:
        body["for"] = options.lasting
    status, told = ask_admin(options, "POST", "/v1/blocks", json.dumps(body).encode())
    tell(options, status, told, _line)
    return 0


def _list(options: argparse.Namespace) -> int:
    """Every block, page by page as the server gives them."""
    found: list[Any] = []
    after = ""
    while True:
        query = {"limit": str(_PAGE), "after": after} | ({"kind": options.kind} if options.kind else {})
        status, told = ask_admin(options, "GET", f"/v1/blocks?{urlencode(query)}", None)
        if status >= 400 or len(found) >= _MOST_SHOWN:
            break
        found += told["blocks"]
        if told["next"] is None:
            break
        after = told["next"]
    if status < 400:
        told["blocks"] = found
    tell(options, status, told, _table)
    return 0


def _unblock(options: argparse.Namespace) -> int:
    subject = {"kind": options.kind or _kind_of(options.value), "value": options.value}
    query = urlencode(subject | {"by": f"operator {getuser()}"})
    status, told = ask_admin(options, "DELETE", f"/v1/blocks?{query}", None)
    if status == 404:
        print(f"{options.value} was not blocked")
        return 1
    tell(options, status, told, lambda one: f"lifted: {_line(one)}")
    return 0


def _kind_of(value: str) -> str:
    try:
        if "/" in value:
            ipaddress.ip_network(value, strict=False)
            return "network"
        ipaddress.ip_address(value)
    except ValueError:
        misuse(f"{value!r} is no address and no network; say --kind user, tenant, api_key or session")
    return "ip"


def _first_token(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8").split("\n", 1_000)
    except (OSError, ValueError) as error:
        misuse(f"--auth-token-file {path}: cannot be read: {error}")
    token = next((line.strip() for line in lines if line.strip() and not line.startswith("#")), None)
    if token is None:
        misuse(f"--auth-token-file {path}: holds no token")
    return token


def misuse(message: str) -> NoReturn:
    """UsageError."""
    from shield.server.sockets import UsageError

    raise UsageError(message)


def ask_admin(options: argparse.Namespace, method: str, target: str, body: bytes | None) -> tuple[int, Any]:
    """Status and object of the admin listener's answer. AdminError."""
    from shield.server.sockets import Address

    try:
        address = Address.parse(options.admin)
    except ValueError as error:
        misuse(f"--admin: {error}")
    headers = {"Content-Type": "application/json"}
    if options.auth_token_file is not None:
        headers["Shield-Authorization"] = f"Bearer {_first_token(options.auth_token_file)}"
    connection = http.client.HTTPConnection(address.host or "localhost", address.port, timeout=_TIMEOUT_S)
    try:
        if address.path:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(_TIMEOUT_S)
            connection.sock.connect(address.path)
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise AdminError(f"the admin listener at {options.admin} does not answer: {error}") from None
    finally:
        connection.close()


def tell(options: argparse.Namespace, status: int, told: Any, text: Callable[[Any], str]) -> None:
    """Prints an answer. UsageError for what the server did not understand, AdminError for what it would not do."""
    if status >= 400:
        detail = told.get("detail", told) if isinstance(told, dict) else told
        if status == 400:
            misuse(str(detail))
        raise AdminError(f"the server answered {status}: {detail}")
    print(json.dumps(told, indent=2) if options.format == "json" else text(told))


def until_of(one: dict[str, Any]) -> str:
    """Until when it lasts, in words."""
    if one["until"] is None:
        return "until it is lifted"
    return f"until {datetime.fromtimestamp(one['until'], UTC).isoformat(timespec='seconds').replace('+00:00', 'Z')}"


def _line(one: dict[str, Any]) -> str:
    until = until_of(one)
    why = f": {one['why']}" if one["why"] else ""
    # A client chose its name, and this is a terminal.
    value = one["value"] if one["value"].isprintable() else ascii(one["value"])
    reason = f"{one['reason']} to {one['factor']:g}" if "factor" in one else one["reason"]
    return f"{one['kind']} {value} {reason} {until}, by {one['by']}{why}"


def _table(told: dict[str, Any]) -> str:
    lines = [_line(one) for one in told["blocks"]]
    lines.append(f"{told['total']:,} of at most {told['blocks_max']:,}")
    return "\n".join(lines)
