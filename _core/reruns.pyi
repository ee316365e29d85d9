from typing import Any

class Reruns:
    result: Any
    error: Exception | None
    def __init__(self, once: Any, class_name: str) -> None: ...
    def run(self, payload: bytes, position: int) -> bool | None: ...
