"""What `python -m bench` and `shield bench` do with their options (which `shield.cli_bench` declares)."""

from __future__ import annotations

import argparse
import sys
import time

from shield.server.sockets import UsageError

from . import capacity, compare, machine, page, repeats, results, scenarios, table
from .results import Results
from .scenarios import ALIASES, SCENARIOS

NO, FAULT = 1, 3
AGAINST_REPEATS = 14


def run(options: argparse.Namespace) -> int:
    """Exit status. UsageError for a misuse."""
    if options.list:
        width = max(map(len, SCENARIOS))
        for name, scenario in SCENARIOS.items():
            print(f"{name:<{width}}  {scenario.asks}")
        return 0
    if options.compare is not None:
        before, after = (results.read(path) for path in options.compare)
        return _compared(before, after, options.least)
    options.names = [ALIASES.get(name, name) for name in options.names]
    for name in options.names:
        if name not in SCENARIOS:
            raise UsageError(f"no benchmark called {name!r}; there are {', '.join(SCENARIOS)}")
    if options.rate is not None:
        return _capacity(options)
    return _against(options) if options.against is not None else _measured(options)


def _settings(options: argparse.Namespace) -> dict[str, object]:
    return {
        "names": options.names or list(SCENARIOS),
        "seconds": options.seconds,
        "seed": options.seed,
        "repeats": 1,
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _measured(options: argparse.Namespace) -> int:
    found = _run(options)
    _write(options, found)  # first: whoever reads the table may stop reading it
    print(table.figures(found))
    return FAULT if found.interrupted or found.faults else 0


def _run(options: argparse.Namespace) -> Results:
    names, settings = options.names or list(SCENARIOS), _settings(options)
    count = options.repeats or 1
    with table.Progress(len(names) * count) as progress:
        if count > 1:
            (found,) = repeats.run(names, settings, [None], count, progress)
        else:
            found = Results(machine.facts(), settings)
            try:
                for name in names:
                    progress.step(name)
                    scenarios.run(name, options.seconds, options.seed, found)
            except KeyboardInterrupt:
                found.interrupted = True
    return found


def _capacity(options: argparse.Namespace) -> int:
    """What a launch needs, from a file or measured now. NO when this machine does not serve it."""
    if options.names not in ([], ["capacity"]):
        raise UsageError("--rate asks for a capacity plan: name capacity, or nothing")
    wanted = capacity.Wanted(
        options.rate, options.p99_ms, options.keys, options.limits_a_key, options.hot, options.nic_gbits
    )
    options.names = ["capacity"]
    found = _run(options) if options.measured is None else results.read(options.measured)
    facts = [one["points"][0] for one in found.series if one["kind"] == "facts"]
    if options.measured is None:
        _write(options, found)
        print(table.figures(found) + "\n")
    if found.interrupted:
        return FAULT
    if not facts:
        raise UsageError(f"{options.measured or 'this machine'}: no measurements of the scenario capacity are there")
    plans = capacity.plans(facts[0], wanted)
    share = f", {wanted.hot:.0%} of them for one key" if wanted.hot else ""
    print(f"for {wanted.rate:,.0f} checks/s{share}, p99 {wanted.p99_ms:g} ms, {wanted.keys:,} keys")
    print("\n".join(capacity.text(plan, wanted) for plan in plans))
    for note in dict.fromkeys(note for plan in plans for note in plan.notes):
        print(f"note: {note}")
    if any(plan.served for plan in plans):
        return 0
    print(f"this machine does not serve {wanted.rate:,.0f} checks/s at that p99")
    return NO


def _against(options: argparse.Namespace) -> int:
    names, count = options.names or ["core"], options.repeats or AGAINST_REPEATS
    if count < compare.MIN_SAMPLES:
        raise UsageError(f"--repeats {count}: --against needs at least {compare.MIN_SAMPLES} of each to tell anything")
    with table.Progress(len(names) * count) as progress:
        before, after = repeats.run(names, _settings(options), [options.against, None], count, progress)
    _write(options, after)
    status = _compared(before, after, options.least)
    return FAULT if after.interrupted else status


def _write(options: argparse.Namespace, found: Results) -> None:
    if options.json is not None:
        results.write(options.json, found.text())
    if options.html is not None:
        results.write(options.html, page.render(found))
    if found.interrupted:
        written = options.json or options.html
        where = f"are in {written}" if written else "were measured"
        print(f"shield: interrupted; {len(found.rows)} figures {where}", file=sys.stderr)


def _compared(before: Results, after: Results, least: float) -> int:
    comparison = compare.compare(before, after, least)
    print(table.changes(comparison))
    return NO if comparison.regressions else 0
