"""The zygote: a single-threaded process that has imported what workers need, and forks them.

Owns: the imports shared by all workers, making a worker's process, and everything a fresh child must undo
before the worker's own code runs (signals, descriptors, random state, process group).
Invariants: one thread at every fork; a child whose ``ftrayd`` is gone ends; a request is always answered.
Leaves to others: deciding when to fork (``pool``), watching workers: they are children of ``ftrayd``
(``CLONE_PARENT``), so that nothing depends on the zygote once a worker runs.

Messages are marshalled tuples over a SOCK_SEQPACKET pair (both ends run the same interpreter). Requests:
``("fork", number, token, session_dir)`` with the write ends of two pipes, ``("preload", modules)``. Answers:
``("forked", number, pid)`` or ``("failed", number, text)``, and ``("preloaded", modules, error)``.
"""

from __future__ import annotations

import gc
import importlib
import marshal
import os
import signal
import socket
import sys

from ftray._core import procs
from ftray._node import threads
from ftray._node.fdpass import recv_with_fds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    WorkerMain = Callable[[str, bytes], object]

MESSAGE_BYTES = 1 << 16
# What every worker needs to register and to run its first call: imported once here, not once a worker.
_SHARED_MODULES = (
    "pickle",
    "cloudpickle",
    "queue",
    "ftray._node.client",
    "ftray._pickling",
    "ftray._task_errors",
)


class Zygote:
    """The zygote's side of its socket."""

    def __init__(self, sock: socket.socket, ftrayd_pid: int, worker_module: str) -> None:
        self._sock = sock
        self._ftrayd_pid = ftrayd_pid
        self._worker_module = worker_module
        self._main: WorkerMain | None = None
        self._broken = ""

    def prepare(self, complete_package: Callable[[], None]) -> None:
        """Tie this process to ``ftrayd`` and import what workers need."""
        procs.set_pdeathsig(signal.SIGKILL)
        if os.getppid() != self._ftrayd_pid:
            os._exit(0)
        procs.set_name("ftray-zygote")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threads.limit(os.environ)
        try:
            complete_package()
            for module in _SHARED_MODULES:
                importlib.import_module(module)
            self._main = importlib.import_module(self._worker_module).main
        except BaseException as error:
            self._broken = f"{self._worker_module} cannot be imported:\n{_describe(error)}"
        gc.disable()
        _freeze()

    def serve(self) -> Callable[[], None]:
        """Answer requests until ``ftrayd`` is gone; in a child, return what it is to run.

        Returns
        -------
        callable
            Runs the worker; called by the outermost frame, so that the child's stack holds nothing of ours.
        """
        while True:
            data, fds, _truncated = recv_with_fds(self._sock, MESSAGE_BYTES, 2)
            if not data:
                return lambda: None
            request = marshal.loads(data)
            if request[0] == "fork":
                job = self._fork(request, fds)
                if job is not None:
                    return job
            else:
                self._preload(request[1])

    def _send(self, *message: Any) -> None:
        self._sock.send(marshal.dumps(message))

    def _fork(self, request: tuple[Any, ...], pipes: list[int]) -> Callable[[], None] | None:
        _kind, number, token, session_dir = request
        main = self._main
        try:
            if main is None:
                raise RuntimeError(self._broken)
            pid = procs.fork_sibling()
        except (OSError, RuntimeError) as error:
            self._send("failed", number, str(error))
        else:
            if pid == 0:
                _become_worker(self._ftrayd_pid, pipes)
                self._sock.detach()  # closed with all the others
                return lambda: _run_worker(main, session_dir, token)
            self._send("forked", number, pid)
        for fd in pipes:
            os.close(fd)
        return None

    def _preload(self, modules: list[str]) -> None:
        errors = []
        for module in modules:
            try:
                importlib.import_module(module)
            except BaseException as error:
                errors.append(f"{module}: {_describe(error)}")
        threads = procs.thread_count()
        if threads != 1:
            errors.append(
                f"importing {', '.join(modules)} started {threads - 1} threads; it cannot be preloaded"
            )
        _freeze()
        self._send("preloaded", modules, "\n".join(errors))
        if threads != 1:
            os._exit(1)  # a fork with threads is unsafe; ftrayd starts a new zygote


def _freeze() -> None:
    """Keep the collector off everything that exists now: it would write to every page that children share."""
    gc.collect()
    gc.freeze()


def _describe(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def _become_worker(ftrayd_pid: int, pipes: list[int]) -> None:
    """Turn a fresh child of the zygote into a process of its own."""
    procs.set_pdeathsig(signal.SIGKILL)
    if os.getppid() != ftrayd_pid:
        os._exit(0)  # ftrayd died before the parent-death signal was set
    # A group of its own: what the worker starts ends with it.
    os.setpgid(0, 0)
    procs.set_name("ftray-worker")
    for target, fd in zip((1, 2), pipes, strict=True):
        os.dup2(fd, target)
    procs.close_range(3)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()  # random reseeds itself after a fork
    gc.enable()


def _run_worker(main: WorkerMain, session_dir: str, token: bytes) -> None:
    sys.exit(main(session_dir, token))  # type: ignore[arg-type]
