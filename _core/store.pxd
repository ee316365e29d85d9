"""Contract of the shared-memory store: this process's memfd segments, their mappings, pins and copies.

Methods marked `noexcept nogil` return 0 or a negative StoreCode (the errno of the failed call is in `last_errno`)
and are serialised by the caller's lock; free of any lock are only the functions outside the class and the dealloc of
a PinnedBuffer. In a forked child every call is refused with STORE_FORKED and dealloc does nothing.

    write:   begin_write (lock) -> window_write... (no lock, no GIL) -> end_write (lock)
    unmap:   drop_segment, drain_releases (lock) -> take_dead (lock) -> bury (no lock: freeing 100 MB takes ~15 ms)
    view:    pin (lock, no GIL) -> PinnedBuffer.wrap (GIL, no lock) ... dealloc -> drain_releases (lock)
"""
from libc.stdint cimport uint32_t, uint64_t
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector


cdef enum StoreCode:
    STORE_OK = 0
    STORE_DEFERRED = 1          # drop_segment: still pinned, goes with its last pin
    STORE_FORKED = -1           # called in a forked child of the process that owns the store
    STORE_CLOSED = -2
    STORE_UNKNOWN = -3          # no such segment is mapped here
    STORE_EXISTS = -4           # another segment has that id
    STORE_RANGE = -5            # not inside the segment
    STORE_FOREIGN = -6          # write to a segment of another process
    STORE_BAD_SIZE = -7         # 0, not a multiple of the page, or the file is smaller than said
    STORE_UNSEALED = -8         # a peer's descriptor could still be shrunk under our mapping: refused
    STORE_NO_FDS = -9           # EMFILE, ENFILE
    STORE_NO_MEMORY = -10       # ENOMEM, ENOSPC, heap or address space
    STORE_LIMIT = -11           # EFBIG: RLIMIT_FSIZE
    STORE_OS_ERROR = -12        # anything else, see last_errno


# A mapping that nobody uses any more, out of the store's tables; `bury` returns it to the kernel.
cdef struct DeadMapping:
    char* base
    uint64_t size
    int fd


# What a PinnedBuffer leaves behind when it dies; `cookie` is the runtime's and never looked at here.
cdef struct Released:
    void* cookie
    uint64_t session


cdef struct Pin:
    Pin* next
    void* releases              # the list it goes to, see store_sys.hpp
    char* data
    uint64_t size
    uint64_t seg_id
    void* cookie
    uint64_t session


cdef struct WriteWindow:
    uint64_t seg_id
    char* data                  # first byte of the block
    uint64_t size
    char* base                  # first byte of the segment
    uint64_t segment_size
    uint64_t backed             # bytes of the segment, from its start, that are known to have pages
    uint64_t end                # offset of the block's end in the segment
    int error                   # errno of the last failed window_write


cdef struct Mapping:
    char* base
    uint64_t size
    uint64_t backed
    uint64_t inode
    uint32_t pins
    int fd                      # -1 once closed
    bint own
    bint doomed                 # dropped while pinned


cdef struct StoreStats:
    uint64_t own_segments, foreign_segments, own_bytes, foreign_bytes, backed_bytes
    uint64_t fds, pins, deferred, dead


cdef class Store:
    cdef readonly int last_errno
    cdef int owner_pid
    cdef bint closed
    cdef readonly bint populates        # pages are made on write; otherwise all of them at creation
    cdef void* releases
    cdef Pin* drained                   # taken off the list, not yet handed out
    cdef unordered_map[uint64_t, Mapping] mappings
    cdef vector[DeadMapping] dead
    cdef StoreStats totals

    # -- own segments
    # Makes, maps and seals; `*fd` stays the store's until close_fd (call it once SEG_REGISTER is on its way).
    cdef int create_segment(self, uint64_t seg_id, uint64_t size, int* fd) noexcept nogil
    cdef int close_fd(self, uint64_t seg_id) noexcept nogil
    cdef int begin_write(self, uint64_t seg_id, uint64_t offset, uint64_t size, WriteWindow* out) noexcept nogil
    cdef int end_write(self, WriteWindow* window) noexcept nogil
    # -- segments of other processes; takes `fd` over, whatever it returns
    cdef int map_foreign(self, uint64_t seg_id, int fd, uint64_t size) noexcept nogil
    # -- both; drop: own = destroyed, foreign = unmapped
    cdef bint is_mapped(self, uint64_t seg_id) noexcept nogil
    cdef int locate(self, uint64_t seg_id, uint64_t offset, uint64_t size, const char** out) noexcept nogil
    cdef int pin(self, uint64_t seg_id, uint64_t offset, uint64_t size, void* cookie, uint64_t session,
                 Pin** out) noexcept nogil
    cdef int unpin(self, Pin* pin) noexcept nogil               # a pin that was never wrapped
    cdef int drain_releases(self, Released* out, int capacity) noexcept nogil   # how many; again while == capacity
    cdef bint has_releases(self) noexcept nogil                 # one relaxed load
    cdef int drop_segment(self, uint64_t seg_id) noexcept nogil
    # How many; again while == capacity. Must be called after drop_segment and drain_releases, or memory stays taken.
    cdef int take_dead(self, DeadMapping* out, int capacity) noexcept nogil
    cdef bint has_dead(self) noexcept nogil
    # Unmaps everything unpinned, at once, and refuses all calls from now on but end_write, unpin, drain_releases,
    # take_dead and stats. Returns how many pinned mappings it left alone: they go with their last pin (drained and
    # buried), or with the process (a view must not become a SIGSEGV).
    cdef int close_all(self) noexcept nogil
    cdef void stats(self, StoreStats* out) noexcept nogil
    # steps of the above
    cdef int failed(self, int err) noexcept nogil
    cdef int refused(self) noexcept nogil
    cdef int find(self, uint64_t seg_id, uint64_t offset, uint64_t size, Mapping** out) noexcept nogil
    cdef int fill_segment(self, uint64_t seg_id, int fd, uint64_t size) noexcept nogil
    cdef int check_foreign(self, uint64_t seg_id, int fd, uint64_t size) noexcept nogil
    cdef int enter_foreign(self, uint64_t seg_id, int fd, uint64_t size) noexcept nogil
    cdef void end_pin(self, Pin* pin) noexcept nogil
    cdef void unpin_segment(self, uint64_t seg_id, Mapping* mapping) noexcept nogil
    cdef void doom(self, Mapping* mapping) noexcept nogil
    cdef void remove(self, uint64_t seg_id, Mapping* mapping) noexcept nogil
    cdef void bury_all(self) noexcept nogil
    cdef int checked(self, int code, str what) except -1


# Copies into the block, `position` bytes from its start, backing pages just ahead of the copy. No lock, no GIL.
cdef int window_write(WriteWindow* window, uint64_t position, const void* source, uint64_t size) noexcept nogil
# Backs the whole window (for writers that fill `window.data` themselves).
cdef int window_back(WriteWindow* window) noexcept nogil
cdef void bury(DeadMapping* dead) noexcept nogil
cdef void copy_in(char* target, const void* source, uint64_t size) noexcept nogil


cdef class PinnedBuffer:
    cdef Pin* pin

    @staticmethod
    cdef PinnedBuffer wrap(Pin* pin)        # takes the pin over; on MemoryError it is released
