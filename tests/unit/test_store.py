"""Shared-memory store: segments, views and their pins, copies, limits, forked children, the end."""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftray._core.store import PinnedBuffer, Store, StoreError, error_text, live_handles

FORKED, CLOSED, UNKNOWN, EXISTS, RANGE, FOREIGN, BAD_SIZE, UNSEALED, NO_FDS, NO_MEMORY, LIMIT = range(
    -1, -12, -1
)
KB, MB = 1 << 10, 1 << 20
F_GET_SEALS, F_SEAL_SHRINK, F_ADD_SEALS = 1034, 2, 1033


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def mapped_segments() -> int:
    return Path("/proc/self/maps").read_text().count("/memfd:ftray")


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    gc.collect()
    before = (open_fds(), mapped_segments(), live_handles())
    yield
    gc.collect()
    after = (open_fds(), mapped_segments(), live_handles())
    assert after[1:] == before[1:]
    assert after[0] <= before[0], "what an earlier test's thread closes meanwhile is no leak"


@pytest.fixture(params=[True, False], ids=["populate", "fallocate"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    store = Store(populate=request.param)
    yield store
    while store.py_has_releases():
        store.py_drain()
    assert store.py_close() == 0
    assert set(store.py_stats().values()) == {0}


def refused(code: int, call: object, *args: object) -> StoreError:
    with pytest.raises(StoreError) as caught:
        call(*args)  # type: ignore[operator]
    assert caught.value.code == code
    return caught.value


def test_what_is_written_is_read_and_cannot_be_changed(store: Store) -> None:
    store.py_create(1, 4 * MB)
    data = random.Random(1).randbytes(300_001)
    store.py_write(1, 8192, data)
    view = memoryview(store.py_view(1, 8192, len(data)))
    assert view == data and view.readonly and view.format == "B"
    with pytest.raises(TypeError):
        view[0] = 1
    array = pytest.importorskip("numpy").frombuffer(view, "u1")
    with pytest.raises(ValueError, match=r"read-only|WRITEABLE"):
        array.flags.writeable = True


@pytest.mark.parametrize("seed", range(8))
def test_pieces_of_any_size_and_alignment_land_where_they_belong(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    store.py_create(1, 8 * MB)
    reference = bytearray(8 * MB)
    for _ in range(25):
        size = rng.choice([0, 1, 63, 4097, 256 * KB - 1, 256 * KB, 256 * KB + 77, MB + 5, 3 * MB])
        start = rng.randrange(8 * MB - size)
        piece = rng.randbytes(size + 9)[rng.randrange(9) :][:size]
        offset = rng.randrange(start + 1)
        store.py_write(1, offset, piece, start - offset)
        reference[start : start + size] = piece
    assert memoryview(store.py_view(1, 0, 8 * MB)) == reference


def test_pages_are_made_only_as_blocks_are_written() -> None:
    store = Store()
    if not store.populates:
        pytest.skip("this kernel has no MADV_POPULATE_WRITE")
    fd = store.py_create(1, 64 * MB)
    assert os.fstat(fd).st_blocks == 0
    store.py_write(1, 0, bytes(100_000))
    assert store.py_stats()["backed_bytes"] == 102_400
    store.py_write(1, 50_000, bytes(MB))
    assert store.py_stats()["backed_bytes"] == (50_000 + MB + 4095) // 4096 * 4096
    store.py_back(1, 5 * MB, MB)
    assert store.py_stats()["backed_bytes"] == 6 * MB
    assert 6 * MB <= os.fstat(fd).st_blocks * 512 <= 8 * MB
    store.py_close()


def test_without_populate_all_pages_exist_from_the_start() -> None:
    store = Store(populate=False)
    assert not store.populates
    assert os.fstat(store.py_create(1, 4 * MB)).st_blocks * 512 == 4 * MB
    store.py_close()


def test_a_segment_can_be_neither_resized_nor_written_through_its_descriptor(store: Store) -> None:
    fd = store.py_create(1, MB)
    store.py_write(1, 0, b"kept")
    assert fcntl.fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK
    for size in (0, 2 * MB):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size)
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"lost", 0)
    with pytest.raises(PermissionError):
        mmap.mmap(fd, MB)
    store.py_write(1, 4, b" too")
    assert bytes(store.py_view(1, 0, 8)) == b"kept too"


def test_making_and_dropping_segments_gives_all_address_space_back(store: Store) -> None:
    def address_space() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE

    before = address_space()
    for size in [4096, MB, 2 * MB, 7 * MB] * 16:
        store.py_create(1, size)
        store.py_drop(1)
    assert address_space() - before < 2 * MB


def test_calls_that_make_no_sense_are_refused_with_a_code(store: Store) -> None:
    store.py_create(1, MB)
    refused(EXISTS, store.py_create, 1, MB)
    refused(BAD_SIZE, store.py_create, 2, 0)
    refused(BAD_SIZE, store.py_create, 2, 4097)
    refused(UNKNOWN, store.py_view, 2, 0, 1)
    refused(UNKNOWN, store.py_drop, 2)
    refused(UNKNOWN, store.py_close_fd, 2)
    refused(RANGE, store.py_view, 1, 0, MB + 1)
    refused(RANGE, store.py_view, 1, MB + 1, 0)
    refused(RANGE, store.py_view, 1, 1, 2**64 - 1)
    refused(RANGE, store.py_write, 1, MB - 3, b"four")
    refused(RANGE, store.py_write, 1, 0, b"four", 1, 4)
    assert not store.py_is_mapped(2) and store.py_is_mapped(1)
    assert "1048577 bytes of segment 0x1" in str(refused(RANGE, store.py_view, 1, 0, MB + 1))
    assert len(memoryview(store.py_view(1, MB, 0))) == 0


def test_the_descriptor_can_be_closed_once_the_node_has_it(store: Store) -> None:
    fds = open_fds()
    fd = os.dup(store.py_create(1, MB))
    store.py_close_fd(1)
    store.py_close_fd(1)
    assert open_fds() == fds + 1 and store.py_stats()["fds"] == 0
    store.py_write(1, 0, b"x")
    assert os.pread(fd, 1, 0) == b"x"
    os.close(fd)


# -- readers ------------------------------------------------------------------------------------------------


def test_a_reader_sees_the_producers_bytes_and_cannot_write(store: Store) -> None:
    reader = Store()
    reader.py_map_foreign(7, os.dup(store.py_create(1, MB)), MB)
    store.py_write(1, 4096, b"hello")
    assert bytes(reader.py_view(7, 4096, 5)) == b"hello"
    refused(FOREIGN, reader.py_write, 7, 0, b"no")
    stats = reader.py_stats()
    assert (stats["foreign_segments"], stats["foreign_bytes"], stats["fds"]) == (1, MB, 0)
    reader.py_drain()
    assert not reader.py_drop(7)
    assert reader.py_close() == 0


def test_unsafe_descriptors_are_refused_and_closed(store: Store, tmp_path: Path) -> None:
    fds = open_fds()
    unsealed = os.memfd_create("unsealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, MB)
    refused(UNSEALED, store.py_map_foreign, 7, os.dup(unsealed), MB)
    fcntl.fcntl(unsealed, F_ADD_SEALS, F_SEAL_SHRINK)
    refused(BAD_SIZE, store.py_map_foreign, 7, os.dup(unsealed), 2 * MB)
    refused(BAD_SIZE, store.py_map_foreign, 7, os.dup(unsealed), 0)
    os.close(unsealed)
    (tmp_path / "file").write_bytes(bytes(MB))
    refused(UNSEALED, store.py_map_foreign, 7, os.open(tmp_path / "file", os.O_RDONLY), MB)
    assert "Bad file descriptor" in str(refused(-12, store.py_map_foreign, 7, -1, MB))
    assert open_fds() == fds and not store.py_is_mapped(7)


def test_a_second_answer_for_a_mapped_segment_is_harmless_and_another_file_is_not_taken_for_it(
    store: Store,
) -> None:
    reader = Store()
    fd, other = store.py_create(1, MB), store.py_create(2, MB)
    for _ in range(2):
        reader.py_map_foreign(1, os.dup(fd), MB)
    refused(EXISTS, reader.py_map_foreign, 1, os.dup(other), MB)
    refused(EXISTS, reader.py_create, 1, MB)
    assert reader.py_stats()["foreign_segments"] == 1
    reader.py_close()


def test_a_segment_reopened_while_a_view_holds_the_old_mapping_uses_that_mapping(store: Store) -> None:
    reader = Store()
    fd = store.py_create(1, MB)
    store.py_write(1, 0, b"data")
    reader.py_map_foreign(1, os.dup(fd), MB)
    view = reader.py_view(1, 0, 4)
    assert reader.py_drop(1)
    refused(UNKNOWN, reader.py_view, 1, 0, 4)
    reader.py_map_foreign(1, os.dup(fd), MB)
    assert reader.py_stats()["deferred"] == 0
    del view
    reader.py_drain()
    assert bytes(reader.py_view(1, 0, 4)) == b"data"
    reader.py_drain()
    reader.py_close()


# -- views and pins -----------------------------------------------------------------------------------------


def test_a_dropped_segment_stays_until_the_last_slice_of_a_view_dies(store: Store) -> None:
    store.py_create(1, MB)
    store.py_write(1, 0, b"abcdef")
    piece = memoryview(store.py_view(1, 0, 6, 11))[2:4]
    array = pytest.importorskip("numpy").frombuffer(store.py_view(1, 0, 6, 22), "u1")[1:]
    assert store.py_drop(1) and not store.py_is_mapped(1)
    assert store.py_stats()["deferred"] == 1
    assert bytes(piece) == b"cd" and bytes(array) == b"bcdef"
    del piece
    assert store.py_drain() == [(11, 0)] and mapped_segments() == 1
    del array
    assert store.py_drain() == [(22, 0)] and mapped_segments() == 0
    refused(UNKNOWN, store.py_drop, 1)


def test_releases_come_back_oldest_first_with_cookie_and_session_and_in_batches(store: Store) -> None:
    store.py_create(1, MB)
    views = [store.py_view(1, 0, 1, cookie, 7) for cookie in range(200)]
    assert not store.py_has_releases() and store.py_drain() == []
    for i in range(200):
        views[i] = None  # type: ignore[call-overload]
    assert store.py_has_releases() and store.py_stats()["pins"] == 200
    drained = store.py_drain(3)
    assert drained == [(0, 7), (1, 7), (2, 7)]
    while store.py_has_releases():
        drained += store.py_drain()
    assert drained == [(cookie, 7) for cookie in range(200)]
    assert store.py_stats()["pins"] == 0


def test_a_pin_that_never_became_a_view(store: Store) -> None:
    store.py_create(1, MB)
    store.py_pin_unpin(1)
    assert store.py_stats()["pins"] == 0 and store.py_drain() == []


def test_a_segment_dropped_during_a_write_is_unmapped_after_it(store: Store) -> None:
    store.py_create(1, 256 * MB)
    data = b"x" * (256 * MB)
    writer = threading.Thread(target=store.py_write, args=(1, 0, data))
    writer.start()
    while store.py_stats()["pins"] == 0 and writer.is_alive():
        pass
    assert store.py_drop(1) and mapped_segments() == 1
    writer.join()
    assert store.py_drain() == [] and mapped_segments() == 0


def test_views_in_a_cycle_are_released_by_the_collector(store: Store) -> None:
    store.py_create(1, MB)
    cycle: list[object] = [memoryview(store.py_view(1, 0, 10, 5))]
    cycle.append(cycle)
    del cycle
    assert store.py_drain() == []
    gc.collect()
    assert store.py_drain() == [(5, 0)]


def test_views_may_die_on_any_thread_while_another_drains(store: Store) -> None:
    threads, each = 4, 3000
    store.py_create(1, MB)
    lock = threading.Lock()  # the caller's; dying views do not take it

    def make_and_lose(first: int) -> None:
        keep = []
        for cookie in range(first, first + each):
            with lock:
                keep.append(store.py_view(1, 0, 1, cookie))
            if len(keep) > 7:
                keep.pop(cookie % 7)

    workers = [threading.Thread(target=make_and_lose, args=(1 + n * each,)) for n in range(threads)]
    drained: list[int] = []
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        with lock:
            drained += [cookie for cookie, _ in store.py_drain()]
    while store.py_has_releases():
        drained += [cookie for cookie, _ in store.py_drain()]
    assert sorted(drained) == list(range(1, 1 + threads * each))


def test_views_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError, match="made by the store only"):
        PinnedBuffer()
    with pytest.raises(BufferError):
        memoryview(PinnedBuffer.__new__(PinnedBuffer))


# -- the end ------------------------------------------------------------------------------------------------


def test_a_closed_store_refuses_calls_and_leaves_pinned_mappings_alone() -> None:
    store = Store()
    for seg_id in (1, 2):
        store.py_create(seg_id, MB)
    store.py_write(1, 0, b"still here")
    view = store.py_view(1, 0, 10, 3)
    assert store.py_close() == 1 and mapped_segments() == 1 and store.py_stats()["fds"] == 0
    for call, args in ((store.py_create, (3, MB)), (store.py_view, (1, 0, 1)), (store.py_drop, (1,))):
        refused(CLOSED, call, *args)
    refused(CLOSED, store.py_map_foreign, 4, os.open("/dev/null", os.O_RDONLY), MB)
    assert bytes(view) == b"still here" and store.py_close() == 1
    del view
    assert store.py_drain() == [(3, 0)] and mapped_segments() == 0 and store.py_close() == 0


def test_a_view_outlives_its_store() -> None:
    script = """
        import gc, os
        from ftray._core.store import Store, live_handles
        store = Store()
        store.py_create(1, 1 << 20)
        store.py_write(1, 0, b"outlives")
        view = memoryview(store.py_view(1, 0, 8))
        lost = store.py_view(1, 0, 8)
        del store
        gc.collect()
        assert bytes(view) == b"outlives"
        assert live_handles() == (1, 2), live_handles()
        del view, lost
        assert live_handles() == (1, 0), live_handles()      # the mapping is left to the end of the process
    """
    run_script(script)


def test_a_reader_keeps_its_bytes_when_the_producer_is_killed() -> None:
    out_r, out_w = os.pipe()
    script = f"""
        import os, signal
        from ftray._core.store import Store
        store = Store()
        fd = store.py_create(1, 1 << 20)
        store.py_write(1, 0, b"survives")
        os.write({out_w}, b"%d" % fd)
        signal.pause()
    """
    producer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], pass_fds=[out_w])
    os.close(out_w)
    fd = os.open(f"/proc/{producer.pid}/fd/{os.read(out_r, 20).decode()}", os.O_RDONLY)
    os.close(out_r)
    reader = Store()
    reader.py_map_foreign(1, fd, MB)
    producer.kill()
    assert producer.wait() == -signal.SIGKILL
    assert bytes(reader.py_view(1, 0, 8)) == b"survives"
    reader.py_drain()
    reader.py_close()


# AddressSanitizer reserves terabytes of addresses, so that this limit would hit it first.
needs_address_space = pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""), reason="runs under AddressSanitizer"
)

# -- limits and forks ---------------------------------------------------------------------------------------


def run_script(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("limit", "value", "code", "text"),
    [
        ("RLIMIT_NOFILE", "len(os.listdir('/proc/self/fd')) - 1", NO_FDS, "ulimit -n"),
        ("RLIMIT_FSIZE", "1 << 20", LIMIT, "ulimit -f"),
        pytest.param("RLIMIT_AS", "200 << 20", NO_MEMORY, "object_store_memory", marks=needs_address_space),
    ],
)
def test_limits_of_the_process_come_out_as_codes_and_leave_nothing_behind(
    limit: str, value: str, code: int, text: str
) -> None:
    run_script(f"""
        import os, resource
        from ftray._core.store import Store, StoreError, live_handles
        for populate in (True, False):
            store = Store(populate=populate)
            fds = len(os.listdir('/proc/self/fd'))
            soft, hard = resource.getrlimit(resource.{limit})
            resource.setrlimit(resource.{limit}, ({value}, hard))
            try:
                store.py_create(1, 512 << 20)
            except StoreError as error:
                assert error.code == {code} and error.errno and {text!r} in str(error), error
            else:
                raise AssertionError("not refused")
            resource.setrlimit(resource.{limit}, (soft, hard))
            assert len(os.listdir('/proc/self/fd')) == fds and live_handles() == (0, 0)
            assert set(store.py_stats().values()) == {{0}}
            store.py_create(1, 1 << 20)
            store.py_write(1, 0, b"works again")
            assert store.py_close() == 0
    """)


@needs_address_space
def test_address_space_can_run_out_for_a_reader_too() -> None:
    run_script(f"""
        import os, resource
        from ftray._core.store import Store, StoreError
        producer, reader = Store(), Store()
        fd = os.dup(producer.py_create(1, 512 << 20))
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (600 << 20, hard))
        try:
            reader.py_map_foreign(1, fd, 512 << 20)
        except StoreError as error:
            assert error.code == {NO_MEMORY}, error
        else:
            raise AssertionError("not refused")
        assert not reader.py_is_mapped(1) and set(reader.py_stats().values()) == {{0}}
    """)


def test_a_forked_child_is_refused_and_its_dying_views_release_nothing(store: Store) -> None:
    store.py_create(1, MB)
    store.py_write(1, 0, b"parent")
    views = [store.py_view(1, 0, 6, 1)]
    fd = os.dup(store.py_create(2, MB))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            assert bytes(views[0]) == b"parent"
            refused(FORKED, store.py_create, 3, MB)
            refused(FORKED, store.py_view, 1, 0, 1)
            refused(FORKED, store.py_write, 1, 0, b"child")
            refused(FORKED, store.py_drop, 1)
            refused(FORKED, store.py_drain)
            refused(FORKED, store.py_map_foreign, 5, fd, MB)
            assert "call init() in the child" in str(refused(FORKED, store.py_close))
            views.clear()
            assert not store.py_has_releases()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(fd)
    assert store.py_drain() == [] and bytes(views[0]) == b"parent"
    views.clear()
    assert store.py_drain() == [(1, 0)]


def test_every_code_has_a_text() -> None:
    for code in range(FORKED, -13, -1):
        assert "unknown store code" not in error_text(code, 0, "testing")


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="needs a C compiler")
def test_the_tuning_script_runs() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "tune_store.py"
    done = subprocess.run(
        [sys.executable, str(script), "--smoke"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "streaming" in done.stdout and "warm median" in done.stdout
