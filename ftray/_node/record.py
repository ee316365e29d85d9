"""Frozen value objects without the import cost of ``dataclasses`` (10 ms of every start of ``ftrayd``).

Owns: ``Record``. A subclass annotates its fields; instances are immutable, comparable, hashable and
printable. Type checkers see a frozen dataclass.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_options):
        """Mean nothing at run time."""
        return lambda cls: cls


@dataclass_transform(frozen_default=True)
class Record:
    """Base of frozen value objects: fields are the annotated names, in order, with optional defaults."""

    if TYPE_CHECKING:
        _fields: ClassVar[tuple[str, ...]]
        _defaults: ClassVar[dict[str, Any]]
    else:
        _fields = ()
        _defaults = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = [
            n
            for n, kind in cls.__dict__.get("__annotations__", {}).items()  # noqa: RUF063 - inspect is slow to import
            if not str(kind).startswith("ClassVar")
        ]
        cls._fields = cls._fields + tuple(own)
        cls._defaults = {**cls._defaults, **{n: cls.__dict__[n] for n in own if n in cls.__dict__}}

    if not TYPE_CHECKING:

        def __init__(self, *args, **kwargs):
            fields = self._fields
            values = self.__dict__
            values.update(zip(fields, args, strict=False))
            values.update(kwargs)
            if len(values) != len(fields):
                for name, default in self._defaults.items():
                    values.setdefault(name, default)
            if len(args) > len(fields) or len(values) != len(fields) or any(n not in values for n in fields):
                raise TypeError(
                    f"{type(self).__name__} takes the fields {fields}, got {args!r} and {kwargs!r}"
                )

        def __setattr__(self, name, value):
            raise AttributeError(f"{type(self).__name__} is immutable: cannot set {name!r}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *(self.__dict__[name] for name in self._fields)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={self.__dict__[n]!r}' for n in self._fields)})"
