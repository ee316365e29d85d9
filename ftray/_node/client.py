"""The client side of the control protocol before the core takes the connection over.

Owns: connecting, registering, and synchronous request/reply over a plain blocking socket.
Leaves to others: everything after the first frames; ``NodeConnection.detach`` hands the socket on.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
from collections import deque

from ftray._node import session
from ftray._node.fdpass import recv_with_fds
from ftray._node.frames import KIND_DRIVER, KIND_WORKER, Register, Registered, Rpc, RpcReply
from ftray._node.protocol import (
    MAX_PENDING_FDS,
    VERSION,
    Frame,
    FrameDecoder,
    Message,
    ProtocolError,
    encode,
    version_text,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


class RegistrationError(Exception):
    """The node refused this process, or did not answer."""


class VersionMismatch(RegistrationError):
    """The node runs another version of ftray, of its protocol or of Python."""


class NodeConnection:
    """A registered connection to the node.

    Attributes
    ----------
    sock
        The blocking Unix socket.
    board_fd
        The memfd of the board; the caller owns it.
    slot, job_id, node_id, session_dir, info
        What the node answered; ``info`` is a dict with resources, capacities and settings.
    """

    def __init__(self, sock: socket.socket, session_dir: str) -> None:
        self.sock = sock
        self.session_dir = session_dir
        self.board_fd = -1
        self.slot = 0
        self.job_id = 0
        self.node_id = b""
        self.info: dict[str, Any] = {}
        self._decoder = FrameDecoder()
        self._inbox: deque[Message] = deque()
        self._next_req = 1

    def send(self, frame: Frame, req: int = 0, fds: Sequence[int] = (), flags: int = 0) -> None:
        """Send one frame, waiting for room in the socket."""
        data = memoryview(encode(frame, req, flags))
        sent = socket.send_fds(self.sock, [data], list(fds), socket.MSG_NOSIGNAL) if fds else 0
        self.sock.sendall(data[sent:], socket.MSG_NOSIGNAL)

    def receive(self) -> Message:
        """Return the next message, waiting for it.

        Raises
        ------
        ConnectionError
            The node closed the connection.
        ProtocolError
            The node sent something malformed.
        TimeoutError
            The socket's timeout passed.
        """
        while not self._inbox:
            self._read()
        return self._inbox.popleft()

    def _read(self) -> None:
        data, fds, truncated = recv_with_fds(self.sock, 1 << 16, MAX_PENDING_FDS)
        if truncated:
            for fd in fds:
                os.close(fd)
            raise ProtocolError("the node sent more descriptors in one frame than the protocol allows")
        if not data:
            raise ConnectionError(f"the node of {self.session_dir} closed the connection")
        self._inbox += self._decoder.feed(data, fds)

    @property
    def has_pending(self) -> bool:
        """Whether ``receive`` returns at once."""
        return bool(self._inbox)

    def rpc(self, method: str, **arguments: Any) -> Any:
        """Call a method of the node and return its result; its exception is raised here.

        Other messages that arrive meanwhile are kept for ``receive``.
        """
        req = self._next_req
        self._next_req += 1
        self.send(Rpc(pickle.dumps((method, arguments))), req)
        kept: deque[Message] = deque()
        while True:
            message = self.receive()
            if isinstance(message.frame, RpcReply) and message.req == req:
                break
            kept.append(message)
        self._inbox.extendleft(reversed(kept))
        result = pickle.loads(message.frame.result)
        if message.frame.ok:
            return result
        raise result

    def detach(self) -> tuple[int, list[Message]]:
        """Hand the socket on: its descriptor, now the caller's, and the messages not taken yet.

        A frame that has arrived in part is received to its end first, for which the socket's timeout holds.

        Raises
        ------
        ConnectionError, ProtocolError, TimeoutError
            The rest of that frame did not come; the connection is as before.
        """
        while self._decoder.pending_bytes:
            self._read()
        messages = list(self._inbox)
        self._inbox.clear()
        return self.sock.detach(), messages

    def close(self) -> None:
        """Close the socket and the board."""
        self.sock.close()
        if self.board_fd >= 0:
            os.close(self.board_fd)
            self.board_fd = -1


def connect(
    session_dir: str,
    *,
    worker_id: bytes,
    token: bytes | None = None,
    kind: int = KIND_DRIVER,
    sock_name: str | None = None,
    namespace: str = "",
    job_key: str = "",
    job: bytes = b"",
    timeout_s: float | None = 30.0,
) -> NodeConnection:
    """Connect to the node of a session and register this process.

    Parameters
    ----------
    session_dir
        The directory of the session.
    worker_id
        28 bytes that name this process; never used twice in a session.
    token
        The startup token of a worker. For a driver the session's token, read from the directory when None.
    kind
        ``KIND_DRIVER``, ``KIND_WORKER`` or ``KIND_OBSERVER``.
    sock_name
        Name of the socket in ``session_dir`` at which this process listens;
        ``<worker_id hex[:16]>.sock`` when None.
    namespace, job_key
        The driver's namespace and the key that lets it resume.
    job
        What a driver says of its job, as JSON: ``anonymous`` (its namespace was made up), ``sys_path``,
        ``cwd``.
    timeout_s
        For each step of the connection; None waits for ever. The socket comes back blocking.

    Returns
    -------
    NodeConnection
        Registered.

    Raises
    ------
    RegistrationError
        The node refused (the text says why) or is gone.
    VersionMismatch
        It refused, or would not understand us, because it is of another version; the text names both.
    """
    if token is None:
        if kind == KIND_WORKER:
            raise ValueError("a worker registers with the startup token that the zygote gave it")
        token = session.read_token(session_dir)
    name = sock_name if sock_name is not None else f"{worker_id.hex()[:16]}.sock"
    try:
        node = NodeConnection(session.connect_in(session_dir, session.NODE_SOCKET, timeout_s), session_dir)
    except OSError as error:
        raise RegistrationError(f"no node answers in {session_dir}: {error}") from None
    try:
        node.send(Register(kind, os.getpid(), worker_id, VERSION, token, name, namespace, job_key, job), 1)
        _finish_registration(node, node.receive())
        node.sock.settimeout(None)
    except (OSError, ProtocolError) as error:
        node.close()
        raise RegistrationError(f"the node of {session_dir} did not accept this process: {error}") from None
    except BaseException:
        node.close()
        raise
    return node


def _finish_registration(node: NodeConnection, message: Message) -> None:
    answer = message.frame
    if not isinstance(answer, Registered):
        raise RegistrationError(f"the node answered {type(answer).__name__} to the registration")
    node.board_fd = message.fds[0] if message.fds else -1
    node.info = json.loads(answer.info)
    theirs = str(node.info.get("version", node.info.get("protocol", VERSION if answer.ok == 0 else "")))
    if theirs != VERSION:
        raise VersionMismatch(
            f"the node of {node.session_dir} runs {version_text(theirs)}, this process runs"
            f" {version_text(VERSION)}; both must be the same"
        )
    if not answer.ok:
        raise RegistrationError(str(node.info.get("error", "the node refused this process without a reason")))
    node.slot, node.job_id, node.node_id = answer.slot, answer.job_id, answer.node_id
