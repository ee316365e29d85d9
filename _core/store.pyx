"""Shared-memory store: this process's memfd segments, its mappings of other processes' segments, pins and copies.

Owns every mapping and descriptor of object memory in the process. Invariants:

* A segment cannot be resized or written by anybody but its producer (seals), so a mapping never faults: pages are
  made with a system call that answers with a code (MADV_POPULATE_WRITE just ahead of the copy, or fallocate at
  creation on kernels before 5.14), never by a bare store.
* A mapping is undone only when nothing pins it; what is still pinned at the end is left to the process's end.
* A view's dealloc may run at any allocation on any thread, whatever locks it holds: it only pushes its Pin, which
  it owns already, on a lock-free list; the owner of the store takes it from there with `drain_releases`.
* A forked child has the mappings but not the store: calls are refused, dealloc does nothing.

Left to the caller: the lock, which block goes where (alloc), reserving and registering segments with the node, and
not reusing a block before its last pin has come back. The system calls, the release list and the copy loop are in
store_sys.hpp, whose constants were chosen with benchmarks/tune_store.py.
"""
from libc.errno cimport EFBIG, EMFILE, ENFILE, ENOMEM, ENOSPC, errno
from libc.stdint cimport uint64_t, uintptr_t
from libc.stdlib cimport malloc
from libc.string cimport memset
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cython.operator cimport dereference as deref, preincrement
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector
cimport cython

import os

cdef extern from "store_sys.hpp":
    void let_go "ft_let_go"(Pin*) noexcept nogil
    Pin* take_pins "ft_take_pins"(void*, Pin*) noexcept nogil
    bint any_pins "ft_any_pins"(void*) noexcept nogil
    void* new_releases "ft_new_releases"(int) noexcept nogil
    void new_user "ft_new_user"(Pin*, void*) noexcept nogil
    void free_pin "ft_free_pin"(Pin*) noexcept nogil
    void leave "ft_leave"(void*, Pin*) noexcept nogil
    void count_mapping "ft_count_mapping"(int) noexcept nogil
    long long count_of_mappings "ft_mappings"() noexcept nogil
    long long count_of_pins "ft_pins"() noexcept nogil
    int insert "ft_insert"(unordered_map[uint64_t, Mapping]&, uint64_t, Mapping&) noexcept nogil
    int append "ft_append"(vector[DeadMapping]&, DeadMapping&) noexcept nogil
    Mapping* mapping_at "ft_at"(unordered_map[uint64_t, Mapping]&, uint64_t) noexcept nogil
    char* map_file "ft_map"(uint64_t, int, int) noexcept nogil
    bint can_populate "ft_can_populate"() noexcept nogil
    int back "ft_back"(WriteWindow*, uint64_t) noexcept nogil
    int write_bytes "ft_window_write"(WriteWindow*, uint64_t, const char*, uint64_t) noexcept nogil
    int new_memfd "ft_memfd"() noexcept nogil
    int seal "ft_seal"(int) noexcept nogil
    bint is_sealed "ft_is_sealed"(int) noexcept nogil
    int stat_file "ft_stat"(int, uint64_t*, uint64_t*) noexcept nogil
    void copy_bytes "ft_copy"(char*, const char*, uint64_t) noexcept nogil
    int getpid() noexcept nogil
    int close(int) noexcept nogil
    int ftruncate(int, long) noexcept nogil
    int fallocate(int, int, long, long) noexcept nogil
    int munmap(void*, size_t) noexcept nogil
    int PROT_READ, PROT_WRITE

cdef enum:
    PAGE_BYTES = 4096
    DRAIN_BATCH = 64

_TEXT = {
    STORE_FORKED: "a forked child must not use its parent's store: use the parent, or call init() in the child",
    STORE_CLOSED: "the store is closed",
    STORE_UNKNOWN: "no such segment is mapped in this process",
    STORE_EXISTS: "another segment has that id",
    STORE_RANGE: "the range is not inside the segment",
    STORE_FOREIGN: "the segment belongs to another process; only its producer writes to it",
    STORE_BAD_SIZE: "the size must be a positive multiple of 4096 bytes and no more than the file has",
    STORE_UNSEALED: "the descriptor is not sealed against shrinking, so mapping it would be unsafe",
    STORE_NO_FDS: "out of file descriptors: raise `ulimit -n`",
    STORE_NO_MEMORY: "no memory or address space for shared objects: free some or lower object_store_memory",
    STORE_LIMIT: "the file size limit (`ulimit -f`) is smaller than the segment: raise it",
    STORE_OS_ERROR: "the operating system refused",
}


class StoreError(OSError):
    """A call to the store was refused; `code` is its StoreCode, `errno` that of the system call, or 0."""

    def __init__(self, int code, int err, str what):
        super().__init__(err, error_text(code, err, what))
        self.code = code


def error_text(int code, int err, str what):
    """Say what went wrong with `what`, and what can be done about it."""
    cause = f" ({os.strerror(err)})" if err else ""
    return f"{what}: {_TEXT.get(code, 'unknown store code ' + str(code))}{cause}"


cdef int code_of(int err) noexcept nogil:
    if err == EMFILE or err == ENFILE:
        return STORE_NO_FDS
    if err == ENOMEM or err == ENOSPC:
        return STORE_NO_MEMORY
    return STORE_LIMIT if err == EFBIG else STORE_OS_ERROR


# -- copying and unmapping, without any lock ----------------------------------------------------------------

cdef void copy_in(char* target, const void* source, uint64_t size) noexcept nogil:
    copy_bytes(target, <const char*> source, size)


cdef int window_write(WriteWindow* window, uint64_t position, const void* source, uint64_t size) noexcept nogil:
    if position > window.size or size > window.size - position:
        return STORE_RANGE
    return STORE_OK if write_bytes(window, position, <const char*> source, size) == 0 else code_of(window.error)


cdef int window_back(WriteWindow* window) noexcept nogil:
    return STORE_OK if back(window, window.end) == 0 else code_of(window.error)


cdef void bury(DeadMapping* dead) noexcept nogil:
    munmap(dead.base, dead.size)
    count_mapping(-1)
    if dead.fd >= 0:
        close(dead.fd)


# -- views --------------------------------------------------------------------------------------------------

@cython.final
@cython.freelist(64)
cdef class PinnedBuffer:
    """Read-only bytes of a shared-memory object; memoryviews and arrays over it keep them in place."""

    def __init__(self):
        raise TypeError("PinnedBuffer is made by the store only")

    @staticmethod
    cdef PinnedBuffer wrap(Pin* pin):
        cdef PinnedBuffer view
        try:
            view = PinnedBuffer.__new__(PinnedBuffer)
        except BaseException:
            let_go(pin)
            raise
        view.pin = pin
        return view

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.pin == NULL:
            raise BufferError("this PinnedBuffer was not made by the store")
        PyBuffer_FillInfo(view, self, self.pin.data, <Py_ssize_t> self.pin.size, 1, flags)

    def __len__(self):
        return 0 if self.pin == NULL else <Py_ssize_t> self.pin.size

    def __dealloc__(self):
        if self.pin != NULL:
            let_go(self.pin)


def live_handles():
    """Return ``(mappings, pins)`` alive in this process over all stores; zero after a clean teardown."""
    return count_of_mappings(), count_of_pins()

# -- the store ----------------------------------------------------------------------------------------------

cdef class Store:
    """Segments and mappings of this process; see the contract in store.pxd.

    Parameters
    ----------
    populate : bool
        Make pages as blocks are written. Turned off by itself where the kernel cannot (before 5.14): then a
        segment's pages are all allocated when it is created.
    """

    def __cinit__(self, *, bint populate=True):
        self.owner_pid = getpid()
        self.populates = populate and can_populate()
        self.releases = new_releases(self.owner_pid)
        if self.releases == NULL:
            raise MemoryError("no heap for the store")

    def __dealloc__(self):
        cdef Released unused
        if self.releases == NULL or getpid() != self.owner_pid:
            return
        self.close_all()
        while self.drain_releases(&unused, 1) == 1:
            pass
        self.bury_all()
        leave(self.releases, <Pin*> NULL)

    cdef void bury_all(self) noexcept nogil:
        cdef DeadMapping dead
        while self.take_dead(&dead, 1) == 1:
            bury(&dead)

    cdef int failed(self, int err) noexcept nogil:
        self.last_errno = err
        return code_of(err)

    cdef int refused(self) noexcept nogil:
        self.last_errno = 0
        if getpid() != self.owner_pid:
            return STORE_FORKED
        return STORE_CLOSED if self.closed else STORE_OK

    cdef int find(self, uint64_t seg_id, uint64_t offset, uint64_t size, Mapping** out) noexcept nogil:
        """The mapping that holds [offset, offset + size), if calls are served at all."""
        cdef int code = self.refused()
        cdef Mapping* mapping
        if code != STORE_OK:
            return code
        mapping = mapping_at(self.mappings, seg_id)
        if mapping == NULL or mapping.doomed:
            return STORE_UNKNOWN
        if offset > mapping.size or size > mapping.size - offset:
            return STORE_RANGE
        out[0] = mapping
        return STORE_OK

    # -- own segments ---------------------------------------------------------------------------------------

    cdef int create_segment(self, uint64_t seg_id, uint64_t size, int* fd) noexcept nogil:
        cdef int code = self.refused(), made
        fd[0] = -1
        if code != STORE_OK:
            return code
        if size == 0 or size % PAGE_BYTES or size >> 62:
            return STORE_BAD_SIZE
        if mapping_at(self.mappings, seg_id) != NULL:
            return STORE_EXISTS
        made = new_memfd()
        if made < 0:
            return self.failed(errno)
        code = self.fill_segment(seg_id, made, size)
        if code != STORE_OK:
            close(made)
            return code
        fd[0] = made
        return STORE_OK

    cdef int fill_segment(self, uint64_t seg_id, int fd, uint64_t size) noexcept nogil:
        """Size, reserve, map, seal and enter a new file; the caller closes it on failure."""
        cdef Mapping mapping
        cdef int code
        memset(&mapping, 0, sizeof(Mapping))
        if ftruncate(fd, <long> size) != 0:
            return self.failed(errno)
        if not self.populates and fallocate(fd, 0, 0, <long> size) != 0:
            return self.failed(errno)
        mapping.backed = 0 if self.populates else size
        if stat_file(fd, &mapping.size, &mapping.inode) != 0:
            return self.failed(errno)
        mapping.base = map_file(size, PROT_READ | PROT_WRITE, fd)
        if mapping.base == NULL:
            return self.failed(errno)
        mapping.own = True
        mapping.fd = fd
        code = self.failed(errno) if seal(fd) != 0 else STORE_OK
        if code == STORE_OK and insert(self.mappings, seg_id, mapping) != 0:
            code = self.failed(ENOMEM)
        if code != STORE_OK:
            munmap(mapping.base, size)
            return code
        count_mapping(1)
        self.totals.own_segments += 1
        self.totals.own_bytes += size
        self.totals.backed_bytes += mapping.backed
        self.totals.fds += 1
        return STORE_OK

    cdef int close_fd(self, uint64_t seg_id) noexcept nogil:
        cdef Mapping* mapping = NULL
        cdef int code = self.find(seg_id, 0, 0, &mapping)
        if code == STORE_OK and mapping.fd >= 0:
            close(mapping.fd)
            mapping.fd = -1
            self.totals.fds -= 1
        return code

    cdef int begin_write(self, uint64_t seg_id, uint64_t offset, uint64_t size, WriteWindow* out) noexcept nogil:
        cdef Mapping* mapping = NULL
        cdef int code
        memset(out, 0, sizeof(WriteWindow))
        code = self.find(seg_id, offset, size, &mapping)
        if code != STORE_OK:
            return code
        if not mapping.own:
            return STORE_FOREIGN
        mapping.pins += 1
        self.totals.pins += 1
        out.seg_id = seg_id
        out.base = mapping.base
        out.data = mapping.base + offset
        out.size = size
        out.end = offset + size
        out.segment_size = mapping.size
        out.backed = mapping.backed
        return STORE_OK

    cdef int end_write(self, WriteWindow* window) noexcept nogil:
        cdef Mapping* mapping
        if getpid() != self.owner_pid:
            return STORE_FORKED
        mapping = mapping_at(self.mappings, window.seg_id)
        if window.base == NULL or mapping == NULL:
            return STORE_UNKNOWN
        if window.backed > mapping.backed:
            self.totals.backed_bytes += window.backed - mapping.backed
            mapping.backed = window.backed
        window.base = window.data = NULL
        self.unpin_segment(window.seg_id, mapping)
        return STORE_OK

    # -- segments of other processes ------------------------------------------------------------------------

    cdef int map_foreign(self, uint64_t seg_id, int fd, uint64_t size) noexcept nogil:
        cdef int code = self.check_foreign(seg_id, fd, size)
        if code == STORE_OK and mapping_at(self.mappings, seg_id) == NULL:
            code = self.enter_foreign(seg_id, fd, size)
        if fd >= 0:
            close(fd)
        return code

    cdef int check_foreign(self, uint64_t seg_id, int fd, uint64_t size) noexcept nogil:
        """Whether the descriptor is safe to map; a second answer for a mapped segment is fine when it is the same."""
        cdef uint64_t real, inode
        cdef Mapping* mapping
        cdef int code = self.refused()
        if code != STORE_OK:
            return code
        if stat_file(fd, &real, &inode) != 0:
            return self.failed(errno)
        if not is_sealed(fd):
            return STORE_UNSEALED
        if stat_file(fd, &real, &inode) != 0:       # the size counts from the seal on
            return self.failed(errno)
        if size == 0 or size % PAGE_BYTES or real < size:
            return STORE_BAD_SIZE
        mapping = mapping_at(self.mappings, seg_id)
        if mapping != NULL:
            if mapping.inode != inode or mapping.size != size or mapping.own:
                return STORE_EXISTS
            if mapping.doomed:      # told to unmap, still viewed, and now opened again
                mapping.doomed = False
                self.totals.deferred -= 1
            return STORE_OK
        return STORE_OK

    cdef int enter_foreign(self, uint64_t seg_id, int fd, uint64_t size) noexcept nogil:
        cdef Mapping mapping
        memset(&mapping, 0, sizeof(Mapping))
        mapping.fd = -1
        if stat_file(fd, &mapping.size, &mapping.inode) != 0:
            return self.failed(errno)
        mapping.size = size
        mapping.base = map_file(size, PROT_READ, fd)
        if mapping.base == NULL:
            return self.failed(errno)
        if insert(self.mappings, seg_id, mapping) != 0:
            munmap(mapping.base, size)
            return self.failed(ENOMEM)
        count_mapping(1)
        self.totals.foreign_segments += 1
        self.totals.foreign_bytes += size
        return STORE_OK

    # -- lookups and pins -----------------------------------------------------------------------------------

    cdef bint is_mapped(self, uint64_t seg_id) noexcept nogil:
        cdef Mapping* mapping
        return self.find(seg_id, 0, 0, &mapping) == STORE_OK

    cdef int locate(self, uint64_t seg_id, uint64_t offset, uint64_t size, const char** out) noexcept nogil:
        cdef Mapping* mapping = NULL
        cdef int code = self.find(seg_id, offset, size, &mapping)
        out[0] = mapping.base + offset if code == STORE_OK else NULL
        return code

    cdef int pin(self, uint64_t seg_id, uint64_t offset, uint64_t size, void* cookie, uint64_t session,
                 Pin** out) noexcept nogil:
        cdef Mapping* mapping = NULL
        cdef Pin* made
        cdef int code = self.find(seg_id, offset, size, &mapping)
        out[0] = NULL
        if code != STORE_OK:
            return code
        made = <Pin*> malloc(sizeof(Pin))
        if made == NULL:
            return self.failed(ENOMEM)
        made.next = NULL
        made.data = mapping.base + offset
        made.size = size
        made.seg_id = seg_id
        made.cookie = cookie
        made.session = session
        mapping.pins += 1
        self.totals.pins += 1
        new_user(made, self.releases)
        out[0] = made
        return STORE_OK

    cdef int unpin(self, Pin* pin) noexcept nogil:
        if getpid() != self.owner_pid:
            return STORE_FORKED
        self.end_pin(pin)
        leave(self.releases, <Pin*> NULL)       # never the last: the store itself is a user
        return STORE_OK

    cdef void end_pin(self, Pin* pin) noexcept nogil:
        cdef Mapping* mapping = mapping_at(self.mappings, pin.seg_id)
        if mapping != NULL:
            self.unpin_segment(pin.seg_id, mapping)
        free_pin(pin)

    cdef void unpin_segment(self, uint64_t seg_id, Mapping* mapping) noexcept nogil:
        mapping.pins -= 1
        self.totals.pins -= 1
        if mapping.pins == 0 and mapping.doomed:
            self.totals.deferred -= 1
            self.remove(seg_id, mapping)

    cdef bint has_releases(self) noexcept nogil:
        return self.drained != NULL or any_pins(self.releases)

    cdef int drain_releases(self, Released* out, int capacity) noexcept nogil:
        cdef int count = 0
        cdef Pin* pin
        if getpid() != self.owner_pid:
            return STORE_FORKED
        while count < capacity:
            if self.drained == NULL:
                self.drained = take_pins(self.releases, <Pin*> NULL)
                if self.drained == NULL:
                    break
            pin = self.drained
            self.drained = pin.next
            out[count].cookie = pin.cookie
            out[count].session = pin.session
            count += 1
            self.end_pin(pin)
        return count

    # -- the end of mappings --------------------------------------------------------------------------------

    cdef int drop_segment(self, uint64_t seg_id) noexcept nogil:
        cdef Mapping* mapping = NULL
        cdef int code = self.find(seg_id, 0, 0, &mapping)
        if code != STORE_OK:
            return code
        if mapping.pins == 0:
            self.remove(seg_id, mapping)
            return STORE_OK
        self.doom(mapping)
        return STORE_DEFERRED

    cdef void doom(self, Mapping* mapping) noexcept nogil:
        if not mapping.doomed:
            mapping.doomed = True
            self.totals.deferred += 1
        if mapping.fd >= 0:
            close(mapping.fd)
            mapping.fd = -1
            self.totals.fds -= 1

    cdef void remove(self, uint64_t seg_id, Mapping* mapping) noexcept nogil:
        """Take an unpinned mapping out of the tables; its memory waits for `bury`, outside the lock."""
        cdef DeadMapping dead
        dead.base = mapping.base
        dead.size = mapping.size
        dead.fd = mapping.fd
        if mapping.own:
            self.totals.own_segments -= 1
            self.totals.own_bytes -= mapping.size
            self.totals.backed_bytes -= mapping.backed
        else:
            self.totals.foreign_segments -= 1
            self.totals.foreign_bytes -= mapping.size
        self.totals.fds -= mapping.fd >= 0
        self.mappings.erase(seg_id)
        if append(self.dead, dead) != 0:
            bury(&dead)

    cdef int take_dead(self, DeadMapping* out, int capacity) noexcept nogil:
        cdef int count = 0
        if getpid() != self.owner_pid:
            return STORE_FORKED
        while count < capacity and not self.dead.empty():
            out[count] = self.dead.back()
            self.dead.pop_back()
            count += 1
        return count

    cdef bint has_dead(self) noexcept nogil:
        return not self.dead.empty()

    cdef int close_all(self) noexcept nogil:
        cdef unordered_map[uint64_t, Mapping].iterator entry
        cdef uint64_t seg_id
        if getpid() != self.owner_pid:
            return STORE_FORKED
        self.closed = True
        entry = self.mappings.begin()
        while entry != self.mappings.end():
            if deref(entry).second.pins > 0:
                self.doom(&deref(entry).second)
                preincrement(entry)
            else:
                seg_id = deref(entry).first
                preincrement(entry)
                self.remove(seg_id, mapping_at(self.mappings, seg_id))
        self.bury_all()
        return <int> self.mappings.size()

    cdef void stats(self, StoreStats* out) noexcept nogil:
        out[0] = self.totals
        out.dead = self.dead.size()

    # -- the same for Python (tests, tools) -----------------------------------------------------------------

    cdef int checked(self, int code, str what) except -1:
        if code < 0:
            raise StoreError(code, self.last_errno, what)
        return code

    def py_create(self, uint64_t seg_id, uint64_t size):
        cdef int fd
        self.checked(self.create_segment(seg_id, size, &fd), f"creating segment {seg_id:#x} of {size} bytes")
        return fd

    def py_close_fd(self, uint64_t seg_id):
        self.checked(self.close_fd(seg_id), f"closing the descriptor of segment {seg_id:#x}")

    def py_write(self, uint64_t seg_id, uint64_t offset, data, uint64_t position=0, size=None):
        """Write `data` at `position` of the block [offset, offset + size); the size defaults to what is needed."""
        cdef WriteWindow window
        cdef Py_buffer source
        cdef int code
        PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
        try:
            what = f"writing {source.len} bytes to segment {seg_id:#x} at {offset}"
            length = position + source.len if size is None else size
            self.checked(self.begin_write(seg_id, offset, length, &window), what)
            with nogil:
                code = window_write(&window, position, source.buf, source.len)
            self.end_write(&window)
        finally:
            PyBuffer_Release(&source)
        self.last_errno = window.error
        self.checked(code, what)

    def py_back(self, uint64_t seg_id, uint64_t offset, uint64_t size):
        cdef WriteWindow window
        what = f"backing {size} bytes of segment {seg_id:#x}"
        self.checked(self.begin_write(seg_id, offset, size, &window), what)
        code = window_back(&window)
        self.end_write(&window)
        self.last_errno = window.error
        self.checked(code, what)

    def py_map_foreign(self, uint64_t seg_id, int fd, uint64_t size):
        self.checked(self.map_foreign(seg_id, fd, size), f"mapping segment {seg_id:#x} of {size} bytes")

    def py_is_mapped(self, uint64_t seg_id):
        return self.is_mapped(seg_id)

    def py_view(self, uint64_t seg_id, uint64_t offset, uint64_t size, uintptr_t cookie=0, uint64_t session=0):
        cdef Pin* pin
        what = f"viewing {size} bytes of segment {seg_id:#x} at {offset}"
        self.checked(self.pin(seg_id, offset, size, <void*> cookie, session, &pin), what)
        return PinnedBuffer.wrap(pin)

    def py_pin_unpin(self, uint64_t seg_id):
        cdef Pin* pin
        self.checked(self.pin(seg_id, 0, 0, NULL, 0, &pin), f"pinning segment {seg_id:#x}")
        self.unpin(pin)

    def py_drain(self, int capacity=DRAIN_BATCH):
        """Return the ``(cookie, session)`` of at most `capacity` (64) dead views; unmaps what that frees."""
        cdef Released out[DRAIN_BATCH]
        count = self.checked(self.drain_releases(out, min(capacity, DRAIN_BATCH)), "draining releases")
        self.bury_all()
        return [(<uintptr_t> out[i].cookie, out[i].session) for i in range(count)]

    def py_has_releases(self):
        return self.has_releases()

    def py_drop(self, uint64_t seg_id):
        """Drop a segment and unmap what nobody pins; returns whether that is still to come."""
        code = self.checked(self.drop_segment(seg_id), f"dropping segment {seg_id:#x}")
        self.bury_all()
        return code == STORE_DEFERRED

    def py_close(self):
        """Close the store; returns how many pinned mappings were left alone."""
        return self.checked(self.close_all(), "closing the store")

    def py_stats(self):
        cdef StoreStats out
        self.stats(&out)
        return out
