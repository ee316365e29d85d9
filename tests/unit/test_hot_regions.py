"""Marked hot regions make no Python C-API call: shown on the C++ that Cython makes of them.

A function that is declared ``noexcept nogil`` may run on a thread that Python does not know, and under the
core lock, where taking the GIL would be a deadlock in waiting. Cython lets through what it can make safe by
taking the GIL itself, so the declaration alone proves nothing.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import ROOT

pytest.importorskip("Cython")

MODULES = (
    "tasks",
    "values",
    "outcomes",
    "pushes",
    "leases",
    "dispatch",
    "refs",
    "channel",
    "rules",
    "spills",
    "recalls",
    "streams",
    "intake",
    "productions",
    "actors",
    "borrows",
    "execqueue",
    "holds",
    "cancels",
    "nodelink",
    "lineage",
    "depends",
    "recovery",
    "replays",
    "ledgerrules",
    "ledgerfile",
)
COMPILE = """
import sys
from Cython.Compiler.Main import compile
directives = {"language_level": 3, "boundscheck": False, "wraparound": False, "cdivision": True}
for name in sys.argv[1:]:
    done = compile(f"ftray/_core/{name}.pyx", cplus=True, include_path=["."], compiler_directives=directives)
    assert done.num_errors == 0, name
"""

# Allowed everywhere, because they are no calls at run time.
ALLOWED = {
    "__Pyx_UNREACHABLE": "a hint for the compiler",
    "__Pyx_min": "arithmetic",
    "__Pyx_max": "arithmetic",
}
# Cut out before the scan: what runs only after a C++ container has thrown, that is, when memory is
# exhausted. It reports the exception ("unraisable"), and the process does not go on from there in any
# useful way.
CATCH = re.compile(r"\bcatch\s*\(\.\.\.\)\s*\{[^{}]*\}")
FAILED = re.compile(r"__pyx_L\d+_error:;.*?(?=\n\s*__pyx_L\d+:;)", re.S)

CALL = re.compile(r"\b((?:_?Py[A-Z]|__Pyx_|__pyx_pw_|__pyx_pf_)\w*)\s*\(")
HOT = re.compile(r"^cdef (?:inline )?[^=\n]*?\b(\w+)\([^)]*\) noexcept nogil:", re.M)


def cythonize(sources: dict[str, str], work: Path) -> dict[str, str]:
    """The C++ of modules of ``ftray._core``, given their Cython; contracts are those of the source tree."""
    core = work / "ftray" / "_core"
    core.mkdir(parents=True)
    (work / "ftray" / "__init__.py").touch()
    for original in Path(ROOT, "_core").iterdir():
        if original.suffix in (".py", ".pxd", ".hpp"):
            (core / original.name).symlink_to(original)
    for name, source in sources.items():
        (core / f"{name}.pyx").write_text(source)

    def some(names: list[str]) -> None:
        command = [sys.executable, "-c", COMPILE, *names]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    names = list(sources)
    with ThreadPoolExecutor() as pool:  # two processes: starting Cython takes as long as a small module
        list(pool.map(some, filter(None, [names[::2], names[1::2]])))
    return {name: (core / f"{name}.cpp").read_text() for name in names}


def without_prose(source: str) -> str:
    source = re.sub(r'""".*?"""', "", source, flags=re.S)
    return re.sub(r"#[^\n]*", "", source)


def bodies(cpp: str, module: str) -> Iterator[tuple[str, str]]:
    """Name and body of every C function of a module."""
    cpp = re.sub(r"/\*.*?\*/", "", cpp, flags=re.S)
    prefix = f"__pyx_f_5ftray_5_core_{len(module)}{module}_"
    start = re.compile(rf"^static [^;{{}}]*?\b{prefix}(\w+)\([^;{{}}]*\) \{{\n(.*?)^\}}\n", re.M | re.S)
    for match in start.finditer(cpp):
        yield match.group(1), match.group(2)


def api_calls(body: str) -> set[str]:
    body = FAILED.sub("", body)
    body = CATCH.sub("", body)
    return {name for name in CALL.findall(body) if name not in ALLOWED}


def findings(module: str, source: str, cpp: str) -> dict[str, set[str]]:
    """Python calls of the hot functions, by function; every one of them must be found in the C++."""
    hot = set(HOT.findall(without_prose(source)))
    found = dict(bodies(cpp, module))
    assert hot <= set(found), f"{module}: no C++ found for {sorted(hot - set(found))}"
    calls = {name: api_calls(found[name]) for name in hot}
    return {name: names for name, names in calls.items() if names}


def of_the_last_build() -> dict[str, str] | None:
    """The C++ that the build of this tree has made, if it is newer than all of its sources."""
    made = [Path(ROOT, "build/cython/build/stage/ftray/_core", f"{name}.cpp") for name in MODULES]
    if not all(path.exists() for path in made):
        return None
    newest = max(path.stat().st_mtime for path in Path(ROOT, "_core").iterdir())
    if any(path.stat().st_mtime <= newest for path in made):
        return None
    texts = {path.stem: path.read_text() for path in made}
    return None if any("__Pyx_TraceLine(" in text for text in texts.values()) else texts


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    sources = {name: Path(ROOT, "_core", f"{name}.pyx").read_text() for name in MODULES}
    made = of_the_last_build() or cythonize(sources, tmp_path_factory.mktemp("cython"))
    # Inline functions stand in the contract.
    contracts = {name: Path(ROOT, "_core", f"{name}.pxd").read_text() for name in MODULES}
    return {name: (sources[name] + "\n" + contracts[name], made[name]) for name in MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_hot_regions_call_no_python(module: str, generated: dict[str, tuple[str, str]]) -> None:
    source, cpp = generated[module]
    assert len(HOT.findall(without_prose(source))) > 3
    assert findings(module, source, cpp) == {}


@pytest.mark.parametrize("module", MODULES)
def test_every_c_function_of_a_hot_module_is_marked(
    module: str, generated: dict[str, tuple[str, str]]
) -> None:
    """What is not marked must be a wrapper for tests or say that it needs the GIL by its signature."""
    source, cpp = generated[module]
    unmarked = set(dict(bodies(cpp, module))) - set(HOT.findall(without_prose(source)))
    text = without_prose(source)
    for name in unmarked:
        method = re.search(rf"^    cdef [^\n]*\b{name.split('_', 1)[-1]}\(", text, re.M)
        function = re.search(rf"^cdef [^\n]*\b{name}\(", text, re.M)
        python = re.search(rf"^cdef (?:object|str|dict|list|tuple|bytes)? *{name}\(", text, re.M)
        raises = re.search(rf"^cdef [^\n]*\b{name}\([^\n]*\) except [^\n]*(?<!nogil):$", text, re.M)
        python = python or raises
        assert python or (method and not function), f"{module}.{name} is neither marked nor a Python function"


def test_the_scan_sees_a_region_that_takes_the_gil(tmp_path: Path) -> None:
    source = """
from libcpp.vector cimport vector

cdef void clean(vector[int] *v) noexcept nogil:
    v.push_back(1)

cdef void sneaky(vector[int] *v) noexcept nogil:
    if v.size() > 3:
        with gil:
            print("many")

cdef int divides(int a,
                 int b) noexcept nogil:
    if b == 0:
        with gil:
            raise ZeroDivisionError(a)
    return a // b

def use(int n):
    cdef vector[int] v
    clean(&v)
    sneaky(&v)
    return divides(n, n)
"""
    cpp = cythonize({"probe": source}, tmp_path)["probe"]
    found = findings("probe", source, cpp)
    assert set(found) == {"sneaky", "divides"}
    assert any("PyGILState_Ensure" in name for name in found["sneaky"])
