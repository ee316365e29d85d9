"""The process that removes the checkpoints of actors which are gone for good; see ``discards``.

It gets one order per actor over its socket, answers each with "" or with what went wrong, and ends with the
socket. A store of the node itself (``kv://``, ``actor://``) is reached as any driver reaches it.
"""

from __future__ import annotations

import marshal
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

MESSAGE_BYTES = 1 << 20
_TROUBLE_LENGTH = 4000
_OF_THE_NODE = ("kv://", "actor://")


def discard(order: dict[str, Any], connect: Callable[[], None]) -> None:
    """Carry out one order."""
    from ftray.checkpoint import engine
    from ftray.checkpoint.host import ActorIdentity

    if order["spec"]["store"].startswith(_OF_THE_NODE):
        connect()
    engine.discard(order["spec"], ActorIdentity(*order["identity"]))


def serve(sock: socket.socket, connect: Callable[[], None]) -> None:
    """Carry out orders until the other side has no more."""
    while True:
        data = sock.recv(MESSAGE_BYTES)
        if not data:
            return
        trouble = ""
        try:
            discard(marshal.loads(data), connect)
        except Exception as error:  # any store, any library
            trouble = f"{type(error).__name__}: {error}"[:_TROUBLE_LENGTH]
        sock.send(marshal.dumps(trouble))


def main(sock: socket.socket, session_dir: str, complete: Callable[[], None]) -> None:
    """Be the process; `complete` runs the package's ``__init__``."""
    from ftray._core import procs

    procs.set_name("ftray-discard")
    procs.set_pdeathsig(signal.SIGKILL)  # also from a store that hangs
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    complete()

    def connect() -> None:
        import ftray

        ftray.init(address=session_dir, ignore_reinit_error=True, log_to_driver=False)

    try:
        serve(sock, connect)
    except (BrokenPipeError, ConnectionResetError):
        return  # nobody waits for it any more
