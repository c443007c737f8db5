from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from shield.middleware.bridge import _BRIDGES
from tests.middleware.serving import removed_after


@pytest.fixture(params=["shared", "redis"])
def common_store(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a store that several processes use, empty."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    if request.param == "redis":
        # These tests are about what comes out, on machines that may be busy.
        yield f"{request.getfixturevalue('valkey').url}?prefix={name}&deadline=5s"
        return
    with removed_after(f"shared://{name}"):
        yield f"shared://{name}"


@pytest.fixture(autouse=True)
def no_thread_outlives_its_test() -> Iterator[None]:
    yield
    for bridge in list(_BRIDGES):
        bridge.close()
