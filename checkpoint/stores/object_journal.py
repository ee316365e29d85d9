"""The journal of one incarnation as objects: group commit, one request in flight.

Objects have one number per key, without gaps, over all epochs. Each is created exclusively at the number
after the last one, so creating it *is* the check of the fence: whoever claims the key later puts an object
of its own at the next free number, and what a stale writer sends, however late, finds its number taken. With
one request in flight, what is durable has no gap. `process` durability is the same as `power` here.

Invariants: a record is durable only after the request that creates its object has returned and the claim was
found in place; after the first failure nothing becomes durable any more.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from .. import faults
from ..errors import CheckpointSaveError, CheckpointStoreError, CheckpointTimeoutError, FencedError
from ..journal import Buffer, OnDurable, OnFailure
from .memory_journal import Life, check_call_id, joined
from .objects import Objects, new_token, pack

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from .leases import Lease
    from .outage import Outage

LENGTH = struct.Struct("<I")
OBJECT_BYTES = 8 << 20
"""An object takes no further record beyond this size; a single larger record is an object of its own."""
NOTED_CALLS = 8
"""How many of an incarnation's first calls are noted in the store while they run (see `running`)."""


def object_name(number: int) -> str:
    """Return the name of a journal object."""
    return f"journal/{number:020}"


def pack_records(epoch: int, number: int, first: int, records: Sequence[bytes]) -> bytes:
    """Return a journal object with these records; without any it is a fence."""
    payload = b"".join(piece for record in records for piece in (LENGTH.pack(len(record)), record))
    return pack("journal", payload, new_token(), epoch=epoch, number=number, first=first, count=len(records))


class ObjectJournal:
    """See `journal.Journal`.

    Parameters
    ----------
    objects : Objects
        With enough retries to sit out a disturbance: replies wait meanwhile.
    directory : str
        Of the key.
    look, look_closely : callable
        Raise `FencedError` if the claim of this epoch is not there any more; closely: or is not the highest.
    lease : Lease, optional
        By which the key is held, if that is not by the creation of objects. Ended with the journal.
    note : callable
        Stores which call the incarnation is to be blamed for, and how many died in it.
    put_blob : callable
        ``put_blob(name, parts)`` makes a blob of a call durable.
    life : Life
        What those before have died in.
    outage : Outage
        Is told of requests that fail and are tried again: of `objects`, and of all these functions.
    number : int
        The next free one.
    commit_interval_s : float
        Least time between the starts of two requests: what bounds the price per hour.
    """

    def __init__(
        self,
        objects: Objects,
        directory: str,
        key: str,
        epoch: int,
        number: int,
        first_position: int,
        *,
        look: Callable[[], None],
        look_closely: Callable[[], None],
        lease: Lease | None = None,
        note: Callable[[tuple[bytes, int] | None], None],
        put_blob: Callable[[str, Sequence[Buffer]], None],
        life: Life,
        outage: Outage,
        commit_interval_s: float,
        on_durable: OnDurable | None,
        on_failure: OnFailure | None,
    ) -> None:
        self.on_durable, self.on_failure = on_durable, on_failure
        self.last_position = self.durable_position = first_position - 1
        self.waiting_bytes = 0
        self._objects, self._directory, self._key, self._epoch = objects, directory, key, epoch
        self._look, self._look_closely = look, look_closely
        self._note, self._life = note, life
        self.put_blob, self.outage = put_blob, outage
        self._lease = lease
        self._calls = 0
        self._noted = life.row()
        self._number = number
        self._interval_s = commit_interval_s
        self._next_start_s = 0.0
        self._changed = threading.Condition()
        self._most_bytes = min(OBJECT_BYTES, objects.medium.limit_bytes or OBJECT_BYTES)
        self._pending: list[bytes] = []
        self._limit: int | None = None
        self._closing = False
        self._failure: BaseException | None = None
        self._lookers: ThreadPoolExecutor | None = None
        self._thread = threading.Thread(target=self._run, name=f"journal {key}", daemon=True)
        self._thread.start()

    @property
    def survives(self) -> frozenset[str]:
        """What the store survives."""
        return self._objects.medium.survives

    # -- the actor's side --------------------------------------------------------------------------

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closing:
            raise CheckpointSaveError(
                f"the journal of epoch {self._epoch} of checkpoint key {self._key!r} is closed"
            )

    def append(self, payload: Buffer | Sequence[Buffer]) -> int:
        """Append one record."""
        data = joined(payload)
        limit = self._objects.medium.limit_bytes
        if limit is not None and len(data) + LENGTH.size > limit:
            raise ValueError(
                f"a record of {len(data)} bytes does not fit into {self._objects.medium.url}, which takes "
                f"at most {limit - LENGTH.size} bytes each"
            )
        with self._changed:
            self._check()
            self._pending.append(data)
            self.waiting_bytes += len(data)
            self.last_position += 1
            self._changed.notify_all()
            return self.last_position

    def flush(self) -> None:
        """Nothing: the thread takes what there is as soon as it may make a request."""

    def hold_back(self, position: int | None) -> bool:
        """Write no record from a position on before this is called again; None: write all."""
        with self._changed:
            self._limit = position
            self._changed.notify_all()
        return True

    def fail(self, error: BaseException) -> None:
        """Nothing becomes durable any more."""
        if self._failure is None:
            self._fail(error)

    def wait(self, position: int, timeout_s: float) -> None:
        """Wait until a position is durable."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while self.durable_position < position:
                if self._failure is not None or (self._closing and position > self.last_position):
                    self._check()
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise CheckpointTimeoutError(
                        f"position {position} of checkpoint key {self._key!r} in {self._objects.medium.url} "
                        f"is not durable after {timeout_s} s"
                    )
                self._changed.wait(left_s)

    def running(self, call_id: bytes | None) -> None:
        """Note which call runs: in the store for the first calls of an incarnation, and for any suspect.

        A call that ends its process is sent again to the next one, where it is among the first calls. Waits
        while the store does not answer.
        """
        check_call_id(call_id)
        self._calls += call_id is not None
        self._life.run(call_id)
        row = self._life.row()
        if row == self._noted:
            return
        if row is None or row[1] > 1 or self._calls <= NOTED_CALLS:
            try:
                self._note(row)
            except CheckpointSaveError as error:
                self.fail(error)
                raise
            self._noted = row

    def holds(self) -> bool:
        """Look at the claims; waits while the store does not answer."""
        if self._failure is not None:
            return False
        try:
            self._look_closely()
        except FencedError:
            return False
        except CheckpointSaveError as error:  # the lease ran out
            self.fail(error)
            return False
        except CheckpointStoreError as error:
            self.fail(self._cannot("look at its claims", error))
            return False
        return self._failure is None

    def close(self, timeout_s: float) -> None:
        """Make all durable, end the thread."""
        with self._changed:
            closed, self._closing = self._closing, True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if closed:
            return
        if self._thread.is_alive():
            raise CheckpointTimeoutError(
                f"position {self.last_position} of checkpoint key {self._key!r} in "
                f"{self._objects.medium.url} is not durable after {timeout_s} s"
            )
        if self._failure is not None:
            raise self._failure

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._commit(batch)
        except CheckpointSaveError as error:
            self._fail(error)
        except Exception as error:
            name = f"{self._directory}/{object_name(self._number)}"
            self._fail(self._cannot(f"be written ({name})", error))
        except BaseException as error:  # nobody is to wait for a thread that is no more
            self._fail(CheckpointSaveError(f"the journal of checkpoint key {self._key!r} ended: {error!r}"))
            raise
        finally:
            if self._lookers is not None:
                self._lookers.shutdown(wait=False)
            if self._lease is not None:
                self._lease.stop()

    def _next_batch(self) -> list[bytes]:
        """Wait for records and for the next start; take what fits into an object. Empty: closed."""
        with self._changed:
            while self._failure is None and not (self._closing and not self._pending):
                left_s = 0.0 if self._closing else self._next_start_s - time.monotonic()
                if self._allowed() and left_s <= 0:
                    break
                self._changed.wait(left_s if self._allowed() else None)
            self._next_start_s = time.monotonic() + self._interval_s
            size = taken = 0
            for record in self._pending[: self._allowed()]:
                if taken and size + len(record) + LENGTH.size > self._most_bytes:
                    break
                size += len(record) + LENGTH.size
                taken += 1
            batch = self._pending[:taken]
            del self._pending[:taken]
            return batch

    def _allowed(self) -> int:
        """How many of the records that wait may be written."""
        if self._limit is None:
            return len(self._pending)
        return max(0, min(len(self._pending), self._limit - 1 - (self.last_position - len(self._pending))))

    def _commit(self, batch: list[bytes]) -> None:
        first = self.durable_position + 1
        data = pack_records(self._epoch, self._number, first, batch)
        name = f"{self._directory}/{object_name(self._number)}"
        if faults.active:
            faults.hit("object.journal.begin")
        looked = self._look_meanwhile()
        created = self._objects.create(name, data)
        if faults.active:
            faults.hit("object.journal.created")
        if not created:
            raise FencedError(
                f"epoch {self._epoch} of checkpoint key {self._key!r} in {self._objects.medium.url} was "
                f"superseded: journal object {self._number} is another incarnation's"
            )
        try:
            looked.result()
        except FencedError:
            # The key was removed, or a successor has claimed and not fenced yet: it will find this object
            # and read it, unless nobody ever asks for the key again.
            self._take_back(name)
            raise
        if self._lease is not None:
            self._lease.check()  # after the request: whoever takes the key from now on reads this object
        self._number += 1
        with self._changed:
            self.waiting_bytes -= sum(map(len, batch))  # first: who sees the position looks at it
            self.durable_position += len(batch)
            durable = self.durable_position
            self._changed.notify_all()
        if faults.active:
            faults.hit("object.journal.told")
        if self.on_durable is not None:
            self.on_durable(durable)

    def _look_meanwhile(self) -> Future[None]:
        """See in a second request, beside the first one, whether the claim is still there."""
        if self._lookers is None:
            from concurrent.futures import ThreadPoolExecutor

            self._lookers = ThreadPoolExecutor(1, f"journal {self._key} look")
        return self._lookers.submit(self._look)

    def _take_back(self, name: str) -> None:
        if not self._objects.list(self._directory):
            self._objects.delete([name])

    def _cannot(self, what: str, error: Exception) -> CheckpointSaveError:
        where = f"checkpoint key {self._key!r} in {self._objects.medium.url}"
        return CheckpointSaveError(f"the journal of {where} cannot {what}: {error}")

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self._failure is not None:
                return
            self._failure = error
            self._pending.clear()
            self._changed.notify_all()
        if self.on_failure is not None:
            self.on_failure(error)
