# Process primitives for other extensions; see procs.pyx.

cdef int set_parent_death_signal(int signum) except -1
