"""Measurements behind the spinning of `_core/runtime.pyx` (``FTRAY_SPIN_US``, 40 by default).

Run it on a quiet machine: ``python -m benchmarks.tune_spin``. It prints, for some lengths of the spin:

* wake: what one wake-up across cores costs (a blocking byte between two processes, half a round trip);
* idle: synchronous actor calls per second, and CPU time per call in driver and worker;
* busy: the same while another process computes on every core, and what is left to those.

A spin that is as long as one wake-up costs at most twice what the best choice would have (Karlin et al.,
"Empirical studies of competitive spinning", SOSP 1991): the rule for the default is one wake-up, rounded up.
Longer spins find nothing more in calls that take no time, and burn CPU time in all others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

LENGTHS_US = (0, 5, 10, 20, 40, 80, 160)
BUSY_PROGRAM = """
import sys, time
print(flush=True)
end = time.perf_counter() + float(sys.argv[1])
n = 0
while time.perf_counter() < end:
    n += sum(range(100)) > 0
print(n, flush=True)
"""


def wake_up_us(rounds: int) -> float:
    """Half a round trip of one byte between two processes, each on a core of its own when there are two."""
    cores = sorted(os.sched_getaffinity(0))
    to_child, to_parent = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, {cores[-1]})
        for _ in range(rounds):
            os.read(to_child[0], 1)
            os.write(to_parent[1], b"x")
        os._exit(0)
    os.sched_setaffinity(0, {cores[0]})
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        os.write(to_child[1], b"x")
        os.read(to_parent[0], 1)
        times.append(time.perf_counter() - start)
    os.waitpid(child, 0)
    os.sched_setaffinity(0, cores)
    for fd in (*to_child, *to_parent):
        os.close(fd)
    return statistics.median(times) / 2 * 1e6


def measure_calls(calls: int) -> dict[str, Any]:
    """Synchronous actor calls in this process: rate, CPU time per call here and in the worker."""
    import ftray

    @ftray.remote
    class Echo:
        def call(self) -> None:
            return None

        def cpu_s(self) -> float:
            return time.process_time()

    ftray.init(address="local", num_cpus=1)
    echo = Echo.remote()
    for _ in range(min(calls, 200)):
        ftray.get(echo.call.remote())
    worker_s, driver_s = ftray.get(echo.cpu_s.remote()), time.process_time()
    start = time.perf_counter()
    for _ in range(calls):
        ftray.get(echo.call.remote())
    wall_s = time.perf_counter() - start
    driver_s = time.process_time() - driver_s
    worker_s = ftray.get(echo.cpu_s.remote()) - worker_s
    ftray.shutdown()
    return {"rate": calls / wall_s, "driver_us": driver_s / calls * 1e6, "worker_us": worker_s / calls * 1e6}


def in_process(spin_us: int, calls: int) -> dict[str, Any]:
    environment = dict(os.environ, FTRAY_SPIN_US=str(spin_us))
    command = [sys.executable, "-m", "benchmarks.tune_spin", "--calls", str(calls), "--one"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def beside_others(spin_us: int, calls: int, seconds: float) -> tuple[dict[str, Any], int]:
    """The same while a process computes on each core; and how far those came, all together."""
    command = [sys.executable, "-c", BUSY_PROGRAM, str(seconds)]
    others = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in os.sched_getaffinity(0)]
    outputs = [other.stdout for other in others if other.stdout is not None]
    for output in outputs:
        output.readline()
    found = in_process(spin_us, calls)
    done = sum(int(output.readline()) for output in outputs)
    for other in others:
        other.wait()
    return found, done


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how long a waiting thread should spin.")
    parser.add_argument("--calls", type=int, default=20_000, help="calls of one measurement (default 20000)")
    parser.add_argument(
        "--repeat", type=int, default=3, help="rounds over all lengths; medians count (default 3)"
    )
    parser.add_argument("--smoke", action="store_true", help="few calls, once: only shows that it runs")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure_calls(options.calls)))
        return
    calls, repeat, rounds, lengths = options.calls, options.repeat, 5000, LENGTHS_US
    if options.smoke:
        calls, repeat, rounds, lengths = 50, 1, 50, (0, 40)
    print(f"wake  {wake_up_us(rounds):.1f} us")
    idle: dict[int, list[dict[str, Any]]] = {us: [] for us in lengths}
    busy: dict[int, list[tuple[dict[str, Any], int]]] = {us: [] for us in lengths}
    for _ in range(repeat):
        for us in lengths:
            idle[us].append(in_process(us, calls))
            busy[us].append(beside_others(us, calls // 10, 0.2 if options.smoke else 3.0))
    for us in lengths:
        rate, driver, worker = (
            statistics.median(one[key] for one in idle[us]) for key in ("rate", "driver_us", "worker_us")
        )
        beside = statistics.median(one["rate"] for one, _ in busy[us])
        left = statistics.median(done for _, done in busy[us])
        print(
            f"spin {us:4} us  idle {rate:8,.0f} /s, CPU {driver:5.1f} + {worker:5.1f} us per call"
            f"   busy {beside:8,.0f} /s, others did {left:,.0f}"
        )


if __name__ == "__main__":
    main()
