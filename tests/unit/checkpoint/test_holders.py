"""Who may open an exactly-once actor, and who may not while somebody holds its key."""

from __future__ import annotations

import os
from typing import Any

import pytest

from ftray.checkpoint import (
    CheckpointKeyInUseError,
    CheckpointSaveError,
    format,
    holders,
)
from ftray.checkpoint.testing import MemoryStore, crash

from .once_support import (
    KEY,
    Lives,
    memory,
    started,
)

pytestmark = pytest.mark.usefixtures("who_runs_plain_calls")


class TestHolders:
    def test_a_live_holder_elsewhere_is_named(self) -> None:
        lives = started()
        with pytest.raises(CheckpointKeyInUseError, match=rf"process {os.getpid()}.*since .*takeover=True"):
            Lives(lives.store).start()
        assert lives.call("incr") == 1, "it was not fenced"

    def test_takeover_fences_it(self) -> None:
        lives = started()
        lives.call("incr")
        other = Lives(lives.store).start(takeover=True)
        assert other.call("incr") == 2
        with pytest.raises(CheckpointSaveError):
            lives.call("incr")

    def test_a_restart_takes_over_in_silence(self) -> None:
        lives = started()
        lives.call("incr")
        session = lives.session
        lives.session = None  # it lives on, as far as anybody can see
        assert lives.start().call("incr") == 2
        crash(session)

    def test_a_process_is_told_by_pid_boot_and_start(self) -> None:
        mine = {"host": os.uname().nodename, "boot_id": holders.boot_id(), "pid": os.getppid()}
        ticks = holders.start_ticks(os.getppid())
        assert ticks is not None
        assert holders._lives({**mine, "started_ticks": ticks}) is True
        assert holders._lives({**mine, "started_ticks": ticks + 1}) is False, "another process of that number"
        assert holders._lives({**mine, "boot_id": "before"}) is False
        assert holders._lives({**mine, "pid": 0}) is False
        assert holders._lives({**mine, "host": "elsewhere"}) is None
        assert holders.start_ticks(0) is None

    def claim(self, store: MemoryStore, **fields: Any) -> None:
        record = {"actor": "other", "incarnation": 1, "host": "elsewhere", "pid": 1, "class": "X", **fields}
        store.claim(KEY, 1, format.encode_record(record))

    def test_on_another_machine_nobody_can_tell_unless_it_said_that_it_ended(self) -> None:
        store = memory()
        self.claim(store)
        with pytest.raises(CheckpointKeyInUseError, match="cannot be told from here"):
            Lives(store).start()
        holders.ended(store, KEY, 1)
        lives = Lives(store).start()
        assert lives.call("incr") == 1
        assert not [b for b in store.list_blobs(KEY) if b.startswith("ended")], "forgotten by the next one"

    def test_whoever_ends_as_planned_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lives = started()
        lives.session.close(True, "exit")
        monkeypatch.setattr(holders, "_lives", lambda _record: None)  # seen from another machine
        holder = holders.look(lives.store, KEY, 1)
        assert holder is not None and holder.lives is False
        other = Lives(lives.store).start()
        other.session.close(False, "killed")
        with pytest.raises(CheckpointKeyInUseError, match="cannot be told from here"):
            Lives(lives.store).start()

    def test_the_key_of_a_dead_driver_s_actor_is_free_though_its_process_still_ends(self) -> None:
        """The fence holds, whatever that process does; but while its driver lives it is refused as before."""
        here = {"host": os.uname().nodename, "boot_id": holders.boot_id(), "pid": os.getppid()}
        parent = holders.start_ticks(os.getppid())
        assert parent is not None
        living = {**here, "started_ticks": parent, "driver_pid": os.getppid(), "driver_ticks": parent}
        for fields in (living, {**living, "host": "elsewhere", "driver_ticks": parent + 1}):
            store = memory()
            self.claim(store, **fields)
            with pytest.raises(CheckpointKeyInUseError):
                Lives(store).start()
        store = memory()
        self.claim(store, **{**living, "driver_ticks": parent + 1})
        assert Lives(store).start().call("incr") == 1

    def test_of_two_that_start_at_once_one_is_refused(self) -> None:
        class Races(MemoryStore):
            other: Lives | None = None

            def claim(self, key: str, epoch: int, record: bytes) -> bool:
                if self.other is None:
                    self.other = Lives(self)
                    self.other.start()
                return super().claim(key, epoch, record)

        store = Races(survives=("process",))
        with pytest.raises(CheckpointKeyInUseError):
            Lives(store).start()
        assert store.other is not None and store.other.call("incr") == 1
