"""How many workers there are and who gets which: examples, then a random walk."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ftray._node.pool import Abort, Bind, Command, Fail, Fork, Pool, PoolSettings, Retire, Stage


def make(**changes: object) -> Pool:
    return Pool(PoolSettings(**{"prestart": 2, "max_starting": 8, **changes}))


def forks(commands: list[Command]) -> list[int]:
    return [c.number for c in commands if isinstance(c, Fork)]


def warm(pool: Pool, now_s: float = 0.0) -> list[int]:
    """Let every start-up succeed until nothing more is started."""
    up: list[int] = []
    new = forks(pool.opened(now_s))
    while new:
        up += new
        new = [n for number in new for n in forks(pool.started(number, now_s))]
    return up


def test_prestarts_one_worker_a_cpu() -> None:
    assert len(warm(make(prestart=2))) == 2


def test_a_request_gets_an_idle_worker_at_once_and_a_spare_is_made() -> None:
    pool = make()
    first, second = warm(pool)
    assert pool.requested(1, 1, False, 0.0) == [Bind(1, first)]
    assert pool.requested(2, 1, False, 0.0)[0] == Bind(2, second)
    assert pool.counts()["starting"] == 1  # one unused worker stays at hand


def test_a_request_that_finds_none_gets_the_next_that_starts() -> None:
    pool = make(prestart=0, spare_min=0)
    (number,) = forks(pool.requested(1, 1, False, 0.0))[:1]
    assert Bind(1, number) in pool.started(number, 0.0)


def test_a_lease_prefers_the_worker_that_its_job_used_last() -> None:
    pool = make()
    first, second = warm(pool)
    pool.requested(1, 1, False, 0.0)
    pool.requested(2, 1, False, 0.0)
    pool.released(second, True, 1.0)
    pool.released(first, True, 2.0)
    assert pool.requested(3, 1, False, 3.0)[0] == Bind(3, first)


def test_an_actor_gets_only_an_unused_worker_and_its_spare_is_replaced() -> None:
    pool = make(prestart=1)
    (first,) = warm(pool)
    pool.requested(1, 1, False, 0.0)
    pool.released(first, True, 0.0)
    (spare,) = [n for n, w in pool._workers.items() if w.stage is Stage.STARTING]
    assert not any(isinstance(c, Bind) for c in pool.requested(2, 1, True, 0.0))
    commands = pool.started(spare, 0.0)
    assert Bind(2, spare) in commands
    assert pool.counts()["starting"] >= 1


def test_the_spare_for_a_restart_is_replaced_a_moment_later() -> None:
    pool = make(prestart=0, quiet_s=0.05)
    (first,) = warm(pool)
    assert pool.requested(1, 1, True, 1.0, restart=True) == [Bind(1, first)]
    assert pool.next_tick_s() == 1.05
    assert pool.gone(first, 1.01) == [] and pool.ticked(1.04) == []
    assert len(forks(pool.ticked(1.05))) == 1
    assert pool.next_tick_s() == 1.05 + pool.settings.startup_timeout_s


def test_who_finds_no_worker_waits_no_longer_because_of_a_restart() -> None:
    pool = make(prestart=0, quiet_s=0.05)
    warm(pool)
    pool.requested(1, 1, True, 1.0, restart=True)
    assert forks(pool.requested(2, 1, True, 1.01, restart=True)), "the actors of two processes that died"
    pool = make(prestart=0, quiet_s=0.05)
    warm(pool)
    pool.requested(1, 1, True, 1.0, restart=True)
    (other,) = forks(pool.requested(2, 1, False, 1.0, "env"))
    assert Bind(2, other) in pool.started(other, 1.02)


def test_after_a_restart_while_no_worker_can_be_made_time_goes_on() -> None:
    pool = make(prestart=0, quiet_s=0.05, backoff_s=1.0)
    warm(pool)
    pool.requested(1, 1, True, 1.0, restart=True)
    (number,) = forks(pool.ticked(1.05))
    assert pool.start_failed(number, "no memory", 1.06) == []
    assert pool.ticked(1.07) == [] and pool.next_tick_s() == 2.06


def test_a_worker_of_one_job_never_serves_another() -> None:
    pool = make(prestart=1)
    (first,) = warm(pool)
    pool.requested(1, 1, False, 0.0)
    pool.released(first, True, 0.0)
    assert Bind(2, first) not in pool.requested(2, 2, False, 0.0)
    assert pool.requested(3, 1, False, 0.0)[0] == Bind(3, first)


def test_the_end_of_a_job_retires_its_idle_workers() -> None:
    pool = make(prestart=1)
    (first,) = warm(pool)
    pool.requested(1, 1, False, 0.0)
    pool.released(first, True, 0.0)
    assert Retire(first, may_decline=False) in pool.job_ended(1, 1.0)


def test_idle_workers_beyond_the_target_are_asked_to_leave_after_a_while() -> None:
    pool = make(prestart=1, idle_timeout_s=5.0)
    (first,) = warm(pool)
    pool.requested(1, 1, False, 0.0)
    (second,) = [n for n, w in pool._workers.items() if w.stage is Stage.STARTING]
    pool.started(second, 0.0)
    pool.requested(2, 1, False, 0.0)
    pool.released(first, True, 1.0)
    pool.released(second, True, 2.0)
    due_s = pool.next_tick_s()
    assert due_s is not None
    assert not [c for c in pool.ticked(5.9) if isinstance(c, Retire)]
    assert Retire(first, may_decline=True) in pool.ticked(6.1)


def test_one_that_declines_stays_and_is_asked_again_later() -> None:
    pool = make(prestart=0, spare_min=0, idle_timeout_s=5.0)
    (number, *_rest) = forks(pool.requested(1, 1, False, 0.0))
    pool.started(number, 0.0)
    pool.released(number, True, 0.0)
    assert Retire(number, True) in pool.ticked(5.0)
    assert pool.requested(2, 1, False, 5.0) != [Bind(2, number)]
    assert pool.declined(number, 5.1) == [Bind(2, number)]


def test_a_preload_replaces_unused_workers_after_the_new_ones_are_there() -> None:
    pool = make(prestart=2)
    old = warm(pool)
    new = forks(pool.preloaded(1.0))
    assert len(new) == 2
    retired = [c.number for n in new for c in pool.started(n, 1.0) if isinstance(c, Retire)]
    assert sorted(retired) == old


def test_failing_starts_back_off_and_end_in_an_error_for_whoever_waits() -> None:
    pool = make(prestart=0, spare_min=0, spare_max=0, max_failures=3, backoff_s=1.0)
    now_s = 0.0
    commands = pool.requested(1, 1, False, now_s)
    for failure in range(3):
        (number,) = forks(commands)
        commands = pool.start_failed(number, "no memory", now_s)
        if failure < 2:
            assert commands == [] and forks(pool.ticked(now_s)) == []
            due_s = pool.next_tick_s()
            assert due_s == now_s + 2**failure
            now_s = due_s
            commands = pool.ticked(now_s)
    (failed,) = commands
    assert isinstance(failed, Fail) and failed.alloc_id == 1 and "no memory" in failed.text
    # The next request tries once more, and a success ends the trouble.
    (number,) = forks(pool.requested(2, 1, False, now_s) + pool.ticked(now_s + 100))
    assert Bind(2, number) in pool.started(number, now_s + 100)


def test_a_start_that_was_lost_with_its_maker_is_repeated_at_once_and_is_no_failure() -> None:
    pool = make(prestart=0, spare_min=0, spare_max=0, max_failures=2, backoff_s=1.0)
    commands = pool.requested(1, 1, False, 0.0)
    for _ in range(5):
        (number,) = forks(commands)
        commands = pool.start_failed(number, "the zygote was killed", 0.0, fault=False)
    (number,) = forks(commands)
    assert Bind(1, number) in pool.started(number, 0.0)


def test_a_start_or_a_leave_that_takes_too_long_is_aborted() -> None:
    pool = make(prestart=1, spare_min=0, startup_timeout_s=3.0, leave_timeout_s=2.0)
    (number,) = forks(pool.opened(0.0))
    assert pool.ticked(2.9) == []
    assert Abort(number) in pool.ticked(3.0)
    pool.start_failed(number, "too slow", 3.0)
    (number,) = forks(pool.ticked(4.0))
    pool.started(number, 4.0)
    pool.requested(1, 1, False, 4.0)
    assert pool.released(number, False, 4.0)[0] == Retire(number, may_decline=False)
    assert Abort(number) in pool.ticked(6.0)


def test_missed_requests_raise_the_number_of_spares_and_quiet_lowers_it() -> None:
    pool = make(prestart=0, spare_min=1, spare_max=4, idle_timeout_s=5.0)
    warm(pool)
    pool.requested(1, 1, True, 0.0)
    for alloc_id in range(2, 8):
        pool.requested(alloc_id, 1, True, 0.0)
    assert pool._spare > 1
    now_s = 0.0
    while pool._spare > 1:
        now_s += 5.0
        pool.ticked(now_s)
    assert now_s < 60


def test_a_worker_of_one_environment_never_serves_another() -> None:
    pool = make(prestart=1)
    (plain,) = warm(pool)
    commands = pool.requested(1, 1, False, 0.0, "a")
    assert Bind(1, plain) not in commands
    (forked,) = [c for c in commands if isinstance(c, Fork)]
    assert forked.env == "a"
    assert Bind(1, forked.number) in pool.started(forked.number, 0.0)
    pool.released(forked.number, True, 1.0)
    assert pool.requested(2, 1, False, 1.0)[0] == Bind(2, plain)
    assert pool.requested(3, 1, False, 1.0, "a")[0] == Bind(3, forked.number)
    assert [c.env for c in pool.requested(4, 1, False, 1.0, "b") if isinstance(c, Fork)] == ["b"]


def test_idle_workers_of_environments_are_not_kept() -> None:
    pool = make(prestart=0, spare_min=0, idle_timeout_s=5.0)
    (number,) = forks(pool.requested(1, 1, False, 0.0, "a"))
    pool.started(number, 0.0)
    pool.released(number, True, 1.0)
    assert pool.next_tick_s() == 6.0
    assert pool.ticked(6.0) == [Retire(number, may_decline=True)]


def test_an_environment_that_cannot_be_set_up_fails_its_requests_only_and_at_once() -> None:
    pool = make(prestart=0, spare_min=0, spare_max=0, max_starting=8)
    (first,) = forks(pool.requested(1, 1, False, 0.0, "a"))
    pool.requested(2, 1, False, 0.0)
    pool.requested(3, 1, True, 0.0, "a")
    commands = pool.start_failed(first, "no such snapshot", 0.0, final=True)
    assert [c for c in commands if isinstance(c, Fail)] == [
        Fail(1, "no such snapshot", True),
        Fail(3, "no such snapshot", True),
    ]
    assert pool.trouble == ""
    # Who asks again gets another try; one is still starting from before.
    again = [pool.requested(alloc_id, 1, False, 0.0, "a") for alloc_id in (4, 5)]
    assert [len(forks(commands)) for commands in again] == [0, 1]


def test_workers_that_die_in_an_environment_fail_it_after_a_few_tries() -> None:
    pool = make(prestart=0, spare_min=0, spare_max=0, max_env_failures=2, backoff_s=1.0)
    (number,) = forks(pool.requested(1, 1, False, 0.0, "a"))
    assert pool.start_failed(number, "exited with code 1", 0.0) == []
    assert pool.next_tick_s() == 1.0
    (number,) = forks(pool.ticked(1.0))
    (failed,) = pool.start_failed(number, "exited with code 1", 1.0)
    assert isinstance(failed, Fail) and failed.env and "2 tries" in failed.text


def test_a_spent_worker_leaves_and_serves_nobody_while_it_declines() -> None:
    pool = make(prestart=0, spare_min=0, idle_timeout_s=5.0)
    (number,) = forks(pool.requested(1, 1, False, 0.0))[:1]
    pool.started(number, 0.0)
    pool.cancelled(1)
    assert pool.released(number, True, 0.0, spent=True)[0] == Retire(number, may_decline=True)
    assert pool.declined(number, 1.0) == [] and pool.stage_of(number) is Stage.SPENT
    assert Bind(2, number) not in pool.requested(2, 1, False, 1.0)
    now_s, pauses = 1.0, []
    while len(pauses) < 12:
        declined_s, commands = now_s, list[Command]()
        while Retire(number, may_decline=True) not in commands:  # other things are due in between
            due_s = pool.next_tick_s()
            assert due_s is not None
            now_s = max(now_s, due_s)
            commands = pool.ticked(now_s)
        pauses.append(round(now_s - declined_s, 3))
        pool.declined(number, now_s)
    assert pauses[:3] == [0.02, 0.04, 0.08] and pauses[-1] == 5.0  # asked soon, then less and less often
    assert Retire(number, may_decline=False) in pool.job_ended(1, now_s)


def test_short_memory_has_used_idle_workers_leave() -> None:
    pool = make(prestart=2)
    first, second = warm(pool)
    pool.requested(1, 1, False, 0.0)
    pool.released(first, True, 0.0)
    assert [c for c in pool.trimmed(1.0) if isinstance(c, Retire)] == [Retire(first, may_decline=True)]
    assert pool.stage_of(second) is Stage.IDLE


class Walk(RuleBasedStateMachine):
    """Random starts, failures, requests, returns and deaths."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.pool = Pool(
            PoolSettings(prestart=2, max_starting=3, max_workers=12, idle_timeout_s=2.0, max_failures=3)
        )
        self.starting: set[int] = set()
        self.idle: set[int] = set()
        self.busy: dict[int, int] = {}
        self.leaving: set[int] = set()
        self.waiting: set[int] = set()
        self.next_alloc = 0
        self.job_of_alloc: dict[int, int] = {}
        self.job_of_worker: dict[int, int] = {}
        self.fresh_allocs: set[int] = set()
        self.env_of_alloc: dict[int, str] = {}
        self.env_of_worker: dict[int, str] = {}
        self.spent: set[int] = set()
        self.parked: set[int] = set()
        self.apply(self.pool.opened(0.0))

    def apply(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, Fork):
                self.starting.add(command.number)
                self.env_of_worker[command.number] = command.env
            elif isinstance(command, Bind):
                self.bound(command)
            elif isinstance(command, Retire):
                assert command.number in self.idle | self.parked or command.number in self.busy
                self.idle.discard(command.number)
                self.parked.discard(command.number)
                self.busy.pop(command.number, None)
                self.leaving.add(command.number)
            elif isinstance(command, Fail):
                self.waiting.remove(command.alloc_id)
            elif isinstance(command, Abort):
                assert command.number in self.starting | self.leaving

    def bound(self, command: Bind) -> None:
        self.waiting.remove(command.alloc_id)
        self.idle.remove(command.number)
        self.busy[command.number] = command.alloc_id
        job = self.job_of_alloc[command.alloc_id]
        assert self.env_of_worker[command.number] == self.env_of_alloc[command.alloc_id]
        assert command.number not in self.spent
        if command.alloc_id in self.fresh_allocs:
            assert command.number not in self.job_of_worker, "an actor got a used worker"
        assert self.job_of_worker.setdefault(command.number, job) == job, "a worker served two jobs"

    @rule(
        job=st.integers(1, 2),
        fresh=st.booleans(),
        env=st.sampled_from(["", "", "a", "b"]),
        restart=st.booleans(),
    )
    def request(self, job: int, fresh: bool, env: str, restart: bool) -> None:
        self.next_alloc += 1
        alloc_id = self.next_alloc
        self.waiting.add(alloc_id)
        self.job_of_alloc[alloc_id] = job
        if fresh:
            self.fresh_allocs.add(alloc_id)
        self.env_of_alloc[alloc_id] = env
        self.apply(self.pool.requested(alloc_id, job, fresh, self.now_s, env, restart))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        alloc_id = data.draw(st.sampled_from(sorted(self.waiting)))
        self.waiting.remove(alloc_id)
        self.pool.cancelled(alloc_id)

    @precondition(lambda self: self.starting)
    @rule(data=st.data(), ok=st.booleans(), final=st.booleans())
    def start(self, data: st.DataObject, ok: bool, final: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.starting)))
        self.starting.remove(number)
        if ok:
            self.idle.add(number)
            self.apply(self.pool.started(number, self.now_s))
        else:
            final = final and bool(self.env_of_worker[number])
            self.apply(self.pool.start_failed(number, "test", self.now_s, final=final))

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), reusable=st.booleans(), spent=st.booleans())
    def release(self, data: st.DataObject, reusable: bool, spent: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.busy)))
        if reusable and spent:
            self.spent.add(number)
        elif reusable:
            del self.busy[number]
            self.idle.add(number)
        self.apply(self.pool.released(number, reusable, self.now_s, spent))

    @precondition(lambda self: self.idle or self.busy or self.leaving or self.parked)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.idle | set(self.busy) | self.leaving | self.parked)))
        self.idle.discard(number)
        self.parked.discard(number)
        self.busy.pop(number, None)
        self.leaving.discard(number)
        self.apply(self.pool.gone(number, self.now_s))

    @precondition(lambda self: self.leaving)
    @rule(data=st.data())
    def decline(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.leaving)))
        self.leaving.remove(number)
        (self.parked if number in self.spent else self.idle).add(number)
        self.apply(self.pool.declined(number, self.now_s))

    @rule()
    def trim(self) -> None:
        self.apply(self.pool.trimmed(self.now_s))

    @rule()
    def preload(self) -> None:
        self.apply(self.pool.preloaded(self.now_s))

    @rule(seconds=st.sampled_from([0.01, 1.0, 5.0]))
    def tick(self, seconds: float) -> None:
        self.now_s += seconds
        self.apply(self.pool.ticked(self.now_s))

    @invariant()
    def consistent(self) -> None:
        self.pool.check()
        counts = self.pool.counts()
        assert counts["starting"] == len(self.starting) and counts["idle"] == len(self.idle)
        assert counts["spent"] == len(self.parked)
        assert counts["busy"] == len(self.busy) and counts["leaving"] == len(self.leaving)

    def teardown(self) -> None:
        """Starts succeed and workers die again: every request is served in the end."""
        for _ in range(400):
            if not self.waiting:
                return
            due_s = self.pool.next_tick_s()
            self.now_s = max(self.now_s + 0.001, due_s or 0.0)
            self.apply(self.pool.ticked(self.now_s))
            for number in sorted(self.starting):
                self.starting.remove(number)
                self.idle.add(number)
                self.apply(self.pool.started(number, self.now_s))
            for number in sorted(set(self.busy) | self.leaving):
                self.busy.pop(number, None)
                self.leaving.discard(number)
                self.apply(self.pool.gone(number, self.now_s))
        raise AssertionError(f"requests {sorted(self.waiting)} were never served")


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=60, stateful_step_count=50)
