"""Count words of a stream exactly once, although the program that reads the stream dies and is run again.

The source can be read again from any place, as a log can; each of its lines has an *offset*. The line's
call is named by it, ``call_key="line-17"``: whoever makes that call again, in this run or in a later one,
gets the reply recorded the first time, and nothing is counted twice. So the reader needs no position of
its own. After a crash it starts again from the beginning (or from anywhere before what it may have lost).

    python examples/word_count.py --lines 300 --crashes 3

runs a reader, which ends itself in the middle of its work as often as it is told to, until one comes to
the end. Then it compares the counts with those of a plain loop. Exit status 0 when they are the same."""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from typing import Any

import ftray as ray
from ftray.checkpoint import readonly

WORDS = ["apple", "pear", "plum", "cherry", "grape", "melon", "lemon", "fig", "date", "quince"]
COUNTERS = 2


def line(offset: int) -> str:
    """The line at an offset of the source: always the same."""
    return " ".join(random.Random(offset).choices(WORDS, k=8))


def make_counter_class(store: str) -> Any:
    @ray.remote(num_cpus=0)
    class WordCounter(ray.Checkpointable, store=store, exactly_once=True):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.counts: Counter[str] = Counter()
            self.lines = 0

        def count(self, text: str) -> int:
            """Count a line; return how many there were."""
            self.counts.update(text.split())
            self.lines += 1
            return self.lines

        @readonly
        def result(self) -> tuple[int, dict[str, int]]:
            return self.lines, dict(self.counts)

    return WordCounter


def read_all(store: str, lines: int, crash_at: int | None) -> tuple[int, Counter[str]]:
    """Have all lines counted, from the first one on; with `crash_at`, die when so many were answered."""
    counter_class = make_counter_class(store)
    counters = [counter_class.options(name=f"counter-{i}").remote() for i in range(COUNTERS)]
    replies = []
    for offset in range(lines):
        counter = counters[offset % COUNTERS]
        replies.append(counter.count.options(call_key=f"line-{offset}").remote(line(offset)))
        if offset == crash_at:
            ray.get(replies[: offset // 2 + 1])
            os.kill(os.getpid(), signal.SIGKILL)  # the lines behind were counted, or not
    ray.get(replies)
    results = ray.get([counter.result.remote() for counter in counters])
    return sum(n for n, _ in results), sum((Counter(counts) for _, counts in results), Counter())


def reader(store: str, lines: int, crash_at: int | None) -> int:
    """One run of the reader."""
    ray.init(num_cpus=2, log_to_driver=False)
    counted, counts = read_all(store, lines, crash_at)
    ray.shutdown()
    wanted = Counter(word for offset in range(lines) for word in line(offset).split())
    for word, count in counts.most_common(3):
        print(f"{word:8} {count:,}")
    right = counted == lines and counts == wanted
    print(f"{counted} lines counted of {lines}")
    print("PASS: every line counted once" if right else "FAIL: the counts are not those of a plain loop")
    return 0 if right else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Count a stream in readers that die.")
    parser.add_argument("--lines", type=int, default=300, help="lines in the stream (default 300)")
    parser.add_argument("--crashes", type=int, default=3, help="readers that die on the way (default 3)")
    parser.add_argument("--store", help=argparse.SUPPRESS)  # for the readers that this program starts
    parser.add_argument("--crash-at", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.store:
        return reader(arguments.store, arguments.lines, arguments.crash_at)
    if not 0 <= arguments.crashes < arguments.lines:
        parser.error("--crashes must be at least 0 and less than --lines")

    with tempfile.TemporaryDirectory(prefix="word-count-") as store:
        command = [sys.executable, __file__, "--store", store, "--lines", str(arguments.lines)]
        for crash in range(arguments.crashes):
            at = (crash + 1) * arguments.lines // (arguments.crashes + 1)
            status = subprocess.run([*command, "--crash-at", str(at)]).returncode
            print(
                f"reader {crash + 1} died at line {at}" if status == -signal.SIGKILL else f"status {status}"
            )
        return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
