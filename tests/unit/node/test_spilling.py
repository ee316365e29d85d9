"""What is spilled, and what becomes of files: examples, then a random walk against a ledger."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ftray._node import spilling as machine
from ftray._node.spilling import (
    Ask,
    Done,
    Held,
    LookAgain,
    MakeRoom,
    Offer,
    Read,
    Remove,
    Restored,
    Write,
    choose,
)

A, B = 1, 2


def offer(spill: int, size_bytes: int, born_ns: int = 0, client: int = A) -> Offer:
    return Offer(client, spill, 100 + spill, 0, size_bytes, born_ns or spill)


def started(*offers: Offer, need_bytes: int = 10) -> tuple[machine.Spilling, list[machine.Command]]:
    spilling = machine.Spilling()
    assert spilling.short(need_bytes, [A], 0.0) == [Ask(1, need_bytes)]
    return spilling, spilling.offered(A, 1, offers, Held(), 0.0)


def stored(size_bytes: int = 10) -> machine.Spilling:
    spilling, _ = started(offer(7, size_bytes))
    spilling.written(1, 0xABC, 0.0)
    spilling.settled(A, 7, True, 0.0)
    spilling.check()
    return spilling


class TestChoose:
    def test_the_oldest_go_first(self) -> None:
        offers = [offer(1, 5, born_ns=30), offer(2, 5, born_ns=10), offer(3, 5, born_ns=20)]
        assert [o.spill for o in choose(offers, 10)] == [2, 3]

    def test_small_ones_stay_when_a_large_one_does(self) -> None:
        offers = [offer(1, 1), offer(2, 2), offer(3, 50)]
        assert [o.spill for o in choose(offers, 40)] == [3]

    def test_all_go_when_that_is_not_enough(self) -> None:
        assert len(choose([offer(1, 1), offer(2, 2)], 40)) == 2

    @given(
        st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9)), max_size=30),
        st.integers(0, 300),
    )
    def test_it_is_enough_and_nothing_is_needless(self, sizes: list[tuple[int, int]], need: int) -> None:
        offers = [Offer(A, i, i, 0, size, born) for i, (size, born) in enumerate(sizes)]
        chosen = choose(offers, need)
        covered = sum(o.size_bytes for o in chosen)
        assert len({o.spill for o in chosen}) == len(chosen) and set(chosen) <= set(offers)
        assert covered >= min(need, sum(o.size_bytes for o in offers))
        if chosen and sum(o.size_bytes for o in offers) >= need:
            assert all(covered - o.size_bytes < need for o in chosen)
        assert chosen == choose(list(reversed(offers)), need)  # the order of answers decides nothing


class TestTurns:
    def test_writes_what_it_chose_and_asks_the_owner(self) -> None:
        spilling, commands = started(offer(7, 10))
        assert commands == [Write(1, 107, 0, 10)]
        assert spilling.written(1, 0xABC, 0.0) == [Done(A, 7, True)]
        assert spilling.settled(A, 7, True, 0.0) == []
        assert spilling.stored() == (1, 10)
        due_s = spilling.next_tick_s()
        assert due_s is not None and spilling.ticked(due_s) == [LookAgain()]
        assert not spilling.busy

    def test_one_operation_at_a_time(self) -> None:
        spilling, commands = started(offer(1, 5), offer(2, 5))
        assert commands == [Write(1, 101, 0, 5)]
        assert spilling.written(1, 0, 0.0) == [Done(A, 1, True), Write(2, 102, 0, 5)]

    def test_an_owner_that_says_no_costs_a_file(self) -> None:
        spilling, _ = started(offer(7, 10))
        spilling.written(1, 0, 0.0)
        assert spilling.settled(A, 7, False, 0.0) == [Remove(1)]
        due_s = spilling.next_tick_s()
        assert due_s is not None and spilling.ticked(due_s) == []  # nothing was freed

    def test_dropped_before_and_while_it_is_written(self) -> None:
        spilling, _ = started(offer(1, 5), offer(2, 5))
        assert spilling.settled(A, 2, False, 0.0) == []  # had not begun
        assert spilling.settled(A, 1, False, 0.0) == []  # is being written
        assert spilling.written(1, 0, 0.0) == [Remove(1)]
        spilling.check()

    def test_who_does_not_answer_is_waited_for_no_longer_than_that(self) -> None:
        spilling = machine.Spilling()
        spilling.short(10, [A, B], 0.0)
        assert spilling.offered(A, 1, [offer(1, 10)], Held(), 0.1) == []
        due_s = spilling.next_tick_s()
        assert due_s == machine.ANSWER_S
        assert spilling.ticked(due_s) == [Write(1, 101, 0, 10)]
        assert spilling.offered(B, 1, [offer(2, 10, client=B)], Held(), due_s) == []  # too late

    def test_nothing_offered_ends_the_turn_without_a_second_look(self) -> None:
        spilling, commands = started()
        assert commands == []
        due_s = spilling.next_tick_s()
        assert due_s is not None and spilling.ticked(due_s) == [] and not spilling.busy

    def test_a_failed_write_tells_the_owner(self) -> None:
        spilling, _ = started(offer(7, 10))
        assert spilling.not_written(1, 0.0) == [Done(A, 7, False)]
        assert spilling.stored() == (0, 0)
        spilling.check()


class TestBack:
    def test_room_then_reading(self) -> None:
        spilling = stored()
        assert spilling.wanted(A, 7) == [MakeRoom(1, 10)]
        assert spilling.wanted(A, 7) == []  # once
        assert spilling.room(1, True, "") == [Read(1, 10, 0xABC)]
        assert spilling.read(1, 555) == [Restored(A, 7, machine.RESTORED, 555, "")]
        assert spilling.stored() == (1, 10)  # the file stays

    def test_it_leaves_again_without_being_written(self) -> None:
        spilling = stored()
        for command in (spilling.wanted(A, 7), spilling.room(1, True, ""), spilling.read(1, 555)):
            assert command
        due_s = spilling.next_tick_s()
        assert due_s is not None
        spilling.ticked(due_s)
        spilling.short(10, [A], 1.0)
        assert spilling.offered(A, 2, [offer(7, 10)], Held(), 1.0) == [Done(A, 7, True)]

    def test_no_room_changes_nothing(self) -> None:
        spilling = stored()
        spilling.wanted(A, 7)
        assert spilling.room(1, False, "why") == [Restored(A, 7, machine.NO_ROOM, 0, "why")]
        assert spilling.wanted(A, 7) == [MakeRoom(1, 10)]

    def test_a_damaged_file_goes(self) -> None:
        spilling = stored()
        spilling.wanted(A, 7)
        spilling.room(1, True, "")
        told = Restored(A, 7, machine.LOST, 0, "why")
        assert spilling.not_read(1, machine.LOST, "why") == [told, Remove(1)]
        assert spilling.wanted(A, 7)[0].code == machine.LOST  # type: ignore[attr-defined]

    def test_an_owner_that_dies_takes_its_files_along(self) -> None:
        spilling = stored()
        assert spilling.client_gone(A, 0.0) == [Remove(1)]
        spilling = stored()
        spilling.wanted(A, 7)
        assert spilling.client_gone(A, 0.0) == []
        assert spilling.room(1, False, "")[-1] == Remove(1)
        spilling.check()


class Walk(RuleBasedStateMachine):
    """Owners that offer, accept, refuse, drop, want back and die; files and owners must agree."""

    def __init__(self) -> None:
        super().__init__()
        self.spilling = machine.Spilling()
        self.now_s = 0.0
        self.memory: dict[tuple[int, int], int] = {}  # objects in memory -> size
        self.disk: dict[tuple[int, int], int] = {}  # objects whose record points to a file
        self.files: set[int] = set()
        self.operation: Write | Read | None = None
        self.asked: tuple[int, set[int]] | None = None
        self.rooms: list[int] = []
        self.questions: list[tuple[int, int]] = []
        self.wanting: set[tuple[int, int]] = set()
        self.alive = {1, 2, 3}
        self.next = 0

    def apply(self, commands: list[machine.Command]) -> None:
        for command in commands:
            if isinstance(command, Ask):
                self.asked = (command.turn, set(self.alive))
            elif isinstance(command, (Write, Read)):
                assert self.operation is None
                assert isinstance(command, Write) or command.number in self.files
                self.operation = command
            elif isinstance(command, Remove):
                self.files.discard(command.number)
            elif isinstance(command, MakeRoom):
                self.rooms.append(command.number)
            elif isinstance(command, Done) and command.ok:
                self.questions.append((command.client, command.spill))
            elif isinstance(command, Restored):
                key = (command.client, command.spill)
                if key in self.wanting:
                    self.wanting.discard(key)
                    if command.code == machine.RESTORED and key in self.disk:
                        self.memory[key] = self.disk.pop(key)

    @rule(size=st.integers(1, 40), client=st.integers(1, 3))
    def put(self, size: int, client: int) -> None:
        if client in self.alive:
            self.next += 1
            self.memory[(client, self.next)] = size

    @rule(need=st.integers(1, 60))
    def short(self, need: int) -> None:
        self.apply(self.spilling.short(need, sorted(self.alive), self.now_s))

    @precondition(lambda self: self.asked and self.asked[1])
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        assert self.asked is not None
        turn, waiting = self.asked
        client = data.draw(st.sampled_from(sorted(waiting)))
        waiting.discard(client)
        asked = set(self.questions)
        offers = [
            offer(spill, size, client=owner)
            for (owner, spill), size in self.memory.items()
            if owner == client and (owner, spill) not in asked
        ]
        self.apply(self.spilling.offered(client, turn, offers, Held(), self.now_s))

    @precondition(lambda self: self.operation is not None)
    @rule(ok=st.booleans())
    def finish(self, ok: bool) -> None:
        operation, self.operation = self.operation, None
        assert operation is not None
        if isinstance(operation, Write) and ok:
            self.files.add(operation.number)
            self.apply(self.spilling.written(operation.number, operation.number, self.now_s))
        elif isinstance(operation, Write):
            self.apply(self.spilling.not_written(operation.number, self.now_s))
        elif ok:
            assert operation.crc == operation.number
            self.apply(self.spilling.read(operation.number, 1))
        else:
            self.apply(self.spilling.not_read(operation.number, machine.NO_ROOM, ""))

    @precondition(lambda self: self.questions)
    @rule(yes=st.booleans())
    def settle(self, yes: bool) -> None:
        key = self.questions.pop(0)
        taken = yes and key in self.memory
        if taken:
            self.disk[key] = self.memory.pop(key)
        self.apply(self.spilling.settled(*key, taken, self.now_s))

    @precondition(lambda self: self.rooms)
    @rule(ok=st.booleans())
    def room(self, ok: bool) -> None:
        self.apply(self.spilling.room(self.rooms.pop(0), ok, ""))

    @precondition(lambda self: self.disk)
    @rule(data=st.data())
    def want(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.disk)))
        if key not in self.wanting:
            self.wanting.add(key)
            self.apply(self.spilling.wanted(*key))

    @precondition(lambda self: self.disk or self.memory)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted([*self.disk, *self.memory])))
        self.disk.pop(key, None)
        self.memory.pop(key, None)
        self.wanting.discard(key)
        self.apply(self.spilling.settled(*key, False, self.now_s))

    @precondition(lambda self: len(self.alive) > 1)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(sorted(self.alive)))
        self.alive.discard(client)
        if self.asked:
            self.asked[1].discard(client)
        for table in (self.disk, self.memory):
            for key in [key for key in table if key[0] == client]:
                del table[key]
        self.questions = [key for key in self.questions if key[0] != client]
        self.wanting = {key for key in self.wanting if key[0] != client}
        self.apply(self.spilling.client_gone(client, self.now_s))

    @rule(seconds=st.sampled_from([0.01, 1.0, 3.0]))
    def tick(self, seconds: float) -> None:
        self.now_s += seconds
        self.apply(self.spilling.ticked(self.now_s))

    @invariant()
    def what_is_on_disk_is_there(self) -> None:
        self.spilling.check()
        numbers = {(f.client, f.spill): n for n, f in self.spilling.files.items()}
        assert all(numbers[key] in self.files for key in self.disk)

    def teardown(self) -> None:
        """Everybody settles and drops: no file is left."""
        for _ in range(1000):
            if self.operation:
                self.finish(True)
            elif self.rooms:
                self.room(False)
            elif self.questions:
                self.settle(False)
            else:
                break
        for key in [*self.disk, *self.memory]:
            self.apply(self.spilling.settled(*key, False, self.now_s))
        for client in (1, 2, 3):
            self.apply(self.spilling.client_gone(client, self.now_s))
        while self.operation:
            self.finish(True)
        assert not self.files and not self.spilling.files


Walk.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestWalk = Walk.TestCase
