"""``ftray list``, ``get``, ``summary``, ``memory``, ``logs``, ``timeline`` and ``stack``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
yaml = pytest.importorskip("yaml")

from click.testing import CliRunner, Result  # noqa: E402

import ftray as ray  # noqa: E402
from ftray._cli.main import group  # noqa: E402
from tests.helpers.sync import Mailbox, eventually  # noqa: E402

# Output of workers must not stand between that of the commands.
pytestmark = [pytest.mark.usefixtures("runtime"), pytest.mark.runtime(log_to_driver=False)]


def run(*arguments: str, status: int = 0) -> Result:
    result = CliRunner().invoke(group, list(arguments), catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result


def rows(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--format", "json").stdout)


@ray.remote
def printer(i: int) -> int:
    print(f"line {i}")
    print(f"trouble {i}", file=sys.stderr)
    return os.getpid()


@ray.remote
class Talker:
    def talk(self, words: str) -> int:
        print(words)
        return os.getpid()


def test_tables_and_data_have_the_same_rows() -> None:
    ref = printer.remote(1)
    pid = ray.get(ref)
    task_id = ref.hex()[:48]
    (row,) = rows("list", "tasks", "--filter", f"task_id={task_id}")
    assert (row["state"], row["worker_pid"]) == ("FINISHED", pid)
    table = run("list", "task", "-f", f"task_id={task_id}").stdout
    assert "======== List: " in table and "Total: 1" in table
    header, line = table.splitlines()[-2:]
    assert header.split()[:4] == ["TASK_ID", "ATTEMPT_NUMBER", "NAME", "STATE"]
    assert line.split()[:5] == ["0", task_id, "0", "printer", "FINISHED"]
    (detail,) = yaml.safe_load(run("list", "tasks", "--detail", "-f", f"task_id={task_id}").stdout)
    assert detail["start_time_ms"] and set(row) < set(detail)
    assert rows("list", "tasks", "--filter", f"task_id={task_id}", "--filter", "state!=FINISHED") == []


def test_get_shows_everything_or_says_that_there_is_nothing() -> None:
    actor = Talker.options(name="talker").remote()
    pid = ray.get(actor.talk.remote("hi"))
    found = yaml.safe_load(run("get", "actor", actor._actor_id.hex()).stdout)
    assert (found["name"], found["pid"], found["num_restarts"]) == ("talker", pid, 0)
    assert "talker" in run("get", "actors", actor._actor_id.hex(), "--format", "table").stdout
    assert "there is no actor with the id 'ff'" in run("get", "actors", "ff", status=1).output


def test_limits_and_what_is_cut_off() -> None:
    ray.get([printer.remote(i) for i in range(5)])
    result = run("list", "tasks", "-f", "name=printer", "--limit", "2", "--format", "json")
    assert len(json.loads(result.stdout)) == 2
    assert "2 of " in result.stderr
    assert "limit=0 is out of range" in run("list", "tasks", "--limit", "0", status=1).output


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["list", "fruits"], 2, "there are tasks, actors, objects"),
        (["list", "tasks", "-f", "state"], 2, "use key=value or key!=value"),
        (["list", "tasks", "-f", "colour=red"], 1, "'colour' cannot be filtered by; allowed are"),
        (["list", "tasks", "-f", "attempt_number=x"], 1, "attempt_number is a number"),
        (["list", "nodes", "--address", "/nowhere"], 1, "no session to ask"),
        (["list", "nodes", "--timeout", "0"], 1, "timeout=0.0 is out of range"),
        (["list", "tasks", "--format", "xml"], 2, "'xml' is not one of"),
        (["summary", "nodes"], 2, "'nodes' is not one of"),
        (["logs", "123456789"], 1, "is no worker, actor, task or process id"),
        (["logs", "1", "--err", "--out"], 2, "exclude each other"),
        (["timeline", "/nowhere/file"], 1, "cannot be written"),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], status: int, message: str) -> None:
    ray.get(printer.remote(1))
    assert message in run(*arguments, status=status).output


def test_summaries() -> None:
    ray.get([printer.remote(i) for i in range(3)])
    actor = Talker.remote()
    ray.get(actor.talk.remote("x"))
    tasks = rows("summary", "tasks")
    assert tasks["summary"]["printer"]["state_counts"]["FINISHED"] >= 3
    table = run("summary", "actors").stdout
    assert "Table (group by class)" in table and "Talker" in table
    ref = ray.put(b"x" * 150_000)
    objects = rows("summary", "objects")
    assert objects["total_size_mb"] >= 0.15
    assert "call sites are not recorded" in run("list", "objects").stderr
    del ref


def test_memory_tells_who_holds_what() -> None:
    ref = ray.put(b"x" * 250_000)
    found = rows("memory")
    assert found["store_capacity_bytes"] >= found["store_used_bytes"] >= 250_000
    (row,) = [r for r in found["rows"] if r["object_id"] == ref.hex()]
    assert (row["pid"], row["reference_type"]) == (os.getpid(), "PINNED_IN_MEMORY")
    assert ref.hex() in run("memory", "--sort-by", "pid").stdout


def test_logs_of_a_worker_an_actor_and_a_task() -> None:
    ref = printer.remote(77)
    pid = ray.get(ref)
    actor = Talker.remote()
    ray.get(actor.talk.remote("from the actor"))
    eventually(lambda: "line 77" in run("logs", str(pid), "--out").stdout)
    assert "trouble 77" in run("logs", ref.hex()[:48], "--err", "--tail", "-1").stdout
    assert "trouble" not in run("logs", str(pid), "--out").stdout
    eventually(lambda: run("logs", actor._actor_id.hex()).stdout == "from the actor\n")
    assert str(pid) in run("logs").stdout


def test_following_ends_with_the_worker(mailbox: Mailbox) -> None:
    @ray.remote(max_retries=0)
    def last(box: Any) -> None:
        print("last words", flush=True)
        box.post(os.getpid())
        os._exit(0)

    ref = last.remote(mailbox)
    pid = mailbox.take()
    ray.wait([ref])
    assert "last words\n" in run("logs", str(pid), "--follow").stdout


def test_timeline_and_stack(tmp_path: Path, mailbox: Mailbox) -> None:
    @ray.remote
    def spin(box: Any) -> None:
        box.post(os.getpid())
        while True:
            pass

    ref = spin.remote(mailbox)
    pid = mailbox.take()
    path = tmp_path / "t.json"
    assert str(path) in run("timeline", str(path)).stdout
    assert any(e["pid"] == pid and e["args"].get("state") == "RUNNING" for e in json.loads(path.read_text()))
    text = run("stack", "--no-py-spy").stdout
    assert f"=== worker {pid} " in text
    assert "in spin" in text and "spin for " in text
    (found,) = [w for w in rows("stack", "--no-py-spy") if w["pid"] == pid]
    assert found["source"] == "signal"
    ray.cancel(ref, force=True)
    ray.wait([ref])


def test_a_process_of_its_own_finds_the_session(runtime: Any) -> None:
    ray.get(printer.remote(3))
    done = subprocess.run(
        [sys.executable, "-m", "ftray", "list", "jobs", "--format", "json"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (job,) = json.loads(done.stdout)
    assert (job["type"], job["status"]) == ("DRIVER", "RUNNING")
    assert "asyncio" not in done.stderr
