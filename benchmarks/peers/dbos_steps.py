"""DBOS on SQLite: durable steps a second. Run by `benchmarks.checkpoint` under a Python that has it."""

import json
import sys
import time

from dbos import DBOS, DBOSConfig

directory, smoke = sys.argv[1], "--smoke" in sys.argv
steps = 20 if smoke else 1500

config: DBOSConfig = {
    "name": "bench",
    "system_database_url": f"sqlite:///{directory}/dbos.sqlite",
    "log_level": "ERROR",
    "run_admin_server": False,
}
DBOS(config=config)


@DBOS.step()
def add(count: int) -> int:
    return count + 1


@DBOS.workflow()
def many(times: int) -> float:
    count = 0
    begin_s = time.perf_counter()
    for _ in range(times):
        count = add(count)
    return times / (time.perf_counter() - begin_s)


@DBOS.workflow()
def one() -> int:
    return 1


DBOS.launch()
try:
    many(10)
    rate = many(steps)
    begin_s = time.perf_counter()
    for _ in range(steps // 10):
        one()
    workflows = steps // 10 / (time.perf_counter() - begin_s)
finally:
    DBOS.destroy()
print(json.dumps({"steps of one workflow": rate, "workflows, one after the other": workflows}))
