"""How exactly-once actors on Ray write replies: as on ftray's own engine, and without refs of Ray's."""

from __future__ import annotations

from typing import Any

import ray

from ftray._checkpoint_host import NativeCodec
from ftray._core import pickler
from ftray._ray import refs


class RayCodec(NativeCodec):
    """See `ftray.checkpoint.codec.Codec`."""

    def encode_outcome(
        self, method: str, result: object, error: BaseException | None, returns: int = 1
    ) -> tuple[int, bytes]:
        """See `Codec.encode_outcome`."""
        with refs.not_kept(f"{self._class_name}.{method}"):
            return super().encode_outcome(method, result, error, returns)


def _reduced(ref: Any) -> bytes:
    refs.note(ref)
    raw: bytes = ref.binary()
    return raw


pickler.register_serializer(ray.ObjectRef, serializer=_reduced, deserializer=ray.ObjectRef)
