"""Exactly-once calls with their journal on S3: latency, rate and requests for each commit interval.

The server is moto on loopback, a process of its own: its times are those of a slow but near store, so that
what counts is how latency and requests follow the interval. Add the round trip of a real bucket.
"""

from __future__ import annotations

import json
import os
import statistics
import time
import urllib.request
from dataclasses import dataclass

import ftray
from benchmarks.budget import Budget, repeat_for
from benchmarks.checkpoint_rows import durable_class

INTERVALS_MS = (0, 100, 1000)
IN_FLIGHT = 200
DOLLARS_PER_PUT = 0.005 / 1000
"""Of S3 Standard in us-east-1: PUT, COPY, POST and LIST requests."""


@dataclass(frozen=True)
class S3Figures:
    """What one commit interval gives and takes."""

    interval_ms: int
    latency_s: float
    rate: float
    puts_per_1000: float
    dollars_per_hour: float
    """Of a load without pause."""


def measure(budget: Budget) -> list[S3Figures]:
    """Measure every interval; nothing where moto or s3fs is not installed."""
    try:
        import moto  # noqa: F401
        import s3fs  # noqa: F401
    except ImportError:
        return []
    from tests.helpers.s3_server import ENVIRONMENT, s3_server

    os.environ.update(ENVIRONMENT)
    with s3_server() as server:
        ftray.init(num_cpus=2, address="local", log_to_driver=False)
        try:
            return [_interval(server, ms, budget) for ms in INTERVALS_MS]
        finally:
            ftray.shutdown()


def _interval(server: object, ms: int, budget: Budget) -> S3Figures:
    endpoint, bucket = server.endpoint, server.new_bucket()  # type: ignore[attr-defined]
    store = f"s3://{bucket}/bench?endpoint_url={endpoint}&commit_interval_ms={ms}"
    actor = durable_class(store, "power").remote()
    ftray.get(actor.add.remote())
    taken_s = []
    for _ in range(budget.size(40 if ms < 500 else 6, 1)):
        begin_s = time.perf_counter()
        ftray.get(actor.add.remote())
        taken_s.append(time.perf_counter() - begin_s)
    before = _puts(endpoint)
    steps, elapsed_s = repeat_for(
        lambda: ftray.get([actor.add.remote() for _ in range(IN_FLIGHT)]), budget.measure_s * 4
    )
    puts = _puts(endpoint) - before
    ftray.kill(actor)
    return S3Figures(
        ms,
        statistics.median(taken_s),
        steps * IN_FLIGHT / elapsed_s,
        puts / (steps * IN_FLIGHT) * 1000,
        puts / elapsed_s * 3600 * DOLLARS_PER_PUT,
    )


def _puts(endpoint: str) -> int:
    with urllib.request.urlopen(f"{endpoint}/_requests", timeout=30) as answer:
        counted: dict[str, int] = json.load(answer)
    return counted.get("PUT", 0)
