"""The session directory: where a node keeps its socket, its token and its lock.

Owns: ``<base>/ftray-<uid>/s-<time>-<pid>-<random>/`` with its modes (directories 0700, files 0600), the
lock that says "alive", sweeping what dead nodes left, finding a live session, and Unix sockets whose
path is longer than the system's limit.
Invariants: a directory is swept only while nobody holds its lock; creating and sweeping exclude each
other through a lock on the user's directory, so that a directory never looks stale before it is locked.
Leaves to others: what travels over the sockets.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NODE_SOCKET = "node.sock"
TOKEN_FILE = "token"
LOCK_FILE = "lock"
HEAD_FILE = "head"  # in the session of a node that outlives drivers
DETACH = b"detach"  # on the lifeline: the node outlives the process that started it
SPILL_OWNER = "session"  # in a spill directory: the path of its session
TOKEN_BYTES = 32
_PREFIX = "s-"
_DOOMED = ".dead-"
# sun_path holds 108 bytes with the final zero.
_MAX_SOCKET_PATH_BYTES = 107


class SessionError(RuntimeError):
    """The session directory cannot be made, found or trusted."""


def base_directory(explicit: str | None = None) -> str:
    """Return the directory that holds all users' session directories.

    ``explicit``, then ``$FTRAY_TMPDIR``, then what ``tempfile`` would take (not imported: 10 ms).
    """
    chosen = explicit or os.environ.get("FTRAY_TMPDIR")
    if chosen:
        if not os.path.isdir(chosen):
            raise SessionError(
                f"the directory for sessions {chosen!r} does not exist; create it or unset FTRAY_TMPDIR"
            )
        return os.path.abspath(chosen)
    candidates = [os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")]
    for path in [*candidates, "/tmp", "/var/tmp", "/usr/tmp"]:
        if path and os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK):
            return os.path.abspath(path)
    raise SessionError("no writable temporary directory; set FTRAY_TMPDIR to one")


def user_directory(base: str) -> str:
    """Return this user's directory below ``base``, made if missing.

    Raises
    ------
    SessionError
        When it belongs to somebody else or is open to others: it may be a trap in a shared directory.
    """
    path = os.path.join(base, f"ftray-{os.getuid()}")
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        _check_private(path)
    return path


def _check_private(path: str) -> None:
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise SessionError(
            f"{path} must be a directory of uid {os.getuid()} with mode 0700, not uid {status.st_uid} and "
            f"mode {stat.S_IMODE(status.st_mode):04o}; remove it or set FTRAY_TMPDIR to another place"
        )


class Session:
    """A live session directory of this process; the lock lives as long as this object.

    Attributes
    ----------
    path
        The directory.
    token
        The secret that a driver shows to register, also in the file ``token``.
    """

    def __init__(self, path: str, token: bytes, lock_fd: int) -> None:
        self.path = path
        self.token = token
        self._lock_fd = lock_fd

    def close(self) -> None:
        """Remove the directory and everything in it, then give up the lock."""
        if self._lock_fd < 0:
            return
        _remove_tree(self.path)
        os.close(self._lock_fd)
        self._lock_fd = -1


def create_session(base: str, unix_time_s: float, is_head: bool = False) -> Session:
    """Make and lock a new session directory below ``base``.

    Raises
    ------
    SessionError
        Another head of this user runs there already.
    """
    user = user_directory(base)
    name = f"{_PREFIX}{int(unix_time_s * 1000):013d}-{os.getpid()}-{os.urandom(4).hex()}"
    path = os.path.join(user, name)
    with _locked_directory(user):
        other = find_head(base) if is_head else None
        if other is not None:
            raise SessionError(f"a head of this user runs already: {other}; end it with `ftray stop`")
        os.mkdir(path, 0o700)
        lock_fd = os.open(os.path.join(path, LOCK_FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock_fd, fcntl.LOCK_EX)  # somebody who looks for sessions may hold it for a moment
        if is_head:
            os.close(os.open(os.path.join(path, HEAD_FILE), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    token = os.urandom(TOKEN_BYTES)
    fd = os.open(os.path.join(path, TOKEN_FILE), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, token)
    finally:
        os.close(fd)
    return Session(path, token, lock_fd)


class _locked_directory:
    """Hold an exclusive lock on a directory."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *_exc: object) -> None:
        os.close(self._fd)


def _is_live(path: str) -> bool:
    """Whether some process holds the lock of the session at ``path``."""
    try:
        fd = os.open(os.path.join(path, LOCK_FILE), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _sessions(user: str) -> Iterator[str]:
    """Paths of all session directories of this user, the newest first."""
    names = [name for name in os.listdir(user) if name.startswith(_PREFIX)]
    return (os.path.join(user, name) for name in sorted(names, reverse=True))


def sweep_stale(base: str) -> list[str]:
    """Remove session directories whose node is gone; return their names."""
    user = user_directory(base)
    doomed = []
    with _locked_directory(user):
        for path in _sessions(user):
            if not _is_live(path):
                target = os.path.join(user, _DOOMED + os.path.basename(path))
                os.rename(path, target)
        doomed = [name for name in os.listdir(user) if name.startswith(_DOOMED)]
    for name in doomed:
        _remove_tree(os.path.join(user, name))
    return [name[len(_DOOMED) :] for name in doomed]


def own_spill_directory(path: str, session_dir: str) -> None:
    """Make the spill directory of a session, marked as its own."""
    os.makedirs(path, mode=0o700)
    fd = os.open(os.path.join(path, SPILL_OWNER), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        file.write(session_dir)


def sweep_spilled(directory: str, mine: str) -> None:
    """Remove what dead sessions of this user have spilled into a directory of the user's choice.

    A live session's directory is found next to ``mine``; one whose session used another base is left alone
    as long as that base cannot be asked, so sessions are named by their path in the file ``session``.
    """
    prefix = f"ftray-spill-{os.getuid()}-"
    for name in os.listdir(directory) if os.path.isdir(directory) else []:
        path = os.path.join(directory, name)
        if not name.startswith(prefix) or os.lstat(path).st_uid != os.getuid():
            continue
        try:
            with open(os.path.join(path, SPILL_OWNER)) as file:
                session_dir = file.read()
        except OSError:
            continue
        if session_dir != mine and not _is_live(session_dir):
            _remove_tree(path)


def _remove_tree(path: str) -> None:
    import shutil  # 5 ms that only an ending or sweeping process pays

    def ignore_missing(_function: object, _path: str, info: tuple[object, BaseException, object]) -> None:
        if not isinstance(info[1], FileNotFoundError):  # somebody else removes the same tree
            raise info[1]

    for directory, _directories, _files in os.walk(os.path.join(path, "envs")):
        try:
            os.chmod(directory, 0o700)  # snapshots are read-only
        except FileNotFoundError:
            continue
    shutil.rmtree(path, onerror=ignore_missing)


def live_sessions(base: str) -> list[str]:
    """Return the live sessions of this user below ``base``, the newest first; nothing is made."""
    try:
        return [path for path in _sessions(os.path.join(base, f"ftray-{os.getuid()}")) if _is_live(path)]
    except FileNotFoundError:
        return []


def is_head(path: str) -> bool:
    """Whether the session is one of ``ftray start --head``."""
    return os.path.exists(os.path.join(path, HEAD_FILE))


def find_head(base: str) -> str | None:
    """Return the live session of this user's head below ``base``, None without one."""
    try:
        found = list(_sessions(os.path.join(base, f"ftray-{os.getuid()}")))
    except FileNotFoundError:
        return None
    return next((path for path in found if is_head(path) and _is_live(path)), None)


def find_session(base: str) -> str:
    """Return the live session to attach to: the head's, else the newest of this user below ``base``.

    Raises
    ------
    SessionError
        When there is none.
    """
    user = user_directory(base)
    for path in [find_head(base), *_sessions(user)]:
        if path and _is_live(path) and os.path.exists(os.path.join(path, NODE_SOCKET)):
            return path
    raise SessionError(
        f"no running ftray node of uid {os.getuid()} in {user}; start one, or call init() without address"
    )


def read_token(session_dir: str) -> bytes:
    """Return the session token.

    Raises
    ------
    SessionError
        When ``session_dir`` is no readable session of this user.
    """
    try:
        _check_private(session_dir)
        with open(os.path.join(session_dir, TOKEN_FILE), "rb") as file:
            token = file.read(TOKEN_BYTES + 1)
    except OSError as error:
        raise SessionError(f"{session_dir!r} is no ftray session that this user may join: {error}") from None
    if len(token) != TOKEN_BYTES:
        raise SessionError(f"the token in {session_dir!r} has {len(token)} bytes instead of {TOKEN_BYTES}")
    return token


def _through_directory(directory: str, name: str, act: Callable[[str], None]) -> None:
    """Call ``act`` with a path of ``directory/name`` that fits a socket address."""
    path = os.path.join(directory, name)
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES:
        act(path)
        return
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        act(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)


def listen_in(directory: str, name: str, backlog: int = 128) -> socket.socket:
    """Return a stream socket that listens at ``directory/name`` (mode 0600)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _through_directory(directory, name, sock.bind)
        os.chmod(os.path.join(directory, name), 0o600)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def connect_in(directory: str, name: str, timeout_s: float | None) -> socket.socket:
    """Return a stream socket connected to ``directory/name``."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        _through_directory(directory, name, sock.connect)
    except BaseException:
        sock.close()
        raise
    return sock
