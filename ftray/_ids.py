"""Ids as Python objects. In the core they are raw bytes."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar


class BaseID:
    """An id of fixed size; compares and hashes by its bytes."""

    SIZE: ClassVar[int] = 0
    __slots__ = ("_bytes",)

    def __init__(self, raw: bytes) -> None:
        if len(raw) != self.SIZE:
            raise ValueError(f"{type(self).__name__} has {self.SIZE} bytes, not {len(raw)}")
        self._bytes = bytes(raw)

    @classmethod
    def from_hex(cls, text: str) -> BaseID:
        """Make an id from its hexadecimal form."""
        return cls(bytes.fromhex(text))

    def binary(self) -> bytes:
        """Return the bytes."""
        return self._bytes

    def hex(self) -> str:
        """Return the hexadecimal form."""
        return self._bytes.hex()

    def is_nil(self) -> bool:
        """Whether this is the id of nothing (all ones)."""
        return self._bytes == b"\xff" * self.SIZE

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._bytes == self._bytes

    def __hash__(self) -> int:
        return hash(self._bytes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()})"

    def __reduce__(self) -> tuple[type, tuple[bytes]]:
        return type(self), (self._bytes,)


class JobID(BaseID):
    """4 bytes."""

    SIZE = 4


class ActorID(BaseID):
    """16 bytes: 12 unique, 4 of the job."""

    SIZE = 16


class TaskID(BaseID):
    """24 bytes: 8 unique, 16 of the actor."""

    SIZE = 24


class WorkerID(BaseID):
    """28 bytes."""

    SIZE = 28


class PlacementGroupID(BaseID):
    """18 bytes: 14 unique, 4 of the job."""

    SIZE = 18


class NodeID(BaseID):
    """28 bytes."""

    SIZE = 28
