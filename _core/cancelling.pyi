from typing import Any

from ftray._core.generators import ObjectRefGenerator
from ftray._core.objects import ObjectRef

def cancel(
    ref: ObjectRef | ObjectRefGenerator[Any], *, force: bool = False, recursive: bool = True
) -> None: ...
