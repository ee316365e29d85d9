"""The nodes that run on this machine, seen from outside: listing, asking, ending them.

Owns: what ``ftray status`` and ``ftray stop`` do. A node is found by the lock of its session directory, and
signalled through a pidfd that was taken while the lock was held, so that no other process is hit.
Leaves to others: words and tables for people (``ftray._cli``).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

from ftray._node import client, session
from ftray._node.frames import KIND_OBSERVER
from ftray._node.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_ANSWER_TIMEOUT_S = 15.0
_KILL_TIMEOUT_S = 10.0
_LOOKS = 10  # a family may grow while it is looked at


class RunningNode(Record):
    """A live session and the process ``ftrayd`` behind it."""

    session_dir: str
    pid: int
    is_head: bool


def running_nodes(base: str) -> list[RunningNode]:
    """Return this user's nodes below ``base``, the newest first."""
    return [
        RunningNode(path, int(os.path.basename(path).split("-")[2]), session.is_head(path))
        for path in session.live_sessions(base)
    ]


@contextlib.contextmanager
def observed(session_dir: str) -> Iterator[client.NodeConnection]:
    """Connect to a node to ask it something: RPC methods only.

    Raises
    ------
    RegistrationError
        It does not answer, or refuses.
    """
    node = client.connect(
        session_dir,
        worker_id=os.urandom(28),
        kind=KIND_OBSERVER,
        sock_name="observer",
        timeout_s=_ANSWER_TIMEOUT_S,
    )
    try:
        node.sock.settimeout(_ANSWER_TIMEOUT_S)
        yield node
    finally:
        node.close()


class NotEndedError(Exception):
    """A node cannot be ended from here; the text says why."""


def end_node(node: RunningNode, grace_s: float) -> str:
    """End a node with all its processes.

    Parameters
    ----------
    node
        From ``running_nodes``.
    grace_s
        How long it may take to end by itself after SIGTERM; 0: it is killed at once.

    Returns
    -------
    str
        "stopped" (by itself), "killed", or "gone" when it had ended before.

    Raises
    ------
    NotEndedError
        It cannot be signalled, or lives on.
    """
    try:
        pidfd = os.pidfd_open(node.pid)
    except ProcessLookupError:
        return _gone(node)
    try:
        if node.session_dir not in session.live_sessions(_base_of(node)):
            return "gone"  # so that the number may be another process's by now
        if _name_of(node.pid) != "ftrayd":
            raise NotEndedError(
                f"the node of {node.session_dir} has no process {node.pid} here: it runs in another PID"
                " namespace (container); stop it there"
            )
        if grace_s > 0:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            if _ended(pidfd, grace_s):
                if os.path.exists(node.session_dir):  # it had not come so far that it could tidy up
                    session.sweep_stale(_base_of(node))
                return "stopped"
        _kill_tree(node, pidfd)
        return "killed"
    finally:
        os.close(pidfd)


def _base_of(node: RunningNode) -> str:
    return os.path.dirname(os.path.dirname(node.session_dir))


def _gone(node: RunningNode) -> str:
    if node.session_dir in session.live_sessions(_base_of(node)):
        raise NotEndedError(
            f"the node of {node.session_dir} runs in another PID namespace (container); stop it there"
        )
    return "gone"


def _name_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _ended(pidfd: int, timeout_s: float) -> bool:
    return bool(select.select([pidfd], [], [], timeout_s)[0])


def _kill_tree(node: RunningNode, pidfd: int) -> None:
    """Kill ``ftrayd``, and what it would have ended itself: workers, and what they have started."""
    family = _descendants(node.pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        deadline_s = time.monotonic() + _KILL_TIMEOUT_S
        if not _ended(pidfd, _KILL_TIMEOUT_S):
            raise NotEndedError(f"process {node.pid} was killed and has not ended yet")
        for member in family.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(member, signal.SIGKILL)
        left = [pid for pid, fd in family.items() if not _ended(fd, max(0.0, deadline_s - time.monotonic()))]
        if left:
            raise NotEndedError(f"processes {left} of node {node.pid} were killed, but have not ended")
    finally:
        for member in family.values():
            os.close(member)
    session.sweep_stale(_base_of(node))


def _descendants(pid: int) -> dict[int, int]:
    """Return pidfds of the processes below ``pid``; each was one when its pidfd was taken."""
    found: dict[int, int] = {}
    for _ in range(_LOOKS):
        parents = _parents()
        new = _below(pid, parents) - set(found)
        if not new:
            break
        for child in new:
            with contextlib.suppress(ProcessLookupError):
                found[child] = os.pidfd_open(child)
        still = _parents()
        for child in new & set(found):
            if still.get(child) != parents[child]:  # its number may be another process's by now
                os.close(found.pop(child))
    return found


def _below(pid: int, parents: dict[int, int]) -> set[int]:
    found: set[int] = set()
    todo = {pid}
    while todo:
        todo = {child for child, parent in parents.items() if parent in todo} - found
        found |= todo
    return found


def _parents() -> dict[int, int]:
    """Return the parent of every process."""
    found: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    found[int(name)] = int(file.read().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found
