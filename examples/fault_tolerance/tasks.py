"""What becomes of a task that fails: its exception, its dead worker, its hang, its leak.

    python examples/fault_tolerance/tasks.py

Runs through the ways a task can go wrong, one function for each, and says what the caller saw. Change the
import to ``import ray`` and the program runs on Ray.
"""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any

import ftray as ray
from ftray.util import state


def attempt() -> int:
    """0 the first time that a task runs, 1 when it runs again, and so on."""
    return int(ray.get_runtime_context().attempt_number)


# --- exceptions ----------------------------------------------------------------------------------------


@ray.remote
def read_price(text: str) -> float:
    return float(text)


@ray.remote
def add_tax(price: float) -> float:
    return 1.19 * price


def exceptions_reach_everybody() -> None:
    """An exception is the task's value: of a `get`, and of every task that takes the value as an argument."""
    price = read_price.remote("a lot")
    try:
        ray.get(price)
    except ray.exceptions.RayTaskError as error:  # also a ValueError, what the function raised
        print(f"get: {type(error.cause).__name__}, also a ValueError: {isinstance(error, ValueError)}")
    try:
        ray.get(add_tax.remote(price))
    except ValueError:
        print("the task that wanted the price failed with the same error, and was not run")


def look_up_what_failed() -> None:
    """The state API (on a terminal: ``ftray list tasks``) knows every attempt and why it failed."""
    for name in ("read_price", "add_tax"):
        for found in state.list_tasks(filters=[("name", "=", name), ("state", "=", "FAILED")]):
            print(f"failed: {name}, attempt {found.attempt_number}, {found.error_type}")


# --- retries -------------------------------------------------------------------------------------------


@ray.remote(max_retries=1)
def crash_at_first(times: int) -> str:
    """Take the worker process down with it, so many times."""
    if attempt() < times:
        os._exit(1)
    return f"done at attempt {attempt()}"


def dead_workers_are_retried() -> None:
    """``max_retries`` more attempts when a worker dies: 3 by default, -1 for no bound, 0 for none."""
    for times in (0, 1, 2):
        ref = crash_at_first.remote(times)
        try:
            print(f"{times} crashes, 1 retry: {ray.get(ref)}")
        except ray.exceptions.WorkerCrashedError:
            print(f"{times} crashes, 1 retry: given up")
        if times == 1:
            show_attempts(ref)
    print(f"5 crashes, no bound: {ray.get(crash_at_first.options(max_retries=-1).remote(5))}")


def show_attempts(ref: Any) -> None:
    found = state.list_tasks(filters=[("task_id", "=", ref.task_id().hex())])
    for one in sorted(found, key=lambda one: one.attempt_number):
        print(f"  attempt {one.attempt_number}: {one.state} {one.error_type or ''}".rstrip())


class Busy(Exception):
    """The service asks to come back later."""


@ray.remote(max_retries=3)
def ask_service(answers_at: int) -> str:
    if attempt() < answers_at:
        raise Busy(f"attempt {attempt()}")
    return "an answer"


@ray.remote(max_retries=3, retry_exceptions=[Busy])
def ask_wrongly() -> None:
    raise TypeError(f"attempt {attempt()}")


def exceptions_are_retried_if_you_say_which() -> None:
    """Only what can pass by itself is worth another attempt: by default no exception is retried."""
    try:
        ray.get(ask_service.remote(2))
    except Busy as error:
        print(f"not retried by default: failed at {error.args[0]}")
    for which in (True, [Busy]):
        print(f"retried: {ray.get(ask_service.options(retry_exceptions=which).remote(2))}")
    try:
        ray.get(ask_wrongly.remote())
    except TypeError as error:
        print(f"not among those to retry: failed at {error.args[0]}")


@ray.remote
def crash_in_child() -> str:
    @ray.remote
    def child() -> str:
        if attempt() < 4:
            os._exit(1)
        return f"done at attempt {attempt()}"

    return str(ray.get(child.remote()))


def the_default_of_a_program() -> None:
    """RAY_TASK_MAX_RETRIES, set for the driver, or in a runtime environment for what tasks submit."""
    try:
        ray.get(crash_in_child.remote())
    except ray.exceptions.WorkerCrashedError:
        print("4 crashes, the default of 3 retries: given up")
    patient = crash_in_child.options(runtime_env={"env_vars": {"RAY_TASK_MAX_RETRIES": "4"}})
    print(f"4 crashes, a default of 4: {ray.get(patient.remote())}")


# --- hangs and leaks -----------------------------------------------------------------------------------


@ray.remote
def hang(mark: str, stubborn: bool) -> None:
    """Run for ever; tell through the file `mark` that it has begun, and how it ended."""
    with open(mark, "a") as file:
        print("began", file=file, flush=True)
        while True:
            try:
                while True:
                    time.sleep(0.01)
            except KeyboardInterrupt:
                print("interrupted", file=file, flush=True)
                if not stubborn:
                    raise


def hanging_tasks_are_cancelled(directory: str) -> None:
    """`cancel` interrupts the task, with ``force=True`` it ends its process; it is not retried."""
    for stubborn in (False, True):
        mark = os.path.join(directory, f"stubborn-{stubborn}")
        ref = hang.remote(mark, stubborn)
        while not (os.path.exists(mark) and os.path.getsize(mark)):
            time.sleep(0.01)
        ray.cancel(ref, force=stubborn)
        try:
            ray.get(ref)
        except ray.exceptions.TaskCancelledError:
            how = "its process was ended" if stubborn else "it was interrupted"
            with open(mark) as file:
                print(f"cancelled: {how}; it wrote: {', '.join(file.read().split())}")


@ray.remote(max_calls=2)
def leak() -> int:
    """What a library leaks in here goes with the worker, which leaves after the second call."""
    return os.getpid()


def leaking_workers_are_replaced() -> None:
    pids = [ray.get(leak.remote()) for _ in range(6)]
    print(f"6 calls in {len(set(pids))} processes, no process ran more than {max(map(pids.count, pids))}")


def main() -> None:
    ray.init(num_cpus=2)
    exceptions_reach_everybody()
    look_up_what_failed()
    dead_workers_are_retried()
    exceptions_are_retried_if_you_say_which()
    the_default_of_a_program()
    with tempfile.TemporaryDirectory() as directory:
        hanging_tasks_are_cancelled(directory)
    leaking_workers_are_replaced()
    ray.shutdown()


if __name__ == "__main__":
    main()
