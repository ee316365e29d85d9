"""Exactly-once actors on Ray: killed, cancelled, asked again by whoever is executed again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from ftray import checkpoint
from ftray.checkpoint import CheckpointOptionError
from ftray.exceptions import NotSupportedError
from ftray.ray import Checkpointable, call_key, readonly, status
from tests.ray.checkpoint_support import Once, cluster, eventually, get, is_gone, kill, ray, ray_runs, store

__all__ = ["cluster", "ray_runs", "store"]


@pytest.mark.short
def test_kills_lose_nothing_double_nothing_and_keep_the_order(store: str) -> None:
    actor = ray.remote(Once).options(name="kills").remote()
    draw = random.Random(1)
    made = 0
    for _ in range(3):
        pid = get(actor.pid.remote())
        refs = [actor.incr.remote() for _ in range(draw.randrange(50, 150))]
        ray.wait(refs, num_returns=draw.randrange(1, len(refs)), timeout=60)
        kill(pid)
        refs += [actor.incr.remote() for _ in range(50)]
        assert get(refs) == list(range(made + 1, made + len(refs) + 1))
        made += len(refs)
    found = status(actor)
    assert found["mode"] == "exactly_once"
    assert found["incarnation"] == 4


def test_a_reply_and_an_exception_are_recorded(store: str, tmp_path: Path) -> None:
    actor = ray.remote(Once).remote()
    assert get(actor.die_once.remote(str(tmp_path / "mark"))) == 1
    with pytest.raises(ValueError, match="as asked at 2"):
        get(actor.fail.remote())
    kill(get(actor.pid.remote()))
    assert get(actor.value.remote()) == 2


@pytest.mark.short
def test_a_task_that_is_run_again_repeats_nothing(store: str, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")

    @ray.remote(max_retries=3)
    def caller(actor: Any) -> list[int]:
        got = ray.get([actor.incr.remote(k) for k in (1, 2, 3)])
        if not os.path.exists(mark):
            with open(mark, "w"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        return list(got)

    actor = ray.remote(Once).remote()
    assert get(caller.remote(actor)) == [1, 3, 6]
    assert get(actor.value.remote()) == 6


def test_handles_that_ray_gives_out_name_their_calls_too(store: str, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")

    @ray.remote(max_retries=3)
    def caller() -> list[int]:
        actor = ray.get_actor("found", namespace="tests")
        got = [ray.get(actor.incr.remote()) for _ in range(3)]
        if not os.path.exists(mark):
            with open(mark, "w"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        return got

    actor = ray.remote(Once).options(name="found").remote()
    assert get(caller.remote()) == [1, 2, 3]
    assert get(actor.value.remote()) == 3


def test_r42_methods_that_wait_for_each_other_by_ray_s_own_get(store: str, tmp_path: Path) -> None:
    class Side(Checkpointable, exactly_once=True):
        def __init__(self) -> None:
            self.n = 0

        def add(self, k: int) -> int:
            self.n += k
            return self.n

        def cross(self, other: Any, here: str, there: str) -> int:
            Path(here).touch()
            eventually(Path(there).exists)
            self.n += 1
            return int(self.record(lambda: ray.get(other.add.remote(10))))

        @readonly
        def value(self) -> int:
            return self.n

        @readonly
        def expires(self, gate: str) -> str:
            """A time-out of the user's own is none of ours."""
            try:
                ray.get(waits_for.remote(gate), timeout=1)
            except ray.exceptions.GetTimeoutError as error:
                return type(error).__name__
            return ""

    @ray.remote
    def waits_for(path: str) -> None:
        eventually(Path(path).exists)

    sides = [
        ray.remote(Side).options(name=name, runtime_env={"env_vars": {"FTRAY_LONG_WAIT_S": "0.3"}}).remote()
        for name in ("left", "right")
    ]
    marks = [str(tmp_path / name) for name in ("left", "right")]
    refs = [sides[0].cross.remote(sides[1], *marks), sides[1].cross.remote(sides[0], *reversed(marks))]
    errors = []
    for ref in refs:
        try:
            get(ref)
        except checkpoint.CallCycleError as error:
            errors.append(str(error))
    assert len(errors) == 1
    assert "Side 'left'.cross" in errors[0] and "Side 'right'.cross" in errors[0]
    assert get([side.value.remote() for side in sides]) == [11, 11]
    assert get(sides[0].expires.remote(str(tmp_path / "gate"))) == "GetTimeoutError"
    (tmp_path / "gate").touch()


def test_a_call_without_a_name_is_known_by_ray_s_task_id(store: str, tmp_path: Path) -> None:
    actor = ray.remote(Once).remote()
    plain = {"num_returns": 1, "max_task_retries": -1}  # past what names calls, as through Ray's client
    mark = str(tmp_path / "mark")
    assert get(actor._actor_method_call("die_once", [mark], {}, **plain)) == 1
    refs = [actor._actor_method_call("incr", [], {}, **plain) for _ in range(50)]
    kill(get(actor.pid.remote()))
    assert sorted(get(refs)) == list(range(2, 52))


def test_calls_by_key(store: str) -> None:
    actor = ray.remote(Once).remote()

    @ray.remote
    def pay(actor: Any, k: int) -> int:
        with call_key("order-7"):
            return int(ray.get(actor.incr.remote(k)))

    assert get([pay.remote(actor, 5) for _ in range(2)]) == [5, 5]
    with pytest.raises(checkpoint.CallMismatchError, match="other arguments"):
        get(pay.remote(actor, 6))
    with pytest.raises(CheckpointOptionError), call_key(""):
        pass


@pytest.mark.short
def test_a_method_that_calls_another_actor_goes_on_where_it_was(store: str, tmp_path: Path) -> None:
    one, other = ray.remote(Once).remote(), ray.remote(Once).remote()
    assert get(one.add_to.remote(other, str(tmp_path / "mark"))) == 10 + 11
    assert get(other.value.remote()) == 11
    assert get(one.add_to.remote(other)) == 21 + 21 + 22
    eventually(lambda: status(other)["callers"] <= 1)  # but for one of the dead


def test_a_call_out_of_a_method_that_nobody_could_repeat_is_refused(store: str) -> None:
    one, other = ray.remote(Once).remote(), ray.remote(Once).remote()
    with pytest.raises(checkpoint.CheckpointError, match=r"self\.record"):
        get(one.add_badly.remote(other))
    assert get(other.value.remote()) == 0


def test_a_call_that_comes_back_to_its_actor_is_refused(store: str) -> None:
    actor = ray.remote(Once).remote()
    with pytest.raises(checkpoint.CallCycleError):
        get(actor.add_to.remote(actor))


def test_a_call_that_never_comes_stops_nobody(store: str, tmp_path: Path) -> None:
    @ray.remote(max_retries=0)
    def fails() -> int:
        raise KeyError("no argument")

    actor = ray.remote(Once).remote()
    refs = [actor.incr.remote(), actor.incr.remote(fails.remote()), actor.incr.remote()]
    assert get([refs[0], refs[2]], timeout_s=30) == [1, 2]
    with pytest.raises(KeyError):
        get(refs[1])
    gate = str(tmp_path / "gate")
    first, cancelled, last = actor.wait_for.remote(gate), actor.incr.remote(), actor.incr.remote()
    ray.cancel(cancelled)
    with open(gate, "w"):
        pass
    assert get(first) == 3
    assert get(last, timeout_s=30) in (4, 5)


def test_arguments_that_come_late_keep_the_order(store: str, tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")

    @ray.remote
    def late() -> int:
        while not os.path.exists(gate):
            pass
        return 10

    actor = ray.remote(Once).remote()
    first, second = actor.incr.remote(late.remote()), actor.incr.remote()
    with open(gate, "w"):
        pass
    assert get([first, second]) == [10, 11]


def test_exit_and_again(store: str) -> None:
    actor_class = ray.remote(Once)
    actor = actor_class.options(name="exits").remote()
    assert get(actor.incr.remote()) == 1
    with pytest.raises(ray.exceptions.ActorDiedError):
        get(actor.bye.remote())
    del actor
    eventually(lambda: is_gone("exits"))
    assert get(actor_class.options(name="exits").remote().value.remote()) == 1001


class Ends(Once):
    """Dies in its last save, once."""

    mark: str = ""

    def ends_at(self, mark: str, bound: bool, by_name: Any = ray.actor.exit_actor) -> None:
        self.n, self.mark = self.n + 1, mark
        if bound:
            by_name()
        ray.actor.exit_actor()

    def __getstate__(self) -> dict[str, Any]:
        if self.mark and not os.path.exists(self.mark):
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.__dict__


@pytest.mark.parametrize("bound", [False, True])
def test_an_actor_that_was_killed_before_its_last_save_can_be_made_again(
    store: str, tmp_path: Path, bound: bool
) -> None:
    """The recorded call of exit_actor() ends no process that runs it again."""
    name = f"ends {bound}"
    actor = ray.remote(Ends).options(name=name).remote()
    with pytest.raises(ray.exceptions.ActorDiedError):
        get(actor.ends_at.remote(str(tmp_path / "mark"), bound))
    eventually((tmp_path / "mark").exists)
    del actor
    eventually(lambda: is_gone(name))
    again = ray.remote(Ends).options(name=name).remote()
    assert get(again.value.remote()) == 1
    kill(get(again.pid.remote()))
    assert get(again.incr.remote()) == 2


def test_a_ref_is_no_reply(store: str) -> None:
    class Gives(Once):
        def gives(self, boxed: bool) -> Any:
            self.n += 1
            return [ray.put(1)] if boxed else ray.put(1)

    actor = ray.remote(Gives).remote()
    for boxed in (False, True):
        with pytest.raises(TypeError, match="a ref does not outlive its owner"):
            get(actor.gives.remote(boxed))
    kill(get(actor.pid.remote()))
    assert get(actor.value.remote()) == 2


def test_a_fenced_actor_ends_and_stays_so(store: str) -> None:
    class Shared(Once, checkpoint_key="shared", code_version=1):
        pass

    class Taking(Shared, takeover=True):
        pass

    first = ray.remote(Shared).remote()
    assert get(first.incr.remote()) == 1
    refused = ray.remote(Shared).remote()
    with pytest.raises(ray.exceptions.RayActorError, match="is held by"):
        get(refused.value.remote())
    second = ray.remote(Taking).remote()
    assert get(second.value.remote()) == 1
    with pytest.raises(ray.exceptions.RayActorError):
        get(first.incr.remote())
    assert get(second.incr.remote()) == 2


def test_what_no_journal_repeats_is_kept_by_a_snapshot(store: str) -> None:
    actor = ray.remote(Once).remote()
    rolled = get(actor.roll.remote())
    kill(get(actor.pid.remote()))
    assert get(actor.incr.remote()) == rolled + 1


def test_answers_make_room_among_those_kept(store: str) -> None:
    class Tight(Once, reply_bound_calls=8):
        pass

    @ray.remote
    def caller(actor: Any) -> int:
        refs = [actor.incr.remote() for _ in range(40)]
        return len(ray.get(refs))

    actor = ray.remote(Tight).remote()
    assert get([actor.incr.remote() for _ in range(40)])[-1] == 40
    assert get(caller.remote(actor)) == 40
    assert get(actor.value.remote()) == 80


class Async(Checkpointable, exactly_once=True):
    def __init__(self) -> None:
        self.n = 0
        self.lock = asyncio.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"n": self.n}

    async def incr(self, k: int = 1) -> int:
        async with self.lock:
            before = self.n
            await asyncio.sleep(0)
            self.n = before + k
            return self.n

    @readonly
    async def pid(self) -> int:
        return os.getpid()


def test_async_methods_exclude_each_other(store: str) -> None:
    actor = ray.remote(Async).remote()
    assert get([actor.incr.remote() for _ in range(50)]) == list(range(1, 51))
    kill(get(actor.pid.remote()))
    assert get([actor.incr.remote() for _ in range(50)]) == list(range(51, 101))


@pytest.mark.parametrize("url", ["kv://once", "actor://once", "actor://spilled?spill={}"])
def test_stores_of_the_cluster(store: str, tmp_path: Path, url: str) -> None:
    place = url.format(tmp_path / "spill")

    class Kept(Once, store=place, every=5):
        pass

    if place == "actor://once":
        with pytest.raises(ray.exceptions.RayActorError, match="survives only"):
            get(ray.remote(Kept).remote().incr.remote())
        return
    actor = ray.remote(Kept).remote()
    assert get([actor.incr.remote() for _ in range(20)])[-1] == 20
    kill(get(actor.pid.remote()))
    assert get([actor.incr.remote() for _ in range(3)]) == [21, 22, 23]


def test_what_is_not_supported_says_so(store: str) -> None:
    class Streams(Once):
        @readonly
        def items(self) -> Any:
            yield 1

    actor = ray.remote(Streams).remote()
    with pytest.raises(NotSupportedError, match=r"Streams\.items is a generator, and streaming"):
        actor.items.remote()
    for options in ({"num_returns": 0}, {"retry_exceptions": True}):
        with pytest.raises(CheckpointOptionError, match=next(iter(options))):
            actor.incr.options(**options).remote()


def test_a_class_that_differs_from_its_journal_is_refused_after_a_crash(store: str) -> None:
    class Changed(Once, formerly="Once"):
        def scaled(self, k: int) -> int:
            return 2 * k

    actor = ray.remote(Once).options(name="code").remote()
    assert get(actor.incr.remote()) == 1
    ray.kill(actor)
    eventually(lambda: is_gone("code"))
    changed = ray.remote(Changed).options(name="code").remote()
    with pytest.raises(ray.exceptions.RayActorError, match="other code"):
        get(changed.value.remote())
