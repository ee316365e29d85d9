"""What is decided when a process or a library is loaded: variables, hash seeds, frozen memory.

``ftrayd`` and the zygote are executed, not forked from the driver: what a program writes to ``os.environ``
before ``init()`` is there when their interpreters and libraries start, although its own started without it.
"""

from __future__ import annotations

import ctypes.util
import os
import re
import shutil
import subprocess
import sys

import pytest

import ftray as ray
from tests.helpers import introspection, processes

SETUP = """
import ctypes, os, sys
import ftray as ray

def loads(name):
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True

@ray.remote
def facts():
    with open("/proc/self/maps") as maps:
        mapped = maps.read()
    return {
        "hash": hash("some text"),
        "seed": os.environ.get("PYTHONHASHSEED"),
        "mapped": "libpreloaded" in mapped,
        "found": loads("libonlythere.so"),
        "cuda": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "pid": os.getpid(),
    }
"""


@pytest.fixture
def library(tmp_path):
    """``library(name)``: a copy of a small system library."""
    with open("/proc/self/maps") as maps:
        found = re.search(r"/\S*/libm[.-]\S*so\S*", maps.read())
    if found is None:
        pytest.skip(f"libm is not mapped here ({ctypes.util.find_library('m')})")

    def copy(name):
        return str(shutil.copy(found.group(), tmp_path / name))

    return copy


def test_variables_set_before_init_are_there_when_workers_load(start_driver, library, tmp_path):
    preloaded = library("libpreloaded.so")
    library("libonlythere.so")
    driver = start_driver(
        f"""{SETUP}
os.environ.update(PYTHONHASHSEED="321", LD_PRELOAD={preloaded!r}, LD_LIBRARY_PATH={str(tmp_path)!r},
                  CUDA_VISIBLE_DEVICES="5")
assert not loads("libonlythere.so") and "libpreloaded" not in open("/proc/self/maps").read()
ray.init(num_cpus=2)
tell("facts", ray.get([facts.options(num_cpus=2).remote(), facts.remote()]))
await_word()
tell("later", ray.get(facts.options(max_retries=-1).remote()))
ray.shutdown()
"""
    )
    first, second = driver.expect("facts")
    for seen in (first, second):
        assert seen["hash"] == seeded_hash("321") and seen["seed"] == "321"
        assert seen["mapped"] and seen["found"] and seen["cuda"] == "5"
    # Also where the zygote is another one.
    zygote = introspection.zygote_pid(driver.pid)
    processes.end(zygote)
    for pid in {first["pid"], second["pid"]}:
        processes.end(pid)
    driver.say("go on")
    later = driver.expect("later")
    assert later == {**first, "pid": later["pid"]} and later["pid"] not in (first["pid"], second["pid"])
    driver.finish()


def seeded_hash(seed):
    """``hash("some text")`` in an interpreter with this seed."""
    done = subprocess.run(
        [sys.executable, "-c", "print(hash('some text'))"],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        check=True,
    )
    return int(done.stdout)


def test_all_workers_hash_alike_without_a_seed_too(start_driver):
    """They share one interpreter's start; the driver has another one."""
    driver = start_driver(
        f"""{SETUP}
os.environ.pop("PYTHONHASHSEED", None)
ray.init(num_cpus=4)
@ray.remote
class Apart:
    def facts(self):
        return hash("some text"), os.getpid()
actors = [Apart.remote() for _ in range(3)]
tell("facts", ray.get([actor.facts.remote() for actor in actors]))
ray.shutdown()
"""
    )
    facts = driver.expect("facts")
    assert len({value for value, _ in facts}) == 1 and len({pid for _, pid in facts}) == 3
    driver.finish()


@pytest.mark.usefixtures("no_runtime")
def test_ftrayd_and_the_zygote_are_executed(monkeypatch):
    """Their first environment has what the driver's own had not when it started."""
    monkeypatch.setenv("FTRAY_TEST_SET_LATE", "yes")
    ray.init(num_cpus=1)
    late = b"FTRAY_TEST_SET_LATE=yes"
    with open("/proc/self/environ", "rb") as own:
        assert late not in own.read()
    for pid in (introspection.node_pid(), introspection.zygote_pid()):
        with open(f"/proc/{pid}/environ", "rb") as environment:
            assert late in environment.read()
        assert "boot.py" in processes.command_of(pid)


THREADS = """
{before}
import os
os.environ.update({variables!r})
import ftray as ray
ray.init(num_cpus=1)

@ray.remote
def numbers():
    import numpy
    import threadpoolctl
    pools = threadpoolctl.threadpool_info()
    return [pool["num_threads"] for pool in pools if pool["user_api"] == "blas"]

tell("threads", ray.get(numbers.remote()))
ray.shutdown()
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a BLAS makes no more threads than CPUs")
@pytest.mark.parametrize("before", ["", "import numpy"], ids=["late", "numpy in the driver"])
@pytest.mark.parametrize(("variables", "wanted"), [({}, 1), ({"OMP_NUM_THREADS": "2"}, 2)])
def test_threads_of_a_blas_in_workers(start_driver, before, variables, wanted):
    """One, unless the user says otherwise."""
    pytest.importorskip("numpy")
    threadpoolctl = pytest.importorskip("threadpoolctl")
    unset = {name: "" for name in os.environ if name.endswith(("_NUM_THREADS", "_MAXIMUM_THREADS"))}
    driver = start_driver(THREADS.format(before=before, variables=variables), env=unset)
    found = driver.expect("threads")
    assert found or not threadpoolctl.threadpool_info()
    assert set(found) <= {wanted}
    driver.finish()
    assert driver.err == []


@ray.remote
def collector():
    """What is frozen here, and what is not."""
    import gc

    import cloudpickle

    from ftray import _lifecycle

    seen = {id(thing) for thing in gc.get_objects()}
    return {
        "frozen": gc.get_freeze_count(),
        "enabled": gc.isenabled(),
        "zygote's import": id(cloudpickle.__dict__) in seen,
        "worker's own": id(_lifecycle.current()) in seen,
    }


@pytest.mark.usefixtures("runtime")
def test_the_zygote_freezes_what_workers_share():
    """A worker's collector does not visit, and so not copy, the pages it shares; its own things it does."""
    got = ray.get(collector.remote())
    assert got.pop("frozen") > 10_000
    assert got == {"enabled": True, "zygote's import": False, "worker's own": True}
