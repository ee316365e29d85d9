# Contract of the value codec: see serial.pyx for the format. Arguments: callargs.pxd; refs in values:
# pickler.pxd. Everything here needs the GIL unless marked nogil and may run user code (pickling hooks), so it
# is never called under a core lock. Append-style functions leave the Buf as it was when they raise or return
# an EncodedValue.

from libcpp.vector cimport vector

from ftray._core.buf cimport Buf
from ftray._core.pickler cimport Encoder


cdef enum:
    TAG_NONE = 0
    TAG_TRUE = 1
    TAG_FALSE = 2
    TAG_INT64 = 3
    TAG_FLOAT64 = 4
    TAG_STR = 5
    TAG_BYTES = 6
    TAG_PICKLE = 7          # no out-of-band buffers
    TAG_PICKLE_OOB = 8      # with out-of-band buffers
    TAG_ERROR = 9           # payload of ftray._task_errors
    TAG_SLOT = 15           # only in the fast argument form: a top-level ObjectRef
    ARGS_FAST = 70          # 'F', first byte of the fast argument form

cdef enum:
    INLINE_LIMIT = 102400   # results up to this many bytes travel inline (100 KB)


cdef struct Part:
    const char* src
    size_t len
    size_t offset           # of this part in the encoded value


# A value that was pickled but not copied yet. It keeps what it points to alive. Place it at a 64-byte aligned
# address.
cdef class EncodedValue:
    cdef readonly size_t size           # bytes that write_to() fills
    cdef readonly list refs             # ObjectRefs found inside the value (may be empty)
    cdef object keep                    # owners of what parts point to
    cdef vector[Part] parts             # in order of offset; gaps between parts are padding
    cdef void write_to(self, char* dst) noexcept            # releases the GIL while it copies more than 1 MB
    cdef void copy_parts(self, char* dst) noexcept nogil


# --- values ---------------------------------------------------------------------------------------
# 1: appended; 0: not a scalar, or str/bytes longer than `limit` (nothing appended). Never runs user code.
cdef int encode_small(Buf* b, object value, size_t limit) except -1
# None: appended to `b`, refs inside the value appended to `refs`. Otherwise the encoded value is larger than
# `limit` and is returned to be placed in shared memory; its refs are in `.refs`. `refs` None: refs inside are
# not captured.
cdef EncodedValue encode_into(Buf* b, object value, size_t limit, list refs)
# Always an EncodedValue.
cdef EncodedValue encode(object value)
# `payload` comes from ftray._task_errors.make_task_error()/dump_error().
cdef int encode_error(Buf* b, bytes payload) except -1
# `base` None: everything is copied. Otherwise `base` keeps p[0:n] mapped and unchanged; each out-of-band
# buffer becomes a read-only view that holds `base` until that view dies. An error value is raised. p[0:n]
# must stay valid during the call.
cdef object decode_value(const char* p, size_t n, object base)

cdef inline bint is_error_value(const char* p, size_t n) noexcept nogil:
    return n > 0 and p[0] == TAG_ERROR


# --- shared with callargs -------------------------------------------------------------------------
# As encode_small(); `framed` puts a u32 length after the tag of str and bytes.
cdef int put_scalar(Buf* b, object value, size_t limit, bint framed) except -1
# Append what the encoder collected if it is within the limit, else return it; releases the encoder.
cdef EncodedValue place(Buf* b, Encoder encoder, size_t limit, list refs, Py_ssize_t n_refs)
cdef object decode_text(const char* p, size_t n)
cdef object decode_word(char tag, const char* p)
cdef object corrupt(str what, size_t n)         # an exception to raise
cdef bytes joined(Buf* b, EncodedValue rest)    # rest if there is one, else the content of b
