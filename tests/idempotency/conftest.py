"""The stores that must all answer alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest

from shield import Policy
from tests.idempotency.keyed import LOCAL, REMOTE, Keyed, redis
from tests.store.clusters import ClusterOf, run_cluster

Open = Callable[[Policy], AbstractAsyncContextManager[Keyed]]


@pytest.fixture(scope="session")
def cluster() -> Iterator[ClusterOf]:
    """Three servers that are one store."""
    with run_cluster() as made:
        yield made


@pytest.fixture(params=[*LOCAL, *REMOTE])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens a node over one of the stores."""
    if request.param in LOCAL:
        return partial(LOCAL[request.param], directory=tmp_path)  # type: ignore[call-arg]
    return partial(redis, directory=tmp_path, server=request.getfixturevalue(request.param))
