"""The node's end of the zygote's socket when the zygote dies, in the orders in which that can be noticed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ftray._node.loop import Loop
from ftray._node.zygote_link import ZygoteLink


class Listener:
    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def on_forked(self, number: int, pid: int) -> None:
        self.told.append(("forked", number, pid))

    def on_fork_failed(self, number: int, text: str, fault: bool) -> None:
        self.told.append(("failed", number, text))

    def on_preloaded(self, modules: list[str], error: str) -> None:
        self.told.append(("preloaded", *modules))

    def on_zygote_restarted(self, text: str) -> None:
        self.told.append(("restarted", text))


class Zygote:
    """A child that waits to be killed, and a link to it; what replaces it is not started."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.loop = Loop()
        self.listener = Listener()
        config: dict[str, object] = {"sys_path": [], "worker_module": "", "flags": []}
        self.link = ZygoteLink(ours, self.process.pid, self.loop, self.listener, config)
        monkeypatch.setattr(self.link, "_restart", lambda: None)

    def turn(self) -> None:
        """One round of the loop."""
        self.loop.set_timer("stop", 0.0, self.loop.stop)
        self.loop.run()

    def end(self) -> None:
        """It is killed and reaped, as the node's loop does it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.link.exited("was killed")


@pytest.fixture
def zygote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Zygote]:
    one = Zygote(monkeypatch)
    yield one
    one.link.close()
    one.theirs.close()
    one.process.kill()
    one.process.wait()
    one.loop.close()


def test_its_end_is_noticed_before_its_exit_status(zygote: Zygote) -> None:
    zygote.theirs.close()
    zygote.turn()
    assert zygote.process.wait() == -signal.SIGKILL  # it had only closed its socket
    zygote.link.exited("was killed")
    assert zygote.listener.told == [("restarted", "was killed")]


def test_its_exit_status_comes_while_a_child_of_it_still_holds_its_end(
    zygote: Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child lets go of it later, when the process is reaped: nobody is killed by that number then."""
    childs = os.dup(zygote.theirs.fileno())
    zygote.theirs.close()
    read, write = os.pipe()
    os.close(write)
    zygote.link.fork(7, b"", "", [read])
    killed: list[int] = []
    zygote.end()
    monkeypatch.setattr(os, "kill", lambda pid, _signum: killed.append(pid))
    os.close(childs)
    zygote.turn()
    assert zygote.listener.told == [("failed", 7, "the zygote was killed"), ("restarted", "was killed")]
    assert killed == []
