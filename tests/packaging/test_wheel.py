"""The wheel: what is in it, and that it works where nothing else is installed but what it asks for."""

import email
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.packaging.builds import REPOSITORY, EmptyEnvironment

pytestmark = pytest.mark.limit(300)

IMPORT_EVERYTHING = """
import importlib, pkgutil
import ftray
NEED_MORE = ("ftray.ray", "ftray.util.joblib.ray_backend")
for module in pkgutil.walk_packages(ftray.__path__, "ftray."):
    # The modules of the command line need the extra "cli" (importing `ftray._cli` itself does not), those of
    # the engine "ray" the extra "ray", and the backend of joblib needs joblib, which is the one that asks.
    needs_more = module.name.startswith(("ftray._cli.", "ftray._ray.")) or module.name in NEED_MORE
    if not module.name.endswith("__main__") and not needs_more:
        importlib.import_module(module.name)
        print(module.name)
"""

TINY = """
import ftray

@ftray.remote
def twice(x):
    return 2 * x

@ftray.remote
class Counter:
    def __init__(self):
        self.n = 0
    def add(self, k):
        self.n += k
        return self.n

ftray.init(num_cpus=1)
counter = Counter.remote()
counter.add.remote(ftray.get(twice.remote(20)))
print(ftray.get(counter.add.remote(2)))
ftray.shutdown()
"""


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def installed(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> EmptyEnvironment:
    environment = EmptyEnvironment(tmp_path_factory.mktemp("installed"), wheels)
    environment.install("ftray")
    return environment


def test_all_is_inside_the_package(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ftray"}


@pytest.mark.parametrize(
    ("part", "package", "patterns"),
    [
        ("ftray", "ftray", ("*.py", "py.typed")),
        ("_core", "ftray/_core", ("*.py", "*.pxd", "*.pyi", "py.typed")),
        ("checkpoint", "ftray/checkpoint", ("*.py",)),
    ],
)
def test_it_holds_every_module(names: set[str], part: str, package: str, patterns: tuple[str, ...]) -> None:
    root = REPOSITORY / part
    wanted = {f"{package}/{path.relative_to(root)}" for pattern in patterns for path in root.rglob(pattern)}
    assert wanted
    assert wanted - names == set()


def test_every_pyx_is_an_extension_of_its_own(names: set[str]) -> None:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    wanted = {f"ftray/_core/{source.stem}{suffix}" for source in (REPOSITORY / "_core").glob("*.pyx")}
    assert wanted
    assert {name for name in names if name.endswith(".so")} == wanted


def test_it_holds_no_source_of_an_extension(names: set[str]) -> None:
    assert {name for name in names if name.endswith((".pyx", ".cpp", ".hpp", ".c", ".h"))} == set()


def test_it_asks_for_cloudpickle_only_and_carries_its_licence(wheel: Path, names: set[str]) -> None:
    (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    fields = email.message_from_bytes(zipfile.ZipFile(wheel).read(metadata))
    required = [line for line in fields.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert [line.split(">")[0] for line in required] == ["cloudpickle"]
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_it_brings_the_command(wheel: Path, names: set[str]) -> None:
    (entry_points,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(entry_points).decode()
    assert text.split() == ["[console_scripts]", "ftray", "=", "ftray._cli:main"]


def test_every_module_can_be_imported_without_the_extras(installed: EmptyEnvironment) -> None:
    imported = installed.run_program(IMPORT_EVERYTHING).split()
    assert {f"ftray._core.{source.stem}" for source in (REPOSITORY / "_core").glob("*.pyx")} <= set(imported)
    assert "ftray.checkpoint" in imported


def test_its_version_is_that_of_its_metadata(installed: EmptyEnvironment) -> None:
    program = "import ftray, importlib.metadata as m; print(ftray.__version__, m.version('ftray'))"
    ours, theirs = installed.run_program(program).split()
    assert ours == theirs


def test_a_program_runs(installed: EmptyEnvironment) -> None:
    assert installed.run_program(TINY) == "42\n"


def test_a_program_runs_where_another_ftray_lies(installed: EmptyEnvironment, tmp_path: Path) -> None:
    """As in the root of the repository: no process of the runtime may take it for the installed one."""
    (tmp_path / "ftray").mkdir()
    (tmp_path / "ftray" / "__init__.py").write_text("raise ImportError('this is not the installed ftray')\n")
    assert installed.run_program(TINY, cwd=tmp_path) == "42\n"
