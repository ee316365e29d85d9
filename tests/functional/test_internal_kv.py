"""The internal key-value store: from everywhere, with bad input, and when the node or the disk fails."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

import ftray as ray
from ftray.exceptions import InternalKVError
from ftray.experimental import internal_kv as kv
from tests.helpers import introspection, processes
from tests.helpers.heads import Head
from tests.helpers.sync import eventually


@pytest.fixture
def empty(runtime):
    yield
    for namespace in (None, "a", b"b"):
        kv.delete(b"", del_by_prefix=True, namespace=namespace)


@pytest.fixture
def cold(tmp_path):
    with Head(tmp_path / "head") as found:
        yield found


# -- the API


def test_put_get_exists_delete_list(empty):
    assert kv.put("key", "value") is False
    assert kv.put(b"key", b"other", overwrite=False) is True
    assert kv.get("key") == b"value"
    assert kv.put("key", b"other") is True and kv.get(b"key") == b"other"
    assert kv.exists("key") is True and kv.exists("none") is False and kv.get("none") is None
    for name in ("ka", "kb", "x"):
        kv.put(name, b"")
    assert kv.list_keys("k") == [b"ka", b"kb", b"key"]
    assert kv.delete("ka") == 1 and kv.delete("ka") == 0
    assert kv.delete("k", del_by_prefix=True) == 2
    assert kv.list_keys(b"") == [b"x"]
    assert kv.put("", b"\x00\xff") is False and kv.get("") == b"\x00\xff"


def test_namespaces_are_apart(empty):
    for number, namespace in enumerate((None, "a", b"b")):
        assert kv.put("k", str(number), namespace=namespace) is False
    assert [kv.get("k", namespace=n) for n in (None, b"", b"a", "b")] == [b"0", b"0", b"1", b"2"]
    assert kv.list_keys("", namespace="a") == [b"k"]
    assert kv.delete("", del_by_prefix=True, namespace="a") == 1
    assert kv.exists("k") and not kv.exists("k", namespace="a") and kv.exists("k", namespace="b")


def test_rays_names(empty):
    from ftray.experimental.internal_kv import (
        _internal_kv_del,
        _internal_kv_exists,
        _internal_kv_get,
        _internal_kv_initialized,
        _internal_kv_list,
        _internal_kv_put,
    )

    assert _internal_kv_initialized() is True
    assert _internal_kv_put("k", "v", False, namespace="a") is False
    assert _internal_kv_put("k", "v", True, namespace="a") is True
    assert _internal_kv_get("k", namespace="a") == b"v" and _internal_kv_exists("k", namespace="a")
    assert _internal_kv_list("", namespace="a") == [b"k"]
    assert _internal_kv_del("k", del_by_prefix=False, namespace="a") == 1
    assert ray.experimental.internal_kv is kv


def test_tasks_and_actors_share_it_and_one_of_many_is_the_first(empty):
    @ray.remote
    def claim(number):
        return kv.put("first", str(number), overwrite=False)

    @ray.remote
    class Actor:
        def get(self):
            return kv.get("first"), kv.initialized()

        async def get_async(self):
            return kv.get("first")

    assert sorted(ray.get([claim.remote(n) for n in range(20)])) == [False] + [True] * 19
    winner = kv.get("first")
    actor = Actor.remote()
    assert ray.get([actor.get.remote(), actor.get_async.remote()]) == [(winner, True), winner]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: kv.put(5, b""), TypeError, "key must be bytes or a string, not int: 5"),
        (lambda: kv.put(b"k", None), TypeError, "value must be bytes or a string, not NoneType"),
        (lambda: kv.put(b"k", {"a": 1}), TypeError, "value must be bytes or a string, not dict"),
        (lambda: kv.put(b"k", b"v", 1), TypeError, "overwrite must be a bool, not int"),
        (lambda: kv.get(None), TypeError, "key must be"),
        (lambda: kv.get(b"k", namespace=3), TypeError, "namespace must be"),
        (lambda: kv.delete(b"k", del_by_prefix="no"), TypeError, "del_by_prefix must be a bool"),
        (lambda: kv.list_keys(bytearray(b"k")), TypeError, "key must be .* not bytearray"),
        (lambda: kv.put(bytes((64 << 10) + 1), b""), ValueError, "65537 bytes; .* at most 65536"),
        (lambda: kv.put(b"k", bytes((64 << 20) + 1)), ValueError, "67108865 bytes; .* at most 67108864"),
        (lambda: kv.get("k" * 70_000), ValueError, "70000 bytes"),
    ],
)
def test_wrong_arguments(empty, call, error, words):
    with pytest.raises(error, match=words):
        call()
    assert kv.list_keys("") == []


def test_the_largest_key_and_value(empty):
    key, value = b"k" * (64 << 10), bytes(64 << 20)
    assert kv.put(key, value) is False
    assert kv.get(key) == value
    assert kv.delete(key) == 1


# -- the node of a driver


def test_a_program_that_does_not_use_it_does_not_pay_for_it(no_runtime):
    assert kv.initialized() is False
    ray.init(num_cpus=1)
    node = introspection.node_pid()
    maps = Path(f"/proc/{node}/maps")
    assert "_sqlite3" not in maps.read_text()
    kv.put("k", "v")
    assert "_sqlite3" in maps.read_text()


def test_the_node_runs_on_when_its_store_cannot_be_used(no_runtime):
    address = ray.init(num_cpus=1)["address"]
    file = Path(address, "head.sqlite")
    file.write_bytes(b"nonsense" * 1000)
    for call in (lambda: kv.put("k", "v"), lambda: kv.get("k"), lambda: kv.list_keys("")):
        with pytest.raises(InternalKVError, match="it is damaged"):
            call()

    @ray.remote
    def two():
        return 2

    assert ray.get(two.remote()) == 2
    file.unlink()
    assert kv.put("k", "v") is False and kv.get("k") == b"v"


# -- a head


def attached(start_driver, head, source, **options):
    imports = "import sys\nimport ftray as ray\nfrom ftray.experimental import internal_kv as kv\n"
    return start_driver(f"{imports}ray.init()\n{source}", env=head.env, **options)


def test_what_was_acknowledged_is_there_after_the_head_was_killed(cold, start_driver):
    cold.start()
    writer = attached(
        start_driver,
        cold,
        "try:\n    for n in range(1_000_000):\n        kv.put(b'%d' % n, b'value of %d' % n, "
        "namespace='w')\n        sys.stdout.write(f'{n}\\n'); sys.stdout.flush()\nexcept "
        "ray.exceptions.HeadDiedError:\n    tell('dead')\n",
    )
    eventually(lambda: len(writer.out) > 50)
    cold.kill()
    writer.expect("dead")
    writer.finish()
    last = int(writer.out[-1])

    cold.start()
    reader = attached(
        start_driver,
        cold,
        "keys = {int(k) for k in kv.list_keys('', namespace='w')}\n"
        "tell('keys', [len(keys), max(keys)])\n"
        "tell('right', all(kv.get(b'%d' % n, namespace='w') == b'value of %d' % n for n in keys))\n",
    )
    count, largest = reader.expect("keys")
    assert count == largest + 1 and last <= largest <= last + 1
    assert reader.expect("right") is True
    reader.finish()
    cold.quick("stop")
    cold.check_nothing_left()

    cold.start()
    again = attached(start_driver, cold, "tell('count', len(kv.list_keys('', namespace='w')))\n")
    assert again.expect("count") == count
    again.finish()
    cold.quick("stop")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"nonsense" * 1000, "it is damaged"), (None, "none of ftray's")],
    ids=["damaged", "foreign"],
)
def test_a_head_does_not_start_on_a_storage_that_it_cannot_use(cold, content, words):
    cold.storage.mkdir()
    file = cold.storage / "head.sqlite"
    if content is None:
        import sqlite3

        connection = sqlite3.connect(file)
        connection.execute("CREATE TABLE theirs (a)")
        connection.close()
    else:
        file.write_bytes(content)
    text = cold.run("start", "--head", "--storage", str(cold.storage), status=1)
    assert words in text and str(file) in text and "Traceback" not in text
    cold.check_nothing_left()


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="needs to mount")
def test_a_full_disk_costs_the_write_only(start_driver, tmp_path):
    workdir = tmp_path / "head"
    script = f'mount -t tmpfs -o size=1m tmpfs "{workdir}/storage" && exec "$0" "$@"'
    wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    with Head(workdir, wrapper) as head:
        head.storage.mkdir()
        head.start()
        driver = attached(
            start_driver,
            head,
            """
kv.put("small", "1")
try:
    kv.put("large", bytes(4 << 20))
except ray.exceptions.OutOfDiskError as error:
    tell("full", str(error))
@ray.remote
def two():
    return 2
kv.put("small", "2")
tell("after", [kv.exists("large"), kv.get("small").decode(), ray.get(two.remote())])
""",
        )
        assert "free disk space" in driver.expect("full")
        assert driver.expect("after") == [False, "2", 2]
        driver.finish()
        pid = head.pid
        head.wrapper = ()
        processes.send_signal(pid, signal.SIGTERM)
        processes.wait_ended([pid])
        head.check_nothing_left()
