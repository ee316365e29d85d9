"""An actor's attributes are reached as fast after a capture has looked at them as before."""

from __future__ import annotations

from typing import Any

from ftray.checkpoint.state import attribute_names, default_load, own_dict


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
