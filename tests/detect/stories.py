"""Streams for detectors: what each packaged one is about, event by event, and people who mean no harm."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from shield import Policy, Request
from shield.detect.detection import Detection
from shield.detect.watch import Watch

START_US = 1_700_000_000_000_000


class Event(NamedTuple):
    """One request and what became of it."""

    facts: dict[str, Any]
    status: int | None = 200
    event: str | None = None
    at_us: int = START_US


def event(status: int | None = 200, name: str | None = None, **facts: Any) -> Event:
    return Event({"ip": "203.0.113.7", "method": "GET", "path": "/", "user_agent": "Mozilla/5.0"} | facts, status, name)


def watch(*uses: str, **keys: Any) -> Watch:
    """These packaged detectors; `keys` replace what the package says."""
    entries = [{"use": use} | keys for use in uses]
    import json

    return Watch(Policy.parse(json.dumps({"version": 1, "detector": entries}), "json").detectors, secret=b"k" * 16)


def feed(watching: Watch, events: Iterator[Event] | list[Event]) -> list[Detection]:
    found: list[Detection] = []
    for one in events:
        request = Request(**one.facts)
        found += watching.request(request, one.at_us)
        found += watching.outcome(request, one.status, one.event, one.at_us)
    return found


def spaced(story: Callable[[int], Event], count: int, apart_us: int, start: int = 0) -> list[Event]:
    return [story(start + i)._replace(at_us=START_US + i * apart_us) for i in range(count)]


# Of every packaged detector that fills a bucket: its i-th event. The one that overflows is number capacity + 1.
STORIES: dict[str, Callable[[int], Event]] = {
    "credential-cracking-address": lambda i: event(401, method="POST", path="/login", user=f"u{i % 2}"),
    "credential-cracking-account": lambda i: event(
        200, "login_failed", ip=f"198.51.100.{i}", tenant="acme", user="ada"
    ),
    "credential-stuffing": lambda i: event(401, method="POST", path="/login", user=f"u{i}"),
    "user-enumeration": lambda i: event(404, method="POST", path="/password-reset", user=f"u{i}"),
    "author-enumeration": lambda i: event(404, path=f"/?author={i}"),
    "object-enumeration": lambda i: event(403 if i % 3 == 0 else 200, user="ada", path=f"/orders/{i}/items"),
    "crawling": lambda i: event(200, path=f"/page-{i}", host="a.example"),
    "probing": lambda i: event((400, 403, 404)[i % 3], path=f"/p{i}.php", host="a.example"),
    "admin-probing": lambda i: event(
        404, path=("/phpmyadmin/", "/administrator/", "/+cscoe+/", "/owa/", "/webmin/x")[i % 5]
    ),
    "sensitive-files": lambda i: event(
        404, path=("/.env", "/.git/HEAD", "/site.sql", "/.ssh/id_rsa", "/old/db.bak", "/.aws/credentials")[i % 6]
    ),
    "exploit-probing": lambda i: event(404, path="/vendor/phpunit/phpunit/src/Util/PHP/eval-stdin.php"),
    "web-shell-probing": lambda i: event(404, path=("/c99.php", "/up/my_shell.php", "/wso.php")[i % 3]),
    "wordpress-probing": lambda i: event(404, path=f"/wp-content/plugins/p{i}/readme.txt"),
    "sap-probing": lambda i: event(404, path=("/nwa", "/sap/bc/gui/sap/its/webgui", "/irj/portal")[i % 3]),
    "xmlrpc-cracking": lambda i: event(200, method="POST", path="/blog/xmlrpc.php"),
    "path-traversal": lambda i: event(400, path=f"/get?file=../../../etc/passwd&n={i}"),
    "sql-injection": lambda i: event(200, path=f"/item?id={i}%20UNION%20ALL%20SELECT%20{i}"),
    "script-injection": lambda i: event(200, path=f"/search?q=%3Cscript%3Ealert({i})"),
    "scanner-agent": lambda i: event(200, user_agent="Mozilla/5.00 (Nikto/2.5.0)"),
    "open-proxy": lambda i: event(400, method="CONNECT", path="mail.example:25"),
    "user-agent-switching": lambda i: event(200, user_agent=f"Agent/{i}"),
    "cache-bypass": lambda i: event(200, path=f"/?{81_234_567 + i}"),
    "random-paths": lambda i: event(404, path="/" + "ABCDEFGHJK"[i % 10] + f"QX{i:03d}"),
    "card-testing": lambda i: event(402, "payment_failed"),
    "token-cracking": lambda i: event(422, "token_failed"),
    "expensive-queries": lambda i: event(200, user="ada", tenant="acme", cost=1_000),
}


def benign(seed: int, people: int = 40, minutes: int = 60) -> list[Event]:
    """An hour of people who browse, mistype passwords, follow a dead link and upload a file; some share one address."""
    dice = random.Random(seed)
    events: list[Event] = []
    for person in range(people):
        ip = f"192.0.2.{person // 3}"  # three to an address
        agent = f"Mozilla/5.0 (Browser {person % 7})"
        facts = {
            "ip": ip,
            "user_agent": agent,
            "tenant": f"t{person % 4}",
            "user": f"user-{person}",
            "host": "a.example",
        }
        at = START_US + dice.randrange(60_000_000)
        for _ in range(dice.choice((0, 0, 0, 1, 2))):
            at += dice.randrange(4_000_000, 20_000_000)
            events.append(Event({**facts, "method": "POST", "path": "/login"}, 401, "login_failed", at))
        events.append(Event({**facts, "method": "POST", "path": "/login"}, 200, "login_ok", at + 5_000_000))
        while at < START_US + minutes * 60_000_000:
            at += dice.randrange(3_000_000, 90_000_000)
            page = dice.choice(
                ("/", "/orders", f"/orders/{person * 100 + dice.randrange(40)}", "/search?q=red+shoes&page=2", "/about")
            )
            events.append(Event({**facts, "method": "GET", "path": page}, 200, None, at))
            for asset in ("/app.js", "/style.css", f"/img/{dice.randrange(90)}.png", "/favicon.ico"):
                events.append(
                    Event({**facts, "method": "GET", "path": asset}, 404 if asset == "/favicon.ico" else 200, None, at)
                )
            if dice.random() < 0.05:
                events.append(Event({**facts, "method": "GET", "path": f"/gone/{dice.randrange(9)}"}, 404, None, at))
            if dice.random() < 0.1:
                size = dice.randrange(200, 9_000)
                events.append(
                    Event({**facts, "method": "POST", "path": "/orders", "bytes": size, "cost": 5}, 201, None, at)
                )
    return sorted(events, key=lambda one: one.at_us)
