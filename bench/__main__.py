"""`python -m bench [NAME ...] [--seconds S] [--json FILE]`: runs benchmarks and prints one table.

Ratios are taken within one run, between repeats that take turns, because absolute figures drift with the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from bench import blocks, core, decision, detectors, memory, scale
from bench.record import Row

BENCHES: dict[str, Callable[[float], list[Row]]] = {
    "blocks": blocks.run,
    "core": core.run,
    "decision": decision.run,
    "detectors": detectors.run,
    "memory": memory.run,
    "scale": scale.run,
}


def machine() -> dict[str, str | int]:
    """What the figures depend on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count() or 1,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones (default: all): {', '.join(BENCHES)}")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each figure (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and the machine's facts there")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in BENCHES]
    if unknown:
        parser.error(f"no benchmark called {unknown[0]}; there are {', '.join(BENCHES)}")
    rows: list[Row] = []
    for name in args.names or BENCHES:
        print(f"{name} ...", end="\r", file=sys.stderr, flush=True)
        rows += BENCHES[name](args.seconds)
    width = max(len(row.what) for row in rows)
    for row in rows:
        target = f"   wanted {row.wanted}: {'yes' if row.met else 'NO'}" if row.wanted else ""
        print(f"{row.what:<{width}}  {row.value:>12,.1f} {row.unit}{target}")
    if args.json:
        record = {"machine": machine(), "rows": [row._asdict() for row in rows]}
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
