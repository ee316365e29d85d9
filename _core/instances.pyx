"""Reads an instance's attributes without making its ``__dict__``, where the interpreter can do without one.

Owns nothing. What the attributes of a `Checkpointable` object are for is `checkpoint.state`'s.
"""
# distutils: language = c++

cdef extern from "inlinevalues.hpp" namespace "fti":
    int add_inline_values(object instance, object into, object dict_name) except -1


def inline_attributes(instance):
    """The attributes that an instance has outside of slots, if the interpreter keeps them without a dict.

    Parameters
    ----------
    instance : object

    Returns
    -------
    dict or None
        A new dict, in the order in which they were set. None: ask for ``__dict__``, which exists already or costs nothing more (all
        versions of Python but 3.11 are served so), or is what the class says.
    """
    cdef dict found = {}
    return found if add_inline_values(instance, found, "__dict__") else None
