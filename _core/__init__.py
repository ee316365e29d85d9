"""The compiled core. `EXPORTS` names everything that ``ftray/`` and ``checkpoint/`` may use of it; a test holds it."""

from ftray._core.calls import (
    ActorTarget,
    FunctionCaller,
    MethodCaller,
    cancel,
    encode_constructor_args,
    foreign_actor_ref,
    function_definition,
    method_definition,
    new_actor_ref,
    next_actor_id,
)
from ftray._core.objects import ObjectRef, ask_node, get, put, tell_node, wait
from ftray._core.runtime import (
    attach,
    attached,
    current_context,
    debug_counters,
    detach,
    inbox_close,
    inbox_next,
)
from ftray._core.segments import segment_stats

EXPORTS = (
    "ActorTarget",
    "FunctionCaller",
    "MethodCaller",
    "ObjectRef",
    "ask_node",
    "attach",
    "attached",
    "cancel",
    "current_context",
    "debug_counters",
    "detach",
    "encode_constructor_args",
    "foreign_actor_ref",
    "function_definition",
    "get",
    "inbox_close",
    "inbox_next",
    "method_definition",
    "new_actor_ref",
    "next_actor_id",
    "put",
    "segment_stats",
    "tell_node",
    "wait",
)

__all__ = list(EXPORTS)
