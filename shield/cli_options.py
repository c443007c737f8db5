"""The options of the command line, and what each value may be."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shield.server.sockets import Address


def add_policy_and_store(parser: argparse.ArgumentParser) -> None:
    """What decides, and where its buckets are."""
    parser.add_argument("--policy", metavar="FILE", type=Path, help="TOML, YAML or JSON (default: the starter policy)")
    parser.add_argument(
        "--store",
        metavar="URL",
        default=os.environ.get("SHIELD_STORE"),
        help="memory://, shared://NAME, redis://HOST:PORT/DB, rediss://... or unix://PATH (default: memory://, and "
        "with several workers a shared:// table of this server's own). The environment's SHIELD_STORE says the "
        "same, and keeps a password out of the process list",
    )


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """What `shield serve` can be told."""
    add_policy_and_store(parser)
    parser.add_argument(
        "--listen",
        metavar="ADDRESS",
        type=_address,
        action="append",
        help="HOST:PORT or unix:PATH for decisions; may be given several times (default: 127.0.0.1:8080)",
    )
    parser.add_argument(
        "--admin",
        metavar="ADDRESS",
        default="127.0.0.1:8081",
        help="HOST:PORT or unix:PATH for health, metrics and the policy; none for no such listener "
        "(default: 127.0.0.1:8081)",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=_workers,
        default=1,
        help="processes that decide, or auto: one for each CPU that this process may use; they share one table, "
        "unless --store says where the buckets are (default: 1)",
    )
    callers = parser.add_argument_group("callers", "Anything but loopback and unix sockets needs one of the two.")
    callers.add_argument(
        "--auth-token-file",
        metavar="FILE",
        type=Path,
        help="tokens of those who may ask, one a line; they send `Shield-Authorization: Bearer TOKEN`",
    )
    callers.add_argument("--tls-cert", metavar="FILE", type=Path, help="PEM certificate of the server")
    callers.add_argument("--tls-key", metavar="FILE", type=Path, help="PEM key of the server")
    callers.add_argument(
        "--tls-client-ca", metavar="FILE", type=Path, help="PEM; callers need a certificate that it signed"
    )
    callers.add_argument(
        "--tls-client-id",
        metavar="ID",
        action="append",
        help="whose certificate may ask: spiffe://DOMAIN/PATH (/* at its end: everything below), dns:NAME or cn:NAME; "
        "may be given several times (default: everybody with a certificate of --tls-client-ca)",
    )
    more = parser.add_argument_group("more")
    more.add_argument(
        "--secret-file",
        metavar="FILE",
        type=Path,
        help="at least 16 bytes that seal receipts; the same on all nodes that share a store "
        "(default: the store hands one out)",
    )
    more.add_argument(
        "--blocks",
        metavar="FILE",
        type=Path,
        help="keep blocks in this file, so that they survive a restart (default: beside a shared:// table; what nodes "
        "of a Redis block is kept there; with memory:// they end with the process)",
    )
    more.add_argument(
        "--geo",
        metavar="FILE",
        type=Path,
        action="append",
        help="a MaxMind-format database of places, countries or networks, for detectors; may be given once for each "
        "kind, and is read again when it changes",
    )
    more.add_argument(
        "--trace-decisions",
        metavar="FILE",
        type=Path,
        help="write every decision as a JSON line; the file starts anew. With several workers each writes FILE.N: "
        "sorted by now_us they are one trace",
    )
    more.add_argument(
        "--log-format",
        choices=("json", "console"),
        help="of standard error (default: console on a terminal, json otherwise)",
    )
    more.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    more.add_argument(
        "--grace",
        metavar="SECONDS",
        type=_seconds,
        help="how long requests in flight may take to finish after SIGTERM (default: 10)",
    )
    more.add_argument(
        "--drain-delay",
        metavar="SECONDS",
        type=_seconds,
        default=0.0,
        help="how long /readyz says 503 before the listeners close, for balancers to notice (default: 0)",
    )


def _address(text: str) -> Address:
    from shield.server.sockets import Address

    try:
        return Address.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _workers(text: str) -> int:
    from shield.server.bounds import MAX_WORKERS
    from shield.server.cpus import usable_cpus

    if text == "auto":
        return min(usable_cpus(), MAX_WORKERS)
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= MAX_WORKERS):
        raise argparse.ArgumentTypeError(f"{text!r}: allowed: 1 to {MAX_WORKERS}, or auto")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3_600:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed: seconds from 0 to 3600")
    return seconds
