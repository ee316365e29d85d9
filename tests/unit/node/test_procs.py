"""Process primitives, each in a child process of its own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from ftray._core import procs


def run(program: str) -> str:
    """Run a program in a fresh interpreter and return what it printed."""
    source = "import os, signal, sys\nfrom ftray._core import procs\n" + textwrap.dedent(program)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", source], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_sibling_is_the_parents_child_and_its_status_reaches_the_parent() -> None:
    assert (
        run("""
        top = os.getpid()
        middle = os.fork()
        if middle == 0:
            pid = procs.fork_sibling()
            os._exit(7 if pid == 0 and os.getppid() == top else 0 if pid else 1)
        ends = sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2))
        print(ends)
    """)
        == "[0, 7]"
    )


def test_a_sibling_runs_pythons_fork_hooks_and_can_use_threads() -> None:
    assert run("""
        import threading
        os.register_at_fork(after_in_child=lambda: print("child", flush=True))
        if os.fork() == 0:
            if procs.fork_sibling() == 0:
                done = threading.Event()
                threading.Thread(target=done.set).start()
                assert done.wait(10)
                lock = threading.RLock()
                with lock, lock:
                    print("threads", procs.tid_cache_known(), flush=True)
            os._exit(0)
        os.wait(), os.wait()
    """).splitlines()[-2:] == ["child", f"threads {procs.tid_cache_known()}"]


def test_a_fork_with_threads_is_refused() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert procs.thread_count() >= 2
        with pytest.raises(RuntimeError, match="single-threaded"):
            procs.fork_sibling()
    finally:
        stop.set()
        thread.join()


def test_the_parent_death_signal_ends_the_child_with_its_parent() -> None:
    assert run("""
        import select
        procs.set_child_subreaper(True)
        reader, writer = os.pipe()
        middle = os.fork()
        if middle == 0:
            pid = os.fork()
            if pid == 0:
                procs.set_pdeathsig(signal.SIGKILL)
                assert procs.get_pdeathsig() == signal.SIGKILL
                os.write(writer, b"x")
                signal.pause()
            os.read(reader, 1)
            os._exit(0)
        os.waitpid(middle, 0)
        print(os.waitstatus_to_exitcode(os.wait()[1]))
    """) == str(-signal.SIGKILL)


def test_orphans_go_to_the_subreaper() -> None:
    assert (
        run("""
        procs.set_child_subreaper(True)
        assert procs.is_child_subreaper()
        reader, writer = os.pipe()
        middle = os.fork()
        if middle == 0:
            if os.fork() == 0:
                os.read(reader, 1)
                os._exit(5)
            os._exit(0)
        os.waitpid(middle, 0)
        os.write(writer, b"x")
        print(os.waitstatus_to_exitcode(os.wait()[1]))
    """)
        == "5"
    )


def test_close_range_closes_exactly_the_range() -> None:
    assert (
        run("""
        first = os.open("/dev/null", os.O_RDONLY)
        others = [os.dup(first) for _ in range(5)]
        procs.close_range(others[1], others[3])
        def is_open(fd):
            try:
                os.fstat(fd)
            except OSError:
                return False
            return True
        print([is_open(fd) for fd in [first, *others]])
    """)
        == "[True, True, False, False, False, True]"
    )
    with pytest.raises(ValueError, match=">= 0"):
        procs.close_range(-1)


def test_the_name_of_a_process() -> None:
    assert (
        run("procs.set_name('ftray-something-long'); print(open('/proc/self/comm').read().strip())")
        == "ftray-something"
    )


def test_signals_reach_only_their_target() -> None:
    """The pattern used everywhere: a pidfd names one process for good."""
    child = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE)
    pidfd = os.pidfd_open(child.pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert select.select([pidfd], [], [], 20)[0]
    assert child.wait() == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, 0)
    os.close(pidfd)
    if child.stdin is not None:
        child.stdin.close()
