from collections.abc import Iterable, Sequence

_Buffer = bytes | bytearray | memoryview

STEPS: tuple[str, ...]

class Pieces:
    def __init__(self, pieces: Iterable[_Buffer]) -> None: ...

class Publication:
    step: int
    def __init__(
        self,
        directory: str,
        temp: str,
        final: str,
        own_claim: str,
        next_claim: str,
        epoch: int,
        parts: Sequence[_Buffer],
        durable: bool,
    ) -> None: ...
    def run(self, upto: int) -> bool: ...

def crc64(pieces: Iterable[_Buffer], crc: int = ...) -> int: ...
def crc64_by_tables(data: bytes, crc: int = ...) -> int: ...
def fail_next_sync(medium: str) -> None: ...
def unlink_all(paths: Iterable[str], own_claim: str, next_claim: str) -> bool: ...
