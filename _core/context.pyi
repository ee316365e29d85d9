class CallContext:
    """The context of one call of an async actor, in whose event loop several calls take turns."""
