"""How much memory is used: of the cgroups that bind this process, or of the machine.

Owns: descriptors that stay open, so that a look costs a few ``pread``s (some 40 us).
Invariants: page cache that the kernel can take back does not count as used; of several limits the one that is
closest to being reached counts.
Leaves to others: what follows from it (``memory_monitor``).
"""

from __future__ import annotations

import os

from ftray._node.resources import own_cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Reading = tuple[int, int]  # used and total bytes

# Names a file with "<used bytes> <total bytes>" that is read instead: a hook for tests, which must not fill
# memory. With "once" in front, the file is removed when it was read. No file: nothing is used.
TEST_HOOK = "FTRAY_TEST_MEMORY_METER"
_NO_LIMIT = 1 << 60
_READ_BYTES = 1 << 14
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class MeterError(Exception):
    """The memory that is used cannot be found out."""


class _Files:
    """Open files, read from their beginning each time."""

    def __init__(self, directory: str, names: tuple[str, ...]) -> None:
        self._fds: list[int] = []
        try:
            for name in names:
                path = os.path.join(directory, name)
                self._fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            self.close()
            raise

    def read(self) -> list[bytes]:
        return [os.pread(fd, _READ_BYTES, 0) for fd in self._fds]

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []


def _field(text: bytes, name: bytes) -> int:
    """Return the number behind a name at the beginning of a line, 0 without it."""
    at = 0 if text.startswith(name) else text.find(b"\n" + name)
    if at < 0:
        return 0
    return int(text[at:].split(None, 2)[1])


def cgroup_usage(limit: bytes, usage: bytes, stat: bytes) -> Reading | None:
    """Return what the files of a cgroup (v1 or v2) say; None when it has no limit."""
    words = limit.split()
    if not words or not words[0].isdigit() or int(words[0]) >= _NO_LIMIT:
        return None
    prefix = b"total_" if b"\ntotal_inactive_file " in stat else b""
    cache = _field(stat, prefix + b"inactive_file") + _field(stat, prefix + b"active_file")
    return max(0, int(usage) - cache), int(words[0])


def machine_usage(meminfo: bytes) -> Reading:
    """Return what ``/proc/meminfo`` says."""
    total = _field(meminfo, b"MemTotal:") * 1024
    return total - _field(meminfo, b"MemAvailable:") * 1024, total


class MemoryMeter:
    """Reads the memory that is used.

    Parameters
    ----------
    cgroup_root, own_cgroup, meminfo
        Where the kernel's files are.
    """

    def __init__(
        self,
        cgroup_root: str = "/sys/fs/cgroup",
        own_cgroup: str = "/proc/self/cgroup",
        meminfo: str = "/proc/meminfo",
    ) -> None:
        hook = os.environ.get(TEST_HOOK)
        self._hook = hook
        self._sources: list[tuple[_Files, Callable[..., Reading | None]]] = []
        if hook is not None:
            return
        layouts = (
            ("memory.max", "memory.current", "memory.stat"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat"),
        )
        seen: set[str] = set()
        for directory in own_cgroups("memory", cgroup_root, own_cgroup):
            real = os.path.realpath(directory)
            for names in layouts:
                if real not in seen and os.path.exists(os.path.join(directory, names[0])):
                    self._add(directory, names, cgroup_usage)
                    seen.add(real)
        self._add(os.path.dirname(meminfo), (os.path.basename(meminfo),), machine_usage)

    def _add(self, directory: str, names: tuple[str, ...], read: Callable[..., Reading | None]) -> None:
        try:
            self._sources.append((_Files(directory, names), read))
        except OSError:
            return  # a kernel without it; the others say enough

    def read(self) -> Reading:
        """Return used and total bytes, of the limit that is closest to being reached.

        Raises
        ------
        MeterError
            Nothing can be read.
        """
        if self._hook is not None:
            return _read_hook(self._hook)
        fullest: Reading | None = None
        for files, read in self._sources:
            try:
                reading = read(*files.read())
            except (OSError, ValueError):
                continue  # a cgroup that was removed
            if reading is None or reading[1] <= 0:
                continue
            if fullest is None or reading[0] * fullest[1] > fullest[0] * reading[1]:
                fullest = reading
        if fullest is None:
            raise MeterError("neither a cgroup nor /proc/meminfo says how much memory is used")
        return fullest

    def close(self) -> None:
        """Close the files."""
        for files, _read in self._sources:
            files.close()
        self._sources = []


def _read_hook(path: str) -> Reading:
    try:
        with open(path) as file:
            words = file.read().split()
        if words[:1] == ["once"]:
            os.unlink(path)
            del words[0]
        used, total = (int(word) for word in words)
    except FileNotFoundError:
        return 0, 1
    except (OSError, ValueError) as error:
        raise MeterError(f"{TEST_HOOK}={path}: {error}") from None
    return used, total


def private_bytes(pid: int) -> int:
    """Return the memory that is a process's alone (without what it shares, such as the object store)."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            _size, resident, shared, *_rest = file.read().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return (int(resident) - int(shared)) * _PAGE_BYTES
