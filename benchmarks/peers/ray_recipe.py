"""Ray: plain calls, and its documented recipe for actors that survive (a file, restarts, retries), killed.

Run by `benchmarks.checkpoint` under an interpreter that has Ray.
"""

import json
import os
import pickle
import signal
import sys
import time

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray

directory, smoke = sys.argv[1], "--smoke" in sys.argv
calls, kills, trials = (300, 1, 1) if smoke else (3000, 3, 3)
measure_s = 0.1 if smoke else 2.0


@ray.remote
class Plain:
    def __init__(self):
        self.count = 0

    def add(self):
        self.count += 1
        return self.count


@ray.remote(max_restarts=-1, max_task_retries=-1)
class Immortal:
    """As documented, with a file that is durable and replaced as a whole."""

    def __init__(self, path):
        self.path = path
        self.count = 0
        if os.path.exists(path):
            with open(path, "rb") as file:
                self.count = pickle.load(file)

    def add(self):
        self.count += 1
        with open(f"{self.path}.new", "wb") as file:
            pickle.dump(self.count, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{self.path}.new", self.path)
        return self.count

    def pid(self):
        return os.getpid()


def rate(step, per_step=1):
    step()
    steps, begin_s = 0, time.perf_counter()
    while time.perf_counter() - begin_s < measure_s:
        step()
        steps += 1
    return steps * per_step / (time.perf_counter() - begin_s)


def drift(trial):
    """How many calls too many the recipe has counted."""
    actor = Immortal.remote(os.path.join(directory, f"recipe-{trial}"))
    for _ in range(kills):
        pid = ray.get(actor.pid.remote())
        refs = [actor.add.remote() for _call in range(calls // kills)]
        ray.get(refs[len(refs) // 2])
        process = os.pidfd_open(pid)
        signal.pidfd_send_signal(process, signal.SIGKILL)
        os.close(process)
        ray.get(refs)
    counted = ray.get(actor.add.remote()) - 1
    return counted - kills * (calls // kills)


ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
try:
    plain = Plain.remote()
    found = {
        "plain call, synchronous": rate(lambda: ray.get(plain.add.remote())),
        "plain calls, 1,000 in flight": rate(
            lambda: ray.get([plain.add.remote() for _ in range(1000)]), 1000
        ),
    }
    immortal = Immortal.remote(os.path.join(directory, "rate"))
    found["recipe, synchronous"] = rate(lambda: ray.get(immortal.add.remote()))
    for trial in range(trials):
        found[f"recipe, counted after {kills} kills, {calls} calls ({trial + 1})"] = float(drift(trial))
finally:
    ray.shutdown()
print(json.dumps(found))
