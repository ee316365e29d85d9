"""Decision machines do nothing but decide: no I/O, clock, chance, threads or sockets, in their sources.

An allow-list, because what a decision needs is short and what it must not do has many names.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

CORE = Path(ROOT, "_core")
NODE = Path(ROOT, "ftray", "_node")

# --- ftray/_node: Python

NODE_DECISIONS = (
    "scheduler",
    "actors",
    "pool",
    "segments",
    "spilling",
    "deaths",
    "logs",
    "amounts",
    "jobs",
    "devices",
    "memory_policy",
)
DATA = ("record", "frames", "protocol")  # values, frame numbers and layouts
STANDARD = {"__future__", "collections", "dataclasses", "enum", "math", "typing"}
BUILTINS = {"open", "print", "input", "exec", "eval", "__import__", "id", "hash"}


def imported(path: Path) -> set[str]:
    """Modules that it imports when it runs."""
    tree = ast.parse(path.read_text())
    for_checkers = [
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    tree.body = [node for node in tree.body if node not in for_checkers]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{path.name}: relative import"
            found.add(node.module)
    return found


@pytest.mark.parametrize("name", NODE_DECISIONS)
def test_decisions_of_the_node_import_only_decisions(name: str) -> None:
    ours = {f"ftray._node.{other}" for other in NODE_DECISIONS + DATA}
    assert (
        not {module for module in imported(NODE / f"{name}.py") if module.split(".")[0] not in STANDARD}
        - ours
    )


@pytest.mark.parametrize("name", NODE_DECISIONS)
def test_decisions_of_the_node_call_nothing_that_acts(name: str) -> None:
    """Nor anything whose result differs from run to run (addresses, hashes)."""
    tree = ast.parse((NODE / f"{name}.py").read_text())
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not {function.id for function in calls if isinstance(function, ast.Name)} & BUILTINS


@pytest.mark.parametrize("name", DATA)
def test_data_needs_nothing_that_acts(name: str) -> None:
    ours = {f"ftray._node.{other}" for other in DATA}
    assert not imported(NODE / f"{name}.py") - STANDARD - ours - {"struct", "sys", "ftray._version"}


# --- _core: Cython

CORE_DECISIONS = ("refs", "rules", "alloc", "streams", "lineage", "ledgerrules", "ledgerfile")
CORE_DATA = {"ftray._core.ledgertypes", "ftray._core.records", "ftray._core.buf"}  # layouts
CORE_HEADERS = ("ledger", "identity", "crc32")  # C++ of decisions
C_LIBRARY = re.compile(r"libc\.(stdint|string|stddef|limits)|libcpp(\.\w+)?|cython\.operator")
MEMORY = {"malloc", "calloc", "free"}  # of libc.stdlib
TYPES = "ftray._core.types"
ACTING_TYPES = {"mono_ns", "futex_wait", "futex_wake", "lock_take", "lock_try", "lock_drop", "cpu_relax"}
HEADERS = {"algorithm", "cstddef", "cstdint", "cstring", "new", "set", "unordered_map", "vector"}
HEADERS |= {"immintrin.h"}  # instructions that only compute
ACTING_WORDS = re.compile(
    r"\b(clock_gettime|gettimeofday|time|rand|random|getrandom|open|close|read|write|send|recv|ioctl|poll|"
    r"select|epoll_\w+|socket|connect|mmap|munmap|fallocate|ftruncate|syscall|sleep|nanosleep|pthread_\w+|fork|"
    r"kill|printf|getenv)\s*\("
)
# What a dying ref may have to do beside being noted: in an idle process nobody else would look at the list.
EXCEPTIONS = {"refs": {"header unistd.h", "call write"}}


def statements(text: str) -> Iterator[str]:
    """Import statements of a .pyx or .pxd, those over several lines joined."""
    statement = r"^\s*((?:from|import|cimport)\b[^\n(]*(?:\([^)]*\))?[^\n]*)"
    for match in re.finditer(statement, without_prose(text), re.M):
        yield " ".join(match.group(1).split())


def without_prose(text: str) -> str:
    text = re.sub(r"(?<!cdef extern from \*:\n    )\"\"\".*?\"\"\"", "", text, flags=re.S)
    return re.sub(r"(?<!\S)(#(?!include)|//)[^\n]*", "", text)


def violations(name: str, text: str) -> set[str]:
    """What a decision module has no business with."""
    ours = {f"ftray._core.{other}" for other in CORE_DECISIONS}
    found = set()
    for statement in statements(text):
        if not (match := re.fullmatch(r"from (\S+) cimport (.*)", statement)):
            found.add(statement)
            continue
        module, names = match.groups()
        if module == TYPES:
            found |= {f"type {n}" for n in re.findall(r"\w+", names) if n in ACTING_TYPES}
        elif module == "libc.stdlib":
            found |= {f"from {module} cimport {n}" for n in re.findall(r"\w+", names) if n not in MEMORY}
        elif not C_LIBRARY.fullmatch(module) and module not in ours | CORE_DATA:
            found.add(statement)
    code = without_prose(text)
    headers = re.findall(r"#include\s*[<\"]([^>\"]+)[>\"]", code) + re.findall(
        r"cdef extern from \"([^\"]+)\"", code
    )
    own = {f"{header}.hpp" for header in CORE_HEADERS} | {"types.hpp"}
    found |= {f"header {header}" for header in headers if header not in HEADERS | own}
    found |= {f"call {match.group(1)}" for match in ACTING_WORDS.finditer(code)}
    return found - EXCEPTIONS.get(name, set())


@pytest.mark.parametrize("suffix", ["pyx", "pxd"])
@pytest.mark.parametrize("name", CORE_DECISIONS)
def test_decisions_of_the_core_are_pure(name: str, suffix: str) -> None:
    assert not violations(name, (CORE / f"{name}.{suffix}").read_text())


@pytest.mark.parametrize("name", CORE_HEADERS)
def test_headers_of_decisions_are_pure(name: str) -> None:
    assert not violations(name, (CORE / f"{name}.hpp").read_text())


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("from posix.unistd cimport getpid\n", "from posix.unistd cimport getpid"),
        ("import time\n", "import time"),
        (
            "from ftray._core.channel cimport (chan_begin,\n    chan_commit)\n",
            "cimport (chan_begin, chan_commit)",
        ),
        ("from ftray._core.types cimport (Core,\n    mono_ns)\n", "type mono_ns"),
        ('cdef extern from *:\n    """\n    #include <ctime>\n    """\n', "header ctime"),
        ('cdef extern from "sys/mman.h" nogil:\n    pass\n', "header sys/mman.h"),
        ("cdef void f() noexcept nogil:\n    write(1, p, 2)\n", "call write"),
    ],
)
def test_the_scan_sees_what_acts(source: str, named: str) -> None:
    assert any(named in found for found in violations("rules", source))


def test_the_scan_does_not_read_prose() -> None:
    assert not violations(
        "rules", '"""Nobody may write(1) here.\n\nimport time\n"""\n# time() is an argument\n'
    )
