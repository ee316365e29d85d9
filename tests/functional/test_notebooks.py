"""At the prompt and in notebooks: code that is run again counts from then on, in an event loop too."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType

import pytest

import ftray as ray

pytestmark = pytest.mark.usefixtures("runtime")


@pytest.fixture
def cells(monkeypatch):
    """Run cells as a notebook does: each compiled by itself, all in one ``__main__``."""
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    main.__dict__.update(ray=ray, __builtins__=__builtins__)

    def run(source):
        exec(compile(source, "<cell>", "exec"), main.__dict__)
        return main.__dict__

    yield run
    main.__dict__.clear()


def test_a_function_that_is_defined_again(cells):
    cells("@ray.remote\ndef f():\n    return 'old'\nfirst = f.remote()\nassert ray.get(first) == 'old'")
    cells("@ray.remote\ndef f():\n    return 'new'")

    cells("assert ray.get([f.remote() for _ in range(4)]) == ['new'] * 4")
    cells("assert ray.get(first) == 'old'")


def test_a_helper_that_is_defined_again(cells):
    """A remote function takes along what it refers to at its first call: it is defined again as well."""
    task = "@ray.remote\ndef f():\n    return helper() + constant"
    cells("constant = 1\ndef helper():\n    return 10\n" + task)
    cells("assert ray.get(f.remote()) == 11")
    cells("constant = 2\ndef helper():\n    return 20")
    cells(task)

    cells("assert ray.get(f.remote()) == 22")


def test_a_class_that_is_defined_again(cells):
    actor = "@ray.remote(num_cpus=0)\nclass A:\n    def name(self):\n        return {!r}\n"
    cells(actor.format("old") + "old = A.remote()\nassert ray.get(old.name.remote()) == 'old'")
    cells(actor.format("new") + "    def more(self):\n        return 1\nnew = A.remote()")

    cells("assert ray.get([old.name.remote(), new.name.remote(), new.more.remote()]) == ['old', 'new', 1]")
    with pytest.raises(AttributeError, match="has no method 'more'"):
        cells("old.more")


def test_values_of_a_class_that_is_defined_again(cells):
    cells("class Point:\n    def norm(self):\n        return 'old'\n")
    cells(
        "@ray.remote\ndef norm(p):\n    return p.norm(), p\nassert ray.get(norm.remote(Point()))[0] == 'old'"
    )
    cells("class Point:\n    def norm(self):\n        return 'new'\n")
    cells("said, back = ray.get(norm.remote(Point()))\nassert said == 'new' and type(back) is Point")


def test_an_exception_class_of_a_cell(cells):
    cells("class Odd(Exception):\n    pass\n@ray.remote\ndef f():\n    raise Odd('here')")
    cells(
        "try:\n    ray.get(f.remote())\nexcept Odd as error:\n    assert 'here' in str(error)\n"
        "else:\n    raise AssertionError"
    )


def test_cells_run_inside_a_running_event_loop(cells):
    async def notebook():
        cells("@ray.remote\ndef f(x):\n    return x + 1\nrefs = [f.remote(x) for x in range(5)]")
        cells("assert ray.get(refs) == [1, 2, 3, 4, 5]\nready, _ = ray.wait(refs, num_returns=5)")
        return len(cells("")["ready"])

    assert asyncio.run(notebook()) == 5


def test_a_real_interactive_interpreter(start_driver):
    """The standard library's prompt, a statement at a time."""
    driver = start_driver(
        """
        import code
        session = code.InteractiveInterpreter(globals())
        import sys
        def cell(source):
            assert not session.runsource(source, "<console>", "exec"), "incomplete"
        cell("import ftray as ray")
        cell("ray.init(num_cpus=1)")
        for word in ("old", "new"):
            cell(f"@ray.remote\\ndef f():\\n    return {word!r}\\n")
            cell("tell('f', ray.get(f.remote()))")
        """
    )
    assert [driver.expect("f"), driver.expect("f")] == ["old", "new"]
    driver.finish()
