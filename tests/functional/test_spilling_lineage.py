"""A spilled value whose file is gone or damaged is a lost value: lineage makes it again."""

from __future__ import annotations

import numpy as np
import pytest

import ftray as ray
from tests.helpers.spilling import MB, STORE, check, matches, pattern, spill_all, spill_dir
from tests.helpers.sync import eventually

SIZE = 4 * MB
pytestmark = [
    pytest.mark.usefixtures("runtime"),
    pytest.mark.runtime(num_cpus=2, object_store_memory=STORE),
]


@ray.remote
def make(tally, number):
    tally.bump()
    return pattern(number, SIZE)


@ray.remote
def double(tally, array):
    tally.bump()
    return np.concatenate([array, array])


@ray.remote
class Keeper:
    def keep(self, refs):
        self.refs = refs

    def right(self, number):
        return bool(np.array_equal(ray.get(self.refs[0]), pattern(number, SIZE)))


def spill(*refs):
    ray.wait(list(refs), num_returns=len(refs))
    spill_all(refs)


def lose_files():
    files = list(spill_dir().iterdir())
    assert files
    for file in files:
        file.unlink()
    return files


def test_get_has_it_made_again(tally):
    ref = make.remote(tally, 1)
    spill(ref)
    lose_files()
    check(ray.get(ref), 1)
    assert tally.count == 2


def test_a_damaged_file_is_not_read(tally):
    ref = make.remote(tally, 1)
    spill(ref)
    (file,) = spill_dir().iterdir()
    data = bytearray(file.read_bytes())
    data[SIZE // 2] ^= 1
    file.write_bytes(data)
    check(ray.get(ref), 1)
    assert tally.count == 2


def test_a_call_that_takes_it_and_the_owner_have_one_execution(tally):
    ref = make.remote(tally, 1)
    spill(ref)
    lose_files()
    calls = [matches.remote(ref, 1) for _ in range(3)]
    check(ray.get(ref), 1)
    assert ray.get(calls) == [True] * 3
    assert tally.count == 2


def test_a_borrower_gets_it(tally):
    ref = make.remote(tally, 1)
    keeper = Keeper.remote()
    ray.get(keeper.keep.remote([ref]))
    assert ray.get(keeper.right.remote(1))
    spill(ref)
    lose_files()
    assert ray.get(keeper.right.remote(1))
    assert tally.count == 2


def test_made_again_from_an_argument_that_is_lost_too(tally):
    base = make.remote(tally, 1)
    ref = double.remote(tally, base)
    spill(base, ref)
    lose_files()
    assert np.array_equal(ray.get(ref), np.concatenate([pattern(1, SIZE)] * 2))
    assert tally.count == 4


def test_a_spilled_argument_that_only_lineage_needs_leaves_the_disk(tally):
    base = make.remote(tally, 1)
    ref = double.remote(tally, base)
    spill(base, ref)
    assert len(list(spill_dir().iterdir())) == 2
    del base
    eventually(lambda: len(list(spill_dir().iterdir())) == 1, "its file is removed")
    lose_files()
    assert np.array_equal(ray.get(ref), np.concatenate([pattern(1, SIZE)] * 2))
    assert tally.count == 4


def test_one_return_of_two(tally):
    @ray.remote(num_returns=2)
    def both(tally):
        tally.bump()
        return pattern(0, SIZE), pattern(1, SIZE)

    refs = both.remote(tally)
    spill(*refs)
    first, _ = sorted(spill_dir().iterdir())
    first.unlink()
    for i, ref in enumerate(refs):
        check(ray.get(ref), i)
    assert tally.count == 2


def test_no_retry_left_is_an_error_that_names_the_file(tally):
    ref = make.options(max_retries=0).remote(tally, 1)
    spill(ref)
    (file,) = lose_files()
    with pytest.raises(
        ray.exceptions.ObjectReconstructionFailedMaxAttemptsExceededError, match=f"{file.name}.*max_retries"
    ):
        ray.get(ref)
    assert tally.count == 1


def test_what_was_put_is_lost():
    ref = ray.put(pattern(1, SIZE))
    spill_all([ref])
    (file,) = lose_files()
    for _ in range(2):
        with pytest.raises(ray.exceptions.ObjectLostError, match=rf"{file.name} is gone.*put\(\)"):
            ray.get(ref)


def test_a_file_that_cannot_be_read_now(tally):
    """What can be made again is; what cannot is asked for anew by each `get`."""
    put, made = ray.put(pattern(1, SIZE)), make.remote(tally, 2)
    spill(put, made)
    moved = {}
    for file in list(spill_dir().iterdir()):
        moved[file] = file.rename(file.with_suffix(".moved"))
        file.symlink_to(moved[file])  # which is not followed: ELOOP
    check(ray.get(made), 2)
    for _ in range(2):
        with pytest.raises(ray.exceptions.ObjectLostError, match=r"\.spill"):
            ray.get(put)
    for file, place in moved.items():
        if file.is_symlink():
            place.replace(file)
        else:  # of what was made again
            place.unlink()
    check(ray.get(put), 1)
    assert tally.count == 2
