"""No golden file without a test, no format without a golden file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from ftray import checkpoint
from ftray._core.ledger import Ledger
from ftray.checkpoint import marks
from ftray.checkpoint.segments import MODES
from tests import ROOT
from tests.helpers.documents import table

from . import golden_support as golden
from . import second_key_reader, second_record_reader
from .golden_support import GOLDEN

PAGE = Path(ROOT) / "docs" / "storage-format.md"
HERE = Path(__file__).parent
MAGIC = re.compile(rb"\x89FT[A-Z]{2,3}P?\r\n")
MOST_BYTES = 300 << 10


def spans(cell: str) -> list[str]:
    """What a cell of a table has as code."""
    return re.findall(r"`([^`]+)`", cell)


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in GOLDEN.iterdir() if path.name != "README.md"}


def contents() -> Iterator[tuple[str, bytes]]:
    """Every golden file, and every entry of those that are archives, with their names."""
    for name, data in files().items():
        if name.endswith(".zip"):
            yield from ((f"{name}/{entry}", found) for entry, found in golden.unpacked(name).items())
        else:
            yield name, data


def test_each_has_a_test_that_names_it() -> None:
    rows = {spans(row[0])[0]: row[1:] for row in table((GOLDEN / "README.md").read_text(), "file")}
    assert set(rows) == set(files())
    for file, (maker, test) in rows.items():
        assert f'"{file}"' in (HERE / spans(test)[0]).read_text(), f"{file} is not read by {test}"
        for path in spans(maker):
            assert (HERE / path).exists()


def test_the_page_says_of_each_what_it_is_for() -> None:
    rows = table(PAGE.read_text(), "format")
    assert set(itertools.chain(*(spans(row[1]) for row in rows))) == set(files())
    said = " ".join(row[0] for row in rows)
    for heading in re.findall(r"^## (.*), format version \d$", PAGE.read_text(), re.M):
        assert heading in said, f"the page names no golden file of {heading!r}"


def test_they_are_small() -> None:
    assert sum(map(len, files().values())) <= MOST_BYTES


def test_each_version_that_is_written_is_there() -> None:
    """Of every kind of binary file that the toolkit has: a new version needs a new golden file."""
    written = set()
    package = Path(checkpoint.__file__).parent
    for path in package.rglob("*.py"):
        source = path.read_text()
        for magic in re.findall(r'MAGIC\b.*= b"(\\x89FT[A-Z]+\\r\\n)"', source):
            version = re.search(r"VERSION = (\d+)|_MAGIC, _VERSION = .*, (\d+)$", source, re.M)
            assert version is not None, f"{path}: what version has {magic}?"
            written.add(
                (magic.encode().decode("unicode_escape").encode("latin-1"), int(version[1] or version[2]))
            )
    assert len(written) == 6
    there = set()
    for _, data in contents():
        for found in MAGIC.finditer(data):
            there.add((found[0], int.from_bytes(data[found.end() : found.end() + 2], "little")))
    assert written <= there, f"no golden file has {written - there}"


def test_each_version_of_the_ledger_is_there() -> None:
    newest = int.from_bytes(Ledger(bytes(16)).dump()[8:12], "little")
    found = {
        int.from_bytes(data[at.end() : at.end() + 4], "little")
        for _, data in contents()
        for at in re.finditer(b"ftledger", data)
    }
    assert found == set(range(1, newest + 1))


def _records(archive: str) -> Iterator[bytes]:
    for name, data in golden.unpacked(archive).items():
        if "/journal-" in name:
            yield from (p for kind, _, p in second_key_reader.second_reader.records(data) if kind == 1)
        elif re.search(r"/journal/\d+$", name):
            _, payload = second_key_reader.unpacked(data, "journal")
            while payload:
                size = int.from_bytes(payload[:4], "little")
                yield payload[4 : 4 + size]
                payload = payload[4 + size :]


def test_each_kind_of_record_is_there_in_every_kind_of_store() -> None:
    calls = {second_record_reader.CALL, second_record_reader.START, second_record_reader.VALUE}
    calls |= {second_record_reader.RELEASE, second_record_reader.SEEN}
    wanted = calls | {v for k, v in vars(marks).items() if k.isupper() and not k.startswith("_")}
    for mode in (*MODES.values(), "objects"):
        assert {payload[0] for payload in _records(f"key-v1.{mode}.zip")} == wanted


def test_each_kind_of_file_is_there() -> None:
    """As the first table of the page has them, but for what nobody reads."""
    patterns = {spans(row[0])[0]: row for row in table(PAGE.read_text(), "file")}
    there = {name.rpartition("/")[2] for name, _ in contents() if ".objects.zip/" not in name}
    for pattern in patterns:
        if pattern.startswith(".tmp-"):
            continue
        spelt = re.sub("E{2,}|S{2,}|N{2,}", r"\\d+", re.escape(pattern)).replace("NAME", ".+")
        assert any(re.fullmatch(spelt, name) for name in there), f"no golden store has a {pattern}"


def test_each_kind_of_object_is_there() -> None:
    """As the second table of the page has them, but for what nobody reads."""
    there = set()
    for archive in ("key-v1.objects.zip", "store-v1.objects.zip", "key-v1.leased.zip"):
        there |= {name.partition("/")[2] for name in golden.unpacked(archive)}
    for row in table(PAGE.read_text(), "object"):
        for pattern in spans(row[0]):
            if pattern.startswith("probe-"):
                continue
            spelt = re.sub(r"\b[ESN]\b", r"\\d+", re.escape(pattern)).replace("NAME", ".+")
            spelt = re.sub(r"\bW\b", "[0-9a-f]+", spelt)
            assert any(re.fullmatch(spelt, name) for name in there), f"no golden store has a {pattern}"
    manifests = [
        second_key_reader.line(data)[0]
        for name, data in golden.unpacked("key-v1.objects.zip").items()
        if re.search(r"\.ckpt$|/data/", name)
    ]
    assert {(head["kind"], "blob" in head) for head in manifests} == {
        ("snapshot", False),
        ("snapshot", True),
        ("blob", False),
        ("blob", True),
    }
    journal = [
        second_key_reader.line(data)[0]["count"]
        for name, data in golden.unpacked("key-v1.objects.zip").items()
        if re.search(r"/journal/\d+$", name)
    ]
    assert 0 in journal and max(journal) >= 1, "fences, and records"
