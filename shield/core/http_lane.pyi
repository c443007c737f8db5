import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Self, final

from typing_extensions import disjoint_base

HEAD_BYTES: Final[int]
TAKE: Final[int]
MORE: Final[int]
BODY: Final[int]
PASS: Final[int]
LEAVE: Final[int]

@final
class Head:
    @property
    def verdict(self) -> int: ...
    @property
    def why(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def method(self) -> str: ...
    @property
    def close(self) -> bool: ...
    @property
    def route(self) -> Any: ...
    @property
    def rest(self) -> str: ...
    peer: Any
    @property
    def headers(self) -> Head: ...
    @property
    def target(self) -> str: ...
    @property
    def whole(self) -> bytes: ...
    async def receive(self, max_bytes: int) -> bytes: ...
    def get(self, name: str, default: Any = None, /) -> Any: ...
    def getall(self, name: str, default: Sequence[str], /) -> Sequence[str]: ...
    def __contains__(self, name: object, /) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...

@disjoint_base
class Lane:
    def __init__(
        self,
        posts: Iterable[tuple[bytes, Any]],
        anys: Iterable[tuple[bytes, Any]],
        prefix: tuple[bytes, Any] | None,
        hold_bytes: int,
    ) -> None: ...
    def look(self, data: bytes, at: int = 0) -> Head: ...
    def only(self, data: bytes, plain: PlainCheck, peer: Any, server: bytes, date: bytes) -> bool: ...
    def serve(
        self,
        data: bytes,
        answer_of: Callable[[Head], Answer | None],
        plain: PlainCheck | None,
        peer: Any,
        most: int,
        most_bytes: int,
        server: bytes,
        date: bytes,
    ) -> tuple[bytes | None, int, bool, Head | Exception | None]: ...

@final
class Answer:
    def __init__(
        self,
        status: int = 200,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        close: bool = False,
    ) -> None: ...
    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> dict[str, str]: ...
    @property
    def body(self) -> bytes | None: ...
    close: bool

def render(answer: Answer, close: bool, method: str, server: bytes, date: bytes) -> bytes: ...

@final
class RequestIds:
    number: int
    def __init__(self, prefix: str, number: int = 1) -> None: ...
    def next(self) -> str: ...

@final
class Tally:
    def __init__(self, bounds: Sequence[float]) -> None: ...
    def decided(self, reason: str, elapsed_s: float) -> None: ...
    @property
    def reasons(self) -> dict[str, int]: ...
    @property
    def latency(self) -> list[int]: ...
    @property
    def latency_sum_s(self) -> float: ...

@final
class PlainCheck:
    def __init__(
        self,
        route: object,
        max_bytes: int,
        *,
        kind: type,
        decode: Callable[[bytes], Any],
        shield: Any,
        ids: RequestIds,
        tally: Tally,
        judged: Callable[[Any, float], None],
        failed: Callable[[Exception], Answer],
        knows: Callable[[Head], bool] | None = None,
    ) -> None: ...
    @property
    def route(self) -> object: ...

@disjoint_base
class Turns:
    @property
    def late(self) -> bool: ...
    clock: Callable[[], float] | None
    def __init__(self, max_wait_s: float, clock: Callable[[], float] | None = None) -> None: ...
    def look(self, loop: asyncio.AbstractEventLoop) -> None: ...
    def turn_ended(self) -> None: ...

def date_line() -> bytes: ...

@final
class Express:
    lane: Lane
    at_once: bool
    plain: PlainCheck | None
    def __init__(
        self,
        lane: Lane,
        answer_of: Callable[[Head], Answer | None],
        plain: PlainCheck | None,
        service: Any,
        turns: Turns,
        *,
        at_once: bool,
        most: int,
        most_bytes: int,
        server: bytes,
    ) -> None: ...

@final
class Reader:
    ready: bool
    @property
    def polled(self) -> bool: ...
    @property
    def used_s(self) -> float: ...
    def __init__(
        self,
        express: Express,
        loop: asyncio.AbstractEventLoop,
        received: Callable[[bytes], None],
        left: Callable[[bytes, tuple[int, bool, Head | Exception | None]], None],
    ) -> None: ...
    def begin(self, transport: asyncio.Transport) -> None: ...
    def end(self) -> None: ...
    def used(self) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def look(self, data: bytes) -> tuple[int, bool, Head | Exception | None] | None: ...

@final
class Poller:
    def __new__(cls, express: Express, loop: asyncio.AbstractEventLoop) -> Self: ...
    def readable(self) -> None: ...
