"""A connection that is handed on while a frame is on its way."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from ftray._node.client import NodeConnection
from ftray._node.frames import RpcReply
from ftray._node.protocol import encode


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    yield NodeConnection(ours, "/nowhere"), theirs
    ours.close()
    theirs.close()


def frame(text):
    return encode(RpcReply(1, text), 7)


def test_the_rest_of_a_frame_is_received_first(pair):
    connection, node = pair
    second = frame(b"second")
    node.sendall(frame(b"first") + second[:9])
    assert connection.receive().frame.result == b"first"
    rest = threading.Thread(target=node.sendall, args=(second[9:],))
    rest.start()
    fd, messages = connection.detach()
    rest.join()
    os.close(fd)
    assert [message.frame.result for message in messages] == [b"second"]


def test_what_has_come_whole_is_not_waited_for(pair):
    connection, node = pair
    node.sendall(frame(b"first") + frame(b"second"))
    assert connection.receive().frame.result == b"first"
    fd, messages = connection.detach()
    os.close(fd)
    assert [message.frame.result for message in messages] == [b"second"]


@pytest.mark.parametrize(("close", "error"), [(True, ConnectionError), (False, TimeoutError)])
def test_a_frame_that_never_ends(pair, close, error):
    connection, node = pair
    node.sendall(frame(b"first") + frame(b"second")[:9])
    assert connection.receive().frame.result == b"first"
    connection.sock.settimeout(0.05)
    if close:
        node.close()
    with pytest.raises(error):
        connection.detach()
    assert connection.sock.fileno() >= 0  # still ours to close
