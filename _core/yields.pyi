from collections.abc import AsyncGenerator, Generator
from typing import Any

class Producer:
    async def run_async(self, source: Generator[Any] | AsyncGenerator[Any]) -> Any: ...
