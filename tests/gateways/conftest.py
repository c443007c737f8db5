"""One Shield with both gateways in front of it, started once a session. Every test has its own clients."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.gateway_processes import (
    Change,
    Gateway,
    ShieldServer,
    envoy_binary,
    nginx_binary,
    patient,
    run_envoy,
    run_nginx,
    run_shield,
)

# Limits refill too slowly for a test to see it. The only trusted proxy is the gateway, so that other loopback
# addresses can be clients.
POLICY = """
version = 1
name = "behind-a-gateway"

[identity]
trusted_proxies = ["127.0.0.1/32"]
headers = { tenant = "X-Tenant", request_id = "X-Request-Id", bytes = "X-Body-Bytes" }

[[limit]]
name = "address"
key = ["ip"]
rate = "3/h"

[[limit]]
name = "orders"
key = ["ip"]
rate = "1/h"
match = { method = ["POST"], path = "/orders/{id}" }

[[limit]]
name = "tenant"
key = ["tenant"]
rate = "2/h"

[guard.size]
max_body_bytes = 100_000
content_types = ["application/json"]
"""

StartGateway = Callable[[Path, int, Change], AbstractContextManager[Gateway]]

_BINARIES = {"envoy": envoy_binary, "nginx": nginx_binary}
_STARTS: dict[str, StartGateway] = {"envoy": run_envoy, "nginx": run_nginx}


def need(kind: str) -> StartGateway:
    """How to start this gateway. Skips where it is absent, which is a failure in CI."""
    missing = None
    if sys.platform != "linux":
        missing = "clients of their own need the loopback network 127.0.0.0/8, which only Linux answers as a whole"
    elif _BINARIES[kind]() is None:
        missing = f"{kind} is not installed"
    if missing is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{missing}; CI must run this test")
        pytest.skip(missing)
    return _STARTS[kind]


@pytest.fixture(scope="session")
def shield(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShieldServer]:
    """A Shield with POLICY, without caller tokens."""
    with run_shield(tmp_path_factory.mktemp("shield"), POLICY) as server:
        yield server


@pytest.fixture(scope="session")
def envoy(shield: ShieldServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Envoy in front of `shield`, as docs/gateways/envoy.yaml has it, but patient."""
    with need("envoy")(tmp_path_factory.mktemp("envoy"), shield.port, patient) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def nginx(shield: ShieldServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """nginx in front of `shield`, as docs/gateways/nginx.conf has it, but patient."""
    with need("nginx")(tmp_path_factory.mktemp("nginx"), shield.port, patient) as gateway:
        yield gateway


@pytest.fixture(params=["envoy", "nginx"])
def gateway(request: pytest.FixtureRequest) -> Gateway:
    """Each of the two in turn."""
    gateway: Gateway = request.getfixturevalue(request.param)
    return gateway


@pytest.fixture(params=["envoy", "nginx"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each of the two in turn, for tests that start one of their own."""
    kind: str = request.param
    need(kind)
    return kind


_clients = itertools.count(2)


@pytest.fixture
def new_client() -> Callable[[], str]:
    """Loopback addresses that no test has used yet."""

    def address() -> str:
        number = next(_clients)
        return f"127.1.{number >> 8}.{number & 255}"

    return address
