"""What an actor class with checkpoints is for Ray."""

from __future__ import annotations

import importlib.util

from ftray.exceptions import NotSupportedError


def class_for_ray(cls: type) -> type:
    """Return the class to give to Ray: the user's own, of which ``ray.remote`` makes a checkpointed actor.

    Raises
    ------
    NotSupportedError
        This version cannot keep checkpoints of actors on Ray.
    """
    if importlib.util.find_spec("ftray._ray.host_class") is None:
        raise NotSupportedError(
            f"{cls.__name__} is Checkpointable: checkpoints of actors on the engine 'ray' are not supported"
            " by this version of ftray. Run it on the native engine, or derive the class from object"
        )
    return cls
