"""Online training that is killed again and again, and ends with the weights of a run that never was.

A parameter server (an actor) learns to read handwritten digits from gradients that worker processes compute
on mini-batches. Meanwhile a chaos thread ends the server's process and the workers' with SIGKILL, always in
the middle of their work. Nothing in the training below handles a crash: tasks are retried, the server comes
back by itself with its last snapshot, and the driver feeds it on from the position that it then reports.

    python examples/immortal_training.py --kills 24 --out immortal_training.png

First an undisturbed run, then the one under fire. Exit status 0 when the weights of both are equal bit for
bit and all kills have landed; the plot shows both. About 15 seconds on two cores. Needs numpy, scikit-learn,
rich and matplotlib (``pip install 'ftray[demo]'``).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from typing import Any

import numpy as np
from immortal_parts.board import SERVER, WORKER, Board, at_work
from immortal_parts.chaos import Monkey
from immortal_parts.display import open_display
from immortal_parts.story import Story, judge, plot

import ftray as ray

SIDE, HIDDEN, CLASSES = 8, 192, 10
PIXELS = SIDE * SIDE
SHIFTS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # pixels by which a digit may lie off the centre
BATCH, SLICE = 768, 256  # images per gradient, and how many at a time: what fits into the cache
LEARNING_RATE, MOMENTUM = 0.4, 0.9
REPLY_TIMEOUT_S = 60.0  # nothing here takes long: a call that does is a bug, and shall say so

# --- the model: one hidden layer, all parameters in one vector -----------------------------------------

SHAPES = ((PIXELS, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,))


def layers(parameters: Any) -> list[Any]:
    """Views of the parameter vector in the shapes of the layers."""
    views, start = [], 0
    for shape in SHAPES:
        stop = start + int(np.prod(shape))
        views.append(parameters[start:stop].reshape(shape))
        start = stop
    return views


def first_parameters(seed: int) -> Any:
    generator = np.random.default_rng(seed)
    return np.concatenate([generator.normal(0.0, 0.1, int(np.prod(shape))) for shape in SHAPES])


def gradient_of(parameters: Any, images: Any, labels: Any) -> Any:
    """Gradient of the mean cross entropy, as one vector."""
    weights1, bias1, weights2, bias2 = layers(parameters)
    hidden = np.tanh(images @ weights1 + bias1)
    scores = hidden @ weights2 + bias2
    errors = np.exp(scores - scores.max(axis=1, keepdims=True))
    errors /= errors.sum(axis=1, keepdims=True)
    errors[np.arange(len(labels)), labels] -= 1.0
    errors /= len(labels)
    back = (errors @ weights2.T) * (1.0 - hidden**2)
    parts = (images.T @ back, back.sum(axis=0), hidden.T @ errors, errors.sum(axis=0))
    return np.concatenate([part.ravel() for part in parts])


def accuracy_of(parameters: Any, images: Any, labels: Any) -> float:
    weights1, bias1, weights2, bias2 = layers(parameters)
    right = 0
    for start in range(0, len(labels), SLICE):
        hidden = np.tanh(images[start : start + SLICE] @ weights1 + bias1)
        answers = (hidden @ weights2 + bias2).argmax(axis=1)
        right += int((answers == labels[start : start + SLICE]).sum())
    return right / len(labels)


def shifted(images: Any, labels: Any) -> tuple[Any, Any]:
    """The images as they are and moved by a pixel to each side: more to learn, and harder to tell apart."""
    padded = np.pad(images.reshape(-1, SIDE, SIDE), ((0, 0), (1, 1), (1, 1)))
    moved = [padded[:, 1 + y : 1 + y + SIDE, 1 + x : 1 + x + SIDE].reshape(-1, PIXELS) for y, x in SHIFTS]
    return np.concatenate(moved), np.tile(labels, len(SHIFTS))


# --- the training --------------------------------------------------------------------------------------


@ray.remote(max_retries=-1)
def gradient(data: Any, parameters: Any, seed: int, position: int, part: int, board: str) -> Any:
    """Gradient on one mini-batch, whose images depend on the place in the stream and on nothing else."""
    with at_work(board, WORKER):
        images, labels = data
        chosen = np.random.default_rng([seed, position, part]).integers(len(labels), size=BATCH)
        slices = chosen.reshape(-1, SLICE)
        return np.mean([gradient_of(parameters, images[some], labels[some]) for some in slices], axis=0)


def make_server_class(store: str, every: int) -> Any:
    """The actor class of the parameter server; its snapshots go to the directory `store`."""

    @ray.remote(max_restarts=-1, max_task_retries=-1)
    class ParameterServer(ray.Checkpointable, store=store, every=every):  # type: ignore[call-arg, misc, valid-type]
        def __init__(self, seed: int, images: Any, labels: Any, board: str) -> None:
            self.parameters = first_parameters(seed)
            self.velocity = np.zeros_like(self.parameters)
            self.position = 0  # how many updates of the stream are in the parameters: saved with them
            self.test = shifted(images / 16.0, labels)
            self.board = board

        def save_checkpoint(self) -> dict[str, Any]:
            return {"parameters": self.parameters, "velocity": self.velocity, "position": self.position}

        def load_checkpoint(self, state: dict[str, Any]) -> None:
            self.__dict__.update(state)

        def apply(self, position: int, *gradients: Any) -> tuple[int, Any, float, int]:
            """Apply the update if it is the next one, and say where we are.

            After a crash the state may be some updates back, or one ahead of what the caller has seen. Either
            way an update that is not the next one changes nothing, and the caller goes on from the reply.
            """
            with at_work(self.board, SERVER):
                if position == self.position:
                    total = np.add.reduce(gradients)  # always in the order of the parts
                    self.velocity = MOMENTUM * self.velocity - LEARNING_RATE / len(gradients) * total
                    self.parameters = self.parameters + self.velocity
                    self.position += 1
                return self._where()

        def pull(self) -> tuple[int, Any, float, int]:
            return self._where()

        def _where(self) -> tuple[int, Any, float, int]:
            return self.position, self.parameters, accuracy_of(self.parameters, *self.test), os.getpid()

    return ParameterServer


def train(
    server: Any,
    data: Any,
    arguments: argparse.Namespace,
    board: str,
    story: Story,
    monkey: Monkey,
) -> Any:
    """Feed the server until it has had all rounds; return the parameters."""

    def observe(reply: tuple[int, Any, float, int]) -> tuple[int, Any]:
        position, parameters, accuracy, pid = reply
        story.observe(position, accuracy, pid)
        return position, parameters

    position, parameters = observe(ray.get(server.pull.remote(), timeout=REPLY_TIMEOUT_S))
    while position < arguments.rounds:
        monkey.begin(position)
        shared = ray.put(parameters)
        gradients = [
            gradient.remote(data, shared, arguments.seed, position, part, board)
            for part in range(arguments.workers)
        ]
        reply = observe(ray.get(server.apply.remote(position, *gradients), timeout=REPLY_TIMEOUT_S))
        if not monkey.holds(position):
            position, parameters = reply
    return parameters


# --- the demonstration ---------------------------------------------------------------------------------


def run(title: str, data: Any, test: Any, arguments: argparse.Namespace, directory: str, kills: int) -> Story:
    """One training run from scratch, with so many kills; everything that happened."""
    board = Board.create(os.path.join(directory, f"board-{title}"))
    server = make_server_class(os.path.join(directory, f"checkpoints-{title}"), arguments.every).remote(
        arguments.seed, *test, board.path
    )
    ray.get(server.pull.remote(), timeout=REPLY_TIMEOUT_S)  # so that the clock below starts with the training
    story = Story(title, arguments.rounds, kills, arguments.every)
    monkey = Monkey(board, story, arguments.seed)
    with open_display(story), monkey:
        story.parameters = np.array(train(server, data, arguments, board.path, story, monkey))
    ray.kill(server)
    return story


def load_digits() -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """The UCI handwritten digits, 8 x 8 pixels: (images as 0..1, labels) to learn, (raw, labels) to test."""
    from sklearn.datasets import load_digits as load

    images, labels = load(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order], labels[order].astype(np.int64)
    return shifted(images[450:] / 16.0, labels[450:]), (images[:450].astype(np.uint8), labels[:450])


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train under SIGKILL and compare with an undisturbed run.")
    parser.add_argument(
        "--kills", type=int, default=24, help="processes killed in the middle of work (default 24)"
    )
    parser.add_argument("--rounds", type=int, default=240, help="updates of the parameters (default 240)")
    parser.add_argument("--workers", type=int, default=3, help="gradient tasks per round (default 3)")
    parser.add_argument("--every", type=int, default=5, help="snapshot every so many calls (default 5)")
    parser.add_argument("--seed", type=int, default=1, help="of data order, weights and kills (default 1)")
    parser.add_argument(
        "--out", default="immortal_training.png", help="the plot (default immortal_training.png)"
    )
    arguments = parser.parse_args(argv)
    if min(arguments.kills, arguments.workers, arguments.every) < 1:
        parser.error("--kills, --workers and --every must be at least 1")
    if arguments.rounds < 5 * arguments.kills:
        parser.error(
            f"--rounds must leave room for the kills: at least {5 * arguments.kills} (5 for each kill)"
        )
    return arguments


def main() -> int:
    arguments = parse()
    learn, test = load_digits()
    # One BLAS thread in the processes that init() starts: sums in one order, so that equal inputs give equal
    # bits.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
    # What processes print would tear the display; their errors still arrive as exceptions.
    ray.init(address="local", num_cpus=arguments.workers + 1, log_to_driver=False)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="immortal-") as directory:
        data = ray.put(learn)
        undisturbed = run("undisturbed", data, test, arguments, directory, kills=0)
        immortal = run("immortal", data, test, arguments, directory, kills=arguments.kills)
        ray.shutdown()  # before the directory goes: a server may still be writing to it
    print(f"both runs took {time.monotonic() - start:.1f} s")
    verdict = judge(undisturbed, immortal)
    plot(undisturbed, immortal, verdict, arguments.out)
    print(f"plot: {os.path.abspath(arguments.out)}")
    print(verdict.text)
    return 0 if verdict.passed else 1


if __name__ == "__main__":
    sys.exit(main())
