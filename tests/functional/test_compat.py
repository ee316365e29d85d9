"""Programs written for Ray, unchanged: the alias in the driver, in workers, in pytest; how they are run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from tests.helpers.drivers import DriverFailedError

WITH_ALIAS = ["-m", "ftray.compat"]
RAY_PROGRAM = """
import sys
import ray
import ray.exceptions as errors
from ray.exceptions import RayTaskError
from ray.util.queue import Queue
import ray.util.multiprocessing, ray.util.joblib
import ray.actor, ray.runtime_context, ray.remote_function, ray.types

import beside

ray.init(num_cpus=2)

@ray.remote
def names(thing):
    import ray, sys
    @ray.remote
    def inner():
        import ray
        return ray.__name__
    return ray.__name__, type(thing).__module__, ray.get(inner.remote())

@ray.remote(max_restarts=1, max_task_retries=1)
class Actor:
    def fail(self):
        import os, ray
        raise ray.exceptions.RaySystemError("told")
    def pid(self):
        import os
        return os.getpid()

import ftray
tell("one module", [ray is ftray, errors is ftray.exceptions, ftray.__spec__.name, Queue.__module__])
tell("workers", ray.get([names.remote(beside.Thing()), beside.helper.remote()]))
actor = Actor.remote()
try:
    ray.get(actor.fail.remote())
except errors.RaySystemError as error:
    tell("error", [isinstance(error, RayTaskError), type(error).__module__])
import os, signal
before = ray.get(actor.pid.remote())
os.kill(before, signal.SIGKILL)
tell("restarted", ray.get(actor.pid.remote()) != before)
import pickle
tell("pickles name ftray", b"ftray" in pickle.dumps(errors.GetTimeoutError("x")))
"""
BESIDE = """
import ray

class Thing:
    made_by = ray.ObjectRef

@ray.remote
def helper():
    return ray.__name__
"""


def beside(driver_dir, name="beside.py", text=BESIDE):
    driver_dir.mkdir(parents=True, exist_ok=True)
    (driver_dir / name).write_text(textwrap.dedent(text))


def test_a_program_runs_unchanged(start_driver, tmp_path):
    """What it imports imports ray as well, in the driver and, before anything is unpickled, in workers."""
    beside(tmp_path / "driver0")
    driver = start_driver(RAY_PROGRAM, python_flags=WITH_ALIAS)

    assert driver.expect("one module") == [True, True, "ftray", "ftray.util.queue"]
    assert driver.expect("workers", timeout_s=30) == [["ftray", "beside", "ftray"], "ftray"]
    assert driver.expect("error") == [True, "ftray.exceptions"]
    assert driver.expect("restarted")
    assert driver.expect("pickles name ftray")
    driver.finish()
    driver.check_nothing_left()


def test_the_alias_comes_along_into_a_session_that_has_none(start_driver, tmp_path):
    first = start_driver(
        """
        import ftray
        ctx = ftray.init(num_cpus=1)
        @ftray.remote
        def aliased():
            import sys
            return "ray" in sys.modules
        assert not ftray.get(aliased.remote())  # its workers are warm, without the name
        tell("address", ctx["address"])
        await_word()
        """
    )
    address = first.expect("address")
    beside(tmp_path / "driver1")
    second = start_driver(
        """
        import sys
        import ray
        ray.init(address=sys.argv[1])
        @ray.remote
        class Actor:
            def name(self):
                import ray
                return ray.__name__
        @ray.remote
        def name():
            import ray
            return ray.__name__
        tell("names", [ray.get(name.remote()), ray.get(Actor.remote().name.remote())])
        """,
        python_flags=WITH_ALIAS,
        args=[address],
        env={"FTRAY_TMPDIR": str(first.base)},
    )
    assert second.expect("names", timeout_s=30) == ["ftray", "ftray"]
    second.finish()
    first.say("end")
    first.finish()


IDENTITY = """
import os, sys
print(sys.argv[1:], __name__, os.path.basename(__file__), os.path.isabs(__file__))
print(__spec__, __package__, __doc__)
print(os.path.realpath(sys.path[0]) == os.path.dirname(os.path.realpath(__file__)))
print(sys.modules["__main__"].__dict__ is globals(), __loader__.get_source("__main__")[:7])
"""
FAILURES = {
    "exit status": ("import sys; sys.exit(7)", 7),
    "exit text": ("raise SystemExit('why')", 1),
    "exception": ("def f():\n    raise ValueError('boom')\n\nf()", 1),
    "chain": ("try:\n    1 / 0\nexcept Exception as e:\n    raise KeyError('k') from e", 1),
    "syntax": ("def f(:", 1),
    "interrupt": ("raise KeyboardInterrupt", -signal.SIGINT),
    "own hook": ("import sys\nsys.excepthook = lambda *a: print('hook', a[1])\nraise ValueError('boom')", 1),
    "atexit": ("import atexit\natexit.register(print, 'bye')\nraise ValueError", 1),
    "signal": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
}


def run_python(*args, cwd, **env):
    return subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize("name", ["identity", *FAILURES])
def test_a_script_runs_as_under_plain_python(name, tmp_path):
    source, status = FAILURES.get(name, (IDENTITY, 0))
    script = tmp_path / "script.py"
    script.write_text(source)
    for path in ("script.py", str(script)) if name == "identity" else ("script.py",):
        plain = run_python(path, "a", "-b", cwd=tmp_path)
        ours = run_python(*WITH_ALIAS, path, "a", "-b", cwd=tmp_path)

        assert (ours.returncode, ours.stdout) == (plain.returncode, plain.stdout)
        assert ours.stderr == plain.stderr
        assert ours.returncode == status


def test_a_module_runs_as_under_plain_python(tmp_path):
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    program = (
        "import os, sys\nfrom . import other\nprint(sys.argv[1:], __name__, __spec__.name, __package__)\n"
    )
    program += "print(os.path.basename(sys.argv[0]), sys.path[0] == os.getcwd())\nraise ValueError('boom')\n"
    (package / "__main__.py").write_text(program)
    (package / "tool.py").write_text(program)
    (package / "other.py").write_text("")
    for module in ("pack", "pack.tool"):
        plain = run_python("-m", module, "a", cwd=tmp_path)
        ours = run_python(*WITH_ALIAS, "-m", module, "a", cwd=tmp_path)

        assert (ours.returncode, ours.stdout) == (plain.returncode, plain.stdout) != (0, "")
        # plain python shows runpy's frames here
        assert ours.stderr.splitlines()[-3:] == plain.stderr.splitlines()[-3:]
        assert "ftray" not in ours.stderr


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (["nosuch.py"], 2, "can't open file"),
        (["-m", "nosuch"], 1, "No module named nosuch"),
        (["-m", "nosuch.inner"], 1, "Error while finding module specification for 'nosuch.inner'"),
        ([], 2, "usage:"),
        (["-m"], 2, "usage:"),
        (["-x"], 2, "usage:"),
        (["."], 2, "can't open file"),
    ],
)
def test_what_cannot_be_run_is_said(args, status, said, tmp_path):
    done = run_python(*WITH_ALIAS, *args, cwd=tmp_path)

    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_help(tmp_path):
    done = run_python(*WITH_ALIAS, "--help", cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    assert "python -m ftray.compat script.py" in done.stdout


@pytest.mark.parametrize(
    ("program", "env", "said"),
    [
        ("import ftray.compat", {"FTRAY_ENGINE": "ray"}, "FTRAY_ENGINE=ray asks for the real Ray"),
        ("import ray, ftray.compat", {}, "the real Ray is in this process already"),
    ],
)
def test_it_refuses_where_the_real_ray_is_wanted(program, env, said, tmp_path):
    (tmp_path / "ray.py").write_text("")  # stands for the real one
    program += "\ntry:\n    ftray.compat.install()\nexcept RuntimeError as error:\n    print(error)"
    (tmp_path / "script.py").write_text(program)
    done = run_python("script.py", cwd=tmp_path, **env)

    assert done.returncode == 0, done.stderr
    assert said in done.stdout


def test_the_module_runner_refuses_as_well(tmp_path):
    (tmp_path / "script.py").write_text("print('ran')")
    done = run_python(*WITH_ALIAS, "script.py", cwd=tmp_path, FTRAY_ENGINE="ray")

    assert (done.returncode, done.stdout) == (2, "")
    assert "asks for the real Ray" in done.stderr


def test_it_goes_before_a_real_ray_that_is_installed(tmp_path):
    (tmp_path / "ray.py").write_text("raise AssertionError('the real one')")
    (tmp_path / "script.py").write_text("import ray; print(ray.__name__)")

    assert run_python(*WITH_ALIAS, "script.py", cwd=tmp_path).stdout == "ftray\n"


MISSING = """
import importlib.util, sys
import ray
for statement in sys.argv[1:]:
    try:
        exec(statement)
        print("worked", statement)
    except Exception as error:
        kind = [c.__name__ for c in type(error).__mro__ if c.__name__ in
                ("NotSupportedError", "ModuleNotFoundError", "AttributeError", "ImportError")]
        print(kind, getattr(error, "name", None), "|", error)
found = [importlib.util.find_spec(name) is not None for name in ("ray.tune", "ray.util")]
print(found, hasattr(ray, "data"))
"""


def test_what_is_missing_names_itself(tmp_path):
    (tmp_path / "script.py").write_text(MISSING)
    statements = ["import ray.tune", "from ray import data", "from ray.tune.schedulers import X", "ray.serve"]
    statements += ["from ray.util import collective", "import ray._private.worker", "import ray.nosuch"]
    done = run_python(*WITH_ALIAS, "script.py", *statements, cwd=tmp_path)
    lines = done.stdout.splitlines()

    module = "['NotSupportedError', 'ModuleNotFoundError', 'ImportError']"
    assert done.returncode == 0, done.stderr
    assert lines[0].startswith(
        f"{module} ray.tune | ray.tune is not part of ftray: it is one of Ray's libraries"
    )
    assert lines[1].startswith(f"{module} ray.data | ray.data is not part of ftray")
    assert lines[2].startswith(f"{module} ray.tune | ray.tune is not part of ftray")
    assert lines[3].startswith("['NotSupportedError', 'AttributeError']")
    assert "ray.serve is not part of ftray" in lines[3]
    assert lines[4].startswith(f"{module} ray.util.collective | ray.util.collective is not part of ftray")
    assert lines[5].startswith(f"{module} ray._private | ray._private is not part of ftray: it is internal")
    assert lines[6].startswith(f"{module} ray.nosuch | ray.nosuch is not part of ftray")
    assert lines[7] == "[False, True] False"


def test_a_function_that_cannot_be_sent_is_explained_as_usual(start_driver):
    driver = start_driver(
        """
        import threading
        import ray
        lock = threading.Lock()
        ray.init(num_cpus=1)
        @ray.remote
        def f():
            return lock
        f.remote()
        """,
        python_flags=WITH_ALIAS,
    )
    with pytest.raises(DriverFailedError, match="global variable 'lock' used by function f"):
        driver.finish()


def test_tests_run_under_the_alias(tmp_path):
    """In conftest.py too, which pytest reads before it configures plugins."""
    (tmp_path / "conftest.py").write_text(
        "import pytest, ray\n@pytest.fixture\ndef session():\n    ray.init(num_cpus=1)\n    yield ray\n"
        "    ray.shutdown()\n"
    )
    (tmp_path / "test_it.py").write_text(
        "import ray\n\n@ray.remote\ndef f():\n    import ray\n    return ray.__name__\n\n"
        "def test_f(session):\n    assert session.get(f.remote()) == 'ftray'\n"
    )
    done = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "ftray.compat", cwd=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_a_function_with_the_name_of_a_submodule_stays_one(tmp_path):
    (tmp_path / "script.py").write_text(
        "import ray.util, ray.util.placement_group\nfrom ray.util.placement_group import PlacementGroup\n"
        "import sys, ftray\nprint(callable(ray.util.placement_group), PlacementGroup.__module__)\n"
        "print(sys.modules['ray.util.placement_group'] is sys.modules['ftray.util.placement_group'])\n"
        "print(ray.util.placement_group is ftray.util.placement_group)\n"
    )
    done = run_python(*WITH_ALIAS, "script.py", cwd=tmp_path)

    assert done.stdout.splitlines() == ["True ftray.util.placement_group", "True", "True"], done.stderr
