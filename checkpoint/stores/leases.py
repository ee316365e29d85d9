"""Holding a key for a time: what takes the place of exclusive creation where a medium has none.

The holder writes an object ``lease`` again and again. Whoever wants the key watches it: only when it has not
changed for its whole term may another one be written. No two clocks are compared: the holder counts from when
it began to write, and stops sooner (`HOLD`) than a watcher, who counts from when it saw the last change.

Two that write at once: each looks again after `SETTLE` of the term, and the last one written holds. A write
that took longer than that from the look before it proves nothing: then the whole term is waited for again.

Invariants: an answer leaves only while `check` passes; when `acquire` has returned True, every answer of
earlier holders had left, and what they rest on can be read. Not promised: that a holder which lost its lease
writes nothing any more; the numbers of journal objects make that harmless (`object_journals`).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from ..errors import CheckpointFormatError, CheckpointSaveError, CheckpointStoreError, FencedError
from .objects import Objects, Retry, new_token, pack, unpack

NAME = "lease"
HOLD, SETTLE, RENEW, WAIT = 0.7, 0.1, 0.2, 1.1
"""Shares of the term: a renewed lease holds so long; two writers sort themselves out; between renewals; how
long a watcher waits for a change."""
_POLL = 0.05


class Said(NamedTuple):
    """What the lease object says: of which epoch it is, its term, and bytes that change at each renewal."""

    epoch: int
    lease_s: float
    raw: bytes


def look(objects: Objects, directory: str) -> Said | None:
    """Read the lease of a key, None if there is none."""
    try:
        raw = objects.read(f"{directory}/{NAME}")
    except FileNotFoundError:
        return None
    try:
        payload = json.loads(unpack(raw, "lease")[1])
        return Said(int(payload["epoch"]), float(payload["lease_s"]), raw)
    except (CheckpointFormatError, KeyError, ValueError) as error:
        raise CheckpointStoreError(f"{objects.medium.url}/{directory}/{NAME} is damaged: {error}") from error


def wait_expired(
    objects: Objects, directory: str, clock: Callable[[], float], sleep: Callable[[float], None]
) -> bool:
    """Watch a lease for its term; False as soon as it changes: somebody holds it."""
    first = look(objects, directory)
    began_s = clock()
    while first is not None:
        left_s = began_s + WAIT * first.lease_s - clock()
        if left_s <= 0:
            return True
        sleep(min(left_s, _POLL * first.lease_s))
        if look(objects, directory) != first:
            return False
    return True


class Lease:
    """The lease of one claim.

    Parameters
    ----------
    objects : Objects
        Where it is kept.
    directory : str
        Of the key.
    superseded : callable
        Raises `FencedError` if a later epoch was claimed.
    lease_s : float
        Its term, in seconds.
    """

    def __init__(
        self,
        objects: Objects,
        directory: str,
        epoch: int,
        lease_s: float,
        superseded: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._objects, self._directory, self._epoch, self.lease_s = objects, directory, epoch, lease_s
        self._at_once = Objects(
            objects.medium, Retry(attempts=1), sleep
        )  # what fails is tried at the next turn
        self._superseded, self._clock, self._sleep = superseded, clock, sleep
        self._mine: set[bytes] = set()  # more than one while it is not known whether the last one has arrived
        self._held_until_s = clock()
        self._lost: FencedError | None = None
        self._trouble = ""
        self._over = threading.Event()

    def acquire(self, ended: Said | None = None) -> bool:
        """Take the key; False if another one was quicker.

        Parameters
        ----------
        ended : Said, optional
            What a holder wrote who is known to have ended: that is not waited for.
        """
        while True:
            began_s = self._clock()
            said = look(self._objects, self._directory)
            if said not in (None, ended):
                assert said is not None
                if not self._wait_for(said):
                    continue
                began_s = self._clock()
                if look(self._objects, self._directory) != said:
                    continue
            wrote_s = self._write(self._objects)
            ended = None
            if self._clock() - began_s > SETTLE * self.lease_s:
                continue  # somebody may have read before us and held since: let that end
            self._sleep(2 * SETTLE * self.lease_s)
            if self._is_mine(self._objects):
                self._held_until_s = wrote_s + HOLD * self.lease_s
                return True
            return False

    def _wait_for(self, said: Said) -> bool:
        """Whether a lease has run out; if it is renewed, whether by a holder who does not know of us yet."""
        changed = not wait_expired(self._objects, self._directory, self._clock, self._sleep)
        if changed:
            self._superseded()
        return not changed

    def _write(self, objects: Objects) -> float:
        """Write a new lease; returns when that was begun."""
        began_s = self._clock()
        payload = json.dumps({"epoch": self._epoch, "lease_s": self.lease_s}).encode()
        data = pack("lease", payload, new_token())
        self._mine.add(data)
        objects.write(f"{self._directory}/{NAME}", data)
        self._mine = {data}
        return began_s

    def _is_mine(self, objects: Objects) -> bool:
        said = look(objects, self._directory)
        return said is not None and said.raw in self._mine

    @property
    def left_s(self) -> float:
        """How long it still holds, in seconds."""
        return max(0.0, self._held_until_s - self._clock())

    def check(self) -> None:
        """Raise unless the key is held now.

        Raises
        ------
        FencedError
            Another one has it, or wants it and may take it.
        CheckpointSaveError
            The lease could not be renewed in time; whether another one has it is not known.
        """
        if self._lost is not None:
            raise self._lost
        if self._clock() >= self._held_until_s:
            raise CheckpointSaveError(
                f"the lease of epoch {self._epoch} on {self._objects.medium.url}/{self._directory} ran out: "
                f"it could not be renewed within {HOLD * self.lease_s:g} s ({self._trouble or 'too slow'})"
            )

    def renew(self) -> None:
        """Extend it by its term from now; a failure is tried again until it runs out."""
        try:
            self.check()
            self._superseded()
            if not self._is_mine(self._at_once):
                raise FencedError(
                    f"the lease of epoch {self._epoch} on {self._objects.medium.url}/{self._directory} was "
                    "taken by another incarnation"
                )
            self.check()  # looking may have taken long
            self._held_until_s = self._write(self._at_once) + HOLD * self.lease_s
            self._trouble = ""
        except FencedError as error:
            self._lost = error
        except (CheckpointStoreError, OSError) as error:
            self._trouble = f"{type(error).__name__}: {error}"
        except CheckpointSaveError:
            pass  # it ran out, which `check` says to those who ask

    def keep(self) -> None:
        """Renew it on a thread until `stop`."""
        threading.Thread(target=self._run, name=f"lease {self._directory}", daemon=True).start()

    def _run(self) -> None:
        while not self._over.wait(RENEW * self.lease_s):
            self.renew()
            if self._lost is not None or self.left_s == 0:
                return

    def stop(self) -> None:
        """Let it run out."""
        self._over.set()
