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
    position: int
    accuracy: float
    recovery_s: float | None = None
    resumed: int | None = None  # position that the reply reported: behind the above by what the crash undid


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
    repeated: int = 0  # rounds that were fed once more because a kill due in them had not landed
    began: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def position(self) -> int:
        return self.curve[-1][1] if self.curve else 0

    @property
    def accuracy(self) -> float:
        return self.curve[-1][2] if self.curve else 0.0

    def elapsed_s(self) -> float:
        """Time from the beginning to the newest reply."""
        return self.curve[-1][0] if self.curve else 0.0

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
                    kill.resumed, kill.recovery_s = position, now_s - kill.at_s

    def killed(self, role: int, pid: int, at: float) -> None:
        """A process was seen to die in the middle of its work, of a signal sent `at` this monotonic time."""
        with self._lock:
            self.kills.append(Kill(role, pid, at - self.began, self.position, self.accuracy))

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
        f"rounds fed again: {immortal.redone}, at most {immortal.deepest} after one kill"
        f" ({immortal.repeated} more to give a kill another chance)",
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


COLOURS = {SERVER: "#c0392b", WORKER: "#e08e0b"}
MARKERS = {SERVER: "v", WORKER: "X"}


def plot(undisturbed: Story, immortal: Story, verdict: Verdict, path: str) -> None:
    """Write a PNG: accuracy of both runs over time with the kills marked, and how long each recovery took."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(11, 7.5), sharex=True, layout="constrained", height_ratios=(3, 1)
    )
    figure.suptitle(_headline(immortal, verdict), fontsize=15, fontweight="bold")
    _plot_accuracy(above, undisturbed, immortal)
    _plot_recoveries(below, immortal)
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)


def _headline(immortal: Story, verdict: Verdict) -> str:
    if verdict.passed:
        return f"{len(immortal.kills)} processes killed while they trained: same final weights, bit for bit"
    return verdict.text.splitlines()[-1]


def _plot_accuracy(axes: Any, undisturbed: Story, immortal: Story) -> None:
    looks = ((undisturbed, "#aaaaaa", 4.0, "nothing was killed"), (immortal, "#1f5fbf", 1.8, "under fire"))
    for story, colour, width, remark in looks:
        seconds, _positions, accuracies = zip(*story.curve, strict=True)
        percent = [100 * accuracy for accuracy in accuracies]
        label = f"{story.title} run ({remark}): {percent[-1]:.2f} % after {seconds[-1]:.1f} s"
        axes.plot(seconds, percent, color=colour, linewidth=width, label=label)
        axes.plot(seconds[-1], percent[-1], "o", color=colour, markersize=9)
    for role, name in ((SERVER, "the parameter server"), (WORKER, "a worker")):
        kills = [kill for kill in immortal.kills if kill.role == role]
        axes.scatter(
            [kill.at_s for kill in kills],
            [100 * kill.accuracy for kill in kills],
            s=75,
            color=COLOURS[role],
            edgecolors="white",
            marker=MARKERS[role],
            zorder=3,
            label=f"SIGKILL of {name}: {len(kills)} x",
        )
    axes.set(ylabel="accuracy on unseen digits (%)", ylim=(0, 103))
    axes.set_title(
        f"handwritten digits, {immortal.rounds} rounds of training in each run; a crash undid at most"
        f" {immortal.deepest} of them, {immortal.redone} in all were fed again",
        fontsize=10,
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def _plot_recoveries(axes: Any, immortal: Story) -> None:
    for kill in immortal.kills:
        if kill.recovery_s is not None:
            axes.vlines(kill.at_s, 0, 1e3 * kill.recovery_s, color=COLOURS[kill.role], linewidth=2)
            axes.plot(kill.at_s, 1e3 * kill.recovery_s, MARKERS[kill.role], color=COLOURS[kill.role])
    axes.set(
        xlabel="time since the start of the run (s)",
        ylabel="from the kill to the\nnext reply (ms)",
        ylim=(0, None),
        xlim=(0, None),
    )
    axes.grid(alpha=0.3)
