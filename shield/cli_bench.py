"""`shield bench`: its options. What it measures with is `bench/` of a clone and `shield.bench` of an installation."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

EXAMPLES: Final = """\
examples:
  shield bench
      every scenario, two seconds for each figure
  shield bench core decision --seconds 0.5 --json now.json
  shield bench server peers capacity --html report.html
  shield bench --compare before.json now.json
      what changed beyond the noise
  shield bench core --against ../main --repeats 10
      this code and that of another checkout in turns, a process for each sample
  shield bench capacity --rate 250000 --p99-ms 5 --keys 20000000 --hot 0.1
      workers, cores, memory, Redis shards, network; what binds first

exit status: 0 done, 1 no (a regression, a rate that cannot be served), 2 misuse, 3 fault or interrupted
"""


def add_to(commands: Any, new_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """The command and its options."""
    parser = new_parser(
        commands.add_parser,
        "bench",
        help="measure this machine, and say what it can serve",
        description="Answers the questions of a capacity planner on the hardware at hand.",
        epilog=EXAMPLES,
    )
    parser.set_defaults(command=run)
    parser.add_argument("names", nargs="*", metavar="NAME", help="which scenarios (default: all); --list names them")
    parser.add_argument("--list", action="store_true", help="say which scenarios there are, and what each asks")
    parser.add_argument("--seconds", type=_seconds, default=2.0, metavar="S", help="time for each figure (default: 2)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of keys and arrivals (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and the machine's facts there")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots; it opens without a network")
    parser.add_argument(
        "--repeats", type=_repeats, metavar="N", help="each scenario in N processes of its own (default: in this one)"
    )
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"), help="two files of --json: what changed"
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="TREE",
        help="measure another built checkout in turns with this one (default: core, 14 repeats) and compare",
    )
    parser.add_argument(
        "--least", type=_part, default=0.05, metavar="PART", help="the least change that counts (default: 0.05)"
    )
    plan = parser.add_argument_group("capacity", "What a launch needs, from what this machine does.")
    plan.add_argument("--rate", type=_positive, metavar="R", help="checks a second")
    plan.add_argument("--p99-ms", type=_positive, default=5.0, metavar="MS", help="the wanted p99 (default: 5)")
    plan.add_argument(
        "--keys", type=_count, default=1_000_000, metavar="N", help="live partition keys (default: 1000000)"
    )
    plan.add_argument("--limits-a-key", type=_count, default=2, metavar="N", help="limits by each key (default: 2)")
    plan.add_argument(
        "--hot", type=_part, default=0.0, metavar="PART", help="the part of all checks that one key gets (default: 0)"
    )
    plan.add_argument(
        "--nic-gbits", type=_positive, default=10.0, metavar="G", help="the network of a host (default: 10)"
    )
    plan.add_argument(
        "--measured", type=Path, metavar="FILE", help="a --json file with the scenario capacity (default: measure now)"
    )


def run(options: argparse.Namespace) -> int:
    """The command. ImportError when it is not installed, UsageError for a misuse."""
    # `python -m bench` has loaded the clone's own.
    try:
        command = sys.modules.get("bench.command") or importlib.import_module("shield.bench.command")
    except ModuleNotFoundError as error:
        if error.name not in ("shield.bench", "shield.bench.command"):
            raise
        raise ImportError("the benchmarks are not installed here; in a clone: python -m bench") from None
    status: int = command.run(options)
    return status


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.01 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"found {text!r}; allowed: seconds, 0.01 to 86400")
    return seconds


def _repeats(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 1000):
        raise argparse.ArgumentTypeError(f"found {text!r}; allowed: 1 to 1000")
    return int(text)


def _part(text: str) -> float:
    try:
        part = float(text)
    except ValueError:
        part = -1.0
    if not 0 <= part < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}; allowed: a part of one, 0 to below 1")
    return part


def _positive(text: str) -> float:
    try:
        figure = float(text.replace("_", ""))
    except ValueError:
        figure = 0.0
    if not 0 < figure <= 1e12:
        raise argparse.ArgumentTypeError(f"found {text!r}; allowed: a number above 0")
    return figure


def _count(text: str) -> int:
    if not (text.replace("_", "").isdecimal() and 1 <= int(text.replace("_", "")) <= 10**12):
        raise argparse.ArgumentTypeError(f"found {text!r}; allowed: a whole number above 0")
    return int(text.replace("_", ""))
