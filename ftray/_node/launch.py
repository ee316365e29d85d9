"""Starting a node from a driver, and ending it.

Owns: the options of a node, spawning ``ftrayd``, the driver's end of the lifeline, finding a running session.
Invariants: a failed start leaves no process and no directory, and raises with what ``ftrayd`` said; after
``shutdown`` the process is reaped and its session directory is gone.
Leaves to others: registering (``client``), everything that happens in ``ftrayd``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import marshal
import os
import select
import signal
import socket
import sys
import time

from ftray._node import hash_seeds, log_files, session, settings
from ftray._node.record import Record
from ftray._node.resources import visible_gpus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_LIFELINE_FD = 3
_MESSAGE_BYTES = 1 << 18
_ERROR_TAIL_BYTES = 8192


class NodeStartError(RuntimeError):
    """``ftrayd`` did not come up; the text has its last output."""


class NodeOptions(Record):
    """What a node offers and how it behaves; None means "as this machine has it".

    Attributes
    ----------
    num_cpus, num_gpus, memory, resources
        What tasks and actors can ask for; memory in bytes.
    labels
        Properties of the node by which tasks and actors can choose it.
    object_store_memory
        Bytes for large objects; 30 % of memory when None.
    object_spilling_directory
        Directory or fsspec URL for objects that shared memory has no room for; when None,
        ``FTRAY_object_spilling_directory`` or the session's directory. Spilling is turned off by
        ``FTRAY_automatic_object_spilling_enabled=0``. (``RAY_`` in place of ``FTRAY_`` is read, too.)
    preload
        Modules that workers share because the driver has loaded them.
    prestart_workers
        Workers kept at hand; one a CPU when None.
    idle_timeout_s
        An idle worker beyond those leaves after so long; when None that is the setting
        ``idle_worker_killing_time_threshold_ms``, or 5.
    startup_timeout_s
        Bound of one worker's start.
    hang_timeout_s
        A worker whose heartbeat is so late is killed, 0 turns that off; ``FTRAY_HANG_TIMEOUT_S`` or 10
        when None.
    shutdown_grace_s
        Time that actors with checkpoints get to save at shutdown.
    tmpdir
        Where session directories go; ``FTRAY_TMPDIR`` or the system's when None.
    worker_module
        The module whose ``main(session_dir, startup_token)`` is a worker.
    head
        The node may outlive the process that starts it (``NodeHandle.detach``) and has no driver of its own.
    storage
        Directory in which the tables of a head survive it; None: they end with the node.
    """

    num_cpus: float | None = None
    num_gpus: float | None = None
    memory: int | None = None
    resources: dict[str, float] = {}
    labels: dict[str, str] = {}
    object_store_memory: int | None = None
    object_spilling_directory: str | None = None
    preload: tuple[str, ...] = ()
    prestart_workers: int | None = None
    idle_timeout_s: float | None = None
    startup_timeout_s: float = 60.0
    hang_timeout_s: float | None = None
    shutdown_grace_s: float = 5.0
    tmpdir: str | None = None
    worker_module: str = "ftray._worker"
    head: bool = False
    storage: str | None = None

    def checked(self) -> dict[str, Any]:
        """Return the options as a dict.

        Raises
        ------
        ValueError
            Naming the option, what was given and what is allowed.
        """
        values: dict[str, Any] = {name: getattr(self, name) for name in self._fields}
        if values["hang_timeout_s"] is None:
            values["hang_timeout_s"] = settings.seconds("HANG_TIMEOUT_S", 10.0)
        if values["idle_timeout_s"] is None:
            values["idle_timeout_s"] = (
                settings.integer("idle_worker_killing_time_threshold_ms", 5000, 1) / 1000
            )
        values["memory_monitor_refresh_ms"] = settings.integer("memory_monitor_refresh_ms", 250, 0)
        values["memory_usage_threshold"] = settings.share("memory_usage_threshold", 0.95)
        # What the node and its workers read for themselves: said here, before anything is started.
        log_files.max_bytes()
        settings.task_event_units(is_driver=False)
        settings.creation_sites()
        settings.spin_us()
        for name in ("num_cpus", "num_gpus", "memory", "object_store_memory", "prestart_workers"):
            _check_amount(name, values[name])
        for name in ("idle_timeout_s", "startup_timeout_s", "hang_timeout_s", "shutdown_grace_s"):
            _check_amount(name, values[name])
        visible = visible_gpus()
        if self.num_gpus is not None and visible is not None and self.num_gpus > len(visible):
            raise ValueError(
                f"num_gpus={self.num_gpus!r}, but CUDA_VISIBLE_DEVICES names {len(visible)}:"
                f" {', '.join(visible)}"
            )
        for name, amount in self.resources.items():
            _check_amount(f"resources[{name!r}]", amount)
            if name in ("CPU", "GPU", "memory", "object_store_memory"):
                raise ValueError(
                    f"resources cannot name {name!r}; use num_cpus, num_gpus, memory or object_store_memory"
                )
        for key, label in self.labels.items():
            if not isinstance(key, str) or not isinstance(label, str) or not key or key.startswith("ray.io/"):
                raise ValueError(
                    f"labels[{key!r}]={label!r}: both are strings, the key is not empty and none of ray.io/"
                )
        given = values.pop("object_spilling_directory")
        values["spill"], values["spill_to"] = spill_target(given)
        values["resources"] = dict(self.resources)
        values["labels"] = dict(self.labels)
        values["preload"] = list(self.preload)
        values["base_dir"] = session.base_directory(values.pop("tmpdir"))
        return values


def spill_target(given: str | None) -> tuple[bool, str]:
    """Return whether objects are spilled, and where: a directory, a URL, or "" for the session's directory.

    Raises
    ------
    TypeError, ValueError
        Saying what was given and what is allowed.
    """
    enabled, source, place = settings.spilling()
    if given is None:
        given = place
    else:
        source = "object_spilling_directory"
    if given is None:
        return enabled, ""
    if not isinstance(given, str):
        raise TypeError(f"{source} must be a str (a directory or a URL), not {given!r}")
    if not given:
        raise ValueError(f"{source} is empty; give a directory or a URL, or leave it out")
    if given.startswith("file://"):
        given = given[len("file://") :]
    if "://" in given:
        _check_url(source, given)
        return enabled, given
    path = os.path.abspath(given)
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{source}={given!r} cannot be used as a directory: {error}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"{source}={given!r} is not writable for this user")
    return enabled, path


def _check_url(source: str, url: str) -> None:
    """Raise ValueError when fsspec cannot open the URL here."""
    try:
        import fsspec

        fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ValueError(
            f"{source}={url!r} needs fsspec and what it needs for this kind of URL: {error}"
            " (pip install 'ftray[fsspec]')"
        ) from None
    except Exception as error:
        raise ValueError(f"{source}={url!r} cannot be opened: {type(error).__name__}: {error}") from None


def _check_amount(name: str, value: Any) -> None:
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0
    ):
        raise ValueError(f"{name}={value!r}; allowed is a number of at least 0")


class NodeHandle:
    """A node that this process started.

    Attributes
    ----------
    session_dir, token, pid, info
        Where it is, the secret to register with, its process, what it offers.
    spans_ms
        How long the parts of the start took.
    lifeline_fd
        Descriptor that reads end-of-file when ``ftrayd`` dies; it belongs to this handle.
    """

    def __init__(
        self, pid: int, lifeline: socket.socket, ready: dict[str, Any], spans_ms: dict[str, float]
    ) -> None:
        self.pid = pid
        self.session_dir: str = ready["session_dir"]
        self.token: bytes = ready["token"]
        self.info: dict[str, Any] = json.loads(ready["info"])
        self.spans_ms = spans_ms
        self._pidfd = os.pidfd_open(pid)
        self._lifeline = lifeline
        self._owner_pid = os.getpid()
        self._warm: dict[str, Any] | None = None

    @property
    def lifeline_fd(self) -> int:
        """The lifeline's descriptor, -1 after ``shutdown``."""
        return self._lifeline.fileno()

    def wait_warm(self, timeout_s: float = 30.0) -> None:
        """Wait until the first worker is there, so that the first task finds it.

        Raises
        ------
        NodeStartError
            Workers cannot be started, or none came up in time.
        """
        if self._warm is None:
            self._warm = _receive(self._lifeline, timeout_s)
        if self._warm is None:
            raise NodeStartError(f"no worker process came up within {timeout_s:g} s")
        if not self._warm.get("warm"):
            raise NodeStartError(str(self._warm.get("error") or self._warm.get("crashed")))

    def last_words(self) -> str:
        """Return why ``ftrayd`` ended if an error in it was the reason, else ""."""
        while (message := _receive(self._lifeline, 0.0)) is not None:
            if "crashed" in message:
                return str(message["crashed"])
        return ""

    def is_alive(self) -> bool:
        """Whether ``ftrayd`` runs."""
        return self._pidfd >= 0 and not select.select([self._pidfd], [], [], 0)[0]

    def detach(self) -> None:
        """Let a head go on by itself; this handle is of no use afterwards.

        Raises
        ------
        NodeStartError
            It has ended meanwhile.
        """
        try:
            self._lifeline.send(session.DETACH, socket.MSG_NOSIGNAL)
        except OSError:
            words = self.last_words()
            self.shutdown()
            raise NodeStartError(f"the node has ended: {words or '(it said nothing)'}") from None
        self._lifeline.close()
        os.close(self._pidfd)
        self._pidfd = -1

    def shutdown(self, timeout_s: float = 15.0) -> None:
        """End the node with all its processes and wait for it; harmless when it is dead already.

        Parameters
        ----------
        timeout_s
            Then it is killed; its workers die with it, its directory is removed here.
        """
        if self._pidfd < 0 or os.getpid() != self._owner_pid:
            return
        try:
            self._lifeline.shutdown(socket.SHUT_RDWR)  # a forked child of the driver may hold a copy
        except OSError:
            pass  # it is dead already
        self._lifeline.close()
        if not select.select([self._pidfd], [], [], timeout_s)[0]:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        try:
            os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        except ChildProcessError:
            pass  # somebody in this process has waited for every child
        os.close(self._pidfd)
        self._pidfd = -1
        if os.path.exists(self.session_dir):
            session.sweep_stale(os.path.dirname(os.path.dirname(self.session_dir)))


def _receive(lifeline: socket.socket, timeout_s: float) -> dict[str, Any] | None:
    """Return the next message; None after ``timeout_s`` or when ``ftrayd`` is gone."""
    if not select.select([lifeline], [], [], timeout_s)[0]:
        return None
    try:
        data = lifeline.recv(_MESSAGE_BYTES)
    except ConnectionResetError:
        return None
    return marshal.loads(data) if data else None


def _interpreter_flags() -> list[str]:
    """Return the flags that make another interpreter behave like this one."""
    flags = sys.flags
    found = ["-" + "O" * flags.optimize] if flags.optimize else []
    if flags.isolated:
        found.append("-I")
    else:
        found += ["-E"] if flags.ignore_environment else []
        found += ["-s"] if flags.no_user_site else []
    found += ["-B"] if flags.dont_write_bytecode else []
    found += ["-X", "utf8"] if flags.utf8_mode else []
    return found


def _spawn(theirs: socket.socket, output_fd: int) -> int:
    boot = os.path.join(os.path.dirname(os.path.abspath(__file__)), "boot.py")
    # Out of the way of the numbers that the child gets: a driver may have closed its standard streams.
    high_fds = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (output_fd, theirs.fileno())]
    command = [sys.executable, *_interpreter_flags(), boot, "node", str(_LIFELINE_FD)]
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, high_fds[0], 1),
        (os.POSIX_SPAWN_DUP2, high_fds[0], 2),
        (os.POSIX_SPAWN_DUP2, high_fds[1], _LIFELINE_FD),
    ]
    try:
        # A session of its own: Ctrl-C in the terminal is the driver's to handle.
        return os.posix_spawn(
            sys.executable,
            command,
            {**os.environ, **hash_seeds.chosen(os.environ)},
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE,),
        )
    finally:
        for fd in high_fds:
            os.close(fd)


def start_node(
    options: NodeOptions | None = None,
    timeout_s: float = 30.0,
    meanwhile: Callable[[], object] = lambda: None,
) -> NodeHandle:
    """Start ``ftrayd`` as a child of this process and wait until it accepts registrations.

    Parameters
    ----------
    options
        See ``NodeOptions``.
    timeout_s
        For ``ftrayd`` to say that it is ready.
    meanwhile
        Called while ``ftrayd`` starts: work that this process has to do anyway.

    Returns
    -------
    NodeHandle
        The node lives until its ``shutdown``, or the end of this process however it comes.

    Raises
    ------
    ValueError
        An option is wrong.
    NodeStartError
        It died or did not answer; its last output is in the text.
    """
    if not sys.executable:
        raise NodeStartError("sys.executable is not set, so that no second Python can be started")
    config = (options or NodeOptions()).checked()
    config["driver_pid"] = os.getpid()
    config["flags"] = _interpreter_flags()
    config["sys_path"] = [os.path.abspath(path) for path in sys.path]
    begun_s = time.monotonic()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    output_fd = os.memfd_create("ftrayd-output", os.MFD_CLOEXEC)
    try:
        try:
            ours.send(marshal.dumps(config))
            pid = _spawn(theirs, output_fd)
        finally:
            theirs.close()
        spawned_s = time.monotonic()
        meanwhile()
        ready = _receive(ours, timeout_s)
        if ready is None:
            raise NodeStartError(_failure(pid, output_fd, timeout_s))
        if "failed" in ready:
            _failure(pid, output_fd, timeout_s)
            raise NodeStartError(str(ready["failed"]))
        spans_ms = {
            "spawn": (spawned_s - begun_s) * 1000,
            **ready["spans_ms"],
            "total": (time.monotonic() - begun_s) * 1000,
        }
        return NodeHandle(pid, ours, ready, spans_ms)
    except NodeStartError:
        ours.close()
        with contextlib.suppress(session.SessionError):  # of which the node has told, too
            session.sweep_stale(config["base_dir"])  # it may have died before it could remove its directory
        raise
    except BaseException:
        ours.close()
        raise
    finally:
        os.close(output_fd)


def _failure(pid: int, output_fd: int, timeout_s: float) -> str:
    """End the process that did not come up; return what there is to say."""
    pidfd = os.pidfd_open(pid)
    try:
        ended = bool(select.select([pidfd], [], [], 0.5)[0])
        if not ended:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    finally:
        os.close(pidfd)
    how = (
        f"it ended with status {result.si_status}"
        if ended and result
        else f"it said nothing for {timeout_s:g} s"
    )
    size = os.fstat(output_fd).st_size
    tail = os.pread(output_fd, _ERROR_TAIL_BYTES, max(0, size - _ERROR_TAIL_BYTES)).decode(errors="replace")
    return f"the node process (ftrayd) did not start: {how}; its output:\n{tail.strip() or '(none)'}"


def find_node(address: str = "auto") -> str:
    """Return the session directory of a running node to attach to.

    Parameters
    ----------
    address
        "auto" for the newest live session of this user, or the path of a session directory.

    Raises
    ------
    SessionError
        When there is none.
    """
    if address == "auto":
        return session.find_session(session.base_directory())
    path = os.path.abspath(address)
    if not os.path.exists(os.path.join(path, session.NODE_SOCKET)):
        raise session.SessionError(
            f'{address!r} is no running session; give "auto" or the path of a session directory'
        )
    return path
