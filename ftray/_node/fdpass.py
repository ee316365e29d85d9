"""Receiving descriptors over a Unix socket.

``socket.recv_fds`` of several CPython releases (3.11 among them) drops its ``flags`` argument, so that
descriptors would arrive without close-on-exec and leak into every program that is started later.
"""

from __future__ import annotations

import array
import socket


def recv_with_fds(sock: socket.socket, size: int, max_fds: int) -> tuple[bytes, list[int], bool]:
    """Receive at most ``size`` bytes and ``max_fds`` descriptors (close-on-exec).

    Returns
    -------
    tuple
        The bytes, the descriptors (the caller's to close), and whether some were lost because there
        were too many.
    """
    fds = array.array("i")
    data, ancillary, flags, _address = sock.recvmsg(
        size, socket.CMSG_SPACE(max_fds * fds.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, fds.tolist(), bool(flags & socket.MSG_CTRUNC)
