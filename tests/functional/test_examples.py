"""The examples do what they say, as a user would start them, and leave nothing behind."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ftray import checkpoint
from tests import ROOT
from tests.helpers import processes
from tests.helpers.sync import eventually

EXAMPLES = Path(ROOT, "examples")
TIMEOUT_S = 110

Run = Callable[..., subprocess.CompletedProcess[str]]


class Programs:
    """Starts examples in an empty directory; knows every process that they start."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mark = processes.new_mark()

    def start(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        path = [entry for entry in sys.path if entry and os.path.isdir(entry)]
        return subprocess.Popen(
            [sys.executable, str(EXAMPLES / name), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.directory,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(path), **{processes.MARK: self.mark}),
        )

    def run(self, name: str, *arguments: str, status: int = 0) -> str:
        program = self.start(name, *arguments)
        try:
            output, _nothing = program.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            processes.end(program.pid)
            output, _nothing = program.communicate()
            raise AssertionError(f"{name} did not end within {TIMEOUT_S} s:\n{output}") from None
        assert program.returncode == status, output
        return output


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    started = Programs(tmp_path)
    yield started
    processes.require_ended(started.mark)


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a module that the main example imports, the way it does."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return lambda name: importlib.import_module(f"immortal_parts.{name}")


def number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, f"no {pattern!r} in:\n{text}"
    return int(found[1].replace(",", ""))


# --- small examples ------------------------------------------------------------------------------------


def test_quickstart(programs: Programs) -> None:
    output = programs.run("quickstart.py", "--samples", "160000")
    estimate = re.search(r"pi is about (\d\.\d+)", output)
    assert estimate and abs(float(estimate[1]) - 3.1416) < 0.03
    assert "mean of each row: 499,999.5, 1,499,999.5, 2,499,999.5, 3,499,999.5" in output
    assert "the task failed with" in output and "ZeroDivisionError" in output


def test_a_controller_that_is_killed(programs: Programs) -> None:
    output = programs.run("controller.py", "--steps", "20", "--kills", "1")
    assert "killed the worker trial-0" in output and "killed the search at step" in output
    assert "PASS: the same losses as without kills" in output


def test_stream_counter(programs: Programs) -> None:
    output = programs.run("stream_counter.py", "--events", "3000", "--kills", "4")
    assert "PASS: every event counted once" in output
    assert number(r"(\d+) crashes", output) == 4


def test_stream_counter_refuses_more_kills_than_it_has_rounds(programs: Programs) -> None:
    assert "--kills" in programs.run("stream_counter.py", "--events", "1000", "--kills", "11", status=2)


def test_crawler_goes_on_where_it_stopped(programs: Programs) -> None:
    first = programs.run("resumable_crawler.py", "--pages", "60")
    assert "started from the first page" in first
    assert "fetched 60 pages in this run; 60 of" in first
    second = programs.run("resumable_crawler.py")
    assert "resumed with 60 pages done" in second
    assert number(r"fetched (\d+) pages", second) == 340
    assert "400 of 400 known pages done" in second
    third = programs.run("resumable_crawler.py")
    assert "resumed with 400 pages done" in third and "fetched 0 pages" in third


@pytest.mark.limit(120)
def test_crawler_goes_on_after_sigkill(programs: Programs) -> None:
    victim = programs.start("resumable_crawler.py", "--state", "state")
    state = programs.directory / "state"
    try:
        eventually(lambda: calls_saved(state) >= 50 or victim.poll() is not None, "a snapshot is written")
    finally:
        processes.end(victim.pid)
        victim.communicate()
    processes.wait_ended(processes.marked(programs.mark))
    again = programs.run("resumable_crawler.py", "--state", "state")
    before = number(r"resumed with (\d+) pages done", again)
    assert number(r"fetched (\d+) pages", again) == 400 - before
    assert "400 of 400 known pages done" in again


def calls_saved(state: Path) -> int:
    """How many calls of an actor the newest snapshot in this directory contains."""
    if not state.is_dir():
        return 0
    reader = checkpoint.open(state)
    keys = reader.keys()  # a method of the reader, which is no dict
    return max((info.calls for key in keys for info in reader.list(key) if not info.error), default=0)


# --- fault tolerance -----------------------------------------------------------------------------------


def test_tasks_that_fail(programs: Programs) -> None:
    assert programs.run("fault_tolerance/tasks.py").splitlines() == [
        "get: ValueError, also a ValueError: True",
        "the task that wanted the price failed with the same error, and was not run",
        "failed: read_price, attempt 0, TASK_EXECUTION_EXCEPTION",
        "failed: add_tax, attempt 0, DEPENDENCY_RESOLUTION_FAILED",
        "0 crashes, 1 retry: done at attempt 0",
        "1 crashes, 1 retry: done at attempt 1",
        "  attempt 0: FAILED WORKER_DIED",
        "  attempt 1: FINISHED",
        "2 crashes, 1 retry: given up",
        "5 crashes, no bound: done at attempt 5",
        "not retried by default: failed at attempt 0",
        "retried: an answer",
        "retried: an answer",
        "not among those to retry: failed at attempt 0",
        "4 crashes, the default of 3 retries: given up",
        "4 crashes, a default of 4: done at attempt 4",
        "cancelled: it was interrupted; it wrote: began, interrupted",
        "cancelled: its process was ended; it wrote: began",
        "6 calls in 3 processes, no process ran more than 2",
    ]


def test_actors_that_fail(programs: Programs) -> None:
    assert programs.run("fault_tolerance/actors.py").splitlines() == [
        "called again, called again, new actor, called again: what it has read",
        "restarted and retried, counting from 0 again: [1, 2, 1, 2]",
        "restarted, the call not retried: the caller is told, and decides",
        "the same handle reaches the next process: 1",
        "not restarted: ActorDiedError",
        "three rounds in 4 attempts: [6, 60, 600]",
    ]


def test_objects_whose_processes_die(programs: Programs) -> None:
    assert programs.run("fault_tolerance/objects.py").splitlines() == [
        "while its owner lives: the table",
        "after its death: OwnerDiedError",
        "the worker is dead, the value is there: 10 rows",
        "the worker is dead, the value is there: 1000000 rows",
    ]


def test_nodes_that_are_gone(programs: Programs) -> None:
    output = programs.run("fault_tolerance/nodes.py").splitlines()
    warnings = [line for line in output if line.startswith("ftray: ")]
    assert [line for line in output if line not in warnings] == [
        "wants node:127.0.0.3: waits",
        "cancelled",
        "soft, the node is there: ran on it",
        "soft, the node is gone: ran on another",
        "not soft, the node is gone: TaskUnschedulableError",
    ]
    assert [line for line in warnings if "node:127.0.0.3: 1 asked, 0 in total" in line]


def test_ways_to_keep_a_state(programs: Programs) -> None:
    output = programs.run("fault_tolerance/checkpoints.py")
    for way in ("file", "synced", "kv", "actor", "exactly-once"):
        # Every number was saved before its reply, and a call that had begun is run again by itself.
        assert re.search(rf"^{way} +2 kills, 0 calls again: the sum is 465$", output, re.M), output
    assert number(r"checkpointable +2 kills, (\d+) calls again: the sum is 465", output) <= 10


def test_bank(programs: Programs) -> None:
    output = programs.run("bank.py", "--transfers", "200", "--kills", "5", "--seed", "3")
    assert "5 crashes" in output and "together 4000 of 4000" in output
    assert "PASS: every cent is where it belongs" in output
    assert "--kills must be" in programs.run("bank.py", "--transfers", "20", "--kills", "1", status=2)


def test_word_count(programs: Programs) -> None:
    output = programs.run("word_count.py", "--lines", "80", "--crashes", "2")
    assert re.findall(r"^reader \d died at line (\d+)$", output, re.M) == ["26", "53"]
    assert "80 lines counted of 80\nPASS: every line counted once" in output
    assert "--crashes must be" in programs.run("word_count.py", "--lines", "2", "--crashes", "2", status=2)


# --- training under fire -------------------------------------------------------------------------------


def test_immortal_training(programs: Programs) -> None:
    output = programs.run("immortal_training.py", "--kills", "6", "--rounds", "120", "--out", "plot.png")
    assert "PASS: equal bit for bit" in output
    assert number(r"kills in the middle of work: (\d+) of 6", output) == 6
    assert number(r"\((\d+) x server", output) == 3
    assert number(r"(\d+) x worker;", output) == 3
    assert (programs.directory / "plot.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.limit(180)
def test_immortal_training_is_determined_by_its_seed(programs: Programs) -> None:
    def weights(seed: str) -> list[str]:
        output = programs.run("immortal_training.py", "--kills", "1", "--rounds", "10", "--seed", seed)
        found = re.search(r"weights:  undisturbed (\w+), immortal (\w+)", output)
        assert found, output
        return list(found.groups())

    first = weights("5")
    assert first == weights("5")
    assert first != weights("6")


@pytest.mark.parametrize(
    "arguments", [("--kills", "0"), ("--rounds", "10", "--kills", "3"), ("--every", "0")]
)
def test_immortal_training_refuses(programs: Programs, arguments: tuple[str, ...]) -> None:
    assert "--" + arguments[0].strip("-") in programs.run("immortal_training.py", *arguments, status=2)


# --- its judgement: a pass that cannot fail proves nothing ---------------------------------------------


def story_of(part: Callable[[str], ModuleType], title: str, kills: int, positions: list[int]) -> object:
    story = part("story").Story(title, rounds=100, kills_wanted=4, every=2)
    story.parameters = np.arange(8, dtype=np.float64)
    for index, position in enumerate(positions):
        story.observe(position, 0.9, pid=1)
        if index < kills:
            story.killed(1 + index % 2, pid=50 + index, at=story.began)
    return story


def test_verdict(part: Callable[[str], ModuleType]) -> None:
    judge = part("story").judge
    steps = list(range(60))
    good = story_of(part, "immortal", 4, steps)
    plain = story_of(part, "undisturbed", 0, steps)
    assert judge(plain, good).passed

    one_bit = story_of(part, "immortal", 4, steps)
    one_bit.parameters.view(np.uint64)[3] ^= 1
    assert judge(plain, one_bit).text.endswith("FAIL: the weights differ")

    too_few = story_of(part, "immortal", 3, steps)
    assert judge(plain, too_few).text.endswith("FAIL: too few kills landed")

    from_scratch = story_of(part, "immortal", 4, [*steps, 0, 60])
    assert judge(plain, from_scratch).text.endswith("FAIL: a restore lost too much")


def test_recovery_ends_with_a_reply_of_another_process(part: Callable[[str], ModuleType]) -> None:
    story = part("story").Story("immortal", rounds=10, kills_wanted=1, every=2)
    story.observe(1, 0.5, pid=7)
    story.killed(1, pid=7, at=story.began)
    story.observe(2, 0.5, pid=7)  # was on its way when the process died
    assert story.recoveries_s() == []
    story.observe(1, 0.5, pid=8)
    assert len(story.recoveries_s()) == 1
    assert (story.redone, story.deepest, story.furthest) == (1, 1, 2)


def test_kills_are_planned_by_the_seed(part: Callable[[str], ModuleType]) -> None:
    chaos = part("chaos")
    plan = chaos.plan
    strikes = plan(20, 200, seed=3)
    assert plan(20, 200, seed=3) == strikes != plan(20, 200, seed=4)
    assert sorted(strike.role for strike in strikes) == [1] * 10 + [2] * 10
    rounds = [strike.round for strike in strikes]
    assert rounds == sorted(set(rounds)) and rounds[0] > 0
    assert rounds[-1] < chaos.LAST_KILL * 200 < 200
    assert all(0 <= strike.fraction < 1 for strike in strikes)
    assert plan(0, 200, seed=3) == []


@pytest.mark.parametrize(("kills", "rounds"), [(1, 5), (2, 10), (7, 35), (40, 200)])
def test_plan_has_a_round_for_every_kill(part: Callable[[str], ModuleType], kills: int, rounds: int) -> None:
    planned = [strike.round for strike in part("chaos").plan(kills, rounds, seed=1)]
    assert len(set(planned)) == kills and planned == sorted(planned)
    assert planned[0] >= 1 and planned[-1] < rounds


WORKING = """
import sys
sys.path.insert(0, sys.argv[1])
from immortal_parts import board
print("ready", flush=True)
for line in sys.stdin:
    with board.at_work(sys.argv[2], board.SERVER):
        if line == "long\\n":
            input()
    print("done", flush=True)
"""


def test_round_is_held_until_its_kill_has_landed(part: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """However short the work: a round whose kill has not landed is not passed, and no other is held."""
    board = part("board").Board.create(str(tmp_path / "board"))
    story = part("story").Story("immortal", rounds=5, kills_wanted=1, every=2)
    monkey = part("chaos").Monkey(board, story, seed=1)
    (strike,) = part("chaos").plan(1, 5, seed=1)
    assert strike.role == part("board").SERVER
    server = subprocess.Popen(
        [sys.executable, "-c", WORKING, str(EXAMPLES), board.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin and server.stdout and server.stdout.readline() == "ready\n"
    with monkey:
        for early in range(strike.round):
            monkey.begin(early)
            assert not monkey.holds(early)
        monkey.begin(strike.round)
        assert monkey.holds(strike.round)  # nobody is at work
        server.stdin.write("long\n")  # is at work from here until it is killed
        server.stdin.flush()
        eventually(lambda: not monkey.holds(strike.round), "the kill lands and the round is passed")
    assert server.wait() == -9
    assert [kill.pid for kill in story.kills] == [server.pid]
    server.stdin.close()
    server.stdout.close()


def test_failure_of_the_chaos_thread_ends_the_training(
    part: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody ever works: the feeder that waits for the kill gets an error, it does not feed for ever."""
    chaos = part("chaos")
    monkeypatch.setattr(chaos, "STRIKE_TIMEOUT_S", 0.05)
    story = part("story").Story("immortal", rounds=5, kills_wanted=1, every=2)
    monkey = chaos.Monkey(part("board").Board.create(str(tmp_path / "board")), story, seed=1)

    def feed() -> bool:
        monkey.begin(4)
        return not monkey.holds(4)

    with pytest.raises(RuntimeError, match="the chaos thread failed") as error, monkey:
        eventually(feed, "the chaos thread gives up")
    assert isinstance(error.value.__cause__, TimeoutError)
    assert "no server was killed" in str(error.value.__cause__)


def test_marks_of_kills_stand_at_their_rounds(part: Callable[[str], ModuleType]) -> None:
    story = story_of(part, "immortal", 4, [0, 50, 99])
    marks = re.sub(r"\[.*?\]", "", part("display").kill_marks(story.kills, story.rounds, width=10))
    assert marks == "▼    ×   ▼"


def test_board_knows_who_died_at_work(part: Callable[[str], ModuleType], tmp_path: Path) -> None:
    module = part("board")
    board = module.Board.create(str(tmp_path / "board"))
    with module.at_work(board.path, module.WORKER):
        (me,) = board.at_work(module.WORKER)
        assert (me.pid, me.started) == (os.getpid(), module.started(os.getpid()))
        assert board.at_work(module.SERVER) == []
    assert board.at_work(module.WORKER) == []
    assert board.began(me) is None
    assert board.usual_s(module.WORKER) > 0 == board.usual_s(module.SERVER)
    assert not board.died_at_work(me)

    code = f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); from immortal_parts import board; import os\n"
    code += f"with board.at_work({board.path!r}, board.SERVER): os._exit(0)"
    subprocess.run([sys.executable, "-c", code], check=True)
    (dead,) = board.at_work(module.SERVER)
    assert board.died_at_work(dead)
    assert board.at_work(module.SERVER) == []


def test_kill_never_hits_a_later_process_of_that_pid(part: Callable[[str], ModuleType]) -> None:
    chaos, board = part("chaos"), part("board")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = board.started(child.pid)
    with pytest.raises(ProcessLookupError):
        chaos.kill(board.Process(board.WORKER, child.pid, began - 1))
    assert processes.is_running(child.pid)
    chaos.kill(board.Process(board.WORKER, child.pid, began))
    assert not processes.is_running(child.pid)
    assert child.wait() == -9
    child.stdin.close()
