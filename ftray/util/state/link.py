"""Asking the node process of a session, from its driver, its workers or a program of its own.

Each question uses a connection of its own that observes: it takes part in nothing, makes no job, and every
step of it has a time-out.
"""

from __future__ import annotations

import os
import time
from typing import Any

from ftray.util.state.exception import ServerUnavailable


def session_of(address: str | None) -> str:
    """Return the directory of a session: this process's own, else of `address`, else the newest.

    Raises
    ------
    ServerUnavailable
        There is none.
    """
    from ftray import _core, _lifecycle
    from ftray._node.launch import find_node
    from ftray._node.session import SessionError

    if address is not None and not isinstance(address, str):
        raise TypeError(f"address must be a string or None, not {address!r}")
    if address is None and _core.attached():
        return _lifecycle.current().session_dir
    try:
        return find_node(address or "auto")
    except SessionError as error:
        raise ServerUnavailable(f"no session to ask (address={address!r}): {error}") from None


class Link:
    """A connection to the node of a session; a context manager.

    Parameters
    ----------
    address
        See `session_of`.
    timeout_s
        For everything that is asked, together.
    """

    def __init__(self, address: str | None, timeout_s: float) -> None:
        from ftray._node import client
        from ftray._node.frames import KIND_OBSERVER

        self.session_dir = session_of(address)
        self._deadline_s = time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        try:
            self._node = client.connect(
                self.session_dir, worker_id=os.urandom(28), kind=KIND_OBSERVER, timeout_s=timeout_s
            )
        except (client.RegistrationError, OSError) as error:
            raise ServerUnavailable(f"the session {self.session_dir} cannot be asked: {error}") from None
        self.node_id: str = self._node.node_id.hex()
        self.info = self._node.info

    @property
    def left_s(self) -> float:
        """What is left of the time."""
        return max(0.001, self._deadline_s - time.monotonic())

    def call(self, method: str, **arguments: Any) -> Any:
        """Call a method of the node.

        Raises
        ------
        ServerUnavailable
            The node did not answer in time, or is gone.
        """
        self._node.sock.settimeout(self.left_s)
        try:
            return self._node.rpc(method, **arguments)
        except TimeoutError:
            raise ServerUnavailable(
                f"the node process {self.info.get('pid')} of {self.session_dir} did not answer {method!r}"
                f" within {self._timeout_s:g} s; give a larger timeout, or see whether it is stopped"
            ) from None
        except ConnectionError as error:
            raise ServerUnavailable(f"the node of {self.session_dir} is gone: {error}") from None

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._node.close()
