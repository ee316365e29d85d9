"""Actors on a Ray cluster: making them, their handles and methods.

Owns: the handles. Invariants: a handle has one of Ray's and nothing else that travels; its methods hold Ray's
handle, not this one, so that no cycle keeps an actor alive.
"""

from __future__ import annotations

import inspect
from typing import Any

import ray

from ftray import _options, _own_methods, _signature
from ftray._ids import ActorID
from ftray._ray import client, host_flow, options, shell
from ftray._ray.calls import CALLER, ours, sent
from ftray._ray.host_handle import latest as _sent
from ftray._ray.refs import RayObjectRef, note, unwrapped, wrapped
from ftray.actor import ActorClass, ActorHandle, ActorMethod, _Meta, named_call

_KEPT = "_on_ray"  # where an ActorClass keeps Ray's; not pickled with it
_OURS = (shell.RAY_CALL,)


class RayActorMethod(ActorMethod):
    """A method of an actor on a Ray cluster."""

    def __init__(
        self,
        handle: Any,
        meta: _Meta,
        name: str,
        explicit: dict[str, Any],
        arity: _signature.Arity | None,
        knows_groups: bool,
    ) -> None:
        if knows_groups:
            meta.check_group(name, explicit.get("concurrency_group") or "")
        self._knows_groups = knows_groups
        self._handle = handle
        self._meta = meta
        self._name = name
        self._explicit = explicit
        self._arity = arity
        is_generator = None if arity is None else arity.is_generator
        given = options.of_method(explicit, is_generator)
        self._returns = _options.method_options(explicit, is_generator=is_generator).num_returns
        signatures = client.facts_of(handle).signatures
        own_shell = name == "__ray_call__" and shell.RAY_CALL in signatures
        method = getattr(handle, shell.RAY_CALL if own_shell else name)
        self._send = method.options(**given).remote if given else method.remote
        here = not client.in_use()
        self._once = here and "__ray_checkpoint_note__" in signatures
        self._carries = here and shell.RAY_CALL in signatures
        if explicit.get("call_key"):
            self._send = _keyed(self._send, handle, meta, name, explicit["call_key"])

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method on the actor; returns a ref (or a list, or None)."""
        _signature.check(self._arity, args, kwargs)
        return sent(self._returns, lambda: self._sent(args, kwargs))

    def _sent(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(self._returns, str):
            client.refuse(f"{self._meta.class_name}.{self._name}: a generator of refs")
        given = [unwrapped(a) for a in args]
        named = {key: unwrapped(a) for key, a in kwargs.items()}
        with ours():
            if not self._carries:
                made = wrapped(self._send(*given, **named))
            else:
                with host_flow.handed_on(ray._private.worker.global_worker, self._handle._actor_id) as caller:
                    if caller is not None:
                        named[CALLER] = caller
                    made = wrapped(self._send(*given, **named))
        if self._once:
            self._note(made)
        return made

    def _note(self, made: Any) -> None:
        """Have the ref know which call of an exactly-once actor it is of."""
        head = getattr(_sent, "head", None)
        if head is not None and isinstance(made, RayObjectRef):
            made._call = (self._handle, head, f"{self._meta.class_name}.{self._name}")

    def options(self, **options: Any) -> RayActorMethod:
        """Return the same method with other options."""
        merged = _options.merge(self._explicit, _options.check("method", options))
        return RayActorMethod(self._handle, self._meta, self._name, merged, self._arity, self._knows_groups)


def _keyed(send: Any, handle: Any, meta: _Meta, method: str, call_key: str) -> Any:
    """Return what makes a call that is known by the user's key for it; ValueError if the actor knows none."""
    meta.exactly_once = "__ray_checkpoint_note__" in client.facts_of(handle).signatures
    named_call(meta, method, call_key)
    client.refuse(f"call_key={call_key!r}")

    def keyed(*args: Any, **kwargs: Any) -> Any:
        import importlib

        with importlib.import_module("ftray._ray.host_handle").call_key(call_key):
            return send(*args, **kwargs)

    return keyed


class RayActorHandle(ActorHandle[Any]):
    """A handle of an actor on a Ray cluster."""

    def __init__(self, handle: Any, groups: tuple[str, ...] | None = None) -> None:
        self._handle = handle
        self._groups = groups  # the actor's concurrency groups; None: found by its name, Ray does not tell

    def __getattr__(self, name: str) -> Any:
        if name == "_meta":
            found: Any = _meta_of(self.__dict__["_handle"], self.__dict__["_groups"] or ())
        else:
            meta = self._meta
            known = meta.methods.get(name)
            explicit, arity = _own_methods.find(meta, name) if known is None else known
            knows_groups = self.__dict__["_groups"] is not None
            found = RayActorMethod(self.__dict__["_handle"], meta, name, explicit, arity, knows_groups)
        self.__dict__[name] = found
        return found

    @property
    def _actor_id(self) -> ActorID:
        return ActorID(self._handle._actor_id.binary())

    def __reduce__(self) -> tuple[Any, ...]:
        note(self)
        return RayActorHandle, (self._handle, self._groups)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RayActorHandle) and bool(self._handle._actor_id == other._handle._actor_id)

    def __hash__(self) -> int:
        return hash(self._handle._actor_id)

    def __repr__(self) -> str:
        return f"Actor({self._meta.class_name}, {self._actor_id.hex()})"


def _meta_of(handle: Any, groups: tuple[str, ...]) -> _Meta:
    """Read from Ray's handle what ours have to know; options of methods stay with Ray's."""
    methods: dict[str, tuple[dict[str, Any], _signature.Arity | None]] = {}
    facts = client.facts_of(handle)
    for name, parameters in facts.signatures.items():
        if name in _OURS or (name.startswith("__") and name != "__call__"):
            continue
        number = facts.returns.get(name)
        declared = {} if number is None else {"num_returns": number}  # how many refs a call gives
        methods[name] = (declared, _arity(name, parameters, bool(facts.generators.get(name))))
    return _Meta(facts.class_name, methods, 0, -1, groups)


def _arity(name: str, parameters: list[inspect.Parameter], is_generator: bool) -> _signature.Arity:
    kinds = inspect.Parameter
    positional = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    keyword_only = [p for p in parameters if p.kind is kinds.KEYWORD_ONLY and p.name != CALLER]
    return _signature.Arity(
        name,
        tuple(p.name for p in positional),
        sum(p.kind is kinds.POSITIONAL_ONLY for p in positional),
        sum(p.default is not kinds.empty for p in positional),
        tuple(p.name for p in keyword_only),
        tuple(p.name for p in keyword_only if p.default is kinds.empty),
        any(p.kind is kinds.VAR_POSITIONAL for p in parameters),
        any(p.kind is kinds.VAR_KEYWORD for p in parameters),
        is_generator,
    )


def create(
    actor_class: ActorClass[Any], meta: _Meta, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> RayActorHandle:
    """Make an actor."""
    made: Any = actor_class.__dict__.get(_KEPT)
    if made is None:
        made = actor_class.__dict__[_KEPT] = _ray_class(actor_class, meta)
    given = [unwrapped(a) for a in args]
    named = {key: unwrapped(a) for key, a in kwargs.items()}
    with ours():
        return RayActorHandle(made.remote(*given, **named), meta.groups)


def _ray_class(actor_class: ActorClass[Any], meta: _Meta) -> Any:
    cls, explicit = actor_class._cls, options.of_actor(actor_class._explicit)
    if not hasattr(cls, "__checkpoint_options__"):  # of the others, ray.remote makes checkpointed actors
        cls = shell.shell_of(cls, meta.methods)
    return ray.remote(**explicit)(cls) if explicit else ray.remote(cls)


def find(name: str, namespace: str | None) -> RayActorHandle:
    """Return a handle of a named actor; ValueError when there is none."""
    try:
        return RayActorHandle(ray.get_actor(name, namespace))
    except ValueError:
        where = "this namespace" if namespace is None else f"namespace {namespace!r}"
        text = f"there is no living actor named {name!r} in {where}"
    raise ValueError(text)
