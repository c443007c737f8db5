import sys
from typing import final

from typing_extensions import Buffer

@final
class Mapping(Buffer):
    def __new__(cls, fd: int, size_bytes: int) -> Mapping: ...
    @property
    def size_bytes(self) -> int: ...
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...

    def use_huge_pages(self) -> bool: ...
