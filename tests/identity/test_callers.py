"""Callers by certificate: who a verified certificate is, and who of them may ask."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import aiohttp
import pytest

from shield import Policy, Shield
from shield.identity.callers import MAX_PATTERNS, AllowedCallers, caller_of, is_spiffe
from shield.server.logs import open_log
from shield.server.metrics import Metrics
from shield.server.options import read_callers
from shield.server.routes import decision_listener
from shield.server.service import Service
from shield.server.sockets import TlsFiles, UsageError
from shield.server.source import PolicySource
from tests.identity.certificates import Authority

GATEWAY = "spiffe://example.org/ns/edge/sa/gateway"


def holder(*uris: str, dns: tuple[str, ...] = (), cn: str = "name") -> dict:
    """A certificate as ssl shows it."""
    names = [*(("URI", uri) for uri in uris), *(("DNS", one) for one in dns)]
    return {"subject": ((("commonName", cn),),), "subjectAltName": tuple(names)}


@pytest.mark.parametrize(
    "text",
    [
        "spiffe://example.org",
        "spiffe://example.org/a",
        "spiffe://a-b_c.d/ns/X/sa/y.z",
        "spiffe://example.org/...",
        "spiffe://1/" + "a" * 2_000,
    ],
)
def test_spiffe_ids(text):
    assert is_spiffe(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe:///a",
        "SPIFFE://example.org/a",
        "spiffe://Example.org/a",
        "spiffe://example.org/",
        "spiffe://example.org/a/",
        "spiffe://example.org//a",
        "spiffe://example.org/./a",
        "spiffe://example.org/../a",
        "spiffe://example.org/a/..",
        "spiffe://example.org:80/a",
        "spiffe://user@example.org/a",
        "spiffe://example.org/a?b",
        "spiffe://example.org/a#b",
        "spiffe://example.org/a%2fb",
        "spiffe://example.org/é",
        "spiffe://example.org/a\n",
        "https://example.org/a",
        "spiffe://" + "a" * 256,
        "spiffe://1/" + "a" * 2_048,
    ],
)
def test_what_is_no_spiffe_id(text):
    assert not is_spiffe(text)


def test_who_a_certificate_is():
    assert caller_of(holder(GATEWAY, dns=("Edge.Example",))) == (GATEWAY, ("edge.example",), "name")
    assert caller_of(holder(GATEWAY, "spiffe://example.org/other")).spiffe is None
    assert caller_of(holder("https://example.org/a")).spiffe is None
    assert caller_of({}) == (None, (), None)
    two_names = {"subject": ((("commonName", "a"),), (("commonName", "b"),))}
    assert caller_of(two_names).common_name is None


@pytest.mark.parametrize(
    ("pattern", "certificate", "allowed"),
    [
        (GATEWAY, holder(GATEWAY), True),
        (GATEWAY, holder(GATEWAY + "2"), False),
        (GATEWAY, holder("spiffe://example.org/ns/edge/sa"), False),
        (GATEWAY, holder(GATEWAY, "spiffe://example.org/x"), False),
        ("spiffe://example.org/ns/edge/*", holder(GATEWAY), True),
        ("spiffe://example.org/*", holder(GATEWAY), True),
        ("spiffe://example.org/*", holder("spiffe://example.org"), False),
        ("spiffe://example.org/*", holder("spiffe://example.org.evil/a"), False),
        ("spiffe://example.org/ns/edge/*", holder("spiffe://example.org/ns/edge2/sa"), False),
        ("spiffe://example.org/ns/edge/*", holder("spiffe://example.org/ns/edge"), False),
        ("dns:edge.example", holder(dns=("EDGE.example",)), True),
        ("dns:edge.example", holder(dns=("a.edge.example",)), False),
        ("dns:name", holder(cn="name"), False),
        ("cn:name", holder(cn="name"), True),
        ("cn:name", holder(dns=("name",), cn="x"), False),
        # Who has a SPIFFE id is that and nothing else.
        ("cn:name", holder(GATEWAY, cn="name"), False),
        ("dns:edge.example", holder(GATEWAY, dns=("edge.example",)), False),
    ],
)
def test_who_may_ask(pattern, certificate, allowed):
    assert AllowedCallers([pattern]).allows(certificate) is allowed


def test_nobody_without_a_certificate_may_ask():
    for nobody in (None, {}):
        assert not AllowedCallers(["cn:name", GATEWAY]).allows(nobody)


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "name",
        "cn:",
        "dns:",
        "dns:*.example",
        "cn:*",
        "spiffe://",
        "spiffe://*",
        "spiffe://Example.org/*",
        "spiffe://a/*/b",
        "uri:x",
    ],
)
def test_patterns_that_are_none(pattern):
    with pytest.raises(ValueError, match="allowed"):
        AllowedCallers([pattern])


def test_patterns_are_bounded():
    with pytest.raises(ValueError, match="256"):
        AllowedCallers([f"cn:{n}" for n in range(MAX_PATTERNS + 1)])


def test_a_list_of_callers_needs_an_authority(tmp_path):
    tls = TlsFiles(tmp_path / "c", tmp_path / "k")
    for given in (None, tls):
        with pytest.raises(UsageError, match="--tls-client-ca"):
            read_callers(["cn:a"], given)
    with_ca = TlsFiles(tmp_path / "c", tmp_path / "k", tmp_path / "ca")
    assert read_callers(None, with_ca) is None
    with pytest.raises(UsageError, match="--tls-client-id: found 'a'"):
        read_callers(["a"], with_ca)


async def test_over_real_connections(tmp_path: Path):
    """Certificates of one authority: one that is on the list, one that is not, none, and one of another authority."""
    authority, stranger = Authority("an authority", tmp_path), Authority("a stranger", tmp_path)
    server = authority.certificate("server", ips=["127.0.0.1"])
    service = Service(
        Shield(Policy()),
        PolicySource("version = 1", "toml"),
        Metrics("0", Policy(), dict),
        open_log(_Nowhere(), "json", "error"),
    )
    listener = decision_listener(service, None, AllowedCallers([GATEWAY]))
    acceptor = await asyncio.get_running_loop().create_server(
        listener, "127.0.0.1", 0, ssl=TlsFiles(*server, authority.file).context()
    )
    url = f"https://127.0.0.1:{acceptor.sockets[0].getsockname()[1]}/v1/check"

    async def ask(files: tuple[Path, Path] | None) -> int:
        context = ssl.create_default_context(cafile=str(authority.file))
        if files is not None:
            context.load_cert_chain(*files)
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(connector=connector) as client, client.post(url, json={}) as answer:
            return answer.status

    try:
        assert await ask(authority.certificate("gateway", uris=[GATEWAY])) == 200
        assert await ask(authority.certificate("other", uris=["spiffe://example.org/other"])) == 403
        assert await ask(authority.certificate("both", uris=[GATEWAY, "spiffe://example.org/other"])) == 403
        for unknown in (None, stranger.certificate("forged", uris=[GATEWAY])):
            with pytest.raises(aiohttp.ClientError):
                await ask(unknown)
    finally:
        acceptor.close()
        listener.pre_shutdown()
        await listener.shutdown(0.2)


class _Nowhere:
    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass
