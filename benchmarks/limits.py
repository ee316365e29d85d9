"""What the machine itself can do, printed beside the figures: no engine on it can be better than these.

``python -m benchmarks.limits`` prints them alone.
"""

from __future__ import annotations

import mmap
import os
import statistics
import subprocess
import sys
import time

from benchmarks import pingpong
from benchmarks.budget import repeat_for

COPY_BYTES = 100_000_000
SMOKE_COPY_BYTES = 1_000_000
NUMPY_PSS_CODE = (
    "import numpy; print(next(int(line.split()[1]) for line in open('/proc/self/smaps_rollup')"
    " if line.startswith('Pss:')))"
)


def measure(smoke: bool = False) -> dict[str, float]:
    """All limits by name: rates in 1/s, bandwidths in GB/s, times in s, memory in MB."""
    seconds = 0.02 if smoke else 0.4
    copy_bytes = SMOKE_COPY_BYTES if smoke else COPY_BYTES
    limits = {f"pingpong_{layout.key}": pingpong.measure(layout, seconds) for layout in pingpong.layouts()}
    limits["memcpy_warm"] = memcpy_warm_gb_s(copy_bytes, seconds)
    limits["memcpy_cold"] = memcpy_cold_gb_s(copy_bytes)
    limits["fork_wait"] = fork_wait_per_s(seconds)
    limits["python_start"] = python_start_s(1 if smoke else 7)
    limits["python_numpy"] = python_numpy_mb()
    return limits


def memcpy_warm_gb_s(size_bytes: int, seconds: float) -> float:
    """Copy into shared memory whose pages are there already."""
    source, target = memoryview(os.urandom(4096) * (size_bytes // 4096)), _shared(size_bytes)
    used = len(source)

    def copy() -> None:
        target[:used] = source

    copy()
    copies, elapsed_s = repeat_for(copy, seconds)
    return copies * used / elapsed_s / 1e9


def memcpy_cold_gb_s(size_bytes: int) -> float:
    """Copy into shared memory that has no pages yet."""
    source = memoryview(os.urandom(4096) * (size_bytes // 4096))
    used = len(source)
    rates = []
    for _ in range(3):
        target = _shared(size_bytes)
        start = time.perf_counter()
        target[:used] = source
        rates.append(used / (time.perf_counter() - start) / 1e9)
    return statistics.median(rates)


def _shared(size_bytes: int) -> mmap.mmap:
    fd = os.memfd_create("ftray-benchmark")
    try:
        os.ftruncate(fd, size_bytes)
        return mmap.mmap(fd, size_bytes)
    finally:
        os.close(fd)


def fork_wait_per_s(seconds: float) -> float:
    """Forks of this small process whose child ends at once and is waited for."""

    def life() -> None:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)

    forks, elapsed_s = repeat_for(life, seconds)
    return forks / elapsed_s


def python_start_s(times: int) -> float:
    """Median time of an interpreter that does nothing."""
    values = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        values.append(time.perf_counter() - start)
    return statistics.median(values)


def python_numpy_mb() -> float:
    """PSS of an interpreter that has imported numpy."""
    reply = subprocess.run([sys.executable, "-c", NUMPY_PSS_CODE], check=True, capture_output=True, text=True)
    return int(reply.stdout) * 1024 / 1e6


def main() -> int:
    for name, value in measure().items():
        print(f"{name:22} {value:>14,.4g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
