"""At IPython's own prompt: cells that are run again, `await`, tracebacks, Ctrl-C, and the end."""

from __future__ import annotations

import signal
import textwrap
from collections.abc import Callable, Iterator

import pytest

from tests.helpers import drivers
from tests.helpers.drivers import Driver

pytest.importorskip("IPython")

Cell = Callable[[str], None]
PROGRAM = """
import sys
from IPython import start_ipython
sys.exit(start_ipython(["--simple-prompt", "--no-banner", "--no-confirm-exit", "--colors=NoColor"]))
"""


class Prompt:
    """IPython as a user starts it, in a process of its own."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        # IPython has a `__main__` of its own, so that `tell` has to be imported there, and what it tells may
        # have the prompt before it.
        talk = "tell_here = tell\ndef tell(word, value=None):\n    print()\n    tell_here(word, value)\n"
        (driver.workdir / "talk.py").write_text(drivers.PRELUDE + talk)
        self.cell("from talk import tell; import ftray as ray; ray.init(num_cpus=2); tell('ready')")
        driver.expect("ready")

    def cell(self, source: str) -> None:
        """Type a cell; one of several lines ends with an empty one."""
        source = textwrap.dedent(source).strip("\n")
        self.driver.say(f"{source}\n\n" if "\n" in source else source)

    def value(self, source: str) -> object:
        """Type a cell that tells the value of an expression."""
        self.cell(f"tell('value', {source})")
        return self.driver.expect("value")

    def interrupt_while(self, source: str) -> str:
        """Press Ctrl-C while a cell waits; return which exception came out of it."""
        self.cell(
            f"""
            try:
                tell('waiting')
                {source}
            except BaseException as caught:
                tell('caught', type(caught).__name__)
            """
        )
        self.driver.expect("waiting")
        self.driver.signal(signal.SIGINT)
        caught = self.driver.expect("caught")
        assert isinstance(caught, str)
        return caught


@pytest.fixture
def prompt(start_driver: Callable[..., Driver], tmp_path) -> Iterator[Prompt]:
    env = {"IPYTHONDIR": str(tmp_path / "ipython"), "TERM": "dumb", "NO_COLOR": "1"}
    made = Prompt(start_driver(PROGRAM, env=env))
    yield made
    made.cell("exit")
    made.driver.finish()
    made.driver.check_nothing_left()


def test_functions_and_classes_that_are_defined_again(prompt: Prompt) -> None:
    for word in ("old", "new"):
        prompt.cell(
            f"""
            def helper():
                return {word!r}
            """
        )
        prompt.cell(
            """
            @ray.remote
            def task():
                return helper()
            """
        )
        prompt.cell(
            f"""
            @ray.remote(num_cpus=0)
            class Actor:
                kind = {word!r}
                def name(self, thing):
                    return self.kind, thing.name()
            """
        )
        prompt.cell(
            f"""
            class Thing:
                def name(self):
                    return {word!r}
            """
        )
        prompt.cell(f"{word} = Actor.remote()")
        assert prompt.value("ray.get(task.remote())") == word
        assert prompt.value(f"ray.get({word}.name.remote(Thing()))") == [word, word]
        assert prompt.value("type(ray.get(ray.put(Thing()))) is Thing") is True
    assert prompt.value("ray.get(old.name.remote(Thing()))") == ["old", "new"]


def test_await_and_get_while_the_loop_runs(prompt: Prompt) -> None:
    prompt.cell("import asyncio; double = ray.remote(lambda x: 2 * x)")
    assert prompt.value("await double.remote(1)") == 2
    assert prompt.value("await asyncio.gather(*[double.remote(x) for x in range(3)])") == [0, 2, 4]
    prompt.cell(
        """
        async def both():
            return ray.get(double.remote(3)), await double.remote(4)
        """
    )
    assert prompt.value("await both()") == [6, 8]
    prompt.cell(
        """
        @ray.remote
        def yields():
            yield 1
            yield 2
        """
    )
    assert prompt.value("[ray.get(ref) async for ref in yields.remote()]") == [1, 2]


def test_tracebacks_show_what_failed_where(prompt: Prompt) -> None:
    prompt.cell(
        """
        class Odd(Exception):
            pass
        """
    )
    prompt.cell(
        """
        @ray.remote
        def fails(x):
            raise Odd(f"{x} is odd")
        """
    )
    for mode in ("Plain", "Context", "Verbose", "Minimal"):
        prompt.cell(f"%xmode {mode}")
        seen = len(prompt.driver.out)
        prompt.cell("ray.get(fails.remote(3))")
        assert prompt.value("1") == 1
        said = "\n".join(prompt.driver.out[seen:])
        assert "RayTaskError(Odd)" in said and "3 is odd" in said, said
        assert "fails() failed (pid=" in said and ", in fails" in said, said
        assert "Internal error" not in said and "Unexpected exception formatting" not in said, said
    prompt.cell("%tb")
    prompt.cell("import sys; kinds = [type(e) for e in (sys.last_value, sys.last_value.cause)]")
    assert prompt.value("[issubclass(kind, Odd) for kind in kinds]") == [True, True]


def test_control_c_ends_the_wait_and_nothing_else(prompt: Prompt) -> None:
    prompt.cell("import time; later = ray.remote(lambda: time.sleep(60)).remote()")
    for source in ("ray.get(later)", "ray.wait([later], timeout=50)"):
        assert prompt.interrupt_while(source) == "KeyboardInterrupt"
        assert prompt.value("ray.get(ray.put('well'))") == "well"
        assert prompt.value("len(ray.wait([later], timeout=0)[0])") == 0
    prompt.cell("ray.cancel(later)")
    prompt.cell(
        """
        try:
            ray.get(later)
        except ray.exceptions.TaskCancelledError:
            tell("cancelled")
        """
    )
    prompt.driver.expect("cancelled")


def test_what_the_prompt_shows_of_handles(prompt: Prompt) -> None:
    prompt.cell(
        '''
        @ray.remote
        class Counter:
            """Counts."""
            def increase(self, by: int = 1):
                """Add."""
        '''
    )
    prompt.cell("counter = Counter.remote(); ip = get_ipython()")
    prompt.cell("from IPython.core.completer import provisionalcompleter")
    prompt.cell(
        """
        with provisionalcompleter():
            found = [match.text for match in ip.Completer.completions('counter.inc', 11)]
        """
    )
    assert prompt.value("found") == ["increase"]
    assert "Counts." in str(prompt.value("ip.inspector.info(Counter)['docstring']"))
    assert prompt.value("repr(counter).startswith('Actor(Counter, ')") is True
