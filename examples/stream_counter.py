"""Count a stream of events in actors that are killed while they count, and still count every event once.

Each partition of the stream has a counter, an actor whose state is its counts *and* its position in the
partition. Both are in the same snapshot, so after a crash the feeder only has to ask where to go on: events
before the position are in the counts, events after it are not. This is how a consumer of a log (Kafka, a
file, a table) keeps its state.

    python examples/stream_counter.py --events 20000 --kills 6

Exit status 0 when the counts are those of a plain loop over the same events.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import ftray as ray

BATCH = 100
WORDS = ["apple", "pear", "plum", "cherry", "grape", "melon", "lemon", "fig", "date", "quince"]


def event(partition: int, position: int) -> str:
    """The event at a position of a partition: the stream can be read again from anywhere, as a log can."""
    return random.Random(f"{partition}/{position}").choice(WORDS)


def make_counter_class(store: str) -> Any:
    """The actor class; its snapshots go to the directory `store`, one after every 10 calls."""

    @ray.remote(max_restarts=-1, max_task_retries=-1)
    class WordCounter(ray.Checkpointable, store=store, every=10):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.counts: Counter[str] = Counter()
            self.position = 0

        def feed(self, start: int, words: Sequence[str]) -> int:
            """Count the words unless they are not the next ones; return the position to go on from."""
            if start == self.position:
                self.counts.update(words)
                self.position += len(words)
            return self.position

        def result(self) -> tuple[int, Counter[str]]:
            return self.position, self.counts

        def pid(self) -> int:
            return os.getpid()

    return WordCounter


@contextmanager
def crash(counter: Any) -> Iterator[None]:
    """End the process of an actor, as a crash would, once the block has made its calls."""
    process = os.pidfd_open(ray.get(counter.pid.remote()))
    try:
        yield
        signal.pidfd_send_signal(process, signal.SIGKILL)
        if not select.select([process], [], [], 10)[0]:
            raise TimeoutError("the process is still there 10 s after SIGKILL")
    finally:
        os.close(process)


def feed_round(counters: Sequence[Any], positions: Sequence[int], events: int) -> list[Any]:
    """Give every counter its next batch; return the references to the replies."""
    replies = []
    for partition, (counter, start) in enumerate(zip(counters, positions, strict=True)):
        words = [event(partition, position) for position in range(start, min(start + BATCH, events))]
        replies.append(counter.feed.remote(start, words))
    return replies


def feed_all(counters: Sequence[Any], events: int, kills: int, seed: int) -> int:
    """Feed every partition to its end, with so many kills; return how many batches were fed."""
    dice = random.Random(seed)
    positions = [0] * len(counters)
    rounds_with_crash = set(dice.sample(range(events // BATCH), kills))
    rounds = 0
    while min(positions) < events:
        # Where there is a crash, the batch may have been counted, or half of it, or the process not have
        # seen it.
        with crash(dice.choice(counters)) if rounds in rounds_with_crash else nullcontext():
            replies = feed_round(counters, positions, events)
        positions = ray.get(replies)
        rounds += 1
    return rounds * len(counters)


def main() -> int:
    parser = argparse.ArgumentParser(description="Count a stream in actors that are killed meanwhile.")
    parser.add_argument(
        "--events", type=int, default=20_000, help="events in each partition (default 20,000)"
    )
    parser.add_argument("--partitions", type=int, default=3, help="counters (default 3)")
    parser.add_argument("--kills", type=int, default=6, help="crashes of a random counter (default 6)")
    parser.add_argument("--seed", type=int, default=1, help="of the kills (default 1)")
    arguments = parser.parse_args()
    if arguments.kills > arguments.events // BATCH:
        parser.error(
            f"--kills must not be more than --events / {BATCH}, or some of them find the stream at its end"
        )

    ray.init(num_cpus=2)
    with tempfile.TemporaryDirectory(prefix="stream-counter-") as store:
        counter_class = make_counter_class(store)
        counters = [counter_class.remote() for _ in range(arguments.partitions)]
        fed = feed_all(counters, arguments.events, arguments.kills, arguments.seed)
        results = ray.get([counter.result.remote() for counter in counters])
        ray.shutdown()

    wanted = [Counter(event(p, i) for i in range(arguments.events)) for p in range(arguments.partitions)]
    right = results == [(arguments.events, counts) for counts in wanted]
    again = fed - arguments.partitions * -(-arguments.events // BATCH)
    for word, count in sum((counts for _position, counts in results), Counter()).most_common(3):
        print(f"{word:8} {count:,}")
    print(f"{arguments.kills} crashes, {again} batches fed again")
    print("PASS: every event counted once" if right else "FAIL: the counts are not those of a plain loop")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
