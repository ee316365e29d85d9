"""The node's side of a connection: never waits, bounded, keeps frames and descriptors together."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from ftray._node import frames as f
from ftray._node.connection import Closed, Connection, Overflow
from ftray._node.protocol import FrameDecoder, ProtocolError, encode


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    ours, theirs = socket.socketpair()
    connection = Connection(ours, max_queued_bytes=1 << 20)
    yield connection, theirs
    connection.close()
    theirs.close()


def warn(size: int) -> f.Frame:
    return f.Log(1, 1, "", b"x" * size)


def read_all(connection: Connection, theirs: socket.socket, count: int) -> list[f.Frame]:
    decoder = FrameDecoder()
    got: list[f.Frame] = []
    while len(got) < count:
        got += [m.frame for m in decoder.feed(theirs.recv(1 << 16))]
        connection.flush()
    return got


def test_frames_that_do_not_fit_wait_in_order(pair: tuple[Connection, socket.socket]) -> None:
    connection, theirs = pair
    sent = [f.Log(n, 1, "", b"x" * 50_000) for n in range(15)]
    for frame in sent:
        connection.send(frame)
    assert connection.wants_write and connection.queued_bytes > 0
    assert read_all(connection, theirs, 15) == sent
    assert not connection.wants_write and connection.queued_bytes == 0


def test_a_peer_that_does_not_read_overflows(pair: tuple[Connection, socket.socket]) -> None:
    connection, _theirs = pair
    with pytest.raises(Overflow, match="wait to be read"):
        for _ in range(100):
            connection.send(warn(60_000))


def test_one_frame_may_be_larger_than_what_may_wait(pair: tuple[Connection, socket.socket]) -> None:
    connection, theirs = pair  # at most 1 MiB
    large = f.Log(1, 1, "", b"x" * (5 << 20))
    connection.send(large)
    with pytest.raises(Overflow, match="wait to be read"):
        connection.send(warn(1))
    assert read_all(connection, theirs, 1) == [large]
    connection.send(warn(1))
    assert read_all(connection, theirs, 1) == [warn(1)]


def test_descriptors_wait_with_their_frame_and_are_duplicates(pair: tuple[Connection, socket.socket]) -> None:
    connection, theirs = pair
    connection.send(warn(600_000))
    fd = os.memfd_create("x")
    os.write(fd, b"content")
    connection.send(f.SegFd(1, 5, 7), fds=[fd])
    os.close(fd)
    other = Connection(theirs)
    messages = []
    while len(messages) < 2:
        messages += other.receive()
        connection.flush()
    assert os.pread(messages[1].fds[0], 7, 0) == b"content"
    assert not os.get_inheritable(messages[1].fds[0])
    os.close(messages[1].fds[0])


def test_closing_closes_descriptors_that_wait_or_were_not_claimed(
    pair: tuple[Connection, socket.socket],
) -> None:
    connection, theirs = pair
    before = len(os.listdir("/proc/self/fd"))
    connection.send(warn(600_000))
    fd = os.memfd_create("x")
    connection.send(f.SegFd(1, 5, 7), fds=[fd])
    socket.send_fds(theirs, [encode(f.SegRegister(1, 1))[:5]], [fd])
    os.close(fd)
    assert connection.receive() == []
    connection.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_the_end_of_the_stream(pair: tuple[Connection, socket.socket]) -> None:
    connection, theirs = pair
    assert connection.receive() == []
    theirs.sendall(encode(f.Exit()) + b"part")
    theirs.shutdown(socket.SHUT_WR)
    assert [m.frame for m in connection.receive()] == [f.Exit()]
    with pytest.raises(ProtocolError, match="4 bytes of a frame"):
        connection.receive()


def test_a_peer_that_is_gone(pair: tuple[Connection, socket.socket]) -> None:
    connection, theirs = pair
    theirs.close()
    with pytest.raises(Closed):
        connection.receive()
    with pytest.raises(Closed):
        connection.send(f.Exit())


def test_more_descriptors_than_allowed_are_refused_and_closed(pair: tuple[Connection, socket.socket]) -> None:
    connection, theirs = pair
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(theirs, [b"x"], [0] * 100)
    with pytest.raises(ProtocolError, match="descriptors"):
        connection.receive()
    for fd in connection._decoder.drop():
        os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before
