from ftray._core.alloc import Allocator

INVARIANTS: tuple[str, ...]

def validate(allocator: Allocator) -> None: ...
