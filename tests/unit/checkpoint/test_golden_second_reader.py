"""The golden keys are what docs/storage-format.md says: a reader that was written from it reads them."""

from __future__ import annotations

from typing import Any

import pytest

from ftray.checkpoint import segments

from . import golden_support as golden
from . import second_key_reader, second_record_reader
from .golden_support import DIRECTORY, FORMER_TASK, LARGE, driver_call, keyed_call
from .test_golden_keys import ARCHIVES, HISTORIES, RECORDS, RUNNING


@pytest.fixture(params=ARCHIVES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def key_files(archive: str) -> dict[str, bytes]:
    return {name[len(DIRECTORY) + 1 :]: data for name, data in golden.unpacked(archive).items()}


class TestSecondReader:
    def test_it_finds_what_we_find(self, kind: str) -> None:
        files = key_files(ARCHIVES[kind])
        read = second_key_reader.of_objects if kind == "objects" else second_key_reader.of_directory
        found = read(files)
        assert (found.snapshot, found.header["history"]) == ("1-4", HISTORIES[kind])
        assert found.header["hash_seed"] == golden.SEED and found.header["boot_id"] == golden.BOOT
        assert found.state == {"n": 258, "seen": [], "large": bytearray(LARGE)}
        names = {1: "CALL", 2: "START"}
        tail = [(position, said) for position, (_, said) in enumerate(RECORDS, 1) if position > 14]
        wanted = [(position, said[0], said[3]) for position, said in tail if said[0] in names.values()]
        assert [(c.position, names[c.kind], c.method) for c in found.calls] == wanted
        kept = found.calls[4]
        assert LARGE[1:] in kept.args and LARGE[:0:-1] in kept.reply
        assert [c.status for c in found.calls] == [0, 0, 1, *[0] * 8, 1, 0, 0]

    def test_the_ledger(self, kind: str) -> None:
        found = self._ledger(kind)
        assert (found["version"], found["history"], found["expirable"]) == (2, 1, 1)
        driver, task, method = (found["callers"][who] for who in (golden.ROOT, golden.TASK, golden.METHOD))
        assert (driver["root_kind"], driver["acked"], driver["attempts"]) == (0, 4, (0,))
        assert [(c["n"], c["position"]) for c in driver["calls"]] == [(4, 13)]
        assert (task["expired"], task["attempts"], task["acked"]) == ([(1, 1)], (0, 1), 2)
        assert [(c["n"], c["reply"]) for c in task["calls"]] == [(2, b"\3\x67" + bytes(7))]
        assert (method["inside"], method["root_kind"], method["root"]) == (True, 2, b"another-process-")
        assert [(c["n"], c["retry"], c["status"]) for c in method["calls"]] == [(1, 2, 1)]
        assert [(c["call_id"], c["place"], c["position"]) for c in found["keyed"]] == [
            (keyed_call("order-3", "incr").head[48:64], 1, 14)
        ]
        gone = {keyed_call(f"order-{n}", "incr").head[48:64] for n in (1, 2)}
        assert {call_id for call_id, _ in found["keyed_expired"]} == gone
        assert found["released"] == [(golden.ROOT, FORMER_TASK)]

    def _ledger(self, kind: str) -> dict[str, Any]:
        files = key_files(ARCHIVES[kind])
        data = files["snap-0000000001-000000000004.ckpt"]
        if kind == "objects":
            head, _ = second_key_reader.unpacked(data, "snapshot")
            data = files[head["blob"]]
        return second_record_reader.ledger(second_key_reader.snapshot(data)[1][-1])

    def test_life_and_watch(self, kind: str) -> None:
        files = key_files(ARCHIVES[kind])
        if kind == "objects":
            text = second_key_reader.unpacked(files["life-0000000006"], "life")[1]
            assert text.decode() == f'["{RUNNING.hex()}", 1]'
            notes = [second_key_reader.unpacked(files[f"watch-000000000{n}"], "watch")[1] for n in (8, 9)]
            found = [second_record_reader.watch(note) for note in notes]
            assert [(n["place"], n["deaths"], n["now"]) for n in found] == [
                ((0, 0), 0, (33, 34)),
                ((33, 34), 1, (33, 33)),
            ]
            return
        found_life = second_record_reader.life(files["epoch-0000000006.live"])
        assert (found_life["epoch"], found_life["fence"], found_life["running"]) == (6, 9, 1)
        assert found_life["boot"].hex() == golden.BOOT.replace("-", "")
        assert (found_life["call_id"], found_life["doubt"]) == (RUNNING, 0)
        assert (found_life["row_call_id"], found_life["row"]) == (driver_call(12, "step").head[48:64], 3)
        watches = [second_record_reader.watch_file(files[f"epoch-000000000{n}.watch"]) for n in (6, 8, 9)]
        assert {boot for boot, _ in watches} == {found_life["boot"]}
        assert [(n["place"], n["deaths"], n["now"], n["over"]) for _, n in watches] == [
            ((0, 0), 0, (0, 0), True),
            ((0, 0), 0, (33, 33), False),
            ((33, 33), 1, (33, 33), False),
        ]


def test_every_kind_of_entry_of_a_segment() -> None:
    """Of each kind there is one: records, marks, the end of a full segment, a journal that was closed."""
    for mode in ("process", "power"):
        found = set()
        for name, data in key_files(ARCHIVES[mode]).items():
            if name.startswith("journal-"):
                scanned = segments.scan(data)
                assert scanned.header.durability == mode and scanned.header.boot_id == golden_boot()
                assert scanned.broken is None and not scanned.beyond
                found |= {record.kind for record in scanned.records}
        assert found == {segments.DATA, segments.MARK, segments.END, segments.CLOSED}


def golden_boot() -> bytes:
    return bytes.fromhex(golden.BOOT.replace("-", ""))
