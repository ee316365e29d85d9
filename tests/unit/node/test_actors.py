"""The table of actors: the life of one, names, restarts, stale events, then a random walk."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ftray._node import actors as m
from ftray._node.actors import ActorTable, State
from ftray._node.frames import (
    EXIT_ACTOR,
    EXIT_SIGTERM,
    EXIT_TERMINATED,
    READY_PARKED,
    READY_TRY_AGAIN,
)

ID = b"a" * 16
OWNER = b"o" * 28
DRIVER, OTHER = 1, 2


def spec(actor_id: bytes = ID, **changes: Any) -> m.Spec:
    values: dict[str, Any] = {
        "actor_id": actor_id, "owner": OWNER, "job_id": 1, "class_name": "Counter", "name": "",
        "namespace": "ns", "get_if_exists": False, "max_restarts": 0,
    }  # fmt: skip
    return m.Spec(**{**values, **changes})


def death(text: str = "was killed by signal 9 (SIGKILL)", pid: int = 7) -> dict[str, Any]:
    return {"pid": pid, "kind": 2, "code": 9, "unix_time_s": 1.0, "text": text}


def only(commands: list[m.Command], kind: type[m.Command]) -> Any:
    (command,) = [c for c in commands if isinstance(c, kind)]
    return command


def has(commands: list[m.Command], kind: type[m.Command]) -> bool:
    return any(isinstance(c, kind) for c in commands)


def alive(table: ActorTable, worker: int = 100, ready: bool = True, **changes: Any) -> None:
    table.created(spec(**changes), DRIVER, 0)
    table.worker_found(changes.get("actor_id", ID), 1, worker)
    if ready:
        table.constructed(changes.get("actor_id", ID), 1, worker, None, 0.0)


def test_a_life_without_trouble() -> None:
    table = ActorTable()
    commands = table.created(spec(), DRIVER, 5)
    assert only(commands, m.Created) == m.Created(DRIVER, 5, ID, existing=False)
    assert only(commands, m.Place) == m.Place(ID, 1, restart=False)
    assert only(commands, m.Publish).state is State.PENDING
    commands = table.worker_found(ID, 1, 100)
    assert only(commands, m.Start) == m.Start(ID, 1, 100)
    assert (only(commands, m.Publish).state, only(commands, m.Publish).worker) == (State.ALIVE, 100)
    assert table.constructed(ID, 1, 100, None, 1.0) == []
    table.exit_announced(ID, 100, EXIT_ACTOR)
    commands = table.worker_died(100, death("exited with code 0"), 2.0)
    publish = only(commands, m.Publish)
    assert publish.state is State.DEAD and publish.cause["kind"] == "exit"
    assert has(commands, m.Forget)
    table.check()


def test_a_crash_without_restarts_is_death_with_its_story() -> None:
    table = ActorTable()
    alive(table)
    cause = only(table.worker_died(100, death(), 5.0), m.Publish).cause
    assert cause["kind"] == "crash" and cause["death"]["pid"] == 7
    assert "incarnation 1" in cause["text"] and "SIGKILL" in cause["text"]


def test_restarts_are_counted_and_then_over() -> None:
    table = ActorTable()
    alive(table, max_restarts=1)
    commands = table.worker_died(100, death(), 5.0)
    assert only(commands, m.Publish).state is State.RESTARTING
    assert only(commands, m.Place) == m.Place(ID, 2, restart=True)
    table.worker_found(ID, 2, 101)
    table.constructed(ID, 2, 101, None, 5.0)
    cause = only(table.worker_died(101, death(), 9.0), m.Publish).cause
    assert "restarted 1 of 1 times" in cause["text"]


def test_the_first_quick_death_restarts_at_once_later_ones_back_off_up_to_a_bound() -> None:
    table = ActorTable(m.ActorSettings(stable_s=1.0, backoff_s=0.1, max_backoff_s=0.3))
    alive(table, max_restarts=-1, ready=False)
    assert has(table.worker_died(100, death(), 0.0), m.Place)
    pauses = []
    for incarnation in range(2, 6):
        table.worker_found(ID, incarnation, 100 + incarnation)
        commands = table.worker_died(100 + incarnation, death(), 10.0)
        timer = only(commands, m.SetTimer)
        pauses.append(round(timer.when_s - 10.0, 3))
        assert only(table.backoff_over(ID, incarnation + 1), m.Place).incarnation == incarnation + 1
        assert table.backoff_over(ID, incarnation + 1) == []
    assert pauses == [0.1, 0.2, 0.3, 0.3]
    table.worker_found(ID, 6, 200)
    table.constructed(ID, 6, 200, None, 20.0)
    assert has(table.worker_died(200, death(), 30.0), m.Place)  # it was stable meanwhile


def test_a_recovery_that_fails_waits_from_20_ms_to_a_second() -> None:
    table = ActorTable()
    alive(table, max_restarts=-1, ready=False)
    table.worker_died(100, death(), 0.0)
    pauses = []
    for incarnation in range(2, 12):
        table.worker_found(ID, incarnation, 100 + incarnation)
        pauses.append(only(table.worker_died(100 + incarnation, death(), 0.0), m.SetTimer).when_s)
        table.backoff_over(ID, incarnation + 1)
    assert (pauses[0], pauses[-1]) == (0.02, 1.0)
    assert all(later == min(2 * before, 1.0) for before, later in pairwise(pauses))


def test_actors_that_were_ready_restart_at_once_until_there_are_too_many_quick_deaths() -> None:
    table = ActorTable(m.ActorSettings(free_restarts=3, backoff_s=0.1))
    alive(table, max_restarts=-1)
    for incarnation in range(2, 4):
        assert has(table.worker_died(98 + incarnation, death(), 0.0), m.Place)
        table.worker_found(ID, incarnation, 99 + incarnation)
        table.constructed(ID, incarnation, 99 + incarnation, None, 0.0)
    assert only(table.worker_died(102, death(), 0.0), m.SetTimer).when_s == 0.1


def test_events_of_an_old_incarnation_change_nothing() -> None:
    table = ActorTable()
    alive(table, max_restarts=-1)
    table.worker_died(100, death(), 5.0)
    assert table.constructed(ID, 1, 100, b"late error", 5.1) == []
    assert table.exit_announced(ID, 100, EXIT_ACTOR) == []
    assert table.worker_died(100, death(), 5.2) == []
    assert only(table.worker_found(ID, 1, 102), m.ReleaseWorker).worker == 102
    table.worker_found(ID, 2, 101)
    assert table.constructed(ID, 1, 101, b"wrong incarnation", 5.3) == []
    assert table.constructed(ID, 2, 100, b"wrong process", 5.3) == []
    assert table.placement_failed(ID, 1, "late") == []
    assert table.backoff_over(ID, 1) == []
    table.check()
    assert table.info(ID) is not None and table.info(ID)["state"] == "ALIVE"  # type: ignore[index]


def test_a_constructor_that_raises_is_final_and_its_error_is_kept() -> None:
    table = ActorTable()
    alive(table, max_restarts=-1, ready=False)
    assert has(table.constructed(ID, 1, 100, b"pickled", 1.0), m.Kill)
    cause = only(table.worker_died(100, death(), 1.0), m.Publish).cause
    assert cause["kind"] == "constructor" and cause["error"] == b"pickled"


def test_kill_is_final_when_the_process_is_dead_and_not_before() -> None:
    table = ActorTable()
    alive(table, max_restarts=-1, name="n")
    assert only(table.killed(ID, no_restart=True), m.Kill).worker == 100
    assert not has(table.created(spec(b"b" * 16, name="n"), OTHER, 0), m.Place)
    commands = table.worker_died(100, death(), 5.0)
    assert only(commands, m.Publish).cause["kind"] == "killed"
    assert table.lookup("n", "ns") is None


def test_kill_with_restart_uses_the_budget() -> None:
    table = ActorTable()
    alive(table, max_restarts=1)
    assert has(table.killed(ID, no_restart=False), m.Kill)
    assert has(table.worker_died(100, death(), 5.0), m.Place)
    assert table.killed(ID, no_restart=False) == []


def test_kill_before_there_is_a_process_ends_it_at_once() -> None:
    table = ActorTable()
    table.created(spec(), DRIVER, 0)
    commands = table.killed(ID, no_restart=True)
    assert only(commands, m.CancelPlace) == m.CancelPlace(ID, 1)
    assert only(commands, m.Publish).state is State.DEAD
    assert table.killed(ID, no_restart=True) == []


def test_out_of_scope_lets_the_process_finish() -> None:
    table = ActorTable()
    alive(table, max_restarts=-1)
    assert only(table.out_of_scope(ID), m.Terminate).worker == 100
    assert table.out_of_scope(ID) == []
    table.exit_announced(ID, 100, EXIT_TERMINATED)
    assert (
        only(table.worker_died(100, death("exited with code 0"), 5.0), m.Publish).cause["kind"]
        == "out_of_scope"
    )


def test_sigterm_hands_over_to_a_new_incarnation_without_cost() -> None:
    table = ActorTable()
    alive(table, max_restarts=1)
    for incarnation in (1, 2, 3):
        worker = 99 + incarnation
        table.exit_announced(ID, worker, EXIT_SIGTERM)
        assert has(table.worker_died(worker, death("exited with code 0"), 100.0 * incarnation), m.Place)
        table.worker_found(ID, incarnation + 1, worker + 1)
        table.constructed(ID, incarnation + 1, worker + 1, None, 100.0 * incarnation)
    assert table.info(ID)["restarts"] == 0  # type: ignore[index]


def test_an_owner_takes_its_actors_along_but_not_detached_ones() -> None:
    table = ActorTable()
    alive(table)
    alive(table, worker=101, actor_id=b"d" * 16, owner=b"")
    commands = table.owner_died(OWNER, "driver 3 left")
    assert [c.worker for c in commands if isinstance(c, m.Kill)] == [100]
    cause = only(table.worker_died(100, death(), 5.0), m.Publish).cause
    assert cause["kind"] == "owner_died" and "driver 3 left" in cause["text"]
    assert table.owner_died(b"", "nobody") == []


class TestNames:
    def test_a_taken_name_is_refused_or_shared(self) -> None:
        table = ActorTable()
        alive(table, name="n")
        other = b"b" * 16
        refused = only(table.created(spec(other, name="n"), OTHER, 9), m.Refused)
        assert "taken" in refused.text and refused.req == 9
        assert table.info(other) is None
        commands = table.created(spec(other, name="n", get_if_exists=True), OTHER, 9)
        assert only(commands, m.Created) == m.Created(OTHER, 9, ID, existing=True)
        assert only(commands, m.Publish).clients == (OTHER,)
        assert not has(commands, m.Place)

    def test_namespaces_are_separate(self) -> None:
        table = ActorTable()
        alive(table, name="n")
        assert has(table.created(spec(b"b" * 16, name="n", namespace="other"), DRIVER, 0), m.Place)
        assert table.names() == [("ns", "n"), ("other", "n")]

    def test_a_name_stays_taken_during_a_restart_and_is_free_with_the_death(self) -> None:
        table = ActorTable()
        alive(table, name="n", max_restarts=1)
        table.worker_died(100, death(), 5.0)
        assert has(table.created(spec(b"b" * 16, name="n"), DRIVER, 0), m.Refused)
        table.placement_failed(ID, 2, "no process")
        assert has(table.created(spec(b"b" * 16, name="n"), DRIVER, 0), m.Place)


    def test_the_name_of_an_actor_that_is_to_end_is_waited_for(self) -> None:
        for again in (False, True):
            for end in (
                lambda table: table.killed(ID, no_restart=True),
                lambda table: table.out_of_scope(ID),
                lambda table: table.owner_died(OWNER, "left"),
                lambda table: table.ended(ID, "group_removed", "its group was removed"),
                lambda table: table.exit_announced(ID, 100, EXIT_ACTOR),
            ):
                table = ActorTable()
                alive(table, name="n", max_restarts=1)
                end(table)
                assert table.lookup("n", "ns") is None and table.names() == []
                other = spec(b"b" * 16, name="n", get_if_exists=again)
                assert table.created(other, OTHER, 9) == [m.Postponed(OTHER, 9, b"b" * 16, "ns", "n")]
                assert table.info(b"b" * 16) is None
                commands = table.worker_died(100, death(), 5.0)
                assert commands[-1] == m.NameFree("ns", "n")
                assert only(table.created(other, OTHER, 9), m.Created).actor_id == b"b" * 16
                table.check()

    def test_an_actor_that_is_restarted_keeps_its_name(self) -> None:
        table = ActorTable()
        alive(table, name="n", max_restarts=1)
        table.killed(ID, no_restart=False)
        table.exit_announced(ID, 100, EXIT_SIGTERM)
        found = table.created(spec(b"b" * 16, name="n", get_if_exists=True), OTHER, 9)
        assert only(found, m.Created) == m.Created(OTHER, 9, ID, existing=True)
        assert table.names() == [("ns", "n")]


class TestAnnounced:
    """Actors that are created when their constructor's arguments are there."""

    def test_it_is_there_and_placed_when_it_is_created(self) -> None:
        table = ActorTable()
        table.subscribed(ID, OTHER, 0.0)
        commands = table.created(spec(name="n"), DRIVER, 5, announced=True)
        assert only(commands, m.Created) == m.Created(DRIVER, 5, ID, existing=False)
        assert only(commands, m.Publish).clients == (DRIVER, OTHER) and not has(commands, m.Place)
        assert table.backoff_over(ID, 0) == [], "who subscribed early waits as long as it takes"
        assert table.lookup("n", "ns") is not None and table.awaits_creation(ID)
        assert table.created(spec(name="n"), DRIVER, 0) == [m.Place(ID, 1, restart=False)]
        assert not table.awaits_creation(ID)
        assert has(table.created(spec(name="n"), DRIVER, 0), m.Refused)
        table.check()

    def test_it_can_end_before(self) -> None:
        for end in (
            lambda table: table.killed(ID, no_restart=True),
            lambda table: table.owner_died(OWNER, "left"),
            lambda table: table.out_of_scope(ID),
        ):
            table = ActorTable()
            table.created(spec(name="n"), DRIVER, 5, announced=True)
            commands = end(table)
            assert only(commands, m.Publish).state is State.DEAD and has(commands, m.NameFree)
            assert not has(commands, m.CancelPlace)
            assert table.created(spec(name="n"), DRIVER, 0) == []
            assert table.not_made(ID, "no argument", b"e") == []
            table.check()

    def test_it_may_never_be_made(self) -> None:
        table = ActorTable()
        table.created(spec(), DRIVER, 0, announced=True)
        table.subscribed(ID, OTHER, 0.0)
        publish = only(table.not_made(ID, "an argument cannot be had", b"e"), m.Publish)
        assert publish.clients == (DRIVER, OTHER) and publish.cause["error"] == b"e"
        assert "an argument cannot be had" in publish.cause["text"]
        assert table.not_made(b"b" * 16, "unknown", b"") == []

    def test_what_is_placed_is_not_unmade(self) -> None:
        table = ActorTable()
        alive(table)
        assert table.not_made(ID, "too late", b"e") == []


class TestSubscribers:
    def test_everybody_hears_of_changes_until_they_leave(self) -> None:
        table = ActorTable()
        alive(table, max_restarts=-1)
        assert only(table.subscribed(ID, OTHER, 0.0), m.Publish).clients == (OTHER,)
        assert only(table.worker_died(100, death(), 5.0), m.Publish).clients == (DRIVER, OTHER)
        table.client_gone(DRIVER)
        assert only(table.worker_found(ID, 2, 101), m.Publish).clients == (OTHER,)

    def test_late_ones_learn_the_cause(self) -> None:
        table = ActorTable()
        alive(table)
        table.worker_died(100, death(), 5.0)
        assert only(table.subscribed(ID, OTHER, 0.0), m.Publish).cause["kind"] == "crash"

    def test_a_subscription_may_come_before_the_creation(self) -> None:
        table = ActorTable()
        assert only(table.subscribed(ID, OTHER, 5.0), m.SetTimer).when_s == 5.0 + m.EARLY_SUBSCRIBER_S
        assert table.subscribed(ID, 78, 6.0) == []
        commands = table.created(spec(), DRIVER, 0)
        assert set(next(c for c in commands if isinstance(c, m.Publish)).clients) == {DRIVER, OTHER, 78}
        assert table.backoff_over(ID, 0) == []

    def test_an_unknown_actor_is_dead_and_says_so(self) -> None:
        table = ActorTable()
        table.subscribed(ID, OTHER, 0.0)
        publish = only(table.backoff_over(ID, 0), m.Publish)
        assert publish.clients == (OTHER,)
        assert publish.state is State.DEAD and "no actor with the id" in publish.cause["text"]

    def test_an_id_is_never_used_twice(self) -> None:
        table = ActorTable()
        alive(table)
        assert "exists already" in only(table.created(spec(), DRIVER, 0), m.Refused).text


class Walk(RuleBasedStateMachine):
    """Random events; the model keeps which processes live and what is final."""

    def __init__(self) -> None:
        super().__init__()
        self.table = ActorTable()
        self.now_s = 0.0
        self.placing: dict[bytes, int] = {}
        self.timers: dict[bytes, int] = {}
        self.workers: dict[int, tuple[bytes, int]] = {}
        self.dead: set[bytes] = set()
        self.last: dict[bytes, tuple[int, State]] = {}
        self.announced: dict[bytes, m.Spec] = {}
        self.waiting: dict[tuple[str, str], list[m.Spec]] = {}
        self.next = 0

    def apply(self, commands: list[m.Command]) -> None:
        for command in commands:
            if isinstance(command, m.Place):
                running = [w for w, (actor_id, _n) in self.workers.items() if actor_id == command.actor_id]
                assert not running, "a second incarnation while the first one's process lives"
                self.placing[command.actor_id] = command.incarnation
            elif isinstance(command, m.CancelPlace):
                assert self.placing.pop(command.actor_id) == command.incarnation
            elif isinstance(command, m.Start):
                self.workers[command.worker] = (command.actor_id, command.incarnation)
            elif isinstance(command, m.SetTimer):
                assert command.when_s >= self.now_s
                self.timers[command.actor_id] = command.incarnation
            elif isinstance(command, m.Kill | m.Terminate):
                assert self.workers[command.worker][0] == command.actor_id
            elif isinstance(command, m.Forget):
                assert command.actor_id not in self.dead, "died twice"
                self.dead.add(command.actor_id)
            elif isinstance(command, m.Publish):
                self.published(command)
            elif isinstance(command, m.NameFree):
                for made in self.waiting.pop((command.namespace, command.name), ()):
                    self.submit(made)

    def submit(self, made: m.Spec, announced: bool = False) -> None:
        self.next += 1
        commands = self.table.created(made, DRIVER, self.next, announced)
        for command in commands:
            if isinstance(command, m.Postponed):
                assert command.name and self.table.lookup(command.name, command.namespace) is None
                self.waiting.setdefault((command.namespace, command.name), []).append(made)
            elif isinstance(command, m.Created) and announced and not command.existing:
                self.announced[made.actor_id] = made
        self.apply(commands)

    def published(self, command: m.Publish) -> None:
        if command.state is State.DEAD:
            assert command.cause["text"]
        before, _state = self.last.get(command.actor_id, (0, State.PENDING))
        assert command.incarnation >= before, "incarnations go back"
        self.last[command.actor_id] = (command.incarnation, command.state)

    @rule(
        name=st.sampled_from(["", "x", "y"]),
        restarts=st.integers(-1, 2),
        again=st.booleans(),
        detached=st.booleans(),
        announced=st.booleans(),
    )
    def create(self, name: str, restarts: int, again: bool, detached: bool, announced: bool) -> None:
        self.next += 1
        actor_id = self.next.to_bytes(16, "big")
        owner = b"" if detached else OWNER
        made = spec(actor_id, name=name, max_restarts=restarts, get_if_exists=again, owner=owner)
        self.submit(made, announced)

    @precondition(lambda self: self.announced)
    @rule(data=st.data(), made=st.booleans())
    def arguments(self, data: st.DataObject, made: bool) -> None:
        actor_id = data.draw(st.sampled_from(sorted(self.announced)))
        announced = self.announced.pop(actor_id)
        if made:
            self.submit(announced)
        else:
            self.apply(self.table.not_made(actor_id, "an argument cannot be had", b"e"))

    @precondition(lambda self: self.placing)
    @rule(data=st.data(), ok=st.booleans())
    def place(self, data: st.DataObject, ok: bool) -> None:
        actor_id = data.draw(st.sampled_from(sorted(self.placing)))
        incarnation = self.placing.pop(actor_id)
        self.next += 1
        if ok:
            self.apply(self.table.worker_found(actor_id, incarnation, self.next))
        else:
            commands = self.table.placement_failed(actor_id, incarnation, "no process")
            self.apply([c for c in commands if not isinstance(c, m.CancelPlace)])

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), what=st.sampled_from(["ready", "error", "exit", "sigterm", "die", "stale"]))
    def event(self, data: st.DataObject, what: str) -> None:
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        actor_id, incarnation = self.workers[worker]
        if what in ("ready", "error"):
            error = b"e" if what == "error" else None
            self.apply(self.table.constructed(actor_id, incarnation, worker, error, self.now_s))
        elif what in ("exit", "sigterm"):
            self.apply(
                self.table.exit_announced(actor_id, worker, EXIT_SIGTERM if what == "sigterm" else EXIT_ACTOR)
            )
        elif what == "die":
            del self.workers[worker]
            self.apply(self.table.worker_died(worker, death(), self.now_s))
        else:
            assert self.table.constructed(actor_id, incarnation - 1, worker, b"e", self.now_s) == []

    @precondition(lambda self: self.timers)
    @rule(data=st.data())
    def timer(self, data: st.DataObject) -> None:
        actor_id = data.draw(st.sampled_from(sorted(self.timers)))
        self.apply(self.table.backoff_over(actor_id, self.timers.pop(actor_id)))

    @precondition(lambda self: self.last)
    @rule(data=st.data(), what=st.sampled_from(["kill", "restart", "scope"]))
    def end(self, data: st.DataObject, what: str) -> None:
        actor_id = data.draw(st.sampled_from(sorted(self.last)))
        if what == "scope":
            self.apply(self.table.out_of_scope(actor_id))
        else:
            self.apply(self.table.killed(actor_id, no_restart=what == "kill"))

    @rule(seconds=st.sampled_from([0.01, 1.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def owner_dies(self) -> None:
        self.apply(self.table.owner_died(OWNER, "left"))

    @invariant()
    def consistent(self) -> None:
        self.table.check()
        for actor_id in self.dead:
            assert self.table.info(actor_id)["state"] == "DEAD"  # type: ignore[index]

    def teardown(self) -> None:
        """Everything is killed: every actor ends, every name is free, nobody waits for one."""
        while any(state is not State.DEAD for _incarnation, state in self.last.values()):
            for actor_id in sorted(self.last):
                self.apply(self.table.killed(actor_id, no_restart=True))
            for worker in sorted(self.workers):
                del self.workers[worker]
                self.apply(self.table.worker_died(worker, death(), self.now_s))
        assert not self.waiting
        assert self.table.names() == []
        assert all(info["state"] == "DEAD" for i in self.table.actor_ids() if (info := self.table.info(i)))


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=60, stateful_step_count=50)


def test_a_restore_that_failed_is_tried_again_with_pauses() -> None:
    table = ActorTable(m.ActorSettings(backoff_s=0.1))
    alive(table, max_restarts=-1, ready=False)
    assert table.constructed(ID, 1, 100, b"first", 1.0, READY_TRY_AGAIN) == []
    commands = table.worker_died(100, death("exited with code 75"), 1.0)
    assert has(commands, m.Place) and "error" not in only(commands, m.Publish).cause
    table.worker_found(ID, 2, 101)
    table.constructed(ID, 2, 101, b"second", 2.0, READY_TRY_AGAIN)
    assert only(table.worker_died(101, death("exited with code 75"), 2.0), m.SetTimer).when_s == 2.1
    table.backoff_over(ID, 3)
    table.worker_found(ID, 3, 102)
    assert has(table.constructed(ID, 3, 102, b"third", 3.0, READY_PARKED), m.Kill)
    cause = only(table.worker_died(102, death(), 3.0), m.Publish).cause
    assert (cause["kind"], cause["error"]) == ("restore", b"third") and "it is parked" in cause["text"]


def test_without_a_restart_left_a_failed_restore_is_the_cause() -> None:
    table = ActorTable()
    alive(table, max_restarts=1)
    table.worker_died(100, death(), 5.0)
    table.worker_found(ID, 2, 101)
    assert table.constructed(ID, 2, 101, b"pickled", 5.0, READY_TRY_AGAIN) == []
    cause = only(table.worker_died(101, death("exited with code 75"), 5.0), m.Publish).cause
    assert (cause["kind"], cause["error"]) == ("restore", b"pickled")
    assert "it could not be restored; it was restarted 1 of 1 times" in cause["text"]


def test_the_error_of_a_restore_is_forgotten_when_another_one_succeeds() -> None:
    table = ActorTable()
    alive(table, max_restarts=2, ready=False)
    table.constructed(ID, 1, 100, b"first", 1.0, READY_TRY_AGAIN)
    for worker in (101, 102):
        table.worker_died(worker - 1, death(), 1.0)
        table.worker_found(ID, worker - 99, worker)
        table.constructed(ID, worker - 99, worker, None, 1.0)
    cause = only(table.worker_died(102, death(), 1.0), m.Publish).cause
    assert cause["kind"] == "crash" and "error" not in cause
