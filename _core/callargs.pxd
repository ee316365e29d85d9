# Contract of the argument codec: see callargs.pyx for the format. Needs the GIL; may run user code.

from ftray._core.buf cimport Buf
from ftray._core.serial cimport EncodedValue

# Top-level ObjectRefs in args and kwargs are appended to `deps`, refs nested deeper to `refs` (None: not
# captured). kwargs may be None. None: appended to `b`; otherwise the arguments are larger than `limit` and
# are returned to be placed in shared memory, with the nested refs in `.refs`. `deps` is filled in both cases;
# a slot holds the index in `deps`.
cdef EncodedValue encode_args(Buf* b, tuple args, dict kwargs, list deps, list refs, size_t limit)
# -> (args tuple, kwargs dict or None), slots replaced by dep_values[i]. dep_values may be None when there are
# no deps. `base` as in serial.decode_value().
cdef tuple decode_args(const char* p, size_t n, list dep_values, object base)
# Called once, by the module that defines ObjectRef; returns the class registered before (None: none).
cpdef object register_ref_type(object ref_type)
