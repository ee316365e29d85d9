"""Names of the objects under a key, shared by all object stores, and of such files on a local disk. Pure.

    <key>/epoch-EEEEEEEEEE.claim                this epoch is taken; the highest one holds the key
    <key>/epoch-EEEEEEEEEE.seal                 which older snapshots are this epoch's past
    <key>/snap-EEEEEEEEEE-SSSSSSSSSSSS.ckpt     manifest of a snapshot, or all of a small one
    <key>/blob/snap-EEEEEEEEEE-SSSSSSSSSSSS-W   bytes of a large snapshot; W is the writer's token
    <key>/probe-TTTTTTTTTT-W                    left over from a probe that died at the time T

Numbers have a fixed width, so that the order of names is the order of numbers.
"""

from __future__ import annotations

from ..lineage import SnapshotName


def claim_name(epoch: int) -> str:
    """Return the name of a claim."""
    return f"epoch-{epoch:010}.claim"


def seal_name(epoch: int) -> str:
    """Return the name of a seal."""
    return f"epoch-{epoch:010}.seal"


def snapshot_name(name: SnapshotName) -> str:
    """Return the name of a snapshot's manifest."""
    return f"snap-{name.epoch:010}-{name.sequence:012}.ckpt"


def snapshot_blob_name(name: SnapshotName, token: str) -> str:
    """Return the name of a snapshot's blob, which nobody else uses."""
    return f"blob/snap-{name.epoch:010}-{name.sequence:012}-{token}"


def numbers(name: str, prefix: str, suffix: str, fields: int) -> tuple[int, ...] | None:
    """Return the first `fields` numbers between `prefix` and `suffix`; None for a name of another kind."""
    if not (name.startswith(prefix) and name.endswith(suffix)):
        return None
    parts = name[len(prefix) : len(name) - len(suffix)].split("-")
    if len(parts) < fields or not all(p.isascii() and p.isdigit() for p in parts[:fields]):
        return None
    return tuple(int(p) for p in parts[:fields])
