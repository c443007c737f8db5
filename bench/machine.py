"""What the figures depend on: the processor and its clock, the system, the versions of what was measured."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("shield-limiter", "aiohttp", "uvloop", "redis", "hiredis", "msgspec", "hdrhistogram")
_CPU = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_CLOCK = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")


def cores() -> list[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def facts() -> dict[str, Any]:
    """Everything that a reader of the figures must know of the machine; "unknown" where the system does not say."""
    return {
        "cpu": _cpu(),
        "cores": len(cores()),
        "memory_bytes": _memory_bytes(),
        "governor": _read(_CPU / "scaling_governor"),
        "clock_source": _read(_CLOCK),
        "clock_read_ns": round(_clock_read_ns(), 1),
        "system": f"{platform.system()} {platform.release()}",
        "hypervisor": "yes" if "hypervisor" in _cpuinfo("flags").split() else "not seen",
        "python": f"{platform.python_implementation()} {platform.python_version()} ({platform.python_compiler()})",
        "load_average": [round(one, 2) for one in os.getloadavg()] if hasattr(os, "getloadavg") else [],
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _cpuinfo(field: str) -> str:
    for line in _read(Path("/proc/cpuinfo"), "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""


def _cpu() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def _clock_read_ns() -> float:
    """What reading the clock costs: much more than 100 means a clock source that is no counter of the processor."""
    read, calls, tries = time.perf_counter_ns, 1_000, []
    for _ in range(20):
        started = read()
        for _ in range(calls):
            read()
        tries.append((read() - started) / calls)
    return min(tries)


def _read(path: Path, otherwise: str = "unknown") -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return otherwise


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
