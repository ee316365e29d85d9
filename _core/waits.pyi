from collections.abc import Sequence
from typing import Any, TypeVar, overload

from ftray._core.generators import ObjectRefGenerator
from ftray._core.objects import ObjectRef

_T = TypeVar("_T")

@overload
def wait(
    refs: Sequence[ObjectRef[_T]],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[ObjectRef[_T]], list[ObjectRef[_T]]]: ...
@overload
def wait(
    refs: Sequence[ObjectRefGenerator[_T]],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[ObjectRefGenerator[_T]], list[ObjectRefGenerator[_T]]]: ...
@overload
def wait(
    refs: Sequence[ObjectRef[_T] | ObjectRefGenerator[_T]],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[Any], list[Any]]: ...
def plain_wait(
    refs: Any, num_returns: int, timeout: float | None, fetch_local: bool
) -> tuple[list[Any], list[Any]]: ...
