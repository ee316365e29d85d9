"""Layout of the frames between processes (channel.pxd lists their types). Little-endian, packed, ids raw.

TASK: TaskHead, with the flag TASK_STREAM a StreamStart, `ndeps` x (DepHead + inline bytes), argument bytes (serial's argument
format), `head_size` bytes of CallHead (records.pxd), and at the end, with the flag HEAD_IN_GROUP, the placement group of the task: 18s id, u8 whether it captures the tasks that the task submits.
REPLY: ReplyHead, `nret` x (RetHead + inline bytes + `ncontained` x (28s id, 28s owner)), at the end `nborrow` x 28s id, and
ReplyTimes when `held` says so.
FN_DEF: seq = index in the sender's function table, body = pickled function, or a method's name.
TAKE_BACK: seq = how many unstarted calls are wanted back; each comes as a REPLY with GIVEN_BACK.
ASSIGN: the devices of the lease that begins, as JSON.
CANCEL: seq = the call, flags = CANCEL_*. CANCEL_OBJECT: 28s id, to its owner, flags likewise. GET_OBJ: 28s id, and u64 segment,
u64 offset where the value was that could not be read. OBJ_VALUE: 28s id, u8 lost, RetHead + bytes + contained.
BORROW_ADD: seq = token, 28s id, 28s borrower. BORROW_ACK: seq = token. BORROW_REMOVE: seq = registrations, 28s id.
BLOCK_FREE: u64 segment, u64 offset.
STREAM_ITEM: seq = the call, StreamItem, then RetHead + bytes + contained of what it yielded.
STREAM_ACK: seq = the call, u64 items consumed (STREAM_STOP: nobody wants more).
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    KIND_TASK = 0
    KIND_METHOD = 1
    VALUE_INLINE = 1
    VALUE_SHM = 2
    VALUE_LOST = 3
    VALUE_ASK = 4            # of a dependency: its owner says where it is
    HEAD_IN_GROUP = 128      # bit of TaskHead.flags
    GROUP_SIZE = 19
    CANCEL_RECURSIVE = 1
    CANCEL_FORCE = 2
    SYSTEM_ERROR = 200       # first byte of an error value that was made without Python: code byte, payload

cdef enum:
    REPLY_TIMES = 2          # in ReplyHead.held
    REPLY_TOUCHED = 4
    REPLY_RECORDED = 8

cdef enum SystemError:
    ERR_CRASHED = 1          # payload: WORKER_DIED frame, or empty
    ERR_CANCELLED = 2
    ERR_ACTOR_DIED = 3       # payload: pickled cause
    ERR_ACTOR_UNAVAILABLE = 4
    ERR_OWNER_DIED = 5
    ERR_LOST = 6
    ERR_HEAD_DIED = 7
    ERR_UNSCHEDULABLE = 8    # payload: text
    ERR_NO_DESCRIPTORS = 9
    ERR_RUNTIME_ENV = 10     # payload: text
    ERR_GROUP_REMOVED = 11   # payload: text
    ERR_STORE_FULL = 15      # payload: text
    ERR_CALL_CYCLE = 16      # the call came back to an exactly-once actor whose method waits for it. payload: empty
    ERR_REPLAY = 20          # a re-executed generator yielded less than before. payload: u64 items now, u64 before
    ERR_UNMADE = 14          # lost, and not made again. Payload: u8 why (lineage.pxd), 28s id, text: how it was lost

cdef packed struct TaskHead:
    uint8_t id[24]
    uint8_t call_id[16]
    uint64_t epoch           # of the callee's state that the caller knows; 0 = none
    uint32_t fn
    uint32_t attempt
    uint32_t head_size       # of the CallHead behind the arguments (flows.pyx), 0: none
    uint32_t depth
    uint16_t nret
    uint16_t ndeps
    uint8_t kind
    uint8_t flags
    uint16_t nested          # refs inside the arguments
    uint64_t args_size

cdef enum:
    FIRST_ITEM = 2           # index in the ObjectID of a stream's first item; 1 is the completion
    LAST_ITEM = 0x7fffffff   # the indices above are of puts

cdef packed struct StreamStart:
    uint64_t window          # unconsumed items after which the generator pauses; 0: never
    uint64_t consumed        # by now, in earlier attempts; STREAM_STOP: nobody wants any

cdef packed struct StreamItem:
    uint64_t index           # from 0
    uint32_t attempt

cdef packed struct DepHead:
    uint8_t kind
    uint8_t id[28]
    uint8_t owner[28]
    uint64_t seg
    uint64_t off
    uint64_t size

cdef packed struct ReplyHead:
    uint8_t status
    uint8_t held             # REPLY_TIMES: these stand at the very end; REPLY_TOUCHED: the call has called exactly-once actors; REPLY_RECORDED: the reply is recorded
    uint16_t nret
    uint32_t nborrow
    uint64_t epoch

cdef packed struct ReplyTimes:
    uint64_t started         # ticks (events.hpp)
    uint64_t ended

cdef packed struct RetHead:
    uint8_t kind
    uint8_t is_error
    uint16_t reserved
    uint32_t ncontained
    uint64_t seg
    uint64_t off
    uint64_t size
