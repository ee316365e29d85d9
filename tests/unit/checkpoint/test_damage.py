"""Replay over what is damaged, missing or contradicts itself."""

from __future__ import annotations

import os
from typing import Any

import pytest

from ftray.checkpoint import (
    CheckpointCorruptedError,
)
from ftray.checkpoint.lineage import parse_id

from .once_support import (
    KEY,
    Tally,
    damage,
    repeat_last_record,
    started,
)

pytestmark = pytest.mark.usefixtures("who_runs_plain_calls")


class TestDamage:
    def test_the_journal_reaches_back_to_the_snapshot_before(self) -> None:
        lives = started(every=2)
        for _ in range(7):
            lives.call("incr")
        damage(lives.store, lives.store.scan(KEY).snapshots[-1])
        lives.start()
        assert lives.call("value") == 7 and lives.kinds()[0] == "snapshot_skipped"

    def test_not_over_a_call_that_no_record_can_repeat(self) -> None:
        lives = started(every=None)
        lives.call("incr")
        lives.call("roll")
        damage(lives.store, lives.store.scan(KEY).snapshots[-1])
        with pytest.raises(CheckpointCorruptedError, match="no record can repeat"):
            lives.start()

    @pytest.mark.parametrize("restarts", [0, 1, 2])
    def test_snapshots_that_went_are_missed(self, restarts: int) -> None:
        lives = started()
        lives.call("incr")
        lives.call("checkpoint")
        for _ in range(restarts):
            lives.start()
        lives.store._keys[KEY].snapshots.clear()
        with pytest.raises(CheckpointCorruptedError, match="snapshot that was durable"):
            lives.start()
        assert lives.store._keys[KEY].records, "nothing was thrown away"

    def test_a_gap_is_told(self) -> None:
        lives = started()
        for _ in range(3):
            lives.call("incr")
        del lives.store._keys[KEY].records[-2]
        with pytest.raises(CheckpointCorruptedError, match="gap"):
            lives.start()

    def test_records_that_contradict_each_other_are_told(self) -> None:
        lives = started()
        lives.call("incr")
        repeat_last_record(lives)
        with pytest.raises(CheckpointCorruptedError, match="contradicts itself at position"):
            lives.start()

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (lambda one, two: [one[0], one[2]], "value 1 of a call after 0 values"),
            (lambda one, two: [one[1]], "a value of a call that has not begun"),
            (lambda one, two: [one[0], two[1]], "a value of a call that has not begun"),
            (lambda one, two: [one[0], two[0]], "a call begins inside of another one"),
            (lambda one, two: [one[0], two[-1]], "a call ends inside of another one"),
        ],
    )
    def test_records_of_calls_that_send_stand_in_order(self, damage: Any, said: str) -> None:
        lives = started()
        for _ in range(2):
            lives.call("ask", 2)
        held = lives.store._keys[KEY]
        rest, one, two = held.records[:-8], held.records[-8:-4], held.records[-4:]
        assert [len(each) for each in (one, two)] == [4, 4], "START, two VALUEs, CALL"
        chosen = damage(one, two)
        held.records = [*rest, *(r._replace(position=len(rest) + n) for n, r in enumerate(chosen, 1))]
        with pytest.raises(CheckpointCorruptedError, match=said):
            lives.start()

    def test_large_arguments_and_replies_are_blobs_that_go_with_their_records(self) -> None:
        class Big(Tally):
            def echo(self, data: bytes) -> bytes:
                self.n += 1
                return data

        lives = started(cls=Big, every=None)
        call = lives.make("echo", os.urandom(100_000))
        reply = lives.send(call)
        named = [b for b in lives.store.list_blobs(KEY) if b.startswith("call-")]
        assert len(named) == 2
        assert lives.start().send(call) == reply
        for _ in range(2):
            lives.call("checkpoint")
        assert not [b for b in lives.store.list_blobs(KEY) if b.startswith("call-")]
        assert lives.start().call("value") == 1

    def test_blobs_stay_as_long_as_a_kept_snapshot_may_need_them(self) -> None:
        class Big(Tally):
            def keep(self, data: bytes) -> bytes:
                self.seen.append(len(data))
                return data

        lives = started(cls=Big, every=None)
        for size in (100_000, 200_000):
            lives.call("keep", os.urandom(size))
            newest = lives.call("checkpoint")
        damage(lives.store, parse_id(newest))
        lives.start()
        assert lives.session.status()["recoveries"][-1]["calls_replayed"] == 1
        assert lives.session.instance.seen == [100_000, 200_000]

    def test_a_blob_that_is_gone_is_told(self) -> None:
        class Big(Tally):
            def echo(self, data: bytes) -> int:
                return len(data)

        lives = started(cls=Big)
        lives.call("echo", bytes(100_000))
        lives.store._keys[KEY].blobs.clear()
        with pytest.raises(CheckpointCorruptedError, match="blob call-.* cannot be read"):
            lives.start()
