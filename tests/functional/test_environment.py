"""Unfriendly machines: other users, long paths, little shared memory, few descriptors, no streams."""

from __future__ import annotations

import os
import shutil

import pytest

WORK = """
import os, sys
import ftray as ray
ray.init(num_cpus=2)

@ray.remote
def square(x):
    return x * x

@ray.remote
class Actor:
    def large(self):
        return b"a" * 1_000_000

assert ray.get([square.remote(i) for i in range(20)]) == [i * i for i in range(20)]
assert len(ray.get(Actor.remote().large.remote())) == 1_000_000
assert len(ray.get(ray.put(b"x" * 1_000_000))) == 1_000_000
tell("done", os.getuid())
"""

LARGE_PUTS = """
refs = [ray.put(bytes([i]) * 20_000_000) for i in range(8)]
for i, ref in enumerate(refs):
    data = ray.get(ref)
    assert len(data) == 20_000_000 and data[0] == data[-1] == i
    del data
assert not os.listdir("/dev/shm"), os.listdir("/dev/shm")
tell("large puts")
"""

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root to change user or mount")
needs_unshare = pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare(1)")
NOBODY = 65534


def in_own_shm(mount_options):
    """A wrapper that runs the driver with a /dev/shm of its own."""
    script = f'mount -t tmpfs -o {mount_options} tmpfs /dev/shm && exec "$0" "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]


def check(driver):
    assert driver.expect("done", timeout_s=30) == os.getuid()
    driver.finish()
    driver.check_nothing_left()


def test_long_temporary_directory(start_driver, tmp_path):
    """Unix socket paths end at 108 characters."""
    base = tmp_path / ("long" * 20) / ("longer" * 20)
    base.mkdir(parents=True)
    assert len(str(base)) > 200
    check(start_driver(WORK, env={"FTRAY_TMPDIR": str(base)}))


def test_tmpdir_is_used_when_nothing_else_is_said(start_driver, tmp_path):
    base = tmp_path / "tmpdir"
    base.mkdir()
    driver = start_driver(WORK + "\nawait_word()\n", env={"FTRAY_TMPDIR": "", "TMPDIR": str(base)})
    driver.expect("done")
    assert list(base.glob("ftray-*/s-*"))
    driver.say("end")
    driver.finish()
    assert not list(base.glob("ftray-*/s-*"))


@needs_root
@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv(1)")
def test_as_an_ordinary_user(start_driver, tmp_path):
    base = tmp_path / "nobody"
    base.mkdir()
    os.chown(base, NOBODY, NOBODY)
    for parent in (base, *base.parents):
        if parent.stat().st_mode & 0o005 != 0o005 and parent != base:
            parent.chmod(parent.stat().st_mode | 0o055)

    # The capability only lets it read an interpreter that lies in root's home directory.
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    env = {"FTRAY_TMPDIR": str(base), "HOME": str(base)}
    driver = start_driver(WORK, env=env, wrapper=[*become, *reading])
    assert driver.expect("done", timeout_s=30) == NOBODY
    driver.finish()
    driver.check_nothing_left()


@needs_root
@needs_unshare
def test_small_shared_memory_file_system(start_driver):
    """Containers give 64 MB of /dev/shm; more than that must fit into the object store all the same."""
    driver = start_driver(WORK + LARGE_PUTS, wrapper=in_own_shm("size=64m"))
    driver.expect("done", timeout_s=30)
    driver.expect("large puts", timeout_s=30)
    driver.finish()
    driver.check_nothing_left()


@needs_root
@needs_unshare
def test_full_shared_memory_file_system(start_driver):
    source = WORK.replace("import ftray", "open('/dev/shm/full', 'wb').write(b'x' * 2**20)\nimport ftray", 1)
    check(start_driver(source, wrapper=in_own_shm("size=1m")))


@needs_root
@needs_unshare
def test_shared_memory_file_system_is_left_empty(start_driver):
    source = WORK + "\nray.shutdown()\ntell('left', os.listdir('/dev/shm'))\n"
    driver = start_driver(source, wrapper=in_own_shm("size=64m"))
    driver.expect("done", timeout_s=30)
    assert driver.expect("left") == []
    driver.finish()


def test_object_store_that_is_full_says_so(start_driver):
    driver = start_driver(
        """
        import ftray as ray
        ray.init(num_cpus=1, object_store_memory=80 * 2**20)
        try:
            ray.put(b"x" * (200 * 2**20))
        except ray.exceptions.ObjectStoreFullError as error:
            tell("too large", str(error))
        @ray.remote
        def produce():
            return b"x" * (200 * 2**20)
        try:
            ray.get(produce.remote(), timeout=30)
        except ray.exceptions.RayError as error:
            tell("result too large", [isinstance(error, ray.exceptions.ObjectStoreFullError), str(error)])
        tell("goes on", len(ray.get(ray.put(b"x" * (10 * 2**20)))))
        """
    )
    text = driver.expect("too large", timeout_s=30)
    assert "200" in text or "2097152" in text
    is_full, text = driver.expect("result too large", timeout_s=40)
    assert is_full or "ObjectStoreFull" in text
    assert driver.expect("goes on") == 10 * 2**20
    driver.finish()
    driver.check_nothing_left()


# -- descriptors


EXHAUST = """
import os, resource
import ftray as ray
ray.init(num_cpus=2)
@ray.remote
class Actor:
    def pid(self):
        return os.getpid()
@ray.remote
def one():
    return 1
assert ray.get(one.remote()) == 1
first = Actor.remote()
ray.get(first.pid.remote())
"""


def test_running_out_of_descriptors_is_an_error_and_the_driver_goes_on(start_driver):
    driver = start_driver(
        EXHAUST
        + """
used = [int(name) for name in os.listdir("/proc/self/fd")]
resource.setrlimit(resource.RLIMIT_NOFILE, (max(used) + 8, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
hogs = []
try:
    while True:
        hogs.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
# Nothing is free. What needs no new descriptor works, what needs one says so, and nothing hangs.
tell("old ones work", [ray.get(first.pid.remote()) > 0, ray.get(ray.put(5))])
try:
    ray.get(Actor.remote().pid.remote(), timeout=20)
    tell("new one", "made")
except ray.exceptions.GetTimeoutError:
    tell("new one", "timeout")
except (OSError, ray.exceptions.RayError) as error:
    tell("new one", f"{type(error).__name__}: {error}")
for fd in hogs:
    os.close(fd)
tell("later", ray.get(Actor.remote().pid.remote(), timeout=20) > 0)
tell("tasks", sum(ray.get([one.remote() for _ in range(100)])))
"""
    )
    assert driver.expect("old ones work", timeout_s=30) == [True, 5]
    outcome = driver.expect("new one", timeout_s=40)
    assert outcome != "timeout" and outcome != "made", outcome
    assert "descriptor" in outcome or "open files" in outcome, outcome
    assert driver.expect("later", timeout_s=30) is True
    assert driver.expect("tasks") == 100
    driver.finish()
    driver.check_nothing_left()


def test_small_limit_of_descriptors_from_the_start(start_driver):
    """The usual 256 of some systems is enough for a modest program."""
    driver = start_driver(
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
        + EXHAUST
        + """
for _ in range(5):
    actors = [Actor.remote() for _ in range(4)]
    assert len(set(ray.get([actor.pid.remote() for actor in actors]))) == 4
    del actors
refs = [ray.put(b"x" * 200_000) for _ in range(300)]
assert all(len(data) == 200_000 for data in ray.get(refs))
tell("done", os.getuid())
"""
    )
    check(driver)


def test_workers_do_not_inherit_descriptors_of_the_driver(start_driver):
    driver = start_driver(
        """
        import os
        import ftray as ray
        secret = os.open("/etc/hostname", os.O_RDONLY)
        os.set_inheritable(secret, True)
        ray.init(num_cpus=1)
        @ray.remote
        def targets():
            return [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd != "3"
                    and os.path.lexists(f"/proc/self/fd/{fd}")]
        tell("targets", ray.get(targets.remote()))
        """
    )
    assert "/etc/hostname" not in driver.expect("targets")
    driver.finish()


# -- surroundings


def test_closed_standard_streams(start_driver, tmp_path):
    """A daemon has none; descriptors 0 to 2 must not end up as sockets of ours."""
    result = tmp_path / "result"
    driver = start_driver(
        f"""
        import os
        for fd in (0, 1, 2):
            os.close(fd)
        import ftray as ray
        ray.init(num_cpus=1)
        @ray.remote
        def noisy():
            print("to nowhere", flush=True)
            return 1
        got = ray.get([noisy.remote() for _ in range(5)])
        open({str(result)!r}, "w").write(str(got))
        ray.shutdown()
        os._exit(0)
        """
    )
    driver.finish()
    assert result.read_text() == "[1, 1, 1, 1, 1]"
    driver.check_nothing_left()


def test_directory_that_goes_away_and_changed_directory(start_driver, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    driver = start_driver(
        f"""
        import os
        os.chdir({str(gone)!r})
        os.rmdir({str(gone)!r})
        import ftray as ray
        ray.init(num_cpus=1)
        @ray.remote
        def one():
            return 1
        tell("one", ray.get(one.remote()))
        """
    )
    assert driver.expect("one") == 1
    driver.finish()
    driver.check_nothing_left()


def test_unusable_session_base_is_named(start_driver, tmp_path):
    """A file is where the directory should be."""
    (tmp_path / "driver0").mkdir()
    (tmp_path / "file").write_text("")
    driver = start_driver(
        """
        import os, sys
        os.environ["FTRAY_TMPDIR"] = sys.argv[1]
        import ftray as ray
        try:
            ray.init(num_cpus=1)
        except Exception as error:
            tell("refused", str(error))
        """,
        args=[str(tmp_path / "file" / "base")],
    )
    assert str(tmp_path / "file") in driver.expect("refused")
    driver.finish()


def test_main_module_functions_and_classes(start_driver):
    """Everything of ``__main__`` travels by value, with its globals, and keeps its identity."""
    driver = start_driver(
        """
        import dataclasses, enum
        import ftray as ray

        class Colour(enum.Enum):
            RED = 1

        @dataclasses.dataclass
        class Point:
            x: int
            def moved(self):
                return Point(self.x + OFFSET)

        class Failure(Exception):
            pass

        OFFSET = 10

        def helper(point):
            return point.moved()

        @ray.remote
        def move(point):
            assert isinstance(point, Point)
            return helper(point)

        @ray.remote
        def fail():
            raise Failure("from main")

        @ray.remote
        class Keeper:
            def keep(self, colour):
                self.colour = colour
                return colour

        ray.init(num_cpus=1)
        result = ray.get(move.remote(Point(1)))
        tell("point", [isinstance(result, Point), result.x])
        tell("enum", ray.get(Keeper.remote().keep.remote(Colour.RED)) is Colour.RED)
        try:
            ray.get(fail.remote())
        except Failure as error:
            tell("failure", "from main" in str(error))
        """
    )
    assert driver.expect("point") == [True, 11]
    assert driver.expect("enum") is True
    assert driver.expect("failure") is True
    driver.finish()


def test_modules_beside_the_driver_are_importable_in_workers(start_driver, tmp_path):
    directory = tmp_path / "driver0"
    directory.mkdir()
    (directory / "beside.py").write_text("VALUE = 41\ndef answer():\n    return VALUE + 1\n")
    driver = start_driver(
        """
        import ftray as ray
        import beside
        ray.init(num_cpus=1)
        tell("answer", ray.get(ray.remote(beside.answer).remote()))
        """
    )
    assert driver.expect("answer") == 42
    driver.finish()
