"""What happened in a run, what it proves, and the picture of it."""

from __future__ import annotations

import hashlib
import statistics
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from immortal_parts.board import SERVER, WORKER

# Snapshots are written in the background, so a crash may undo more than the rounds between two of them. One
# that undoes ten times as many has not restored what it should have.
DEEPEST_PER_EVERY = 10

ROLES = {SERVER: "server", WORKER: "worker"}


@dataclass
class Kill:
    """One death in the middle of work, and how long it then took until the training had its next reply."""

    role: int
    pid: int
    at_s: float
    accuracy: float
    recovery_s: float | None = None


@dataclass
class Story:
    """All events of one run. The training and the chaos thread write it, the display reads it."""

    title: str
    rounds: int
    kills_wanted: int
    every: int  # calls between two snapshots
    parameters: Any = None
    curve: list[tuple[float, int, float]] = field(default_factory=list)  # seconds, position, accuracy
    kills: list[Kill] = field(default_factory=list)
    furthest: int = 0  # position that was reached, however far a crash has set the server back since
    redone: int = 0  # updates that a crash had undone and that were fed again
    deepest: int = 0  # most updates that one crash has undone
    missed: int = 0  # processes that died between two pieces of work: killed, but not counted
    began: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def position(self) -> int:
        return self.curve[-1][1] if self.curve else 0

    @property
    def accuracy(self) -> float:
        return self.curve[-1][2] if self.curve else 0.0

    def observe(self, position: int, accuracy: float, pid: int) -> None:
        """A reply of the server: where it is, how good it is, and which process it is."""
        now_s = time.monotonic() - self.began
        with self._lock:
            undone = max(0, self.position - position)
            self.redone += undone
            self.deepest = max(self.deepest, undone)
            self.curve.append((now_s, position, accuracy))
            self.furthest = max(self.furthest, position)
            for kill in self.kills:
                if kill.recovery_s is None and pid != kill.pid:
                    kill.recovery_s = now_s - kill.at_s

    def killed(self, role: int, pid: int, at: float) -> None:
        """A process was seen to die in the middle of its work, of a signal sent `at` this monotonic time."""
        with self._lock:
            self.kills.append(Kill(role, pid, at - self.began, self.accuracy))

    def kills_of(self, role: int) -> int:
        return sum(kill.role == role for kill in self.kills)

    def recoveries_s(self, role: int | None = None) -> list[float]:
        return [k.recovery_s for k in self.kills if k.recovery_s is not None and role in (None, k.role)]

    def summary(self) -> str:
        """One line about the run so far."""
        text = f"{self.title}: round {self.position}/{self.rounds}, accuracy {self.accuracy:.1%}"
        if not self.kills_wanted:
            return text
        text += f", killed {self.kills_of(SERVER)} x server + {self.kills_of(WORKER)} x worker"
        recoveries = self.recoveries_s()
        if recoveries:
            text += f", recovered {len(recoveries)}, median {statistics.median(recoveries) * 1e3:.0f} ms"
        return f"{text}, {self.redone} rounds fed again"


@dataclass(frozen=True)
class Verdict:
    """Whether the run under fire was as good as the undisturbed one, and why."""

    passed: bool
    text: str


def judge(undisturbed: Story, immortal: Story) -> Verdict:
    """Compare the parameters bit for bit, count the kills, and see how far they set the server back.

    The last matters: a server that came back empty would be fed from the start and end with equal weights.
    """
    equal = undisturbed.parameters.tobytes() == immortal.parameters.tobytes()
    both = all(immortal.kills_of(role) for role in ROLES) or immortal.kills_wanted < len(ROLES)
    enough = len(immortal.kills) >= immortal.kills_wanted and both
    restored = immortal.deepest <= DEEPEST_PER_EVERY * immortal.every
    lines = [
        f"kills in the middle of work: {len(immortal.kills)} of {immortal.kills_wanted} wanted"
        f" ({', '.join(f'{immortal.kills_of(role)} x {name}' for role, name in ROLES.items())};"
        f" {immortal.missed} more between two pieces of work)",
        f"rounds fed again: {immortal.redone}, at most {immortal.deepest} after one kill",
        *_recoveries(immortal),
        f"accuracy: undisturbed {undisturbed.accuracy:.2%}, immortal {immortal.accuracy:.2%}",
        f"weights:  undisturbed {_digest(undisturbed.parameters)}, immortal {_digest(immortal.parameters)}",
    ]
    failures = {
        "the weights differ": equal,
        "too few kills landed": enough,
        "a restore lost too much": restored,
    }
    reasons = [reason for reason, good in failures.items() if not good]
    lines.append("PASS: equal bit for bit" if not reasons else f"FAIL: {' and '.join(reasons)}")
    return Verdict(not reasons, "\n".join(lines))


def _recoveries(story: Story) -> list[str]:
    lines = []
    for role, name in ROLES.items():
        times_ms = [1e3 * seconds for seconds in story.recoveries_s(role)]
        if times_ms:
            lines.append(
                f"from SIGKILL of a {name} to the next reply: median {statistics.median(times_ms):.0f} ms,"
                f" worst {max(times_ms):.0f} ms"
            )
    return lines


def _digest(parameters: Any) -> str:
    return hashlib.sha256(parameters.tobytes()).hexdigest()[:16]


def plot(undisturbed: Story, immortal: Story, verdict: Verdict, path: str) -> None:
    """Accuracy over time of both runs, with the kills marked, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 5), layout="constrained")
    for story, colour, width in ((undisturbed, "#999999", 3.0), (immortal, "#1f5fbf", 1.5)):
        seconds, _positions, accuracies = zip(*story.curve, strict=True)
        axes.plot(seconds, accuracies, color=colour, linewidth=width, label=f"{story.title} run")
    for role, colour, marker in ((SERVER, "#c0392b", "v"), (WORKER, "#e69f00", "x")):
        kills = [kill for kill in immortal.kills if kill.role == role]
        axes.scatter(
            [kill.at_s for kill in kills],
            [kill.accuracy for kill in kills],
            color=colour,
            marker=marker,
            zorder=3,
            label=f"SIGKILL of a {ROLES[role]} ({len(kills)})",
        )
    axes.set(xlabel="seconds since the start of the run", ylabel="accuracy on unseen digits", ylim=(0, 1.02))
    axes.set_title(
        f"{len(immortal.kills)} kills, {immortal.redone} rounds fed again. {verdict.text.splitlines()[-1]}"
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)
