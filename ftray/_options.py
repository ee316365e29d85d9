"""Options of ``@remote``, ``.options()`` and ``@method``.

Owns: which options exist for tasks, actors and methods, what each accepts, their defaults, and which of them
this version does not support yet (`NOT_SUPPORTED_YET`, the only place: delete a line to let its values
through). Invariants: what is in a `TaskOptions`, `ActorOptions` or `MethodOptions` is complete and valid; no
option is accepted and ignored.  Leaves to others: acting on them.

Callers keep the *explicit* options (a checked dict) beside the record made of them, so that ``.options()``
can override: ``task_options(merge(explicit, check("task", given)))``.  An explicit None means "the default";
only ``placement_group=None`` says "in none".
"""

from __future__ import annotations

import math
import operator
import os

from ftray._node.record import Record
from ftray.exceptions import NotSupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

DEFAULT_MAX_RETRIES = 3
MAX_NUM_RETURNS = 65535
MOST = 2**31 - 1  # of what is counted: the core has 32 bits for it
RESOURCE_QUANTUM = 0.0001  # smallest amount of a resource, as Ray has it
_MOST_NAME_BYTES = 65_535  # of a resource's name
_MAX_RETRIES_VARIABLES = ("FTRAY_TASK_MAX_RETRIES", "RAY_TASK_MAX_RETRIES")


class TaskOptions(Record):
    """All options of a task.

    Attributes
    ----------
    generator_backpressure
        Items that a streaming task may be ahead of its consumer; 0: no limit.
    resources
        Amount by name: ``CPU``, ``GPU``, ``memory`` (bytes) and custom ones; no zeros.
    max_retries
        -1: without end.
    retry_exceptions
        True: all; a tuple: these classes.
    max_calls
        0: no limit, the default without GPUs; with GPUs that is 1.
    """

    name: str
    num_returns: int | str
    generator_backpressure: int
    resources: dict[str, float]
    max_retries: int
    retry_exceptions: bool | tuple[type[Exception], ...]
    max_calls: int
    scheduling_strategy: Any
    runtime_env: dict[str, Any] | None
    enable_task_events: bool


class ActorOptions(Record):
    """All options of an actor.

    Attributes
    ----------
    resources
        Held as long as the actor lives.
    placement_resources
        Needed on the node to place it: a CPU more than `resources` when ``num_cpus`` was not given.
    max_concurrency
        None: 1, or 1000 for an actor with async methods.
    max_pending_calls
        -1: no limit.
    allow_out_of_order_execution
        None: if calls run beside each other.
    """

    name: str
    namespace: str
    get_if_exists: bool
    lifetime: str | None
    resources: dict[str, float]
    placement_resources: dict[str, float]
    max_restarts: int
    max_task_retries: int
    max_concurrency: int | None
    max_pending_calls: int
    concurrency_groups: dict[str, int]
    allow_out_of_order_execution: bool | None
    scheduling_strategy: Any
    runtime_env: dict[str, Any] | None
    enable_task_events: bool


class MethodOptions(Record):
    """All options of an actor method.

    Attributes
    ----------
    max_task_retries
        None: the actor's.
    """

    name: str
    num_returns: int | str
    generator_backpressure: int
    max_task_retries: int | None
    retry_exceptions: bool | tuple[type[Exception], ...]
    concurrency_group: str
    enable_task_events: bool
    call_key: str


# --- checks of one value: (option, value) -> normalised value -------------------------------------


def _wrong(option: str, value: Any, allowed: str) -> str:
    text = repr(value)
    if len(text) > 200:
        text = f"{text[:200]}..."
    return f"{option}={text} ({type(value).__name__}) is not valid: {allowed}"


def _integer(lowest: int, meaning: str, highest: int = MOST) -> Callable[[str, Any], int]:
    def check(option: str, value: Any) -> int:
        allowed = f"it must be an integer >= {lowest}{meaning}"
        if isinstance(value, bool):
            raise TypeError(_wrong(option, value, allowed))
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(_wrong(option, value, allowed)) from None
        if number < lowest:
            raise ValueError(_wrong(option, value, allowed))
        if number > highest:
            raise ValueError(_wrong(option, value, f"{allowed}, and at most {highest}"))
        return number

    return check


def _quantity(option: str, value: Any) -> float:
    """Check an amount of some resource."""
    allowed = f"it must be a finite number >= 0, in steps of {RESOURCE_QUANTUM}"
    if isinstance(value, bool | str | bytes):
        raise TypeError(_wrong(option, value, allowed))
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(_wrong(option, value, allowed)) from None
    except OverflowError:
        raise ValueError(_wrong(option, value, allowed)) from None
    if not math.isfinite(number) or number < 0 or 0 < number < RESOURCE_QUANTUM:
        raise ValueError(_wrong(option, value, allowed))
    return round(number, 4)


def amount(option: str, value: Any) -> float:
    """Check and normalise an amount of some resource; see `check` for what it raises."""
    return _quantity(option, value)


def _gpus(option: str, value: Any) -> float:
    number = _quantity(option, value)
    if number > 1 and not number.is_integer():
        raise ValueError(
            _wrong(option, value, "it must be whole when it is above 1 (a fraction shares one GPU)")
        )
    return number


def _resources(option: str, value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        raise TypeError(
            _wrong(option, value, "it must be a dict of resource name to amount, e.g. {'disk': 2}")
        )
    instead = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory", "object_store_memory": "memory"}
    amounts = {}
    for name, amount in value.items():
        if not isinstance(name, str) or not name:
            raise TypeError(_wrong(option, value, f"the name {name!r} must be a non-empty string"))
        if name in instead:
            raise ValueError(_wrong(option, value, f"for {name!r} use the option {instead[name]}="))
        if len(_text(f"a name in {option}", name).encode()) > _MOST_NAME_BYTES:
            raise ValueError(_wrong(option, value, f"a name has at most {_MOST_NAME_BYTES} bytes"))
        amounts[name] = _quantity(f"{option}[{name!r}]", amount)
    return amounts


def _num_returns(option: str, value: Any) -> int | str:
    if isinstance(value, str):
        if value in ("dynamic", "streaming"):
            return value
        raise ValueError(_wrong(option, value, "it must be an integer >= 0, 'dynamic' or 'streaming'"))
    number = _integer(0, ", 'dynamic' or 'streaming'")(option, value)
    if number > MAX_NUM_RETURNS:
        raise ValueError(
            _wrong(option, value, f"it must be at most {MAX_NUM_RETURNS}; 'streaming' has no such limit")
        )
    return number


def _backpressure(option: str, value: Any) -> int:
    number = _integer(-1, " (-1: no limit)")(option, value)
    if number == 0 or number >= 2**31 - 2:
        raise ValueError(_wrong(option, value, f"it must be from 1 to {2**31 - 3}, or -1 for no limit"))
    return max(number, 0)


def _retry_exceptions(option: str, value: Any) -> bool | tuple[type[Exception], ...]:
    allowed = "it must be True, False or a list of exception classes"
    if isinstance(value, bool):
        return value
    if not isinstance(value, list | tuple):
        raise TypeError(_wrong(option, value, allowed))
    for item in value:
        if not isinstance(item, type) or not issubclass(item, Exception):
            raise TypeError(_wrong(option, value, f"{allowed}; {item!r} is none"))
    return tuple(value)


def _boolean(option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(_wrong(option, value, "it must be True or False"))
    return value


def _text(option: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(_wrong(option, value, "it must be a string"))
    if not value:
        raise ValueError(_wrong(option, value, "it must not be empty"))
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(_wrong(option, value, f"it must be text that UTF-8 can express: {error}")) from None
    return value


def _lifetime(option: str, value: Any) -> str | None:
    if value not in ("detached", "non_detached"):
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(_wrong(option, value, "it must be None, 'non_detached' or 'detached'"))
    return "detached" if value == "detached" else None


def _max_pending_calls(option: str, value: Any) -> int:
    number = _integer(-1, " (-1: no limit)")(option, value)
    if number == 0:
        raise ValueError(_wrong(option, value, "it must be above 0, or -1 for no limit"))
    return number


def _concurrency_groups(option: str, value: Any) -> dict[str, int]:
    if not isinstance(value, dict):
        raise TypeError(_wrong(option, value, "it must be a dict of group name to number of threads"))
    return {
        _text(f"{option} name", name): _integer(1, "")(f"{option}[{name!r}]", n) for name, n in value.items()
    }


def _scheduling_strategy(option: str, value: Any) -> Any:
    allowed = "it must be 'DEFAULT', 'SPREAD' or an object of ftray.util.scheduling_strategies"
    if isinstance(value, str):
        if value not in ("DEFAULT", "SPREAD"):
            raise ValueError(_wrong(option, value, allowed))
        return value
    from ftray.util import scheduling_strategies as known

    if not isinstance(
        value,
        known.NodeAffinitySchedulingStrategy
        | known.PlacementGroupSchedulingStrategy
        | known.NodeLabelSchedulingStrategy,
    ):
        raise TypeError(_wrong(option, value, allowed))
    return value


def _placement_group(option: str, value: Any) -> Any:
    """Check the older way to name a group; False: none, even where tasks that capture run."""
    if value is None:
        return False
    from ftray.util.placement_group import PlacementGroup

    if value != "default" and not isinstance(value, PlacementGroup):
        raise TypeError(_wrong(option, value, "it must be a PlacementGroup, None or 'default'"))
    return value


def _runtime_env(option: str, value: Any) -> dict[str, Any]:
    from ftray import _runtime_env

    return _runtime_env.check(value)


def _label_selector(option: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(
        isinstance(item, str) for pair in value.items() for item in pair
    ):
        raise TypeError(_wrong(option, value, "it must be a dict of strings"))
    return dict(value)


# For arguments of functions, which are checked and worded as options are.
wrong, integer, boolean, text = _wrong, _integer, _boolean, _text


# --- tables ---------------------------------------------------------------------------------------

_retries = _integer(-1, " (-1: without end, 0: never)")

_PLACEMENT: dict[str, Callable[[str, Any], Any]] = {
    "num_cpus": _quantity,
    "num_gpus": _gpus,
    "memory": _quantity,
    "resources": _resources,
    "accelerator_type": _text,
    "object_store_memory": _quantity,
    "scheduling_strategy": _scheduling_strategy,
    "label_selector": _label_selector,
    "placement_group": _placement_group,
    "placement_group_bundle_index": _integer(-1, ""),
    "placement_group_capture_child_tasks": _boolean,
    "runtime_env": _runtime_env,
    "enable_task_events": _boolean,
    "name": _text,
}
_CHECKS: dict[str, dict[str, Callable[[str, Any], Any]]] = {
    "task": {
        **_PLACEMENT,
        "num_returns": _num_returns,
        "_generator_backpressure_num_objects": _backpressure,
        "max_retries": _retries,
        "retry_exceptions": _retry_exceptions,
        "max_calls": _integer(0, " (0: no limit)"),
    },
    "actor": {
        **_PLACEMENT,
        "namespace": _text,
        "get_if_exists": _boolean,
        "lifetime": _lifetime,
        "max_restarts": _retries,
        "max_task_retries": _retries,
        "max_concurrency": _integer(1, ""),
        "max_pending_calls": _max_pending_calls,
        "concurrency_groups": _concurrency_groups,
        "allow_out_of_order_execution": _boolean,
    },
    "method": {
        "name": _text,
        "num_returns": _num_returns,
        "_generator_backpressure_num_objects": _backpressure,
        "max_task_retries": _retries,
        "retry_exceptions": _retry_exceptions,
        "concurrency_group": _text,
        "enable_task_events": _boolean,
        "call_key": _text,
    },
}
_KIND_NAMES = {"task": "a remote function", "actor": "an actor", "method": "an actor method"}


# (kinds, option, which checked values need what is missing, what that is)
NOT_SUPPORTED_YET: tuple[tuple[str, str, Callable[[Any], bool], str], ...] = (
    ("task actor", "label_selector", bool, "scheduling by node labels"),
    ("task actor", "object_store_memory", bool, "a share of the object store per task or actor"),
)


# --- checking and merging -------------------------------------------------------------------------


def check(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options of one ``@remote(...)``, ``.options(...)`` or ``@method(...)``.

    Parameters
    ----------
    kind
        ``task``, ``actor`` or ``method``.
    given
        As the user wrote them.

    Returns
    -------
    dict
        Normalised values; None stays None.

    Raises
    ------
    ValueError
        An option that does not exist, or a value out of range.
    TypeError
        A value of the wrong type.
    NotSupportedError
        A valid value for something this version cannot do.
    """
    checks = _CHECKS[kind]
    checked = {}
    for option, value in given.items():
        if option not in checks:
            raise ValueError(_unknown(kind, option))
        none = value is None and option != "placement_group"
        checked[option] = None if none else checks[option](option, value)
    for kinds, option, needs, feature in NOT_SUPPORTED_YET:
        value = checked.get(option)
        if kind in kinds.split() and value is not None and needs(value):
            raise NotSupportedError(
                f"{option}={given[option]!r} is not supported by this version of ftray: {feature}. "
                "Leave the option out."
            )
    return checked


def _unknown(kind: str, option: str) -> str:
    import difflib

    checks = _CHECKS[kind]
    text = f"{option!r} is no option of {_KIND_NAMES[kind]}"
    others = [_KIND_NAMES[other] for other in _CHECKS if other != kind and option in _CHECKS[other]]
    near = difflib.get_close_matches(option, list(checks), n=1)
    if others:
        text += f" (it is one of {' and of '.join(others)})"
    text += f"; did you mean {near[0]!r}?" if near else "."
    return f"{text} Allowed: {', '.join(sorted(checks))}."


def merge(explicit: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Override checked options by others; None puts the default back."""
    return {name: value for name, value in {**explicit, **override}.items() if value is not None}


def _amounts(explicit: Mapping[str, Any], default_cpus: float) -> dict[str, float]:
    """Merge what names resources into one dict without zeros."""
    amounts = dict(explicit.get("resources") or {})
    cpus = explicit.get("num_cpus")
    amounts["CPU"] = default_cpus if cpus is None else cpus
    amounts["GPU"] = explicit.get("num_gpus") or 0.0
    amounts["memory"] = explicit.get("memory") or 0.0
    accelerator = explicit.get("accelerator_type")
    if accelerator:
        amounts[f"accelerator_type:{accelerator}"] = 0.001
    return {name: amount for name, amount in amounts.items() if amount}


def default_max_retries(environ: Mapping[str, str] | None = None) -> int:
    """Read the default of ``max_retries`` from the environment, 3 when it says nothing."""
    environ = os.environ if environ is None else environ
    for variable in _MAX_RETRIES_VARIABLES:
        text = environ.get(variable)
        if text is None:
            continue
        try:
            return _retries(variable, int(text))
        except ValueError:
            raise ValueError(
                f"the environment variable {variable}={text!r} is not valid: it must be an integer >= -1 "
                "(-1: without end, 0: never)"
            ) from None
    return DEFAULT_MAX_RETRIES


def _get(explicit: Mapping[str, Any], option: str, default: Any) -> Any:
    value = explicit.get(option)
    return default if value is None else value


def _returns(explicit: Mapping[str, Any], is_generator: bool | None) -> dict[str, Any]:
    """Complete what a call returns; `is_generator` None: unknown. ValueError for what makes no sense."""
    number = _get(explicit, "num_returns", "streaming" if is_generator else 1)
    if is_generator is False and isinstance(number, str):
        raise ValueError(
            f"num_returns={number!r} is for generator functions (those that use 'yield'), and this is none"
        )
    ahead = _get(explicit, "_generator_backpressure_num_objects", 0)
    if ahead and number != "streaming":
        raise ValueError(
            f"_generator_backpressure_num_objects={ahead} needs num_returns='streaming', not {number!r}"
        )
    return {"num_returns": number, "generator_backpressure": ahead}


def returns_code(options: TaskOptions | MethodOptions) -> int:
    """Say in one integer what a call returns, as the core takes it (`FunctionCaller`)."""
    if options.num_returns == "dynamic":
        return -1
    if options.num_returns == "streaming":
        return -2 - options.generator_backpressure
    return int(options.num_returns)


def task_options(explicit: Mapping[str, Any], *, is_generator: bool | None = None) -> TaskOptions:
    """Complete checked options of a task.

    Parameters
    ----------
    explicit
        From `check` and `merge`.
    is_generator
        The function yields: its default is ``num_returns="streaming"``.
    """
    _one_strategy(explicit)
    retries = explicit.get("max_retries")
    return TaskOptions(
        name=_get(explicit, "name", ""),
        **_returns(explicit, is_generator),
        resources=_amounts(explicit, 1.0),
        max_retries=default_max_retries() if retries is None else retries,
        retry_exceptions=_get(explicit, "retry_exceptions", False),
        # As in Ray, a worker that has used a GPU ends with the task, so that the memory is free again.
        max_calls=_get(explicit, "max_calls", 1 if explicit.get("num_gpus") else 0),
        scheduling_strategy=_get(explicit, "scheduling_strategy", "DEFAULT"),
        runtime_env=explicit.get("runtime_env") or None,
        enable_task_events=_get(explicit, "enable_task_events", True),
    )


def _one_strategy(explicit: Mapping[str, Any]) -> None:
    group = explicit.get("placement_group", "default")
    if explicit.get("scheduling_strategy") is not None and group and group != "default":
        raise ValueError("placement_group= and scheduling_strategy= exclude each other; use the latter")


def actor_options(explicit: Mapping[str, Any]) -> ActorOptions:
    """Complete checked options of an actor; ValueError for combinations that make no sense."""
    if explicit.get("get_if_exists") and not explicit.get("name"):
        raise ValueError("get_if_exists=True needs name=: an actor is looked up by its name")
    _one_strategy(explicit)
    return ActorOptions(
        name=_get(explicit, "name", ""),
        namespace=_get(explicit, "namespace", ""),
        get_if_exists=_get(explicit, "get_if_exists", False),
        lifetime=explicit.get("lifetime"),
        resources=_amounts(explicit, 0.0),
        placement_resources=_amounts(explicit, 1.0),
        max_restarts=_get(explicit, "max_restarts", 0),
        max_task_retries=_get(explicit, "max_task_retries", 0),
        max_concurrency=explicit.get("max_concurrency"),
        max_pending_calls=_get(explicit, "max_pending_calls", -1),
        concurrency_groups=_get(explicit, "concurrency_groups", {}),
        allow_out_of_order_execution=explicit.get("allow_out_of_order_execution"),
        scheduling_strategy=_get(explicit, "scheduling_strategy", "DEFAULT"),
        runtime_env=explicit.get("runtime_env") or None,
        enable_task_events=_get(explicit, "enable_task_events", True),
    )


def method_options(explicit: Mapping[str, Any], *, is_generator: bool | None = None) -> MethodOptions:
    """Complete checked options of an actor method; `is_generator` as for `task_options`."""
    return MethodOptions(
        name=_get(explicit, "name", ""),
        **_returns(explicit, is_generator),
        max_task_retries=explicit.get("max_task_retries"),
        retry_exceptions=_get(explicit, "retry_exceptions", False),
        concurrency_group=_get(explicit, "concurrency_group", ""),
        enable_task_events=_get(explicit, "enable_task_events", True),
        call_key=_get(explicit, "call_key", ""),
    )
