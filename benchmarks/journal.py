"""How fast the local journal appends: ``python -m benchmarks.journal [--records N] [--size BYTES]
[--directory D]``.

Appends from one Python thread, `process` and `power`; in `power` also how many records a group held, how
long the last one took to become durable, and, as the floor, a bare loop of pwrite and fdatasync of 64 such
records.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from typing import NamedTuple

from ftray.checkpoint.stores.local import LocalStore

KEY = "bench"


class Row(NamedTuple):
    """One measurement."""

    name: str
    records: int
    append_s: float
    durable_s: float
    groups: int

    def __str__(self) -> str:
        per_group = self.records / self.groups if self.groups else 0
        return (
            f"{self.name:24} {self.append_s / self.records * 1e9:8.0f} ns/append "
            f"{self.records / self.durable_s:12,.0f} records/s durable {per_group:10.1f} records/group"
        )


def measure(directory: str, durability: str, records: int, size: int, window: int) -> Row:
    """Append `records`; with a `window`, never more than that many that are not durable yet."""
    store = LocalStore(directory)
    assert store.claim(KEY, 1, b"bench")
    journal = store.open_journal(KEY, 1, 1, durability=durability)  # type: ignore[arg-type]
    payload = os.urandom(size)
    append = journal.append
    for _ in range(200):
        append(payload)
    journal.wait(200, 60)
    groups = journal.stats()["commits"]  # type: ignore[attr-defined]
    start = time.perf_counter()
    if window:
        for i in range(records):
            position = append(payload)
            if not (i + 1) % window:
                journal.wait(position, 60)
    else:
        for _ in range(records):
            append(payload)
    appended = time.perf_counter()
    journal.wait(journal.last_position, 60)
    durable = time.perf_counter()
    groups = journal.stats()["commits"] - groups  # type: ignore[attr-defined]
    journal.close(60)
    return Row(f"{durability}, window {window or 'none'}", records, appended - start, durable - start, groups)


def floor(directory: str, records: int, size: int, group: int = 64) -> Row:
    """pwrite and fdatasync, with nothing around them, into a file that is written already."""
    fd = os.open(os.path.join(directory, "floor"), os.O_RDWR | os.O_CREAT, 0o600)
    batch = os.urandom((size + 24) * group)
    os.pwrite(fd, bytes(len(batch) * (records // group + 1)), 0)
    os.fsync(fd)
    start = time.perf_counter()
    for i in range(records // group):
        os.pwrite(fd, batch, i * len(batch))
        os.fdatasync(fd)
    taken = time.perf_counter() - start
    os.close(fd)
    return Row(f"bare fdatasync of {group}", records, taken, taken, max(1, records // group))


def main(arguments: list[str] | None = None) -> list[Row]:
    """Measure, print, and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=300_000)
    parser.add_argument("--size", type=int, default=150, help="bytes of a record")
    parser.add_argument("--directory", default=None, help="on the disk to measure; default: here")
    given = parser.parse_args(arguments)
    rows = []
    for durability, window, part in (
        ("process", 0, 1),
        ("power", 0, 1),
        ("power", 64, 10),
        ("power", 1, 200),
    ):
        with tempfile.TemporaryDirectory(dir=given.directory or os.getcwd(), prefix=".bench-") as directory:
            count = max(given.records // part, 10)
            rows.append(measure(directory, durability, count, given.size, window))
            print(rows[-1], flush=True)
    with tempfile.TemporaryDirectory(dir=given.directory or os.getcwd(), prefix=".bench-") as directory:
        rows.append(floor(directory, max(given.records // 10, 64), given.size))
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
