"""The stores that must all answer alike."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest

from shield import Policy
from tests.idempotency.keyed import STORES, Keyed

Open = Callable[[Policy], AbstractAsyncContextManager[Keyed]]


@pytest.fixture(params=sorted(STORES))
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens a node over one of the stores."""
    return partial(STORES[request.param], directory=tmp_path)  # type: ignore[call-arg]
