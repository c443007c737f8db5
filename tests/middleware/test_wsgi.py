"""The WSGI middleware under gunicorn, around Flask and Django, with every kind of store."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from wsgiref.validate import validator

import httpx
import pytest

from shield import Policy, Request, Shield
from shield.middleware.bridge import Bridge
from shield.middleware.wsgi import ShieldMiddleware
from shield.testing import FailingStore
from tests.middleware.serving import gunicorn_serving, removed_after

POLICY = """
version = 1
[guard.size]
max_body_bytes = 100_000
[[limit]]
name = "address"
key = ["ip"]
rate = "1/h"
burst = {burst}
[[limit]]
name = "units"
key = ["ip"]
rate = "1/h"
burst = 100
cost = "request"
match = {{ path = "/costly" }}
[[limit]]
name = "cafe"
key = ["ip"]
rate = "1/h"
match = {{ path = "/caf\u00e9/{{name}}" }}
[[limit]]
name = "flight"
key = ["ip"]
algorithm = "concurrency"
limit = 8
ttl = "60s"
"""
SITES = {"flask": "tests.middleware.flask_site:app", "django": "tests.middleware.django_site:app"}


@pytest.fixture(params=SITES)
def site(request):
    return SITES[request.param]


def env(store: str, burst: int = 40) -> dict[str, str]:
    return {"SITE_STORE": store, "SITE_POLICY": POLICY.format(burst=burst)}


def test_a_site_in_threads_of_one_process(site):
    threads = ("--worker-class", "gthread", "--threads", "8")
    with gunicorn_serving(site, args=threads, env=env("memory://")) as url, httpx.Client(base_url=url) as client:
        answer = client.get("/")
        assert answer.text == "hello"
        assert answer.headers["ratelimit-policy"].startswith('"address";q=40;w=144000')
        assert answer.headers["ratelimit"] == '"address";r=39;t=3600, "flight";r=7'
        # A chunked body cannot lie, read at once or by line; a bomb neither.
        if "flask" in site:  # Django reads no chunks, and leaves its connection unusable
            assert client.post("/echo", content=iter([b"x" * 50_000] * 2)).text == "100000"
            for path in ("/echo", "/lines"):
                refused = client.post(path, content=iter([b"x" * 60_000] * 2))
                assert (refused.status_code, refused.json()["reason"]) == (413, "too_large")
                assert "ratelimit" in refused.headers
            bomb = gzip.compress(bytes(900_000))
            refused = client.post("/echo", content=bomb, headers={"Content-Encoding": "gzip"})
            assert refused.status_code == 413
            answers = [client.get("/caf%C3%A9/x") for _ in range(2)]
            assert [answer.status_code for answer in answers] == [200, 429]
        assert client.post("/echo", content=b"x" * 100_001).status_code == 413
        assert client.post("/lines", content=b"ab\n" * 10).text == "30"
        # Places come back after streams and failures.
        for _ in range(5):
            assert client.get("/stream").text == "x" * 3000
            assert client.get("/fails").status_code == 500
        assert '"flight";r=7' in client.get("/").headers["ratelimit"]
        # What it really cost is settled: 40 are taken each time, and 30 given back.
        assert [client.get("/costly").status_code for _ in range(4)] == [200] * 4
        answers = [client.get("/limited") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[2].json()["reason"] == "limit"
        assert answers[2].headers["retry-after"] == "1800"
        for _ in range(60):
            assert client.get("/up").status_code == 200
        while (refused := client.get("/")).status_code == 200:
            pass
        assert refused.json()["violated-policies"] == ["address"]


@pytest.mark.parametrize(("site", "common_store"), [("flask", "shared"), ("django", "redis")], indirect=True)
def test_processes_count_together(site, common_store):
    args = ("--workers", "2", "--worker-class", "gthread", "--threads", "4", "--preload")
    with gunicorn_serving(site, args=args, env=env(common_store)) as url:

        def ask(_: int) -> int:
            return httpx.get(url + "/").status_code

        with ThreadPoolExecutor(6) as pool:
            statuses = list(pool.map(ask, range(60)))
        assert statuses.count(200) == 40
        assert statuses.count(429) == 20


def test_a_write_happens_once_over_all_processes(common_store):
    guard = '[identity]\nheaders = { user = "X-User" }\n[guard.idempotency]\nmethods = ["POST"]\n'
    environ = {"SITE_STORE": common_store, "SITE_POLICY": "version = 1\n" + guard}
    args = ("--workers", "2", "--worker-class", "gthread", "--threads", "4")
    with gunicorn_serving(SITES["flask"], args=args, env=environ) as url:

        def write(number: int) -> httpx.Response:
            headers = {"X-User": f"u-{number % 2}", "Idempotency-Key": "k"}
            return httpx.post(url + "/write", headers=headers, json={"a": 1}, timeout=20)

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(write, range(32)))
        assert {answer.status_code for answer in answers} <= {201, 409, 503}
        for user in (0, 1):  # each has its own
            done = [answer.json()["number"] for answer in answers[user::2] if answer.status_code == 201]
            assert len(set(done)) == 1
            again = write(user)
            assert again.json()["number"] == done[0]
            assert again.headers["idempotent-replayed"] == "true"


def test_a_store_that_is_away_is_no_error_of_the_application():
    with (
        gunicorn_serving(SITES["flask"], args=("--threads", "4"), env=env("redis://127.0.0.1:9/0")) as url,
        httpx.Client(base_url=url) as client,
    ):
        statuses = {client.get("/").status_code for _ in range(6)}
        assert statuses <= {200, 429}
        assert client.get("/up").status_code == 200


def test_a_client_that_leaves_gives_its_place_back():
    policy = POLICY.replace("limit = 8", "limit = 1")
    environ = {"SITE_STORE": "memory://", "SITE_POLICY": policy.format(burst=40)}
    with gunicorn_serving(SITES["flask"], args=("--worker-class", "gthread", "--threads", "4"), env=environ) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as leaving:
            leaving.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        statuses = []
        while not statuses or statuses[-1] != 200:
            assert len(statuses) < 200
            statuses.append(httpx.get(url + "/").status_code)
        assert set(statuses) <= {200, 429}
        with pytest.raises(httpx.HTTPError):
            httpx.get(url + "/broken").raise_for_status()
        assert httpx.get(url + "/").status_code == 200


# ---- in process: what no server does every day --------------------------------------------------------------------


def asked(app, path="/", method="GET", **environ):
    """(status, headers, body) of one request, by the letter of PEP 3333."""
    import io

    said = {}

    def start(status, headers, exc_info=None):
        said.update(status=status, headers=dict(headers))
        return lambda data: said.setdefault("written", []).append(data)

    base = {
        "REQUEST_METHOD": method, "PATH_INFO": path, "SCRIPT_NAME": "", "SERVER_NAME": "x", "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "192.0.2.1", "wsgi.version": (1, 0), "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(), "wsgi.multithread": True, "QUERY_STRING": "",
        "wsgi.multiprocess": False, "wsgi.run_once": False,
    }  # fmt: skip
    response = validator(app)({**base, **environ}, start)
    try:
        body = b"".join(response)
    finally:
        response.close()
    return said["status"], said["headers"], body + b"".join(said.get("written", ()))


def old(environ, start_response):
    """An application from before PEP 3333's generators."""
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    write(b"written")
    return [b" and returned"]


def late(environ, start_response):
    """One that starts its response with its first part."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"late"


@pytest.mark.parametrize(("app", "body"), [(late, b"late")])
def test_the_letter_of_the_protocol(app, body):
    shield = Shield(Policy.parse('version = 1\n[[limit]]\nname = "a"\nkey = ["ip"]\nrate = "2/h"\n'))
    wrapped = validator(ShieldMiddleware(validator(app), shield))
    for left in (1, 0):
        status, headers, text = asked(wrapped)
        assert (status, text, headers["RateLimit"][:7]) == ("200 OK", body, f'"a";r={left}')
    status, headers, text = asked(wrapped)
    assert status == "429 Too Many Requests"
    assert headers["Content-Type"] == "application/problem+json"
    assert asked(wrapped, method="HEAD")[2] == b""


def test_write_as_it_once_was():
    shield = Shield(Policy.parse('version = 1\n[[limit]]\nname = "a"\nkey = ["ip"]\nrate = "2/h"\n'))
    _, headers, text = asked(ShieldMiddleware(old, shield))
    assert sorted(text.decode().split(" and ")) == ["returned", "written"] or text == b" and returnedwritten"
    assert "RateLimit" in headers


@pytest.mark.parametrize("local", [True, False])
def test_threads_are_counted_exactly(local):
    policy = Policy.parse('version = 1\n[[limit]]\nname = "a"\nkey = ["ip"]\nrate = "1/h"\nburst = 500\n')
    shield = Shield(policy) if local else Shield(policy, FailingStore(Shield(policy).store))
    bridge = Bridge(shield)
    try:
        with ThreadPoolExecutor(8) as pool:
            decisions = list(pool.map(lambda _: bridge.check(Request(ip="192.0.2.1")), range(800)))
        assert sum(decision.allowed for decision in decisions) == 500
        thread = bridge._thread
        assert thread.is_alive()
    finally:
        bridge.close()
    assert not thread.is_alive()


def test_the_loop_and_the_threads_take_turns():
    """What runs in the loop is never interrupted by a thread that decides, nor the other way round."""
    shield = Shield(Policy.parse('version = 1\n[[limit]]\nname = "a"\nkey = ["ip"]\nrate = "1/h"\nburst = 500\n'))
    bridge = Bridge(shield)
    inside, overlaps, turns = [], [], []

    def busy(who: str) -> None:
        overlaps.extend(inside)
        inside.append(who)
        for _ in range(50):
            time.sleep(0)  # lets other threads run
        inside.remove(who)
        turns.append(who)

    async def keeps_busy() -> None:
        for _ in range(40):
            busy("loop")
            await asyncio.sleep(0)

    decide = shield.check_nowait
    shield.check_nowait = lambda request: (busy("thread"), decide(request))[1]
    try:
        assert bridge.check(Request(ip="192.0.2.1")).allowed
        looping = asyncio.run_coroutine_threadsafe(keeps_busy(), bridge._loop)
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(lambda _: bridge.check(Request(ip="192.0.2.1")), range(40)))
        looping.result(10)
    finally:
        bridge.close()
    assert overlaps == []
    assert turns.count("loop") == 40


def test_graphql_operations_are_read_from_the_body():
    import io

    policy = Policy.parse('version = 1\n[guard.graphql]\nmax_aliases = 2\n[guard.graphql.match]\npath = "/graphql"\n')

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["wsgi.input"].read(1000)]

    wrapped = ShieldMiddleware(app, policy)

    def post(body: bytes):
        more = {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body)), "CONTENT_TYPE": "application/json"}
        return asked(wrapped, "/graphql", "POST", **more)

    assert post(b'{"query": "{ a: x }"}')[::2] == ("200 OK", b'{"query": "{ a: x }"}')
    assert post(b'{"query": "{ a: x b: x c: x }"}')[0].startswith("422")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_of_a_fork_starts_a_loop_of_its_own():
    policy = Policy.parse('version = 1\n[[limit]]\nname = "a"\nkey = ["ip"]\nrate = "1/h"\nburst = 500\n')
    bridge = Bridge(Shield(policy, FailingStore(Shield(policy).store)))
    try:
        assert bridge.check(Request(ip="192.0.2.1")).allowed
        child = os.fork()
        if child == 0:
            os._exit(0 if bridge.check(Request(ip="192.0.2.1")).allowed else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        bridge.close()


async def test_blocks_of_other_processes_are_heard_of():
    store = f"shared://test-{uuid.uuid4().hex[:12]}"
    policy = POLICY.format(burst=1000)
    environ = {"SITE_STORE": store, "SITE_POLICY": policy}
    args = ("--worker-class", "gthread", "--threads", "4")
    with removed_after(store), gunicorn_serving(SITES["flask"], args=args, env=environ) as url:
        async with Shield(Policy.parse(policy), store) as shield, httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/")).status_code == 200
            shield.abuse.blocks.block("ip", "127.0.0.1", None, by="a test")
            for _ in range(100):
                answer = await client.get("/")
                if answer.status_code != 200:
                    break
                await asyncio.sleep(0.05)
            assert (answer.status_code, answer.json()["reason"]) == (403, "blocked")
