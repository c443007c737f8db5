"""The command line: serve, check-policy, decide, price, simulate, bench.

Exit status: 0 yes, 1 no (a policy with errors, a request refused), 2 misuse, 3 fault. What goes wrong is said
in a sentence on standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from enum import IntEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from shield import cli_bench, cli_block, cli_override, cli_price
from shield.cli_options import add_policy_and_store, add_serve_options
from shield.simulate import command as simulate

if TYPE_CHECKING:
    from shield.policy import Policy


class Exit(IntEnum):
    """What the process ends with."""

    YES = 0
    NO = 1
    MISUSE = 2
    FAULT = 3


class Misuse(Exception):
    """The command was given something that cannot be right; the text says what."""


_EXIT_HELP: Final = "exit status: 0 yes, 1 no, 2 misuse, 3 fault"

_MAIN_EXAMPLES: Final = """\
examples:
  shield serve                                  decide on 127.0.0.1:8080 by the starter policy
  shield serve --policy policy.toml --store redis://127.0.0.1:6379/0
  shield check-policy policy.toml               everything that is wrong with it, and what it says
  echo '{"ip": "203.0.113.7"}' | shield decide --explain
"""

_SERVE_EXAMPLES: Final = """\
examples:
  shield serve
      the starter policy, buckets in memory, decisions on 127.0.0.1:8080, admin on 127.0.0.1:8081
  shield serve --policy policy.toml --store redis://127.0.0.1:6379/0
      one of several nodes that share their buckets
  shield serve --policy policy.toml --workers auto
      a process for each CPU, all on one table: limits hold as with one
  shield serve --listen unix:/run/shield/decide.sock --listen 127.0.0.1:9000
      several listeners
  shield serve --listen 0.0.0.0:8080 --auth-token-file tokens.txt
      from other machines: callers send `Shield-Authorization: Bearer TOKEN`
  shield serve --listen 0.0.0.0:8443 --tls-cert cert.pem --tls-key key.pem --tls-client-ca clients.pem
      the same by mutual TLS

signals: SIGHUP reads policy, tokens and certificate again; SIGTERM and SIGINT drain, a second one ends now.
With several workers they go to the first process; workers that die are started again.
"""

_CHECK_EXAMPLES: Final = """\
examples:
  shield check-policy policy.toml
  shield check-policy policy.yaml --format json

exit status: 0 the policy is valid, 1 it is not, 2 misuse, 3 fault
"""

_DECIDE_EXAMPLES: Final = """\
examples:
  echo '{"ip": "203.0.113.7"}' | shield decide
  echo '{"tenant": "acme", "user": "u-17"}' | shield decide --policy policy.toml --explain
  shield decide --store redis://127.0.0.1:6379/0 --policy policy.toml < request.json

exit status: 0 allowed, 1 refused, 2 misuse, 3 fault
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status and raises nothing."""
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except SystemExit as end:  # argparse: 0 after --help and --version, 2 otherwise
        return end.code if isinstance(end.code, int) else Exit.MISUSE
    except KeyboardInterrupt:
        return Exit.FAULT
    except BrokenPipeError:
        # Whoever read the output has gone; the interpreter must not complain about that while it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAULT


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    try:
        from shield.errors import PolicyError, RequestError, ShieldError
        from shield.server.sockets import UsageError
        from shield.store.url import StoreURLError
    except ImportError as error:
        return _complain(str(error), Exit.FAULT)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except (Misuse, PolicyError, RequestError, StoreURLError, UsageError) as error:
        return _complain(str(error), Exit.MISUSE)
    except ShieldError as error:
        return _complain(str(error), Exit.FAULT)
    except ImportError as error:
        return _complain(str(error), Exit.FAULT)
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except Exception as error:
        return _complain(_fault(error), Exit.FAULT)


def _complain(message: str, status: Exit) -> int:
    print(f"shield: {message}", file=sys.stderr, flush=True)
    return status


def _fault(error: Exception) -> str:
    """What is worth reporting of an exception that nobody foresaw."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
    return f"an unforeseen fault, {type(error).__name__}: {error}{where}; please report it"


# ---- options -----------------------------------------------------------------------------------------------


def _version() -> str:
    try:
        return version("shield-limiter")
    except PackageNotFoundError:
        return "0+source"


def _parser() -> argparse.ArgumentParser:
    parser = _new_parser(
        argparse.ArgumentParser,
        prog="shield",
        description="Decides every quota of a request in one atomic step: behind a gateway, or here.",
        epilog=f"{_MAIN_EXAMPLES}\n{_EXIT_HELP}",
    )
    parser.add_argument("--version", action="version", version=f"shield {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    serve = _new_parser(
        commands.add_parser,
        "serve",
        help="serve decisions over HTTP",
        description="Serves decisions over HTTP: to gateways, and to whoever asks POST /v1/check.",
        epilog=f"{_SERVE_EXAMPLES}\n{_EXIT_HELP}",
    )
    add_serve_options(serve)
    serve.set_defaults(command=_serve)

    check = _new_parser(
        commands.add_parser,
        "check-policy",
        help="say everything that is wrong with a policy file",
        description="Reads a policy file and says everything that is wrong with it, what it says, and what "
        "it probably does not mean.",
        epilog=_CHECK_EXAMPLES,
    )
    check.add_argument("file", metavar="FILE", type=Path, help="TOML, YAML or JSON, by its suffix")
    check.add_argument("--format", choices=("text", "json"), default="text", help="how to say it (default: text)")
    check.set_defaults(command=_check_policy)

    decide = _new_parser(
        commands.add_parser,
        "decide",
        help="decide one request from standard input",
        description="Decides one request, a JSON object on standard input as for POST /v1/check, and takes "
        "what it costs. With the memory store every run starts with full buckets.",
        epilog=_DECIDE_EXAMPLES,
    )
    add_policy_and_store(decide)
    decide.add_argument(
        "--explain",
        action="store_true",
        help="every limit: did it match and why, which key it counted by, what was left",
    )
    decide.add_argument(
        "--format",
        choices=("text", "json"),
        help="how to say it (default: json, text with --explain)",
    )
    decide.set_defaults(command=_decide)
    cli_block.add_to(commands, _new_parser)
    cli_override.add_to(commands, _new_parser)
    cli_price.add_to(commands, _new_parser)
    simulate.add_to(commands, _new_parser)
    cli_bench.add_to(commands, _new_parser)
    return parser


def _new_parser(make: Callable[..., argparse.ArgumentParser], *args: str, **options: Any) -> argparse.ArgumentParser:
    return make(*args, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)


# ---- commands ----------------------------------------------------------------------------------------------


def _serve(options: argparse.Namespace) -> int:
    from shield.server.bounds import DRAIN_GRACE_S
    from shield.server.lifecycle import serve
    from shield.server.options import DEFAULT_LISTEN, ServeOptions, read_callers
    from shield.server.sockets import Address, TlsFiles

    tls = None
    if options.tls_cert is not None and options.tls_key is not None:
        tls = TlsFiles(options.tls_cert, options.tls_key, options.tls_client_ca)
    elif options.tls_cert is not None or options.tls_key is not None or options.tls_client_ca is not None:
        raise Misuse("--tls-cert and --tls-key go together, and --tls-client-ca needs both")
    try:
        admin = None if options.admin == "none" else Address.parse(options.admin)
    except ValueError as error:
        raise Misuse(f"--admin: {error}") from None
    serve(
        ServeOptions(
            version=_version(),
            policy=options.policy,
            store=options.store,
            listen=tuple(options.listen or DEFAULT_LISTEN),
            admin=admin,
            token_file=options.auth_token_file,
            tls=tls,
            callers=read_callers(options.tls_client_id, tls),
            secret_file=options.secret_file,
            blocks=options.blocks,
            geo=tuple(options.geo or ()),
            trace=options.trace_decisions,
            log_format=options.log_format or ("console" if sys.stderr.isatty() else "json"),
            log_level=options.log_level,
            grace_s=DRAIN_GRACE_S if options.grace is None else options.grace,
            drain_delay_s=options.drain_delay,
            workers=options.workers,
        )
    )
    return Exit.YES


def _check_policy(options: argparse.Namespace) -> int:
    from shield import cli_output
    from shield.errors import PolicyError
    from shield.gate import load_checked

    file: Path = options.file
    if not file.is_file():
        raise Misuse(f"{file}: no such file")
    try:
        policy = load_checked(file)
    except PolicyError as error:
        shown = cli_output.errors_json if options.format == "json" else cli_output.errors_text
        print(shown(error, str(file)))
        return Exit.NO
    shown_policy = cli_output.policy_json if options.format == "json" else cli_output.policy_text
    print(shown_policy(policy, str(file)))
    return Exit.YES


def _decide(options: argparse.Namespace) -> int:
    return asyncio.run(_decide_one(options, _policy(options.policy)))


def _policy(path: Path | None) -> Policy:
    from shield.server.source import PolicySource

    return PolicySource.starter().parse() if path is None else PolicySource.read(path)[1]


async def _decide_one(options: argparse.Namespace, policy: Policy) -> int:
    from shield import cli_output
    from shield.errors import StoreError
    from shield.server.bounds import MAX_BODY_BYTES
    from shield.server.wire import decode_check
    from shield.shield import Shield

    if sys.stdin.isatty():
        print("reading one request, a JSON object, until end of file (Ctrl-D)", file=sys.stderr)
    body = sys.stdin.buffer.read(MAX_BODY_BYTES + 1)
    if len(body) > MAX_BODY_BYTES:
        raise Misuse(f"standard input: more than {MAX_BODY_BYTES:,} bytes; a request is never that large")
    request = decode_check(body)
    if isinstance(request, list):
        raise Misuse("standard input: found an array; allowed: one request object")
    shield = Shield(policy, options.store or "memory://")
    try:
        try:
            await shield.open()
        except StoreError as error:
            print(f"shield: warning: {error}", file=sys.stderr)
        seen = shield.explain(request) if options.explain else []
        decision = await shield.check(request)
    finally:
        await shield.close()
    if (options.format or ("text" if options.explain else "json")) == "json":
        print(cli_output.decision_json(decision, seen))
    else:
        print(cli_output.decision_text(decision, seen))
    return Exit.YES if decision.allowed else Exit.NO
