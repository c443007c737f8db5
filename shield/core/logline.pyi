from typing import final

@final
class LineReader:
    def __new__(cls) -> LineReader: ...
    def read(
        self, line: bytes
    ) -> tuple[int, str, str | None, str | None, str, int, int, str | None, str | None, str | None] | None: ...
