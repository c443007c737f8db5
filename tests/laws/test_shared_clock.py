"""Law 5 of the shared table: its clock is read before the cells, and another process may write one in between."""

from __future__ import annotations

from pathlib import Path

import pytest

from shield import Policy, Request, Shield

NOW_NS = 1_763_900_000_000_000_000
# One unit drains in a microsecond: a cell two microseconds ahead looks like one of a clock that was set back.
FAST = Policy.parse('[[limit]]\nname = "fast"\nkey = ["user"]\nrate = "1000000/s"\nburst = 1\n')
WINDOW = Policy.parse('[[limit]]\nname = "w"\nkey = ["user"]\nalgorithm = "fixed-window"\nrate = "5/200ms"\n')


def url(folder: Path) -> str:
    return f"shared://clock?max_keys=10&max_leases=10&max_receipts=10&dir={folder}"


@pytest.mark.parametrize(("policy", "later_us"), [(FAST, 10), (WINDOW, 200_000)], ids=["bucket", "window"])
@pytest.mark.parametrize("fresh", [True, False])
def test_a_cell_that_is_newer_than_the_clock_is_no_clock_set_back(
    tmp_path: Path, policy: Policy, later_us: int, fresh: bool
) -> None:
    other_now_ns = NOW_NS - 50_000
    other = Shield(policy, url(tmp_path), clock=lambda: other_now_ns)
    if not fresh:
        assert other.check_nowait(Request(user="u")).allowed
    readings, asked = 0, False

    def clock() -> int:
        """Between the first reading of a step and the cells another process comes in."""
        nonlocal other_now_ns, readings
        readings += 1
        if readings > 1:
            return NOW_NS + later_us * 1_000
        other_now_ns = NOW_NS + (later_us // 2 if policy is FAST else later_us) * 1_000
        assert other.check_nowait(Request(user="u")).allowed
        return NOW_NS

    shield = Shield(policy, url(tmp_path), clock=lambda: clock() if asked else NOW_NS)
    asked = True
    decision = shield.check_nowait(Request(user="u"))
    assert readings == 2
    assert decision.allowed
    assert decision.charges.now_us == NOW_NS // 1_000 + later_us
    if policy is WINDOW:
        assert decision.limits[0].remaining == 3
