"""Who calls on Ray (`ftray._ray.host_flow`), with a Ray that is made up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ftray._core.records import decode_head
from ftray._ray import host_flow
from ftray.checkpoint.errors import CallError

KEY = b"k" * 16


class Id:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def binary(self) -> bytes:
        return self.data

    def __hash__(self) -> int:
        return hash(self.data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Id) and other.data == self.data


class CoreWorker:
    def __init__(self) -> None:
        self.task, self.attempt, self.pending = b"t" * 24, 0, list[Id]()

    def get_current_task_id(self) -> Id:
        return Id(self.task)

    def get_current_task_attempt_number(self) -> int:
        return self.attempt

    def get_pending_children_task_ids(self, parent: Id) -> list[Id]:
        return self.pending


class Worker:
    def __init__(self, mode: int) -> None:
        self.mode, self.core_worker = mode, CoreWorker()
        self.current_cluster_and_job = (Id(b"cluster"), Id(b"job"))


@pytest.fixture(autouse=True)
def no_job_key() -> Iterator[None]:
    yield
    host_flow.set_job_key(None)


def heads(worker: Worker, number: int) -> list[Any]:
    flow = host_flow.flow(worker)
    return [decode_head(flow.head(KEY, flow.callee(KEY), 1, False)) for _ in range(number)]


def test_a_task_that_is_executed_again_makes_the_same_calls_in_a_newer_attempt() -> None:
    first, second = Worker(1), Worker(1)
    second.core_worker.attempt = 1
    before, again = heads(first, 3), heads(second, 3)
    assert [h.call_id for h in before] == [h.call_id for h in again]
    assert [h.n for h in before] == [1, 2, 3]
    assert (before[0].attempts, again[0].attempts) == ((0,), (1,))
    first.core_worker.task = b"u" * 24
    assert heads(first, 1)[0].call_id not in [h.call_id for h in before]


def test_a_driver_is_the_root_of_its_job() -> None:
    (head,) = heads(Worker(0), 1)
    assert head.parent == head.root and head.root_kind == host_flow.ROOT_DRIVER and head.attempts == ()
    host_flow.set_job_key("nightly-7")
    one, other = heads(Worker(0), 1)[0], heads(Worker(0), 1)[0]
    assert one.call_id == other.call_id != head.call_id and one.root_kind == host_flow.ROOT_JOB
    for wrong in ("", 7):
        with pytest.raises(ValueError, match="job key"):
            host_flow.set_job_key(wrong)  # type: ignore[arg-type]


def test_only_what_ray_does_not_wait_for_any_more_is_acknowledged() -> None:
    worker = Worker(1)
    flow = host_flow.flow(worker)
    callee = flow.callee(KEY)
    ids = [Id(bytes([i])) for i in range(4)]
    for task_id in ids:
        flow.head(KEY, callee, 1, False)
        callee.pending.append((callee.n, task_id, Id(b"parent")))
    worker.core_worker.pending = [ids[1], ids[3]]
    assert callee.look(worker.core_worker, 0.0) == 2  # of 1, 3 only 1 is below all that is open
    worker.core_worker.pending = [ids[3]]
    callee.look_s = 0.0
    assert callee.look(worker.core_worker) == 4
    worker.core_worker.pending = []
    callee.look_s = 0.0
    assert callee.look(worker.core_worker) == 5 and not callee.pending


def test_methods_of_exactly_once_actors_keep_and_hand_on() -> None:
    (head,) = heads(Worker(0), 1)
    raw = host_flow.flow(Worker(0)).head(KEY, host_flow.Callee(), 1, False)
    method = host_flow.of_method(raw, KEY, 0)
    assert method.keeps and method.chain == (KEY,) and method.root == head.root
    value, other = host_flow.of_value(method, 0), host_flow.of_value(method, 1)
    made = decode_head(value.head(b"o" * 16, value.callee(b"o" * 16), 9, False))
    assert made.acked == 0 and made.chain == (KEY,) and made.attempts == (0,)
    assert value.parent != other.parent != method.parent
    assert host_flow.of_value(method, 0).parent == value.parent  # a repeated method makes the same calls


def test_reads_leave_their_number_to_the_next_call() -> None:
    flow = host_flow.flow(Worker(1))
    callee = flow.callee(KEY)
    numbers = [decode_head(flow.head(KEY, callee, 1, reads)).n for reads in (True, False, True, False)]
    assert numbers == [1, 1, 2, 2]


def test_what_ftray_carries_does_not_depend_on_ray_s_ids() -> None:
    made = []
    for task in (b"x" * 24, b"y" * 24):
        worker = Worker(1)
        worker.core_worker.task = task
        with host_flow.carry(Worker(0), b"f" * 16) as data:
            pass
        with host_flow.entered(host_flow.carried(data, 2)):
            made.append(heads(worker, 1)[0])
    assert made[0].call_id == made[1].call_id and made[0].attempts == (2,)


def test_what_could_not_be_submitted_is_nobody() -> None:
    worker = Worker(1)
    with pytest.raises(ValueError), host_flow.carry(worker, b"f" * 16) as failed:
        raise ValueError
    with host_flow.carry(worker, b"f" * 16) as first, host_flow.carry(worker, b"f" * 16) as second:
        pass
    assert failed == first != second


def test_a_flow_that_was_forgotten_is_not_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_flow, "MOST_FLOWS", 2)
    monkeypatch.setattr(host_flow, "IDLE_S", 0.0)
    worker = Worker(1)
    for i in range(3):
        worker.core_worker.task = bytes([i]) * 24
        host_flow.flow(worker)
    worker.core_worker.task = bytes(24)
    with pytest.raises(CallError, match="call_key"):
        host_flow.flow(worker)
