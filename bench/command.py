"""What `python -m bench` and `shield bench` do with their options (which `shield.cli_bench` declares)."""

from __future__ import annotations

import argparse
import json
import sys

from shield.server.sockets import UsageError

from . import machine, scenarios
from .record import Row
from .scenarios import SCENARIOS


def run(options: argparse.Namespace) -> int:
    """Exit status. UsageError for a misuse."""
    if options.list:
        width = max(map(len, SCENARIOS))
        for name, scenario in SCENARIOS.items():
            print(f"{name:<{width}}  {scenario.asks}")
        return 0
    for name in options.names:
        if name not in SCENARIOS:
            raise UsageError(f"no benchmark called {name!r}; there are {', '.join(SCENARIOS)}")
    rows: list[Row] = []
    for name in options.names or SCENARIOS:
        print(f"{name} ...", end="\r", file=sys.stderr, flush=True)
        try:
            rows += scenarios.run(name, options.seconds)
        except scenarios.Missing as missing:
            print(f"{name}: skipped, {missing}", file=sys.stderr)
    width = max((len(row.what) for row in rows), default=0)
    for row in rows:
        target = f"   wanted {row.wanted}: {'yes' if row.met else 'NO'}" if row.wanted else ""
        print(f"{row.what:<{width}}  {row.value:>12,.1f} {row.unit}{target}")
    if options.json:
        record = {"machine": machine.facts(), "rows": [row._asdict() for row in rows]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0
