"""The contract's laws, one section each, held against every store. tests/mutants/ proves that each section can fail."""

from __future__ import annotations

import asyncio
import random

import pytest

from shield import Policy
from shield.testing import check_trace

US = 1_000_000


def bucket(name: str, rate: str, burst: int | None = None, **more: object) -> str:
    lines = [f'[[limit]]\nname = "{name}"\nrate = "{rate}"']
    if burst is not None:
        lines.append(f"burst = {burst}")
    more.setdefault("key", ["user"])
    for key, value in more.items():
        text = str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
        lines.append(f"{key} = {text}")
    return "\n".join(lines) + "\n"


def policy(*limits: str) -> str:
    return 'version = 1\nname = "laws"\n' + "\n".join(limits)


# ---- 1. never over --------------------------------------------------------------------------------------------------


LAW_1_RATES = [("100/s", 20), ("45/m", 5), ("7/3s", 7), ("1000/s", 100), ("1/h", 3), ("1000000/s", 50)]


@pytest.mark.parametrize(("rate", "burst"), LAW_1_RATES)
async def test_law_1_no_interval_admits_more_than_burst_plus_rate(make_world, rate, burst):
    world = await make_world(policy(bucket("b", rate, burst, cost="request")))
    random_source = random.Random(rate)
    limit = world.shield.policy.limits[0].numbers
    step_us = limit.refill_us * burst // (limit.refill_units * 3)
    admitted = []
    for _ in range(400):
        cost = random_source.choice([1, 1, 1, 2, burst])
        if (await world.ask(user="u", cost=cost)).allowed:
            admitted.append((world.now_us, cost))
        world.now_us += random_source.choice([0, 0, 1, step_us // 7, step_us, random_source.randrange(4 * step_us)])
    assert admitted
    assert check_trace(admitted, rate=(limit.refill_units, limit.refill_us), burst=burst) == []


async def test_law_1_what_refills_between_whole_units_is_not_lost(make_world):
    """45 a minute with a burst of 5, asked once a second for ten minutes: the ideal is 454, throttled-py admits 302."""
    world = await make_world(policy(bucket("b", "45/m", 5)))
    allowed = 0
    for _ in range(600):
        allowed += (await world.ask(user="u")).allowed
        world.now_us += US
    assert allowed == 454


async def test_law_1_a_sliding_window_admits_by_its_definition(make_world):
    world = await make_world(policy(bucket("w", "100/m", algorithm="sliding-window", cost="request")))
    world.now_us -= world.now_us % (60 * US)
    assert (await world.ask(user="u", cost=40)).allowed
    world.now_us += 60 * US
    assert (await world.ask(user="u", cost=80)).allowed is False  # 40 of the last window still count in full
    assert (await world.ask(user="u", cost=60)).allowed
    world.now_us += 30 * US
    assert (await world.ask(user="u", cost=20)).allowed  # half of the 40 have faded
    assert (await world.ask(user="u", cost=1)).allowed is False


# ---- 2. a refused request costs nothing -----------------------------------------------------------------------------


async def test_law_2_other_limits_are_not_charged_for_a_refusal(make_world):
    """Ten tries under 100/h and 2/m: two pass, so 98 are left of the hour. `limits` leaves 90."""
    world = await make_world(policy(bucket("hour", "100/h", 100), bucket("minute", "2/m", 2)))
    verdicts = [(await world.ask(user="u")).allowed for _ in range(10)]
    assert verdicts == [True, True] + [False] * 8
    assert await world.remaining("hour", user="u") == 98


async def test_law_2_one_users_refusals_do_not_drain_the_tenant(make_world):
    """envoyproxy/ratelimit#1060: a user over their own limit burns the quota that all share."""
    world = await make_world(policy(bucket("tenant", "1000/h", 1000, key=["tenant"]), bucket("user", "1/h", 1)))
    for _ in range(50):
        await world.ask(tenant="t", user="greedy")
    assert await world.remaining("tenant", tenant="t") == 999


@pytest.mark.parametrize("algorithm", ["token-bucket", "sliding-window", "fixed-window"])
async def test_law_2_a_cost_that_cannot_fit_takes_nothing(make_world, algorithm):
    world = await make_world(policy(bucket("b", "5/m", algorithm=algorithm, cost="request")))
    decision = await world.ask(user="u", cost=9)
    assert (decision.allowed, decision.retry_after) == (False, None)
    assert await world.remaining("b", user="u") == 5


async def test_law_2_count_denied_is_charged_on_every_refusal_but_never_below_empty(make_world):
    world = await make_world(
        policy(bucket("tight", "1/h", 1), bucket("abuse", "10/m", 10, count_denied=True, key=["ip"]))
    )
    for _ in range(30):
        await world.ask(user="u", ip="203.0.113.7")
    assert await world.remaining("abuse", ip="203.0.113.7") == 0
    world.now_us += 6 * US  # a tenth of a minute: exactly one unit is back, so it was at empty and not beyond
    assert await world.remaining("abuse", ip="203.0.113.7") == 1


async def test_law_2_a_guards_refusal_is_charged_to_count_denied_alone(make_world):
    guard = "[guard.size]\nmax_body_bytes = 10\n"
    world = await make_world(policy(bucket("plain", "5/m", 5), bucket("abuse", "5/m", 5, count_denied=True), guard))
    decision = await world.ask(user="u", bytes=11)
    assert (decision.reason, decision.status) == ("too_large", 413)
    assert await world.remaining("plain", user="u") == 5
    assert await world.remaining("abuse", user="u") == 4


async def test_law_2_shadow_limits_refuse_nothing_and_are_charged_only_with_the_request(make_world):
    world = await make_world(policy(bucket("shadow", "2/m", 2, mode="shadow"), bucket("real", "4/m", 4)))
    decisions = [await world.ask(user="u") for _ in range(6)]
    assert [d.allowed for d in decisions] == [True] * 4 + [False] * 2
    assert [d.shadow for d in decisions] == [[], [], ["shadow"], ["shadow"], ["shadow"], ["shadow"]]
    assert all("shadow" not in d.headers.get("RateLimit", "") + d.headers["RateLimit-Policy"] for d in decisions)
    assert decisions[-1].violated == ["real"]


# ---- 3. all or nothing ----------------------------------------------------------------------------------------------


async def test_law_3_concurrent_requests_take_all_or_nothing(make_world):
    limits = [bucket(f"b{i}", "10/h", 10 + i, key=[field]) for i, field in enumerate(["user", "tenant", "ip"])]
    world = await make_world(policy(*limits))
    asked = [world.ask(user="u", tenant="t", ip="192.0.2.1") for _ in range(100)]
    decisions = await asyncio.gather(*asked)
    assert sum(d.allowed for d in decisions) == 10
    facts = {"user": "u", "tenant": "t", "ip": "192.0.2.1"}
    assert [await world.remaining(f"b{i}", **facts) for i in range(3)] == [0, 1, 2]


async def test_law_3_a_full_concurrency_limit_leaves_the_buckets_alone(make_world):
    slots = '[[limit]]\nname = "slots"\nkey = ["user"]\nalgorithm = "concurrency"\nlimit = 2\nttl = "60s"\n'
    world = await make_world(policy(bucket("b", "10/h", 10), slots))
    held = [await world.ask(user="u") for _ in range(2)]
    refused = await world.ask(user="u")
    assert (refused.reason, refused.violated, refused.retry_after) == ("concurrency", ["slots"], 1.0)
    assert await world.remaining("b", user="u") == 8
    assert await world.shield.release(held[0].leases) == 1
    assert await world.shield.release(held[0].leases) == 0
    assert (await world.ask(user="u")).allowed
    world.now_us += 60 * US - 400_000
    assert (await world.ask(user="u")).retry_after == 0.4
    world.now_us += 400_000
    assert (await world.ask(user="u")).allowed


# ---- 4. retry-after is exact ----------------------------------------------------------------------------------------

RETRY_CASES = [
    ("token-bucket", "100/s", 7),
    ("token-bucket", "7/3s", 3),
    ("token-bucket", "1/30d", 2),
    ("token-bucket", "1000000/s", 1_000_000_000),
    ("sliding-window", "10/m", None),
    ("sliding-window", "3/200ms", None),
    ("fixed-window", "10/m", None),
]


@pytest.mark.parametrize(("algorithm", "rate", "burst"), RETRY_CASES)
async def test_law_4_denied_one_microsecond_before_and_allowed_at_it(make_world, algorithm, rate, burst):
    world = await make_world(policy(bucket("b", rate, burst, algorithm=algorithm, cost="request")))
    limit = world.shield.policy.limits[0].numbers.limit
    random_source = random.Random(f"{algorithm}{rate}")
    for round_number in range(12):
        user = f"u{round_number}"
        while (await world.ask(user=user, cost=random_source.randint(1, limit))).allowed:
            world.now_us += random_source.randrange(1, 40_000)
        cost = random_source.randint(1, limit)
        decision = await world.ask(user=user, cost=cost)
        if decision.allowed:
            continue
        wait_us = round(decision.retry_after * US)
        assert wait_us > 0
        assert decision.retry_after == decision.limits[0].retry_after
        world.now_us += wait_us - 1
        assert not (await world.ask(user=user, cost=cost)).allowed
        world.now_us += 1
        assert (await world.ask(user=user, cost=cost)).allowed


async def test_law_4_the_longest_wait_counts_and_all_are_named(make_world):
    world = await make_world(policy(bucket("short", "1/s", 1), bucket("long", "1/m", 1)))
    await world.ask(user="u")
    decision = await world.ask(user="u")
    assert (decision.violated, decision.retry_after) == (["short", "long"], 60.0)
    assert decision.headers["Retry-After"] == "60"


async def test_law_4_a_penalty_counts_into_the_wait(make_world):
    """The refusal itself empties a count_denied limit: from then on that one stands in the way longest."""
    world = await make_world(
        policy(bucket("short", "1/s", 1), bucket("abuse", "1/m", 2, count_denied=True, key=["ip"]))
    )
    facts = {"user": "u", "ip": "192.0.2.1"}
    await world.ask(**facts)
    decision = await world.ask(**facts)
    assert (decision.violated, decision.retry_after) == (["short"], 60.0)
    world.now_us += 60 * US
    assert (await world.ask(**facts)).allowed


# ---- 5. clocks cannot mint ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["token-bucket", "sliding-window", "fixed-window"])
async def test_law_5_a_clock_that_steps_back_and_forth_mints_nothing(make_world, algorithm):
    world = await make_world(policy(bucket("b", "10/s", algorithm=algorithm)))
    world.now_us -= world.now_us % US
    start = world.now_us
    random_source = random.Random(algorithm)
    admitted = 0
    for _ in range(300):
        world.now_us = start + random_source.randrange(900_000)  # never leaves the first window, or one burst's refill
        admitted += (await world.ask(user="u")).allowed
    assert admitted <= (10 + 9 if algorithm == "token-bucket" else 10)


@pytest.mark.parametrize("algorithm", ["token-bucket", "sliding-window", "fixed-window"])
async def test_law_5_a_clock_set_back_by_a_year_neither_frees_nor_locks_out(make_world, algorithm):
    world = await make_world(policy(bucket("b", "10/m", algorithm=algorithm)))
    world.now_us += 365 * 86_400 * US
    assert (await world.ask(user="u")).allowed
    world.now_us -= 365 * 86_400 * US
    refused = await world.ask(user="u")
    assert not refused.allowed, "an instant that far ahead is treated as empty, not as full"
    world.now_us += round(refused.retry_after * US) - 1
    assert not (await world.ask(user="u")).allowed
    world.now_us += 1
    assert (await world.ask(user="u")).allowed


@pytest.mark.parametrize("algorithm", ["token-bucket", "sliding-window", "fixed-window"])
async def test_law_5_a_clock_set_back_under_smaller_numbers_forgives_nothing(make_world, algorithm):
    """Counted as all used means at least that: a smaller plan's limit must not lower what was spent."""
    plans = 'plans = { small = { rate = "1/s" } }'
    world = await make_world(policy(bucket("b", "10/s", algorithm=algorithm) + plans))
    for _ in range(10):
        assert (await world.ask(user="u")).allowed
    world.now_us -= 60 * US
    assert not (await world.ask(user="u", plan="small")).allowed
    assert not (await world.ask(user="u")).allowed


async def test_law_5_a_clock_that_stands_refills_nothing(make_world):
    world = await make_world(policy(bucket("b", "1000000/s", 5)))
    assert [(await world.ask(user="u")).allowed for _ in range(7)] == [True] * 5 + [False] * 2


# ---- 6. forgetting is exact -----------------------------------------------------------------------------------------


async def test_law_6_a_bucket_is_kept_until_a_fresh_one_would_answer_the_same(make_world):
    """No time to live that is too short: slow rates, and bursts much larger than the rate (Traefik, APISIX)."""
    world = await make_world(policy(bucket("slow", "1/h", 100)))
    for _ in range(100):
        assert (await world.ask(user="u")).allowed
    for _ in range(100):
        world.now_us += 36 * US
        await world.ask(user=f"other{world.now_us}")  # gives a table a reason to sweep
    assert await world.remaining("slow", user="u") == 1


# ---- 7. numbers are not identity ------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["token-bucket", "sliding-window", "fixed-window"])
async def test_law_7_raising_and_lowering_keeps_what_was_spent(make_world, algorithm):
    def limits(count: int) -> Policy:
        return Policy.parse(policy(bucket("b", f"{count}/h", algorithm=algorithm)))

    world = await make_world(policy(bucket("b", "100/h", algorithm=algorithm)))
    for _ in range(60):
        assert (await world.ask(user="u")).allowed
    await world.shield.replace_policy(limits(200))
    assert await world.remaining("b", user="u") == 140
    await world.shield.replace_policy(limits(50))
    assert await world.remaining("b", user="u") == 0
    assert not (await world.ask(user="u")).allowed
    await world.shield.replace_policy(limits(100))
    assert await world.remaining("b", user="u") == 40


async def test_law_7_a_plan_changes_numbers_and_not_the_bucket(make_world):
    plans = 'plans = { pro = { rate = "1000/h", burst = 50 } }'
    world = await make_world(policy(bucket("b", "10/h", 10) + plans))
    for _ in range(8):
        assert (await world.ask(user="u")).allowed
    assert await world.remaining("b", user="u", plan="pro") == 42
    assert await world.remaining("b", user="u", plan="unheard-of") == 2


async def test_law_7_other_periods_keep_fractions_of_a_unit(make_world):
    world = await make_world(policy(bucket("b", "7/3s", 7)))
    for _ in range(7):
        await world.ask(user="u")
    world.now_us += 1  # a sliver of a unit has drained
    await world.shield.replace_policy(Policy.parse(policy(bucket("b", "11/s", 7))))
    refused = await world.ask(user="u")
    assert not refused.allowed
    world.now_us += round(refused.retry_after * US)
    assert (await world.ask(user="u")).allowed


async def test_law_7_conduct_is_not_identity(make_world):
    world = await make_world(policy(bucket("b", "10/h", 10), bucket("c", "9/h", 9)))
    for _ in range(5):
        await world.ask(user="u")
    changed = policy(bucket("c", "9/h", 9), bucket("b", "10/h", 10, count_denied=True, when_full="deny"))
    await world.shield.replace_policy(Policy.parse(changed))
    assert await world.remaining("b", user="u") == 5


# ---- refunds --------------------------------------------------------------------------------------------------------


async def test_refunds_do_not_mint(make_world):
    """Burst 10 at 100/s: take 10, wait until full, take 10, refund 9, take 9 would be 19 at one instant."""
    world = await make_world(policy(bucket("b", "100/s", 10, cost="request")))
    first = await world.ask(user="u", cost=10)
    world.now_us += 100_000
    assert (await world.ask(user="u", cost=10)).allowed
    assert await world.shield.report(first.receipt, cost=1)
    assert not (await world.ask(user="u", cost=1)).allowed


async def test_a_refund_gives_back_what_refill_has_not_and_only_once(make_world):
    world = await make_world(policy(bucket("b", "10/s", 10, cost="request")))
    decision = await world.ask(user="u", cost=10)
    world.now_us += 300_000  # three units have come back by themselves
    assert await world.shield.report(decision.receipt, cost=2) is True
    assert await world.remaining("b", user="u") == 8
    assert await world.shield.report(decision.receipt, cost=0) is False
    assert await world.remaining("b", user="u") == 8


async def test_a_refund_after_a_step_back_does_not_mint(make_world):
    """The bucket has seen 100 ms of drain; that the clock was set back since does not undo it."""
    world = await make_world(policy(bucket("b", "100/s", 10, cost="request")))
    first = await world.ask(user="u", cost=10)
    world.now_us += 100_000
    assert (await world.ask(user="u", cost=10)).allowed
    world.now_us -= 100_000
    assert await world.shield.report(first.receipt, cost=1)
    assert not (await world.ask(user="u", cost=1)).allowed


@pytest.mark.parametrize("algorithm", ["sliding-window", "fixed-window"])
async def test_a_refund_reaches_only_the_window_that_was_charged(make_world, algorithm):
    world = await make_world(policy(bucket("b", "10/m", algorithm=algorithm, cost="request")))
    world.now_us -= world.now_us % (60 * US)
    early, late = await world.ask(user="u", cost=4), await world.ask(user="u", cost=4)
    assert await world.shield.report(early.receipt, cost=1)
    assert await world.remaining("b", user="u") == 5
    world.now_us += 120 * US
    assert (await world.ask(user="u", cost=10)).allowed
    assert await world.shield.report(late.receipt, cost=0)
    assert await world.remaining("b", user="u") == 0


async def test_an_extra_charge_is_debt_of_at_most_one_burst(make_world):
    world = await make_world(policy(bucket("b", "10/s", 10, cost="request")))
    decision = await world.ask(user="u", cost=1)
    assert await world.shield.report(decision.receipt, cost=1_000_000)
    refused = await world.ask(user="u", cost=1)
    assert (refused.allowed, refused.retry_after) == (False, 1.1)


# ---- 9. a refusal is a value ----------------------------------------------------------------------------------------

HOSTILE = [
    ({"ip": "300.1.2.3"}, "ip"),
    ({"ip": "1.2.3.4\0"}, "ip"),
    ({"ip": "\ud800"}, "ip"),
    ({"ip": 7}, "ip"),
    ({"user": "\ud800"}, "user"),
    ({"user": 7}, "user"),
    ({"user": "u", "cost": -1}, "cost"),
    ({"user": "u", "cost": 2**62}, "cost"),
    ({"user": "u", "cost": 2**200}, "cost"),
    ({"user": "u", "cost": float("nan")}, "cost"),
    ({"user": "u", "cost": True}, "cost"),
    ({"user": "u", "bytes": -5}, "bytes"),
    ({"user": "u", "path": "/" + "x" * 9000}, "path"),
    ({"user": "u", "path": 7}, "path"),
    ({"user": "u", "method": 7}, "method"),
    ({"user": "u", "content_type": 7, "bytes": 7}, "content_type"),
    ({"user": "u", "plan": ["pro"]}, "plan"),
    ({"user": "u", "plan": "\udcff"}, "plan"),
    ({"user": "u", "plan": "p" * 2000}, "plan"),
    ({"user": "u", "request_id": "\udcff"}, "request_id"),
    ({"user": "u", "request_id": 7}, "request_id"),
    ({"user": "u", "attributes": ["country"]}, "attributes"),
    ({"user": "u", "attributes": {"country": ["NO"]}}, "attributes.country"),
]


@pytest.mark.parametrize(("facts", "field"), HOSTILE)
async def test_law_9_hostile_values_are_refusals_that_name_the_field(make_world, facts, field):
    guard = '[guard.size]\ncontent_types = ["application/json"]\n'
    matched = 'match = { method = ["POST"], path = "/orders/{id}" }\nplans = { pro = { rate = "1/s" } }\n'
    limits = [bucket("b", "10/h", 10), bucket("path", "1/s", 1, key=["path"]), bucket("m", "1/s") + matched]
    limits.append(bucket("country", "1/s", key=["attributes.country"]))
    world = await make_world(policy(*limits, guard))
    decision = await world.ask(**facts)
    assert (decision.allowed, decision.status, decision.reason) == (False, 400, "invalid")
    assert field in decision.detail
    assert decision.to_json()


async def test_law_9_a_missing_key_field_is_skipped_or_refused_as_the_policy_says(make_world):
    world = await make_world(policy(bucket("skip", "1/h", 1), bucket("deny", "1/h", 1, key=["tenant"], missing="deny")))
    decision = await world.ask(user="u")
    assert (decision.reason, decision.status) == ("missing", 400)
    assert "tenant" in decision.detail
    assert "deny" in decision.detail
    assert (await world.ask(tenant="t")).allowed


@pytest.mark.parametrize("user", ["\0", "a\0b", "x" * 1_000_000, "é中文🙂", "https://a/b?c#d", " ", "a/b"])
async def test_odd_keys_are_keys_like_any_other(make_world, user):
    world = await make_world(policy(bucket("b", "2/h", 2)))
    assert [(await world.ask(user=user)).allowed for _ in range(3)] == [True, True, False]
    assert (await world.ask(user=user + "x")).allowed


async def test_parts_of_a_key_do_not_run_into_each_other(make_world):
    """`limits` joins them with a slash: ("a/b", "c") and ("a", "b/c") share a bucket there."""
    world = await make_world(policy(bucket("b", "1/h", 1, key=["tenant", "user"])))
    assert (await world.ask(tenant="a/b", user="c")).allowed
    assert (await world.ask(tenant="a", user="b/c")).allowed
    assert (await world.ask(tenant="ab", user="c")).allowed
    assert not (await world.ask(tenant="a", user="b/c")).allowed


async def test_one_ipv6_customer_is_one_subject(make_world):
    world = await make_world(policy(bucket("b", "1/h", 1, key=["ip"])))
    assert (await world.ask(ip="2001:db8::1000")).allowed
    assert not (await world.ask(ip="2001:0DB8:0:0:ffff::1")).allowed
    assert (await world.ask(ip="2001:db9::1000")).allowed
    assert (await world.ask(ip="10.1.1.1")).allowed
    assert not (await world.ask(ip="::ffff:10.1.1.1")).allowed


@pytest.mark.parametrize(
    "other",
    [
        'algorithm = "fixed-window"\nrate = "10/h"',
        'algorithm = "concurrency"\nlimit = 3',
        'rate = "10/h"\nkey = ["tenant"]',
    ],
)
async def test_a_receipt_means_the_limit_that_was_charged_and_not_its_namesake(make_world, other):
    world = await make_world(policy(bucket("b", "10/h", 10, cost="request"), bucket("c", "9/h", 9, cost="request")))
    decision = await world.ask(user="u", tenant="u", cost=5)
    changed = f'[[limit]]\nname = "b"\ncost = "request"\n{other}\n' + ("" if "key" in other else 'key = ["user"]\n')
    await world.shield.replace_policy(Policy.parse(policy(changed, bucket("c", "9/h", 9, cost="request"))))
    await world.ask(user="u", tenant="u", cost=1)
    assert await world.shield.report(decision.receipt, cost=2)
    assert await world.remaining("c", user="u", tenant="u") == 9 - 1 - 2
    assert await world.remaining("b", user="u", tenant="u") in (9, 2)  # one of what the new limit has, nothing else
