"""Benchmarks: each answers one question of a capacity planner. `python -m bench` runs them; the table is in README.md."""
