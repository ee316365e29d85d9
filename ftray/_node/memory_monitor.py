"""The memory monitor: before the machine runs out of memory, a worker ends that can best be spared.

Owns: looking at the meter in time, the process that is being ended, what people are told.
Invariants: one process at a time: nobody is chosen before the last one is gone, since its memory is not free
earlier.
Leaves to others: who it is (``memory_policy``), what the caller makes of it (the core; ``actors``).
"""

from __future__ import annotations

import time

from ftray._node.frames import DEATH_MEMORY, DEATH_MEMORY_FINAL
from ftray._node.memory_meter import MemoryMeter, MeterError, private_bytes
from ftray._node.memory_policy import choose

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ftray._node.daemon import Node
    from ftray._node.workers import WorkerProcess

_CONSUMERS = 5  # named in messages


class MemoryMonitor:
    """Looks every ``refresh_ms`` (0: never) whether more than ``threshold`` of the memory is used."""

    def __init__(self, node: Node, refresh_ms: int, threshold: float) -> None:
        self._node = node
        self._refresh_s = refresh_ms / 1000
        self._threshold = threshold
        self._victim: int | None = None
        self._meter = MemoryMeter() if refresh_ms else None
        if refresh_ms:
            self._schedule()

    def _schedule(self) -> None:
        self._node.loop.set_timer("memory", time.monotonic() + self._refresh_s, self._look)

    def _look(self) -> None:
        assert self._meter is not None
        if self._node.stopping:
            return
        try:
            used, total = self._meter.read()
        except MeterError as error:
            self._node.report(f"the memory monitor is off: {error}")
            return
        if self._victim is not None and self._node.workers.get(self._victim) is None:
            self._victim = None
        if self._victim is None and used > self._threshold * total:
            self._relieve(used, total)
        self._schedule()

    def _relieve(self, used: int, total: int) -> None:
        self._node.leases.pool_event(lambda pool, now_s: pool.trimmed(now_s))
        victim = choose(self._node.leases.running())
        worker = self._node.workers.get(victim.number) if victim is not None else None
        if victim is None or worker is None:
            return
        self._victim = victim.number
        text = self._story(worker, used, total)
        self._node.report(f"worker {worker.pid} {text}")
        self._node.workers.kill(worker, DEATH_MEMORY_FINAL if victim.final else DEATH_MEMORY, text)

    def _story(self, worker: WorkerProcess, used: int, total: int) -> str:
        consumers = sorted(
            ((private_bytes(w.pid), w) for w in self._node.workers.all() if w.pid),
            key=lambda pair: (-pair[0], pair[1].number),
        )
        most = ", ".join(f"{self._title(w)} {_amount(size)}" for size, w in consumers[:_CONSUMERS])
        return (
            f"was ended by the memory monitor: {_amount(used)} of {_amount(total)} are used on node"
            f" {self._node.node_id.hex()[:12]} ({used / total:.1%}, the threshold is {self._threshold:.1%});"
            f" it had {_amount(private_bytes(worker.pid))}; workers with most memory: {most}"
        )

    def _title(self, worker: WorkerProcess) -> str:
        name = self._node.leases.name_of(worker.number)
        return f"{worker.pid} ({name})" if name else str(worker.pid)

    def close(self) -> None:
        """Close the meter."""
        if self._meter is not None:
            self._meter.close()


def _amount(size_bytes: int) -> str:
    if size_bytes >= 1 << 30:
        return f"{size_bytes / (1 << 30):.2f} GiB"
    return f"{size_bytes / (1 << 20):.1f} MiB"
