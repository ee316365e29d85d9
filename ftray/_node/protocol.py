"""The codec of the control protocol between a process and its node: encoding and the incremental decoder.

Owns: the header, the mini-language of layouts (little-endian), the limits, matching descriptors with frames.
Invariants: ``decode(encode(f)) == f``; a malformed byte stream raises ``ProtocolError`` and never
anything else; the decoder holds at most one incomplete frame and a bounded number of descriptors.
Leaves to others: the frames themselves (``frames``), sockets (``connection``, ``client``) and what a
frame means (the daemon's handlers).

A layout names one token a field: a ``struct`` code, ``str`` (u16 length, UTF-8), ``blob`` (u32 length,
bytes), ``amounts`` (u16 count, then str and f64 each) or ``ids`` (u32 count, then u64 each).
"""

from __future__ import annotations

import struct
import sys

from ftray._node.record import Record
from ftray._version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, ClassVar

# Pickles of functions hold bytecode, so that both sides must run the same Python; what is pickled between
# processes, and the layout of shared memory, belong to one version of the package.
PROTOCOL_VERSION = f"2-py{sys.version_info[0]}.{sys.version_info[1]}"
VERSION = f"{PROTOCOL_VERSION}/{__version__}"
HEADER = struct.Struct("<IHHQ")
MAX_PAYLOAD_BYTES = 1 << 30
MAX_PENDING_FDS = 16


class ProtocolError(Exception):
    """The other side broke the protocol; its connection cannot be used any more."""


def version_text(version: str) -> str:
    """Return a ``VERSION``, perhaps another program's, in words."""
    protocol, _, package = version.partition("/")
    number, _, python = protocol.partition("-py")
    return f"ftray {package or '(unknown)'} (protocol {number or '(none)'}, Python {python or '(unknown)'})"


class Reader:
    """A cursor over one payload; every read is checked against its end."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        end = self.at + layout.size
        if end > len(self.data):
            raise ProtocolError(f"payload of {len(self.data)} bytes ends inside a field at byte {self.at}")
        values = layout.unpack_from(self.data, self.at)
        self.at = end
        return values

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.data):
            raise ProtocolError(
                f"payload of {len(self.data)} bytes ends inside {size} bytes at byte {self.at}"
            )
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def text(self) -> str:
        piece = self.take(self.unpack(_U16)[0])
        try:
            return piece.decode()
        except UnicodeDecodeError as error:
            raise ProtocolError(f"text that is not UTF-8: {error}") from None


_U16 = struct.Struct("<H")
_U32 = struct.Struct("<I")
_F64 = struct.Struct("<d")
_U64 = struct.Struct("<Q")


def _put_text(out: list[bytes], text: str) -> None:
    data = text.encode()
    if len(data) > 0xFFFF:
        raise ValueError(f"a text field holds at most 65535 bytes, got {len(data)}: {text[:60]!r}...")
    out += (_U16.pack(len(data)), data)


def _put(out: list[bytes], token: str, value: Any) -> None:
    if token == "str":
        _put_text(out, value)
    elif token == "blob":
        out += (_U32.pack(len(value)), value)
    elif token == "amounts":
        out.append(_U16.pack(len(value)))
        for name, amount in value:
            _put_text(out, name)
            out.append(_F64.pack(amount))
    else:
        out.append(struct.pack(f"<I{len(value)}Q", len(value), *value))


def _take(reader: Reader, token: str) -> Any:
    if token == "str":
        return reader.text()
    if token == "blob":
        return reader.take(reader.unpack(_U32)[0])
    if token == "amounts":
        return tuple((reader.text(), reader.unpack(_F64)[0]) for _ in range(reader.unpack(_U16)[0]))
    count = reader.unpack(_U32)[0]
    data = reader.take(8 * count)
    return struct.unpack(f"<{count}Q", data)


_SPECIAL = frozenset(("str", "blob", "amounts", "ids"))


def _plan(layout: str) -> tuple[tuple[str, struct.Struct | None, int], ...]:
    """Join neighbouring fixed-size fields: (token, packer, number of fields) each."""
    steps: list[tuple[str, struct.Struct | None, int]] = []
    codes: list[str] = []
    for token in [*layout.split(), "end"]:
        if token not in _SPECIAL and token != "end":
            codes.append(token)
            continue
        if codes:
            steps.append(("fixed", struct.Struct("<" + "".join(codes)), len(codes)))
            codes = []
        if token != "end":
            steps.append((token, None, 1))
    return tuple(steps)


class Frame(Record):
    """One frame; a subclass gives its type number and its layout, one token for each field."""

    TYPE: ClassVar[int] = 0
    LAYOUT: ClassVar[str] = ""
    _steps: ClassVar[tuple[tuple[str, struct.Struct | None, int], ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._steps = _plan(cls.LAYOUT)
        if cls.TYPE in FRAMES or len(cls.LAYOUT.split()) != len(cls._fields):
            raise TypeError(
                f"{cls.__name__}: type {cls.TYPE} taken twice, or layout and fields differ in number"
            )
        FRAMES[cls.TYPE] = cls

    def payload(self) -> bytes:
        """Return the encoded fields."""
        values = [self.__dict__[name] for name in self._fields]
        out: list[bytes] = []
        at = 0
        for token, packer, count in self._steps:
            if packer is not None:
                out.append(packer.pack(*values[at : at + count]))
            else:
                _put(out, token, values[at])
            at += count
        return b"".join(out)

    @classmethod
    def parse(cls, payload: bytes) -> Frame:
        """Return the frame that ``payload`` holds."""
        reader = Reader(payload)
        values = cls._read(reader, len(cls._steps))
        if reader.at != len(payload):
            raise ProtocolError(f"{cls.__name__}: {len(payload) - reader.at} bytes after the last field")
        return cls(*values)

    @classmethod
    def _read(cls, reader: Reader, steps: int) -> list[Any]:
        """Read the fields of the first ``steps`` steps of the layout."""
        values: list[Any] = []
        for token, packer, _count in cls._steps[:steps]:
            if packer is not None:
                values += reader.unpack(packer)
            else:
                values.append(_take(reader, token))
        return values

    def fds_needed(self) -> int:
        """Return how many descriptors travel with this frame."""
        return 0


FRAMES: dict[int, type[Frame]] = {}


class Message(Record):
    """A decoded frame with its request id, flags and descriptors (now the receiver's to close)."""

    frame: Frame
    req: int = 0
    flags: int = 0
    fds: tuple[int, ...] = ()


def encode(frame: Frame, req: int = 0, flags: int = 0) -> bytes:
    """Return the bytes of ``frame``, header included.

    Raises
    ------
    ValueError
        When the payload is longer than ``MAX_PAYLOAD_BYTES`` or a text field than 65535 bytes.
    """
    payload = frame.payload()
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(
            f"{type(frame).__name__} of {len(payload)} bytes; a frame holds at most {MAX_PAYLOAD_BYTES}"
        )
    return HEADER.pack(len(payload), frame.TYPE, flags, req) + payload


class FrameDecoder:
    """Turn a byte stream and its descriptors into messages.

    Parameters
    ----------
    max_payload_bytes
        Longer frames are refused before anything of them is buffered.

    Notes ----- A descriptor arrives with the first byte of its frame, so that descriptors are matched
    with the frames that need one in order of arrival. One that no frame asked for is an error.
    """

    def __init__(self, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self.max_payload_bytes = max_payload_bytes
        self._buffer = bytearray()
        self._fds: list[int] = []

    def feed(self, data: bytes, fds: Sequence[int] = ()) -> list[Message]:
        """Add received bytes; return the messages that are complete now.

        Raises
        ------
        ProtocolError
            The stream is malformed. ``drop`` returns the descriptors to close.
        """
        self._fds += fds
        if len(self._fds) > MAX_PENDING_FDS:
            raise ProtocolError(f"{len(self._fds)} descriptors without a frame that needs them")
        self._buffer += data
        messages: list[Message] = []
        try:
            at = self._decode(messages)
        except ProtocolError:
            self._fds += [fd for message in messages for fd in message.fds]
            raise
        if at:
            del self._buffer[:at]
        return messages

    def _decode(self, messages: list[Message]) -> int:
        at = 0
        while len(self._buffer) - at >= HEADER.size:
            size, kind, flags, req = HEADER.unpack_from(self._buffer, at)
            frame_class = FRAMES.get(kind)
            if frame_class is None:
                raise ProtocolError(f"unknown frame type {kind}")
            if size > self.max_payload_bytes:
                raise ProtocolError(
                    f"{frame_class.__name__} of {size} bytes; at most {self.max_payload_bytes} are allowed"
                )
            end = at + HEADER.size + size
            if len(self._buffer) < end:
                return at
            frame = frame_class.parse(bytes(memoryview(self._buffer)[at + HEADER.size : end]))
            messages.append(Message(frame, req, flags, self._claim(frame)))
            at = end
        if at == len(self._buffer) and self._fds:
            raise ProtocolError(f"{len(self._fds)} descriptors came with a frame that needs none")
        return at

    def _claim(self, frame: Frame) -> tuple[int, ...]:
        needed = frame.fds_needed()
        if needed > len(self._fds):
            raise ProtocolError(f"{type(frame).__name__} came without its descriptor")
        claimed = tuple(self._fds[:needed])
        del self._fds[:needed]
        return claimed

    @property
    def pending_bytes(self) -> int:
        """Bytes of an incomplete frame."""
        return len(self._buffer)

    def drop(self) -> list[int]:
        """Forget everything; return the descriptors that nobody claimed, for the caller to close."""
        fds, self._fds = self._fds, []
        self._buffer.clear()
        return fds
