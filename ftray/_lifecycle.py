"""Starting, attaching and stopping the runtime of a driver.

Owns: the one session of this process. ``init()`` starts ``ftrayd`` (or finds a running one), registers, and
hands the connection to the core; ``shutdown()`` undoes it. Workers use `connect` only.
"""

from __future__ import annotations

import _pickle as pickle  # pickle imports re and more
import atexit
import os
import struct
import sys
import time

from ftray import _core
from ftray._node.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from typing import Any

    from ftray._node.client import NodeConnection
    from ftray._node.launch import NodeHandle

_LAST_OUTPUT_S = 2.0
_PARTS_S = 30.0  # for the rest of a frame that ftrayd has begun to send
_RPC = 100


class Session:
    """What this process knows of the session that it is connected to."""

    def __init__(self, connection: NodeConnection, worker_id: bytes, namespace: str | None) -> None:
        self.session_dir = connection.session_dir
        self.node_id = connection.node_id
        self.job_id = connection.job_id
        self.info = connection.info
        self.worker_id = worker_id
        self.is_anonymous = False
        self._known_driver: tuple[int, bool] | None = None
        self._namespace = namespace
        self.node: NodeHandle | None = None
        self.printer: threading.Thread | None = None
        self.runtime_env = _inherited_env

    @property
    def namespace(self) -> str:
        """The job's namespace; a worker asks for it when it is first needed."""
        if self._namespace is None:
            self.learn_job(self.ask_job())
        assert self._namespace is not None
        return self._namespace

    def ask_job(self) -> dict[str, Any] | None:
        """Return what ftrayd knows of the job that this worker serves, None when it is over and forgotten."""
        job: dict[str, Any] | None = ask("job", {"job_id": _core.current_context()["job_id"]})
        return job

    def resumes(self) -> bool:
        """Whether the job's driver has a job key, and so may be run again."""
        return self._driver()[1]

    def driver_pid(self) -> int:
        """Process of the job's driver; 0 if the job is over."""
        return self._driver()[0]

    def _driver(self) -> tuple[int, bool]:
        if self._known_driver is None:
            job = self.ask_job()
            self._known_driver = (0, False) if job is None else (job["pid"], job["resumes"])
        return self._known_driver

    def learn_job(self, job: dict[str, Any] | None) -> None:
        """Take the namespace over: a worker serves one job only."""
        self._namespace = job["namespace"] if job is not None else ""
        self.is_anonymous = job["anonymous"] if job is not None else True

    @property
    def durable_namespace(self) -> str:
        """The namespace if the user gave one, else "": what outlives the job is found under this."""
        namespace = self.namespace
        return "" if self.is_anonymous else namespace


_inherited_env = ""  # text of the runtime environment that this worker was started in

_session: Session | None = None


class RayContext:
    """What ``init()`` returns; also a context manager that shuts down at its end.

    Attributes
    ----------
    address_info : dict
        ``address`` and ``session_dir`` (what a second driver attaches by), ``node_id``.
    """

    dashboard_url = ""

    def __init__(self, session: Session) -> None:
        self.address_info = {
            "address": session.session_dir,
            "session_dir": session.session_dir,
            "node_id": session.node_id.hex(),
        }

    def __getitem__(self, key: str) -> str:
        return self.address_info[key]

    def __enter__(self) -> RayContext:
        return self

    def __exit__(self, *exc_info: object) -> None:
        shutdown()

    def disconnect(self) -> None:
        """Shut the runtime down."""
        shutdown()

    def __repr__(self) -> str:
        return f"RayContext({self.address_info!r})"


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: dict[str, float] | None = None,
    object_store_memory: int | None = None,
    labels: dict[str, str] | None = None,
    namespace: str | None = None,
    ignore_reinit_error: bool = False,
    log_to_driver: bool = True,
    runtime_env: dict[str, Any] | None = None,
    job_key: str | None = None,
    object_spilling_directory: str | None = None,
    **unsupported: Any,
) -> RayContext:
    """Start a node, or attach to a running one: what `ftray.init` does on this engine."""
    global _session, _owner_pid
    from ftray import _init_arguments

    _init_arguments.check(unsupported)
    offer = _init_arguments.checked(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        resources=resources,
        object_store_memory=object_store_memory,
        object_spilling_directory=object_spilling_directory,
        labels=labels,
    )
    _init_arguments.checked(
        namespace=namespace,
        job_key=job_key,
        ignore_reinit_error=ignore_reinit_error,
        log_to_driver=log_to_driver,
    )
    _owner_pid = os.getpid()
    env = _checked_env(runtime_env)
    if _core.attached() and _session is not None:
        if ignore_reinit_error:
            return RayContext(_session)
        raise RuntimeError(
            "ftray.init() was called before in this process;"
            " call ftray.shutdown() first, or give ignore_reinit_error=True"
        )
    OwnSettings(is_driver=True)
    names = _Names(namespace, job_key or "")
    address, origin = _choose(address)
    if address == "local":
        _session = _start(names, **offer)
    else:
        wrong = [name for name, value in offer.items() if value is not None]
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)} cannot be given when attaching to a running session ({origin});"
                ' address="local" starts a node of this process\'s own'
            )
        _session = _attach(address, origin, names)
    if env:
        _set_job_env(_session, env)
    _start_printer(_session, log_to_driver)
    atexit.unregister(_at_exit)
    atexit.register(_at_exit)  # the last to be registered is the first to run
    return RayContext(_session)


def _checked_env(runtime_env: dict[str, Any] | None) -> dict[str, Any]:
    if runtime_env is None:
        return {}
    from ftray import _runtime_env

    return _runtime_env.check(runtime_env)


def _set_job_env(session: Session, env: dict[str, Any]) -> None:
    from ftray import _runtime_env

    try:
        session.runtime_env = _runtime_env.text_of(env, "", session.session_dir)
    except BaseException:
        shutdown()
        raise


def runtime_env_text(given: dict[str, Any] | None) -> str:
    """Return the text of the environment that a task or an actor with this ``runtime_env`` runs in."""
    session = current()
    if not given:
        return session.runtime_env
    from ftray import _runtime_env

    return _runtime_env.text_of(given, session.runtime_env, session.session_dir)


def inherit(text: str) -> None:
    """Note the environment that this worker was started in: what it submits inherits it."""
    global _inherited_env
    _inherited_env = text


def _choose(address: str | None) -> tuple[str, str]:
    """Return the address to use and, for messages, where it is from."""
    if address is not None and not isinstance(address, str):
        raise TypeError(f"address must be a string or None, not {address!r}")
    if address in (None, "auto"):
        for name in ("FTRAY_ADDRESS", "RAY_ADDRESS"):
            if os.environ.get(name):
                return os.environ[name], f"{name}={os.environ[name]!r}"
    if address is None:
        from ftray._node import session

        head = session.find_head(session.base_directory())
        return ("local", "") if head is None else (head, f"the head of `ftray start` at {head}")
    return address, f"address={address!r}"


class _Names(Record):
    """What the user calls this driver's work."""

    namespace: str | None
    job_key: str


def _attach(address: str, origin: str, names: _Names) -> Session:
    from ftray._node.client import RegistrationError
    from ftray._node.launch import find_node
    from ftray._node.session import SessionError

    try:
        return _register(find_node(address), None, names)
    except (SessionError, RegistrationError) as error:
        raise ConnectionError(f"{origin}: {error}") from None


def _start(
    names: _Names,
    *,
    num_cpus: float | None,
    num_gpus: float | None,
    resources: dict[str, float] | None,
    object_store_memory: int | None,
    object_spilling_directory: str | None,
    labels: dict[str, str] | None,
) -> Session:
    from ftray._node import threads
    from ftray._node.launch import NodeOptions, start_node

    node = start_node(
        NodeOptions(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            resources=dict(resources or {}),
            object_store_memory=object_store_memory,
            object_spilling_directory=object_spilling_directory,
            labels=dict(labels or {}),
            preload=("numpy",) if "numpy" in sys.modules and not threads.asked_for(os.environ) else (),
        ),
        meanwhile=_warm_up,
    )
    try:
        session = _register(node.session_dir, node.token, names)
    except BaseException:
        node.shutdown()
        raise
    session.node = node
    node.wait_warm()
    return session


def _warm_up() -> None:
    """Import what the first task needs anyway (25 ms, most of it cloudpickle's imports)."""
    import threading  # noqa: F401

    import cloudpickle  # noqa: F401

    from ftray import _pickling, _printer  # noqa: F401
    from ftray._node import client  # noqa: F401


def _register(session_dir: str, token: bytes | None, names: _Names) -> Session:
    from ftray._node.client import VersionMismatch
    from ftray._node.frames import KIND_DRIVER

    anonymous = not names.namespace
    root = _root_of(names)
    job = _describe_job(anonymous, root, bool(names.job_key))
    try:
        session = connect(
            session_dir, token, KIND_DRIVER, names.namespace or _random_uuid(), job, names.job_key
        )
    except VersionMismatch as error:
        from ftray.exceptions import VersionMismatchError

        raise VersionMismatchError(str(error)) from None
    session.is_anonymous = anonymous
    session._known_driver = (os.getpid(), bool(names.job_key))
    _core.set_root(root, bool(names.job_key), session.job_id, time.time_ns())
    return session


def _root_of(names: _Names) -> bytes:
    """Return the 16 bytes that the CallIDs of this driver's work come from."""
    if not names.job_key:
        return os.urandom(16)
    from _blake2 import blake2b  # hashlib would load OpenSSL

    return blake2b(f"job\0{names.namespace or ''}\0{names.job_key}".encode(), digest_size=16).digest()


def learn_root() -> None:
    """Ask, in a worker, whose work the present call is; when that driver is gone, it is nobody's."""
    job = current().ask_job()
    root = bytes.fromhex(job["root"]) if job is not None else b""
    _core.set_root(root, job is not None and job["resumes"], _core.current_context()["job_id"])


def _random_uuid() -> str:
    """Return a random UUID (the module uuid costs 3 ms)."""
    number = os.urandom(16)
    text = bytes(
        [*number[:6], number[6] & 0x0F | 0x40, number[7], number[8] & 0x3F | 0x80, *number[9:]]
    ).hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _describe_job(anonymous: bool, root: bytes, resumes: bool) -> bytes:
    """Say what workers of this driver have to know when the node is not its own."""
    import json

    try:
        cwd = os.getcwd()
    except FileNotFoundError:
        cwd = ""
    path = [os.path.abspath(entry) for entry in sys.path if cwd or os.path.isabs(entry)]
    described = {"anonymous": anonymous, "sys_path": path, "cwd": cwd, "root": root.hex(), "resumes": resumes}
    return json.dumps(described).encode()


def connect(
    session_dir: str,
    token: bytes | None,
    kind: int,
    namespace: str | None,
    job: bytes = b"",
    job_key: str = "",
) -> Session:
    """Register this process with a session and hand the connection to the core."""
    from ftray._node import client, protocol, session
    from ftray._node.frames import KIND_DRIVER

    own = OwnSettings(kind == KIND_DRIVER)  # first: what is wrong with them is said before anything is opened
    worker_id = os.urandom(28)
    name = f"{worker_id.hex()[:16]}.sock"
    listener = session.listen_in(session_dir, name)
    connection = None
    try:
        listener.setblocking(False)
        connection = client.connect(
            session_dir,
            worker_id=worker_id,
            token=token,
            kind=kind,
            sock_name=name,
            namespace=namespace or "",
            job_key=job_key,
            job=job,
        )
        found = Session(connection, worker_id, namespace)
        connection.sock.settimeout(_PARTS_S)  # a frame may have arrived in part
        directory_fd = os.open(session_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            node_fd, messages = connection.detach()
        except BaseException:
            os.close(directory_fd)
            raise
        os.set_blocking(node_fd, False)
        board_fd, connection.board_fd = connection.board_fd, -1
        _core.attach(  # which closes the descriptors when it fails
            node_fd,
            board_fd,
            directory_fd,
            listener.detach(),
            worker_id,
            connection.node_id,
            connection.slot,
            connection.job_id,
            kind == KIND_DRIVER,
            len(os.sched_getaffinity(0)),
            own.spin_us * 1000,
            int.from_bytes(os.urandom(8), "little"),
            b"".join(protocol.encode(m.frame, m.req, m.flags) for m in messages),
            own.event_units,
            bool(connection.info.get("tsc")),
            own.creation_sites,
        )
    except BaseException:
        listener.close()
        if connection is not None:
            connection.close()
        _remove_socket(session_dir, worker_id)
        raise
    _core.set_memory_retries(*own.memory_retries)
    _core.lineage_configure(*own.lineage)
    return found


class OwnSettings:
    """What this process reads from its environment; ValueError for a variable that makes no sense."""

    def __init__(self, is_driver: bool) -> None:
        from ftray._node import settings

        self.spin_us = settings.spin_us()
        self.event_units = settings.task_event_units(is_driver)
        self.creation_sites = settings.creation_sites()
        self.memory_retries = memory_retries()
        self.lineage = settings.lineage()


def memory_retries() -> tuple[int, int]:
    """Return how often a task that the memory monitor ended is retried (-1: always), and the first pause."""
    from ftray._node.settings import integer

    return integer("task_oom_retries", -1, -1), integer("task_oom_retry_delay_base_ms", 1000, 1)


def _start_printer(session: Session, log_to_driver: bool) -> None:
    import threading

    from ftray._printer import run

    session.printer = threading.Thread(target=run, args=(log_to_driver,), name="ftray-printer", daemon=True)
    session.printer.start()


_ending = False


def _at_exit() -> None:
    """The interpreter ends: from here on nothing starts ftray again, not even a thread that goes on."""
    global _ending
    _ending = os.getpid() == _owner_pid
    shutdown()


def ensure() -> None:
    """Start ftray when nothing did yet (the first ``.remote()`` or ``put`` of a program)."""
    if not _core.attached():
        if _ending:
            from ftray.exceptions import NotInitializedError

            raise NotInitializedError()
        if _session is not None and _forked(_session):
            from ftray.exceptions import ForkedProcessError

            raise ForkedProcessError(_owner_pid, os.getpid())
        init()


_owner_pid = os.getpid()


def _forked(session: Session) -> bool:
    return os.getpid() != _owner_pid


def last_words() -> str:
    """Return what ftrayd said when it died of an error of its own, "" otherwise."""
    if _session is None or _session.node is None or _forked(_session):
        return ""
    return _session.node.last_words()


def current() -> Session:
    """Return the running session.

    Raises
    ------
    NotInitializedError
        There is none.
    """
    if _session is not None and _forked(_session):
        from ftray.exceptions import ForkedProcessError

        raise ForkedProcessError(_owner_pid, os.getpid())
    if _session is None or not _core.attached():
        from ftray.exceptions import NotInitializedError

        raise NotInitializedError()
    return _session


def adopt(session: Session) -> None:
    """Make `session` the process's (a worker's, which does not go through ``init``)."""
    global _session, _owner_pid
    _session = session
    _owner_pid = os.getpid()


def ask(method: str, arguments: dict[str, Any], timeout_s: float = -1) -> Any:
    """Call a method of ftrayd; TimeoutError when that takes too long (-1: as long as it lives)."""
    call = pickle.dumps((method, arguments), 5)
    answer = _core.ask_node(_RPC, struct.pack("<I", len(call)) + call, timeout_s)
    result = pickle.loads(answer[5:])
    if not answer[0]:
        raise result
    return result


def _collect_output() -> None:
    """Have ftrayd send what workers have printed so far."""
    from ftray.exceptions import RayError

    try:
        ask("flush_output", {}, _LAST_OUTPUT_S)
    except RayError:
        return  # the node is gone: what it had forwarded is here, the rest went with it
    except TimeoutError:
        print("ftray: ftrayd hangs; the last output of workers is missing", file=sys.stderr)


def shutdown() -> None:
    """Stop the native runtime in this process; nothing when it does not run here."""
    global _session
    session = _session
    if session is None or os.getpid() != _owner_pid:
        return
    _session = None
    if session.printer is not None:
        _collect_output()
        _core.inbox_close()
        session.printer.join(timeout=5)
    _core.detach()
    if session.node is not None:
        session.node.shutdown()
    else:
        _remove_socket(session.session_dir, session.worker_id)


def _remove_socket(session_dir: str, worker_id: bytes) -> None:
    try:
        os.unlink(os.path.join(session_dir, f"{worker_id.hex()[:16]}.sock"))
    except FileNotFoundError:
        return  # the session has ended and took it along
