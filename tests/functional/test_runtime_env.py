"""Runtime environments: variables, directories, modules, inheritance, and what goes wrong with them."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import zipfile

import pytest

import ftray as ray
from ftray import _lifecycle
from ftray.exceptions import ActorDiedError, NotSupportedError, RuntimeEnvSetupError
from tests.helpers.processes import is_running, wait_ended
from tests.helpers.sync import eventually


@ray.remote
def variables(*names):
    return {name: os.environ.get(name) for name in names}


@ray.remote
def where():
    return os.getpid()


@ray.remote
class Actor:
    def variable(self, name):
        return os.environ.get(name)

    def pid(self):
        return os.getpid()

    def child(self, name):
        return ray.get(variables.remote(name))


def with_vars(target, **env_vars):
    return target.options(runtime_env={"env_vars": env_vars})


# --- variables


@pytest.mark.usefixtures("runtime")
def test_a_task_sees_its_variables_and_others_do_not():
    assert ray.get(with_vars(variables, FTRAY_T_A="1").remote("FTRAY_T_A")) == {"FTRAY_T_A": "1"}
    assert ray.get(variables.remote("FTRAY_T_A")) == {"FTRAY_T_A": None}
    assert "FTRAY_T_A" not in os.environ


@pytest.mark.usefixtures("runtime")
def test_an_actor_sees_its_variables():
    actor = with_vars(Actor, FTRAY_T_A="actor").remote()
    assert ray.get(actor.variable.remote("FTRAY_T_A")) == "actor"


@pytest.mark.usefixtures("runtime")
def test_references_are_to_the_nodes_variables():
    env = {"PATH": "${PATH}:/somewhere", "FTRAY_T_B": "<${FTRAY_T_NOT_SET}>"}
    found = ray.get(with_vars(variables, **env).remote("PATH", "FTRAY_T_B"))
    assert found == {"PATH": f"{os.environ['PATH']}:/somewhere", "FTRAY_T_B": "<>"}


@pytest.mark.usefixtures("runtime")
def test_equal_environments_share_workers_and_different_ones_do_not():
    one = [ray.get(with_vars(where, FTRAY_T_A="1", FTRAY_T_B="2").remote()) for _ in range(3)]
    same = ray.get(where.options(runtime_env={"env_vars": {"FTRAY_T_B": "2", "FTRAY_T_A": "1"}}).remote())
    other = ray.get(with_vars(where, FTRAY_T_A="2").remote())
    plain = ray.get(where.remote())
    assert len({*one, same}) == 1 and len({same, other, plain}) == 3


@pytest.mark.usefixtures("runtime")
def test_what_libraries_read_at_their_start_is_there_at_the_start():
    @ray.remote
    def seen():
        with open("/proc/self/environ", "rb") as file:
            initial = dict(item.split(b"=", 1) for item in file.read().split(b"\0") if b"=" in item)
        blas = os.environ.get("OPENBLAS_NUM_THREADS")  # falls back on OMP_NUM_THREADS
        return initial[b"OMP_NUM_THREADS"], os.environ["OMP_NUM_THREADS"], hash("ftray"), os.getppid(), blas

    env = {"OMP_NUM_THREADS": "7", "PYTHONHASHSEED": "42"}
    first = ray.get(with_vars(seen, **env).remote())
    fresh = with_vars(seen, **env, FTRAY_T_C="another worker")
    assert first[:2] == (b"7", "7")
    assert ray.get(fresh.remote()) == first  # also the hash: the interpreter was started with the seed
    assert first[3] == ray.nodes()[0]["pid"]
    assert first[4] == os.environ.get("OPENBLAS_NUM_THREADS")


@pytest.mark.usefixtures("runtime")
def test_a_python_path_among_the_variables_counts(tmp_path):
    (tmp_path / "ftray_t_on_the_path.py").write_text("WORD = 'found'\n")

    @ray.remote
    def use():
        import ftray_t_on_the_path

        return ftray_t_on_the_path.WORD

    assert ray.get(with_vars(use, PYTHONPATH=str(tmp_path)).remote()) == "found"


@pytest.mark.usefixtures("runtime")
def test_an_environment_worker_that_dies_is_replaced_by_one_in_the_environment(tally):
    @ray.remote(runtime_env={"env_vars": {"OMP_NUM_THREADS": "3"}})
    def dies_once():
        if tally.bump() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return os.environ["OMP_NUM_THREADS"]

    assert ray.get(dies_once.remote()) == "3"

    actor = with_vars(Actor.options(max_restarts=1), FTRAY_T_A="1").remote()
    pid = ray.get(actor.pid.remote())
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_running(pid), "the actor's process is gone")
    assert ray.get(actor.variable.remote("FTRAY_T_A")) == "1"
    assert ray.get(actor.pid.remote()) != pid


# --- inheritance


@pytest.mark.usefixtures("runtime")
def test_children_inherit_and_override_variable_by_variable():
    @ray.remote
    def parent():
        child = variables.options(runtime_env={"env_vars": {"FTRAY_T_B": "child"}})
        names = ("FTRAY_T_A", "FTRAY_T_B")
        return ray.get([variables.remote(*names), child.remote(*names)])

    plain, overridden = ray.get(with_vars(parent, FTRAY_T_A="a", FTRAY_T_B="b").remote())
    assert plain == {"FTRAY_T_A": "a", "FTRAY_T_B": "b"}
    assert overridden == {"FTRAY_T_A": "a", "FTRAY_T_B": "child"}
    actor = with_vars(Actor, FTRAY_T_A="from the actor").remote()
    assert ray.get(actor.child.remote("FTRAY_T_A")) == {"FTRAY_T_A": "from the actor"}


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("name", ["FTRAY_TASK_MAX_RETRIES", "RAY_TASK_MAX_RETRIES"])
def test_the_default_of_max_retries_can_be_set_for_what_a_worker_submits(name, tmp_path):
    @ray.remote
    def crash(path):
        with open(path, "a") as file:
            file.write("x")
        os._exit(1)

    @ray.remote
    def submit(path):
        with pytest.raises(ray.exceptions.WorkerCrashedError):
            ray.get(crash.remote(path))
        return os.path.getsize(path)

    assert ray.get(with_vars(submit, **{name: "1"}).remote(str(tmp_path / "1"))) == 2
    assert ray.get(with_vars(submit, **{name: "0"}).remote(str(tmp_path / "0"))) == 1


@pytest.mark.usefixtures("runtime")
def test_the_runtime_context_tells_the_environment():
    @ray.remote
    def tell():
        context = ray.get_runtime_context()
        return context.runtime_env, context.get_runtime_env_string()

    found, text = ray.get(with_vars(tell, FTRAY_T_A="1").remote())
    assert isinstance(found, ray.runtime_env.RuntimeEnv)
    assert found == {"env_vars": {"FTRAY_T_A": "1"}}
    assert text == '{"env_vars": {"FTRAY_T_A": "1"}}'
    assert ray.get_runtime_context().runtime_env == {} and ray.get(tell.remote()) == ({}, "{}")


# --- directories


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    root.mkdir()
    (root / "ftray_t_helper.py").write_text("VERSION = 1\n")
    (root / "data.txt").write_text("data")
    return root


@ray.remote
def look():
    import ftray_t_helper

    with open("data.txt") as file:
        return file.read(), ftray_t_helper.VERSION, os.getcwd(), sys.path[0]


@pytest.mark.usefixtures("runtime")
def test_a_working_directory_is_where_tasks_run_and_import_from(project):
    data, version, directory, first = ray.get(
        look.options(runtime_env={"working_dir": str(project)}).remote()
    )
    assert (data, version) == ("data", 1)
    assert directory == first != str(project)


@pytest.mark.usefixtures("runtime")
def test_later_edits_do_not_change_what_was_submitted(project):
    before = look.options(runtime_env={"working_dir": str(project)})
    assert ray.get(before.remote())[1] == 1
    (project / "ftray_t_helper.py").write_text("VERSION = 22\n")
    assert ray.get(before.remote())[1] == 1
    after = look.options(runtime_env={"working_dir": str(project)})
    assert ray.get(after.remote())[1] == 22


@pytest.mark.usefixtures("runtime")
def test_a_zip_file_as_working_directory(project, tmp_path):
    archive = tmp_path / "project.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in project.iterdir():
            file.write(path, path.name)
    assert ray.get(look.options(runtime_env={"working_dir": str(archive)}).remote())[:2] == ("data", 1)


@pytest.mark.usefixtures("runtime")
def test_modules_are_importable_in_workers_and_their_children(tmp_path):
    package = tmp_path / "ftray_t_pkg"
    package.mkdir()
    (package / "__init__.py").write_text("from ftray_t_single import WORD\n")
    (tmp_path / "ftray_t_single.py").write_text("WORD = 'hello'\n")

    @ray.remote
    def use(depth):
        import ftray_t_pkg

        return ray.get(use.remote(depth - 1)) if depth else (ftray_t_pkg.WORD, os.getcwd())

    modules = {"py_modules": [str(package), str(tmp_path / "ftray_t_single.py")]}
    word, directory = ray.get(use.options(runtime_env=modules).remote(1))
    assert (word, directory) == ("hello", os.getcwd())


# --- what goes wrong


@pytest.mark.usefixtures("runtime")
def test_a_missing_directory_raises_at_the_call(tmp_path):
    for env in ({"working_dir": str(tmp_path / "no")}, {"py_modules": [str(tmp_path / "no")]}):
        with pytest.raises(ValueError, match="no does not exist"):
            where.options(runtime_env=env).remote()
        with pytest.raises(ValueError, match="no does not exist"):
            Actor.options(runtime_env=env).remote()


@pytest.mark.usefixtures("runtime")
def test_wrong_environments_raise_at_once():
    for env, error in [("x", TypeError), ({"wrong": 1}, ValueError), ({"pip": ["x"]}, NotSupportedError)]:
        with pytest.raises(error):
            where.options(runtime_env=env)
        with pytest.raises(error):
            ray.remote(runtime_env=env)(lambda: None)


@pytest.mark.usefixtures("runtime")
def test_a_snapshot_that_vanished_is_an_error_of_the_call_and_no_hang(project):
    function = look.options(runtime_env={"working_dir": str(project), "env_vars": {"FTRAY_T_V": "1"}})
    text = _lifecycle.runtime_env_text(function._options.runtime_env)
    session_dir = _lifecycle.current().session_dir
    shutil.rmtree(os.path.join(session_dir, "envs", text.split("snapshot://")[1][:40]))
    with pytest.raises(RuntimeEnvSetupError, match="not on this node"):
        ray.get(function.remote())
    actor = Actor.options(runtime_env=function._options.runtime_env).remote()
    with pytest.raises(RuntimeEnvSetupError, match="not on this node"):
        ray.get(actor.pid.remote())
    assert ray.get(where.remote()) > 0  # others are not concerned


@pytest.mark.usefixtures("runtime")
def test_a_worker_that_cannot_start_in_its_environment_is_an_error_that_says_why():
    with pytest.raises(RuntimeEnvSetupError, match=r"3 tries failed.*PYTHONHASHSEED") as caught:
        ray.get(with_vars(where, PYTHONHASHSEED="no number").remote())
    assert not isinstance(caught.value, ActorDiedError)
    assert ray.get(with_vars(where, PYTHONHASHSEED="1").remote()) > 0


# --- the job's environment

JOB = """
import os, sys
import ftray as ray
ray.init(num_cpus=1, runtime_env={"working_dir": "project", "env_vars": {"A": "job", "B": "job"}})

@ray.remote
def f():
    import ftray_t_helper
    return ftray_t_helper.VERSION, os.environ["A"], os.environ["B"], os.path.exists("skipped.bin")

tell("seen", ray.get(f.options(runtime_env={"env_vars": {"B": "task"}}).remote()))
tell("driver", [os.environ.get("A"), ray.get_runtime_context().runtime_env["env_vars"]])
"""


def test_the_jobs_environment_is_the_default_of_its_tasks(start_driver, tmp_path):
    workdir = tmp_path / "driver0"
    (workdir / "project").mkdir(parents=True)
    (workdir / "project" / "ftray_t_helper.py").write_text("VERSION = 5\n")
    (workdir / "project" / "skipped.bin").write_text("")
    (workdir / "project" / ".gitignore").write_text("*.bin\n")
    driver = start_driver(f"import os; os.chdir({str(workdir)!r})\n" + JOB)
    assert driver.expect("seen") == [5, "job", "task", False]
    assert driver.expect("driver") == [None, {"A": "job", "B": "job"}]
    driver.finish()
    driver.check_nothing_left()  # the read-only snapshot too


def test_a_wrong_environment_of_the_job_leaves_nothing_behind(no_runtime, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        ray.init(num_cpus=1, runtime_env={"working_dir": str(tmp_path / "no")})
    assert not ray.is_initialized()
    with pytest.raises(NotSupportedError, match="conda"):
        ray.init(num_cpus=1, runtime_env={"conda": "base"})


def test_idle_environment_workers_leave(no_runtime, monkeypatch):
    monkeypatch.setenv("RAY_idle_worker_killing_time_threshold_ms", "50")
    ray.init(num_cpus=1)
    pid = ray.get(with_vars(where, FTRAY_T_IDLE="1").remote())
    wait_ended([pid])
