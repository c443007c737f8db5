"""Benchmarks: each answers one question of a capacity planner. `python -m bench` runs them, bench/README.md holds the table."""
