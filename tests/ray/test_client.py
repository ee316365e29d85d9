"""A driver that reaches a cluster through Ray's client (``ray://host:port``)."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.sync import eventually

pytestmark = pytest.mark.limit(720)

PROGRAM = """
import asyncio, json, os, sys, time

import ftray
from ftray import Checkpointable, exceptions
from ftray.checkpoint import readonly
from ftray.util import state
from ftray.util.queue import Queue

address, store = sys.argv[1:]
found = {}


class Refused(Exception):
    def __init__(self, code, why):
        super().__init__(why)
        self.code = code


@ftray.remote
def add(a, b=1):
    return a + b


@ftray.remote
def refuse():
    raise Refused(7, "no")


@ftray.remote
def inside(box):
    return [add.remote(box["ref"], 5), ftray.get(box["actor"].incr.remote()), box["actor"]]


@ftray.remote
def numbers():
    yield 1


@ftray.remote
class Counter:
    def __init__(self, start=0):
        self.n = start

    def incr(self, by=1):
        self.n += by
        return self.n

    def fail(self):
        raise Refused(8, "method")

    @ftray.method(num_returns=2)
    def pair(self):
        return self.n, -self.n

    def stream(self):
        yield 1


class Account(Checkpointable, store=store, exactly_once=True):
    def __init__(self):
        self.balance = 0

    def add(self, amount):
        self.balance += amount
        return self.balance

    @readonly
    def pid(self):
        return os.getpid()


def error(function, *kinds):
    try:
        function()
    except kinds as raised:
        return raised
    return None


def not_supported(function):
    raised = error(function, exceptions.NotSupportedError)
    return raised is not None and "Ray's client" in str(raised)


deadline_s = time.monotonic() + 150
while not ftray.is_initialized():  # on a busy machine Ray's client gives up before its server is there
    try:
        ftray.init(engine="ray", address=address, namespace="tests")
    except ConnectionError as refused:
        assert "RAY_AUTH_TOKEN" in str(refused)
        if time.monotonic() > deadline_s:
            raise
found["tasks"] = ftray.get([add.remote(add.remote(1), b=ftray.put(10)), add.remote(3)])
raised = error(lambda: ftray.get(refuse.remote()), Refused)
found["task's error"] = [raised.code, isinstance(raised, exceptions.RayTaskError)]
slow = add.options(num_cpus=1000).remote(1)
soon = add.remote(1)
found["wait"] = ftray.wait([slow, soon], timeout=60) == ([soon], [slow])
found["time-out"] = error(lambda: ftray.get(slow, timeout=0.1), exceptions.GetTimeoutError) is not None
ftray.cancel(slow)
found["cancel"] = error(lambda: ftray.get(slow, timeout=60), exceptions.TaskCancelledError) is not None
found["future"] = add.remote(4).future().result(60)
found["await"] = asyncio.run(asyncio.wait_for(add.remote(5), 60))

counter = Counter.options(name="counter", lifetime="detached").remote(5)
found["actor"] = ftray.get([counter.incr.remote(), counter.incr.remote(by=4)])
found["pair"] = ftray.get(counter.pair.remote())
found["shell"] = ftray.get(counter.__ray_call__.remote(lambda self: self.n))
raised = error(lambda: ftray.get(counter.fail.remote()), Refused)
found["method's error"] = [raised.code, raised.function_name]
same = ftray.get_actor("counter")
found["named"] = [same == counter, ftray.get(same.incr.remote()), ftray.get(same.pair.remote())]
found["wrong arguments"] = error(lambda: counter.incr.remote(times=2), TypeError) is not None
found["no method"] = error(lambda: same.inc, AttributeError) is not None
child, count, other = ftray.get(inside.remote({"ref": ftray.put(1), "actor": counter}))
found["nested"] = [ftray.get(child), count, other == counter]
ftray.kill(counter)
context = ftray.get_runtime_context()
found["context"] = [context.namespace, context.get_actor_id(), len(context.get_node_id())]
found["nodes"] = len(ftray.nodes())
queue = Queue()
queue.put("a")
found["queue"] = queue.get()
queue.shutdown()
group = ftray.util.placement_group([{"CPU": 1}])
found["group"] = group.wait(60)
ftray.util.remove_placement_group(group)

account = ftray.remote(Account).options(name="account").remote()
found["first"] = ftray.get(account.add.remote(1))
pid = ftray.get(account.pid.remote())
os.kill(pid, 9)
found["after a crash"] = ftray.get(account.add.remote(1), timeout=120)
found["refused"] = [
    not_supported(lambda: numbers.remote()),
    not_supported(lambda: counter.stream.remote()),
    not_supported(lambda: add.options(retry_exceptions=[Refused]).remote(1)),
    not_supported(lambda: account.add.options(call_key="k").remote(1)),
    not_supported(state.list_actors),
]
ftray.shutdown()
found["over"] = not ftray.is_initialized()
print(json.dumps(found))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def directory() -> Iterator[str]:
    """Of the cluster's own, so that no other program finds the cluster; the path is short."""
    with tempfile.TemporaryDirectory(prefix="ftray-", ignore_cleanup_errors=True) as path:
        yield path


@pytest.fixture
def environment(directory: str) -> dict[str, str]:
    own = {"RAY_TMPDIR": directory, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | own


@pytest.fixture
def address(environment: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """A cluster with a server for clients, in the foreground of a process of ours, which ends it."""
    pytest.importorskip("grpc", reason="pip install 'ray[client]'")
    port = free_port()
    script = Path(sys.executable).with_name("ray")
    command = [
        str(script), "start", "--head", "--block", f"--port={free_port()}",
        f"--ray-client-server-port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2",
        f"--object-store-memory={100 << 20}",
        "--include-dashboard=false", "--disable-usage-stats",
    ]  # fmt: skip
    output = tmp_path / "head.log"
    with output.open("wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        eventually(lambda: listens(port), "the server for clients listens", timeout_s=240)
        yield f"ray://127.0.0.1:{port}"
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(60)


def run(program: str, environment: dict[str, str], *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_driver_of_rays_client(address: str, environment: dict[str, str], tmp_path: Path) -> None:
    assert run(PROGRAM, environment, address, str(tmp_path / "store")) == {
        "tasks": [12, 4],
        "task's error": [7, True],
        "wait": True,
        "time-out": True,
        "cancel": True,
        "future": 5,
        "await": 6,
        "actor": [6, 10],
        "pair": [10, -10],
        "shell": 10,
        "method's error": [8, "Counter.fail"],
        "named": [True, 11, [11, -11]],
        "wrong arguments": True,
        "no method": True,
        "nested": [6, 12, True],
        "context": ["tests", None, 56],
        "nodes": 1,
        "queue": "a",
        "group": True,
        "first": 1,
        "after a crash": 2,
        "refused": [True] * 5,
        "over": True,
    }


def test_what_rays_client_needs_is_named(environment: dict[str, str]) -> None:
    program = """
import json, sys
import ftray
sys.modules["grpc"] = None
try:
    ftray.init(engine="ray", address="ray://127.0.0.1:1")
except ImportError as error:
    print(json.dumps({"text": str(error)}))
"""
    assert "pip install 'ray[client]==2.60" in run(program, environment)["text"]
