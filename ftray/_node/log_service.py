"""Forwarding workers' output to the driver of their job.

Owns: the read ends of workers' pipes, one line buffer each, what each driver may still be sent.
Invariants: a worker's ``print`` never waits for a driver: pipes are read whenever they have something, and
lines that a driver does not take are dropped and counted; what waits for a driver is bounded.
Leaves to others: cutting lines (``logs``), printing them (the driver).
"""

from __future__ import annotations

import os
import time

from ftray._node.frames import Log
from ftray._node.log_files import LogFiles, max_bytes
from ftray._node.logs import LineBuffer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ftray._node.daemon import Node
    from ftray._node.logs import Chunk
    from ftray._node.workers import WorkerProcess

READ_BYTES = 64 << 10
# Output waits for a slow driver up to here; control messages have the rest of its queue.
MAX_WAITING_BYTES = 1 << 20
# Bytes that a process wrote just before it died; more than a pipe holds.
_FINAL_READS = 32
_COUNT_PAUSE_S = 0.5


class _Pipe:
    __slots__ = ("buffer", "dropped_lines", "fd", "stream")

    def __init__(self, fd: int, stream: int) -> None:
        self.fd = fd
        self.stream = stream
        self.buffer = LineBuffer()
        self.dropped_lines = 0


class LogService:
    """The pipes of all workers."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._pipes: dict[int, list[_Pipe]] = {}
        self._files = LogFiles(node.session.path, max_bytes(), node.report)

    def open_pipes(self, worker: WorkerProcess) -> list[int]:
        """Make the worker's two pipes; return the write ends, the caller's to close."""
        writers: list[int] = []
        pipes: list[_Pipe] = []
        try:
            for stream in (1, 2):
                reader, writer = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(reader, False)
                writers.append(writer)
                pipes.append(_Pipe(reader, stream))
        except OSError:
            for fd in [*writers, *(pipe.fd for pipe in pipes)]:
                os.close(fd)
            raise
        for pipe in pipes:
            self._watch(worker, pipe)
        self._pipes[worker.number] = pipes
        return writers

    def _watch(self, worker: WorkerProcess, pipe: _Pipe) -> None:
        self._node.loop.register(pipe.fd, lambda _events: self._readable(worker, pipe))

    def label_of(self, worker: WorkerProcess) -> str:
        """Return the name that the worker announced last."""
        return next((p.buffer.label for p in self._pipes.get(worker.number, ()) if p.buffer.label), "")

    def close_pipes(self, worker: WorkerProcess) -> str:
        """Forward what is left, close the pipes and return the last lines of stderr."""
        tail = ""
        for pipe in self._pipes.pop(worker.number, ()):
            self._read_all(worker, pipe)
            self._forward(worker, pipe, pipe.buffer.finish())
            self._report_dropped(worker, pipe)
            self._close(pipe)
            tail = pipe.buffer.tail() or tail
        self._files.ended(worker.number)
        return tail

    def flush(self, job_id: int) -> None:
        """Forward now what the job's workers have written so far."""
        for number, pipes in list(self._pipes.items()):
            worker = self._node.workers.get(number)
            if worker is not None and worker.job_id == job_id:
                for pipe in pipes:
                    self._read_all(worker, pipe)

    def _read_all(self, worker: WorkerProcess, pipe: _Pipe) -> None:
        for _ in range(_FINAL_READS):
            if pipe.fd < 0 or not self._readable(worker, pipe):
                break

    def _readable(self, worker: WorkerProcess, pipe: _Pipe) -> bool:
        """Read once; False when there was nothing."""
        try:
            data = os.read(pipe.fd, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._forward(worker, pipe, pipe.buffer.finish())
            self._close(pipe)
            return False
        self._forward(worker, pipe, pipe.buffer.feed(data))
        return True

    def _close(self, pipe: _Pipe) -> None:
        if pipe.fd >= 0:
            self._node.loop.unregister(pipe.fd)
            os.close(pipe.fd)
            pipe.fd = -1

    def _forward(self, worker: WorkerProcess, pipe: _Pipe, chunks: list[Chunk]) -> None:
        driver = self._node.clients.driver_of(worker.job_id)
        for chunk in chunks:
            self._files.write(worker.number, pipe.stream, chunk.text)
            if driver is None or driver.connection.queued_bytes > MAX_WAITING_BYTES:
                self._drop(worker, pipe, chunk.text.count(b"\n"))
            else:
                self._node.clients.send(driver, Log(worker.pid, pipe.stream, chunk.label, chunk.text))

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def _drop(self, worker: WorkerProcess, pipe: _Pipe, lines: int) -> None:
        if not pipe.dropped_lines:
            due_s = time.monotonic() + _COUNT_PAUSE_S
            self._node.loop.set_timer(
                ("dropped", worker.number, pipe.stream), due_s, lambda: self._report_dropped(worker, pipe)
            )
        pipe.dropped_lines += lines

    def _report_dropped(self, worker: WorkerProcess, pipe: _Pipe) -> None:
        """Tell the driver, as soon as it reads again, how many lines it missed."""
        name = ("dropped", worker.number, pipe.stream)
        self._node.loop.set_timer(name, None, lambda: None)
        driver = self._node.clients.driver_of(worker.job_id)
        if not pipe.dropped_lines or driver is None:
            return
        if driver.connection.queued_bytes > MAX_WAITING_BYTES and pipe.fd >= 0:
            due_s = time.monotonic() + _COUNT_PAUSE_S
            self._node.loop.set_timer(name, due_s, lambda: self._report_dropped(worker, pipe))
            return
        text = f"[ftray] {pipe.dropped_lines} lines dropped: the driver reads too slowly\n".encode()
        pipe.dropped_lines = 0
        self._node.clients.send(driver, Log(worker.pid, pipe.stream, pipe.buffer.label, text))
