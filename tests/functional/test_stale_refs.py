"""Refs and handles that are stale, foreign or made up: a specific error at each use, never a wait."""

from __future__ import annotations

import os
import pickle

import pytest

import ftray as ray
from ftray._core.objects import rebuild_ref
from ftray.exceptions import NotInitializedError, ObjectLostError, OwnerDiedError, RaySystemError
from tests.helpers import processes

NOBODY = b"\x5a" * 28
UNKNOWN = b"\xa5" * 28


@ray.remote(num_cpus=0)
class Owner:
    def put(self):
        return [ray.put("kept here")]

    def worker_id(self):
        return bytes.fromhex(ray.get_runtime_context().get_worker_id())

    def pid(self):
        return os.getpid()


@ray.remote(num_cpus=0)
def same(value):
    return value


def uses(ref):
    """Everything that wants the value."""
    return [
        lambda: ray.get(ref, timeout=20),
        lambda: ray.get([ref], timeout=20),
        lambda: ray.get(same.remote(ref), timeout=20),
        lambda: ray.get(ray.get(same.remote([ref]))[0], timeout=20),
    ]


@pytest.mark.usefixtures("runtime")
def test_a_made_up_ref_of_an_owner_that_never_was():
    for use in uses(rebuild_ref(UNKNOWN, NOBODY)):
        with pytest.raises(OwnerDiedError):
            use()


@pytest.mark.usefixtures("runtime")
def test_a_made_up_ref_of_this_process():
    me = bytes.fromhex(ray.get_runtime_context().get_worker_id())
    for use in uses(rebuild_ref(UNKNOWN, me)):
        with pytest.raises(ObjectLostError):
            use()


@pytest.mark.usefixtures("runtime")
def test_a_made_up_ref_of_a_living_worker():
    owner = Owner.remote()
    for use in uses(rebuild_ref(UNKNOWN, ray.get(owner.worker_id.remote()))):
        with pytest.raises(ObjectLostError):
            use()


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize(("ref", "owner"), [(b"", b""), (UNKNOWN, NOBODY[:27]), (UNKNOWN + b"x", NOBODY)])
def test_bytes_that_are_no_ref(ref, owner):
    with pytest.raises(ValueError, match="not the pickle of an ObjectRef"):
        rebuild_ref(ref, owner)


@pytest.mark.usefixtures("runtime")
def test_a_ref_whose_owner_is_dead():
    owner = Owner.remote()
    (ref,) = ray.get(owner.put.remote())
    processes.end(ray.get(owner.pid.remote()))

    for use in uses(ref):
        with pytest.raises(OwnerDiedError):
            use()
    assert ray.wait([ref], timeout=20)[0] == [ref]  # there is something to get: the error


@pytest.mark.usefixtures("runtime")
def test_refs_and_handles_are_not_for_other_picklers():
    for value in (ray.put(1), Owner.remote()):
        with pytest.raises(TypeError, match="was pickled outside of ftray"):
            pickle.dumps(value)


def stale_uses(ref, handle, method):
    return [
        *uses(ref),
        lambda: ray.wait([ref]),
        lambda: ray.cancel(ref),
        lambda: ray.kill(handle),
        lambda: handle.pid.remote(),
        lambda: method.remote(),
        lambda: same.remote(handle),
        lambda: ref.hex(),
    ]


def test_what_belongs_to_a_session_that_has_ended(no_runtime):
    ray.init(num_cpus=1)
    ref, handle = ray.put(1), Owner.remote()
    method = handle.pid
    ray.get(method.remote())
    ray.shutdown()

    for use in (lambda: ray.get(ref), lambda: handle.pid.remote(), lambda: ray.cancel(ref)):
        with pytest.raises(NotInitializedError):
            use()
    ray.init(num_cpus=1)
    for use in stale_uses(ref, handle, method):
        with pytest.raises(RaySystemError, match="belongs to a session that has ended"):
            use()
    assert "session that has ended" in repr(ref) + repr(handle)
    assert ref == ref and handle == handle and {ref, handle} == {handle, ref}
    assert ray.get(same.remote(2)) == 2


def test_refs_of_two_sessions_are_different(no_runtime):
    ray.init(num_cpus=1)
    old = ray.put(1)
    ray.shutdown()
    ray.init(num_cpus=1)
    assert all(ray.put(1) != old for _ in range(50))
