"""`shield simulate`: its options, its progress bar, and what it prints."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TextIO

EXAMPLES: Final = """\
examples:
  shield simulate access.log
      the starter policy and all packaged detectors
  shield simulate --policy policy.toml access.log.*.gz --html report.html
  zcat access.log.gz | shield simulate --policy policy.toml - --format json
  shield simulate --compare old.toml new.toml access.log
      who the new policy refuses and the old one did not
  shield simulate --suggest access.log
      limits from the traffic itself, and whom each would touch

formats: common and combined, nginx, Traefik, with or without a virtual host or syslog prefix; JSON lines of Traefik,
nginx, Caddy, Envoy or of Shield's own request fields with a time and a status; gzip. What cannot be read is counted.

exit status: 0 done, 1 there were lines and none could be read, 2 misuse, 3 fault
"""


def add_to(commands: Any, new_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """The command and its options."""
    parser = new_parser(
        commands.add_parser,
        "simulate",
        help="try a policy on recorded traffic",
        description="Runs a policy over access logs on their own time, with the code that decides live: who would have "
        "been refused, by what, when; who came close; what detectors would have said.",
        epilog=EXAMPLES,
    )
    parser.set_defaults(command=run)
    parser.add_argument("logs", nargs="+", metavar="LOG", help="access logs; - is standard input")
    parser.add_argument(
        "--policy", type=Path, metavar="FILE", help="the policy (default: starter and packaged detectors)"
    )
    parser.add_argument(
        "--packaged", action="store_true", help="add the packaged detectors that the policy does not have"
    )
    parser.add_argument(
        "--compare", nargs=2, type=Path, metavar=("OLD", "NEW"), help="two policies on the same traffic"
    )
    parser.add_argument("--suggest", action="store_true", help="propose limits from the traffic's own percentiles")
    parser.add_argument(
        "--geo",
        type=Path,
        action="append",
        metavar="FILE",
        help="a MaxMind-format database of places, countries or networks, for detectors; once for each kind",
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a report with plots; it opens without a network"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="what is printed (default: text)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar, also on a terminal")


def run(options: argparse.Namespace) -> int:
    """The command. UsageError for a misuse, whose text says what is wrong; PolicyError."""
    from shield.server.sockets import UsageError
    from shield.simulate import page, report, suggest
    from shield.simulate.records import Source
    from shield.simulate.replay import Replay

    logs: list[Path | str] = ["-" if name == "-" else Path(name) for name in options.logs]
    if options.policy is None and options.compare is None and len(logs) > 1 and Path(logs[0]).suffix in _POLICIES:
        options.policy = Path(logs.pop(0))
    for path in logs:
        if path != "-" and not Path(path).is_file():
            raise UsageError(f"{path}: no such file")
    if options.suggest and "-" in logs:
        raise UsageError("--suggest reads the traffic twice, so it cannot come from standard input")
    if options.compare is not None and options.policy is not None:
        raise UsageError("--compare names both policies; leave --policy out")
    locate = None
    if options.geo is not None:
        from shield.geo import Places

        try:
            locate = Places(*options.geo)
        except ValueError as error:
            raise UsageError(f"--geo {error}") from None

    new, old = _policies(options)
    source = Source(logs)
    bar = None if options.no_progress or not sys.stderr.isatty() else Bar(sys.stderr, source.total_bytes)
    replays = [Replay(policy, locate=locate) for policy in ((new,) if old is None else (new, old))]
    peaks = suggest.Peaks() if options.suggest else None
    started, started_cpu = time.perf_counter(), time.process_time()
    progress = None if bar is None else (lambda: bar.show(source.read_bytes, source.lines))
    if len(replays) == 1 and peaks is None:
        outcome = replays[0].run(source.records(progress))
    else:
        for record in source.records(progress):
            for replay in replays:
                replay.record(*record)
            if peaks is not None:
                peaks.add(record)
        outcome = replays[0].finish()
    elapsed_s, cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
    if bar is not None:
        bar.done()
    told = report.as_object(outcome, source)
    told["elapsed_s"] = round(elapsed_s, 3)
    comparison = None if old is None else report.compared(replays[1].finish(), outcome)
    suggested: list[dict[str, Any]] = []
    if peaks is not None:
        suggested = suggest.tried(suggest.candidates(peaks), Source(logs).records(), peaks.clients)
    if comparison is not None:
        told["compared"] = comparison
    if suggested:
        told["suggested"] = suggested
    _write(options, told, lambda: page.render(told, outcome, comparison, suggested))
    if options.format == "json":
        print(_json(told))
    else:
        print(report.as_text(told))
        if comparison is not None:
            print("\n" + report.compared_text(comparison))
        if suggested and peaks is not None:
            print("\n" + suggest.as_text(suggested, peaks.clients))
        rate = source.lines / cpu_s if cpu_s else 0
        print(
            f"\n{source.lines:,} lines in {elapsed_s:.2f} s; {rate:,.0f} lines for each second of processor time",
            file=sys.stderr,
        )
    return 1 if source.lines and not outcome.requests else 0


_POLICIES: Final = (".toml", ".yaml", ".yml")


def _policies(options: argparse.Namespace) -> tuple[Any, Any]:
    from shield.policy import Policy
    from shield.server.source import PolicySource

    if options.compare is not None:
        old, new = (Policy.load(path) for path in options.compare)
        return new, old
    policy = PolicySource.starter().parse() if options.policy is None else Policy.load(options.policy)
    if options.packaged or options.policy is None:
        known = {one.name for one in policy.detectors}
        packaged = Policy.parse('version = 1\n[[detector]]\nuse = "packaged"\n').detectors
        policy = replace(policy, detectors=(*policy.detectors, *(one for one in packaged if one.name not in known)))
    return policy, None


def _write(options: argparse.Namespace, told: dict[str, Any], page: Callable[[], str]) -> None:
    from shield.server.sockets import UsageError

    try:
        if options.json is not None:
            options.json.write_text(_json(told) + "\n", encoding="utf-8")
        if options.html is not None:
            options.html.write_text(page(), encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be written: {error.strerror}") from None


def _json(told: dict[str, Any]) -> str:
    import json

    return json.dumps(told, indent=2, ensure_ascii=True)


class Bar:
    """A progress bar on a terminal: how much of the files is read, and how fast."""

    WIDTH = 30

    def __init__(self, to: TextIO, total_bytes: int) -> None:
        self._to = to
        self._total_bytes = total_bytes
        self._started = self._shown = time.monotonic()

    def show(self, read_bytes: int, lines: int) -> None:
        """At most five times a second."""
        now = time.monotonic()
        if now - self._shown < 0.2:
            return
        self._shown = now
        rate = lines / max(now - self._started, 1e-9)
        if self._total_bytes:
            part = min(1.0, read_bytes / self._total_bytes)
            full = int(part * self.WIDTH)
            left = (now - self._started) * (1 - part) / part if part else 0.0
            bar = "#" * full + "." * (self.WIDTH - full)
            text = f"[{bar}] {part:4.0%}  {lines:,} lines, {rate:,.0f}/s, {left:.0f} s left"
        else:
            text = f"{lines:,} lines, {rate:,.0f}/s"
        self._to.write(f"\r{text:<78}")
        self._to.flush()

    def done(self) -> None:
        """Takes the line away."""
        self._to.write("\r" + " " * 78 + "\r")
        self._to.flush()
