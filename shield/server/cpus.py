"""How many CPUs this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_cpus(root: Path = Path("/")) -> int:
    """Those it may be scheduled on, or fewer where a container's quota says so; at least one.

    `root` is where /proc and /sys are.
    """
    try:
        found = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        found = os.cpu_count() or 1
    return max(1, math.ceil(min(found, _quota(root))))


def _quota(root: Path) -> float:
    """CPUs' worth of time per period, by control groups of version 2 or 1; infinite where nothing is said."""
    quota = math.inf
    for folder in _folders(root):
        try:
            if (folder / "cpu.max").exists():
                limit, period = (folder / "cpu.max").read_text().split()
            else:
                limit = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
            if limit.strip() not in ("max", "-1"):
                quota = min(quota, int(limit) / int(period))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return quota


def _folders(root: Path) -> list[Path]:
    """The groups that this process is in and those above them: each may set a quota."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0":
            top = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            top = root / "sys/fs/cgroup/cpu"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        found += [top.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
    return found
