"""Benchmarks: each answers one question of a capacity planner. `python -m bench` runs them; README.md has the table."""
