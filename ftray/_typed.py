"""What type checkers see of remote functions, actors and their methods; nothing of it is there at run time.

A call with plain values is checked against the function's own signature. A call that has an ObjectRef among
its positional arguments is not (there is no way to write "each parameter, or a ref to it"), but its result
is known.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, overload

    from typing_extensions import TypeVar

    from ftray._core import ObjectRef
    from ftray._functions import RemoteFunction
    from ftray.actor import ActorClass

    P = ParamSpec("P")
    R = TypeVar("R", default=Any)
    T = TypeVar("T", default=Any)
    Local = TypeVar("Local", default=Any)

    class Call(Generic[P, R]):
        """``.remote`` of something with parameters P and result R."""

        @overload
        def remote(self, *args: P.args, **kwargs: P.kwargs) -> ObjectRef[R]: ...
        @overload
        def remote(self, a: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> ObjectRef[R]: ...
        @overload
        def remote(self, a: Any, b: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> ObjectRef[R]: ...
        @overload
        def remote(self, a: Any, b: Any, c: ObjectRef[Any], /, *args: Any, **kwargs: Any) -> ObjectRef[R]: ...
        @overload
        def remote(
            self, a: Any, b: Any, c: Any, d: ObjectRef[Any], /, *args: Any, **kwargs: Any
        ) -> ObjectRef[R]: ...
        @overload
        def remote(
            self, a: Any, b: Any, c: Any, d: Any, e: ObjectRef[Any], /, *args: Any, **kwargs: Any
        ) -> ObjectRef[R]: ...
        def remote(self, *args: Any, **kwargs: Any) -> Any: ...

    class Untyped:
        """Something with several returns."""

        def remote(self, *args: Any, **kwargs: Any) -> Any: ...
        def options(self, **options: Any) -> Any: ...

    class Instance(Generic[T]):
        """Of class T, somewhere else."""

    class BoundMethod(Call[P, R], Generic[P, R, Local]):
        """A method marked with ``@ftray.method``, of an actor or, inside it, of ``self``."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Local: ...
        def options(self, **options: Any) -> Any: ...

    class Method(Generic[P, R, Local]):
        """What ``@ftray.method`` makes of a method."""

        def __get__(self, instance: object, owner: type | None = None) -> BoundMethod[P, R, Local]: ...

    class MethodDecorator(Protocol):
        """``@ftray.method(...)``."""

        @overload
        def __call__(
            self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
        ) -> Method[P, R, Coroutine[Any, Any, R]]: ...
        @overload
        def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Method[P, R, R]: ...

    class RemoteDecorator(Protocol):
        """``@ftray.remote(...)``."""

        @overload
        def __call__(self, target: type[T], /) -> ActorClass[T]: ...  # type: ignore[overload-overlap]
        @overload
        def __call__(self, target: Callable[P, R], /) -> RemoteFunction[P, R]: ...

    class Remote(Protocol):
        """``ftray.remote``. With ``num_returns`` the result is a list, or a generator: not typed."""

        @overload
        def __call__(self, target: type[T], /) -> ActorClass[T]: ...  # type: ignore[overload-overlap]
        @overload
        def __call__(self, target: Callable[P, R], /) -> RemoteFunction[P, R]: ...
        @overload
        def __call__(self, *, num_returns: Literal[1] = ..., **options: Any) -> RemoteDecorator: ...
        @overload
        def __call__(
            self, *, num_returns: int | str, **options: Any
        ) -> Callable[[Callable[..., Any]], Untyped]: ...

    class MarkMethod(Protocol):
        """``ftray.method``; as `Remote`."""

        @overload
        def __call__(
            self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /
        ) -> Method[P, R, Coroutine[Any, Any, R]]: ...
        @overload
        def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Method[P, R, R]: ...
        @overload
        def __call__(self, *, num_returns: Literal[1] = ..., **options: Any) -> MethodDecorator: ...
        @overload
        def __call__(
            self, *, num_returns: int | str, **options: Any
        ) -> Callable[[Callable[..., Any]], Untyped]: ...

else:

    class _Nothing:
        """Stands for a generic base that only type checkers see: no base at all."""

        def __getitem__(self, parameters):
            return self

        def __mro_entries__(self, bases):
            return ()

    Call = Instance = _Nothing()
    P = R = T = None
