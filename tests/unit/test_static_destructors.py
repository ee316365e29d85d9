"""No extension of the core destroys C++ objects when the process ends.

Static destructors run in ``exit()``: while the background thread and daemon threads may still be in the
core, and in a forked child of the driver on what other threads had half done. So what lives as long as the
process is never destroyed. Looked at is what the compiler made: a global, a static inside a function or a
thread-local object whose class has a destructor has it registered with one of these functions.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from ftray import _core
from tests import ROOT

MODULES = sorted(path.stem for path in Path(ROOT, "_core").glob("*.pyx"))
REGISTRARS = ("__cxa_atexit", "__cxa_thread_atexit", "__cxa_thread_atexit_impl", "atexit", "on_exit")


def registers(library: Path) -> list[str]:
    """The functions that a shared library needs of others and that run something at the end of the process.

    Names of dynamic symbols stand in one string table, each between two zero bytes; names in debug
    information may be shared suffixes, so only the whole word in that form counts.
    """
    table = dynamic_strings(library.read_bytes())
    return [name for name in REGISTRARS if b"\0" + name.encode() + b"\0" in table]


def dynamic_strings(elf: bytes) -> bytes:
    """The section ``.dynstr`` of a 64-bit little-endian ELF file."""
    assert elf[:6] == b"\x7fELF\x02\x01", "not a 64-bit little-endian ELF file"
    sections_at = int.from_bytes(elf[0x28:0x30], "little")
    size, count, names_index = (int.from_bytes(elf[at : at + 2], "little") for at in (0x3A, 0x3C, 0x3E))

    def section(index: int) -> tuple[int, bytes]:
        header = elf[sections_at + index * size :][:size]
        start, length = (int.from_bytes(header[at : at + 8], "little") for at in (0x18, 0x20))
        return int.from_bytes(header[:4], "little"), elf[start : start + length]

    names = section(names_index)[1]
    for index in range(count):
        name_at, content = section(index)
        if names[name_at:].startswith(b".dynstr\0"):
            return content
    raise AssertionError("no dynamic symbols")


@pytest.mark.parametrize("module", MODULES)
def test_an_extension_registers_no_destructor(module: str) -> None:
    [library] = Path(_core.__file__).parent.glob(f"{module}.*.so")
    assert not registers(library), (
        f"_core/{module}.pyx has a static object with a destructor;"
        " allocate it with `new` and never delete it, as `foreign` in segments.pyx"
    )


def compiled(source: str, directory: Path) -> Path:
    out = directory / "sample.so"
    compiler = (sysconfig.get_config_var("CXX") or "g++").split()[0]
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(out)]
    try:
        subprocess.run(command, input=source, text=True, check=True)
    except FileNotFoundError:
        pytest.skip(f"no compiler {compiler}")
    return out


@pytest.mark.parametrize(
    "source",
    [
        "static std::vector<int> global; int f() { global.push_back(1); return global.size(); }",
        "int f() { static std::vector<int> local; local.push_back(1); return local.size(); }",
        "int f() { thread_local std::vector<int> own; own.push_back(1); return own.size(); }",
    ],
    ids=["global", "in a function", "thread-local"],
)
def test_the_scan_sees_destructors(tmp_path: Path, source: str) -> None:
    assert registers(compiled("#include <vector>\n" + source, tmp_path))


def test_the_scan_is_content_with_objects_that_stay(tmp_path: Path) -> None:
    source = "static auto &all = *new std::vector<int>(); int f() { all.push_back(1); return all.size(); }"
    assert not registers(compiled("#include <vector>\n" + source, tmp_path))


@pytest.mark.parametrize("end", ["exit", "quick_exit"])
def test_the_end_of_a_process_by_the_c_library_is_quiet(end: str) -> None:
    """Python is not finalised then; static destructors would run."""
    program = f"import ctypes, ftray\nctypes.CDLL(None).{end}(3)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (3, "")
