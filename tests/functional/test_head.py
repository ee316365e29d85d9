"""``ftray start --head``, ``status``, ``stop``: a node that outlives drivers, and drivers that attach."""

from __future__ import annotations

import json
import os
import pickle
import signal
import textwrap
from pathlib import Path

import pytest

from tests.helpers import processes
from tests.helpers.heads import Head
from tests.helpers.sync import eventually

yaml = pytest.importorskip("yaml")
pytest.importorskip("click")

from ftray._cli.status import snapshot  # noqa: E402


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    with Head(tmp_path_factory.mktemp("head")) as found:
        found.start("--resources", '{"widget": 1}', "--labels", "zone=a, kind=b")
        yield found
        found.quick("stop")
        found.check_nothing_left()


@pytest.fixture
def cold(tmp_path):
    """No head yet."""
    with Head(tmp_path / "cold") as found:
        yield found


def idle(head):
    """Has everything of the drivers that left been given back?"""
    status = snapshot(head.session)
    return all(r["used"] == 0 for r in status["resources"].values()) and not status["demands"]


# -- drivers come and go


def test_a_driver_takes_its_work_along_but_not_the_node_nor_detached_actors(
    head, start_driver, gate, tmp_path
):
    (tmp_path / "driver0").mkdir()
    (tmp_path / "driver0" / "beside.py").write_text("WORD = 'of the first driver'\n")
    first = start_driver(
        """
        import os, pickle, sys
        import numpy as np
        import ftray as ray
        context = ray.init(namespace="ns")
        gate = pickle.loads(bytes.fromhex(sys.argv[1]))

        @ray.remote(num_cpus=0)
        class Counter:
            def __init__(self):
                import beside
                self.n = 0
                self.word = beside.WORD
            def incr(self):
                self.n += 1
                return self.n
            def pid(self):
                return os.getpid()
            def look(self):
                return [self.n, self.word, os.getcwd(), ray.get_runtime_context().namespace]

        @ray.remote(num_cpus=1)
        def hold(path):
            os.write(os.open(path, os.O_WRONLY | os.O_CREAT), b"%d" % os.getpid())
            gate.wait()

        kept = Counter.options(name="kept", lifetime="detached", max_restarts=1).remote()
        plain = Counter.options(name="plain").remote()
        ray.get([kept.incr.remote() for _ in range(3)])
        big = ray.put(np.zeros(1_000_000))
        ref = hold.remote(sys.argv[2])
        tell("actors", ray.get([kept.pid.remote(), plain.pid.remote()]))
        await_word()
        """,
        env=head.env,
        args=[pickle.dumps(gate).hex(), str(head.base / "holder")],
    )
    kept, plain = first.expect("actors")
    holder = int(eventually(lambda: (head.base / "holder").exists() and (head.base / "holder").read_text()))
    first.signal(signal.SIGKILL)
    first.finish(-signal.SIGKILL)
    processes.wait_ended([plain, holder])
    assert processes.is_running(kept)

    second = start_driver(
        """
        import os, signal
        import ftray as ray
        from tests.helpers.sync import eventually
        ray.init("auto", namespace="ns")
        kept = ray.get_actor("kept")
        tell("kept", ray.get([kept.incr.remote(), kept.pid.remote()]))
        try:
            ray.get_actor("plain")
        except ValueError as error:
            tell("plain", str(error))
        from ftray._api import node_rpc
        tell("bytes", eventually(lambda: node_rpc("object_store")["used"] == 0))
        tell("names", [row["name"] for row in node_rpc("list_named_actors")])
        os.kill(ray.get(kept.pid.remote()), signal.SIGKILL)  # restarted for a job whose driver is gone
        def look():
            try:
                return ray.get(kept.look.remote())
            except ray.exceptions.ActorUnavailableError:
                return None
        tell("restarted", eventually(look))
        ray.kill(kept)
        """,
        env=head.env,
    )
    assert second.expect("kept") == [4, kept]
    assert "no living actor named 'plain'" in second.expect("plain")
    assert second.expect("bytes")
    assert second.expect("names") == ["kept"]
    assert second.expect("restarted") == [0, "of the first driver", str(first.workdir), "ns"]
    second.finish()
    processes.wait_ended([kept])
    eventually(lambda: idle(head))


def test_every_way_to_name_the_node(head, start_driver):
    source = """
        import os, sys
        import ftray as ray
        def session(**options):
            with ray.init(**options) as context:
                return context["address"]
        found = [session(), session(address="auto"), session(address=sys.argv[1])]
        os.environ["FTRAY_TMPDIR"] = os.path.dirname(__file__)  # nothing to be found here
        for name in ("FTRAY_ADDRESS", "RAY_ADDRESS"):
            os.environ[name] = sys.argv[1]
            found += [session(), session(address="auto")]
            del os.environ[name]
        del os.environ["FTRAY_TMPDIR"]
        tell("found", found)
        os.environ["FTRAY_TMPDIR"] = sys.argv[2]
        with ray.init(address="local", num_cpus=1) as own:
            tell("own", own["address"] != sys.argv[1])
        errors = []
        for options in ({"num_cpus": 3}, {"address": "/nowhere"}):
            try:
                ray.init(**options)
            except (ValueError, ConnectionError) as error:
                errors.append(f"{type(error).__name__}: {error}")
        os.environ["RAY_ADDRESS"] = "ray://elsewhere:10001"
        try:
            ray.init()
        except ConnectionError as error:
            errors.append(str(error))
        tell("errors", errors)
        """
    driver = start_driver(source, env=head.env, args=[head.session, str(head.base)])
    assert driver.expect("found") == [head.session] * 7
    assert driver.expect("own") is True
    attaching, nowhere, remote = driver.expect("errors")
    assert attaching.startswith("ValueError: num_cpus cannot be given") and head.session in attaching
    assert 'address="local"' in attaching
    assert nowhere.startswith("ConnectionError: address='/nowhere'")
    assert "RAY_ADDRESS='ray://elsewhere:10001'" in remote
    driver.finish()


ATTACHED = """
    import os, sys
    import beside
    import ftray as ray
    ray.init(**eval(sys.argv[1]))

    @ray.remote
    def look():
        import beside
        return [beside.WORD, os.getcwd(), ray.get_runtime_context().namespace]

    @ray.remote
    def nested():
        return ray.get(look.remote())

    @ray.remote
    class Actor:
        def __init__(self):
            self.made = ray.get(look.remote())
        def look(self):
            return [beside.WORD, os.getcwd(), ray.get_runtime_context().namespace]
        def nested(self):
            return self.made, ray.get(nested.remote())
        def find(self):
            return ray.get_actor("here") is not None

    @ray.remote
    def make():
        other = Actor.options(name="made in a task").remote()
        return ray.get(other.look.remote()), ray.get_actor("made in a task") is not None

    actor = Actor.options(name="here").remote()
    tell("own", ray.get_runtime_context().namespace)
    seen = ray.get([look.remote(), nested.remote(), actor.look.remote()])
    tell("seen", [seen, ray.get(actor.nested.remote())])
    tell("made", ray.get([make.remote(), actor.find.remote()]))
    await_word()
"""


def check_environment(driver, word, namespace=None):
    own = driver.expect("own")
    assert namespace is None or own == namespace
    expected = [word, str(driver.workdir), own]
    assert driver.expect("seen") == [[expected] * 3, [expected, expected]]
    assert driver.expect("made") == [[expected, True], True]
    return own


def test_workers_have_their_drivers_modules_directory_and_namespace(head, start_driver, tmp_path):
    """Two drivers at a time, each with a module of the same name beside its script."""
    drivers = []
    for number, options in enumerate(({}, {}, {"namespace": "given"})):
        place = tmp_path / f"driver{number}"
        place.mkdir()
        (place / "beside.py").write_text(f"WORD = 'of {number}'\n")
        drivers.append(start_driver(ATTACHED, env=head.env, args=[repr(options)]))
    anonymous = [check_environment(driver, f"of {n}") for n, driver in enumerate(drivers[:2])]
    check_environment(drivers[2], "of 2", "given")
    assert len({*anonymous, "given"}) == 3 and all(len(name) == 36 for name in anonymous)
    for driver in drivers:
        driver.say("end")
        driver.finish()


def test_drivers_attached_to_another_drivers_node_have_theirs_too(start_driver, tmp_path):
    for number in (0, 1):
        place = tmp_path / f"driver{number}"
        place.mkdir()
        (place / "beside.py").write_text(f"WORD = 'of {number}'\n")
    owner = start_driver(
        "import ftray as ray\ntell('at', ray.init('local', num_cpus=2)['address'])\n"
        + textwrap.dedent(ATTACHED).replace("ray.init(**eval(sys.argv[1]))", "")
    )
    address = owner.expect("at")
    check_environment(owner, "of 0")
    attached = start_driver(ATTACHED, args=[repr({"address": address})])
    check_environment(attached, "of 1")
    for driver in (attached, owner):
        driver.say("end")
        driver.finish()
    owner.check_nothing_left()


def test_an_environment_goes_before_the_drivers_modules_and_directory(head, start_driver, tmp_path):
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    (shipped / "beside.py").write_text("WORD = 'of the environment'\n")
    place = tmp_path / "driver0"
    place.mkdir()
    (place / "beside.py").write_text("WORD = 'of the driver'\n")
    (place / "only.py").write_text("WORD = 'only of the driver'\n")
    driver = start_driver(
        """
        import os
        import sys
        import ftray as ray

        shipped = sys.argv[1]
        ray.init(runtime_env={"py_modules": [shipped + "/beside.py"], "env_vars": {"A": "of the job"}})

        @ray.remote
        def look():
            import beside
            import only
            here = os.getcwd()
            return beside.WORD, only.WORD, here, os.path.exists("beside.py"), os.environ["A"]

        @ray.remote
        class Actor:
            def look(self):
                return ray.get(look.remote())

        tell("modules", ray.get(look.remote()))
        tell("inherited", ray.get(Actor.remote().look.remote()))
        in_directory = look.options(runtime_env={"working_dir": shipped, "py_modules": []})
        tell("directory", ray.get(in_directory.remote()))
        """,
        env=head.env,
        args=[str(shipped)],
    )
    expected = ["of the environment", "only of the driver"]
    assert driver.expect("modules") == [*expected, str(driver.workdir), True, "of the job"]
    assert driver.expect("inherited") == [*expected, str(driver.workdir), True, "of the job"]
    *words, here, there, variable = driver.expect("directory")
    assert words == expected and here != str(driver.workdir) and there and variable == "of the job"
    driver.finish()


def test_a_driver_whose_directory_is_gone_can_attach(head, start_driver):
    driver = start_driver(
        """
        import os, tempfile
        path = tempfile.mkdtemp()
        os.chdir(path)
        os.rmdir(path)
        import ftray as ray
        ray.init()
        @ray.remote
        def two():
            return 2
        tell("two", ray.get(two.remote()))
        """,
        env=head.env,
    )
    assert driver.expect("two") == 2
    driver.finish()


@pytest.mark.parametrize("theirs", ["2-py3.11/9.9.9", "1-py2.7/0.1.0", "nonsense"])
def test_another_version_is_refused_on_both_sides(head, start_driver, theirs):
    from ftray._node.protocol import VERSION, version_text

    driver = start_driver(
        """
        import sys
        import ftray as ray
        from ftray._node import client, protocol
        client.VERSION = protocol.VERSION = sys.argv[1]
        try:
            ray.init()
        except ray.exceptions.VersionMismatchError as error:
            tell("refused", str(error))
        tell("running", ray.is_initialized())
        """,
        env=head.env,
        args=[theirs],
    )
    text = driver.expect("refused")
    assert version_text(theirs) in text and version_text(VERSION) in text
    assert driver.expect("running") is False
    driver.finish()
    log = Path(head.session, "ftrayd.log")
    both = (version_text(theirs), version_text(VERSION), str(driver.pid))
    eventually(lambda: any(all(text in line for text in both) for line in log.read_text().splitlines()))


# -- status


def test_status_shows_resources_and_what_waits(head, start_driver):
    driver = start_driver(
        """
        import ftray as ray
        ray.init()
        @ray.remote(num_cpus=1, resources={"widget": 1})
        class Holder:
            def ready(self):
                return True
        @ray.remote(resources={"widget": 1})
        def waits():
            pass
        @ray.remote(num_cpus=64)
        def never():
            pass
        holder = Holder.remote()
        ray.get(holder.ready.remote())
        refs = [waits.remote(), never.remote()]
        tell("submitted", {k: v for k, v in ray.nodes()[0]["Labels"].items() if k in ("zone", "kind")})
        await_word()
        """,
        env=head.env,
    )
    assert driver.expect("submitted") == {"zone": "a", "kind": "b"}

    def settled():
        return len(snapshot(head.session)["demands"]) == 2

    eventually(settled)
    found = json.loads(head.run("status", "--format", "json"))
    assert found["resources"]["CPU"] == {"used": 1.0, "total": 2.0}
    assert found["resources"]["widget"] == {"used": 1.0, "total": 1.0}
    waits, never = sorted(found["demands"], key=lambda d: d["resources"]["CPU"])
    assert (waits["name"], waits["count"], waits["feasible"]) == ("waits", 1, True)
    assert waits["resources"] == {"CPU": 1.0, "widget": 1.0}
    assert (never["name"], never["feasible"]) == ("never", False)
    (node,) = found["nodes"]
    assert (node["kind"], node["pid"], node["drivers"]) == ("head", head.pid, 1)
    assert node["session_dir"] == head.session and node["uptime_s"] > 0

    as_yaml = yaml.safe_load(head.quick("status", "--format", "yaml", "--address", head.session))
    assert as_yaml["resources"] == found["resources"] and as_yaml["demands"] == found["demands"]
    table = head.quick("status")
    for text in (head.session, "widget", "never", "more than the node has", "GiB"):
        assert text in table
    driver.say("end")
    driver.finish()
    eventually(lambda: idle(head))


def test_without_a_node(cold):
    assert "no ftray node of this user runs" in cold.run("status", status=1)
    assert "'/nowhere' is no running session" in cold.quick("status", "--address", "/nowhere", status=1)
    assert "no running session" in cold.quick("status", status=1, FTRAY_ADDRESS="/nowhere")
    assert cold.quick("stop") == "no node of this user runs\n"
    assert list(cold.base.iterdir()) == []


# -- start


def test_a_second_head_is_refused(head, tmp_path):
    text = head.run("start", "--head", "--storage", str(tmp_path / "other"), status=1)
    assert f"ftray runs already: its session is {head.session}" in text
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = ["--temp-dir", str(elsewhere), "--storage", str(head.storage)]
    text = head.run("start", "--head", *where, status=1)
    assert f"in use by another head (process {head.pid})" in text and "Traceback" not in text
    assert not list(elsewhere.glob("ftray-*/*"))


def test_two_heads_at_the_same_instant(cold):
    commands = [cold.popen("start", "--head", "--storage", str(cold.storage / name)) for name in "ab"]
    told = [command.communicate(timeout=60) for command in commands]
    assert sorted(command.returncode for command in commands) == [0, 1], told
    assert len(cold.sessions) == 1
    refused = next(err for command, (_, err) in zip(commands, told, strict=True) if command.returncode)
    assert "runs already" in refused
    cold.quick("stop")
    cold.check_nothing_left()


# -- stop


def test_stop_ends_workers_their_children_and_drivers_nodes(cold, start_driver):
    cold.start()
    source = """
        import subprocess
        import ftray as ray
        ray.init(**eval(__import__("sys").argv[1]))
        @ray.remote(num_cpus=0)
        class Parent:
            def child(self):
                self.process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
                return self.process.pid
        parent = Parent.options(name="parent", lifetime="detached").remote()
        tell("child", ray.get(parent.child.remote()))
        await_word()
        try:
            ray.get(parent.child.remote())
        except ray.exceptions.RayError as error:
            tell("error", type(error).__name__)
        """
    attached = start_driver(source, env=cold.env, args=["{}"])
    own = start_driver(source, env=cold.env, args=["{'address': 'local', 'num_cpus': 1}"])
    children = [driver.expect("child") for driver in (attached, own)]
    text = cold.run("stop")
    assert text.count("stopped") == 2 and "the head" in text and "a driver's node" in text
    processes.wait_ended(children)
    cold.check_nothing_left()
    for driver in (attached, own):
        driver.say("call")
        assert driver.expect("error") in ("HeadDiedError", "ActorDiedError")
        driver.finish()


@pytest.mark.parametrize("options", [("--force",), ("--grace-period", "0.2")])
def test_stop_kills_a_node_that_does_not_answer(cold, start_driver, options):
    cold.start()
    driver = start_driver(
        """
        import subprocess
        import ftray as ray
        ray.init()
        @ray.remote
        def child():
            return subprocess.Popen(["sleep", "1000"], start_new_session=True).pid
        tell("child", ray.get(child.remote()))
        """,
        env=cold.env,
    )
    child = driver.expect("child")
    driver.finish()
    os.kill(cold.pid, signal.SIGSTOP)
    text = cold.quick("stop", *options)
    assert "killed" in text
    processes.wait_ended([child])
    cold.check_nothing_left()


def test_block_ends_with_the_node_and_the_node_with_it(cold):
    args = ("start", "--head", "--block", "--storage", str(cold.storage))
    command = cold.popen(*args)
    assert "ftray runs" in command.stdout.readline()
    command.terminate()
    assert command.wait(30) == 0
    cold.check_nothing_left()
    command.communicate()

    command = cold.popen(*args)
    assert "ftray runs" in command.stdout.readline()
    os.kill(cold.pid, signal.SIGKILL)
    _, err = command.communicate(timeout=30)
    assert command.returncode == 1 and "the node has ended" in err
    cold.check_nothing_left()


def test_a_start_that_is_interrupted_leaves_nothing(cold):
    command = cold.popen("start", "--head", "--storage", str(cold.storage))
    eventually(lambda: cold.sessions)
    command.kill()
    command.communicate()
    if cold.sessions and processes.marked(cold.mark):  # it may have been ready just before
        cold.quick("stop")
    cold.check_processes_ended()
