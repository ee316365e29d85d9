# Contract of the picklers: see pickler.pyx. Everything needs the GIL and may run user code.

cdef class Encoder:
    """File object, buffer collector and reusable state of one pickler; also what one dump produced."""

    cdef list chunks            # bytes objects: the pickle, in order
    cdef list views             # contiguous 1-D memoryviews: the out-of-band buffers, in order
    cdef size_t pickle_len      # bytes in chunks
    cdef object pickler, dump, clear_memo

    cdef int attach_pickler(self) except -1
    cdef void detach_pickler(self) noexcept


# The caller gives the Encoder back with release_encoder() once it took chunks and views (or their content).
# `is_args`: value is an (args, kwargs or None) pair and failures are worded accordingly.
cdef Encoder pickle_value(object value, list refs, bint is_args)
cdef int release_encoder(Encoder encoder) except -1

# The capture is per thread. begin_capture returns what end_capture must be given (the outer capture or None).
cdef object begin_capture(list refs)
cdef void end_capture(object previous) noexcept
# Called by ObjectRef.__reduce__: True when an encode of this thread recorded the ref, False when nobody
# captures (plain pickle.dumps by the user).
cpdef bint note_ref(object ref) except -1
