"""The compiled core.

`EXPORTS` names everything that ``ftray/`` and ``checkpoint/`` may use of it; ``tests/unit/test_exports.py``
holds them to it. A plain name is here, for ``_core.name``. ``module.name`` is what only some processes or
moments need: it is imported from its own module, which ``import ftray`` does not have to execute.
"""

from ftray._core.calls import (
    ActorTarget,
    FunctionCaller,
    MethodCaller,
    cancel,
    current_group,
    encode_constructor_args,
    enter_group,
    foreign_actor_ref,
    function_definition,
    method_definition,
    new_actor_ref,
    next_actor_id,
)
from ftray._core.generators import DynamicObjectRefGenerator, ObjectRefGenerator
from ftray._core.guards import guard_of_process as the_guard
from ftray._core.nodeask import ask_node, tell_node
from ftray._core.objects import ObjectRef, get
from ftray._core.puts import put
from ftray._core.segments import segment_stats
from ftray._core.session import (
    attach,
    attached,
    current_context,
    debug_counters,
    detach,
    inbox_close,
    inbox_next,
    lineage_configure,
    set_memory_retries,
    set_root,
)
from ftray._core.waits import wait

__all__ = [
    "ActorTarget",
    "DynamicObjectRefGenerator",
    "FunctionCaller",
    "MethodCaller",
    "ObjectRef",
    "ObjectRefGenerator",
    "ask_node",
    "attach",
    "attached",
    "cancel",
    "current_context",
    "current_group",
    "debug_counters",
    "detach",
    "encode_constructor_args",
    "enter_group",
    "foreign_actor_ref",
    "function_definition",
    "get",
    "inbox_close",
    "inbox_next",
    "lineage_configure",
    "method_definition",
    "new_actor_ref",
    "next_actor_id",
    "put",
    "segment_stats",
    "set_memory_retries",
    "set_root",
    "tell_node",
    "the_guard",
    "wait",
]

EXPORTS = (
    *__all__,
    "answers.decode_outcome",
    "answers.encode_outcome",
    "callargs.deserialize_args",
    "context.HeadContext",
    "callargs.serialize_args",
    "eventfold.EventTable",
    "events.clock_pair",
    "execution.flush",
    "flows.callers_over",
    "gate.Gate",
    "gate.Outcome",
    "gate.Verdict",
    "guards.set_guard",
    "identity.call_id",
    "identity.derive_callee_key",
    "journal.LocalJournal",
    "journal.POINTS",
    "journal.set_fence",
    "ledger.Ledger",
    "pickler.deregister_serializer",
    "pickler.probe",
    "pickler.register_serializer",
    "procs.close_range",
    "procs.fork_sibling",
    "procs.set_child_subreaper",
    "procs.set_name",
    "procs.set_pdeathsig",
    "procs.thread_count",
    "records.CallRecord",
    "records.ReleaseRecord",
    "records.SeenRecord",
    "records.StartRecord",
    "records.ValueRecord",
    "records.decode_head",
    "records.decode_record",
    "records.encode_head",
    "serial.deserialize",
    "serial.serialize",
    "objects.plain_get",
    "waits.plain_wait",
    "worker.Executor",
)
