class Call:
    """A call on its way through this process."""

class Callables:
    """What can be called in this process."""
