"""The boundary between the API and what runs it: `ftray._engine`."""

from __future__ import annotations

import ast
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ftray
from ftray import _engine, _native_engine
from tests import ROOT


class FakeRef(ftray.ObjectRef):
    """A ref that the core does not know, as another engine has them."""

    def __init__(self, engine: FakeEngine) -> None:
        self.at = engine

    def _engine(self) -> FakeEngine:
        return self.at


class FakeGenerator(ftray.ObjectRefGenerator):
    def __init__(self, engine: FakeEngine) -> None:
        self.at = engine

    def _engine(self) -> FakeEngine:
        return self.at


class FakeEngine:
    """Notes what it is asked."""

    name = "fake"

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.running = False
        self.failure: Exception | None = None

    def init(self, arguments: dict[str, Any]) -> str:
        if self.failure is not None:
            raise self.failure
        self.asked.append(("init", {name: value for name, value in arguments.items() if value is not None}))
        self.running = True
        return "context"

    def ensure(self) -> None:
        self.running = True

    def is_initialized(self) -> bool:
        return self.running

    def shutdown(self) -> None:
        self.running = False

    def function(self, function: Any) -> Any:
        return lambda *args, **kwargs: ("task", function._name(), args, kwargs)

    def __getattr__(self, name: str) -> Any:
        def method(*args: Any, **kwargs: Any) -> Any:
            self.asked.append((name, args, kwargs))
            return (args[0], []) if name == "wait" else name

        return method


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeEngine]:
    engine = FakeEngine()
    module = types.ModuleType("fake_engine")
    module.ENGINE = engine
    monkeypatch.setitem(sys.modules, "fake_engine", module)
    monkeypatch.setitem(_engine._HOMES, "fake", "fake_engine")
    monkeypatch.setattr(_engine, "_current", None)
    monkeypatch.delenv("FTRAY_ENGINE", raising=False)
    yield engine


def protocol() -> set[str]:
    tree = ast.parse(Path(_engine.__file__).read_text())
    (found,) = (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == "Engine")
    return {n.name for n in found.body if isinstance(n, ast.FunctionDef)} | {"name"}


def test_the_native_engine_has_all_that_the_interface_names_and_no_more() -> None:
    offered = {name for name in vars(_native_engine.NativeEngine) if not name.startswith("_")}

    assert offered == protocol()


def test_init_names_the_engine(fake: FakeEngine) -> None:
    assert ftray.init(engine="fake", num_cpus=3) == "context"
    assert ftray.is_initialized()
    assert fake.asked == [("init", {"num_cpus": 3, "ignore_reinit_error": False, "log_to_driver": True})]


def test_the_environment_names_the_engine(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTRAY_ENGINE", "fake")

    assert _engine.current() is fake


@pytest.mark.parametrize(
    ("given", "error"), [("rya", ValueError), ("", ValueError), (3, TypeError), (object, TypeError)]
)
def test_an_engine_that_does_not_exist(given: Any, error: type[Exception], fake: FakeEngine) -> None:
    with pytest.raises(error, match="engine=.* is not valid: it must be one of 'fake', 'native', 'ray'"):
        ftray.init(engine=given)
    assert not ftray.is_initialized()


def test_a_variable_that_names_no_engine(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTRAY_ENGINE", "rya")

    with pytest.raises(ValueError, match="FTRAY_ENGINE='rya' is not valid: it must be one of"):
        ftray.put(1)


def test_one_engine_at_a_time(fake: FakeEngine) -> None:
    ftray.init(engine="fake")

    with pytest.raises(RuntimeError, match=r"runs on the engine 'fake'.*ftray.shutdown\(\)"):
        ftray.init(engine="native")
    assert _engine.current() is fake


def test_an_engine_that_fails_to_start_is_not_started_by_the_next_call(fake: FakeEngine) -> None:
    fake.failure = ConnectionError("nobody there")

    with pytest.raises(ConnectionError):
        ftray.init(engine="fake")
    assert _engine.current().name == "native"


def test_after_a_shutdown_the_default_is_back(fake: FakeEngine) -> None:
    ftray.init(engine="fake")
    ftray.shutdown()

    assert not ftray.is_initialized()
    assert _engine.current().name == "native"


def test_a_remote_function_is_called_on_the_engine(fake: FakeEngine) -> None:
    ftray.init(engine="fake")

    @ftray.remote
    def add(a: int, b: int = 2) -> int:
        return a + b

    assert add.remote(1, b=3) == ("task", add._name(), (1,), {"b": 3})
    with pytest.raises(TypeError, match="takes 2 positional arguments but 3 were given"):
        add.remote(1, 2, 3)


def test_put_goes_to_the_engine(fake: FakeEngine) -> None:
    ftray.init(engine="fake")

    assert ftray.put(7) == "put"
    assert fake.asked[-1] == ("put", (7,), {})


def test_refs_of_an_engine_are_got_waited_for_and_cancelled_there(fake: FakeEngine) -> None:
    ref, generator = FakeRef(fake), FakeGenerator(fake)

    assert ftray.get(ref, timeout=1) == "get"
    assert ftray.get([ref, ref]) == "get"
    assert ftray.get((ref,)) == "get"
    assert ftray.wait([ref, generator], num_returns=2) == ([ref, generator], [])
    ftray.cancel(ref, force=True)
    ftray.cancel(generator)

    both = {"timeout": None, "fetch_local": True}
    assert fake.asked == [
        ("get", (ref,), {"timeout": 1}),
        ("get", ([ref, ref],), {"timeout": None}),
        ("get", ([ref],), {"timeout": None}),
        ("wait", ([ref, generator],), {"num_returns": 2, **both}),
        ("cancel", (ref,), {"force": True, "recursive": True}),
        ("cancel", (generator,), {"force": False, "recursive": True}),
    ]


def test_get_of_a_generator_is_the_generator_itself(fake: FakeEngine) -> None:
    generator = FakeGenerator(fake)

    assert ftray.get(generator) is generator


def test_what_is_no_ref_is_refused_before_any_engine_is_asked(fake: FakeEngine) -> None:
    ref = FakeRef(fake)
    with pytest.raises(TypeError, match=r"get\(\) takes an ObjectRef or a list of ObjectRefs; item 0 is int"):
        ftray.get([1, ref])
    with pytest.raises(TypeError, match="not a single one"):
        ftray.wait(ref)
    with pytest.raises(TypeError, match=r"cancel\(\) takes an ObjectRef"):
        ftray.cancel(3)
    assert fake.asked == []


def test_no_module_asks_which_engine_it_is() -> None:
    for path in [*Path(ROOT, "ftray").rglob("*.py"), *Path(ROOT, "checkpoint").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and "_ray" not in path.parts:
                text = ast.unparse(node)
                assert "engine" not in text.lower() or "name" not in text, f"{path}: {text}"


def test_importing_ftray_loads_no_engine_but_the_native_one() -> None:
    program = "import ftray, sys; print(sorted(m for m in sys.modules if m == 'ray' or '_ray' in m))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)

    assert done.stdout.strip() == "[]"


def test_without_ray_the_engine_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, fake: FakeEngine
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "ftray._ray.engine", raising=False)

    with pytest.raises(ImportError, match=r"needs Ray, which is not installed: pip install 'ftray\[ray\]'"):
        ftray.init(engine="ray")
    assert not ftray.is_initialized()


def test_where_the_name_ray_means_ftray_the_engine_says_so(
    monkeypatch: pytest.MonkeyPatch, fake: FakeEngine
) -> None:
    monkeypatch.setitem(sys.modules, "ray", ftray)
    monkeypatch.delitem(sys.modules, "ftray._ray.engine", raising=False)

    with pytest.raises(ftray.exceptions.NotSupportedError, match="stands for ftray in this process"):
        ftray.init(engine="ray")


def test_serializers_are_given_to_the_engine_and_kept_for_the_next(fake: FakeEngine) -> None:
    from ftray import _serializers

    class Own:
        pass

    ftray.init(engine="fake")
    ftray.util.register_serializer(Own, serializer=str, deserializer=str)

    assert fake.asked[-1] == ("register_serializer", (Own,), {"serializer": str, "deserializer": str})
    assert _serializers.registered[Own] == (str, str)
    ftray.util.deregister_serializer(Own)
    assert fake.asked[-1] == ("deregister_serializer", (Own,), {})
    assert Own not in _serializers.registered
