"""The threads of an actor with `max_concurrency` > 1 or with concurrency groups: a pool for each group.

Owns: the stage of the calls that were taken off the queue. Invariants: a call changes its stage under the GIL without
running Python code in between, so that it either runs or is dropped as cancelled; calls of one group begin in the order
in which they came; after exit_actor(), and while this process leaves, nothing begins.

Leaves to others: finding a call and leaving (beside.pyx), running a call (execution.pyx), taking calls off the queue
(worker.pyx).
"""

import queue
import threading

from libc.stdint cimport uint64_t

from ftray._core.beside cimport Beside
from ftray._core.execution cimport Execution
from ftray._core.invocation cimport DROPPED, RUNNING, WAITING, Call
from ftray._core.wire cimport TaskHead


cdef class Pools(Beside):
    """Threads by concurrency group, for one actor."""

    def __init__(self, Execution execution, int max_concurrency, dict groups):
        self.execution = execution
        self.queues = {}
        for group, threads in {"": max_concurrency, **groups}.items():
            self.queues[group] = queue.SimpleQueue()
            for i in range(threads):
                name = f"ftray-call-{group}-{i}" if group else f"ftray-call-{i}"
                threading.Thread(target=self.serve, args=(self.queues[group],), name=name, daemon=True).start()

    cdef int hand(self, Call call) except -1:
        """Give a call to the threads of its group."""
        cdef TaskHead *h = <TaskHead *>call.t.frame.data
        group = ""
        if len(self.queues) > 1:
            try:
                group = self.execution.callables.lookup(call.t.ch, h.fn)[3]
            except Exception:
                group = ""                      # whoever runs it finds the same error, and answers with it
        self.open[call.key] = call
        (self.queues.get(group) or self.queues[""]).put(call)
        return 0

    def serve(self, calls):
        """One thread."""
        cdef Call call
        while True:
            call = calls.get()
            if call.stage == WAITING and not (self.execution.exiting or self.execution.leaving):
                call.stage = RUNNING
                self.execution.execute(call)
                self.open.pop(call.key, None)
                if self.execution.exiting:
                    self.leave_when_done()
            call = None

    cdef int cancel(self, uint64_t key, bint recursive) except -1:
        """A caller wants a call cancelled: it is dropped, or told when it runs already."""
        cdef Call call = self.open.get(key)
        if call is None:
            return 0
        if call.stage == WAITING:
            call.stage = DROPPED
            self.open.pop(key, None)
            self.execution.answer_cancelled(call)
        elif call.stage == RUNNING:
            call.cancelled = True
            if recursive:
                self.execution.cancel_submitted(call)
        return 0

    cdef int leave(self) except -1:
        self.execution.post(self.execution.on_exit)
        return 0
