"""Databases of places: read, read again when they change, and clear words for those that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from shield import Policy, Request, Shield
from shield.cli import main
from shield.detect.detection import Detection
from shield.detect.travel import Place
from shield.geo import CHECK_S, MAX_REMEMBERED, Places
from shield.testing import ManualClock
from tests.geo_database import city, write_database

OSLO, SYDNEY = city(59.91, 10.75, "NO"), city(-33.87, 151.21, "AU")
TRAVEL = 'version = 1\n[[detector]]\nuse = "impossible-travel"\n'
BY_COUNTRY = """
version = 1
[[detector]]
name = "card-testing-by-country"
on = { event = ["payment_failed"], country = ["NO", "SE"] }
key = ["attributes.country", "attributes.asn"]
measure = "distinct"
of = "ip"
capacity = 1
leak = "1/m"
subject = "ip"
"""


def databases(tmp_path: Path) -> tuple[Path, Path]:
    places = write_database(tmp_path / "city.mmdb", {"203.0.113.0/24": OSLO, "198.51.100.0/25": SYDNEY})
    asn = {"autonomous_system_number": 64_500, "autonomous_system_organization": "Example"}
    networks = write_database(tmp_path / "asn.mmdb", {"203.0.113.0/24": asn}, "GeoLite2-ASN")
    return places, networks


def test_places_countries_and_networks(tmp_path: Path) -> None:
    locate = Places(*databases(tmp_path))
    assert locate("203.0.113.77") == Place(59.91, 10.75, 20, "NO", "64500")
    assert locate("198.51.100.1") == Place(-33.87, 151.21, 20, "AU", None)
    assert locate("198.51.100.200") is None, "the other half of the network"
    assert locate("no address") is None
    assert locate("2001:db8::1") is None
    for i in range(MAX_REMEMBERED + 10):
        locate(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}")
    assert locate("203.0.113.77") is not None


def test_a_country_alone(tmp_path: Path) -> None:
    country = {"country": {"iso_code": "SE"}}
    locate = Places(write_database(tmp_path / "c.mmdb", {"192.0.2.0/24": country}, "GeoLite2-Country"))
    place = locate("192.0.2.1")
    assert place is not None
    assert (place.country, place.latitude, place.longitude) == ("SE", 0, 0)


def test_a_file_that_changes_is_read_again_and_a_broken_one_is_told_of_once(tmp_path: Path) -> None:
    now, told = [0.0], []
    path = write_database(tmp_path / "city.mmdb", {"203.0.113.0/24": OSLO})
    locate = Places(path, report=told.append, clock=lambda: now[0])
    assert locate("198.51.100.1") is None
    write_database(path, {"198.51.100.0/24": SYDNEY, "203.0.113.0/24": OSLO})
    assert locate("198.51.100.1") is None, "not yet looked at"
    now[0] += CHECK_S
    assert locate("198.51.100.1") is not None
    (tmp_path / "new").write_bytes(b"no database")
    (tmp_path / "new").replace(path)
    for _ in range(3):
        now[0] += CHECK_S
        assert locate("198.51.100.1") is not None, "the old one stays"
    assert len(told) == locate.faults == 1
    assert "no MaxMind-format database" in told[0]
    path.unlink()
    now[0] += CHECK_S
    assert locate("203.0.113.1") is not None
    assert "no such file" in told[1]
    write_database(path, {"203.0.113.0/24": {"autonomous_system_number": 1}}, "GeoLite2-ASN")
    now[0] += CHECK_S
    assert locate("203.0.113.1") is not None
    assert "a database of networks, which it was not before" in told[2]


@pytest.mark.parametrize(
    ("kinds", "why"),
    [
        ([None], "no such file"),
        ([b"x" * 500], "no MaxMind-format database"),
        ([b""], "no MaxMind-format database"),
        (["GeoIP2-Anonymous-IP"], "found a database of type 'GeoIP2-Anonymous-IP'"),
        (["GeoLite2-City", "GeoIP2-Enterprise"], "a second database of places"),
    ],
)
def test_what_cannot_be_used_is_said(kinds: list[str | bytes | None], why: str, tmp_path: Path) -> None:
    paths = []
    for at, kind in enumerate(kinds):
        paths.append(tmp_path / f"{at}.mmdb")
        if isinstance(kind, bytes):
            paths[-1].write_bytes(kind)
        elif kind is not None:
            write_database(paths[-1], {"203.0.113.0/24": OSLO}, kind)
    with pytest.raises(ValueError, match=why):
        Places(*paths)


def test_serve_says_which_option_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "none.mmdb")
    assert main(["serve", "--listen", "127.0.0.1:0", "--admin", "none", "--geo", missing]) == 2
    assert f"--geo {missing}: no such file" in capsys.readouterr().err


def heard(policy: str, locate: Places) -> tuple[Shield, list[Detection]]:
    found: list[Detection] = []
    shield = Shield(Policy.parse(policy), clock=ManualClock(), locate=locate)
    shield.abuse.listeners.append(found.append)
    return shield, found


def test_a_journey_by_a_database(tmp_path: Path) -> None:
    shield, found = heard(TRAVEL, Places(*databases(tmp_path)))
    for ip in ("203.0.113.1", "198.51.100.1"):
        shield.abuse.outcome(Request(ip=ip, user="ada"), 200, "login_ok")
    assert [one.places for one in found] == [("NO 59.91,10.75", "AU -33.87,151.21")]


def test_country_and_network_as_facts_of_detectors(tmp_path: Path) -> None:
    """By the database where the request does not state them; what it states wins."""
    shield, found = heard(BY_COUNTRY, Places(*databases(tmp_path)))
    for ip in ("198.51.100.1", "198.51.100.2", "192.0.2.1", "192.0.2.2"):  # Australia, and nobody knows where
        shield.abuse.outcome(Request(ip=ip), 402, "payment_failed")
    assert found == []
    shield.abuse.outcome(Request(ip="203.0.113.1"), 402, "payment_failed")
    shield.abuse.outcome(Request(ip="203.0.113.9", attributes={"country": "AU"}), 402, "payment_failed")
    assert found == []
    shield.abuse.outcome(Request(ip="203.0.113.2"), 402, "payment_failed")
    assert [dict(one.key) for one in found] == [{"attributes.country": "NO", "attributes.asn": "64500"}]
