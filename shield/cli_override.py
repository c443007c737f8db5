"""`shield override`: a customer's own numbers on a running server, through its admin listener."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from getpass import getuser
from typing import Any, Final

from shield.cli_block import add_admin, ask_admin, misuse, tell, until_of

_EXAMPLES: Final = """\
examples:
  shield override user-burst tenant=acme user=ada --rate 200/s --burst 400 --for 24h --why "migration"
  shield override exports tenant=acme --places 50
  shield override --list
  shield override user-burst tenant=acme user=ada --lift

exit status: 0 done, 1 there was no such override, 2 misuse, 3 the server does not answer
"""


def add_to(commands: Any, new_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """The command."""
    parser = new_parser(
        commands.add_parser,
        "override",
        help="give one customer numbers of its own",
        description="Gives one key of a limit numbers of its own, lifts them, or lists who has some. What the key has "
        "spent stays spent.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("limit", nargs="?", metavar="LIMIT", help="the limit's name")
    parser.add_argument("key", nargs="*", metavar="FIELD=VALUE", help="the key, all fields that the limit counts by")
    parser.add_argument("--list", action="store_true", help="who has numbers of its own")
    parser.add_argument("--lift", action="store_true", help="the limit's own numbers again")
    parser.add_argument("--rate", metavar="RATE", help="such as 200/s; a window keeps its period")
    parser.add_argument("--burst", metavar="N", type=int, help="of a token bucket (default: the count in the rate)")
    parser.add_argument("--places", metavar="N", type=int, help="of a concurrency limit")
    parser.add_argument("--for", dest="lasting", metavar="DURATION", help="such as 24h (default: until it is lifted)")
    parser.add_argument("--why", default="", metavar="TEXT", help="shown in lists")
    add_admin(parser)
    parser.set_defaults(command=_override)


def _override(options: argparse.Namespace) -> int:
    if options.list == (options.limit is not None):
        misuse("give either a LIMIT and its key, or --list")
    if options.list:
        status, told = ask_admin(options, "GET", "/v1/overrides", None)
        tell(
            options, status, told, lambda all: "\n".join([*map(_line, all["overrides"]), f"{all['total']:,} overrides"])
        )
        return 0
    body: dict[str, Any] = {
        "limit": options.limit,
        "key": dict(_pair(text) for text in options.key),
        "by": f"operator {getuser()}",
    }
    if options.lift:
        status, told = ask_admin(options, "DELETE", "/v1/overrides", json.dumps(body).encode())
        if status == 404:
            print("this key has no numbers of its own")
            return 1
        tell(options, status, told, lambda one: f"lifted: {one['limit']} {_shown(one['key'])}")
        return 0
    stated = {"rate": options.rate, "burst": options.burst, "places": options.places, "for": options.lasting}
    body |= {name: value for name, value in stated.items() if value is not None} | {"why": options.why}
    status, told = ask_admin(options, "POST", "/v1/overrides", json.dumps(body).encode())
    tell(options, status, told, _line)
    return 0


def _pair(text: str) -> tuple[str, str]:
    name, mark, value = text.partition("=")
    if not mark or not value:
        misuse(f"{text!r}: allowed: FIELD=VALUE, such as tenant=acme")
    return name, value


def _line(one: dict[str, Any]) -> str:
    numbers = " ".join(f"{name} {one[name]}" for name in ("rate", "burst", "places") if name in one)
    idle = "" if one["in_force"] else " (the policy has no such limit)"
    why = f": {one['why']}" if one["why"] else ""
    return f"{one['limit']} {_shown(one['key'])} {numbers} {until_of(one)}, by {one['by']}{why}{idle}"


def _shown(key: dict[str, str] | list[str]) -> str:
    text = " ".join(key if isinstance(key, list) else (f"{name}={value}" for name, value in key.items()))
    return text if text.isprintable() else ascii(text)
