"""What actors with checkpoints raise on Ray arrives as from any actor; what cannot be is refused by name."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import ftray
from ftray import checkpoint, exceptions
from ftray.checkpoint.errors import CheckpointOptionError, NoSessionError
from tests.helpers.counts import count_class
from tests.helpers.processes import wait_ended

pytestmark = pytest.mark.usefixtures("cluster")
EXACTLY_ONCE = [False, True]


class Two(Exception):
    """Does not unpickle by itself."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(f"{what} ({code})")
        self.code = code


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def make(store: str, exactly_once: bool, **options: Any) -> Any:
    class Shop(ftray.Checkpointable, store=store, exactly_once=exactly_once, **options):  # type: ignore[misc, name-defined]
        def __init__(self, fail: bool = False) -> None:
            self.tries = 0
            if fail:
                raise Two(7, "closed")

        def sell(self) -> None:
            raise Two(404, "no such thing")

        def serialize_order(self) -> None:
            raise TypeError("order 7 has no price")

        def in_the_end(self) -> int:
            self.tries += 1
            if self.tries < 3:
                raise ValueError(f"try {self.tries}")
            return self.tries

        def call_id(self) -> str:
            return ftray.get_runtime_context().get_call_id()

    return ftray.remote(Shop)


@pytest.mark.short
@pytest.mark.parametrize("exactly_once", EXACTLY_ONCE)
def test_exceptions_are_of_the_users_class(store: str, exactly_once: bool) -> None:
    shop = make(store, exactly_once).remote()
    with pytest.raises(Two, match="no such thing") as caught:
        ftray.get(shop.sell.remote())
    assert isinstance(caught.value, exceptions.RayTaskError) and caught.value.code == 404
    with pytest.raises(TypeError, match="order 7 has no price") as other:
        ftray.get(shop.serialize_order.remote())
    assert isinstance(other.value, exceptions.RayTaskError)


@pytest.mark.short
@pytest.mark.parametrize("mode", [None, *EXACTLY_ONCE])
def test_a_repr_that_fails_hides_no_exception(store: str, mode: bool | None) -> None:
    class Upset:
        def __init__(self, name: str) -> None:
            if not name:
                raise Two(1, "no name")
            self.name = name

        def __repr__(self) -> str:
            return self.name

        def upset(self, cls: Any) -> None:
            self.__dict__.pop("name", None)
            raise cls(2, "the reason")

        def pid(self) -> int:
            return os.getpid()

    if mode is None:
        remote = ftray.remote(Upset)
    else:
        base = type("Base", (ftray.Checkpointable,), {}, store=store, exactly_once=mode)
        remote = ftray.remote(type("Upset", (Upset, base), {}))
    actor = remote.remote("calm")
    pid = ftray.get(actor.pid.remote())
    for cls in (Two, OSError):
        with pytest.raises(cls, match="the reason"):
            ftray.get(actor.upset.remote(cls))
    assert ftray.get(actor.pid.remote()) == pid
    with pytest.raises(exceptions.ActorDiedError) as caught:
        ftray.get(remote.remote("").pid.remote())
    assert isinstance(caught.value.__cause__, Two)


@pytest.mark.parametrize("exactly_once", EXACTLY_ONCE)
def test_who_could_not_be_made_says_why(store: str, exactly_once: bool) -> None:
    shop = make(store, exactly_once).options(max_restarts=0).remote(fail=True)
    with pytest.raises(exceptions.ActorDiedError) as caught:
        ftray.get(shop.call_id.remote())
    assert isinstance(caught.value.__cause__, Two) and caught.value.__cause__.code == 7
    lost = make(store, exactly_once, restore="require").options(max_restarts=0).remote()
    with pytest.raises(exceptions.ActorDiedError) as caught:
        ftray.get(lost.call_id.remote())
    assert isinstance(caught.value.__cause__, checkpoint.CheckpointNotFoundError)


def test_retries_for_an_exception_of_a_class(store: str) -> None:
    shop = make(store, False).options(max_task_retries=5).remote()
    retried = shop.in_the_end.options(retry_exceptions=[ValueError])
    assert ftray.get(retried.remote()) == 3


def test_calls_know_who_they_are(store: str) -> None:
    shop = make(store, True).remote()
    first, second = ftray.get([shop.call_id.remote(), shop.call_id.remote()])
    assert len(first) == len(second) == 32 and first != second
    assert ftray.get(shop.call_id.options(call_key="k").remote()) == ftray.get(
        shop.call_id.options(call_key="k").remote()
    )


@pytest.mark.short
def test_calls_keep_their_order_whatever_max_concurrency_says(store: str) -> None:
    class Notes(ftray.Checkpointable, store=store, exactly_once=True):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.seen: list[int] = []

        def note(self, i: int) -> list[int]:
            self.seen.append(i)
            return self.seen

    class Async(ftray.Checkpointable, store=store, exactly_once=True):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.seen: list[int] = []

        async def note(self, i: int) -> list[int]:
            self.seen.append(i)
            return self.seen

    for cls, at_once in ((Notes, 1), (Async, 3)):
        actor = ftray.remote(cls).options(max_concurrency=at_once).remote()
        refs = [actor.note.remote(i) for i in range(40)]
        assert ftray.get(refs[-1], timeout=30) == list(range(40))
    with pytest.raises(CheckpointOptionError, match="max_concurrency=4"):
        ftray.remote(Notes).options(max_concurrency=4).remote()


def test_reads_of_an_async_actor_are_bounded(store: str) -> None:
    class Reads(ftray.Checkpointable, store=store, exactly_once=True):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.inside = self.most = 0

        @checkpoint.readonly
        async def look(self) -> int:
            import asyncio

            self.inside += 1
            self.most = max(self.most, self.inside)
            for _ in range(20):
                await asyncio.sleep(0)
            self.inside -= 1
            return self.most

    most = []
    for options in ({"max_concurrency": 2}, {}):
        actor = ftray.remote(Reads).options(**options).remote()
        most.append(max(ftray.get([actor.look.remote() for _ in range(10)])))
    assert most[0] <= 2 < most[1]


def test_groups_are_refused_where_they_are_made(store: str) -> None:
    class Grouped(ftray.Checkpointable, store=store, exactly_once=True):  # type: ignore[misc, name-defined]
        @ftray.method(concurrency_group="io")
        def load(self) -> None: ...

    with pytest.raises(CheckpointOptionError, match="load of Grouped are in concurrency groups"):
        ftray.remote(concurrency_groups={"io": 2})(Grouped).remote()
    with pytest.raises(CheckpointOptionError, match="concurrency_groups"):
        make(store, True).options(concurrency_groups={"io": 2}).remote()


@pytest.mark.parametrize("exactly_once", EXACTLY_ONCE)
def test_hooks_are_not_called_by_handle(store: str, exactly_once: bool) -> None:
    shop = make(store, exactly_once).remote()
    for call in (lambda: shop.load_checkpoint.remote({"tries": 5}), lambda: shop.save_checkpoint.remote()):
        with pytest.raises(NoSessionError, match="cannot be called by handle on Ray"):
            ftray.get(call())


@pytest.mark.parametrize("exactly_once", EXACTLY_ONCE)
def test_a_restart_that_finds_nothing_is_no_beginning(store: str, exactly_once: bool) -> None:
    cls = count_class(store, exactly_once=exactly_once)
    options = {"max_restarts": -1, "max_task_retries": -1, "name": f"count-{exactly_once}"}
    actor = ftray.remote(cls).options(**options).remote()
    assert ftray.get([actor.add.remote() for _ in range(3)])[-1] == 3
    ftray.get(actor.checkpoint.remote())
    pid = ftray.get(actor.pid.remote())
    os.rename(store, f"{store}-elsewhere")
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])
    with pytest.raises(exceptions.ActorDiedError, match="has served before") as caught:
        ftray.get(actor.add.remote())
    assert isinstance(caught.value.__cause__, checkpoint.CheckpointNotFoundError)
