"""Checkpoints of unnamed actors that are gone for good: has them removed, by a process of its own.

Nobody can ask for them again. An actor that goes out of scope, or with its session, removes its own before
it exits; what was killed, crashed once too often or lost its owner cannot, so this does it in their place.
The process has the environment of the actor's runtime environment, where the credentials of its store are;
the store may be slow or away, which must hold up nobody here.

Owns: what waits to be removed, and the process that removes it (one, for all that waits in one environment).
Invariants: an actor's process is dead before its checkpoints are given away; each is tried once.
Leaves to others: what removing is (``ftray.checkpoint.engine.discard``). What is not removed in the end
(reported) is an orphan when the session has ended: ``ftray checkpoint prune``.
"""

from __future__ import annotations

import marshal
import os
import socket
import sys
import time

from ftray._node.environments import EnvironmentSetupError, expanded, plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ftray._node.daemon import Node

# One actor's checkpoints may take this long.
PATIENCE_S = 60.0
# At the end of the session, after the last actor has ended, all that waits may take this long.
LAST_PATIENCE_S = 3.0
_BATCH = 64  # so many fit into the socket at once


def is_own(fields: dict[str, Any]) -> bool:
    """Whether an actor keeps checkpoints that serve only itself."""
    checkpoint = fields.get("checkpoint")
    if checkpoint is None:
        return False
    return not fields["checkpoint_name"] and checkpoint.get("checkpoint_key") is None


class Discards:
    """Removals of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._waiting: dict[str, list[dict[str, Any]]] = {}  # by runtime environment
        self._under_way: list[dict[str, Any]] = []
        self._sock: socket.socket | None = None
        self._pid = 0
        self._over = False

    @property
    def busy(self) -> bool:
        """Whether something is still to be removed."""
        return self._sock is not None or bool(self._waiting)

    def add(self, fields: dict[str, Any]) -> None:
        """An actor with this spec is gone for good, and its last process dead."""
        if self._over:
            self._lost([fields], "the session ended before")
            return
        self._waiting.setdefault(fields["runtime_env"] or "", []).append(fields)
        self._next()

    def give_up(self) -> None:
        """The session cannot wait any longer."""
        self._over = True
        waiting = [fields for group in self._waiting.values() for fields in group]
        self._waiting.clear()
        self._lost(waiting, "the session ended before")
        self._end("it took too long")

    def _next(self) -> None:
        while self._sock is None and self._waiting:
            env = next(iter(self._waiting))
            waiting = self._waiting.pop(env)
            self._under_way, rest = waiting[:_BATCH], waiting[_BATCH:]
            if rest:
                self._waiting[env] = rest
            try:
                self._start(env)
            except (OSError, EnvironmentSetupError) as error:
                self._under_way, lost = [], self._under_way
                self._lost(lost, str(error))

    def _start(self, env: str) -> None:
        config = self._node.config
        variables, paths = dict(os.environ), list(config["sys_path"])
        if env:
            found = plan(env, self._node.session.path)
            variables |= expanded(found.variables, os.environ)
            paths = [*found.paths, *paths]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        boot = os.path.join(os.path.dirname(os.path.abspath(__file__)), "boot.py")
        command = [sys.executable, *config["flags"], boot, "discard", "3"]
        actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 3)]
        try:
            self._pid = os.posix_spawn(sys.executable, command, variables, file_actions=actions)
            ours.setblocking(False)
            ours.send(marshal.dumps({"sys_path": paths, "session_dir": self._node.session.path}))
            for fields in self._under_way:
                ours.send(marshal.dumps(_order(fields)))
            ours.shutdown(socket.SHUT_WR)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._sock = ours
        self._node.loop.register(ours.fileno(), lambda _events: self._readable())
        self._watch()

    def _watch(self) -> None:
        due_s = time.monotonic() + PATIENCE_S
        self._node.loop.set_timer("discard", due_s, lambda: self._end(f"it took longer than {PATIENCE_S} s"))

    def _readable(self) -> None:
        while self._sock is not None:
            try:
                data = self._sock.recv(1 << 16)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                self._end("the process that removes them died")
                return
            trouble = marshal.loads(data)
            fields = self._under_way.pop(0)
            self._watch()
            if trouble:
                self._lost([fields], trouble)

    def _end(self, why: str) -> None:
        """The process is done, died or is to be ended."""
        if self._sock is None:
            return
        self._node.loop.unregister(self._sock.fileno())
        self._sock.close()  # it ends when it sees that; the one who hangs is killed with the session
        self._sock = None
        self._node.loop.set_timer("discard", None, lambda: None)
        self._under_way, lost = [], self._under_way
        self._lost(lost, why)
        self._next()
        if self._node.stopping:
            self._node.stop_when_empty()

    def _lost(self, lost: list[dict[str, Any]], why: str) -> None:
        for fields in lost:
            self._node.report(
                f"the checkpoints of {fields['class_name']} {fields['actor_id'].hex()}, which has ended, are "
                f"still in {fields['checkpoint']['store']}: {why}. When this session has ended, "
                "`ftray checkpoint prune` removes them"
            )


def _order(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "identity": (fields["checkpoint_namespace"], "", fields["unique_id"], fields["class_name"]),
        "spec": fields["checkpoint"],
    }
