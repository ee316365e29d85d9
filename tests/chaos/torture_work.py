"""What the driver of a torture submits, and what must come of it.

A maker submits one batch and returns a judge, which waits for all its replies and writes them into the
`Book`."""

from __future__ import annotations

import random
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import ftray as ray
from ftray.checkpoint.errors import PoisonCallError
from tests.chaos.torture_actors import (
    LARGE,
    AsyncTeller,
    Leaf,
    Teller,
    by_key,
    fan,
    nest,
    walk,
)
from tests.chaos.torture_book import Book

DEADLINE_S = 120.0
Judge = Callable[[], None]
Entries = list[tuple[str, int]]


class Cast:
    """The actors of a run, by name."""

    def __init__(self, store: str, leaves: int, tellers: int) -> None:
        self.leaves = {f"leaf-{i}": leaf(store, i) for i in range(leaves)}
        self.tellers = {f"teller-{i}": teller(Teller, store, f"teller-{i}") for i in range(tellers)}
        self.asyncs = {"async-teller": teller(AsyncTeller, store, "async-teller")}
        self.all: dict[str, Any] = {**self.leaves, **self.tellers, **self.asyncs}

    def close(self, book: Book) -> None:
        """Compare all states with the reference."""
        for name, actor in self.all.items():
            book.close(name, *ray.get(actor.audit.remote(), timeout=DEADLINE_S))


def leaf(store: str, number: int) -> Any:
    """They differ in durability and in how often they are saved; the last one is not named."""
    durability = "power" if number % 3 == 2 else "process"
    options: dict[str, Any] = {"every": (100, 5000, 1000, 20)[number % 4], "durability": durability}
    cls = made_of(Leaf, store, options)
    return cls.remote() if number % 4 == 3 else cls.options(name=f"leaf-{number}").remote()


def teller(cls: Any, store: str, name: str) -> Any:
    durability = "power" if name.endswith("1") else "process"
    return made_of(cls, store, {"every": 200, "durability": durability}).options(name=name).remote()


def made_of(cls: type, store: str, options: dict[str, Any]) -> Any:
    """The actor class with checkpoint options of its own."""

    def fill(namespace: dict[str, Any]) -> None:
        namespace["__module__"] = cls.__module__

    made = types.new_class(cls.__name__, (cls,), {"store": store, **options}, fill)
    return ray.remote(num_cpus=0)(made)


class Submitter:
    """One flow of calls: the driver's own, or one of its threads."""

    def __init__(self, book: Book, cast: Cast, seed: str, in_flight: int = 4) -> None:
        self.book, self.cast = book, cast
        self.rng = random.Random(seed)
        self.in_flight = in_flight
        self.last: dict[str, int] = {}
        self.keys = 0
        self.name = seed
        self.error: BaseException | None = None

    def run(self, goes_on: Callable[[], bool]) -> None:
        """Submit and judge until there is enough."""
        open_: list[Judge] = []
        try:
            while goes_on() and self.error is None:
                open_.append(self.rng.choices(MAKERS, WEIGHTS)[0](self))
                if len(open_) >= self.in_flight:
                    open_.pop(0)()
            for judge in open_:
                judge()
        except BaseException as error:
            self.error = error

    # --- entries

    def leaf(self) -> str:
        return self.rng.choice(list(self.cast.leaves))

    def entries(self, n: int) -> Entries:
        return [(name, self.book.entry(name)) for name in (self.leaf() for _ in range(n))]

    def handles(self, entries: Entries) -> list[tuple[Any, int]]:
        return [(self.cast.leaves[name], index) for name, index in entries]

    def given(self) -> int:
        return self.rng.randrange(1 << 30)

    def value(self, ref: Any, *entries: tuple[str, int]) -> Any:
        """The reply; None if the call was refused since processes died in it again and again."""
        try:
            return ray.get(ref, timeout=DEADLINE_S)
        except PoisonCallError:
            poisoned = True
        except ray.exceptions.RayTaskError as error:
            poisoned = "PoisonCallError" in str(error)
            if not poisoned:
                raise
        for name, index in entries:
            self.book.refuse(name, index)
        self.book.poisoned += 1
        return None

    # --- batches

    def direct(self) -> Judge:
        """Calls of this flow, many at once, applied in their order."""
        sent = []
        for name, index in self.entries(self.rng.choice([1, 20, 500, 2000])):
            given = self.given()
            sent.append((name, index, given, self.cast.leaves[name].apply.remote(index, given)))

        def judge() -> None:
            for name, index, given, ref in sent:
                reply = self.value(ref, (name, index))
                if reply is not None:
                    number = self.book.reply(name, index, given, reply)
                    self.last[name] = self.book.in_order(name, self.last.get(name, 0), number)

        return judge

    def single(self) -> Judge:
        """One after the other."""
        for _ in range(self.rng.choice([1, 10, 50])):
            (entry,) = self.entries(1)
            given = self.given()
            reply = self.value(self.cast.leaves[entry[0]].apply.remote(entry[1], given), entry)
            if reply is not None:
                self.book.reply(*entry, given, reply)
        return lambda: None

    def chain(self) -> Judge:
        """Each call's argument is the reply of the one before, by reference."""
        entries = self.entries(self.rng.randrange(2, 12))
        given = self.given()
        refs: list[Any] = []
        for leaf_, index in self.handles(entries):
            refs.append(leaf_.apply.remote(index, refs[-1] if refs else given))

        def judge() -> None:
            before = given
            for entry, ref in zip(entries, refs, strict=True):
                reply = self.value(ref, *entries)
                if reply is None:
                    return
                before = self.book.reply(*entry, before, reply)

        return judge

    def failing(self) -> Judge:
        sent = [(entry, self.cast.leaves[entry[0]].fail.remote(entry[1])) for entry in self.entries(5)]

        def judge() -> None:
            for entry, ref in sent:
                try:
                    self.value(ref, entry)
                except ValueError as error:
                    self.book.replied(*entry, *error.args[-2:])

        return judge

    def large(self) -> Judge:
        sent = []
        for entry in self.entries(2):
            payload = self.rng.randbytes(self.rng.choice([1000, 40_000, LARGE]))
            sent.append((entry, payload, self.cast.leaves[entry[0]].exchange.remote(entry[1], payload)))

        def judge() -> None:
            for entry, payload, ref in sent:
                reply = self.value(ref, entry)
                if reply is None:
                    continue
                self.book.replied(*entry, *reply[:2])
                if reply[2] != payload[::-1]:
                    self.book.problem("wrong reply", f"{entry} answered {len(reply[2])} other bytes")

        return judge

    def tasks(self) -> Judge:
        """Callers that may die: a task's calls, in turn and at once, and those of its tasks."""
        sent = []
        for _ in range(self.rng.choice([1, 2, 6])):
            entries, given = self.entries(self.rng.choice([2, 10, 40])), self.given()
            handles = self.handles(entries)
            half = len(entries) // 2
            how = self.rng.choice(["walk", "fan", "nest"])
            if how == "walk":
                sent.append((entries, given, len(entries), walk.remote(handles, given)))
            elif how == "fan":
                sent.append((entries, given, 0, fan.remote(handles, given)))
            else:
                sent.append((entries, given, half, nest.remote([handles[:half], handles[half:]], given)))

        def judge() -> None:
            for entries, given, walked, ref in sent:
                replies = self.value(ref, *entries)
                if replies is not None:
                    self.judge_task(entries, given, walked, replies)

        return judge

    def judge_task(self, entries: Entries, given: int, walked: int, replies: list[Any]) -> None:
        """The first `walked` entries were given the number of the one before, the others `given`."""
        if len(replies) != len(entries):
            self.book.problem("wrong reply", f"{len(replies)} replies for {len(entries)} calls")
        before = given
        for place, (entry, reply) in enumerate(zip(entries, replies, strict=False)):
            number = self.book.reply(*entry, before if place < walked else given, reply)
            before = number

    def moves(self) -> Judge:
        """Actors that call actors."""
        sent = []
        for _ in range(self.rng.choice([1, 5, 40])):
            teller_ = self.rng.choice([*self.cast.tellers, *self.cast.asyncs])
            a, b = self.entries(2)
            mine = (teller_, self.book.entry(teller_))
            actor, leaves = self.cast.all[teller_], self.cast.leaves
            sent.append((mine, a, b, actor.move.remote(mine[1], leaves[a[0]], a[1], leaves[b[0]], b[1])))

        def judge() -> None:
            for mine, a, b, ref in sent:
                reply = self.value(ref, mine, a, b)
                if reply is None:
                    continue
                self.book.replied(*mine, *reply[:2])
                self.book.reply(*b, self.book.reply(*a, mine[1], reply[2]), reply[3])
                key = f"{mine[0]} noise"
                self.last[mine[0]] = self.book.in_order(mine[0], self.last.get(mine[0], 0), reply[0])
                if reply[4] <= self.noises.get(key, -1.0):
                    self.book.problem(
                        "wrong reply", f"{mine}: the sum of what was recorded fell to {reply[4]}"
                    )
                self.noises[key] = reply[4]

        self.noises: dict[str, float] = getattr(self, "noises", {})
        return judge

    def spreads(self) -> Judge:
        """Methods that call several at once, or have a task call."""
        sent = []
        for _ in range(self.rng.choice([1, 5, 20])):
            name = self.rng.choice(list(self.cast.tellers))
            mine, actor = (name, self.book.entry(name)), self.cast.tellers[name]
            if self.rng.random() < 0.7:
                entries = self.entries(self.rng.randrange(2, 8))
                ref = actor.spread.remote(mine[1], self.handles(entries))
            else:
                entries = self.entries(1)
                ref = actor.by_task.remote(mine[1], self.cast.leaves[entries[0][0]], entries[0][1])
            sent.append((mine, entries, ref))

        def judge() -> None:
            for mine, entries, ref in sent:
                reply = self.value(ref, mine, *entries)
                if reply is not None:
                    self.book.replied(*mine, *reply[:2])
                    self.judge_task(entries, mine[1], 0, reply[2])

        return judge

    def keyed(self) -> Judge:
        """The same call made by this flow, by tasks and again later: one effect, one reply."""
        self.keys += 1
        key, given = f"{self.name}/{self.keys}", self.given()
        (entry,) = self.entries(1)
        actor = self.cast.leaves[entry[0]]
        refs = [by_key.remote(key, actor, entry[1], given) for _ in range(2)]
        refs.append(actor.apply.options(call_key=key).remote(entry[1], given))

        def judge() -> None:
            again = actor.apply.options(call_key=key).remote(entry[1], given)
            replies = [self.value(ref, entry) for ref in [*refs, again]]
            if replies[0] is not None:
                self.book.reply(*entry, given, replies[0])
            if any(reply != replies[0] for reply in replies):
                self.book.problem("doubled", f"calls of one key at {entry} answered {replies}")

        return judge

    def reading(self) -> Judge:
        """What is read has all that was answered before, and never less than what was read before."""
        name = self.leaf()
        begun_s, known = time.monotonic(), self.last.get(name, 0)
        ref = self.cast.leaves[name].size.remote()

        def judge() -> None:
            size = self.value(ref)
            if size < known:
                late = time.monotonic() - begun_s
                self.book.problem("stale", f"{name} had {known} calls and read {size}, {late:.2f} s later")

        return judge

    def passing(self) -> Judge:
        """An actor that lives for a few calls."""
        cls = self.rng.choice(self.cast_classes())
        actor = cls.remote()
        refs = [actor.apply.remote(index) for index in range(20)]

        def judge() -> None:
            numbers = [self.value(ref)[:2] for ref in refs]
            last, applied = self.value(actor.audit.remote())
            if numbers != [(n, 1) for n in range(1, 21)] or last != 20 or applied[:20] != b"\1" * 20:
                self.book.problem("doubled", f"a new actor numbered 20 calls {numbers}, and has {last}")

        return judge

    def cast_classes(self) -> list[Any]:
        return self.passing_classes

    passing_classes: list[Any] = []


MAKERS: list[Callable[[Submitter], Judge]] = [
    Submitter.direct,
    Submitter.single,
    Submitter.chain,
    Submitter.failing,
    Submitter.large,
    Submitter.tasks,
    Submitter.moves,
    Submitter.spreads,
    Submitter.keyed,
    Submitter.reading,
    Submitter.passing,
]
WEIGHTS = [30, 8, 6, 3, 3, 20, 12, 8, 5, 8, 1]


def in_threads(submitters: list[Submitter], goes_on: Callable[[], bool]) -> None:
    """The first one in this thread, which is the driver's own flow; the others beside it."""
    threads = [threading.Thread(target=one.run, args=(goes_on,), daemon=True) for one in submitters[1:]]
    for thread in threads:
        thread.start()
    submitters[0].run(goes_on)
    for thread in threads:
        thread.join()
    for one in submitters:
        if one.error:
            raise one.error
