"""What ``@remote`` makes of a function, where Ray has it."""

from ftray._functions import RemoteFunction

__all__ = ["RemoteFunction"]
