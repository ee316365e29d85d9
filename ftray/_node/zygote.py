"""The zygote: a single-threaded process that has imported what workers need, and forks them.

Owns: the imports shared by all workers, making a worker's process, and everything a fresh child must undo
before the worker's own code runs (signals, descriptors, random state, process group).
Invariants: one thread at every fork; a child whose ``ftrayd`` is gone ends; a request is always answered.
Leaves to others: deciding when to fork (``pool``), watching workers: they are children of ``ftrayd``
(``CLONE_PARENT``), so that nothing depends on the zygote once a worker runs.

Messages are marshalled tuples over a SOCK_SEQPACKET pair (both ends run the same interpreter). Requests:
``("fork", number, token, session_dir)`` with the write ends of two pipes and, for a worker in a runtime
environment, a memfd that holds its plan (see ``environments``), ``("preload", modules)``. Answers:
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
from ftray._node import environments, hash_seeds, threads
from ftray._node.fdpass import recv_with_fds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    WorkerMain = Callable[[str, bytes], object]

MESSAGE_BYTES = 1 << 16
_CONFIG_FD = 3
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
        self._limited: set[str] = set()  # variables that are not the user's but our default

    def prepare(self, complete_package: Callable[[], None]) -> None:
        """Tie this process to ``ftrayd`` and import what workers need."""
        procs.set_pdeathsig(signal.SIGKILL)
        if os.getppid() != self._ftrayd_pid:
            os._exit(0)
        procs.set_name("ftray-zygote")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        hash_seeds.hide(os.environ)
        before = set(os.environ)
        threads.limit(os.environ)
        self._limited = set(os.environ) - before
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
            data, fds, _truncated = recv_with_fds(self._sock, MESSAGE_BYTES, 3)
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

    def _fork(self, request: tuple[Any, ...], fds: list[int]) -> Callable[[], None] | None:
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
                plan = _read_plan(fds[2]) if len(fds) > 2 else None
                _become_worker(self._ftrayd_pid, fds[:2])
                self._sock.detach()  # closed with all the others
                if plan is not None:
                    return lambda: self._run_in(plan, main, session_dir, token)
                return lambda: _run_worker(main, session_dir, token)
            self._send("forked", number, pid)
        for fd in fds:
            os.close(fd)
        return None

    def _run_in(self, plan: dict[str, Any], main: WorkerMain, session_dir: str, token: bytes) -> None:
        """Be a worker in a runtime environment; one that needs its own interpreter is started by ``boot``."""
        variables = environments.expanded(plan["variables"], os.environ)
        if plan["fresh"]:
            config = {
                "plan": plan,
                "sys_path": sys.path,
                "worker_module": self._worker_module,
                "session_dir": session_dir,
                "token": token,
            }
            base = dict(os.environ)
            if "OMP_NUM_THREADS" in variables:  # it stands for all that we have limited
                base = {name: text for name, text in base.items() if name not in self._limited}
            seed = hash_seeds.variables(plan["hash_seed"]) if plan["hash_seed"] else hash_seeds.inherited()
            _exec_worker(config, {**base, **seed, **variables})
        os.environ.update(variables)
        run_in_plan(plan, main, session_dir, token)

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


def _read_plan(fd: int) -> dict[str, Any]:
    plan: dict[str, Any] = marshal.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    return plan


def _exec_worker(config: dict[str, Any], variables: dict[str, str]) -> None:
    """Replace this process by a fresh interpreter; its parent, group and parent-death signal stay."""
    memory = os.memfd_create("ftray-worker")
    with os.fdopen(os.dup(memory), "wb") as file:
        file.write(marshal.dumps(config))
    os.lseek(memory, 0, os.SEEK_SET)
    if memory != _CONFIG_FD:
        os.dup2(memory, _CONFIG_FD)
        os.close(memory)
    os.set_inheritable(_CONFIG_FD, True)
    script = len(sys.orig_argv) - len(sys.argv)  # behind the interpreter and its flags
    flags = sys.orig_argv[1 : script + 1]
    os.execve(sys.executable, [sys.executable, *flags, "worker", str(_CONFIG_FD)], variables)


def run_in_plan(plan: dict[str, Any], main: WorkerMain, session_dir: str, token: bytes) -> None:
    """Run a worker in an environment whose variables are set."""
    environments.enter(plan)
    from ftray import _lifecycle

    _lifecycle.inherit(plan["text"])
    _run_worker(main, session_dir, token)


def fresh_worker(config: dict[str, Any]) -> Callable[[], None]:
    """Be a worker in an interpreter of its own.

    Parameters
    ----------
    config
        What the zygote's child left.

    Returns
    -------
    callable
        Runs the worker.
    """
    procs.set_name("ftray-worker")
    hash_seeds.hide(os.environ)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    main = importlib.import_module(config["worker_module"]).main
    return lambda: run_in_plan(config["plan"], main, config["session_dir"], config["token"])


def _run_worker(main: WorkerMain, session_dir: str, token: bytes) -> None:
    sys.exit(main(session_dir, token))  # type: ignore[arg-type]
