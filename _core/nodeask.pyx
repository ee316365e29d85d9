"""Requests to ftrayd, for threads that hold the GIL.

Owns: waiting for the answer to one request. Invariants: a number that waits is in `Core.rpc_replies` with NULL until its
answer comes, and is taken out by who waits, also when a signal ends the wait; ftrayd's end ends every wait.

Leaves to others: the frames (nodelink.pyx), who puts an answer there (dispatch.pyx), what payloads mean.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint16_t, uint64_t

from ftray._core.nodelink cimport MAX_MESSAGE, node_put, node_put_flagged
from ftray._core.runtime cimport core, core_enter, core_leave, wait_python
from ftray._core.session cimport check_usable
from ftray._core.types cimport Blob, Core, blob_drop, mono_ns


cdef struct Reply:
    uint64_t req


cdef bint reply_here(Core *c, void *arg) noexcept nogil:
    return c.rpc_replies[(<Reply *>arg).req] != NULL or not c.node_alive


cdef bytes node_ask(Core *c, uint16_t kind, const void *payload, uint64_t size, int64_t deadline_ns=-1,
                    uint16_t flags=0):
    """One request to ftrayd and its answer's payload; TimeoutError past the deadline (CLOCK_MONOTONIC, -1: none)."""
    cdef Reply r
    cdef Blob *b
    cdef bint ended = False
    with nogil:
        core_enter(c)
        r.req = c.next_req
        c.next_req += 1
        c.rpc_replies[r.req] = NULL
        node_put_flagged(c, kind, flags, r.req, payload, size)
        core_leave(c)
    try:
        wait_python(c, reply_here, <void *>&r, deadline_ns)
        ended = True
    finally:
        with nogil:
            core_enter(c)
            b = c.rpc_replies[r.req]
            c.rpc_replies.erase(r.req)
            core_leave(c)
            if not ended:
                blob_drop(b)
    if b == NULL:
        check_usable()
        raise TimeoutError("ftrayd does not answer")
    answer = PyBytes_FromStringAndSize(b.data, b.size)
    blob_drop(b)
    return answer


cdef int check_size(bytes payload) except -1:
    if len(payload) > MAX_MESSAGE:
        raise ValueError(f"a message of {len(payload)} bytes to ftrayd; it takes at most {MAX_MESSAGE}")
    return 0


def ask_node(int kind, bytes payload, double timeout_s=-1):
    """Send a request frame to ftrayd and return its answer's payload; TimeoutError when it takes too long (-1: never)."""
    check_usable()
    check_size(payload)
    cdef int64_t deadline_ns = -1 if timeout_s < 0 else mono_ns() + <int64_t>(timeout_s * 1e9)
    return node_ask(core(), kind, <const char *>payload, len(payload), deadline_ns)


def tell_node(int kind, bytes payload):
    """Send a frame to ftrayd that has no answer."""
    cdef Core *c = core()
    cdef const char *p = payload
    cdef uint64_t n = len(payload)
    cdef uint16_t k = kind
    check_usable()
    check_size(payload)
    with nogil:
        core_enter(c)
        node_put(c, k, 0, p, n)
        core_leave(c)
