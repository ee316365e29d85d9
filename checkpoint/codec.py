"""Arguments and replies as bytes: what an engine may replace by its own wire format, and the toolkit's own.

Owns the protocol `Codec` and `ToolkitCodec`, which the in-process host and engines without a wire format
use. Argument bytes are those of ``_core.callargs`` on every engine: u16 number of values that were refs,
those values (u64 length and bytes), then the arguments.
"""

from __future__ import annotations

import struct
from typing import Any, Protocol

from ftray._core.callargs import deserialize_args, serialize_args
from ftray._core.serial import deserialize, serialize

from .compare import difference
from .errors import CheckpointFormatError

OK, ERROR = 0, 1
"""Statuses of replies; an engine may have more."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Codec(Protocol):
    """How one engine writes calls."""

    def decode_args(self, body: bytes) -> Arguments:
        """Return arguments and keyword arguments."""

    def encode_outcome(
        self, method: str, result: object, error: BaseException | None, returns: int = 1
    ) -> tuple[int, bytes]:
        """Return status and bytes of a reply; a result that cannot be written gives an error reply.

        `returns`: of how many values, which are those in `result` unless it is 1.
        """

    def count_returns(self, reply: bytes) -> int:
        """Return of how many values a reply is."""

    def decode_reply(self, status: int, reply: bytes) -> Any:
        """Return the value of a reply, or the exception of an error reply."""

    def same_status(self, recorded: int, again: int) -> bool:
        """Whether a call that was recorded with one status may give the other when it runs again."""


class ToolkitCodec:
    """See `Codec`."""

    def encode_args(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> bytes:
        """Write arguments; refs are not known here."""
        return struct.pack("<H", 0) + serialize_args(args, kwargs or None, [])

    def decode_args(self, body: bytes) -> Arguments:
        """See `Codec.decode_args`."""
        values, at = split_args(body)
        args, kwargs = deserialize_args(body[at:], [deserialize(value) for value in values])
        return args, kwargs or {}

    def encode_outcome(
        self, method: str, result: object, error: BaseException | None, returns: int = 1
    ) -> tuple[int, bytes]:
        """See `Codec.encode_outcome`."""
        if error is None:
            try:
                return OK, serialize(result)
            except Exception as raised:
                text = f"the result of {method}, a {type(result).__name__}, cannot be sent: {raised}"
                error = TypeError(text)
        try:
            data = serialize(error)
            deserialize(data)
        except Exception:
            data = serialize(RuntimeError(f"{type(error).__name__}: {error}"))
        return ERROR, data

    def count_returns(self, reply: bytes) -> int:
        """See `Codec.count_returns`."""
        return 1

    def decode_reply(self, status: int, reply: bytes) -> Any:
        """See `Codec.decode_reply`."""
        return deserialize(reply)

    def same_status(self, recorded: int, again: int) -> bool:
        """See `Codec.same_status`."""
        return recorded == again


def split_args(body: bytes) -> tuple[list[bytes], int]:
    """Return the values of the refs among the arguments, and where the argument bytes begin."""
    try:
        (count,) = struct.unpack_from("<H", body)
        values, at = [], 2
        for _ in range(count):
            (size,) = struct.unpack_from("<Q", body, at)
            values.append(body[at + 8 : at + 8 + size])
            at += 8 + size
    except struct.error as error:
        raise CheckpointFormatError(f"the arguments of a call are cut short: {error}") from None
    if at > len(body):
        raise CheckpointFormatError(f"the arguments of a call are cut short: {len(body)} bytes of {at}")
    return values, at


def reply_difference(codec: Codec, recorded: tuple[int, bytes], again: tuple[int, bytes]) -> str | None:
    """Return how a reply differs from the recorded one, None if it says the same."""
    if recorded == again:
        return None
    one, other = (codec.decode_reply(*reply) for reply in (recorded, again))
    if not codec.same_status(recorded[0], again[0]):
        return f"status {recorded[0]} ({_short(one)}) was recorded, now it is {again[0]} ({_short(other)})"
    return difference(one, other, "reply")


def _short(value: object) -> str:
    text = f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else repr(value)
    return text[:200]
