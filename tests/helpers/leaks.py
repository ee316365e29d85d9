"""Nothing may stay behind a test: processes, descriptors, sockets, shared memory, counters.

Two levels. While a runtime is shared by several tests, a test must give back what it took from it
(``check_settled``). When a runtime has been shut down, the process must look as before ``init()``
(``Footprint.check_restored``).
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from pathlib import Path

from tests.helpers import introspection, processes
from tests.helpers.sync import eventually

# A shared runtime may keep, per live process it talks to, a bounded number of descriptors.
DESCRIPTORS_PER_PEER = 12
SETTLED_S = 40.0  # at a load of 40, giving back has taken 9 s


def shared_memory_files() -> set[str]:
    """Names in /dev/shm that can be ours; other programs of the machine use it too."""
    return {name for name in os.listdir("/dev/shm") if "ftray" in name}


def descriptor_kinds() -> Counter[str]:
    """Descriptors by what they refer to, without the numbers the kernel gives out."""
    kinds: Counter[str] = Counter()
    for target in processes.descriptors().values():
        kind, _, rest = target.partition(":[")
        kinds[kind if rest else target] += 1
    return kinds


def mapping_kinds() -> Counter[str]:
    """Mapped memory files by name, size in bytes and protection."""
    kinds: Counter[str] = Counter()
    for line in processes.memfd_mappings():
        addresses, protection, _offset, _device, _inode, name = line.split(maxsplit=5)
        first, last = (int(address, 16) for address in addresses.split("-"))
        kinds[f"{name} {last - first} {protection}"] += 1
    return kinds


class Footprint:
    """What this process held before it started a runtime."""

    def __init__(self, mark: str, base: Path) -> None:
        self.mark = mark
        self.base = base
        self.descriptors = descriptor_kinds()
        self.children = set(processes.children_of(os.getpid()))
        self.shared = shared_memory_files()
        self.mappings = mapping_kinds()

    def extra_descriptors(self) -> Counter[str]:
        return descriptor_kinds() - self.descriptors

    def differences(self) -> list[str]:
        gc.collect()
        left = [f"process {pid}: {processes.command_of(pid)}" for pid in processes.marked(self.mark)]
        new_children = set(processes.children_of(os.getpid())) - self.children
        left += [f"child {pid} ({processes.state_of(pid)})" for pid in new_children]
        left += [f"descriptor {what} x{count}" for what, count in self.extra_descriptors().items()]
        left += [f"shared memory {name}" for name in shared_memory_files() - self.shared]
        left += [f"session {path}" for path in self.base.glob("ftray-*/s-*")]
        left += [f"socket {path}" for path in processes.bound_sockets(self.base)]
        left += [f"mapping {what} x{count}" for what, count in (mapping_kinds() - self.mappings).items()]
        return left

    def check_restored(self) -> None:
        try:
            eventually(lambda: not self.differences(), timeout_s=SETTLED_S)
        except TimeoutError:
            raise AssertionError(f"left after shutdown(): {self.differences()}") from None

    def check_settled(self) -> None:
        """The shared runtime is idle and holds nothing for the test that just ended."""
        gc.collect()
        for what, condition in (
            ("counters", lambda: not introspection.live_counters()),
            ("resources", introspection.all_resources_back),
            ("names", lambda: not introspection.named_actors()),
            ("zombies", lambda: not processes.zombies_of(os.getpid())),
            ("descriptors", self._few_descriptors),
        ):
            try:
                eventually(condition, timeout_s=SETTLED_S)
            except TimeoutError:
                raise AssertionError(f"{what} not given back: {self._story()}") from None

    def _few_descriptors(self) -> bool:
        peers = len(processes.marked(self.mark)) + 1
        return sum(self.extra_descriptors().values()) <= DESCRIPTORS_PER_PEER * peers

    def _story(self) -> dict[str, object]:
        return {
            "counters": introspection.counters(),
            "named actors": introspection.named_actors(),
            "processes": [processes.command_of(pid) for pid in processes.marked(self.mark)],
            "zombies": processes.zombies_of(os.getpid()),
            "descriptors": dict(self.extra_descriptors()),
        }
