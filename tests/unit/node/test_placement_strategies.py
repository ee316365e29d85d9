"""Scheduling strategies as users give them, and what they become."""

from __future__ import annotations

import pytest

from ftray._node import strategies
from ftray._node.amounts import fixed_point


def gid(number: int) -> bytes:
    return bytes([number]) * 18


def cpus(n: float) -> dict[str, int]:
    return fixed_point([("CPU", n)])


class TestStrategies:
    NODE = b"n" * 28
    LABELS = {"zone": "a", "kind": "big"}

    def parse(self, text: str) -> strategies.Strategy:
        return strategies.parse(text, self.NODE, self.LABELS)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "DEFAULT",
            "SPREAD",
            '{"type": "node_affinity", "node_id": "00", "soft": true}',
            '{"type": "node_label", "hard": {"zone": ["in", ["a", "b"]]}, "soft": {}}',
            '{"type": "node_label", "hard": {"zone": ["not_in", ["b"]], "new": ["not_in", ["b"]]}}',
            '{"type": "node_label", "hard": {"zone": ["exists", []], "new": ["does_not_exist", []]}}',
            '{"type": "node_label", "hard": {}, "soft": {"zone": ["in", ["b"]]}}',
        ],
    )
    def test_those_that_mean_nothing_here(self, text: str) -> None:
        assert self.parse(text) == strategies.PLAIN

    def test_those_that_mean_something(self) -> None:
        text = '{"type": "node_affinity", "node_id": "' + self.NODE.hex() + '", "soft": false}'
        assert self.parse(text) == strategies.Strategy(must_fit=True)
        text = '{"type": "placement_group", "group": "' + gid(1).hex() + '", "bundle": 2, "capture": true}'
        assert self.parse(text) == strategies.Strategy(group_id=gid(1), bundle=2)

    @pytest.mark.parametrize("rule", ['["in", ["b"]]', '["not_in", ["a"]]', '["does_not_exist", []]'])
    def test_labels_that_no_node_has_are_an_obstacle(self, rule: str) -> None:
        wanted = self.parse('{"type": "node_label", "hard": {"zone": ' + rule + "}}")
        assert "no node has the labels zone" in wanted.obstacle and "zone=a" in wanted.obstacle

    @pytest.mark.parametrize(
        "text",
        [
            "nonsense",
            "[]",
            "{}",
            '{"type": "labels"}',
            '{"type": "node_affinity"}',
            '{"type": "node_affinity", "node_id": "00", "soft": false}',
            '{"type": "placement_group", "group": "xx", "bundle": 1}',
            '{"type": "placement_group", "group": "00", "bundle": "x"}',
            '{"type": "node_label", "hard": {"zone": ["like", ["a"]]}}',
            '{"type": "node_label", "hard": {"zone": 5}}',
            '{"type": "node_label", "hard": []}',
        ],
    )
    def test_those_that_cannot_be_followed(self, text: str) -> None:
        with pytest.raises(strategies.StrategyError):
            self.parse(text)
