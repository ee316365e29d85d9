"""An actor's attributes are reached as fast after a capture has looked at them as before."""

from __future__ import annotations

import gc
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray._core.instances import inline_attributes
from ftray.checkpoint.state import attribute_names, default_load, default_save, own_dict

READS_INLINE = sys.implementation.name == "cpython" and sys.version_info[:2] == (3, 11)
needs_inline = pytest.mark.skipif(not READS_INLINE, reason="only CPython 3.11 is slower with a dict")
NAMES = [f"name_{i}" for i in range(34)]
"""More than the names that a class's instances share, 30."""


class Base:
    def __init__(self) -> None:
        self.count = 0
        self.name = "a"


class Slotted(Base):
    __slots__ = ("place",)


class Bare:
    __slots__ = ("place",)


class Guarded(Base):
    def __setattr__(self, name: str, value: Any) -> None:
        assert name != "__dict__"
        super().__setattr__(name, value)


class Attributes(dict):  # type: ignore[type-arg]
    """Attributes that are items, as some libraries have it."""

    def __init__(self) -> None:
        super().__init__(count=0)
        self.__dict__ = self


class Derived:
    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        return {"made": "up"}


def test_attributes_stay_and_can_be_set() -> None:
    for cls in (Base, Slotted, Guarded):
        instance = cls()
        before = vars(instance)
        own_dict(instance)
        assert vars(instance) == {"count": 0, "name": "a"} and vars(instance) is not before
        instance.count += 1
        instance.more = "b"  # type: ignore[union-attr]
        del instance.name
        assert vars(instance) == {"count": 1, "more": "b"} == dict(vars(instance))
        assert attribute_names(instance) == {"count", "more"}


def test_others_of_the_class_are_not_touched() -> None:
    one, other = Base(), Base()
    own_dict(one)
    default_load(one, {"count": 7})
    assert (one.count, other.count) == (7, 0)


def test_what_has_no_dict_of_its_own_stays_as_it_is() -> None:
    attributes, derived, bare = Attributes(), Derived(), Bare()
    for instance in (attributes, derived):
        own_dict(instance)
    assert vars(attributes) is attributes and vars(derived) == {"made": "up"}
    own_dict(bare)
    assert not hasattr(bare, "__dict__")


def has_a_dict(instance: object) -> bool:
    """Whether somebody has asked for `__dict__`, without doing so."""
    return any(type(held) is dict for held in gc.get_referents(instance))


@needs_inline
def test_a_capture_makes_no_dict() -> None:
    for cls in (Base, Slotted):
        instance = cls()
        assert attribute_names(instance) == {"count", "name"}
        own_dict(instance)
        assert default_save(instance) == {"count": 0, "name": "a"}
        instance.count += 1
        assert default_save(instance) == {"count": 1, "name": "a"} and not has_a_dict(instance)
        assert vars(instance) == {"count": 1, "name": "a"} and has_a_dict(instance)


@needs_inline
@given(
    st.lists(st.tuples(st.sampled_from(["set", "del"]), st.integers(0, 33), st.integers()), max_size=120)
)
def test_what_is_read_is_what_the_dict_would_have(steps: list[tuple[str, int, int]]) -> None:
    class Some:
        name_3 = "the class's"

    others, instance, model = Some(), Some(), dict[str, int]()
    for i in (5, 3, 8):
        setattr(others, NAMES[i], i)  # the names that are shared come in another order than this one's
    for what, i, value in steps:
        if what == "set":
            setattr(instance, NAMES[i], value)
            model[NAMES[i]] = value
        elif NAMES[i] in model:
            delattr(instance, NAMES[i])
            del model[NAMES[i]]
        found = inline_attributes(instance)
        assert found == model if found is not None else has_a_dict(instance) or not model
        if found is not None:
            assert list(found) == list(model) and not has_a_dict(instance)
    state = default_save(instance)
    assert state == model and list(state) == list(model)  # type: ignore[call-overload]
    assert vars(instance) == model


@needs_inline
def test_it_holds_what_it_returns() -> None:
    class Kept:
        pass

    instance = Base()
    instance.name = Kept()  # type: ignore[assignment]
    before = sys.getrefcount(instance.name)
    found = inline_attributes(instance)
    held = sys.getrefcount(instance.name)
    found = None
    after = sys.getrefcount(instance.name)
    assert found is None and (held, after) == (before + 1, before) and isinstance(instance.name, Kept)


def test_what_the_class_makes_of_its_dict_is_asked_for() -> None:
    class Asked(Base):
        def __getattribute__(self, name: str) -> Any:
            return {"asked": 1} if name == "__dict__" else super().__getattribute__(name)

    assert inline_attributes(Derived()) is None and default_save(Derived()) == {"made": "up"}
    assert inline_attributes(Asked()) is None and default_save(Asked()) == {"asked": 1}
    assert inline_attributes(Attributes()) is None and default_save(Attributes()) == {"count": 0}
    for other in (Bare(), 1, "text", Base, object(), None, {}, ValueError("a")):
        assert inline_attributes(other) is None


def test_other_versions_ask_for_the_dict() -> None:
    found = inline_attributes(Base())
    assert found == {"count": 0, "name": "a"} if READS_INLINE else found is None
