"""Counts an actor's calls towards its next snapshot: what each call of an actor with snapshots pays for having them.

Owns the number that is left. What happens when none are, and which methods count, is the session's
(`checkpoint.session`).
"""


cdef class CallCounter:
    """Counts down.

    Parameters
    ----------
    uncounted : frozenset of str
        Methods that do not count.
    due : callable
        Called with nothing, on the thread of the call, at every call that counts while `left` is not above zero.
    left : int
    """

    def __init__(self, frozenset uncounted not None, due, long long left):
        self.uncounted, self.due, self.left = uncounted, due, left

    def after_call(self, str method not None):
        """A method has ended."""
        self.count(method)

    cdef int count(self, str method) except -1:
        if method is not self.usual:
            if method in self.uncounted:
                return 0
            self.usual = method
        self.left -= 1
        if self.left <= 0:
            self.due()
        return 0
