"""Types for annotations, where Ray has them."""

from ftray._core import ObjectRef

__all__ = ["ObjectRef"]
