"""Mechanism: the stream to ftrayd. Frames are 16 bytes of header and a payload (`ftray/_node/protocol.py` documents them).

Outgoing frames collect in `node_out` and leave with one send per lock section; what the socket does not take waits for
EPOLLOUT. Descriptors arrive in the order of the frames that carry one.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.unistd cimport close
from ftray._core.types cimport Core, Id16, SchedClass

cdef extern from *:
    """
    #include <sys/socket.h>
    #include <sys/epoll.h>
    #include <poll.h>
    #include "types.hpp"
    static long node_recv(int sock, char *data, size_t n, void *into) {
        auto *fds = (std::deque<int> *)into;
        struct iovec io = {data, n};
        alignas(struct cmsghdr) char ctl[CMSG_SPACE(sizeof(int)) * 16];
        struct msghdr m = {};
        m.msg_iov = &io; m.msg_iovlen = 1; m.msg_control = ctl; m.msg_controllen = sizeof ctl;
        long r = recvmsg(sock, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (r < 0) return r;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
            if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
            int got = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            for (int i = 0; i < got; i++) { int f; memcpy(&f, CMSG_DATA(c) + i * sizeof(int), sizeof(int)); fds->push_back(f); }
        }
        return r;
    }
    // Blocking only until the kernel takes the first byte; used for the few frames that carry a descriptor.
    static long node_send_fd(int sock, const char *data, size_t n, int fd) {
        struct iovec io = {(void *)data, n};
        alignas(struct cmsghdr) char ctl[CMSG_SPACE(sizeof(int))] = {};
        struct msghdr m = {};
        m.msg_iov = &io; m.msg_iovlen = 1; m.msg_control = ctl; m.msg_controllen = sizeof ctl;
        struct cmsghdr *c = CMSG_FIRSTHDR(&m);
        c->cmsg_level = SOL_SOCKET; c->cmsg_type = SCM_RIGHTS; c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof(int));
        return sendmsg(sock, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    // Of a frame that cannot be left to the event loop. A peer that has ended makes room, too.
    static void wait_for_room(int sock) {
        struct pollfd p = {sock, POLLOUT, 0};
        poll(&p, 1, 1000);
    }
    static int node_watch(int ep, int fd, bool out) {
        struct epoll_event e = {}; e.events = EPOLLIN | EPOLLRDHUP | (out ? EPOLLOUT : 0); e.data.u64 = 2;
        return epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e);
    }
    """
    long node_recv(int, char *, size_t, void *) nogil
    long node_send_fd(int, const char *, size_t, int) nogil
    void wait_for_room(int) nogil
    int node_watch(int, int, bint) nogil
    ssize_t send(int, const void *, size_t, int) nogil
    int MSG_DONTWAIT, MSG_NOSIGNAL

cdef enum:
    READ_SIZE = 65536
    COMPACT_AT = 1 << 20

cdef node_handler handle_frame = NULL
cdef node_end_handler handle_end = NULL


cdef void node_set_handlers(node_handler on_frame, node_end_handler on_end) noexcept nogil:
    global handle_frame, handle_end
    handle_frame = on_frame
    handle_end = on_end


cdef void node_put(Core *c, uint16_t kind, uint64_t req, const void *payload, uint64_t size) noexcept nogil:
    """Queue one frame."""
    node_put_flagged(c, kind, 0, req, payload, size)


cdef void node_put_flagged(Core *c, uint16_t kind, uint16_t flags, uint64_t req, const void *payload, uint64_t size) noexcept nogil:
    cdef NodeHeader h
    if not c.node_alive:
        return
    h.size = <uint32_t>size
    h.kind = kind
    h.flags = flags
    h.req = req
    c.node_out.append(<const char *>&h, sizeof(NodeHeader))
    if size:
        c.node_out.append(<const char *>payload, size)


cdef void forget_sent(Core *c) noexcept nogil:
    """What has been sent need not be kept. Seldom, for what follows is moved: a frame may be large."""
    if c.node_out_at == c.node_out.size():
        c.node_out.clear()
        c.node_out_at = 0
    elif c.node_out_at >= COMPACT_AT and c.node_out_at > c.node_out.size() // 2:
        c.node_out.erase(0, c.node_out_at)
        c.node_out_at = 0


cdef void node_put_fd(Core *c, uint16_t kind, uint64_t req, const void *payload, uint64_t size, int fd) noexcept nogil:
    """Send one frame with a descriptor; everything queued before goes first. The caller keeps `fd`."""
    cdef NodeHeader h
    cdef long n
    cdef size_t at
    node_flush(c)
    c.node_out.erase(0, c.node_out_at)
    c.node_out_at = 0
    at = c.node_out.size()
    node_put(c, kind, req, payload, size)
    if not c.node_alive:
        return
    if at == 0:
        n = node_send_fd(c.node_fd, c.node_out.data(), c.node_out.size(), fd)
        if n > 0:
            c.node_out.erase(0, n)
            return
        if n < 0 and errno != EAGAIN and errno != EINTR:
            node_lost(c)
            return
    # The socket is full: the frame cannot wait without its descriptor, so wait for room here (ftrayd always reads).
    while c.node_alive and not c.node_out.empty():
        if at > 0:
            n = send(c.node_fd, c.node_out.data(), at, MSG_NOSIGNAL)
        else:
            n = node_send_fd(c.node_fd, c.node_out.data(), c.node_out.size(), fd)
        if n < 0 and errno == EAGAIN:
            wait_for_room(c.node_fd)
        elif n < 0 and errno != EINTR:
            node_lost(c)
            return
        if n > 0:
            c.node_out.erase(0, n)
            if at == 0:
                return
            at -= n


cdef void node_flush(Core *c) noexcept nogil:
    """Send what is queued, as far as the socket takes it."""
    cdef ssize_t n
    while c.node_alive and not c.node_out.empty():
        n = send(c.node_fd, c.node_out.data() + c.node_out_at, c.node_out.size() - c.node_out_at, MSG_DONTWAIT | MSG_NOSIGNAL)
        if n > 0:
            c.node_out_at += n
            forget_sent(c)
        elif errno == EAGAIN:
            if not c.node_blocked:
                c.node_blocked = True
                node_watch(c.epoll_fd, c.node_fd, True)
            return
        elif errno != EINTR:
            node_lost(c)
            return
    if c.node_blocked and c.node_alive:
        c.node_blocked = False
        node_watch(c.epoll_fd, c.node_fd, False)


cdef void node_lost(Core *c) noexcept nogil:
    """ftrayd is gone, or speaks nonsense."""
    if not c.node_alive:
        return
    c.node_alive = False
    c.node_out.clear()
    c.node_out_at = 0
    if c.node_fd >= 0:
        close(c.node_fd)
        c.node_fd = -1
    handle_end(c)


cdef void node_pending(Core *c) noexcept nogil:
    """Handle every whole frame that has been read."""
    cdef size_t at = 0
    cdef NodeHeader *h
    while c.node_alive and c.node_in.size() - at >= sizeof(NodeHeader):
        h = <NodeHeader *>(c.node_in.data() + at)
        if h.size > MAX_PAYLOAD:
            node_lost(c)
            return
        if c.node_in.size() - at < sizeof(NodeHeader) + h.size:
            break
        handle_frame(c, h, <char *>h + sizeof(NodeHeader))
        at += sizeof(NodeHeader) + h.size
    if at:
        c.node_in.erase(0, at)


cdef void node_readable(Core *c) noexcept nogil:
    """Read everything that is there and handle it."""
    cdef char buf[READ_SIZE]
    cdef long n
    while c.node_alive:
        n = node_recv(c.node_fd, buf, READ_SIZE, <void *>&c.node_fds)
        if n == 0 or (n < 0 and errno != EAGAIN and errno != EINTR):
            node_lost(c)
            return
        if n < 0:
            return
        c.node_in.append(buf, n)
        node_pending(c)
        if n < READ_SIZE:
            return


cdef void node_lease_request(Core *c, SchedClass *k, uint32_t wanted) noexcept nogil:
    """Say how many further leases this class can use now (absolute, so repeating it is harmless)."""
    cdef uint16_t count = <uint16_t>wanted
    if k.asked == wanted:
        return
    k.asked = wanted
    memcpy(<char *>k.request.data() + 8, &count, 2)
    node_put(c, N_LEASE_REQUEST, 0, k.request.data(), k.request.size())


cdef void node_lease_return(Core *c, uint64_t lease_id, uint8_t reusable) noexcept nogil:
    cdef char p[9]
    memcpy(p, &lease_id, 8)
    p[8] = <char>reusable
    node_put(c, N_LEASE_RETURN, 0, p, 9)


cdef void node_actor_kill(Core *c, const Id16 *actor, uint8_t no_restart, uint8_t reason) noexcept nogil:
    cdef char p[18]
    memcpy(p, actor.b, 16)
    p[16] = <char>no_restart
    p[17] = <char>reason
    node_put(c, N_ACTOR_KILL, 0, p, 18)
