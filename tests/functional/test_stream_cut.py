"""A worker loses ftrayd, and its caller has not noticed: its generator is cut, which is no clean end."""

from __future__ import annotations

import pytest

SOURCE = """
import os, signal, socket
import ftray as ray
from ftray import _core

ray.init(num_cpus=1)
node = ray.nodes()[0]["pid"]

def lose_the_node():
    '''ftrayd, which stands still, does not know of it, nor does the caller.'''
    os.kill(node, signal.SIGSTOP)
    for name in os.listdir("/proc/self/fd"):
        try:
            peer = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        with peer:
            try:
                if peer.getpeername().endswith("node.sock"):
                    peer.shutdown(socket.SHUT_RDWR)
            except (OSError, AttributeError):
                pass
    while True:
        try:
            ray.put(0)
        except ray.exceptions.HeadDiedError:
            return

@ray.remote(max_retries=0)
def numbers(n):
    for i in range(n):
        if i == 2:
            lose_the_node()
        yield i

@ray.remote(max_retries=0)
async def numbers_async(n):
    for i in range(n):
        if i == 2:
            lose_the_node()
        yield i

seen = []
for ref in {function}.options(_generator_backpressure_num_objects={window}).remote(20):
    try:
        seen.append(ray.get(ref))
    except ray.exceptions.HeadDiedError as error:
        seen.append("cut")
os.kill(node, signal.SIGCONT)
tell("seen", seen)
ray.shutdown()
"""


@pytest.mark.parametrize("function", ["numbers", "numbers_async"])
@pytest.mark.parametrize("window", [-1, 1])
def test_what_a_lost_node_cuts_does_not_end_cleanly(start_driver, function, window):
    source = SOURCE.replace("{function}", function).replace("{window}", str(window))
    driver = start_driver(source)
    seen = driver.expect("seen")
    assert seen[-1] == "cut" and seen[:-1] == list(range(len(seen) - 1)) and len(seen) >= 3
    driver.finish(timeout_s=30)
