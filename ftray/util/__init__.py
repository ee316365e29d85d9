"""Utilities around tasks and actors, under Ray's names."""

from ftray._core.pickler import deregister_serializer, register_serializer

__all__ = ["deregister_serializer", "register_serializer"]
