// The data of one process's runtime: what an object, a task, a lease, an actor and a channel are made of.
//
// Only layout lives here. Decisions about these structs are in refs.pyx and rules.pyx (pure), I/O in channel.pyx and
// nodelink.pyx, what is done with them in the module that says that it owns them. Every struct belongs to the core lock,
// except fields marked (atomic).
#pragma once
#include "slab.hpp"
#include "sync.hpp"
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <new>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

struct Id28 {
    uint8_t b[28];
    bool operator==(const Id28 &o) const { return memcmp(b, o.b, 28) == 0; }
};
struct Id16 {
    uint8_t b[16];
    bool operator==(const Id16 &o) const { return memcmp(b, o.b, 16) == 0; }
};
struct IdHash {
    size_t operator()(const Id28 &i) const { uint64_t a, c; memcpy(&a, i.b, 8); memcpy(&c, i.b + 20, 8); return mix64(a ^ (c * 31)); }
    size_t operator()(const Id16 &i) const { uint64_t a, c; memcpy(&a, i.b, 8); memcpy(&c, i.b + 8, 8); return mix64(a ^ (c * 31)); }
};

static inline bool same_id(const Id28 *a, const Id28 *b) { return memcmp(a->b, b->b, 28) == 0; }

struct Blob {  // immutable bytes with a count of holders
    int32_t holders;  // (atomic)
    uint32_t flags;
    uint64_t size;
    char data[1];
};
constexpr uint64_t SMALL_BLOB = 128 << 10;
static inline Blob *blob_new(uint64_t size) {
    Blob *b = (Blob *)malloc(sizeof(Blob) + size);
    // Small ones are made where nobody can be told: from what was set aside, as `new` does (spare.hpp).
    while (!b && size <= SMALL_BLOB && memory_given_up()) b = (Blob *)malloc(sizeof(Blob) + size);
    if (b) { b->holders = 1; b->flags = 0; b->size = size; }
    return b;
}
static inline Blob *blob_copy(const char *p, uint64_t size) {
    Blob *b = blob_new(size);
    if (b) memcpy(b->data, p, size);
    return b;
}
// None, True and False (their serial tags are 0, 1, 2) are the results of most calls: three blobs serve them all.
static inline Blob *blob_value(const char *p, uint64_t size) {
    static Blob words[3] = {{1, 0, 1, {0}}, {1, 0, 1, {1}}, {1, 0, 1, {2}}};
    if (size == 1 && (uint8_t)p[0] < 3) { add32(&words[(uint8_t)p[0]].holders, 1); return &words[(uint8_t)p[0]]; }
    return blob_copy(p, size);
}
static inline Blob *blob_hold(Blob *b) { add32(&b->holders, 1); return b; }
static inline void blob_drop(Blob *b) { if (b && add32(&b->holders, -1) == 0) free(b); }

struct TaskRec;
struct Channel;
struct ActorClient;
struct SchedClass;
struct ObjEntry;
struct Lease;
struct AwaitBox;
struct Stream;
struct CallNote;

enum ObjState : uint8_t { OBJ_UNKNOWN = 0, OBJ_PENDING = 1, OBJ_INLINE = 2, OBJ_SHM = 3, OBJ_SPILLED = 4 };  // >= OBJ_INLINE: the value is there
enum ObjFlag : uint8_t { OBJ_OWNED = 1, OBJ_IN_MAP = 2, OBJ_FETCHING = 4, OBJ_IS_ERROR = 8, OBJ_REGISTERED = 16, OBJ_ACTOR = 32, OBJ_UNREGISTERED_LISTED = 64, OBJ_STREAM = 128 };

struct Waiter {  // somebody other than a waiting thread wants to know when an object is ready
    uint8_t kind;  // 0 a task that depends on it, 1 a borrower's fetch, 2 an `await` or a future
    TaskRec *task;
    Channel *ch;
    AwaitBox *box;
    uint64_t token;
    Waiter *next;
};

struct AwaitBox {  // what one event loop, or the thread of the futures, waits for; a ticket is one `await`
    int fd = -1;              // eventfd that the loop watches; the futures' thread has none
    bool polls = false;       // the loop does the I/O while it waits: peers shall ring
    bool armed = false;       // they have been told so since the loop looked last
    bool told = false;        // a wake-up is under way: one for a batch
    bool ended = false;       // the session is over, or ftrayd is: nothing will come any more
    bool lent = false;        // the waiting task lends its CPUs
    uint32_t gen = 0;         // (futex) for the futures' thread, when there is no ticket
    std::vector<uint64_t> done;
    std::unordered_map<uint64_t, ObjEntry *> open;  // ticket -> object; an open ticket counts in `local`
};

struct ObjExt {  // the rare half of an object's record
    std::vector<ObjEntry *> contained;                  // refs pickled inside the value: held as long as the value
    std::unordered_map<Id28, int32_t, IdHash> borrowers;  // registrations per borrowing process (may be < 0 in flight)
    Id28 owner;                                         // borrowed objects: who owns it
    uint32_t grants = 0;                                // borrowed objects: registrations made in our name
    TaskRec *maker = nullptr;                           // made it, and can make it again (lineage)
    uint32_t lineage = 0;                               // kept tasks that need the object when they run again
    uint8_t unmade = 0;                                 // why nothing can make it again (lineage.pxd), without a maker
    uint8_t fate = 0;                                   // CallFate (flows.pxd) of the call to an exactly-once actor that ended so
    Blob *call = nullptr;                               // and its CallHead: kept with errors, for who asks what became of it
    ~ObjExt() { blob_drop(call); }
};

struct ObjEntry {
    int32_t local;      // ObjectRefs and live buffer views in this process, dropped ones included until they are drained
    int32_t drops;      // (atomic) of these, how many are gone; > 0 means that the entry is on the drop list
    uint8_t state;      // (atomic) ObjState
    uint8_t flags;
    uint8_t lost;       // why there will never be a value: 0, 1 owner died, 2 value lost
    uint8_t live;       // in use, for who looks through the slab
    uint8_t listed;     // stands on a list of objects that may go
    int32_t holds;      // tasks in flight that need it, containing values, borrowers
    uint32_t mark;      // last wait() that saw it
    int32_t views;      // live buffer views in this process: pins of its block
    ObjEntry *next_drop;
    Blob *blob;         // OBJ_INLINE
    uint64_t seg, off, size;  // OBJ_SHM; OBJ_SPILLED: seg is the number of the spill
    TaskRec *task;      // makes it (pending); `ext.maker` can make it again
    Waiter *waiters;
    ObjExt *ext;
    Id28 id;
};

enum TaskState : uint8_t { TASK_NEW = 0, TASK_WAITS_DEPS = 1, TASK_QUEUED = 2, TASK_PUSHED = 3, TASK_DONE = 4, TASK_LIMBO = 5, TASK_KEPT = 6 };
enum TaskFlag : uint8_t { TASK_CANCELLED = 1, TASK_RETRY_EXC = 2, TASK_CANCEL_FORCE = 4, TASK_TAKEN_BACK = 8, TASK_QUIET = 16, TASK_STREAM = 32, TASK_DYNAMIC = 64, TASK_HELD = 128 };

struct Items {  // of a generator task: what lineage knows of the items that are in shared memory
    std::map<uint64_t, ObjEntry *> made;    // by index: those that the task can make again
    uint32_t missing = 0;                   // of these, how many it is making now
    bool again = false;                     // the attempt that runs now is past one of them: another follows it
};

struct TaskRec {
    uint8_t state, flags;
    uint16_t nret;
    int32_t retries_left;   // -1: without bound
    uint32_t attempt;
    uint32_t fn;            // index in the process's function table
    uint32_t depth;
    uint16_t ndeps, deps_pending;
    uint64_t seq;           // on its channel, while pushed
    uint64_t number;        // submission order within its queue
    uint8_t id[24];
    uint8_t call_id[16];
    Blob *args;
    ObjEntry **deps;        // top-level refs, then the refs nested in the arguments
    uint16_t nnested;
    uint8_t retry_exc_kind; // 0 none, 1 any, 2 list (decided by the executor)
    uint8_t retriable;      // it may be run again, also when `retries_left` is 0
    uint32_t memory_kills;  // how often the memory monitor ended its worker
    ObjEntry *ret0;         // nret == 1
    ObjEntry **rets;        // nret > 1
    Stream *stream;         // of what it yields, with TASK_STREAM (nret is 1 then: its completion)
    Items *items;           // of a generator, once one is in shared memory
    SchedClass *cls;        // plain tasks
    ActorClient *actor;     // actor calls
    uint64_t parent;        // unique part of the submitting task's id
    Channel *ch;
    TaskRec *next, *prev;   // queue links
    uint32_t submitted, pushed;         // for people: ticks >> EVENT_SHIFT (events.hpp)
    uint64_t due_ns;        // > 0: waits until then, because it was ended for its memory before
    uint32_t kept;          // returns for which it is kept as lineage
    uint8_t located;        // while pushed: its worker knows where an argument of ours is in shared memory
    uint8_t handleless;     // an actor call that was kept: it does not hold the actor's handle any more
    uint64_t kept_bytes;    // what keeping it costs, while it is kept
    CallNote *note;         // flows.hpp; most calls have none
};

static const uint64_t NO_END = ~0ull;
struct StreamState {  // what streams.pyx decides about
    uint64_t next = 0;       // the item that the consumer gets next
    uint64_t received = 0;   // items 0..received-1 have come
    uint64_t seen = 0;       // so many came from the attempt that runs now
    uint64_t end = NO_END;   // how many there are, once that is known
    uint64_t told = 0;       // the consumption that the producer knows of
    uint64_t window = 0;     // back-pressure: unconsumed items after which the producer pauses; 0 never
    uint32_t attempt = 0;
    uint8_t dropped = 0;     // the consumer is gone: items are freed as they come
    uint8_t stopped = 0;     // and the producer shall stop
};
struct Stream {       // what a generator task yields, at its owner. Lives as long as its task or its consumer
    StreamState s;
    TaskRec *task = nullptr;   // NULL once it has ended
    ObjEntry *gate = nullptr;  // "ready" when the consumer need not wait; it counts the generator objects; NULL: no consumer
    ObjEntry *done = nullptr;  // the completion
    bool dynamic = false;      // the items are for the value of the completion
    bool replay = false;       // the task had ended, and runs again for values that were lost: no consumer
    bool leaving = false;      // the gate is gone, and CMD_STREAM_DROPPED is on its way
    std::deque<ObjEntry *> items;  // received and not handed out; each is held
};

struct TaskList {
    TaskRec *head = nullptr, *tail = nullptr;
    uint64_t n = 0;
};

struct RingHdr {
    alignas(64) uint64_t head;     // written by the producer
    alignas(64) uint64_t tail;     // written by the consumer
    alignas(64) uint64_t started;  // producer of replies: the last call that it has begun
    uint32_t producer_waits;
};
struct Ring {
    RingHdr *h = nullptr;
    char *data = nullptr;   // mapped twice in a row: a span never wraps
    uint64_t cap = 0;
    uint64_t pos = 0;       // our own index (head for the producer, tail for the consumer)
    uint64_t other = 0;     // last seen index of the other side
};

struct Slot {  // one process's place on the board
    uint64_t heartbeat_ms;
    uint32_t pid, busy;   // busy: the main thread runs a call
    char pad0[48];
    uint32_t asleep, pad1;
    uint64_t summary;
    char pad2[48];
    uint64_t words[64];
};

struct FnDef {
    Blob *def = nullptr;    // pickled function, or a method name
    void *py = nullptr;     // the loaded object, once needed (owned reference)
};

enum ChanState : uint8_t { CH_CONNECTING = 0, CH_OPEN = 1, CH_BROKEN = 2 };
struct Channel {
    int fd = -1;
    int mem_fd = -1;
    uint8_t state = CH_CONNECTING;
    uint8_t initiator = 0;
    uint8_t dead = 0;        // its process is known to be dead
    uint8_t dirty = 0;       // on the flush list
    uint8_t times_sent = 0;  // for people: a reply with times has gone out
    uint32_t bit = 0;        // its bit in our inbox
    uint32_t peer_bit = 0;
    Slot *peer = nullptr;
    Id28 worker{};
    Ring out, in;
    void *map = nullptr;
    uint64_t map_len = 0;
    std::deque<std::string> outq;
    uint64_t outq_bytes = 0;
    uint64_t out_off = 0;    // of the first queued frame, when it goes out in pieces
    std::string frag;        // a frame that arrives in pieces
    uint64_t next_seq = 1, base_seq = 1;
    std::deque<TaskRec *> inflight;
    uint64_t ninflight = 0;
    std::vector<uint8_t> fn_sent;
    std::vector<FnDef> fns;
    uint64_t last_reply_ns = 0;
    uint64_t uid = 0;
    uint64_t peer_tick = 0;     // for people: when a call of ours ended there, as the last reply with times said
    uint64_t exec_pending = 0;  // calls of this channel that we hold and have not answered
    Lease *lease = nullptr;       // the worker runs plain tasks for us
    ActorClient *actor = nullptr; // the worker runs this actor
};

struct Lease {
    uint64_t id = 0;
    SchedClass *cls = nullptr;
    Channel *ch = nullptr;
    uint64_t idle_since_ns = 0;
    uint64_t taking_back = 0;
    uint8_t broken = 0;
    uint8_t reclaimed = 0;   // ftrayd wants it back: nothing new is pushed, it goes when it is idle
    uint8_t spent = 0;       // its worker has run as many calls as a function's max_calls allows, and will leave
    uint8_t paused = 0;      // its worker waits in get(): nothing is pushed until the running call replies
};

struct SchedClass {
    uint64_t key = 0;
    std::string request;   // LEASE_REQUEST, whose count is written in each time
    TaskList queue;
    std::vector<Lease *> leases;
    uint32_t asked = 0;
    uint32_t window = 256; // calls in flight per lease
    std::string group;     // tasks of a placement group: its id, and whether it captures their children; empty otherwise
};

enum ActorState : uint8_t { ACTOR_UNKNOWN = 0, ACTOR_PENDING = 1, ACTOR_ALIVE = 2, ACTOR_RESTARTING = 3, ACTOR_DEAD = 4 };
struct ActorClient {
    Id16 id;
    uint8_t state = ACTOR_UNKNOWN;
    uint8_t subscribed = 0;
    uint8_t out_of_order = 0;  // a call whose arguments are not there lets later ones pass
    uint8_t killing = 0;     // kill() was called: no call leaves until ftrayd says what came of it
    uint8_t durable = 0;     // an exactly-once actor: calls carry a head
    Id16 key{};              // the same for whatever actor is made in its place (flows.pyx)
    uint64_t epoch = 0;      // the newest that a reply came from
    uint32_t incarnation = 0;
    Channel *ch = nullptr;
    TaskList queue;        // not pushed yet, in order
    TaskList held;         // wait for their arguments, and hold nobody back (out_of_order)
    TaskList limbo;        // was in flight at a death whose meaning is not known yet, in order
    Blob *cause = nullptr; // pickled dict
    Id28 worker{};
    ObjEntry *handle = nullptr;  // counts the handles
    uint64_t npending = 0;
    int64_t max_pending = -1;
};

struct Production {        // a generator that runs here, from the moment that its call is taken off the queue to its answer
    Channel *ch = nullptr;
    uint64_t seq = 0;
    uint64_t window = 0;
    uint64_t produced = 0;
    uint64_t consumed = 0;   // that the owner told of
    bool stop = false;       // nobody wants more
    bool cancelled = false;
    bool gated = false;      // an item had to wait for an acknowledgement: what follows must not overtake it
    bool sleeps = false;     // a coroutine waits for room
};

struct ExecTask {          // a call that this process shall run
    Channel *ch;
    uint64_t seq;
    Blob *frame;
    uint64_t order;
    uint64_t started;      // for people (events.hpp)
};

// Names one call among all that come in here, whoever its caller is.
static inline uint64_t call_key(const Channel *ch, uint64_t seq) { return (ch->uid << 40) | seq; }

struct HeldReply {         // an answer of an exactly-once actor that waits until what it tells of is durable
    uint64_t position;     // in the actor's journal
    Channel *ch;
    bool gated;            // it also waits for acknowledgements of refs (borrows.pyx)
    std::string frame;
};

struct HeldCaller {        // a method of an exactly-once actor whose calls are released when its record is durable
    uint64_t position;
    Id16 id;
};

struct CancelAsk {         // a caller wants a call cancelled that was begun
    uint64_t key;
    bool recursive;
};

enum CommandKind : uint8_t {
    CMD_BORROW_REMOVE = 1,   // tell owner `peer` that our borrow of `obj` (with `a` registrations) ended
    CMD_BORROW_ADD = 2,      // tell owner `peer` that process `third` borrows `obj`
    CMD_FREE_BLOCK = 3,      // give block (a: segment, b: offset) back to its producer
    CMD_ACTOR_RELEASED = 4,  // the last handle of actor `actor` went
    CMD_FORGET = 5,          // the record itself may go
    CMD_STREAM_DROPPED = 6,  // the consumer of stream `a` (an address) is gone
    CMD_SPILL_FREE = 7,      // spill `a` is not needed any more
};
struct Command {
    uint8_t kind;
    uint64_t a, b;
    Id28 obj, peer, third;
    ObjEntry *entry;
};

struct DueKill {             // a forced cancel whose worker has not answered it
    Id28 worker;
    uint64_t ch_uid, seq;
    uint64_t at_ns;
};

struct Gated {               // a release that waits until our borrows are acknowledged
    Channel *ch;
    uint64_t ch_uid;
    std::string frame;
};

struct Hold {                // a cut over a group of actors is being taken (holds.pyx)
    Channel *by = nullptr;   // who takes it
    std::unordered_set<Id28, IdHash> members;  // processes whose calls may begin meanwhile
    uint64_t begun = 0;
};

struct EventRing;
struct RunningCall { uint64_t since; uint32_t attempt; };

struct Large {               // an owned object in shared memory, see spills.pyx
    ObjEntry *e;
    uint64_t born_ns;        // when it came into this place
    uint64_t spill;          // its number with ftrayd, 0 none
    int32_t wanted;          // threads that had it restored and have not looked yet
    bool filed;              // ftrayd has it on disk as well
    bool stuck;              // somebody unknown was told where it is: it stays there
    uint64_t recall = 0;     // number of its recall (recalls.pyx), 0: none was asked of its borrowers
    uint64_t asked_ns = 0;   // when they were last asked
    uint32_t open = 0;       // how many of these have not answered
    std::vector<Id28> away;  // borrowers that do not know the place any more
};
typedef std::pair<uint64_t, uint64_t> Place;  // segment, offset

struct Restore {             // one spilled object on its way back
    int32_t threads = 0;     // that wait for it
    uint8_t done = 0, code = 0;
    Blob *text = nullptr;
};

struct Core {
    CoreLock lock;
    Slab<ObjEntry> entry_slab;
    Slab<TaskRec> task_slab;
    uint64_t session = 0;
    int pid = 0;
    bool is_driver = false, running = false, node_alive = false, stopping = false;
    Id28 worker_id{}, node_id{};
    uint32_t job = 0, slot = 0;
    // board
    char *board = nullptr;
    uint64_t board_len = 0;
    uint32_t nslots = 0;
    uint64_t *spinners = nullptr;    // per place: when its spinner's turn ends (CLOCK_MONOTONIC ns); a dead one's runs out by itself
    Slot *me = nullptr;
    int max_spinners = 0;
    int32_t spin_score = 8;
    int32_t held_score = 8;          // the same, while answers wait for the journal
    uint32_t spin_skip = 0;
    uint64_t spin_ns = 0;
    // descriptors
    int epoll_fd = -1, listen_fd = -1, node_fd = -1, event_fd = -1, dir_fd = -1;
    std::string node_out, node_in;
    size_t node_out_at = 0;          // of `node_out`, so much has been sent
    bool node_blocked = false;       // EPOLLOUT is armed
    std::deque<int> node_fds;
    uint64_t next_req = 1;
    std::unordered_map<uint64_t, Blob *> rpc_replies;   // null while open
    std::vector<Channel *> channels;  // index = bit in our inbox
    std::vector<uint32_t> free_bits;
    std::unordered_map<Id28, Channel *, IdHash> peers;
    std::unordered_map<Id28, Blob *, IdHash> dead;      // death reports (WORKER_DIED payloads), not all there ever were
    std::deque<Id28> dead_order;     // whose they are, the oldest first
    bool dead_forgotten = false;     // some were dropped
    std::vector<Channel *> dirty, graveyard;
    uint64_t next_uid = 1;
    int connect_errno = 0;           // why the last connection could not be made
    // leading
    bool leading = false;
    uint32_t gen = 0;                // (futex) something that followers may wait for happened
    uint32_t followers = 0;
    bool changed = false;
    uint8_t bg_mode = 0;             // 0 in epoll, 1 parked with ticks, 2 asleep until the leader leaves
    uint32_t bg_word = 0;            // (futex)
    uint64_t activity = 0;
    uint64_t trimmed_ms = 0;
    bool leader_blocked = false;
    pthread_t bg{};
    bool bg_started = false;
    // objects
    std::unordered_map<Id28, ObjEntry *, IdHash> objects;
    void *drop_list = nullptr;       // (atomic)
    std::vector<ObjEntry *> unregistered;
    uint64_t pending_adds = 0;
    std::unordered_map<Id28, uint32_t, IdHash> adds_open;   // per owner, BORROW_ADDs without an answer
    std::deque<Gated> gated;
    std::vector<Command> commands;
    uint64_t put_index = 0;
    std::map<Place, Large> larges;                          // what we own in shared memory
    std::unordered_map<uint64_t, ObjEntry *> spills;        // by number: offered to ftrayd, or on disk
    std::unordered_map<uint64_t, Restore *> restores;       // open ones, by number
    uint64_t next_spill = 1, next_recall = 1;
    uint64_t pressure_ns = 0;        // memory is short until then, 0 never was
    uint64_t n_spilled = 0, n_restored = 0;
    std::vector<AwaitBox *> boxes;
    uint32_t awaited = 0;            // event loops that do the I/O and have an open ticket
    uint32_t lent = 0;               // boxes whose waiting has lent the running task's CPUs
    // tasks
    std::unordered_map<uint64_t, SchedClass *> classes;
    std::unordered_map<uint64_t, Lease *> leases;
    std::unordered_map<Id16, ActorClient *, IdHash> actors;
    std::vector<Blob *> fns;
    uint64_t task_number = 0;
    TaskList waiting;                // plain tasks whose dependencies are not there yet
    TaskList kept;                   // finished tasks that can make their values again, oldest first
    uint64_t lineage_bytes = 0, max_lineage_bytes = 1000000000, n_recovered = 0;
    bool lineage_off = false;
    uint64_t root = 0;               // seeds TaskIDs of this process's own flow
    Id16 root_call{};                // of the driver whose work this is: what all CallIDs come from
    uint8_t root_kind = 255;         // ROOT_*; of `root_job` only
    uint32_t root_job = 0;
    Id16 own_key{};                  // of the exactly-once actor that lives here
    bool guards = false;             // what leaves it, and what comes in, is asked for first (guards.pyx)
    std::vector<Id16> fn_keys;       // of the functions in `fns`, for CallIDs
    std::vector<CallNote *> spent_notes;  // of records that have gone
    std::vector<Id16> done_callers;  // tasks that have called exactly-once actors and can never run again: to be told
    uint64_t child_index = 0;
    std::vector<TaskRec *> ready;    // dependencies came while something else was being done
    std::vector<DueKill> due_kills;
    uint64_t delayed_ns = 0;         // when the first of the tasks that wait for a time is due, 0 none
    int32_t memory_retries = -1;     // after the memory monitor ended a task; -1 without bound
    uint64_t memory_delay_ns = 1000000000;  // before the first such retry, doubled each time
    bool actors_waiting = false;     // some could not be reached: the timer tries again
    uint64_t timer_ns = 0;           // next time that timers want to be looked at, 0 none
    // execution
    std::deque<ExecTask> exec;
    std::vector<Production *> productions;
    bool production_news = false;    // for coroutines that wait for room
    uint64_t exec_order = 0;
    bool exit_requested = false;
    bool spent = false;              // a function's max_calls is reached: no further call begins here
    bool is_actor = false;           // ACTOR_START has come: methods may run
    uint64_t running_unique = 0;     // of the id of the call that the main thread is in
    uint64_t running_key = 0;        // calls that run one at a time: the one that the main thread is in
    Channel *running_ch = nullptr;   // whose it is, until it is answered
    uint64_t cancel_key = 0;         // the last running one that a caller wanted cancelled
    bool beside = false;             // calls run beside each other: their cancellations go to `cancels`
    std::vector<CancelAsk> cancels;  // of calls that were taken off the queue
    pthread_t main_thread{};
    int64_t blocked_depth = 0;
    bool blocked_sent = false;
    uint64_t sem_exec = 0;
    // for people: what became of tasks (events.hpp), who made which object
    EventRing *events = nullptr;     // null: off
    bool tsc = false;
    uint64_t tick = 0;               // a recent look at the clock
    uint64_t exec_tick = 0;          // when a call ended here, 0 when that is no longer now
    uint64_t exec_seen = 0;          // `tick` at that moment
    uint32_t exec_count = 0;
    std::unordered_map<uint64_t, RunningCall> running_calls;   // those that do not run on the main thread, by task
    bool record_sites = false;
    // memory set aside for what is under way (spare.hpp)
    uint32_t memory_short = 0;       // (atomic) it was given up
    uint64_t spare_buckets = ~0ull;  // of `objects`: up to so many it is enough
    std::unordered_map<ObjEntry *, uint32_t> sites;
    std::vector<std::string> site_names;
    // Python side's inbox
    std::deque<std::pair<uint32_t, Blob *>> py_inbox;
    uint32_t py_gen = 0;             // (futex)
    std::deque<HeldReply> held;      // in order of their positions
    uint64_t held_bytes = 0;         // of their frames
    std::vector<std::string> spare_frames;   // room for the next of them
    std::deque<HeldCaller> held_callers;
    uint64_t durable_position = 0;   // of the journal of the actor that lives here
    uint64_t held_ceiling = ~0ull;   // no answer above this leaves, durable or not
    bool loop_armed = false;         // an asyncio loop sleeps: wake it through loop_fd when a call comes
    int loop_fd = -1;
    Hold *hold = nullptr;            // while a cut is taken
    // counters
    uint64_t n_entries = 0, n_tasks = 0, n_pushed = 0, n_replies = 0, n_doorbells = 0, n_sleeps = 0, n_spin_hits = 0, n_spin_misses = 0;
};

// May new work begin? If not, `core_make_room` tries to set enough aside.
static inline bool has_room(Core *c) { return !load32(&c->memory_short) && c->objects.bucket_count() <= c->spare_buckets; }

// Which places of shared memory hold objects of ours.
static inline Large *large_find(Core *c, ObjEntry *e) {
    auto it = c->larges.find(Place(e->seg, e->off));
    return it == c->larges.end() || it->second.e != e ? nullptr : &it->second;
}
static inline Large *large_add(Core *c, ObjEntry *e) {
    Large *g = &c->larges[Place(e->seg, e->off)];
    *g = Large{e, mono_ns(), 0, 0, false, false};
    return g;
}
// A process is, or may be, told where the object is.
static inline void large_told(Core *c, ObjEntry *e, const Id28 &worker) {
    if (c->next_recall == 1 || e->state != OBJ_SHM) return;
    Large *g = large_find(c, e);
    if (g == nullptr) return;
    for (size_t i = 0; i < g->away.size(); i++)
        if (g->away[i] == worker) { g->away[i] = g->away.back(); g->away.pop_back(); return; }
}
// The object leaves its place; the number of its spill, or 0.
static inline uint64_t large_drop(Core *c, ObjEntry *e) {
    auto it = c->larges.find(Place(e->seg, e->off));
    if (it == c->larges.end() || it->second.e != e) return 0;
    uint64_t spill = it->second.spill;
    c->larges.erase(it);
    return spill;
}

static inline Hold *hold_new() { return new Hold(); }
static inline void hold_drop(Core *c) {
    delete c->hold;
    c->hold = nullptr;
}

static inline void renew_core(Core *c) { c->~Core(); new (c) Core(); }
