"""Keys over time: fetched beside all checks, kept while they cannot be, asked for at most once a minute."""

from __future__ import annotations

import asyncio
import json
import ssl
from functools import partial

import pytest
from aiohttp import web

from shield.identity.fetch import FetchError, read_file, read_url
from shield.identity.keys import MAX_JWKS_BYTES, KeySet
from shield.identity.source import MAX_UNKNOWN, KeySource
from tests.identity.certificates import Authority
from tests.identity.issuer import IssuerServer, issuer_server
from tests.identity.tokens import make

S = 1_000_000
NOW = 1_763_900_000 * S


class Shelf:
    """What a file would hold, and a failure when told."""

    def __init__(self, *kids: str) -> None:
        self.by_kid = {kid: make("ES256", kid) for kid in "abcdef"}
        self.kids: tuple[str, ...] = kids
        self.broken = False
        self.reads = 0

    def load(self) -> bytes:
        self.reads += 1
        if self.broken:
            raise FetchError("the shelf is broken")
        return json.dumps({"keys": [self.by_kid[kid].jwk for kid in self.kids]}).encode()

    def source(self, refresh_s: int = 300, keep_s: int = 3_600) -> KeySource:
        return KeySource("shelf", KeySet.read, load=self.load, refresh_us=refresh_s * S, keep_us=keep_s * S)


def kids(source: KeySource, now_us: int) -> list[str | None] | None:
    keys = source.keys(now_us)
    return None if keys is None else [key.kid for key in keys.keys]


def tick(source: KeySource, now_us: int) -> bool:
    """What the keeper does every second: whether it fetched."""
    due = source.due(now_us)
    if due:
        source.refresh_nowait(now_us)
    return due


def test_keys_are_fetched_at_first_and_when_they_are_old():
    source = Shelf("a").source()
    assert source.keys(NOW) is None
    assert tick(source, NOW)
    assert kids(source, NOW) == ["a"]
    assert not tick(source, NOW + 300 * S - 1)
    assert tick(source, NOW + 300 * S)


def test_a_failed_fetch_takes_nothing_away_until_the_keys_are_too_old():
    shelf = Shelf("a")
    source = shelf.source()
    tick(source, NOW)
    shelf.broken = True
    assert tick(source, NOW + 300 * S)
    assert source.why == "the shelf is broken"
    assert source.notes == ("the shelf is broken; the old keys stay in use",)
    assert kids(source, NOW + 3_600 * S) == ["a"]
    assert kids(source, NOW + 3_600 * S + 1) is None
    shelf.broken = False
    tick(source, NOW + 4_000 * S)
    assert kids(source, NOW + 4_000 * S) == ["a"]
    assert source.notes == ()


def test_an_empty_set_is_a_failure():
    shelf = Shelf("a")
    source = shelf.source()
    tick(source, NOW)
    shelf.kids = ()
    tick(source, NOW + 300 * S)
    assert kids(source, NOW + 300 * S) == ["a"]
    assert "no key that can be used" in str(source.why)


def test_failures_are_tried_again_soon_and_then_less_often():
    shelf = Shelf("a")
    shelf.broken = True
    source = shelf.source()
    tries = [second for second in range(400) if tick(source, NOW + second * S)]
    assert tries == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303, 363]
    assert source.retry_us(NOW + 363 * S) == 60 * S


def test_an_unknown_key_is_asked_for_once_a_minute():
    shelf = Shelf("a")
    source = shelf.source()
    tick(source, NOW)
    source.want("b", NOW + S)
    assert tick(source, NOW + S)
    for second in range(2, 61):
        source.want(f"random-{second}", NOW + second * S)
        assert not tick(source, NOW + second * S)
    source.want("random", NOW + 61 * S)
    assert tick(source, NOW + 61 * S)


def test_a_name_that_was_not_there_is_not_asked_for_again_until_the_next_refresh():
    shelf = Shelf("a")
    source = shelf.source()
    tick(source, NOW)
    source.want("b", NOW + S)
    assert tick(source, NOW + S)
    source.want("b", NOW + 200 * S)
    assert not tick(source, NOW + 200 * S)
    # Another name still is, and brings the new key along.
    shelf.kids = ("a", "b", "c")
    source.want("c", NOW + 201 * S)
    assert tick(source, NOW + 201 * S)
    assert kids(source, NOW + 201 * S) == ["a", "b", "c"]


def test_names_that_were_not_there_are_bounded():
    source = Shelf("a").source(refresh_s=86_400)
    tick(source, NOW)
    for minute in range(1, MAX_UNKNOWN + 50):
        source.want(f"kid-{minute}", NOW + minute * 60 * S)
        tick(source, NOW + minute * 60 * S)
    assert len(source._unknown) == MAX_UNKNOWN


def test_rotation_keeps_the_keys_that_stay_and_ends_those_that_went():
    shelf = Shelf("a", "b")
    source = shelf.source()
    tick(source, NOW)
    first = source.keys(NOW)
    assert first is not None
    stays, goes = first.keys
    shelf.kids = ("a", "c")
    tick(source, NOW + 300 * S)
    assert kids(source, NOW + 300 * S) == ["a", "c"]
    assert (stays.live, goes.live) == (True, False)


def test_a_clock_that_steps_back_fetches_again():
    source = Shelf("a").source()
    tick(source, NOW)
    assert tick(source, NOW - 3_600 * S)
    assert not tick(source, NOW - 3_599 * S)
    assert kids(source, NOW - 3_600 * S) == ["a"]


def test_unusable_keys_are_said():
    shelf = Shelf("a", "b")
    source = KeySource(
        "shelf",
        lambda data: KeySet.read(json.dumps({"keys": [*json.loads(data)["keys"], {"kty": "AKP"}]})),
        load=shelf.load,
        refresh_us=S,
        keep_us=S,
    )
    tick(source, NOW)
    assert source.notes == ("keys[2] is not used: its kty is none of RSA, EC, OKP and oct",)


# ---- over HTTP -------------------------------------------------------------------------------------------------


@pytest.fixture
async def issuer():
    async with issuer_server() as server:
        server.keys = [make("ES256", "a").jwk]
        yield server


def over_http(issuer: IssuerServer, timeout_s: float = 5.0) -> KeySource:
    fetch = partial(read_url, issuer.url, MAX_JWKS_BYTES, timeout_s=timeout_s)
    return KeySource(issuer.url, KeySet.read, fetch=fetch, refresh_us=300 * S, keep_us=3_600 * S)


async def test_keys_come_over_http(issuer):
    source = over_http(issuer)
    await source.refresh(NOW)
    assert kids(source, NOW) == ["a"]


async def test_those_who_ask_at_once_wait_for_one_fetch(issuer):
    issuer.how = "slowly"
    source = over_http(issuer)
    waiting = [asyncio.create_task(source.refresh(NOW)) for _ in range(20)]
    await issuer.held.wait()
    assert not source.due(NOW + 400 * S)
    assert source.keys(NOW) is None  # asked meanwhile, and answered at once
    issuer.release.set()
    await asyncio.gather(*waiting)
    assert issuer.asked == 1
    assert kids(source, NOW) == ["a"]


async def test_one_who_gives_up_does_not_end_the_fetch(issuer):
    issuer.how = "slowly"
    source = over_http(issuer)
    impatient = asyncio.create_task(source.refresh(NOW))
    await issuer.held.wait()
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    patient = asyncio.create_task(source.refresh(NOW))
    issuer.release.set()
    await patient
    assert issuer.asked == 1
    assert kids(source, NOW) == ["a"]


async def test_old_keys_serve_while_new_ones_are_fetched(issuer):
    source = over_http(issuer)
    await source.refresh(NOW)
    issuer.how = "slowly"
    refreshing = asyncio.create_task(source.refresh(NOW + 300 * S))
    await issuer.held.wait()
    assert kids(source, NOW + 301 * S) == ["a"]
    issuer.keys = [make("ES256", "b").jwk]
    issuer.release.set()
    await refreshing
    # The answer was written before the rotation; the next one has it.
    issuer.how = "well"
    await source.refresh(NOW + 600 * S)
    assert kids(source, NOW + 600 * S) == ["b"]


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("failing", "answered 500"),
        ("no content", "answered 204"),
        ("as html", "not JSON"),
        ("large", f"more than {MAX_JWKS_BYTES:,} bytes"),
        ("endlessly", f"more than {MAX_JWKS_BYTES:,} bytes"),
        ("empty", "no key that can be used"),
        ("twice", "a member name is there twice"),
        ("cut", "no HTTP answer"),
        ("compressed", "compressed"),
        ("to http://127.0.0.2:1/keys", "another host"),
        ("to https://127.0.0.1/keys", "another host"),
        ("to //evil.example/keys", "another host"),
        ("to file:///etc/passwd", "another host"),
        ("to http://[", "another host"),
        ("to /keys", "redirects"),
    ],
)
async def test_an_issuer_that_goes_wrong_leaves_the_keys_in_use(issuer, how, why):
    source = over_http(issuer)
    await source.refresh(NOW)
    issuer.how = how
    await source.refresh(NOW + 300 * S)
    assert why in str(source.why)
    assert kids(source, NOW + 300 * S) == ["a"]
    assert issuer.asked <= 6
    issuer.how = "well"
    await source.refresh(NOW + 301 * S)
    assert source.why is None


async def test_redirects_within_the_origin_are_followed(issuer):
    issuer.how = "to /elsewhere"
    source = over_http(issuer)
    await source.refresh(NOW)
    assert kids(source, NOW) == ["a"]


async def test_a_slow_issuer_is_given_up(issuer):
    issuer.how = "slowly"
    source = over_http(issuer, timeout_s=0.05)
    await source.refresh(NOW)
    assert "no whole answer within 0.05 s" in str(source.why)


async def test_a_dead_issuer_is_told_from_a_slow_one(issuer):
    url = issuer.url.replace("/keys", "/keys?secret=s3cret")
    port = int(url.split(":")[2].split("/")[0])
    free = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    dead = free.sockets[0].getsockname()[1]
    free.close()
    await free.wait_closed()
    with pytest.raises(FetchError, match="cannot connect") as caught:
        await read_url(url.replace(str(port), str(dead)), 100)
    assert "s3cret" not in str(caught.value)


async def test_closing_ends_a_fetch(issuer):
    issuer.how = "slowly"
    source = over_http(issuer)
    waiting = asyncio.create_task(source.refresh(NOW))
    await issuer.held.wait()
    await source.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_certificate_that_nobody_vouches_for_is_not_accepted(tmp_path):
    authority = Authority("an authority", tmp_path)
    files = authority.certificate("server", dns=["localhost"], ips=["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)

    async def keys(request: web.Request) -> web.Response:
        return web.Response(text='{"keys":[]}')

    app = web.Application()
    app.router.add_get("/keys", keys)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}/keys"
    try:
        with pytest.raises(FetchError, match="certificate is not accepted"):
            await read_url(url, 100)
        trusting = ssl.create_default_context(cafile=str(authority.file))
        assert await read_url(url, 100, tls=trusting) == b'{"keys":[]}'
    finally:
        await runner.cleanup()


def test_files_are_bounded(tmp_path):
    path = tmp_path / "keys.json"
    with pytest.raises(FetchError, match="No such file"):
        read_file(path, 10)
    path.write_bytes(b"x" * 11)
    with pytest.raises(FetchError, match="more than 10 bytes"):
        read_file(path, 10)
    with pytest.raises(FetchError):
        read_file(tmp_path, 10)
    with pytest.raises(FetchError):
        read_file(tmp_path / "a\0b", 10)
