"""`Controller`: a set of like workers that work in steps, and survive their deaths and the controller's own.

Owns: the steps since the last cut, which are done again after the workers were taken back. Invariant: what a
step returned, and the workers' states after it, are those of an undisturbed run (for methods that do the
same when they run again).

The controller is an object in the driver or in an actor of its own; it must not be a worker. Its process may
die at any time: the next controller of the same name goes on from the last cut, whose `Controller.step` says
how far that was.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

from .eligible import seconds
from .errors import CheckpointError, CheckpointOptionError, FencedError
from .groups import Group, group


class Controller:
    """Creates workers, has them do the same step together, and takes cuts on the way.

    Parameters
    ----------
    factory : callable
        Given the index of a worker (from 0) it returns a handle of a `Checkpointable` actor with
        ``max_restarts=-1`` and a name (or ``checkpoint_key``) of its own: that is how its state is found
        again. It is called again when the actor is dead for good. With ``lifetime="detached"`` and
        ``get_if_exists=True`` workers outlive their controller.
    n : int
        How many workers.
    name : str
        Of the group of the workers, see `ftray.checkpoint.group`.
    every : int or None
        Take a cut after this many steps. Default 10, or None when only `interval_s` is given.
    interval_s : float, optional
        Take a cut at the end of a step when so many seconds have passed since the last one.
    keep : int
        Newest cuts to keep, at least 2.
    max_retries : int
        How often a step is tried again because workers died, before the error is raised.
    timeout_s : float
        Bound on each cut and each recovery, in seconds.

    Raises
    ------
    CheckpointOptionError
        Wrong arguments, or the factory made something else; also what `ftray.checkpoint.group` raises.
    """

    def __init__(
        self,
        factory: Callable[[int], Any],
        n: int,
        *,
        name: str,
        every: int | None = None,
        interval_s: float | None = None,
        keep: int = 2,
        max_retries: int = 3,
        timeout_s: float = 60.0,
    ) -> None:
        if not callable(factory):
            raise CheckpointOptionError(
                f"factory={factory!r} is not allowed; it is a function of the worker's index"
            )
        self._every = _at_least("every", 10 if every is None and interval_s is None else every, 1)
        self._interval_s = None if interval_s is None else seconds("interval_s", interval_s)
        self._max_retries = _at_least("max_retries", max_retries, 0)
        self._factory, self._name, self._keep, self._timeout_s = factory, name, keep, timeout_s
        count = _at_least("n", n, 1)
        assert count is not None
        self._workers = [factory(i) for i in range(count)]
        self._since: list[tuple[str, Any]] = []  # method, and a ref to its arguments as they were
        self._unsure: set[int] = set()  # steps of cuts that failed, and may be there all the same
        self._save_error: BaseException | None = None
        self._unsettled = self._group_is_old = False
        self._step = self._saved_step = 0
        self._group = self._make_group()
        self._generation = self._group.generation
        if not self._group.is_new:
            self._go_back()
        self._saved_s = time.monotonic()

    @property
    def workers(self) -> tuple[Any, ...]:
        """Handles of the workers. What is called on them beside `perform` is not done again."""
        return tuple(self._workers)

    @property
    def group(self) -> Group:
        """The group of the workers."""
        return self._group

    @property
    def step(self) -> int:
        """How many steps the workers have done, those of earlier controllers included."""
        return self._step

    @property
    def save_error(self) -> BaseException | None:
        """Why the newest cut that was due could not be taken; None if it was."""
        return self._save_error

    def perform(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Have every worker run a method with these arguments: one step. Returns what each one returned.

        A cut that is due and cannot be taken undoes no step: that is warned of, is in `save_error`, and the
        cut is tried again after the next step.

        Raises
        ------
        RayActorError
            Workers died more than `max_retries` times in a row.
        RayTaskError
            What the method raised in a worker, of the first one that raised. The step has no effect then: all
            workers are taken back to before it.
        """
        import ftray

        error: BaseException | None = None
        kept = ftray.put((args, kwargs))  # the program may change them before the step is done again
        for _ in range(1 + (self._max_retries or 0)):
            try:
                self._settle()
                results = self._do(method, args, kwargs)
            except (ftray.exceptions.RayActorError, FencedError) as raised:
                self._unsettled, error = True, raised
                continue
            self._step += 1
            self._since.append((method, kept))
            self._save_if_due()
            return results
        assert error is not None
        raise error

    def checkpoint(self) -> str:
        """Take a cut now; returns its id."""
        self._settle()
        self._unsure.add(self._step)
        saved = self._group.save({"step": self._step}, generation=self._generation)
        self._since, self._saved_step, self._saved_s = [], self._step, time.monotonic()
        self._unsure, self._save_error = set(), None
        return saved

    def _save_if_due(self) -> None:
        import ftray

        due = self._every is not None and self._step - self._saved_step >= self._every
        if self._interval_s is not None:
            due = due or time.monotonic() - self._saved_s >= self._interval_s
        if not due:
            return
        try:
            self.checkpoint()
        except (FencedError, ftray.exceptions.RayActorError):
            self._unsettled = True  # a worker died: the step stands in `_since`, the next one comes after it
        except (CheckpointError, OSError, ftray.exceptions.RayTaskError) as error:
            self._save_error = error
            text = f"no cut of {self._name!r} after step {self._step}, and it is tried again after the next"
            warnings.warn(f"{text}: {type(error).__name__}: {error}", RuntimeWarning, stacklevel=3)

    def _do(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """One step; workers died in it if it raises `FencedError` or ``RayActorError``."""
        import ftray

        self._unsettled = True  # until it is known how it ended
        refs = [getattr(w, method).options(max_task_retries=0).remote(*args, **kwargs) for w in self._workers]
        ftray.wait(refs, num_returns=len(refs))
        results, raised = [], None
        for ref in refs:
            try:
                results.append(ftray.get(ref))
            except ftray.exceptions.RayTaskError as error:
                raised = raised or error
        if self._group.generation != self._generation:
            raise FencedError(f"workers of {self._name!r} were taken back during a step")
        if raised is not None:
            raise raised  # and they are taken back before the next step
        self._unsettled = False
        return results

    # -- recovery

    def _settle(self) -> None:
        """The workers are where the last step left them."""
        if not self._unsettled and self._group.generation == self._generation:
            return
        import ftray

        self._unsettled = True
        self._replace_dead()
        self._go_back()
        for method, kept in self._since:
            self._do(method, *ftray.get(kept))
        self._step = self._saved_step + len(self._since)
        self._unsettled = False

    def _go_back(self) -> None:
        cut = self._group.restore()
        note = next((info.note for info in self._group.list() if info.id == cut), None) or {}
        done = int(note.get("step", 0))
        if done in self._unsure:
            self._since, self._saved_step = self._since[done - self._saved_step :], done
        self._unsure = set()
        if self._since and done != self._saved_step:
            raise CheckpointError(
                f"the workers of {self._name!r} went back to step {done}, and the steps since "
                f"{self._saved_step} are "
                "known: the last cut could not be used. Make a new Controller, which goes on from there"
            )
        self._step = self._saved_step = done
        self._generation = self._group.generation

    def _replace_dead(self) -> None:
        import ftray

        dead = []
        for i, worker in enumerate(self._workers):
            try:
                ftray.get(worker.__ray_ready__.remote(), timeout=self._timeout_s)
            except ftray.exceptions.ActorUnavailableError:
                continue
            except ftray.exceptions.RayActorError:
                dead.append(i)
        for i in dead:
            self._workers[i] = self._factory(i)
            self._group_is_old = True
        if self._group_is_old:
            self._group = self._make_group()
            self._group_is_old = False

    def _make_group(self) -> Group:
        return group(self._workers, name=self._name, keep=self._keep, timeout_s=self._timeout_s)

    def __repr__(self) -> str:
        return f"Controller({self._name!r}, {len(self._workers)} workers, step {self._step})"


def _at_least(name: str, value: Any, least: int) -> int | None:
    if value is None and name == "every":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise CheckpointOptionError(
            f"{name}={value!r} is not allowed; {name} is an integer of at least {least}"
        )
    return value
