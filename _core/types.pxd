"""Cython's view of `types.hpp` and `sync.hpp`: the data of one process's runtime."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.deque cimport deque
from libcpp.map cimport map as cppmap
from libcpp.string cimport string
from libcpp.unordered_map cimport unordered_map
from libcpp.unordered_set cimport unordered_set
from libcpp.utility cimport pair
from libcpp.vector cimport vector
from posix.types cimport pid_t


cdef extern from "sync.hpp" nogil:
    uint64_t load64(uint64_t *) noexcept
    uint32_t load32(uint32_t *) noexcept
    uint8_t load8(uint8_t *) noexcept
    void store64(uint64_t *, uint64_t) noexcept
    void store32(uint32_t *, uint32_t) noexcept
    void store8(uint8_t *, uint8_t) noexcept
    uint64_t or64(uint64_t *, uint64_t) noexcept
    uint64_t and64(uint64_t *, uint64_t) noexcept
    uint64_t take64(uint64_t *) noexcept
    uint32_t swap32(uint32_t *, uint32_t) noexcept
    int32_t add32(int32_t *, int32_t) noexcept
    cbool cas32(uint32_t *, uint32_t, uint32_t) noexcept
    cbool cas_ptr(void **, void *, void *) noexcept
    void *take_ptr(void **) noexcept
    void full_fence() noexcept
    void cpu_relax() noexcept
    uint64_t mono_ns() noexcept
    int futex_wait(uint32_t *, uint32_t, int64_t) noexcept
    void futex_wake(uint32_t *, int) noexcept
    uint64_t mix64(uint64_t) noexcept
    cbool cas64(uint64_t *, uint64_t, uint64_t) noexcept
    cppclass CoreLock:
        uint32_t word
    cbool lock_try(CoreLock *) noexcept
    void lock_take(CoreLock *) noexcept
    void lock_drop(CoreLock *) noexcept


cdef extern from "slab.hpp" nogil:
    cppclass Slab[T]:
        T *make() noexcept
        void drop(T *) noexcept
        void trim() noexcept
        void collect(vector[T *] *) noexcept


cdef extern from "types.hpp" nogil:
    cppclass Id28:
        uint8_t b[28]
        cbool operator==(const Id28 &) noexcept
    cppclass Id16:
        uint8_t b[16]
        cbool operator==(const Id16 &) noexcept
    cppclass IdHash:
        pass

    cbool same_id(const Id28 *, const Id28 *) noexcept
    uint64_t call_key(const Channel *, uint64_t) noexcept

    cppclass Blob:
        int32_t holders
        uint32_t flags
        uint64_t size
        char data[1]
    Blob *blob_new(uint64_t) noexcept
    Blob *blob_copy(const char *, uint64_t) noexcept
    Blob *blob_value(const char *, uint64_t) noexcept
    Blob *blob_hold(Blob *) noexcept
    void blob_drop(Blob *) noexcept

    enum ObjState "ObjState":
        OBJ_UNKNOWN, OBJ_PENDING, OBJ_INLINE, OBJ_SHM, OBJ_SPILLED
    enum ObjFlag "ObjFlag":
        OBJ_OWNED, OBJ_IN_MAP, OBJ_FETCHING, OBJ_IS_ERROR, OBJ_REGISTERED, OBJ_ACTOR, OBJ_UNREGISTERED_LISTED, OBJ_STREAM
    enum TaskState "TaskState":
        TASK_NEW, TASK_WAITS_DEPS, TASK_QUEUED, TASK_PUSHED, TASK_DONE, TASK_LIMBO, TASK_KEPT
    enum TaskFlag "TaskFlag":
        TASK_CANCELLED, TASK_RETRY_EXC, TASK_CANCEL_FORCE, TASK_TAKEN_BACK, TASK_QUIET, TASK_STREAM, TASK_DYNAMIC, TASK_HELD
    enum ChanState "ChanState":
        CH_CONNECTING, CH_OPEN, CH_BROKEN
    enum ActorState "ActorState":
        ACTOR_UNKNOWN, ACTOR_PENDING, ACTOR_ALIVE, ACTOR_RESTARTING, ACTOR_DEAD

    cppclass Waiter:
        uint8_t kind
        TaskRec *task
        Channel *ch
        AwaitBox *box
        uint64_t token
        Waiter *next

    cppclass AwaitBox:
        int fd
        cbool polls, armed, told, ended, lent
        uint32_t gen
        vector[uint64_t] done
        unordered_map[uint64_t, ObjEntry *] open

    cppclass ObjExt:
        vector[ObjEntry *] contained
        unordered_map[Id28, int32_t, IdHash] borrowers
        Id28 owner
        uint32_t grants
        TaskRec *maker
        uint32_t lineage
        uint8_t unmade
        uint8_t fate
        Blob *call

    cppclass ObjEntry:
        int32_t local, drops
        uint8_t state
        uint8_t flags
        uint8_t lost
        uint8_t live
        uint8_t listed
        int32_t holds
        uint32_t mark
        int32_t views
        ObjEntry *next_drop
        Blob *blob
        uint64_t seg, off, size
        TaskRec *task
        Waiter *waiters
        ObjExt *ext
        Id28 id

    cppclass Items:
        cppmap[uint64_t, ObjEntry *] made
        uint32_t missing
        cbool again

cdef extern from "flows.hpp" nogil:
    cppclass Callee:
        cbool kept
        int32_t holders
        uint32_t n, acked
        uint64_t history
        vector[uint32_t] unanswered
    cppclass CallNote:
        Blob *head
        Callee *callee
        uint32_t n
        cbool touched, keyed, sent
        uint8_t fate
        Id16 named, call
    CallNote *note_new() noexcept
    cppclass Flow:
        pass
    void callee_drop(Callee *) noexcept
    void callee_done(Callee *, uint32_t) noexcept
    void callee_settle(Callee *) noexcept


cdef extern from "types.hpp" nogil:
    cppclass TaskRec:
        uint8_t state, flags
        uint16_t nret
        int32_t retries_left
        uint32_t attempt
        uint32_t fn
        uint32_t depth
        uint16_t ndeps, deps_pending
        uint64_t seq
        uint64_t number
        uint8_t id[24]
        uint8_t call_id[16]
        Blob *args
        ObjEntry **deps
        uint16_t nnested
        uint8_t retry_exc_kind
        ObjEntry *ret0
        ObjEntry **rets
        Stream *stream
        Items *items
        SchedClass *cls
        ActorClient *actor
        uint64_t parent
        Channel *ch
        TaskRec *next
        TaskRec *prev
        uint32_t submitted, pushed
        uint64_t due_ns
        uint32_t memory_kills
        uint8_t retriable
        uint32_t kept
        uint8_t located, handleless
        uint64_t kept_bytes
        CallNote *note

    const uint64_t NO_END
    cppclass StreamState:
        uint64_t next, received, seen, end, told, window
        uint32_t attempt
        uint8_t dropped, stopped
    cppclass Stream:
        StreamState s
        TaskRec *task
        ObjEntry *gate
        ObjEntry *done
        cbool dynamic, leaving, replay
        deque[ObjEntry *] items
    cppclass Production:
        Channel *ch
        uint64_t seq, window, produced, consumed
        cbool stop, cancelled, gated, sleeps

    cppclass TaskList:
        TaskRec *head
        TaskRec *tail
        uint64_t n

    cppclass RingHdr:
        uint64_t head, tail, started
        uint32_t producer_waits
    cppclass Ring:
        RingHdr *h
        char *data
        uint64_t cap, pos, other

    cppclass Slot:
        uint64_t heartbeat_ms
        uint32_t pid, busy
        uint32_t asleep
        uint64_t summary
        uint64_t words[64]

    cppclass FnDef:
        Blob *defn "def"
        void *py

    cppclass Channel:
        int fd, mem_fd
        uint8_t state, initiator, dead, dirty
        uint32_t bit, peer_bit
        Slot *peer
        Id28 worker
        Ring out, inp "in"
        void *map
        uint64_t map_len
        deque[string] outq
        uint64_t outq_bytes, out_off
        string frag
        uint64_t next_seq, base_seq
        deque[TaskRec *] inflight
        uint64_t ninflight
        vector[uint8_t] fn_sent
        vector[FnDef] fns
        uint64_t last_reply_ns
        uint64_t uid
        uint64_t exec_pending, peer_tick
        Lease *lease
        ActorClient *actor

    cppclass Lease:
        uint64_t id
        SchedClass *cls
        Channel *ch
        uint64_t idle_since_ns, taking_back
        uint8_t broken, reclaimed, spent, paused

    cppclass SchedClass:
        uint64_t key
        string request
        TaskList queue
        vector[Lease *] leases
        uint32_t asked, window
        string group

    cppclass ActorClient:
        Id16 id
        uint8_t state, subscribed, out_of_order, killing
        uint32_t incarnation
        Channel *ch
        TaskList queue, held, limbo
        Blob *cause
        Id28 worker
        ObjEntry *handle
        uint64_t npending
        int64_t max_pending
        uint8_t durable
        Id16 key
        uint64_t epoch

    cppclass DueKill:
        Id28 worker
        uint64_t ch_uid, seq, at_ns

    cppclass HeldReply:
        uint64_t position
        Channel *ch
        cbool gated
        string frame

    cppclass HeldCaller:
        uint64_t position
        Id16 id

    cppclass CancelAsk:
        uint64_t key
        cbool recursive

    cppclass ExecTask:
        Channel *ch
        uint64_t seq
        Blob *frame
        uint64_t order, started

    enum CommandKind "CommandKind":
        CMD_BORROW_REMOVE, CMD_BORROW_ADD, CMD_FREE_BLOCK, CMD_ACTOR_RELEASED, CMD_FORGET, CMD_STREAM_DROPPED, CMD_SPILL_FREE
    cppclass Command:
        uint8_t kind
        uint64_t a, b
        Id28 obj, peer, third
        ObjEntry *entry
    cppclass Gated:
        Channel *ch
        uint64_t ch_uid
        string frame
    ctypedef unsigned long pthread_t

    cppclass Large:
        ObjEntry *e
        uint64_t born_ns, spill
        int32_t wanted
        cbool filed, stuck
        uint64_t recall, asked_ns
        uint32_t open
        vector[Id28] away
    cppclass Place:
        uint64_t first, second
    cppclass Restore:
        int32_t threads
        uint8_t done, code
        Blob *text

    ctypedef Channel *ChannelP "Channel*"
    ctypedef Blob *BlobP "Blob*"
    ctypedef ObjEntry *ObjEntryP "ObjEntry*"
    ctypedef Restore *RestoreP "Restore*"
    ctypedef ActorClient *ActorClientP "ActorClient*"
    ctypedef Lease *LeaseP "Lease*"
    ctypedef ActorClient *ActorClientPtr "ActorClient*"
    ctypedef SchedClass *SchedClassP "SchedClass*"

    cppclass EventRing:
        pass
    cppclass RunningCall:
        uint64_t since
        uint32_t attempt

    cppclass Hold:
        Channel *by
        unordered_set[Id28, IdHash] members
        uint64_t begun
    Hold *hold_new() noexcept
    void hold_drop(Core *) noexcept

    cppclass Core:
        CoreLock lock
        Slab[ObjEntry] entry_slab
        Slab[TaskRec] task_slab
        uint64_t session
        int pid
        cbool is_driver, running, node_alive, stopping
        Id28 worker_id, node_id
        uint32_t job, slot
        char *board
        uint64_t board_len
        uint32_t nslots
        uint64_t *spinners
        Slot *me
        int max_spinners
        int32_t spin_score
        int32_t held_score
        uint32_t spin_skip
        uint64_t spin_ns
        int epoll_fd, listen_fd, node_fd, event_fd, dir_fd
        string node_out, node_in
        size_t node_out_at
        cbool node_blocked
        deque[int] node_fds
        uint64_t next_req
        unordered_map[uint64_t, BlobP] rpc_replies
        vector[Channel *] channels
        vector[uint32_t] free_bits
        unordered_map[Id28, ChannelP, IdHash] peers
        unordered_map[Id28, BlobP, IdHash] dead
        deque[Id28] dead_order
        bint dead_forgotten
        vector[Channel *] dirty, graveyard
        uint64_t next_uid
        int connect_errno
        cbool leading
        uint32_t gen, followers
        cbool changed
        uint8_t bg_mode
        uint32_t bg_word
        uint64_t activity, trimmed_ms
        cbool leader_blocked
        pthread_t bg
        cbool bg_started
        unordered_map[Id28, ObjEntryP, IdHash] objects
        void *drop_list
        vector[ObjEntry *] unregistered
        uint64_t pending_adds
        unordered_map[Id28, uint32_t, IdHash] adds_open
        deque[Gated] gated
        vector[Command] commands
        uint64_t put_index
        cppmap[Place, Large] larges
        unordered_map[uint64_t, ObjEntryP] spills
        unordered_map[uint64_t, RestoreP] restores
        uint64_t next_spill, next_recall, pressure_ns, n_spilled, n_restored
        vector[AwaitBox *] boxes
        uint32_t awaited, lent
        unordered_map[uint64_t, SchedClassP] classes
        unordered_map[uint64_t, LeaseP] leases
        unordered_map[Id16, ActorClientP, IdHash] actors
        vector[Blob *] fns
        TaskList waiting, kept
        uint64_t lineage_bytes, max_lineage_bytes, n_recovered
        cbool lineage_off
        uint64_t task_number, root, child_index
        Id16 root_call
        uint8_t root_kind
        uint32_t root_job
        Id16 own_key
        cbool guards
        vector[Id16] fn_keys
        vector[Id16] done_callers
        vector[CallNote *] spent_notes
        deque[HeldReply] held
        vector[string] spare_frames
        deque[HeldCaller] held_callers
        uint64_t durable_position, held_ceiling, held_bytes
        vector[TaskRec *] ready
        vector[DueKill] due_kills
        uint64_t delayed_ns
        int32_t memory_retries
        uint64_t memory_delay_ns
        cbool actors_waiting
        uint64_t timer_ns
        deque[ExecTask] exec_queue "exec"
        Hold *hold
        vector[Production *] productions
        cbool production_news
        uint64_t exec_order
        cbool exit_requested, spent, is_actor
        uint64_t running_key, running_unique, cancel_key
        Channel *running_ch
        cbool beside
        vector[CancelAsk] cancels
        pthread_t main_thread
        int64_t blocked_depth
        cbool blocked_sent
        uint64_t sem_exec
        EventRing *events
        cbool tsc
        uint64_t tick, exec_tick
        unordered_map[uint64_t, RunningCall] running_calls
        cbool record_sites
        uint32_t memory_short
        unordered_map[ObjEntryP, uint32_t] sites
        vector[string] site_names
        deque[pair[uint32_t, BlobP]] py_inbox
        uint32_t py_gen
        cbool loop_armed
        int loop_fd
        uint64_t n_entries, n_tasks, n_pushed, n_replies, n_doorbells, n_sleeps, n_spin_hits, n_spin_misses

    Large *large_find(Core *, ObjEntry *) noexcept
    Large *large_add(Core *, ObjEntry *) noexcept
    void large_told(Core *, ObjEntry *, const Id28 &) noexcept
    uint64_t large_drop(Core *, ObjEntry *) noexcept
    void renew_core(Core *) noexcept
    bint has_room(Core *) noexcept
