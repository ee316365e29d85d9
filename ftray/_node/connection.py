"""A non-blocking connection of the node to one process.

Owns: its socket, what waits to be sent, the decoder of what arrives.
Invariants: ``send`` never blocks; what waits is bounded, and a peer that lets it grow past the bound is
reported as ``Overflow`` and must be dropped; descriptors that wait are duplicates owned by the connection.
Leaves to others: epoll registration (``wants_write`` tells), authentication, the meaning of frames.
"""

from __future__ import annotations

import os
import socket
from collections import deque

from ftray._node.fdpass import recv_with_fds
from ftray._node.protocol import MAX_PENDING_FDS, Frame, FrameDecoder, Message, ProtocolError, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_QUEUED_BYTES = 256 << 20
# One turn reads at most this much, so that one busy process cannot hold up the others.
READ_BYTES = 256 << 10


class Overflow(Exception):
    """The peer does not read: too much waits to be sent to it."""


class Closed(Exception):
    """The peer closed the connection."""


class Connection:
    """A framed connection over a non-blocking Unix stream socket.

    Parameters
    ----------
    sock
        Connected; the connection owns it from now on.
    max_queued_bytes
        When more than this waits to be sent already, ``send`` raises ``Overflow``: one frame may be larger.
    """

    def __init__(self, sock: socket.socket, max_queued_bytes: int = MAX_QUEUED_BYTES) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.fd = sock.fileno()
        self.queued_bytes = 0
        self._max_queued_bytes = max_queued_bytes
        self._queue: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._decoder = FrameDecoder()

    @property
    def wants_write(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._queue)

    def limit_frames(self, max_payload_bytes: int) -> None:
        """Refuse longer frames from now on."""
        self._decoder.max_payload_bytes = max_payload_bytes

    def send(self, frame: Frame, req: int = 0, fds: Sequence[int] = (), flags: int = 0) -> None:
        """Send a frame, or queue what the socket does not take now.

        Raises
        ------
        Overflow
            The peer has not read for too long.
        Closed
            The peer is gone.
        """
        data = memoryview(encode(frame, req, flags))
        if self._queue:
            self._enqueue(data, tuple(os.dup(fd) for fd in fds))
            return
        sent = self._transmit(data, tuple(fds))
        if sent < len(data):
            # The descriptors went with the first byte, if any byte went.
            self._enqueue(data[sent:], tuple(os.dup(fd) for fd in fds) if sent == 0 else ())

    def _enqueue(self, data: memoryview, fds: tuple[int, ...]) -> None:
        if self.queued_bytes > self._max_queued_bytes:
            for fd in fds:
                os.close(fd)
            raise Overflow(f"{self.queued_bytes} bytes wait to be read, at most {self._max_queued_bytes} may")
        self._queue.append((data, fds))
        self.queued_bytes += len(data)

    def _transmit(self, data: memoryview, fds: tuple[int, ...]) -> int:
        """Return how many bytes the socket took."""
        try:
            if fds:
                return socket.send_fds(self.sock, [data], list(fds), socket.MSG_NOSIGNAL)
            return self.sock.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed(str(error)) from None

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it.

        Raises
        ------
        Closed
            The peer is gone.
        """
        while self._queue:
            data, fds = self._queue[0]
            sent = self._transmit(data, fds)
            if sent == 0:
                return
            self.queued_bytes -= sent
            for fd in fds:
                os.close(fd)
            if sent < len(data):
                self._queue[0] = (data[sent:], ())
            else:
                self._queue.popleft()

    def receive(self) -> list[Message]:
        """Read once and return the messages that are complete.

        Raises
        ------
        Closed
            The peer closed the connection between frames.
        ProtocolError
            What it sent is malformed, or it closed inside a frame.
        """
        try:
            data, fds, truncated = recv_with_fds(self.sock, READ_BYTES, MAX_PENDING_FDS)
        except BlockingIOError:
            return []
        except ConnectionResetError as error:
            raise Closed(str(error)) from None
        if truncated:
            _close_all(fds)
            raise ProtocolError("more descriptors in one frame than the protocol allows")
        if not data:
            if self._decoder.pending_bytes:
                raise ProtocolError(f"closed after {self._decoder.pending_bytes} bytes of a frame")
            raise Closed("end of stream")
        return self._decoder.feed(data, fds)

    def close(self) -> None:
        """Close the socket and every descriptor that is still held."""
        _close_all(self._decoder.drop())
        for _data, fds in self._queue:
            _close_all(fds)
        self._queue.clear()
        self.queued_bytes = 0
        self.sock.close()


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
