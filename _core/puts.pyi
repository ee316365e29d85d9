from typing import TypeVar

from ftray._core.objects import ObjectRef

_T = TypeVar("_T")

def put(value: _T) -> ObjectRef[_T]: ...
