"""Starting and stopping the runtime of this process.

Owns: making what leaders sleep on, the start and the end of the background thread, and closing descriptors. Invariants:
the background thread blocks every signal (they belong to Python's threads); after `runtime_stop` no thread is in the
runtime; after `runtime_close` no descriptor of the session is open, however far its start has come.

Leaves to others: what the background thread does (runtime.pyx), the rest of a session's begin and end (session.pyx).
"""

from libc.errno cimport errno
from libc.stdint cimport uint64_t
from posix.unistd cimport close

from ftray._core.channel cimport chan_free
from ftray._core.runtime cimport (TAG_EVENT, TAG_LISTEN, TAG_NODE, adopt_thread, background, core_enter, core_leave, core_make_room,
                                  core_poll, core_room_end)
from ftray._core.types cimport Core, futex_wait, futex_wake, lock_drop, lock_take
from ftray._core.values cimport boxes_end

cdef extern from *:
    """
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    #include <sys/socket.h>
    #include <pthread.h>
    #include <csignal>
    #include <unistd.h>
    #include "types.hpp"
    static int watch_tag(int ep, int fd, uint64_t tag) {
        struct epoll_event e = {}; e.events = EPOLLIN | EPOLLRDHUP; e.data.u64 = tag;
        return epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
    }
    static int start_thread(unsigned long *t, void *(*f)(void *), void *arg) {
        sigset_t all, old; sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        pthread_attr_t a; pthread_attr_init(&a); pthread_attr_setstacksize(&a, 512 * 1024);
        pthread_t id; int r = pthread_create(&id, &a, f, arg);
        pthread_attr_destroy(&a);
        pthread_sigmask(SIG_SETMASK, &old, nullptr);
        *t = (unsigned long)id; return r;
    }
    static void join_thread(unsigned long t) { pthread_join((pthread_t)t, nullptr); }
    static void kick_fd(int fd) { uint64_t one = 1; ssize_t r = write(fd, &one, 8); (void)r; }
    static void end_connection(int fd) { if (fd >= 0) shutdown(fd, SHUT_RDWR); }
    """
    int watch_tag(int, int, uint64_t) nogil
    int start_thread(unsigned long *, void *(*)(void *) noexcept nogil, void *) nogil
    void join_thread(unsigned long) nogil
    void kick_fd(int) nogil
    void end_connection(int) nogil
    int epoll_create1(int) nogil
    int eventfd(unsigned, int) nogil
    int EPOLL_CLOEXEC, EFD_CLOEXEC, EFD_NONBLOCK


cdef int runtime_open(Core *c) except -1:
    """Make what leaders sleep on; it watches the connection to ftrayd and the listener. The caller is the main thread."""
    c.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
    if c.epoll_fd < 0:
        raise OSError(errno, "epoll_create1")
    c.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if c.event_fd < 0:
        raise OSError(errno, "eventfd")
    if (watch_tag(c.epoll_fd, c.listen_fd, TAG_LISTEN) != 0 or watch_tag(c.epoll_fd, c.node_fd, TAG_NODE) != 0
            or watch_tag(c.epoll_fd, c.event_fd, TAG_EVENT) != 0):
        raise OSError(errno, "epoll_ctl")
    adopt_thread(c)
    return 0


cdef int runtime_start(Core *c) except -1:
    """Start the background thread."""
    cdef unsigned long thread = 0
    core_make_room(c)                       # without it the first call says that there is no memory
    cdef int code = start_thread(&thread, background, <void *>c)
    if code != 0:
        raise OSError(code, "cannot start the runtime's thread")
    c.bg = thread
    c.bg_started = True
    return 0


cdef void runtime_stop(Core *c) noexcept nogil:
    """Send what is to be sent, end the background thread, and make every thread that waits leave."""
    core_enter(c)
    core_poll(c)
    c.stopping = True
    c.bg_word += 1
    futex_wake(&c.bg_word, 1)
    kick_fd(c.event_fd)
    core_leave(c)
    join_thread(c.bg)
    c.running = False
    c.node_alive = False
    let_waiters_go(c)


cdef void let_waiters_go(Core *c) noexcept nogil:
    """Threads that still wait in `core_wait`, and whoever awaits something, see that the runtime stopped, and leave."""
    lock_take(&c.lock)
    boxes_end(c)
    while c.followers or c.leading:
        c.gen += 1
        futex_wake(&c.gen, 1 << 30)
        kick_fd(c.event_fd)
        lock_drop(&c.lock)
        futex_wait(&c.bg_word, c.bg_word, 100000)
        lock_take(&c.lock)
    lock_drop(&c.lock)


cdef inline void close_one(int *fd) noexcept nogil:
    if fd[0] >= 0:
        close(fd[0])
        fd[0] = -1


cdef void runtime_close(Core *c) noexcept nogil:
    """Close every descriptor and every channel. No thread is in the runtime any more, or none was yet."""
    cdef size_t i
    core_room_end(c)
    end_connection(c.node_fd)               # a forked child of ours may hold a copy of the descriptor
    for i in range(c.channels.size()):
        if c.channels[i] != NULL:
            end_connection(c.channels[i].fd)
    close_one(&c.node_fd)
    close_one(&c.listen_fd)
    close_one(&c.dir_fd)
    close_one(&c.epoll_fd)
    close_one(&c.event_fd)
    close_one(&c.loop_fd)
    while not c.node_fds.empty():           # came with frames that nobody will handle
        close(c.node_fds.front())
        c.node_fds.pop_front()
    for i in range(c.channels.size()):
        if c.channels[i] != NULL:
            chan_free(c, c.channels[i])
