"""The cluster that benchmarks start, for the tests."""

from __future__ import annotations

from bench.clusters import PRIMARIES, ClusterOf, run_cluster, wait_for

__all__ = ["PRIMARIES", "ClusterOf", "run_cluster", "wait_for"]
