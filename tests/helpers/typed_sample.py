# ruff: noqa: F821, B018
"""What type checkers make of the public API; read by tests/unit/test_typing.py, never run.

A comment ``# type: T`` says what ``reveal_type`` of the line shows, ``# error: code`` that it is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import ftray
from ftray.actor import ActorHandle, typed


@ftray.remote
def scale(x: int, by: float = 2.0) -> float:
    return x * by


@ftray.remote(num_cpus=2, max_retries=0)
def name(x: float, *, upper: bool) -> str:
    return str(x).upper() if upper else str(x)


@ftray.remote(num_returns=2)
def pair(x: int) -> tuple[int, str]:
    return x, str(x)


def tasks() -> None:
    reveal_type(scale)  # type: RemoteFunction[[x: int, by: float =], float]
    reveal_type(scale.remote(1))  # type: ObjectRef[float]
    reveal_type(scale.remote(1, by=2.5))  # type: ObjectRef[float]
    reveal_type(scale.options(num_cpus=2).remote(1))  # type: ObjectRef[float]
    scale.remote("1")  # error: call-overload
    scale.remote()  # error: call-overload
    scale.remote(1, 2.0, 3)  # error: call-overload
    scale.remote(1, to=2)  # error: call-overload
    name.remote(1.0)  # error: call-overload
    reveal_type(name.remote(1.0, upper=True))  # type: ObjectRef[str]


def refs_as_arguments() -> None:
    ref = ftray.put(1)
    reveal_type(ref)  # type: ObjectRef[int]
    reveal_type(scale.remote(ref))  # type: ObjectRef[float]
    reveal_type(scale.remote(1, scale.remote(2)))  # type: ObjectRef[float]
    reveal_type(name.remote(scale.remote(ref), upper=False))  # type: ObjectRef[str]


def objects(refs: Sequence[ftray.ObjectRef[str]]) -> None:
    reveal_type(ftray.get(scale.remote(1)))  # type: float
    reveal_type(ftray.get([scale.remote(1)]))  # type: list[float]
    reveal_type(ftray.get(refs, timeout=1))  # type: list[str]
    reveal_type(ftray.wait([scale.remote(1)])[0])  # type: list[ObjectRef[float]]
    ftray.get(5)  # error: call-overload
    first, _second = pair.remote(1)
    reveal_type(first)  # type: Any


class CounterActor:
    def __init__(self, n: int) -> None:
        self.n = n

    @ftray.method
    def incr(self, by: int) -> int:
        self.n += by
        return self.n

    @ftray.method(max_task_retries=2)
    async def label(self, text: str = "") -> str:
        reveal_type(self.incr(1))  # type: int
        return f"{text}{self.n}"

    def plain(self) -> int:
        return self.n

    @ftray.method(num_returns=2)
    def both(self) -> tuple[int, int]:
        return self.n, -self.n


Counter = ftray.remote(CounterActor)
Detached = ftray.remote(lifetime="detached", name="counter")(CounterActor)


def actors() -> None:
    reveal_type(Counter)  # type: ActorClass[CounterActor]
    reveal_type(Detached)  # type: ActorClass[CounterActor]
    counter = Counter.options(num_cpus=1).remote(1)
    reveal_type(counter)  # type: ActorHandle[CounterActor]
    reveal_type(counter.plain.remote())  # type: Any
    view = typed(counter)
    reveal_type(view.incr.remote(2))  # type: ObjectRef[int]
    reveal_type(view.label.remote(text="x"))  # type: ObjectRef[str]
    reveal_type(view.incr.remote(view.incr.remote(1)))  # type: ObjectRef[int]
    reveal_type(ftray.get(view.label.remote()))  # type: str
    reveal_type(view.both.remote())  # type: Any
    view.incr.remote("2")  # error: call-overload
    view.incr.remote()  # error: call-overload
    view.nosuch  # error: attr-defined


def handles(given: ActorHandle[CounterActor], bare: ftray.ActorHandle) -> int:
    reveal_type(ftray.get_actor("counter"))  # type: ActorHandle[Any]
    ftray.kill(bare)
    return ftray.get(typed(given).incr.remote(1))
