"""Groups: which calls of drivers and tasks a cut has, what becomes of those under way, members that leave."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ftray as ray
from ftray import checkpoint
from ftray.checkpoint import CheckpointKeyInUseError, CheckpointMismatchError, CheckpointTimeoutError
from ftray.checkpoint.taking import Taking
from ftray.exceptions import RayActorError
from ftray.experimental import internal_kv
from tests.helpers.introspection import counters, node_pid
from tests.helpers.processes import wait_ended
from tests.helpers.sync import Gate, Mailbox, Tally, eventually

pytestmark = pytest.mark.usefixtures("runtime")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@ray.remote
def mark_from_a_task(actor: Any, label: str, mailbox: Any, door: Any) -> None:
    mailbox.post(os.getpid())
    door.wait()
    ray.get(actor.mark.remote(label))


def make(store: Any, names: str, prefix: str) -> list[Any]:
    """Members that note what is called on them."""

    class Member(ray.Checkpointable, store=store):
        def __init__(self) -> None:
            self.labels: list[str] = []

        def mark(self, label: str, mailbox: Any = None, door: Any = None) -> None:
            if mailbox is not None:
                mailbox.post(label)
                door.wait()
            self.labels.append(label)

        def wait_for_a_task(self, *args: Any) -> None:
            ray.get(mark_from_a_task.remote(*args))

        def start_a_task(self, *args: Any) -> None:
            mark_from_a_task.remote(*args)

        @checkpoint.readonly
        def look(self) -> tuple[list[str], int]:
            return self.labels, os.getpid()

    remote = ray.remote(max_restarts=-1, max_task_retries=-1)(Member)
    return [remote.options(name=f"{prefix}-{name}").remote() for name in names]


def labels(*members: Any) -> list[list[str]]:
    return [seen for seen, _ in ray.get([member.look.remote() for member in members])]


def kill(member: Any) -> None:
    pid = ray.get(member.look.remote())[1]
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])


def taken_back(group: checkpoint.Group, generation: int) -> None:
    eventually(lambda: group.generation >= generation, f"generation {generation}")
    ray.get([member.__ray_ready__.remote() for member in group.handles])


class Saver(threading.Thread):
    """Takes a cut beside the test; `before` comes when everybody was free, and nobody is held yet."""

    def __init__(
        self, monkeypatch: Any, group: checkpoint.Group, before: Callable[[], Any], timeout_s: float = 60.0
    ) -> None:
        super().__init__()
        self.group, self.timeout_s, run = group, timeout_s, Taking.run
        self.cut, self.error = "", None
        self.began: Any = None

        def hold_back(taking: Taking, note: object) -> str:
            self.began = before()
            return run(taking, note)

        monkeypatch.setattr(Taking, "run", hold_back)
        self.start()

    def run(self) -> None:
        try:
            self.cut = self.group.save(timeout_s=self.timeout_s)
        except Exception as error:
            self.error = error

    def wait_until_held(self, member: Any) -> None:
        """Or until it was too late."""
        held = lambda: not ray.wait([member.look.remote()], timeout=0.1)[0]  # noqa: E731
        eventually(lambda: held() or not self.is_alive(), "the member is on hold")


def test_what_a_cut_has_of_a_drivers_calls(
    store: Path, mailbox: Mailbox, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = make(store, "ab", "driver")
    group = checkpoint.group([a, b], name="driver")

    def begin() -> Any:
        began = a.mark.remote("had begun", mailbox, gate)
        assert mailbox.take() == "had begun"
        return began

    saver = Saver(monkeypatch, group, begin)
    saver.wait_until_held(b)
    later = b.mark.remote("came while it was taken")
    assert not ray.wait([later], timeout=0.05)[0]
    gate.open()
    saver.join()
    assert saver.error is None
    ray.get([saver.began, later])
    assert labels(a, b) == [["had begun"], ["came while it was taken"]]
    assert group.restore(saver.cut) == saver.cut
    assert labels(a, b) == [["had begun"], []]
    ray.kill(a)


def test_calls_under_way_when_the_group_goes_back(store: Path, mailbox: Mailbox, gate: Gate) -> None:
    a, b, c = make(store, "abc", "back")
    group = checkpoint.group([a, b, c], name="back")
    ray.get(a.mark.remote("answered"))
    unanswered = a.mark.remote("unanswered", mailbox, gate)
    mailbox.take()
    kill(b)
    assert mailbox.take() == "unanswered", "it is made again, of the process that has gone back"
    gate.open()
    ray.get(unanswered)
    assert labels(a, b, c) == [["unanswered"], [], []] and group.generation == 2


def test_a_task_is_outside_also_if_a_member_waits_for_it(
    store: Path, mailbox: Mailbox, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = make(store, "ab", "task")
    group = checkpoint.group([a, b], name="task")

    def begin() -> Any:
        waits = a.wait_for_a_task.remote(b, "by a task", mailbox, gate)
        mailbox.take()
        return waits

    saver = Saver(monkeypatch, group, begin, timeout_s=2.0)
    saver.wait_until_held(b)
    gate.open()  # its call waits until the cut is taken, which waits for it
    saver.join()
    assert isinstance(saver.error, CheckpointTimeoutError) and "a task is outside" in str(saver.error)
    ray.get(saver.began)
    assert labels(a, b) == [[], ["by a task"]], "nobody is held any more"
    monkeypatch.undo()
    assert group.save()


def test_tasks_that_a_member_has_started_end_with_its_process(
    store: Path, mailbox: Mailbox, gate: Gate
) -> None:
    a, b = make(store, "ab", "orphan")
    group = checkpoint.group([a, b], name="orphan")
    ray.get(a.start_a_task.remote(b, "of a past that was given up", mailbox, gate))
    pid = mailbox.take()
    kill(a)
    taken_back(group, 2)
    wait_ended([pid])
    gate.open()
    assert labels(a, b) == [[], []]


@ray.remote
def call_and_stay(actor: Any, label: str, mailbox: Any) -> None:
    call_without_waiting(actor, label)
    mailbox.post("sent")
    signal.pause()


def call_without_waiting(actor: Any, label: str) -> None:
    ref = actor.mark.remote(label)
    eventually(lambda: counters()["inflight"], "it has left")
    del ref


@pytest.mark.parametrize("sender", ["member", "task"])
def test_what_was_sent_to_a_member_that_opens_and_takes_its_sender_back(
    store: Path, mailbox: Mailbox, gate: Gate, tally: Tally, sender: str
) -> None:
    """The node is silent meanwhile: that the sender is dead it tells only when the member could serve."""

    class Member(ray.Checkpointable, store=store):
        def __init__(self, tally: Any, mailbox: Any, gate: Any) -> None:
            self.labels: list[str] = []
            if tally is not None and tally.bump():
                mailbox.post("opens")
                gate.wait()

        def save_checkpoint(self) -> Any:
            return self.labels

        def load_checkpoint(self, state: Any) -> None:
            self.labels = state

        def mark(self, label: str) -> None:
            self.labels.append(label)

        def send(self, other: Any, by: str, mailbox: Any) -> None:
            if by == "task":
                call_and_stay.options(num_cpus=0).remote(other, "sent in the past that is given up", mailbox)
                return
            call_without_waiting(other, "sent in the past that is given up")
            mailbox.post("sent")

        @checkpoint.readonly
        def look(self) -> tuple[list[str], int]:
            return self.labels, os.getpid()

    remote = ray.remote(max_restarts=-1, max_task_retries=-1)(Member)
    a = remote.options(name=f"opens-{sender}-a").remote(None, None, None)
    b = remote.options(name=f"opens-{sender}-b").remote(tally, mailbox, gate)
    group = checkpoint.group([a, b], name=f"opens-{sender}")
    pid = ray.get(a.look.remote())[1]
    kill(b)
    assert mailbox.take() == "opens"
    ray.get(a.send.remote(b, sender, mailbox))
    assert mailbox.take() == "sent"
    seen = b.look.remote()
    node = node_pid()
    os.kill(node, signal.SIGSTOP)
    try:
        gate.open()
        wait_ended([pid])
        assert not ray.wait([seen], timeout=0.5)[0], "what a dead process wants may still be in its queue"
    finally:
        os.kill(node, signal.SIGCONT)
    assert ray.get(seen)[0] == []
    assert labels(a, b) == [[], []] and group.generation == 2


def test_programs_that_make_a_group_at_the_same_time(store: Path) -> None:
    members, together, made = make(store, "ab", "same-time"), threading.Barrier(2), []

    def program() -> None:
        together.wait()
        made.append(checkpoint.group(members, name="same-time"))

    programs = [threading.Thread(target=program) for _ in range(2)]
    for one in programs:
        one.start()
    for one in programs:
        one.join()
    assert sorted(group.is_new for group in made) == [False, True]


def test_members_that_leave(store: Path) -> None:
    a, b, c = make(store, "abc", "leave")
    group = checkpoint.group([a, b, c], name="leave")
    ray.get([member.mark.remote("since") for member in (a, b, c)])
    group.remove(ray.get_actor("leave-c"))
    kill(c)
    assert labels(a, b, c) == [["since"]] * 3, "it is alone, and has what it had when it left"
    kill(a)
    taken_back(group, 3)
    assert labels(a, b, c) == [[], [], ["since"]]
    ray.get(b.mark.remote("later"))
    group.disband()
    kill(b)
    assert labels(a, b, c) == [[], ["later"], ["since"]]
    assert checkpoint.group([a, c], name="leave").is_new


def test_a_member_that_is_dead_for_good(store: Path) -> None:
    a, b = make(store, "ab", "dead")
    group = checkpoint.group([a, b], name="dead")
    ray.get([member.mark.remote("since") for member in (a, b)])
    pid = ray.get(b.look.remote())[1]
    ray.kill(b)
    wait_ended([pid])
    with pytest.raises(RayActorError):
        group.save()
    with pytest.raises(CheckpointMismatchError, match="'/dead-b' missing"):
        checkpoint.group([a], name="dead")
    assert checkpoint.group([a], name="dead", gone=["/dead-b"]).save()
    assert labels(a) == [["since"]]


def test_taken_back_from_outside(store: Path) -> None:
    a, b = make(store, "ab", "outside")
    group = checkpoint.group([a, b], name="outside")
    cut = group.save()
    ray.get([member.mark.remote("since") for member in (a, b)])
    pids = [pid for _, pid in ray.get([a.look.remote(), b.look.remote()])]
    with pytest.raises(CheckpointKeyInUseError, match="/outside-a.*is held by a Member in process"):
        checkpoint.restore(store, "_group/outside", cut)
    assert labels(a, b) == [["since"], ["since"]]
    assert checkpoint.restore(store, "_group/outside", cut, takeover=True).snapshot == cut
    wait_ended(pids)
    assert labels(a, b) == [[], []]
    with pytest.raises(CheckpointKeyInUseError, match="is held by a Member"):
        checkpoint.delete("_group/outside", store=store)


def test_in_the_nodes_own_store() -> None:
    a, b = make("kv://groups", "ab", "kv")
    group = checkpoint.group([a, b], name="kv")
    ray.get([member.mark.remote("saved") for member in (a, b)])
    group.save()
    ray.get([member.mark.remote("lost") for member in (a, b)])
    kill(a)
    taken_back(group, 2)
    assert labels(a, b) == [["saved"], ["saved"]]
    group.disband()
    for member in (a, b):
        ray.kill(member)
    internal_kv.delete("", del_by_prefix=True, namespace="ftray-checkpoint/groups")
