"""What stands between an exactly-once actor's methods and everything outside (guards.pyx)."""

cdef object the_guard()
