"""Mechanism: connect, accept, move frames, notice a peer's end (see channel.pxd for the contract).

A handshake is one message each way over the socket: the initiator sends HELLO with the memory file of the rings, the
acceptor answers with its place on the board and the bit by which it wants to be told of new frames. Until the answer is
there the initiator may already write: the acceptor looks at the ring when it accepts. A peer's death is the socket's
end; what it had published stays readable and is drained first.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy, memset
from libcpp.string cimport string
from posix.unistd cimport close, getuid

from ftray._core.ring cimport (RING_HEADER, ring_consume, ring_create, ring_front, ring_map, ring_producer_waits, ring_publish,
                               ring_ready, ring_space, ring_tail, ring_unmap, ring_wait_for_room)
from ftray._core.types cimport (CH_BROKEN, CH_CONNECTING, CH_OPEN, Channel, Core, FnDef, Id28, Slot, blob_drop, full_fence, load32,
                                load64, or64, swap32)

cdef extern from *:
    """
    #include <sys/socket.h>
    #include <sys/un.h>
    #include <sys/epoll.h>
    #include <unistd.h>
    #include <cstdio>
    #include <cstdint>
    #include "types.hpp"
    // SCM_RIGHTS is macros all the way down, so the two calls that pass a descriptor are C.
    static int send_with_fd(int sock, const void *data, size_t n, int fd) {
        struct iovec io = {(void *)data, n};
        char ctl[CMSG_SPACE(sizeof(int))] = {};
        struct msghdr m = {};
        m.msg_iov = &io; m.msg_iovlen = 1;
        if (fd >= 0) {
            m.msg_control = ctl; m.msg_controllen = sizeof ctl;
            struct cmsghdr *c = CMSG_FIRSTHDR(&m);
            c->cmsg_level = SOL_SOCKET; c->cmsg_type = SCM_RIGHTS; c->cmsg_len = CMSG_LEN(sizeof(int));
            memcpy(CMSG_DATA(c), &fd, sizeof(int));
        }
        return (int)sendmsg(sock, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    static int recv_with_fd(int sock, void *data, size_t n, int *fd) {
        struct iovec io = {data, n};
        char ctl[CMSG_SPACE(sizeof(int)) * 4];
        struct msghdr m = {};
        m.msg_iov = &io; m.msg_iovlen = 1; m.msg_control = ctl; m.msg_controllen = sizeof ctl;
        *fd = -1;
        int r = (int)recvmsg(sock, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (r < 0) return r;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
            if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
            int got = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            for (int i = 0; i < got; i++) {
                int f; memcpy(&f, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
                if (*fd < 0) *fd = f; else close(f);
            }
        }
        return r;
    }
    static int peer_uid(int sock, unsigned *uid) {
        struct ucred u; socklen_t n = sizeof u;
        if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &u, &n) != 0) return -1;
        *uid = u.uid; return 0;
    }
    static int fill_address(int dir_fd, const uint8_t *id, void *at) {
        struct sockaddr_un *a = (struct sockaddr_un *)at;
        memset(a, 0, sizeof *a); a->sun_family = AF_UNIX;
        char hex[17];
        for (int i = 0; i < 8; i++) snprintf(hex + 2 * i, 3, "%02x", id[i]);
        return snprintf(a->sun_path, sizeof a->sun_path, "/proc/self/fd/%d/%s.sock", dir_fd, hex);
    }
    static bool has_socket(int dir_fd, const uint8_t *id) {
        struct sockaddr_un a; fill_address(dir_fd, id, &a);
        return access(a.sun_path, F_OK) == 0;
    }
    static int open_and_connect(int dir_fd, const uint8_t *id) {
        struct sockaddr_un a; fill_address(dir_fd, id, &a);
        int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (s < 0) return -errno;
        if (connect(s, (struct sockaddr *)&a, sizeof a) != 0) { int e = errno; close(s); return -e; }
        return s;
    }
    static int watch(int ep, int fd, uint32_t events, uint64_t tag, int op) {
        struct epoll_event e = {}; e.events = events; e.data.u64 = tag;
        return epoll_ctl(ep, op, fd, &e);
    }
    """
    int send_with_fd(int, const void *, size_t, int) nogil
    int recv_with_fd(int, void *, size_t, int *) nogil
    int peer_uid(int, unsigned *) nogil
    int fill_address(int, const uint8_t *, void *) nogil
    bint has_socket(int, const uint8_t *) nogil
    int open_and_connect(int, const uint8_t *) nogil
    int watch(int, int, uint32_t, uint64_t, int) nogil
    int accept4(int, void *, void *, int) nogil
    ssize_t recv(int, void *, size_t, int) nogil
    ssize_t send(int, const void *, size_t, int) nogil
    int EPOLLIN, EPOLLHUP, EPOLLERR, EPOLLRDHUP, EPOLL_CTL_ADD, EPOLL_CTL_DEL, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_CLOEXEC, SOCK_NONBLOCK

cdef packed struct Hello:
    uint32_t magic
    uint32_t version
    uint8_t worker[28]
    uint32_t slot
    uint32_t bit
    uint64_t capacity

cdef enum:
    HELLO_MAGIC = 0x4F4C4846
    HELLO_VERSION = 1
    MAX_BITS = 4096
    TAG_BITS = 20

cdef frame_handler handle_frame = NULL
cdef break_handler handle_break = NULL


cdef void chan_set_handlers(frame_handler on_frame, break_handler on_break) noexcept nogil:
    global handle_frame, handle_break
    handle_frame = on_frame
    handle_break = on_break


cdef int unix_address(Core *c, Id28 *worker, void *address) noexcept nogil:
    """Fill a sockaddr_un with a worker's socket; the path goes through a directory descriptor, so it is never too long."""
    return fill_address(c.dir_fd, worker.b, address)


cdef Channel *new_channel(Core *c) noexcept nogil:
    cdef Channel *ch = new Channel()
    if c.free_bits.size():
        ch.bit = c.free_bits.back()
        c.free_bits.pop_back()
        c.channels[ch.bit] = ch
    else:
        ch.bit = <uint32_t>c.channels.size()
        c.channels.push_back(ch)
    ch.uid = c.next_uid
    c.next_uid += 1
    return ch


cdef inline uint64_t chan_tag(Channel *ch) noexcept nogil:
    """What epoll reports for it: no pointer, because the channel may be freed between the report and its handling."""
    return (ch.uid << TAG_BITS) | ch.bit


cdef void chan_event(Core *c, uint64_t tag, uint32_t events) noexcept nogil:
    """epoll reported this tag; a channel that is gone meanwhile is none of our business."""
    cdef uint64_t bit = tag & ((<uint64_t>1 << TAG_BITS) - 1)
    if bit < c.channels.size() and c.channels[bit] != NULL and c.channels[bit].uid == tag >> TAG_BITS:
        chan_socket_event(c, c.channels[bit], events)


cdef void make_hello(Core *c, Channel *ch, Hello *h) noexcept nogil:
    h.magic = HELLO_MAGIC
    h.version = HELLO_VERSION
    memcpy(h.worker, c.worker_id.b, 28)
    h.slot = c.slot
    h.bit = ch.bit % MAX_BITS
    h.capacity = RING_CAPACITY


cdef bint learn_peer(Core *c, Channel *ch, Hello *h) noexcept nogil:
    if h.magic != HELLO_MAGIC or h.version != HELLO_VERSION or h.slot >= c.nslots or h.bit >= MAX_BITS:
        return False
    ch.peer = <Slot *>(c.board + 4096 + <uint64_t>h.slot * 1024)
    ch.peer_bit = h.bit
    return True


cdef Channel *chan_find(Core *c, Id28 *worker) noexcept nogil:
    """An existing usable channel to a process, or NULL."""
    cdef Channel *ch
    it = c.peers.find(worker[0])
    if it == c.peers.end():
        return NULL
    ch = c.peers[worker[0]]
    if ch.state == CH_BROKEN or ch.dead:
        return NULL
    return ch


cdef bint chan_is_dead(Core *c, Id28 *worker) noexcept nogil:
    """Is a process known to be dead? ftrayd has removed the socket of one whose death was long ago and is forgotten."""
    if c.dead.count(worker[0]):
        return True
    return c.dead_forgotten and c.peers.count(worker[0]) == 0 and not has_socket(c.dir_fd, worker.b)


cdef Channel *chan_connect(Core *c, Id28 *worker) noexcept nogil:
    """The channel to a process, made if need be; NULL when it cannot be reached (its death report will say why)."""
    cdef Channel *ch = chan_find(c, worker)
    cdef Hello hello
    cdef int fd, mem, code
    if ch != NULL:
        return ch
    c.connect_errno = 0
    if c.dead.count(worker[0]):
        return NULL
    fd = open_and_connect(c.dir_fd, worker.b)
    if fd < 0:
        c.connect_errno = -fd
        return NULL
    mem = ring_create(RING_CAPACITY)
    if mem < 0:
        c.connect_errno = -mem
        close(fd)
        return NULL
    ch = new_channel(c)
    ch.fd = fd
    ch.initiator = 1
    memcpy(ch.worker.b, worker.b, 28)
    code = ring_map(mem, RING_CAPACITY, True, &ch.out, &ch.inp, &ch.map, &ch.map_len)
    make_hello(c, ch, &hello)
    if code == 0 and send_with_fd(fd, &hello, sizeof(Hello), mem) != sizeof(Hello):
        code = -errno
    close(mem)
    if code != 0 or watch(c.epoll_fd, fd, EPOLLIN | EPOLLRDHUP, chan_tag(ch), EPOLL_CTL_ADD) != 0:
        ch.state = CH_BROKEN
        c.graveyard.push_back(ch)
        return NULL
    ch.state = CH_OPEN
    c.peers[worker[0]] = ch
    return ch


cdef void chan_accept(Core *c) noexcept nogil:
    """Take every waiting connection; strangers (another uid) are closed at once."""
    cdef int fd
    cdef unsigned uid
    cdef Channel *ch
    while True:
        fd = accept4(c.listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)
        if fd < 0:
            return
        if peer_uid(fd, &uid) != 0 or uid != getuid():
            close(fd)
            continue
        ch = new_channel(c)
        ch.fd = fd
        if watch(c.epoll_fd, fd, EPOLLIN | EPOLLRDHUP, chan_tag(ch), EPOLL_CTL_ADD) != 0:
            ch.state = CH_BROKEN
            c.graveyard.push_back(ch)


cdef void acceptor_handshake(Core *c, Channel *ch) noexcept nogil:
    cdef Hello hello
    cdef int mem = -1
    cdef int n = recv_with_fd(ch.fd, &hello, sizeof(Hello), &mem)
    if n < 0 and (errno == EAGAIN or errno == EINTR):
        return
    if (n != sizeof(Hello) or mem < 0 or hello.capacity != RING_CAPACITY or not learn_peer(c, ch, &hello)
            or ring_map(mem, RING_CAPACITY, False, &ch.out, &ch.inp, &ch.map, &ch.map_len) != 0):
        if mem >= 0:
            close(mem)
        chan_break(c, ch)
        return
    close(mem)
    memcpy(ch.worker.b, hello.worker, 28)
    if c.peers.count(ch.worker) == 0 or c.peers[ch.worker].state == CH_BROKEN:
        c.peers[ch.worker] = ch
    ch.state = CH_OPEN
    make_hello(c, ch, &hello)
    if c.dead.count(ch.worker) or send_with_fd(ch.fd, &hello, sizeof(Hello), -1) != sizeof(Hello):
        chan_break(c, ch)       # also of one whose death was heard of before its connection: what it wanted is settled as it is
        return
    chan_drain(c, ch)


cdef void initiator_handshake(Core *c, Channel *ch) noexcept nogil:
    cdef Hello hello
    cdef ssize_t n = recv(ch.fd, &hello, sizeof(Hello), MSG_DONTWAIT)
    if n < 0 and (errno == EAGAIN or errno == EINTR):
        return
    if n != sizeof(Hello) or not learn_peer(c, ch, &hello):
        chan_break(c, ch)
        return
    ring_bell(c, ch)            # it may have looked at the ring before our latest frames
    chan_drain(c, ch)


cdef void chan_socket_event(Core *c, Channel *ch, uint32_t events) noexcept nogil:
    """The socket is readable: a handshake, doorbells, or the peer's end."""
    cdef char bells[256]
    cdef ssize_t n
    if ch.state == CH_BROKEN:
        return
    if ch.state == CH_CONNECTING:
        acceptor_handshake(c, ch)
        return
    if ch.peer == NULL:
        initiator_handshake(c, ch)
        if ch.peer == NULL and events & (EPOLLHUP | EPOLLERR | EPOLLRDHUP):
            chan_break(c, ch)
        return
    n = recv(ch.fd, bells, sizeof(bells), MSG_DONTWAIT)
    if n == 0 or (n < 0 and errno != EAGAIN and errno != EINTR):
        chan_break(c, ch)
        return
    chan_drain(c, ch)


cdef bint chan_has_room(Channel *ch, uint64_t size) noexcept nogil:
    """Would a frame of this size go straight into the ring?"""
    return ch.outq.empty() and size <= MAX_RING_FRAME and ring_space(&ch.out, size) >= size


cdef inline void mark_dirty(Core *c, Channel *ch) noexcept nogil:
    if not ch.dirty:
        ch.dirty = 1
        c.dirty.push_back(ch)


cdef char *chan_begin(Core *c, Channel *ch, uint64_t size, uint8_t kind, uint8_t flags, uint16_t aux, uint64_t seq) noexcept nogil:
    """Room for one frame of `size` bytes (header included); its header is filled in, the body is the caller's."""
    cdef char *p
    cdef FrameHeader *h
    if chan_has_room(ch, size):
        p = ring_tail(&ch.out)
    else:
        ch.outq.push_back(string())
        ch.outq.back().resize(size)
        ch.outq_bytes += size
        p = <char *>ch.outq.back().data()
    h = <FrameHeader *>p
    h.size = <uint32_t>size
    h.kind = kind
    h.flags = flags
    h.aux = aux
    h.seq = seq
    return p + FRAME_HEADER


cdef void chan_commit(Core *c, Channel *ch, uint64_t size) noexcept nogil:
    if ch.outq.empty():
        ring_publish(&ch.out, size)
    mark_dirty(c, ch)


cdef void flush_queue(Channel *ch) noexcept nogil:
    """Move queued frames into the ring as far as there is room; ask to be told when there is more."""
    cdef uint64_t left, size
    cdef char *p
    cdef FrameHeader *h
    cdef bint asked = False
    while not ch.outq.empty():
        left = ch.outq.front().size() - ch.out_off
        if ch.out_off == 0 and left <= MAX_RING_FRAME:
            size = left
        else:
            size = min(left, <uint64_t>(MAX_RING_FRAME - FRAME_HEADER)) + FRAME_HEADER
        if ring_space(&ch.out, size) < size:
            if asked:
                return
            asked = True
            ring_wait_for_room(&ch.out)
            continue
        p = ring_tail(&ch.out)
        if ch.out_off == 0 and left <= MAX_RING_FRAME:
            memcpy(p, ch.outq.front().data(), size)
            ch.out_off = size
        else:
            h = <FrameHeader *>p
            memset(h, 0, sizeof(FrameHeader))
            h.size = <uint32_t>size
            h.kind = F_PIECE
            h.seq = ch.outq.front().size()
            memcpy(p + FRAME_HEADER, ch.outq.front().data() + ch.out_off, size - FRAME_HEADER)
            ch.out_off += size - FRAME_HEADER
        ring_publish(&ch.out, size)
        if ch.out_off == ch.outq.front().size():
            ch.outq_bytes -= ch.out_off
            ch.outq.pop_front()
            ch.out_off = 0


cdef void ring_bell(Core *c, Channel *ch) noexcept nogil:
    """Tell the peer that there is something: set our bit in its inbox, and wake it if it sleeps."""
    cdef uint64_t word_bit, sum_bit
    cdef uint32_t w
    cdef char one = 1
    if ch.peer == NULL or ch.state != CH_OPEN:
        return
    w = ch.peer_bit >> 6
    word_bit = <uint64_t>1 << (ch.peer_bit & 63)
    sum_bit = <uint64_t>1 << w
    full_fence()
    if not (load64(&ch.peer.words[w]) & word_bit):
        or64(&ch.peer.words[w], word_bit)
    if not (load64(&ch.peer.summary) & sum_bit):
        or64(&ch.peer.summary, sum_bit)
    full_fence()
    if load32(&ch.peer.asleep) and swap32(&ch.peer.asleep, 0):
        c.n_doorbells += 1
        send(ch.fd, &one, 1, MSG_DONTWAIT | MSG_NOSIGNAL)


cdef void chan_ring_dirty(Core *c) noexcept nogil:
    """Flush and announce everything written since the last time."""
    cdef size_t i
    cdef Channel *ch
    for i in range(c.dirty.size()):
        ch = c.dirty[i]
        ch.dirty = 0
        if ch.state == CH_OPEN:
            if not ch.outq.empty():
                flush_queue(ch)
            ring_bell(c, ch)
    c.dirty.clear()


cdef bint take_piece(Core *c, Channel *ch, FrameHeader *h, char *body, uint64_t n) noexcept nogil:
    """Collect a frame that arrives in pieces; False when it makes no sense."""
    cdef FrameHeader *whole
    cdef string done
    if h.seq < FRAME_HEADER or h.seq > <uint64_t>0xFFFFFFFF or ch.frag.size() + n > h.seq:
        return False
    if ch.frag.empty():
        ch.frag.reserve(h.seq)
    ch.frag.append(body, n)
    if ch.frag.size() < h.seq:
        return True
    done.swap(ch.frag)
    whole = <FrameHeader *>done.data()
    if whole.size != done.size() or whole.kind == F_PIECE:
        return False
    handle_frame(c, ch, whole, <char *>done.data() + FRAME_HEADER, done.size() - FRAME_HEADER)
    return True


cdef void chan_drain(Core *c, Channel *ch) noexcept nogil:
    """Handle every frame that the peer has published."""
    cdef uint64_t ready, size, done
    cdef FrameHeader *h
    cdef char *p
    if ch.map == NULL:
        return
    while True:
        ready = ring_ready(&ch.inp)
        if ready == 0:
            break
        done = 0
        while done < ready:
            p = ring_front(&ch.inp)
            h = <FrameHeader *>p
            size = h.size
            if ready == <uint64_t>-1 or size < FRAME_HEADER or size > ready - done or size > MAX_RING_FRAME or h.kind == 0 or h.kind >= F_LAST:
                chan_break(c, ch)       # garbage: a peer that writes it cannot be talked to
                return
            if h.kind == F_PIECE:
                if not take_piece(c, ch, h, p + FRAME_HEADER, size - FRAME_HEADER):
                    chan_break(c, ch)
                    return
            else:
                handle_frame(c, ch, h, p + FRAME_HEADER, size - FRAME_HEADER)
            done += size
            ring_consume(&ch.inp, size)
        if ring_producer_waits(&ch.inp):
            mark_dirty(c, ch)
    if not ch.outq.empty():
        mark_dirty(c, ch)


cdef void chan_break(Core *c, Channel *ch) noexcept nogil:
    """The peer is gone or speaks nonsense: no more traffic, what was published before is still handled."""
    if ch.state == CH_BROKEN:
        return
    ch.state = CH_BROKEN
    if ch.fd >= 0:
        watch(c.epoll_fd, ch.fd, 0, 0, EPOLL_CTL_DEL)
        close(ch.fd)
        ch.fd = -1
    it = c.peers.find(ch.worker)
    if it != c.peers.end() and c.peers[ch.worker] == ch:
        c.peers.erase(ch.worker)
    if ch.map != NULL and ring_ready(&ch.inp) != <uint64_t>-1:
        chan_drain(c, ch)
    handle_break(c, ch)
    c.graveyard.push_back(ch)


cdef void chan_free(Core *c, Channel *ch) noexcept nogil:
    """Give everything back; the caller knows that nothing points here any more."""
    cdef size_t i
    if ch.fd >= 0:
        close(ch.fd)
    ring_unmap(ch.map, ch.map_len)
    for i in range(ch.fns.size()):
        blob_drop(ch.fns[i].defn)
    c.channels[ch.bit] = NULL
    c.free_bits.push_back(ch.bit)
    del ch
