"""Builds the package: every ``_core/*.pyx`` becomes the extension ``ftray._core.<name>``.

The repository keeps ``_core/`` and ``checkpoint/`` at its top, the installed package has them inside
``ftray``. Cython and mypy resolve names by directories, so they read ``build/stage``: a tree of
symbolic links that has the installed shape. Nothing generated is written next to a source, except
the extensions themselves in an editable install.

Environment variables:

- ``FTRAY_BUILD``: one of ``MODES`` below; ``release`` when unset.
- ``FTRAY_TRACE=1``: line tracing in the generated code, and annotated HTML in ``build/cython``.
- ``FTRAY_BUILD_CACHE``: directory of generated C++ and compiled extensions, found again by the hash
  of all that went into them; ``build/cache`` when unset. It is the only thing that makes a second
  build quick, so a build never trusts a timestamp.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from setuptools import Command, Extension, find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

# Root of each part in the repository, by its installed name.
PARTS = {"ftray": "ftray", "ftray._core": "_core", "ftray.checkpoint": "checkpoint"}
STAGE = Path("build/stage")
GENERATED = Path("build/cython")
CACHE_SIZE_BYTES = 500_000_000

COMPILE = ["-std=c++17", "-fno-strict-aliasing", "-fvisibility=hidden", "-pthread"]
LINK = ["-pthread"]
# Compiler and linker arguments. The compiler's own -O, -g and -DNDEBUG come from Python's
# configuration; ours follow and win.
MODES = {
    "release": (["-O3", "-g0"], ["-Wl,-s"]),
    "fast": (["-O1", "-g0"], ["-Wl,-s"]),
    "debug": (["-Og", "-g", "-UNDEBUG", "-D_GLIBCXX_ASSERTIONS"], []),
    "asan": (
        ["-O1", "-g", "-UNDEBUG", "-fno-omit-frame-pointer", "-fsanitize=address"],
        ["-fsanitize=address"],
    ),
}
CHECKED_MODES = ("debug", "asan")


def build_mode() -> str:
    mode = os.environ.get("FTRAY_BUILD") or "release"
    if mode not in MODES:
        raise SystemExit(f"FTRAY_BUILD={mode!r} is not a way to build ftray; use one of {', '.join(MODES)}")
    return mode


def trace() -> bool:
    value = os.environ.get("FTRAY_TRACE") or "0"
    if value not in ("0", "1"):
        raise SystemExit(f"FTRAY_TRACE={value!r} is not understood; use 0 or 1")
    return value == "1"


def cache_dir() -> Path:
    return Path(os.environ.get("FTRAY_BUILD_CACHE") or "build/cache")


def packages() -> list[str]:
    """All packages by installed name; the parts other than ``ftray`` itself live outside its directory."""
    found = []
    for name, root in PARTS.items():
        found += [name] + [f"{name}.{sub}" for sub in find_packages(root)]
    return found


def core_headers() -> list[str]:
    return sorted(str(p) for pattern in ("*.hpp", "*.h") for p in Path("_core").glob(pattern))


def core_extensions() -> list[Extension]:
    optimise, link = MODES[build_mode()]
    define = [("CYTHON_TRACE_NOGIL", "1")] if trace() else []
    return [
        Extension(
            f"ftray._core.{source.stem}",
            [str(source)],
            language="c++",
            include_dirs=["_core"],
            define_macros=define,
            depends=core_headers(),
            extra_compile_args=COMPILE + optimise,
            extra_link_args=LINK + link,
        )
        for source in sorted(Path("_core").glob("*.pyx"))
    ]


def directives() -> dict[str, bool | int]:
    checked = build_mode() in CHECKED_MODES
    return {
        "language_level": 3,
        "boundscheck": checked,
        "wraparound": False,
        "cdivision": True,
        "linetrace": trace(),
    }


class Stage(Command):
    """Make ``build/stage/ftray``, links to the sources in the shape of the installed package."""

    description = "link the sources into build/stage in the shape of the installed package"
    user_options: list[tuple[str, str | None, str]] = []

    def initialize_options(self) -> None:
        pass

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        package = STAGE / "ftray"
        shutil.rmtree(package, ignore_errors=True)
        package.mkdir(parents=True)
        links = {path.name: path for path in Path("ftray").iterdir() if path.name != "__pycache__"}
        links |= {name.removeprefix("ftray."): Path(root) for name, root in PARTS.items() if name != "ftray"}
        for name, source in links.items():
            (package / name).symlink_to(os.path.relpath(source, package))


class Build(build):
    """A build that starts from an empty ``build/lib*``: files deleted from the sources leave the wheel."""

    sub_commands = [("stage", None), *build.sub_commands]

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class BuildCache:
    """Files made by a build, under the hash of everything that they were made from.

    Cython's own cache is not used: it takes the outcome of a failed compilation for a result.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @staticmethod
    def key(name: str, settings: object, inputs: Iterable[Path]) -> str:
        digest = hashlib.sha256(repr(settings).encode())
        for path in inputs:
            content = path.read_bytes()
            digest.update(f"{path.name}:{len(content)}:".encode() + content)
        return f"{name}-{digest.hexdigest()[:40]}"

    def fetch(self, key: str, target: Path) -> bool:
        kept = self._directory / key
        if not kept.exists():
            return False
        os.utime(kept)
        self._copy(kept, target)
        return True

    def store(self, key: str, made: Path) -> None:
        self._copy(made, self._directory / key)

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        # By a rename: another process may have the old file mapped, or read the new one meanwhile.
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        shutil.copy(source, partial)
        os.replace(partial, target)

    def prune(self) -> None:
        """Keep the files used last, up to a total size."""
        files = sorted(self._directory.glob("*"), key=lambda path: path.stat().st_mtime, reverse=True)
        total = 0
        for path in files:
            total += path.stat().st_size
            if total > CACHE_SIZE_BYTES:
                path.unlink(missing_ok=True)


class BuildExt(build_ext):
    """Generates the C++ of all modules and compiles it, on all CPUs, unless the cache has it."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()
        self.force = True
        self.cache = BuildCache(cache_dir())

    def build_extensions(self) -> None:
        self.run_command("stage")
        self._generate()
        self._toolchain = self._describe_toolchain()
        super().build_extensions()
        self.cache.prune()

    def _generate(self) -> None:
        """Make the extensions' sources .cpp instead of .pyx."""
        import Cython

        shutil.rmtree(GENERATED, ignore_errors=True)
        contracts = sorted(Path("_core").glob("*.px[di]"))
        keys = {}
        for extension in self.extensions:
            (pyx,) = (Path(source) for source in extension.sources)
            cpp = GENERATED / STAGE / "ftray" / pyx.with_suffix(".cpp")
            extension.sources = [str(cpp)]
            settings = (Cython.__version__, directives())
            key = BuildCache.key(f"{extension.name}.cpp", settings, [pyx, *contracts])
            if trace() or not self.cache.fetch(key, cpp):
                keys[extension.name, STAGE / "ftray" / pyx] = (key, cpp)
        self._cythonize([Extension(name, [str(pyx)], language="c++") for name, pyx in keys])
        for key, cpp in keys.values():
            self.cache.store(key, cpp)

    def _cythonize(self, modules: list[Extension]) -> None:
        from Cython.Build import cythonize

        cythonize(
            modules,
            include_path=[str(STAGE)],
            build_dir=str(GENERATED),
            nthreads=min(self.parallel, len(modules)) if len(modules) > 1 else 0,
            compiler_directives=directives(),
            annotate=trace(),
            force=True,
        )

    def _describe_toolchain(self) -> str:
        commands = [getattr(self.compiler, name, "") for name in sorted(self.compiler.executables)]
        # compiler_cxx is ["g++"] or the like, in every version of setuptools.
        version = subprocess.run(
            [*self.compiler.compiler_cxx[:1], "--version"], check=True, capture_output=True, text=True
        ).stdout
        return repr((sys.version, commands, version))

    def build_extension(self, extension: Extension) -> None:
        settings = (
            self._toolchain,
            extension.define_macros,
            extension.include_dirs,
            extension.extra_compile_args,
            extension.extra_link_args,
        )
        inputs = [Path(path) for path in (*extension.sources, *extension.depends)]
        key = BuildCache.key(f"{extension.name}.so", settings, inputs)
        target = Path(self.get_ext_fullpath(extension.name))
        if not self.cache.fetch(key, target):
            super().build_extension(extension)
            self.cache.store(key, target)


if __name__ == "__main__":
    setup(
        packages=packages(),
        package_dir=PARTS,
        package_data={"ftray": ["py.typed"], "ftray._core": ["*.pxd", "*.pyi", "py.typed"]},
        ext_modules=core_extensions(),
        cmdclass={"build": Build, "build_ext": BuildExt, "stage": Stage},
    )
