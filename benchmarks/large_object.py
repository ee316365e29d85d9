"""One object larger than 32 bits can count: put by one process, read in another without a copy, and freed.

``python -m benchmarks.large_object`` takes 8 GiB, and needs as much memory and half a GiB more: what is put
is made of a few pages that are mapped again and again. The reader looks at the ends, around every multiple
of 2 GiB and at random places, and sums everything up. Afterwards the memory must come back. Exit status 1
when anything is wrong, 2 when the machine has not memory enough.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import random
import sys
import time
import uuid
import weakref
from typing import Any

import numpy as np

from benchmarks.process import MARK, runtime_pss_bytes

PAGE = 4096
PERIOD = 15_619 * PAGE  # a prime number of pages: no power of two apart are two places that look the same
SPARE_BYTES = 512 << 20
COPIED_BYTES = 64 << 20  # a reader whose own memory grows by less has not copied
RETURN_TIMEOUT_S = 60.0
PROBES = 2_000
CHUNK = 64 << 20


def available_bytes() -> int:
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))


def one_period() -> np.ndarray:
    """Bytes among which no two words are alike."""
    words = np.arange(PERIOD // 8, dtype=np.uint64)
    words *= np.uint64(0x9E3779B97F4A7C15)
    return words.view(np.uint8)


def repeated(size: int) -> np.ndarray:
    """An array of so many bytes, which are one period mapped as often as it takes."""
    fd = os.memfd_create("pattern")
    os.ftruncate(fd, PERIOD)
    with mmap.mmap(fd, PERIOD) as period:
        period[:] = one_period().tobytes()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    fixed, room = 0x10, -(-size // PERIOD) * PERIOD
    start = libc.mmap(None, room, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    for at in range(0, room, PERIOD):
        if libc.mmap(start + at, PERIOD, mmap.PROT_READ, mmap.MAP_SHARED | fixed, fd, 0) != start + at:
            raise OSError(ctypes.get_errno(), "mmap")
    os.close(fd)
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    memory = (ctypes.c_char * size).from_address(start)
    weakref.finalize(memory, libc.munmap, start, room)
    return np.frombuffer(memory, np.uint8)


def places(size: int, seed: int) -> list[int]:
    """Where the reader looks: both ends, around multiples of 2 GiB, and anywhere."""
    rng = random.Random(seed)
    edges = [edge + off for edge in range(0, size + 1, 1 << 31) for off in range(-8, 9)]
    chosen = [*range(16), *range(size - 16, size), *edges, *(rng.randrange(size) for _ in range(PROBES))]
    return [place for place in chosen if 0 <= place < size]


def total(data: np.ndarray) -> int:
    """The sum of all words, modulo 2**64."""
    words = data[: len(data) // 8 * 8].view(np.uint64)
    step = CHUNK // 8
    return sum(int(words[at : at + step].sum()) for at in range(0, len(words), step)) % (1 << 64)


def own_bytes() -> int:
    """Memory of this process that is in no file and not shared."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon:"))


def look(data: np.ndarray, own_before: int, at: list[int]) -> dict[str, Any]:
    """What a reader sees of the object."""
    return {
        "size": len(data),
        "writeable": bool(data.flags.writeable),
        "bytes": bytes(data[at]),
        "sum": total(data),
        "copied": max(0, own_bytes() - own_before),
    }


def check(size: int, seed: int, patient: bool, say: Any) -> list[str]:
    """Put, read, free; what was wrong. ``patient``: wait until the memory, kept warm for a while, is back."""
    import ftray

    ftray.init(address="local", num_cpus=1, object_store_memory=size + SPARE_BYTES // 2)

    @ftray.remote
    class Reader:
        def read(self, refs: list[Any], at: list[int]) -> dict[str, Any]:
            before = own_bytes()
            begin = time.perf_counter()
            data = ftray.get(refs[0])
            took_s = time.perf_counter() - begin
            return {**look(data, before, at), "took_s": took_s}

    wrong = []
    try:
        reader = Reader.remote()
        source, at = repeated(size), places(size, seed)
        expected = {"size": size, "writeable": False, "bytes": bytes(source[at]), "sum": total(source)}
        ftray.get(reader.read.remote([ftray.put(source[:1_000_000])], at[:16]))
        before = runtime_pss_bytes(os.getpid(), os.environ[MARK])
        begin = time.perf_counter()
        ref = ftray.put(source)
        took_s = time.perf_counter() - begin
        say(f"put  {size:,} bytes in {took_s:.2f} s, {size / took_s / 1e9:.2f} GB/s")
        seen = ftray.get(reader.read.remote([ref], at))
        say(f"get  in another process in {seen['took_s'] * 1e3:.2f} ms")
        wrong += [f"{key} is not as it was put" for key in expected if seen[key] != expected[key]]
        if seen["copied"] > COPIED_BYTES:
            wrong.append(f"the reader's own memory grew by {seen['copied']:,} bytes")
        del ref
        if source[-1] != ftray.get(ftray.put(source))[-1]:  # there is room for it once only
            wrong.append("what was put in its place is not as it was put")
        if patient:
            begin = time.perf_counter()
            left = size
            while left > COPIED_BYTES and time.perf_counter() - begin < RETURN_TIMEOUT_S:
                time.sleep(0.2)
                left = runtime_pss_bytes(os.getpid(), os.environ[MARK]) - before
            say(f"free after {time.perf_counter() - begin:.1f} s; {max(left, 0):,} bytes are left")
            if left > COPIED_BYTES:
                wrong.append(f"{left:,} bytes did not come back within {RETURN_TIMEOUT_S:g} s")
    finally:
        ftray.shutdown()
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_object", description=__doc__)
    parser.add_argument("--mib", type=int, default=8 << 10, help="size of the object (default 8192)")
    parser.add_argument("--seed", type=int, default=7, help="of the places that are looked at (default 7)")
    parser.add_argument(
        "--smoke", action="store_true", help="300 MiB; does not wait until the memory is back"
    )
    options = parser.parse_args()
    if options.mib < 1:
        parser.error(f"--mib must be at least 1; given {options.mib}")
    size = ((300 if options.smoke else options.mib) << 20) + 12_345  # no round number
    if available_bytes() < size + SPARE_BYTES:
        print(f"{size + SPARE_BYTES:,} bytes of memory are needed, {available_bytes():,} are available")
        return 2
    os.environ[MARK] = uuid.uuid4().hex  # before init(), so that its processes inherit it
    wrong = check(size, options.seed, not options.smoke, lambda text: print(text, flush=True))
    for text in wrong:
        print(f"WRONG {text}")
    print("FAIL" if wrong else "PASS")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
