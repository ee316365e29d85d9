# distutils: language = c++
"""Linux process primitives that the standard library does not have.

Owns: making a *sibling* process, parent-death signals, the child-subreaper flag, closing ranges of descriptors.
Leaves to others: who forks when (the zygote) and who watches the result (``ftrayd``).

Why a raw ``clone``: workers are made by the zygote but must be children of ``ftrayd``, so that ``ftrayd`` reads their
exit status and neither the zygote's death nor its restart touches them.  That is ``CLONE_PARENT``, for which libc has
no fork-like entry, so ``fork_sibling`` repeats what libc's ``fork`` does around the system call:

* Python's own fork hooks run (``PyOS_BeforeFork`` and its two counterparts).
* libc caches the thread id in the thread descriptor and gives its address to the kernel
  (``CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID``).  ``prctl(PR_GET_TID_ADDRESS)`` tells that address; it is used only if
  the word there holds our thread id, which proves that it is the cache.  Where it does not (another libc, a kernel
  without CONFIG_CHECKPOINT_RESTORE) the child keeps the zygote's id in that cache: libc compares it only with other
  threads' ids in recursive and error-checking mutexes, so this is harmless until the zygote's id is used again.
* The kernel forgets the robust-mutex list of the child; it is registered again.
* ``pthread_atfork`` handlers do not run and malloc's locks are not taken.  Both matter only when another thread exists,
  so more than one thread is refused.

A parent-death signal fires when the *thread* that is the parent ends; here that is the main and only thread of ``ftrayd``.
"""

from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport errno

import sys

if not sys.platform.startswith("linux"):
    raise ImportError(
        f"ftray runs its processes with Linux system calls (clone, prctl, pidfd); this platform is {sys.platform!r}. "
        "Use Linux, or a Linux container or virtual machine."
    )

cdef extern from "Python.h":
    void PyOS_BeforeFork()
    void PyOS_AfterFork_Parent()
    void PyOS_AfterFork_Child()

cdef extern from *:
    """
    #include <errno.h>
    #include <signal.h>
    #include <stdio.h>
    #include <string.h>
    #include <unistd.h>
    #include <sched.h>
    #include <sys/prctl.h>
    #include <sys/syscall.h>

    #ifndef PR_GET_TID_ADDRESS
    #define PR_GET_TID_ADDRESS 40
    #endif
    #ifndef SYS_close_range
    #define SYS_close_range 436
    #endif

    // The address of libc's cached thread id, or NULL when that cannot be proven.
    static int *ftray_cached_tid(void) {
        int *address = NULL;
        if (prctl(PR_GET_TID_ADDRESS, (unsigned long)&address, 0, 0, 0) != 0 || address == NULL)
            return NULL;
        return *address == (int)syscall(SYS_gettid) ? address : NULL;
    }

    static long ftray_clone_sibling(void) {
        int *tid = ftray_cached_tid();
        void *robust = NULL;
        size_t robust_size = 0;
        unsigned long flags = CLONE_PARENT | SIGCHLD;
        if (tid != NULL)
            flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
        if (syscall(SYS_get_robust_list, 0, &robust, &robust_size) != 0)
            robust = NULL;
    #if defined(__x86_64__) || defined(__riscv)
        long pid = syscall(SYS_clone, flags, NULL, NULL, tid, NULL);
    #elif defined(__aarch64__) || defined(__arm__) || defined(__powerpc__) || defined(__i386__) || defined(__mips__)
        long pid = syscall(SYS_clone, flags, NULL, NULL, NULL, tid);
    #else
    #error "the argument order of clone is not known for this architecture"
    #endif
        if (pid == 0 && robust != NULL)
            syscall(SYS_set_robust_list, robust, robust_size);
        return pid;
    }

    static int ftray_close_range(unsigned first, unsigned last) {
        return (int)syscall(SYS_close_range, first, last, 0);
    }

    // -1 when /proc cannot be read.
    static int ftray_thread_count(void) {
        char line[256];
        int count = -1;
        FILE *status = fopen("/proc/self/status", "re");
        if (status == NULL)
            return -1;
        while (fgets(line, sizeof line, status) != NULL)
            if (sscanf(line, "Threads: %d", &count) == 1)
                break;
        fclose(status);
        return count;
    }
    """
    int PR_SET_PDEATHSIG
    int PR_GET_PDEATHSIG
    int PR_SET_CHILD_SUBREAPER
    int PR_GET_CHILD_SUBREAPER
    int PR_SET_NAME
    int prctl(int option, unsigned long arg2, unsigned long arg3, unsigned long arg4, unsigned long arg5) nogil
    int *ftray_cached_tid() nogil
    long ftray_clone_sibling() nogil
    int ftray_close_range(unsigned first, unsigned last) nogil
    int ftray_thread_count() nogil


def fork_sibling():
    """Fork a child that belongs to this process's parent.

    Returns
    -------
    int
        0 in the child, the child's process id in the caller.

    Raises
    ------
    RuntimeError
        When this process has more than one thread.
    OSError
        When the system refuses the clone (EAGAIN, ENOMEM).
    """
    cdef long pid
    cdef int saved
    cdef int threads = ftray_thread_count()
    if threads > 1:
        raise RuntimeError(
            f"fork_sibling() needs a single-threaded process, this one has {threads} threads: "
            "their locks would stay locked for ever in the child"
        )
    PyOS_BeforeFork()
    pid = ftray_clone_sibling()
    if pid == 0:
        PyOS_AfterFork_Child()
        return 0
    saved = errno
    PyOS_AfterFork_Parent()
    if pid < 0:
        (<int *>&errno)[0] = saved
        PyErr_SetFromErrno(OSError)
    return pid


def tid_cache_known():
    """Whether ``fork_sibling`` can correct libc's cached thread id here (see the module's text)."""
    return ftray_cached_tid() != NULL


cdef int set_parent_death_signal(int signum) except -1:
    if prctl(PR_SET_PDEATHSIG, <unsigned long>signum, 0, 0, 0) != 0:
        PyErr_SetFromErrno(OSError)
    return 0


def set_pdeathsig(int signum):
    """Have the kernel send ``signum`` to this process when its parent thread ends (0 turns it off).

    The parent may already be gone: compare ``os.getppid()`` with the expected parent *after* this call.
    """
    set_parent_death_signal(signum)


def get_pdeathsig():
    """Return the parent-death signal of this process, 0 when none is set."""
    cdef int signum = 0
    if prctl(PR_GET_PDEATHSIG, <unsigned long>&signum, 0, 0, 0) != 0:
        PyErr_SetFromErrno(OSError)
    return signum


def set_child_subreaper(bint enabled):
    """Become (or stop being) the parent of orphaned descendants."""
    if prctl(PR_SET_CHILD_SUBREAPER, <unsigned long>enabled, 0, 0, 0) != 0:
        PyErr_SetFromErrno(OSError)


def is_child_subreaper():
    """Whether orphaned descendants become children of this process."""
    cdef int enabled = 0
    if prctl(PR_GET_CHILD_SUBREAPER, <unsigned long>&enabled, 0, 0, 0) != 0:
        PyErr_SetFromErrno(OSError)
    return enabled != 0


def set_name(str name):
    """Set the name that ``ps`` and ``top`` show for this thread; the kernel keeps its first 15 bytes."""
    cdef bytes data = name.encode()
    cdef char *text = data
    if prctl(PR_SET_NAME, <unsigned long>text, 0, 0, 0) != 0:
        PyErr_SetFromErrno(OSError)


def close_range(int first, unsigned int last=0xFFFFFFFF):
    """Close every descriptor from ``first`` to ``last``, both included.

    Descriptors that are not open are no error.  Falls back to ``/proc/self/fd`` on kernels before 5.9.
    """
    if first < 0:
        raise ValueError(f"close_range() needs a descriptor >= 0, got {first}")
    if ftray_close_range(<unsigned>first, last) == 0:
        return
    import os

    for name in os.listdir("/proc/self/fd"):
        if first <= int(name) <= last:
            try:
                os.close(int(name))
            except OSError:
                continue  # the descriptor of the listing itself


def thread_count():
    """Return the number of threads of this process as the kernel counts them.

    Raises
    ------
    OSError
        When ``/proc/self/status`` cannot be read.
    """
    cdef int count = ftray_thread_count()
    if count < 0:
        raise OSError("cannot read the number of threads from /proc/self/status; is /proc mounted?")
    return count
