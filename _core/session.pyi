from typing import Any

def attach(
    node_fd: int,
    board_fd: int,
    dir_fd: int,
    listen_fd: int,
    worker_id: bytes,
    node_id: bytes,
    slot: int,
    job: int,
    is_driver: bool,
    cpus: int,
    spin_ns: int,
    root: int,
    pending: bytes = b"",
    event_units: int = 0,
    tsc: bool = False,
    sites: bool = False,
) -> None: ...
def detach() -> None: ...
def set_memory_retries(retries: int, delay_ms: int) -> None: ...
def attached() -> bool: ...
def inbox_next() -> list[tuple[int, bytes]] | None: ...
def inbox_close() -> None: ...
def current_context() -> dict[str, Any]: ...
def debug_counters() -> dict[str, int]: ...
