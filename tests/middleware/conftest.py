from __future__ import annotations

from collections.abc import Iterator

import pytest

from shield.middleware.bridge import _BRIDGES


@pytest.fixture(autouse=True)
def no_thread_outlives_its_test() -> Iterator[None]:
    yield
    for bridge in list(_BRIDGES):
        bridge.close()
