"""Spilling: more objects than shared memory, values stay right, and nothing is left when they go."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal

import numpy as np
import pytest

import ftray as ray
from ftray import _lifecycle
from tests.helpers.processes import wait_ended
from tests.helpers.spilling import MB, STORE, check, make, matches, pattern, spill_all, spill_dir, store
from tests.helpers.sync import eventually

pytestmark = [
    pytest.mark.usefixtures("runtime"),
    pytest.mark.runtime(num_cpus=2, object_store_memory=STORE),
]


# --- out and back


def test_puts_of_many_times_the_memory():
    refs = [ray.put(pattern(i)) for i in range(60)]
    assert store()["on_disk_bytes"] >= 35 * MB
    for i in [*range(0, 60, 7), *range(59, 0, -13)]:
        check(ray.get(refs[i]), i)
    assert store()["used"] <= STORE


def test_files_are_private_and_go_with_the_objects():
    refs = [ray.put(pattern(i, 4 * MB)) for i in range(10)]
    files = list(spill_dir().iterdir())
    assert files and spill_dir().stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    del refs
    eventually(lambda: not list(spill_dir().iterdir()), "the files are removed")
    eventually(lambda: store()["used"] == 0, "the memory is free")


def test_results_and_arguments():
    made = [make.remote(i, 3 * MB) for i in range(14)]
    right = ray.get([matches.remote(ref, i) for i, ref in enumerate(made)])
    assert right == [True] * 14
    for i, ref in enumerate(made):
        check(ray.get(ref), i)


def test_calls_that_wait_with_their_arguments_do_not_hold_the_memory(gate):
    """What queues behind a running call gives its arguments' memory up."""

    @ray.remote(num_cpus=2)
    def double(array, door):
        door.wait()
        return np.concatenate([array, array])

    refs = [ray.put(pattern(i, 3 * MB)) for i in range(6)]
    results = [double.remote(ref, gate) for ref in refs]
    gate.open()
    for i, result in enumerate(results):
        assert np.array_equal(ray.get(result)[: 3 * MB], pattern(i, 3 * MB))


def test_an_object_as_large_as_the_store():
    small = [ray.put(pattern(i)) for i in range(10)]
    big = ray.put(pattern(1, STORE - 8192))
    check(ray.get(small[3]), 3)
    check(ray.get(big), 1)
    check(ray.get(small[9]), 9)


def test_what_cannot_ever_fit_is_refused_at_once_and_moves_nothing():
    refs = [ray.put(pattern(i)) for i in range(10)]
    before = store()["spilled_objects"]
    with pytest.raises(ray.exceptions.ObjectStoreFullError, match=str(STORE)):
        ray.put(np.zeros(STORE + 1, dtype=np.uint8))
    assert store()["spilled_objects"] == before
    check(ray.get(refs[0]), 0)


def test_several_readers_bring_an_object_back_once():
    ref = ray.put(pattern(1, 4 * MB))
    spill_all([ref])
    before = store()["restored_objects"]
    calls = [matches.remote(ref, 1) for _ in range(10)]
    check(ray.get(ref), 1)
    assert all(ray.get(calls))
    assert store()["restored_objects"] == before + 1


def test_a_restored_object_leaves_again_without_being_written_again():
    ref = ray.put(pattern(1, 4 * MB))
    spill_all([ref])
    (file,) = spill_dir().iterdir()
    written = file.stat().st_mtime_ns, file.stat().st_ino
    for _ in range(2):
        check(ray.get(ref), 1)
        spill_all([ref])
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == written


def test_await_and_futures_of_spilled_objects():
    refs = [ray.put(pattern(i, 4 * MB)) for i in range(2)]
    spill_all(refs)

    async def both():
        return await refs[0]

    check(asyncio.run(both()), 0)
    check(refs[1].future().result(timeout=20), 1)


def test_wait_counts_a_spilled_object_as_ready():
    ref = ray.put(pattern(1, 4 * MB))
    spill_all([ref])
    assert ray.wait([ref], timeout=0) == ([ref], [])


def test_objects_that_a_worker_owns():
    @ray.remote
    class Hoard:
        def fill(self, n):
            self.refs = [ray.put(pattern(i)) for i in range(n)]

        def right(self):
            return all(np.array_equal(ray.get(ref), pattern(i)) for i, ref in enumerate(self.refs))

    hoard = Hoard.remote()
    ray.get(hoard.fill.remote(40))
    assert store()["on_disk_objects"] >= 20
    assert ray.get(hoard.right.remote())
    ray.kill(hoard)
    eventually(lambda: store()["on_disk_objects"] == 0, "files go with their owner")


# --- what stays


def test_live_views_stay_where_they_are():
    refs = [ray.put(pattern(i, 4 * MB)) for i in range(4)]
    views = [ray.get(ref) for ref in refs]
    with pytest.raises(ray.exceptions.ObjectStoreFullError, match="views of values"):
        ray.put(np.zeros(10 * MB, dtype=np.uint8))
    for i, view in enumerate(views):
        check(view, i)
    del views, view
    again = ray.put(pattern(9, 10 * MB))
    check(ray.get(refs[0]), 0)
    check(ray.get(again), 9)


def test_a_restore_that_finds_no_memory_says_what_holds_it():
    spilled = ray.put(pattern(1, 6 * MB))
    spill_all([spilled])
    view = ray.get(ray.put(pattern(2, 16 * MB)))
    with pytest.raises(ray.exceptions.ObjectStoreFullError, match="spilled.*views of values"):
        ray.get(spilled)
    with pytest.raises(ray.exceptions.RayError, match="views of values"):
        ray.get(matches.remote(spilled, 1))
    check(view, 2)
    del view
    check(ray.get(spilled), 1)


def test_objects_dropped_while_they_are_written():
    for _ in range(3):
        refs = [ray.put(pattern(i, 2 * MB)) for i in range(20)]
        half = refs[::2]
        del refs
        for i, ref in enumerate(half):
            check(ray.get(ref), 2 * i)
        del half, ref
    eventually(lambda: not list(spill_dir().iterdir()), "the files are removed")


# --- deaths


def test_memory_of_a_dead_producer_is_spilled_too():
    @ray.remote
    def pid_and_data(number):
        return os.getpid(), pattern(number, 3 * MB)

    refs = [pid_and_data.remote(i) for i in range(4)]
    pids = {ray.get(ref)[0] for ref in refs}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_ended(pids)
    spill_all(refs)
    for i, ref in enumerate(refs):
        check(ray.get(ref)[1], i)


def test_the_producer_dies_after_its_object_was_spilled():
    ref = make.remote(5, 4 * MB)
    ray.wait([ref])
    spill_all([ref])
    for worker in _lifecycle.ask("workers", {}):
        os.kill(worker["pid"], signal.SIGKILL)
    check(ray.get(ref), 5)


@pytest.mark.parametrize("damage", ["gone", "short", "long", "flipped"])
def test_a_damaged_file_is_a_lost_object_and_never_wrong_data(damage):
    ref = ray.put(pattern(1, 4 * MB))
    spill_all([ref])
    (file,) = spill_dir().iterdir()
    data = bytearray(file.read_bytes())
    data[2 * MB] ^= 4
    if damage == "gone":
        file.unlink()
    elif damage == "short":
        os.truncate(file, 3 * MB)
    elif damage == "long":
        with file.open("ab") as stream:
            stream.write(b"x")
    else:
        file.write_bytes(data)
    with pytest.raises(ray.exceptions.ObjectLostError, match=file.name):
        ray.get(ref)
    with pytest.raises(ray.exceptions.RayError):
        ray.get(matches.remote(ref, 1))
    del ref
    check(ray.get(ray.put(pattern(2))), 2)


# --- runtimes of their own


DRIVER = """
import os, sys
import numpy as np
import ftray as ray
from tests.helpers.spilling import MB, pattern
"""
SPILL_AND_WAIT = """
refs = [ray.put(pattern(i, 4 * MB)) for i in range(8)]
tell("node", ray.nodes()[0]["pid"])
await_word()
"""


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (7, TypeError, "7"),
        ("", ValueError, "empty"),
        ("/proc/nowhere", ValueError, "/proc/nowhere"),
        ("nosuch://bucket", ValueError, "nosuch"),
    ],
)
def test_directories_that_cannot_be_used(value, error, text):
    from ftray._node.launch import NodeOptions

    with pytest.raises(error, match=text):
        NodeOptions(object_spilling_directory=value).checked()


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare(1)")
def test_a_full_disk(start_driver, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=6m tmpfs {disk} && exec "$0" "$@"'
    source = f"""ray.init(num_cpus=1, object_store_memory=20 * MB, object_spilling_directory="{disk}")
refs = []
try:
    while len(refs) < 20:
        refs.append(ray.put(pattern(len(refs), 4 * MB)))
except ray.exceptions.OutOfDiskError as error:
    tell("full", [len(refs), str(error)])
there, spilled = [], []
for i, ref in enumerate(refs):
    try:
        there.append(np.array_equal(ray.get(ref), pattern(i, 4 * MB)))
    except ray.exceptions.ObjectStoreFullError as error:
        assert "no space" in str(error), error  # neither memory for it, nor disk for others
        spilled.append((i, ref))
tell("right", [all(there), len(there), len(spilled)])
del refs, ref
assert all(np.array_equal(ray.get(ref), pattern(i, 4 * MB)) for i, ref in spilled)
del spilled
tell("goes on", len(ray.get(ray.put(pattern(0, 18 * MB)))))
ray.shutdown()
tell("left", os.listdir("{disk}"))
"""
    wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount]
    with start_driver(DRIVER + source, wrapper=wrapper) as driver:
        count, text = driver.expect("full")
        assert count >= 4 and str(disk) in text and "bytes are free" in text
        right, there, spilled = driver.expect("right")
        assert right and there >= 3 and spilled <= 1
        assert driver.expect("goes on") == 18 * MB
        assert driver.expect("left") == []
        driver.finish()


@pytest.fixture
def fill(no_runtime):
    """Start a runtime, put more than memory has room for, read it again; the figures of the store."""

    def work(**options):
        ray.init(num_cpus=1, object_store_memory=STORE, log_to_driver=False, **options)
        refs = [ray.put(pattern(i, 4 * MB)) for i in range(8)]
        for i, ref in enumerate(refs):
            check(ray.get(ref), i)
        return store()

    return work


def test_the_spill_process_dies_in_the_middle(fill, monkeypatch, tmp_path):
    points = ["half-written", "written", "half-read"]
    monkeypatch.setenv("FTRAY_SPILL_FAULT", ",".join(f"{point}@{tmp_path}/{point}" for point in points))
    assert fill()["restored_objects"] >= 4
    assert all((tmp_path / point).exists() for point in points)


def test_switched_off(fill, monkeypatch):
    monkeypatch.setenv("FTRAY_automatic_object_spilling_enabled", "0")
    with pytest.raises(ray.exceptions.ObjectStoreFullError, match="switched off"):
        fill()


def test_a_url(fill):
    pytest.importorskip("fsspec")
    assert fill(object_spilling_directory="memory://spilled")["restored_objects"] >= 4


def test_a_directory_of_the_users_choice_is_left_empty_and_swept(fill, start_driver, tmp_path):
    place = tmp_path / "disk"
    init = f'ray.init(num_cpus=1, object_store_memory=20 * MB, object_spilling_directory="{place}")\n'
    with start_driver(DRIVER + init + SPILL_AND_WAIT) as driver:
        node = driver.expect("node")
        assert list(place.glob("ftray-spill-*/*.spill"))
        os.kill(node, signal.SIGKILL)
        wait_ended([node])
        driver.say("end")
        driver.finish(status=None)
        driver.check_processes_ended()  # the node's, which are told of its death by the kernel
    (place / "of somebody else").mkdir()
    assert list(place.glob("ftray-spill-*"))
    assert fill(object_spilling_directory=str(place))["spilled_objects"]
    ray.shutdown()
    assert [path.name for path in place.iterdir()] == ["of somebody else"]
