from collections.abc import Sequence
from typing import TypeVar

from ftray._core.objects import ObjectRef

_T = TypeVar("_T")

def wait(
    refs: Sequence[ObjectRef[_T]],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[ObjectRef[_T]], list[ObjectRef[_T]]]: ...
