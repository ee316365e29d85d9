"""What the kernel knows about processes: who belongs to a test run, what they hold, when they end.

Every process that a test run starts inherits ``FTRAY_TEST_RUN`` in its environment. That finds it
even after its parents are gone, and never touches anybody else's process.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.helpers.sync import DEADLINE_S, eventually

MARK = "FTRAY_TEST_RUN"
IN_EXEC_LOOKS = 1000


def new_mark() -> str:
    return uuid.uuid4().hex


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat_fields(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()


def state_of(pid: int) -> str | None:
    """One letter as in ps (``Z`` is a zombie), or None if there is no such process."""
    fields = _stat_fields(pid)
    return fields[0] if fields else None


def parent_of(pid: int) -> int | None:
    fields = _stat_fields(pid)
    return int(fields[1]) if fields else None


def is_running(pid: int) -> bool:
    return state_of(pid) not in (None, "Z", "X")


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return command.strip() or Path(f"/proc/{pid}/comm").read_text().strip()
    return "?"


def name_of(pid: int) -> str:
    """The name that ``ps`` shows, which a process may choose."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return "?"


def only_zygote(candidates: Callable[[], list[int]]) -> int:
    """The zygote among ``candidates()``, waited for: it takes its name at its start, as does a new worker,
    which has the zygote's until then.
    """

    def named() -> list[int]:
        found = [pid for pid in candidates() if name_of(pid) == "ftray-zygote" and is_running(pid)]
        return found if len(found) == 1 else []

    return int(eventually(named, "exactly one zygote")[0])


def children_of(pid: int) -> list[int]:
    return [other for other in pids() if parent_of(other) == pid]


def descendants_of(pid: int) -> list[int]:
    found: list[int] = []
    todo = [pid]
    while todo:
        new = children_of(todo.pop())
        found += new
        todo += new
    return found


def marked(mark: str) -> list[int]:
    """Running processes of the run, this one left out."""
    needle = f"{MARK}={mark}".encode()
    return [pid for pid in pids() if pid != os.getpid() and needle in environment_of(pid) and is_running(pid)]


def environment_of(pid: int) -> list[bytes]:
    """What a process was started with; empty if it has ended or is not ours to read."""
    for _ in range(IN_EXEC_LOOKS):
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            # In the middle of execve a process has neither environment nor command line for a moment.
            if environment or Path(f"/proc/{pid}/cmdline").read_bytes():
                return environment.split(b"\0")
            os.readlink(f"/proc/{pid}/exe")  # fails for threads of the kernel and for what has ended
        except OSError:
            return []
        os.sched_yield()
    return []


def zombies_of(pid: int) -> list[int]:
    return [child for child in children_of(pid) if state_of(child) == "Z"]


def thread_count(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def descriptors(pid: int | str = "self") -> dict[int, str]:
    """Open descriptors and what each refers to."""
    found: dict[int, str] = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return {fd: target for fd, target in found.items() if not target.endswith("/fd")}


def memfd_mappings(pid: int | str = "self") -> list[str]:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [line for line in lines if "/memfd:" in line]


def bound_sockets(under: Path) -> list[str]:
    """Unix sockets bound below a directory, also through ``/proc/self/fd/<n>/<name>``."""
    names = {path.name for path in under.rglob("*.sock")}
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    paths = [row[7] for row in rows if len(row) > 7]
    return [path for path in paths if path.startswith(str(under)) or Path(path).name in names]


@contextlib.contextmanager
def watched(pids_to_watch: Iterable[int]) -> Iterator[list[int]]:
    """Pidfds of processes that are still there."""
    fds: list[int] = []
    try:
        for pid in pids_to_watch:
            with contextlib.suppress(ProcessLookupError):
                fds.append(os.pidfd_open(pid))
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def pid_of(pidfd: int) -> int:
    """The process of a pidfd; -1 when it has been reaped."""
    text = Path(f"/proc/self/fdinfo/{pidfd}").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("Pid:")))


def wait_ended(pids_to_watch: Iterable[int], timeout_s: float = DEADLINE_S) -> None:
    """Return when all have ended (a zombie counts as ended); TimeoutError names those that have not."""
    waiting = list(pids_to_watch)
    with watched(waiting) as fds:
        for fd in fds:
            if not wait_fd(fd, timeout_s):
                alive = [f"{pid} ({command_of(pid)})" for pid in waiting if is_running(pid)]
                raise TimeoutError(f"still running after {timeout_s} s: {', '.join(alive)}")


def wait_fd(fd: int, timeout_s: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


def send_signal(pid: int, signum: int) -> bool:
    """Signal one process through a pidfd; False if it has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        signal.pidfd_send_signal(fd, signum)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def end(pid: int, timeout_s: float = DEADLINE_S) -> None:
    """SIGKILL one process and wait until it has ended."""
    if send_signal(pid, signal.SIGKILL):
        wait_ended([pid], timeout_s)


def require_ended(mark: str) -> None:
    """Wait until every process with this mark has ended by itself; end those that do not, and fail."""
    left = marked(mark)
    try:
        wait_ended(left)
    except TimeoutError:
        for pid in left:
            end(pid)
        raise


def crash(how: str) -> None:
    """End the calling process the way ``how`` names; see ``WAYS_TO_DIE``."""
    import ctypes

    if how == "exit0":
        os._exit(0)
    if how == "exit":
        os._exit(7)
    if how == "segfault":
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        ctypes.string_at(0)
    if how == "abort":
        os.abort()
    os.kill(os.getpid(), getattr(signal, how.upper()))
    raise AssertionError(f"survived {how}")


WAYS_TO_DIE = {"exit": "7", "exit0": "0", "sigkill": "SIGKILL", "segfault": "SIGSEGV", "abort": "SIGABRT"}
