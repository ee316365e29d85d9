"""Scheduling strategies as they travel in LEASE_REQUEST and in actors' specs.

Owns: the JSON form of strategies, and whether the only node can follow one.
Invariants: pure; what cannot be followed is either an error at once (`StrategyError`) or an obstacle that is
told while the demand waits, as Ray has it.
Leaves to others: placement groups (``placement``), waiting (``lease_service``, ``actor_service``).

The forms are ``""``, ``DEFAULT``, ``SPREAD`` (one node: all the same), or an object with a ``type``:

- ``node_affinity``: ``node_id`` in hexadecimal, ``soft``.
- ``placement_group``: ``group`` in hexadecimal, ``bundle`` (-1: any), ``capture``.
- ``node_label``: ``hard`` and ``soft``, each a dict of label to ``[operator, values]``.
"""

from __future__ import annotations

import json

from ftray._node.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_PLAIN = ("", "DEFAULT", "SPREAD")


class StrategyError(ValueError):
    """A scheduling strategy that this node cannot follow."""


class Strategy(Record):
    """What a strategy means to the only node there is.

    Attributes
    ----------
    group_id, bundle
        Of a placement group; b"" without one.
    must_fit
        A demand that is larger than the node is an error, instead of waiting.
    obstacle
        Why the demand has to wait until it is cancelled, "" when it does not.
    """

    group_id: bytes = b""
    bundle: int = -1
    must_fit: bool = False
    obstacle: str = ""


PLAIN = Strategy()


def parse(text: str, node_id: bytes, labels: Mapping[str, str]) -> Strategy:
    """Return what ``text`` asks of the node with this id and these labels.

    Raises
    ------
    StrategyError
        It is no strategy, or one that cannot be followed.
    """
    if text in _PLAIN:
        return PLAIN
    try:
        fields = json.loads(text)
        kind = fields["type"]
        if kind == "node_affinity":
            return _affinity(str(fields["node_id"]), bool(fields["soft"]), node_id)
        if kind == "placement_group":
            group_id = bytes.fromhex(fields["group"])
            return Strategy(group_id=group_id, bundle=int(fields["bundle"]))
        if kind == "node_label":
            return _labels(fields["hard"], labels)
    except StrategyError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StrategyError(f"{text!r} is no scheduling strategy that this node understands") from None
    raise StrategyError(f"the scheduling strategy {kind!r} is not supported by a single node")


def _affinity(wanted: str, soft: bool, node_id: bytes) -> Strategy:
    if wanted == node_id.hex():
        return Strategy(must_fit=not soft)
    if soft:
        return PLAIN
    raise StrategyError(
        f"node {wanted!r} is not part of this session (its node is {node_id.hex()}); "
        "use soft=True to let it run elsewhere"
    )


def _labels(hard: Mapping[str, Any], labels: Mapping[str, str]) -> Strategy:
    """Look at the hard conditions; with one node there is nothing to prefer."""
    unmet = [
        f"{key} {operator}({', '.join(values)})"
        for key, (operator, values) in sorted(hard.items())
        if not _meets(labels.get(key), operator, values)
    ]
    if not unmet:
        return PLAIN
    has = ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))
    return Strategy(obstacle=f"no node has the labels {' and '.join(unmet)} (the node's are {has})")


def _meets(value: str | None, operator: str, values: list[str]) -> bool:
    if operator == "in":
        return value in values
    if operator == "not_in":
        return value not in values
    if operator in ("exists", "does_not_exist"):
        return (value is not None) == (operator == "exists")
    raise StrategyError(f"{operator!r} is no condition on labels: in, not_in, exists, does_not_exist are")
