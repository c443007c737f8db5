"""Real servers for the tests: the same that the benchmarks start."""

from bench.servers import (
    Server,
    _die_with_parent,
    _end,
    binaries,
    free_port,
    make_certificates,
    run_server,
    version_of,
)

__all__ = [
    "Server",
    "_die_with_parent",
    "_end",
    "binaries",
    "free_port",
    "make_certificates",
    "run_server",
    "version_of",
]
