"""How many workers a node keeps, and which one serves an allocation.

A pure state machine: methods are events, their results are commands; time is an argument.

Owns: every worker's stage (starting, idle, busy, leaving), the requests that wait for a worker, the
number of spare workers, backoff of start-ups that fail.
Invariants: a worker serves one allocation at a time; a worker that served one job serves no other; a worker
of one runtime environment serves no other; an actor gets a worker that was never used; a waiting request is
served, cancelled or failed, never forgotten.
Leaves to others: making processes (``zygote``), their resources (``scheduler``), their deaths (the daemon).
"""

from __future__ import annotations

from enum import Enum

from ftray._node.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    Commands = list["Command"]


_FIRST_PAUSE_S = 0.02


class PoolSettings(Record):
    """Sizes and times of a pool.

    Attributes
    ----------
    prestart
        Task workers kept at hand.
    spare_min, spare_max
        Bounds of the number of unused idle workers kept beyond what is asked for.
    max_starting, max_workers
        Start-ups, and processes, at a time.
    quiet_s
        So long no spare is made after a worker was found for an actor's restart, which wants the CPUs itself.
    idle_timeout_s
        An idle worker beyond the target leaves after so long.
    startup_timeout_s, leave_timeout_s
        A worker that has not registered by then failed; one that was asked to exit and neither did nor
        declined is killed.
    max_failures, max_env_failures, backoff_s
        Start-ups that may fail in a row, plain ones and those in one runtime environment, before waiting
        requests get the error; the pause after the first failure, doubled by each further one.
    """

    prestart: int
    spare_min: int = 1
    spare_max: int = 4
    max_starting: int = 4
    max_workers: int = 4000
    quiet_s: float = 0.05
    idle_timeout_s: float = 5.0
    startup_timeout_s: float = 60.0
    leave_timeout_s: float = 10.0
    max_failures: int = 5
    max_env_failures: int = 3
    backoff_s: float = 0.05


class Command(Record):
    """What the daemon is to do."""


class Fork(Command):
    """Start a worker under this number, in a runtime environment ("": none)."""

    number: int
    env: str = ""


class Bind(Command):
    """The worker serves the allocation from now on."""

    alloc_id: int
    number: int


class Retire(Command):
    """Ask the worker to exit; one that owns objects may decline."""

    number: int
    may_decline: bool


class Abort(Command):
    """Kill a worker that did not register, or exit, in time."""

    number: int


class Fail(Command):
    """No worker can be started for the allocation (``env``: because of its runtime environment)."""

    alloc_id: int
    text: str
    env: bool = False


class Stage(Enum):
    """Where a worker is."""

    STARTING = 1
    IDLE = 2
    BUSY = 3
    LEAVING = 4
    SPENT = 5  # serves nobody any more, stays as long as others need what it owns


class _Worker:
    __slots__ = (
        "dedicated",
        "env",
        "generation",
        "job_id",
        "number",
        "pause_s",
        "since_s",
        "spent",
        "stage",
        "used",
    )

    def __init__(self, number: int, generation: int, now_s: float, env: str) -> None:
        self.number = number
        self.env = env
        self.generation = generation
        self.stage = Stage.STARTING
        self.since_s = now_s
        self.job_id: int | None = None
        self.used = False
        self.dedicated = False
        self.spent = False
        self.pause_s = 0.0  # before a spent one is asked again


class _Request(Record):
    alloc_id: int
    job_id: int
    fresh: bool
    env: str


class _Trial:
    """How starting workers of one runtime environment goes."""

    __slots__ = ("failures", "fork_after_s")

    def __init__(self) -> None:
        self.failures = 0
        self.fork_after_s = float("-inf")


class Pool:
    """The workers of one node."""

    def __init__(self, settings: PoolSettings) -> None:
        self.settings = settings
        self._workers: dict[int, _Worker] = {}
        self._at: dict[Stage, dict[int, _Worker]] = {stage: {} for stage in Stage}  # the same, by stage
        self._leased = 0  # busy workers that serve leases
        self._requests: dict[int, _Request] = {}  # in order of arrival
        self._next_number = 1
        self._generation = 0
        self._spare = settings.spare_min
        self._demand_at_s = float("-inf")
        self._quiet_until_s = float("-inf")
        self._trials: dict[str, _Trial] = {"": _Trial()}  # by environment; others than "" while they fail
        self.trouble = ""  # why no plain worker can be started at present
        self._stopped = False

    # Events ---------------------------------------------------------------------------------------

    def opened(self, now_s: float) -> Commands:
        """Workers can be started from now on."""
        return self._refill(now_s)

    def requested(
        self, alloc_id: int, job_id: int, fresh: bool, now_s: float, env: str = "", restart: bool = False
    ) -> Commands:
        """An allocation needs a worker of an environment; ``fresh``: one that was never used.

        ``restart``: for an actor that somebody may be waiting for; the next spare is made a moment later.
        """
        request = _Request(alloc_id, job_id, fresh, env)
        worker = self._best_idle(request)
        if worker is not None:
            if restart:
                self._quiet_until_s = now_s + self.settings.quiet_s
            return [self._bind(worker, request, now_s), *self._refill(now_s)]
        if not env and (self._requests or not self._at[Stage.STARTING]):
            self._spare = min(self.settings.spare_max, self._spare + 1)
        self._demand_at_s = now_s
        self._requests[alloc_id] = request
        return self._refill(now_s)

    def cancelled(self, alloc_id: int) -> None:
        """The allocation needs no worker any more."""
        self._requests.pop(alloc_id, None)

    def started(self, number: int, now_s: float) -> Commands:
        """A worker registered."""
        worker = self._workers[number]
        if worker.stage is not Stage.STARTING:
            raise RuntimeError(f"worker {number} registered in stage {worker.stage.name}")
        self._succeeded(worker.env)
        return self._idle(worker, now_s) + self._retire_outdated(now_s) + self._refill(now_s)

    def start_failed(
        self, number: int, text: str, now_s: float, fault: bool = True, final: bool = False
    ) -> Commands:
        """A worker died, or could not be made, before it registered.

        Without ``fault`` (what should have made it was killed) it is simply made anew; ``final``: trying
        again would not help, its environment cannot be set up.
        """
        worker = self._remove(number)
        if worker is None:
            return []
        if not fault:
            return [*self._refill(now_s)]
        env = worker.env
        trial = self._trials.setdefault(env, _Trial())
        trial.failures += 1
        trial.fork_after_s = now_s + self.settings.backoff_s * 2 ** min(trial.failures - 1, 8)
        limit = self.settings.max_env_failures if env else self.settings.max_failures
        if trial.failures < limit and not final:
            return []
        story = self._failure(trial.failures, text, final)
        if env:
            del self._trials[env]  # who asks again gets another try
        else:
            self.trouble = story
        failed = [Fail(r.alloc_id, story, bool(env)) for r in self._requests.values() if r.env == env]
        for fail in failed:
            del self._requests[fail.alloc_id]
        return [*failed, *self._refill(now_s)]

    def released(self, number: int, reusable: bool, now_s: float, spent: bool = False) -> Commands:
        """The allocation that the worker served is over.

        A ``spent`` one serves no other; it leaves as soon as nobody needs what it owns.
        """
        worker = self._workers.get(number)
        if worker is None or worker.stage is not Stage.BUSY:
            return []  # it died, or is leaving
        if not reusable:
            return [self._retire(worker, now_s, may_decline=False), *self._refill(now_s)]
        worker.spent = spent
        if spent:
            return [self._retire(worker, now_s), *self._refill(now_s)]
        return self._idle(worker, now_s) + self._refill(now_s)

    def declined(self, number: int, now_s: float) -> Commands:
        """A worker that was asked to exit stays."""
        worker = self._workers.get(number)
        if worker is None or worker.stage is not Stage.LEAVING:
            return []
        if worker.spent:
            # It may only have been about to finish its last call: ask again soon, then less and less often.
            worker.pause_s = min(self.settings.idle_timeout_s, max(_FIRST_PAUSE_S, 2 * worker.pause_s))
            self._move(worker, Stage.SPENT, now_s)
            return []
        return self._idle(worker, now_s)

    def gone(self, number: int, now_s: float) -> Commands:
        """A registered worker died."""
        if self._remove(number) is None:
            return []
        return self._refill(now_s)

    def job_ended(self, job_id: int, now_s: float) -> Commands:
        """A driver left: idle workers that served its job serve no other."""
        resting = (*self._at[Stage.IDLE].values(), *self._at[Stage.SPENT].values())
        idle = [w for w in resting if w.job_id == job_id]
        return [self._retire(w, now_s, may_decline=False) for w in idle] + self._refill(now_s)

    def preloaded(self, now_s: float) -> Commands:
        """Workers made from now on share more modules: unused older ones are replaced."""
        self._generation += 1
        return self._refill(now_s)

    def trimmed(self, now_s: float) -> Commands:
        """Memory is short: idle workers that have run something, and may have kept much of it, leave."""
        used = [w for w in self._at[Stage.IDLE].values() if w.used]
        return [self._retire(w, now_s) for w in used] + self._refill(now_s)

    def stopped(self) -> None:
        """No worker is started any more."""
        self._stopped = True

    def ticked(self, now_s: float) -> Commands:
        """Time has passed."""
        commands: Commands = []
        for stage, limit_s in self._patience():
            for worker in self._at[stage].values():
                if now_s - worker.since_s >= limit_s:
                    worker.since_s = now_s
                    commands.append(Abort(worker.number))
        if (
            now_s - self._demand_at_s >= self.settings.idle_timeout_s
            and self._spare > self.settings.spare_min
        ):
            self._spare -= 1
            self._demand_at_s = now_s
        return commands + self._reap(now_s) + self._refill(now_s)

    # Queries --------------------------------------------------------------------------------------

    def next_tick_s(self) -> float | None:
        """Return when ``ticked`` is due, None when nothing depends on time."""
        times = []
        for stage, limit_s in self._patience():
            if self._at[stage]:
                times.append(min(w.since_s for w in self._at[stage].values()) + limit_s)
        times += [w.since_s + w.pause_s for w in self._at[Stage.SPENT].values()]
        excess = self._excess()
        if excess:
            times.append(min(w.since_s for w in excess) + self.settings.idle_timeout_s)
        times += [t.fork_after_s for env, t in self._trials.items() if t.failures and self._missing(env) > 0]
        if self._quiet_until_s != float("-inf") and self._missing("") > 0:
            times.append(self._quiet_until_s)
        if self._spare > self.settings.spare_min:
            times.append(self._demand_at_s + self.settings.idle_timeout_s)
        return min(times, default=None)

    def stage_of(self, number: int) -> Stage | None:
        """Return where the worker is, None when it is unknown."""
        worker = self._workers.get(number)
        return None if worker is None else worker.stage

    def counts(self) -> dict[str, int]:
        """Return the number of workers in each stage."""
        return {stage.name.lower(): len(workers) for stage, workers in self._at.items()}

    def check(self) -> None:
        """Raise AssertionError when the state contradicts itself (for tests)."""
        assert not (self._requests and any(self._best_idle(r) for r in self._requests.values()))
        assert len(self._workers) <= self.settings.max_workers
        assert len(self._at[Stage.STARTING]) <= self.settings.max_starting
        assert sum(map(len, self._at.values())) == len(self._workers)
        assert all(w.stage is stage for stage, workers in self._at.items() for w in workers.values())
        assert self._leased == sum(not w.dedicated for w in self._at[Stage.BUSY].values())
        assert self.settings.spare_min <= self._spare <= self.settings.spare_max

    # Mechanics ------------------------------------------------------------------------------------

    def _move(self, worker: _Worker, stage: Stage, now_s: float) -> None:
        """Change a worker's stage; where it counts as busy, ``dedicated`` is as it should be."""
        del self._at[worker.stage][worker.number]
        if worker.stage is Stage.BUSY:
            self._leased -= not worker.dedicated
        worker.stage = stage
        worker.since_s = now_s
        self._at[stage][worker.number] = worker
        if stage is Stage.BUSY:
            self._leased += not worker.dedicated

    def _remove(self, number: int) -> _Worker | None:
        worker = self._workers.pop(number, None)
        if worker is not None:
            del self._at[worker.stage][number]
            if worker.stage is Stage.BUSY:
                self._leased -= not worker.dedicated
        return worker

    def _patience(self) -> tuple[tuple[Stage, float], ...]:
        """How long a worker may stay in these stages before it is killed."""
        return (
            (Stage.STARTING, self.settings.startup_timeout_s),
            (Stage.LEAVING, self.settings.leave_timeout_s),
        )

    def _failure(self, failures: int, text: str, final: bool) -> str:
        if final:
            return text
        tries = f"{failures} tries failed in a row"
        return f"no worker process could be started, {tries}; the last one: {text}"

    def _succeeded(self, env: str) -> None:
        if env:
            self._trials.pop(env, None)
        else:
            self._trials[env] = _Trial()
            self.trouble = ""

    def _best_idle(self, request: _Request) -> _Worker | None:
        """Return the warmest that fits: the one this job used last, else the newest kind of unused."""
        best = None
        for worker in self._at[Stage.IDLE].values():
            if worker.env != request.env or worker.job_id not in (None, request.job_id):
                continue
            if request.fresh and worker.used:
                continue
            rank = (worker.used, worker.generation, worker.since_s if worker.used else -worker.since_s)
            if best is None or rank > best[0]:
                best = (rank, worker)
        return None if best is None else best[1]

    def _bind(self, worker: _Worker, request: _Request, now_s: float) -> Command:
        worker.job_id = request.job_id
        worker.used = True
        worker.dedicated = request.fresh
        self._move(worker, Stage.BUSY, now_s)
        return Bind(request.alloc_id, worker.number)

    def _idle(self, worker: _Worker, now_s: float) -> Commands:
        """The worker is free: it serves the first request that it fits."""
        self._move(worker, Stage.IDLE, now_s)
        for request in self._requests.values():
            if self._best_idle(request) is worker:
                del self._requests[request.alloc_id]
                return [self._bind(worker, request, now_s)]
        return []

    def _idle_unused(self) -> list[_Worker]:
        return [w for w in self._at[Stage.IDLE].values() if not w.used and not w.env]

    def _task_workers(self) -> int:
        """Workers that serve, or have served, leases."""
        return self._leased + sum(w.used for w in self._at[Stage.IDLE].values())

    def _unused_target(self) -> int:
        """How many plain unused workers there should be once those that start are there."""
        return self._wanted("") + max(self._spare, self.settings.prestart - self._task_workers())

    def _wanted(self, env: str) -> int:
        """How many requests wait for a worker of this environment."""
        return sum(request.env == env for request in self._requests.values())

    def _missing(self, env: str) -> int:
        """How many start-ups to add now, time aside; spares are plain workers only."""
        all_starting = len(self._at[Stage.STARTING])
        starting = sum(w.env == env for w in self._at[Stage.STARTING].values())
        if self._stopped or len(self._workers) >= self.settings.max_workers:
            return 0
        if env:
            wanted = self._wanted(env) - starting
        elif self._trials[env].failures >= self.settings.max_failures:
            wanted = min(1, self._wanted(env)) - starting
        else:
            current = sum(w.generation == self._generation for w in self._idle_unused())
            wanted = self._unused_target() - current - starting
        room = self.settings.max_workers - len(self._workers)
        return min(wanted, room, self.settings.max_starting - all_starting)

    def _refill(self, now_s: float) -> Commands:
        commands: Commands = []
        if now_s >= self._quiet_until_s:
            self._quiet_until_s = float("-inf")
        # Environments first: what waits for them cannot use a spare. The order is that of the requests.
        envs = dict.fromkeys(request.env for request in self._requests.values() if request.env)
        for env in (*envs, ""):
            trial = self._trials.get(env)
            if trial is not None and trial.failures and now_s < trial.fork_after_s:
                continue
            if now_s < self._quiet_until_s and not self._wanted(env):
                continue
            for _ in range(self._missing(env)):
                commands.append(self._start(env, now_s))
        return commands

    def _start(self, env: str, now_s: float) -> Command:
        number = self._next_number
        self._next_number += 1
        worker = _Worker(number, self._generation, now_s, env)
        self._workers[number] = self._at[Stage.STARTING][number] = worker
        return Fork(number, env)

    def _excess(self) -> list[_Worker]:
        """Idle workers beyond what is kept, those idle longest first."""
        unused = self._idle_unused()
        unused.sort(key=lambda w: (w.generation, w.since_s))
        excess = unused[: max(0, len(unused) - self._unused_target())]
        used = [w for w in self._at[Stage.IDLE].values() if w.used and not w.env]
        used.sort(key=lambda w: w.since_s)
        keep = max(0, self._task_workers() - self.settings.prestart)
        return excess + used[:keep] + [w for w in self._at[Stage.IDLE].values() if w.env]

    def _reap(self, now_s: float) -> Commands:
        due = now_s - self.settings.idle_timeout_s
        leaving = [w for w in self._excess() if w.since_s <= due]
        leaving += [w for w in self._at[Stage.SPENT].values() if w.since_s + w.pause_s <= now_s]
        return [self._retire(w, now_s) for w in leaving]

    def _retire_outdated(self, now_s: float) -> Commands:
        """Unused workers of an older generation go as soon as newer ones are there."""
        outdated = [w for w in self._excess() if not w.used and w.generation < self._generation]
        return [self._retire(w, now_s) for w in outdated]

    def _retire(self, worker: _Worker, now_s: float, may_decline: bool = True) -> Command:
        self._move(worker, Stage.LEAVING, now_s)
        return Retire(worker.number, may_decline)
