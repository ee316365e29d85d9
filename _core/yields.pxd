"""Generators that run in this process: what they yield goes to their callers, one by one."""

from ftray._core.invocation cimport Call, Callables

cdef object run_generator(Call call, object source, Callables callables)
cdef object run_generator_async(Call call, object source, Callables callables)
cdef int resume_generators() except -1

cdef inline bint is_generator(object value):
    return PyGen_CheckExact(value) or PyAsyncGen_CheckExact(value)

cdef extern from "Python.h":
    bint PyGen_CheckExact(object)
    bint PyAsyncGen_CheckExact(object)
