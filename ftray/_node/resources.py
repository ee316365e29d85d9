"""What this machine offers: CPUs, memory and GPUs as limits allow.

Owns: reading affinity, cgroup limits (v1 and v2), devices, the count of processes killed for memory.
Leaves to others: arithmetic (``amounts``), who gets what (``scheduler``).
"""

from __future__ import annotations

import os

# Ray keeps 30 % of memory for objects and offers the rest to tasks that ask for "memory".
OBJECT_STORE_SHARE = 0.3
NODE_IP = "127.0.0.1"  # everything is on one machine
# Resources that a node has once, so that tasks and actors can ask to be where it is: as in Ray.
NODE_NAMES = (f"node:{NODE_IP}", "node:__internal_head__")
_CGROUP_ROOT = "/sys/fs/cgroup"
# A limit near 2**63 is cgroup v1's way to say "none".
_NO_LIMIT = 1 << 60


def _read(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None


def own_cgroups(controller: str, root: str, proc: str) -> list[str]:
    """Return the directories whose limits bind this process, for v2 and for one v1 controller."""
    directories = []
    for line in (_read(proc) or "").splitlines():
        _number, names, path = line.split(":", 2)
        if names == "":
            mounts = [root, os.path.join(root, "unified")]
        elif controller in names.split(","):
            mounts = [os.path.join(root, controller), os.path.join(root, names)]
        else:
            continue
        parts = [part for part in path.split("/") if part]
        for mount in mounts:
            directories += ["/".join([mount, *parts[:depth]]) for depth in range(len(parts), -1, -1)]
    return directories


def cgroup_cpus(root: str = _CGROUP_ROOT, proc: str = "/proc/self/cgroup") -> float | None:
    """Return the CPU quota of this process's cgroups in CPUs, None without one."""
    quotas = []
    for directory in own_cgroups("cpu", root, proc):
        words = (_read(f"{directory}/cpu.max") or "").split()
        if not words:
            words = [
                _read(f"{directory}/cpu.cfs_quota_us") or "",
                _read(f"{directory}/cpu.cfs_period_us") or "",
            ]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def cgroup_memory_bytes(root: str = _CGROUP_ROOT, proc: str = "/proc/self/cgroup") -> int | None:
    """Return the memory limit of this process's cgroups, None without one."""
    limits = []
    for directory in own_cgroups("memory", root, proc):
        text = _read(f"{directory}/memory.max") or _read(f"{directory}/memory.limit_in_bytes")
        if text is not None and text.isdigit() and int(text) < _NO_LIMIT:
            limits.append(int(text))
    return min(limits, default=None)


def count_cpus() -> int:
    """Return the CPUs that this process may use: affinity, bounded by the cgroup quota, at least 1."""
    cpus = len(os.sched_getaffinity(0))
    quota = cgroup_cpus()
    return max(1, cpus if quota is None else min(cpus, int(quota)))


def memory_limit_bytes() -> int:
    """Return the memory that this process may use: the machine's, bounded by the cgroup's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = cgroup_memory_bytes()
    return total if limit is None else min(total, limit)


def visible_gpus() -> list[str] | None:
    """Return the ids that ``CUDA_VISIBLE_DEVICES`` names, None when it is not set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    parts = [part.strip() for part in visible.split(",")]
    return [part for part in parts if part not in ("", "-1", "NoDevFiles")]


def count_gpus() -> int:
    """Return the number of NVIDIA devices, as ``CUDA_VISIBLE_DEVICES`` limits them."""
    visible = visible_gpus()
    if visible is not None:
        return len(visible)
    if not os.path.exists("/dev/nvidiactl"):
        return 0
    return len([name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()])


def oom_kill_count() -> int:
    """Return how many processes the kernel has killed for memory, in our cgroups and on the machine."""
    count = 0
    for directory in own_cgroups("memory", _CGROUP_ROOT, "/proc/self/cgroup"):
        for name in ("memory.events", "memory.oom_control"):
            for line in (_read(f"{directory}/{name}") or "").splitlines():
                if line.startswith("oom_kill "):
                    count += int(line.split()[1])
    for line in (_read("/proc/vmstat") or "").splitlines():
        if line.startswith("oom_kill "):
            count += int(line.split()[1])
    return count


def has_steady_tsc() -> bool:
    """Whether processes may read the time stamp counter as a clock: the kernel itself does."""
    try:
        with open("/sys/devices/system/clocksource/clocksource0/current_clocksource") as file:
            return file.read().strip() == "tsc"
    except OSError:
        return False
