from queue import SimpleQueue

from ftray._core.beside import Beside
from ftray._core.execution import Execution
from ftray._core.invocation import Call

class Pools(Beside):
    def __init__(self, execution: Execution, max_concurrency: int, groups: dict[str, int]) -> None: ...
    def serve(self, calls: SimpleQueue[Call]) -> None: ...
