from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, final

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

@final
class Lane:
    def __init__(
        self,
        posts: Iterable[tuple[bytes, Any]],
        anys: Iterable[tuple[bytes, Any]],
        prefix: tuple[bytes, Any] | None,
        hold_bytes: int,
    ) -> None: ...
    def look(self, data: bytes, at: int = 0) -> Head: ...
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
        decode: Callable[[bytes], Any],
        unique: Callable[[bytes], bool],
        shield: Any,
        ids: RequestIds,
        tally: Tally,
        judged: Callable[[Any, float], None],
        failed: Callable[[Exception], Answer],
    ) -> None: ...
    @property
    def route(self) -> object: ...
    def answer(self, head: Head) -> Answer | None: ...
